"""The DICOM images that a mask was drawn on: what SEG and RTSTRUCT refer to and take patient and study from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from palpate.errors import FormatError, GeometryError, OutputError
from palpate.images.formats import Mask
from palpate.images.formats.dicom import damage_named, dataset_of, planes_of
from palpate.images.formats.dicom_geometry import Plane, plane_affine, stack
from palpate.images.geometry import Affine

GRID_TOLERANCE_MM = 1e-2
"""How far a mask's corner may lie from the source images' before it counts as another grid."""

_LONG_STRING = 64  # characters in DICOM's LO


@dataclass(frozen=True, eq=False)
class Sources:
    """The images of a mask without their pixels.

    `datasets` are the files; `planes` their frames, one after the other; `order[k]` is the number of the frame that
    slice k of the mask lies on, counted from 0.
    """

    datasets: list[Dataset]
    planes: list[Plane]
    order: list[int]

    def frame(self, number: int) -> tuple[Dataset, int | None]:
        """The file that a frame is in, and its number there from 1; None where the file has only one."""
        if len(self.datasets) == len(self.planes):
            return self.datasets[number], None
        return self.datasets[0], number + 1


def sources_of(mask: Mask, kind: str) -> Sources:
    """The images that a mask was drawn on, read again, with what research files lack filled in in memory.

    Patient and study attributes that are missing are empty; a missing StudyInstanceUID or FrameOfReferenceUID is
    derived from the series, so that all its masks share it. `kind` is what an error calls what is being written.

    Raises:
        OutputError: the mask was not drawn on DICOM images, these are gone or changed, or they lie on another grid.
    """
    source = mask.geometry.source
    if source is None or source.format != "dicom" or not source.files:
        raise OutputError(
            f"{kind} refers to the DICOM images it was drawn on, and this mask was not drawn on DICOM; "
            "write it as .nii.gz or .nrrd"
        )
    try:
        datasets: list[Dataset] = [dataset_of(file, pixels=False) for file in source.files]
        planes: list[Plane] = []
        for dataset, file in zip(datasets, source.files, strict=True):
            with damage_named(file):
                planes += planes_of(dataset, file)
        order, affine = ([0], plane_affine(planes[0])) if len(planes) == 1 else stack(planes, what=str(source.path))
    except (FormatError, GeometryError) as error:
        raise OutputError(
            f"the images that the mask was drawn on have changed or cannot carry {kind}: {error}"
        ) from error
    if len(planes) < sum(int(one.get("NumberOfFrames") or 1) for one in datasets):
        raise OutputError(
            f"the frames of {source.path} have no ImagePositionPatient, so {kind} cannot say where it lies; "
            "write the mask as .nii.gz instead"
        )
    expected = (planes[0].rows, planes[0].columns)
    if mask.labels.shape != (expected if len(planes) == 1 else (len(planes), *expected)):
        raise OutputError(
            f"the mask has the shape {mask.labels.shape}, its source images {len(planes)} x {expected}; "
            "bring it back to the grid of the images, or write .nii.gz"
        )
    _check_grid(mask, affine)
    _complete(datasets, kind, placed=planes[0].placed)
    return Sources(datasets, planes, order)


def drawn_labels(mask: Mask, kind: str, *, most: int) -> list[int]:
    """The labels that a file of this kind describes, in rising order: those named and those drawn.

    Raises:
        OutputError: values that are no labels, none at all, or more than `most`.
    """
    if mask.labels.dtype.kind not in "bui" or (mask.labels.size and int(mask.labels.min()) < 0):
        raise OutputError("a label map holds whole numbers from 0 on; round the mask, and give labels positive values")
    # Slice by slice: sorting a whole thorax at once takes many times its memory.
    drawn = {int(label) for slice_ in np.atleast_2d(mask.labels) for label in np.unique(slice_)}
    labels = sorted((drawn | set(mask.names)) - {0})
    if not labels:
        noun = "segment" if "SEG" in kind else "structure"
        raise OutputError(f"the mask is empty, and {kind} needs at least one {noun}; name the label, or write .nii.gz")
    if len(labels) > most:
        raise OutputError(f"{len(labels)} labels do not fit {kind} ({most} at most); write .nii.gz")
    return labels


def short(text: str, longest: int = _LONG_STRING) -> str:
    """Text that fits DICOM's LO: one line, no backslash (it separates values), 64 characters."""
    return re.sub(r"[\x00-\x1f\\]+", " ", text).strip()[:longest] or "palpate"


def palpate_version() -> str:
    """The version of palpate, which files say."""
    try:
        return version("palpate")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


def _check_grid(mask: Mask, affine: Affine) -> None:
    extent = (1, *mask.labels.shape)[-3:]
    far = np.array([extent[2] - 1, extent[1] - 1, extent[0] - 1, 1])
    for corner in (np.array([0, 0, 0, 1]), far):
        if np.linalg.norm((affine - mask.geometry.affine) @ corner) > GRID_TOLERANCE_MM:
            raise OutputError(
                "the mask lies elsewhere than its source images (was it resampled, flipped or cropped?); "
                "bring it back to the grid of the images, or write .nii.gz"
            )


def _complete(datasets: Sequence[Dataset], kind: str, *, placed: bool) -> None:
    first = datasets[0]
    for keyword in ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID"):
        if any(not one.get(keyword) for one in datasets):
            raise OutputError(
                f"the source images have no {keyword}, so {kind} cannot refer to them; write .nii.gz instead"
            )
    for one in datasets:
        for keyword in (
            "PatientID",
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "AccessionNumber",
            "StudyID",
            "StudyDate",
            "StudyTime",
        ):
            if keyword not in one:
                setattr(one, keyword, "")
        for keyword, needed in (("StudyInstanceUID", True), ("FrameOfReferenceUID", placed)):
            # One series has one of each; where files disagree (careless anonymisation), the first speaks for all.
            derived = generate_uid(entropy_srcs=[str(first.SeriesInstanceUID), keyword])
            if needed or first.get(keyword):
                setattr(one, keyword, first.get(keyword) or derived)
