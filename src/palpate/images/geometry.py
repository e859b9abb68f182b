"""Where voxels are in the patient.

One convention everywhere: an affine maps the homogeneous voxel index (x, y, z, 1) to millimetres in the RAS+
world of the NIfTI standard (x grows to the patient's right, y to the front, z to the head). x is the *last*
spatial axis of the array, because arrays are (z, y, x) or (y, x). Files that speak LPS+ (DICOM, NRRD, MetaImage)
are converted when they are read and converted back when they are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from palpate.errors import GeometryError

if TYPE_CHECKING:
    from palpate.images.image import Source

Affine = Float[np.ndarray, "4 4"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Left-multiply an LPS+ affine by it to get RAS+; it is its own inverse."""

_NO_VOLUME = 1e-12
"""A relative determinant below this means that voxels have no volume (two axes are parallel)."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of an image without its pixels: what a mask needs to find its place again.

    `shape` holds the spatial axes only, in array order: (z, y, x) or (y, x).
    """

    shape: tuple[int, ...]
    affine: Affine
    source: Source | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels in mm, as (x, y, z)."""
        return spacing(self.affine)

    @property
    def orientation(self) -> str:
        """Where x, y and z point, as three letters of R/L, A/P, S/I; oblique axes take the nearest."""
        return orientation(self.affine)


def checked_affine(affine: np.ndarray, *, what: str = "this image") -> Affine:
    """The affine as float64, if it places voxels somewhere.

    Raises:
        GeometryError: wrong shape, NaN or infinite entries, zero spacing, or parallel axes.
    """
    affine = np.array(affine, dtype=np.float64)
    if affine.shape != (4, 4):
        raise GeometryError(f"the affine of {what} has shape {affine.shape}; 4 x 4 is needed")
    if not np.isfinite(affine).all():
        raise GeometryError(
            f"the affine of {what} holds NaN or infinite values, so its voxels lie nowhere; "
            "repair the header (for NIfTI: sform/qform) and try again"
        )
    # Entries near the end of the number range overflow here; the results are then refused like any other.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        volume = abs(np.linalg.det(affine[:3, :3] / lengths))
    if (lengths == 0).any():
        axes = ", ".join(name for name, length in zip("xyz", lengths, strict=True) if length == 0)
        raise GeometryError(f"the affine of {what} gives axis {axes} a spacing of zero; repair the header's voxel size")
    if not volume >= _NO_VOLUME:
        raise GeometryError(f"the affine of {what} has two parallel axes; repair the header's directions")
    return affine


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Distance between neighbouring voxels in mm, as (x, y, z)."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def orientation(affine: Affine) -> str:
    """Where x, y and z point, as three letters of R/L, A/P, S/I; oblique axes take the nearest.

    >>> orientation(np.diag([-1.0, -1.0, 1.0, 1.0]))
    'LPS'
    """
    letters = ["", "", ""]
    for index, world in anatomical_axes(affine).items():
        sign = affine[world, index] > 0
        letters[index] = ("LR", "PA", "IS")[world][int(sign)]
    return "".join(letters)


def anatomical_axes(affine: Affine) -> dict[int, int]:
    """For each voxel axis (0, 1, 2 for x, y, z) the world axis (R, A, S) it is closest to, each used once."""
    # Largest direction cosine first: two oblique axes may be nearest to the same world axis.
    cosines = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    assigned: dict[int, int] = {}
    for _ in range(3):
        world, index = np.unravel_index(int(np.argmax(cosines)), (3, 3))
        assigned[int(index)] = int(world)
        cosines[world, :] = -1
        cosines[:, index] = -1
    return assigned


def affine_from_spacing(spacing_mm: tuple[float, float, float]) -> Affine:
    """An affine for a file that knows its voxel size but not its place: x to the left, y to the back.

    That is how pictures are drawn (row 0 on top): the patient lies on the back and looks at the reader.
    """
    x, y, z = spacing_mm
    return checked_affine(np.diag([-x, -y, z, 1.0]))
