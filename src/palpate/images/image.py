"""The image noun: an array, its place in the patient, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from palpate.errors import ImageError
from palpate.images.geometry import Affine, Geometry, affine_from_spacing, checked_affine

Modality = Literal["CT", "MR", "US", "PET", "XR", "photo", "unknown"]
"""`photo` is any picture whose values are already display values: endoscopy, dermoscopy, histology, a screenshot."""

ModalityOrigin = Literal["header", "given", "card", "guessed", "unknown"]
"""Who claims it: the file, a person, the card of what was trained (all its images were of one kind), or a guess."""

_PLACED_FORMATS = ("nifti", "nrrd", "dicom", "itk")


@dataclass(frozen=True)
class Source:
    """The file or files an image was read from.

    `files` and `series` are for DICOM: the instances in the order of the array's slices (one file may stand for a
    whole multi-frame volume), and the SeriesInstanceUID.
    """

    path: Path
    format: str
    files: tuple[Path, ...] = ()
    series: str | None = None


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels that know where they are in the patient.

    - `array` is (y, x) for a picture, (z, y, x) for a volume; colour pictures and volumes have three channels last
      and say so in `colour`. Values are the file's own, rescaled as its header says (Hounsfield units in CT).
    - `affine` maps the voxel index (x, y, z, 1) to millimetres in RAS+ (see `palpate.images.geometry`). The
      default is one millimetre a pixel, for files that do not know better.
    - `modality` decides how intensities are prepared; `modality_origin` says who claims it.

    Raises:
        ImageError: no pixels, a wrong number of axes, or values that are not finite numbers.
        GeometryError: an affine that places the voxels nowhere.
    """

    array: np.ndarray
    affine: Affine = field(default_factory=lambda: affine_from_spacing((1.0, 1.0, 1.0)))
    modality: Modality = "unknown"
    modality_origin: ModalityOrigin = "unknown"
    colour: bool = False
    source: Source | None = None

    def __post_init__(self) -> None:
        what = str(self.source.path) if self.source else "this image"
        axes = self.array.ndim - (1 if self.colour else 0)
        if axes not in (2, 3) or (self.colour and self.array.shape[-1] != 3):
            wanted = "(y, x, 3) or (z, y, x, 3)" if self.colour else "(y, x) or (z, y, x)"
            hint = (
                "; a colour picture needs colour=True"
                if not self.colour and self.array.ndim == 4
                else "; pick one volume of a series in time, or drop the extra axes"
                if axes > 3
                else ""
            )
            raise ImageError(f"{what} has shape {self.array.shape}; {wanted} is needed{hint}")
        if self.array.size == 0:
            raise ImageError(f"{what} has no pixels (shape {self.array.shape}); check how it was written")
        if self.array.dtype.kind not in "buif":
            raise ImageError(f"{what} holds values of type {self.array.dtype}; integers or real numbers are needed")
        if self.array.dtype.kind == "f":
            bad = self.array.size - int(np.isfinite(self.array).sum())
            if bad:
                raise ImageError(
                    f"{what} holds {bad} NaN or infinite values of {self.array.size}; replace them by the "
                    "background value (for CT: -1024) and save the image again"
                )
        object.__setattr__(self, "affine", checked_affine(self.affine, what=what))

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial shape in array order, without channels: (z, y, x) or (y, x)."""
        return self.array.shape[:-1] if self.colour else self.array.shape

    @property
    def is_volume(self) -> bool:
        """Whether there is a z axis (a volume may have a single slice)."""
        return len(self.shape) == 3

    @property
    def knows_place(self) -> bool:
        """Whether millimetres and anatomical directions mean something, or were only assumed (a PNG, a bare array)."""
        if self.source is not None and self.source.format in _PLACED_FORMATS:
            return True
        return not np.array_equal(self.affine, affine_from_spacing((1.0, 1.0, 1.0)))

    @property
    def geometry(self) -> Geometry:
        """The grid without the pixels."""
        return Geometry(self.shape, self.affine, self.source)
