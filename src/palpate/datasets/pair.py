"""An image and its labels, read and found to fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from palpate.datasets import arrays
from palpate.datasets.case import Case, LabelledImage
from palpate.datasets.files import spacing_beside
from palpate.errors import DatasetError
from palpate.images.formats import read
from palpate.images.formats.npz import read_labels
from palpate.images.geometry import affine_from_spacing
from palpate.images.image import Image, Modality
from palpate.images.modality import with_modality

_SAME_GRID = 0.1
"""How far, in voxels, the labels' corners may lie from the image's: headers round."""

_SAME_SPACING = 1e-3
"""Relative; what differs by more is another spacing, what differs by less a rounded one."""

_NAMES: dict[Modality, tuple[str, ...]] = {
    "CT": ("ct", "cbct"),
    "MR": ("mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "adc", "dwi"),
    "US": ("us", "ultrasound"),
    "PET": ("pet", "pt"),
    "XR": ("xr", "xray", "x-ray", "cxr"),
    "photo": ("photo",),
}

_IN_FILE_NAMES = {"ct", "mr", "mri", "us", "ultrasound", "pet", "xr", "xray", "cxr"}
"""T1 and T2 also number vertebrae and points in time, so that in a file's name only these count."""

_OF_CHALLENGE = ("dermoscopy", "endoscopy", "fundus", "mammography", "microscopy", "oct")
"""Kinds of images in the names of the challenge's files that decide nothing about intensities."""


@dataclass(frozen=True)
class Loader:
    """How a layout reads its cases: one function for images, one for label files, each of a path.

    Called with a case, it gives both, if they fit.
    """

    image: Callable[[Path], Image]
    labels: Callable[[Path], Image]

    def __call__(self, case: Case) -> LabelledImage:
        """The image and its labels.

        Raises:
            DatasetError: they do not lie on one grid, or the labels are no whole numbers.
            FormatError, GeometryError, ImageError: a file cannot be read.
        """
        image = settled(self.image(case.image), case.modality)
        reference = self.labels(case.label)
        labels = whole_numbers(reference, case.label)
        for _, what, remedy in misfits(image, reference):
            raise DatasetError(f"{case.label} does not fit {case.image}: {what}; {remedy}")
        return LabelledImage(image, labels)


def read_image_file(path: Path) -> Image:
    """An image from any format, and one slice from an .npy; a TIFF volume with the spacing that lies beside it.

    Raises:
        FormatError, GeometryError, ImageError: the file cannot be read.
        DatasetError: a spacing beside it that is none.
    """
    image = arrays.read_image(path) if path.suffix.lower() == ".npy" else read(path)
    return _spaced(image, spacing_beside(path, numbered=True))


def read_label_file(path: Path) -> Image:
    """A label map from any format that images have, from an .npy, or the `gts` of an .npz.

    A TIFF volume has the spacing that lies beside it.

    Raises:
        FormatError, GeometryError, ImageError: the file cannot be read.
        DatasetError: a spacing beside it that is none.
    """
    suffix = path.suffix.lower()
    labels = arrays.read_labels(path) if suffix == ".npy" else read_labels(path) if suffix == ".npz" else read(path)
    return _spaced(labels, spacing_beside(path, numbered=False))


FILES = Loader(read_image_file, read_label_file)
"""For layouts of image files and label files."""


def known_modality(text: str) -> Modality | None:
    """The modality that a layout names, if it is one that decides about intensities.

    >>> known_modality("mri")
    'MR'
    """
    name = text.strip().lower()
    return next((modality for modality, names in _NAMES.items() if name in names), None)


def settled(image: Image, modality: str) -> Image:
    """The image with the modality that its dataset states, where the file holds the scanner's values.

    Pictures of 8 bits, colour and challenge cases hold display values, which no window applies to any more.
    """
    if not modality or image.colour:
        return image
    form = image.source.format if image.source else ""
    if image.array.dtype == np.uint8 and (not image.is_volume or form in ("raster", "npz", "npy")):
        return image
    return with_modality(image, modality)


def whole_numbers(reference: Image, path: Path) -> Integer[np.ndarray, "..."]:
    """The label map's values as integers, in the image's spatial shape.

    Floating-point files that hold whole numbers are converted; grey that was saved as colour is grey again.

    Raises:
        DatasetError: fractions, colours, or JPEG, which invents values at every edge.
    """
    array = reference.array
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DatasetError(
            f"the labels {path} are a JPEG, whose compression changes values at edges; "
            "take the original, or threshold it once and save it as PNG"
        )
    if reference.colour:
        if not (array == array[..., :1]).all():
            raise DatasetError(
                f"the labels {path} are a colour picture; save them in one channel, one whole number an object"
            )
        array = np.ascontiguousarray(array[..., 0])
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "ui":
        return array
    least, most = float(array.min()), float(array.max())
    if not (array == np.rint(array)).all() or most >= 2**63 or least < -(2**63):
        raise DatasetError(
            f"the labels {path} hold numbers that are not whole (from {least:g} to {most:g}); threshold probabilities, "
            "and resample labels by nearest neighbour only"
        )
    kinds = (np.uint8, np.uint16, np.int16, np.int32, np.int64)
    return array.astype(next(kind for kind in kinds if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max))


def misfits(image: Image, reference: Image) -> Iterator[tuple[str, str, str]]:
    """Why the labels do not lie on the image's grid: (kind, what, the way out), none if they do.

    Where one of the files knows no place (a PNG, a bare array), only shapes are compared.
    """
    if image.shape != reference.shape:
        shapes = " and ".join(" x ".join(map(str, shape)) for shape in (image.shape, reference.shape))
        turned = image.shape == reference.shape[::-1] or image.shape[-2:] == reference.shape[:-3:-1]
        hint = "they look transposed; " if turned and len(image.shape) == len(reference.shape) else ""
        yield (
            "shape",
            f"the image has the shape {shapes} the labels",
            f"{hint}bring the labels to the image's grid (nearest neighbour), or pair the right files",
        )
        return
    if not (image.is_volume and image.knows_place and reference.knows_place):
        return
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    far = corners * [*(extent - 1 for extent in image.shape[::-1]), 1]
    shift = float(np.linalg.norm(far @ (reference.affine - image.affine).T, axis=1).max())
    ours, theirs = np.array(image.geometry.spacing), np.array(reference.geometry.spacing)
    if not np.allclose(ours, theirs, rtol=_SAME_SPACING, atol=0):
        mm = " and ".join(" x ".join(f"{value:g}" for value in spacing) for spacing in (ours, theirs))
        yield (
            "spacing",
            f"voxels are {mm} mm (x y z) in image and labels",
            "resample, or repair the header that is wrong",
        )
    elif shift > _SAME_GRID * float(ours.min()):
        turned = not np.allclose(image.affine[:3, :3] / ours, reference.affine[:3, :3] / theirs, rtol=0, atol=1e-3)
        yield (
            "direction" if turned else "origin",
            f"the labels lie up to {shift:.3g} mm beside the image, {'turned or flipped' if turned else 'shifted'}",
            "copy the image's header if the voxels fit, otherwise resample the labels",
        )


def _spaced(image: Image, beside: Path) -> Image:
    form = image.source.format if image.source else ""
    if form != "raster" or not image.is_volume or not beside.is_file():
        return image
    try:
        z, y, x = (float(value) for value in json.loads(beside.read_text(encoding="utf-8"))["spacing"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DatasetError(
            f"{beside} should hold {{spacing: [z, y, x]}} in mm ({error}); correct it, or move it away"
        ) from error
    if not np.isfinite([x, y, z]).all() or min(x, y, z) <= 0:
        raise DatasetError(f"the spacing in {beside} is {z, y, x}; three positive numbers are needed")
    return replace(image, affine=affine_from_spacing((x, y, z)))


def modality_in(name: str) -> Modality | None:
    """The modality that a file's name states in one of its parts (`CT_Abd-...`, `3D_MR_...`), if it is only one."""
    parts = set(re.split(r"[^a-z0-9]+", name.lower())) & _IN_FILE_NAMES
    found: list[Modality] = [modality for modality, names in _NAMES.items() if parts & set(names)]
    return found[0] if len(found) == 1 else None


def kind_in(*names: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The fields `modality` and `extra` of a case of which these names say something; the first that does so counts.

    >>> kind_in("CT_Abd-0001", "Validation"), kind_in("0001", "Fundus")
    (('CT', ()), ('', (('modality', 'fundus'),)))
    """
    for name in names:
        if modality := modality_in(name):
            return modality, ()
        others = set(re.split(r"[^a-z0-9]+", name.lower())) & set(_OF_CHALLENGE)
        if len(others) == 1:
            return "", (("modality", others.pop()),)
    return "", ()
