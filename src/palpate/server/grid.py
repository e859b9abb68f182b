"""The grid that clients see: an image's voxels in closest-RAS order.

Viewers disagree about the order of a file's axes. So every image goes out re-stored: its axes permuted and flipped,
never resampled, until i grows to the patient's right, j to the front and k to the head, or as nearly so as the image's
own axes allow. What comes back are indices of that grid, and only this file turns them into the array's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from palpate.errors import PromptError
from palpate.images.geometry import Affine, Geometry, anatomical_axes

Plane = Literal["axial", "coronal", "sagittal"]
"""Which of i, j, k stands still: k, j or i."""

Voxel = tuple[int, int, int]

PLANES: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of the RAS grid that a plane is cut along."""


@dataclass(frozen=True, eq=False)
class RasGrid:
    """A grid in closest-RAS order, and the way from an array's own order and back.

    - `shape` is (i, j, k); a picture has one voxel along the axis it does not have.
    - `affine` maps (i, j, k, 1) to millimetres in RAS+.
    - `source` says, for each of i, j, k, which voxel axis of the image it is (0, 1, 2 for x, y, z), and `flipped`
      whether it runs the other way.
    """

    shape: Voxel
    affine: Affine
    source: Voxel
    flipped: tuple[bool, bool, bool]
    picture: bool

    @classmethod
    def of(cls, geometry: Geometry) -> RasGrid:
        """The RAS grid of an image."""
        extents = (geometry.shape if len(geometry.shape) == 3 else (1, *geometry.shape))[::-1]  # as x, y, z
        nearest = {world: voxel for voxel, world in anatomical_axes(geometry.affine).items()}
        source = (nearest[0], nearest[1], nearest[2])
        flipped = tuple(bool(geometry.affine[world, voxel] < 0) for world, voxel in enumerate(source))
        affine = np.eye(4)
        affine[:3, 3] = geometry.affine[:3, 3]
        for axis, (voxel, flip) in enumerate(zip(source, flipped, strict=True)):
            column = geometry.affine[:3, voxel]
            affine[:3, axis] = -column if flip else column
            if flip:
                affine[:3, 3] += column * (extents[voxel] - 1)
        shape = (extents[source[0]], extents[source[1]], extents[source[2]])
        return cls(shape, affine, source, (flipped[0], flipped[1], flipped[2]), picture=len(geometry.shape) == 2)

    def to_ras(self, array: np.ndarray) -> np.ndarray:
        """An array of the image, (z, y, x) or (y, x) and perhaps channels, as [i, j, k] and channels; a view."""
        if self.picture:
            array = array[None]
        channels = tuple(range(3, array.ndim))
        moved = array.transpose(*(2 - voxel for voxel in self.source), *channels)
        return moved[tuple(slice(None, None, -1 if flip else None) for flip in self.flipped)]

    def from_ras(self, volume: np.ndarray) -> np.ndarray:
        """The inverse of `to_ras`; a view."""
        channels = tuple(range(3, volume.ndim))
        turned = volume[tuple(slice(None, None, -1 if flip else None) for flip in self.flipped)]
        back = [0, 0, 0]
        for axis, voxel in enumerate(self.source):
            back[2 - voxel] = axis
        array = turned.transpose(*back, *channels)
        return array[0] if self.picture else array

    def to_array_index(self, ijk: Voxel) -> Voxel:
        """The index (z, y, x) of a voxel of this grid; z is 0 in a picture.

        Raises:
            PromptError: there is no such voxel.
        """
        if any(not 0 <= index < extent for index, extent in zip(ijk, self.shape, strict=True)):
            raise PromptError(
                f"the voxel {tuple(ijk)} lies outside the image, whose voxels go from (0, 0, 0) to "
                f"{tuple(extent - 1 for extent in self.shape)}"
            )
        zyx = [0, 0, 0]
        for index, extent, voxel, flip in zip(ijk, self.shape, self.source, self.flipped, strict=True):
            zyx[2 - voxel] = extent - 1 - index if flip else index
        return zyx[0], zyx[1], zyx[2]

    def to_ras_index(self, zyx: Voxel) -> Voxel:
        """The voxel (i, j, k) of an array's index (z, y, x)."""
        i, j, k = (
            extent - 1 - zyx[2 - voxel] if flip else zyx[2 - voxel]
            for extent, voxel, flip in zip(self.shape, self.source, self.flipped, strict=True)
        )
        return i, j, k

    def array_axis(self, ras_axis: int) -> int:
        """Which axis of the array (0, 1, 2 for z, y, x) runs along i, j or k."""
        return 2 - self.source[ras_axis]

    def ras_axis(self, array_axis: int) -> int:
        """Which of i, j, k an axis of the array (0, 1, 2 for z, y, x) runs along."""
        return self.source.index(2 - array_axis)

    def plane_axis(self, plane: str) -> int:
        """Which axis of the array a plane is cut along.

        Raises:
            PromptError: no such plane, or not one that a picture has.
        """
        if plane not in get_args(Plane):
            raise PromptError(f"there is no plane {plane!r}; choose {', '.join(get_args(Plane))}")
        axis = self.array_axis(PLANES[cast(Plane, plane)])
        if self.picture and axis != 0:
            raise PromptError(f"this is a picture, so nothing can be drawn on a {plane} plane; draw on the picture")
        return axis

    def plane(self, array_axis: int) -> Plane:
        """What the plane is called that is cut along an axis of the array."""
        ras_axis = self.ras_axis(array_axis)
        return next(plane for plane, axis in PLANES.items() if axis == ras_axis)


def on_slice(zyx: Voxel, axis: int) -> tuple[int, int, int]:
    """An array index as (x, y, slice): column, row and number of the slice along an axis, as prompts have it."""
    row, column = (zyx[a] for a in (0, 1, 2) if a != axis)
    return column, row, zyx[axis]


def off_slice(x: int, y: int, number: int, axis: int) -> Voxel:
    """The inverse of `on_slice`."""
    zyx = [0, 0, 0]
    zyx[axis] = number
    others = [a for a in (0, 1, 2) if a != axis]
    zyx[others[0]], zyx[others[1]] = y, x
    return zyx[0], zyx[1], zyx[2]
