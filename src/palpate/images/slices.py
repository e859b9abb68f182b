"""Which way a volume is cut into slices, and how masks of slices are put back."""

from __future__ import annotations

import numpy as np

from palpate.errors import SettingError
from palpate.images.geometry import anatomical_axes, spacing
from palpate.images.image import Image

AXES = ("z", "y", "x", "axial", "coronal", "sagittal")

_THICK = 1.3
"""An axis whose voxels are this many times longer than the others' was the axis of acquisition."""


def slicing_axis(image: Image, axis: str | None = None) -> int:
    """The array axis (0, 1, 2 for z, y, x) to cut a volume along.

    Without a choice it is the axis of acquisition: DICOM series are stacked along z; in other files it is the one
    axis along which voxels are clearly longer (1.3 times), and z where there is none. `axial`, `coronal` and
    `sagittal` pick the axis closest to that anatomical direction.

    Raises:
        SettingError: an axis that does not exist.
    """
    if axis is None:
        return _acquisition_axis(image)
    check_axis(axis)
    if axis in ("z", "y", "x"):
        return ("z", "y", "x").index(axis)
    world = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
    voxel = next(v for v, w in anatomical_axes(image.affine).items() if w == world)
    return 2 - voxel


def check_axis(axis: str) -> None:
    """Refuse what is no axis, before any image is there.

    Raises:
        SettingError: an axis that does not exist.
    """
    if axis not in AXES:
        raise SettingError(f"there is no axis {axis!r}; choose one of {', '.join(AXES)}")


def slice_first(array: np.ndarray, axis: int) -> np.ndarray:
    """A view of a volume with the slicing axis in front; the two others keep their order, channels stay last.

    Rows and columns of a slice are therefore (y, x) along z, (z, x) along y, and (z, y) along x.
    """
    return np.moveaxis(array, axis, 0)


def slice_back(array: np.ndarray, axis: int) -> np.ndarray:
    """The inverse of `slice_first`."""
    return np.moveaxis(array, 0, axis)


def slice_name(image: Image, axis: int) -> str:
    """What a slice along this array axis is to a radiologist: axial, coronal or sagittal (the nearest)."""
    return ("sagittal", "coronal", "axial")[anatomical_axes(image.affine)[2 - axis]]


def slice_letters(image: Image, axis: int) -> tuple[str, str, str, str]:
    """The anatomical letters at a slice's left, right, top and bottom edge, as R/L, A/P or S/I."""
    row_axis, column_axis = [a for a in (0, 1, 2) if a != axis]
    return (*_ends(image, column_axis), *_ends(image, row_axis))


def _ends(image: Image, array_axis: int) -> tuple[str, str]:
    voxel = 2 - array_axis
    world = anatomical_axes(image.affine)[voxel]
    low, high = ("LR", "PA", "IS")[world]
    return (low, high) if image.affine[world, voxel] > 0 else (high, low)


def _acquisition_axis(image: Image) -> int:
    if image.source is not None and image.source.format == "dicom":
        return 0
    lengths = np.array(spacing(image.affine)[::-1])  # as (z, y, x)
    longest = int(np.argmax(lengths))
    others = np.delete(lengths, longest)
    return longest if lengths[longest] >= _THICK * others.max() else 0
