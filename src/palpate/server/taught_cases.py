"""Finished cases as a dataset that `palpate learn` reads: a manifest, label maps, and images that need converting.

Images stay where they are, as far as a manifest can name them; a DICOM series, of which a folder may hold several, is
written as NIfTI. What a model sees of an image while it learns is what it sees of it on the desk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from palpate.datasets import Case, Region, write_manifest
from palpate.datasets.pair import FILES
from palpate.errors import DatasetError, OutputError
from palpate.images.formats import Mask, replacing, write_mask
from palpate.images.image import Image
from palpate.images.intensity import AsIs, intensity_for

DATASET = "finished"
"""What the dataset calls itself, and the card of what was learned from it."""


@runtime_checkable
class Named(Protocol):
    """A label: its value in label maps, and its name."""

    @property
    def value(self) -> int:
        """1 to 254."""
        ...

    @property
    def name(self) -> str:
        """What it stands for."""
        ...


@runtime_checkable
class LabelledCases(Protocol):
    """What is needed of a desk."""

    def image(self, case: str) -> Image:
        """The image of a case."""
        ...

    def labels_of(self, case: str) -> UInt8[np.ndarray, "..."]:
        """Its label map, of the image's shape in array order."""
        ...

    def labels(self) -> Sequence[Named]:
        """The labels that there are."""
        ...


def write_cases(
    desk: LabelledCases, cases: Sequence[str], folder: Path, *, progress: Callable[[int, int], None]
) -> dict[int, str]:
    """Write these cases as a dataset into `folder`, in place of what is there; the labels that they hold, by value.

    Every case is taken to be labelled wholly: a label of another case that it has not is not in its image.

    Raises:
        DatasetError: none of the cases holds a label.
        OutputError: the folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot write in {folder}: {error.strerror or error}; make room there") from error
    held: set[int] = set()
    written: list[Case] = []
    for number, case in enumerate(cases):
        progress(number, len(cases))
        image, labels = desk.image(case), desk.labels_of(case)
        held |= set(np.unique(labels).tolist()) - {0}
        written.append(_written(case, image, labels, folder))
    if not held:
        raise DatasetError("the finished cases hold no label, so there is nothing to learn; draw something first")
    known = {label.value: label.name for label in desk.labels()}
    names = {value: known.get(value, f"label {value}") for value in sorted(held)}
    regions = tuple(Region(name, (value,)) for value, name in names.items())
    write_manifest(folder / "manifest.csv", [replace(case, regions=regions) for case in written])
    progress(len(cases), len(cases))
    return names


def _written(case: str, image: Image, labels: UInt8[np.ndarray, "..."], folder: Path) -> Case:
    source = image.source
    # A TIFF may have its spacing beside it, which a dataset reads and the desk does not: labels of arrays know no
    # place, and are compared by their shape alone.
    arrays = source is not None and source.format in ("raster", "npz")
    label = folder / "labels" / f"{case}{'.nii.gz' if not arrays else '.npz' if image.is_volume else '.png'}"
    if label.suffix == ".npz":
        with replacing(label, overwrite=True) as temporary:
            np.savez_compressed(temporary, gts=labels)
    else:
        write_mask(label, Mask(labels, image.geometry), overwrite=True)
    if source is None or source.format == "dicom":
        path = write_image(folder / "images" / case, image)
    else:
        path = source.path.absolute()
    return Case(
        dataset=DATASET,
        subject=case,  # nobody says whose images they are
        name=case,
        image=path,
        label=label,
        load=FILES,
        modality="" if image.modality == "unknown" else image.modality,
    )


def write_image(path: Path, image: Image) -> Path:
    """Write an image into a file of this name, without suffix, so that it is shown as before when it is read; the file.

    A picture whose values are shown as they are becomes a PNG, everything else NIfTI.

    Raises:
        OutputError: it cannot be written.
    """
    if not image.is_volume and image.array.dtype == np.uint8 and isinstance(intensity_for(image), AsIs):
        from PIL import Image as Picture

        png = path.with_name(f"{path.name}.png")
        with replacing(png, overwrite=True) as temporary:
            Picture.fromarray(image.array).save(temporary, format="PNG")
        return png
    import nibabel as nib

    array = image.array
    if image.colour:
        kind = np.dtype([("R", np.uint8), ("G", np.uint8), ("B", np.uint8)])
        array = np.ascontiguousarray(array.astype(np.uint8)).view(kind)[..., 0]
    elif array.dtype == np.uint8 and not image.is_volume:
        array = array.astype(np.int16)  # of 8 bits, a picture would be taken for one made for the eye
    elif array.dtype.name not in _HELD:
        array = array.astype(_HELD_AS.get(array.dtype.name, "float64"))
    nifti = path.with_name(f"{path.name}.nii.gz")
    with replacing(nifti, overwrite=True) as temporary:
        written = nib.Nifti1Image(array.T, image.affine, dtype=array.dtype)
        written.header.set_xyzt_units("mm")
        nib.save(written, temporary)
    return nifti


_HELD = ("uint8", "int16", "int32", "uint16", "uint32", "int8", "float32", "float64")
"""Kinds of numbers that every reader of NIfTI knows."""

_HELD_AS: Mapping[str, str] = {"bool": "uint8", "float16": "float32"}
