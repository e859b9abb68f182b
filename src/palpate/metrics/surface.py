"""How far apart the surfaces of two masks are.

Masks lie in array order, (y, x) or (z, y, x), and so does the spacing: `spacing_mm[i]` belongs to axis `i`. With a
spacing of 1 everything counts in pixels. What lies beyond the array is background, so a mask has a surface where
the array ends. A 2D mask has a contour; of a volume's slice, pass the slice and the last two spacings.

Two definitions of the surface are in use, and they give different numbers:

- "surfel" (Nikolov et al. 2018, arXiv:1809.04430; the package surface-distance): a surface element wherever 2 x 2
  (x 2) neighbouring voxels are neither all inside nor all outside. It sits between them, and weighs as much as the
  length (area) that marching squares (cubes) draws there.
- "voxel" (MONAI, medpy): the voxels of the mask that have a face on the background; each weighs the same.

Where there is no surface on one side, every distance is infinite: NSD 0, HD95 and ASSD infinite. Where there is none
on both, the measures are `both_empty`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from scipy import ndimage
from scipy.spatial import KDTree

from palpate.errors import GeometryError, ImageError, SettingError

Surface: TypeAlias = Literal["surfel", "voxel"]
NsdMode: TypeAlias = Literal["contour", "challenge"]
Corner: TypeAlias = tuple[int, ...]

# Distances are multiples of the spacing, so they often equal the tolerance; 3 * 0.7 mm must not lose against 2.1 mm
# by a rounding error. The same for shares of a surface that are 95 % exactly.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """How far each surface element of one mask is from the other mask's surface, and what it weighs.

    - `to_reference` are the distances in mm of the prediction's elements, in no order; infinite without a reference.
    - `prediction_area` are their areas in mm² (lengths in mm for a contour; 1 each for voxels).
    - `to_prediction` and `reference_area` are the same for the reference's elements.
    """

    surface: Surface
    to_reference: Float[np.ndarray, "p"]
    to_prediction: Float[np.ndarray, "r"]
    prediction_area: Float[np.ndarray, "p"]
    reference_area: Float[np.ndarray, "r"]

    @property
    def both_empty(self) -> bool:
        """Whether neither mask has a surface."""
        return len(self.to_reference) == 0 and len(self.to_prediction) == 0

    def nsd(self, tolerance_mm: float, *, both_empty: float = math.nan) -> float:
        """The share of both surfaces that lies within the tolerance of the other, from 0 to 1."""
        if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
            raise SettingError(
                f"the tolerance is {tolerance_mm} mm; give a finite number that is not negative, such as 2.0"
            )
        if self.both_empty:
            return both_empty
        within = tolerance_mm * (1 + _ROUNDING)
        close = self.prediction_area[self.to_reference <= within].sum()
        close += self.reference_area[self.to_prediction <= within].sum()
        return float(close / (self.prediction_area.sum() + self.reference_area.sum()))

    def hausdorff95(self, *, both_empty: float = math.nan) -> float:
        """The distance that 95 % of each surface keep to, the larger of the two directions, in mm.

        For voxels the percentile is interpolated between neighbours, as MONAI does; for surfels it is the distance
        of the first element, from near to far, with which 95 % of the area is reached.
        """
        if self.both_empty:
            return both_empty
        if len(self.to_reference) == 0 or len(self.to_prediction) == 0:
            return math.inf
        if self.surface == "voxel":
            return max(float(np.percentile(d, 95)) for d in (self.to_reference, self.to_prediction))
        return max(
            _weighted_percentile95(self.to_reference, self.prediction_area),
            _weighted_percentile95(self.to_prediction, self.reference_area),
        )

    def assd(self, *, both_empty: float = math.nan) -> float:
        """The mean distance over both surfaces together, in mm: a larger surface counts for more."""
        if self.both_empty:
            return both_empty
        total = (self.to_reference * self.prediction_area).sum() + (self.to_prediction * self.reference_area).sum()
        return float(total / (self.prediction_area.sum() + self.reference_area.sum()))


def surface_distances(
    prediction: Shaped[np.ndarray, "..."],
    reference: Shaped[np.ndarray, "..."],
    *,
    spacing_mm: tuple[float, ...],
    surface: Surface = "surfel",
) -> SurfaceDistances:
    """The expensive step, once; NSD, HD95 and ASSD are cheap readings of it.

    Both are Bool masks on one 2D or 3D grid, and `spacing_mm` is in the order of the array's axes. Distances are
    exact in float64.
    """
    spacing = _checked_spacing(prediction, reference, spacing_mm)
    box = _common_box(prediction, reference)
    if box is None:
        nothing = np.zeros(0)
        return SurfaceDistances(surface, nothing, nothing, nothing, nothing)
    if surface == "surfel":
        areas = _areas_of_neighbourhoods(spacing)
        prediction_codes, reference_codes = _neighbourhoods(prediction[box]), _neighbourhoods(reference[box])
        cut = areas > 0
        prediction_surface, reference_surface = cut[prediction_codes], cut[reference_codes]
        prediction_area = areas[prediction_codes[prediction_surface]]
        reference_area = areas[reference_codes[reference_surface]]
    else:
        prediction_surface, reference_surface = _border(prediction[box]), _border(reference[box])
        prediction_area = np.ones(np.count_nonzero(prediction_surface))
        reference_area = np.ones(np.count_nonzero(reference_surface))
    return SurfaceDistances(
        surface,
        to_reference=_distances(prediction_surface, reference_surface, spacing),
        to_prediction=_distances(reference_surface, prediction_surface, spacing),
        prediction_area=prediction_area,
        reference_area=reference_area,
    )


def nsd(
    prediction: Shaped[np.ndarray, "..."],
    reference: Shaped[np.ndarray, "..."],
    *,
    spacing_mm: tuple[float, ...],
    tolerance_mm: float = 2.0,
    mode: NsdMode = "contour",
    both_empty: float = math.nan,
) -> float:
    """Normalised surface Dice (Nikolov et al. 2018): the share of both surfaces within the tolerance, from 0 to 1.

    `spacing_mm` is in the order of the array's axes. "challenge" is what the script of the CVPR 2024 challenge
    "Segment anything in medical images on laptop" computes: a picture becomes a volume of one slice with 1 mm voxels,
    whatever its spacing, so every pixel of the mask is surface, and the insides of two masks agree wherever they
    overlap. On volumes both modes are the same.
    """
    spacing = _checked_spacing(prediction, reference, spacing_mm)
    if mode == "challenge" and prediction.ndim == 2:
        prediction, reference, spacing = prediction[..., None], reference[..., None], (1.0, 1.0, 1.0)
    return surface_distances(prediction, reference, spacing_mm=spacing).nsd(tolerance_mm, both_empty=both_empty)


def hausdorff95(
    prediction: Shaped[np.ndarray, "..."],
    reference: Shaped[np.ndarray, "..."],
    *,
    spacing_mm: tuple[float, ...],
    surface: Surface = "surfel",
    both_empty: float = math.nan,
) -> float:
    """The 95th percentile of the distances between the surfaces, the larger of both directions, in mm.

    `spacing_mm` is in the order of the array's axes. Infinite if exactly one mask is empty.
    """
    distances = surface_distances(prediction, reference, spacing_mm=spacing_mm, surface=surface)
    return distances.hausdorff95(both_empty=both_empty)


def assd(
    prediction: Shaped[np.ndarray, "..."],
    reference: Shaped[np.ndarray, "..."],
    *,
    spacing_mm: tuple[float, ...],
    surface: Surface = "surfel",
    both_empty: float = math.nan,
) -> float:
    """Average symmetric surface distance: the mean over both surfaces together, in mm.

    `spacing_mm` is in the order of the array's axes. Infinite if exactly one mask is empty.
    """
    distances = surface_distances(prediction, reference, spacing_mm=spacing_mm, surface=surface)
    return distances.assd(both_empty=both_empty)


def _checked_spacing(
    prediction: Shaped[np.ndarray, "..."], reference: Shaped[np.ndarray, "..."], spacing_mm: tuple[float, ...]
) -> tuple[float, ...]:
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != np.bool_:
            raise ImageError(f"the {name} holds {mask.dtype}; a mask is bool: pass `labels == 1` for label 1")
        if mask.ndim not in (2, 3):
            raise ImageError(f"the {name} has shape {mask.shape}; pass a slice (y, x) or a volume (z, y, x)")
    if prediction.shape != reference.shape:
        raise ImageError(
            f"the prediction has shape {prediction.shape} and the reference {reference.shape}; "
            "bring both onto one grid first"
        )
    if len(spacing_mm) != prediction.ndim:
        raise GeometryError(
            f"{len(spacing_mm)} spacings came for a mask with {prediction.ndim} axes; give one for each axis, in the "
            "array's order: (y, x) or (z, y, x)"
        )
    if not all(math.isfinite(mm) and mm > 0 for mm in spacing_mm):
        raise GeometryError(f"the spacing is {spacing_mm}; positive numbers are needed, or 1.0 to count in pixels")
    return tuple(float(mm) for mm in spacing_mm)


def _common_box(
    prediction: Bool[np.ndarray, "*grid"], reference: Bool[np.ndarray, "*grid"]
) -> tuple[slice, ...] | None:
    """The smallest box around both masks; None if there is nothing in either."""
    box: tuple[slice, ...] = ()
    for axis in range(prediction.ndim):
        others = tuple(other for other in range(prediction.ndim) if other != axis)
        # Each axis looks only at what the axes before it have left.
        used = np.flatnonzero(prediction[box].any(axis=others) | reference[box].any(axis=others))
        if len(used) == 0:
            return None
        box = (*box, slice(int(used[0]), int(used[-1]) + 1))
    return box


def _border(mask: Bool[np.ndarray, "*grid"]) -> Bool[np.ndarray, "*grid"]:
    """The mask's voxels that have a face on the background."""
    return mask & np.logical_not(ndimage.binary_erosion(mask))


# Surface elements. A corner where 2 x 2 (x 2) voxels meet has a code: bit `i` is the voxel whose offset along axis `a`
# is bit `a` of `i`.


def _neighbourhoods(mask: Bool[np.ndarray, "*grid"]) -> UInt8[np.ndarray, "*corners"]:
    """The codes of all corners of the mask's voxels, one more than voxels along each axis."""
    codes = np.pad(mask.view(np.uint8), 1)
    for axis in range(mask.ndim):
        before, after = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        codes = codes[tuple(before)] | codes[tuple(after)] << (1 << axis)
    return codes


def _areas_of_neighbourhoods(spacing: tuple[float, ...]) -> Float[np.ndarray, "code"]:
    """How much surface (in 2D: contour) each code stands for, in mm² (mm)."""
    codes, normals = _facets(len(spacing))
    # A face perpendicular to axis `a` grows with the spacing along all other axes.
    stretch = math.prod(spacing) / np.array(spacing)
    return np.bincount(codes, np.linalg.norm(normals * stretch, axis=1), minlength=1 << (1 << len(spacing)))


@cache
def _facets(ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """The flat parts of every code's surface at unit spacing: the code, and the normal as long as the area is large.

    The rule of marching cubes without ambiguity: the surface bounds the inside or the outside, whichever has fewer
    voxels, and voxels of it that share no face are bounded apart. It passes halfway between neighbours.
    """
    codes: list[int] = []
    normals: list[tuple[float, ...]] = []
    corners = [tuple(i >> axis & 1 for axis in range(ndim)) for i in range(1 << ndim)]
    for code in range(1 << len(corners)):
        inside = [corner for i, corner in enumerate(corners) if code >> i & 1]
        if 2 * len(inside) > len(corners):
            inside = [corner for corner in corners if corner not in inside]
        for piece in _pieces(inside):
            for normal in _facets_around(piece):
                codes.append(code)
                normals.append(normal)
    return np.array(codes), np.array(normals)


def _pieces(corners: list[Corner]) -> list[list[Corner]]:
    """The corners in groups that hang together along edges of the cube."""
    groups: list[list[Corner]] = []
    for corner in corners:
        touching = [group for group in groups if any(_along(corner, other) is not None for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([corner, *(other for group in touching for other in group)])
    return groups


def _along(a: Corner, b: Corner) -> int | None:
    """The axis of the edge between two corners; None if they are no neighbours."""
    differing = [axis for axis, (p, q) in enumerate(zip(a, b, strict=True)) if p != q]
    return differing[0] if len(differing) == 1 else None


def _facets_around(piece: list[Corner]) -> list[tuple[float, ...]]:
    """Normals of the facets that cut a connected piece of at most half the corners off the rest.

    Only the length of a normal at some spacing is wanted, so the signs are left out.
    """
    ndim = len(piece[0])
    flat = [axis for axis in range(ndim) if len({corner[axis] for corner in piece}) == 1]

    def normal(*axes: int, length: float) -> tuple[float, ...]:
        return tuple(length if axis in axes else 0.0 for axis in range(ndim))

    everywhere = tuple(range(ndim))
    if len(piece) == 1:  # the tip of a corner: half a diagonal, or a triangle
        return [normal(*everywhere, length=0.5 if ndim == 2 else 0.125)]
    if len(piece) == 1 << (ndim - 1) and len(flat) == 1:  # half of the cell: a straight cut
        return [normal(flat[0], length=1.0)]
    if len(piece) == 2:  # an edge of the cube: a roof over it
        return [normal(*flat, length=0.5)]
    if len(piece) == 3:  # three quarters of a face: half of a straight cut, and a slope over the missing quarter
        return [normal(flat[0], length=0.5), normal(*everywhere, length=0.375)]
    edges = [(a, b) for a, b in combinations(piece, 2) if _along(a, b) is not None]
    ends_of_edges = [corner for edge in edges for corner in edge]
    if any(ends_of_edges.count(corner) == 3 for corner in piece):  # a corner and its neighbours: a regular hexagon
        return [normal(*everywhere, length=0.75)]
    # A path of three edges, one along each axis. Its hexagon is not flat; it is folded along two lines that start
    # halfway on the cube's edges parallel to the middle of the path.
    middle = next(_along(a, b) for a, b in edges if ends_of_edges.count(a) == 2 and ends_of_edges.count(b) == 2)
    assert middle is not None
    first, last = (axis for axis in everywhere if axis != middle)
    return [
        normal(*everywhere, length=0.5),
        normal(middle, first, length=0.25),
        normal(middle, last, length=0.25),
    ]


def _distances(
    start: Bool[np.ndarray, "*grid"], goal: Bool[np.ndarray, "*grid"], spacing: tuple[float, ...]
) -> Float[np.ndarray, "elements"]:
    """From each element of `start`, in C order, to the nearest of `goal`."""
    elsewhere = ~goal[start]
    distances = np.zeros(len(elsewhere))
    goals = np.argwhere(goal) * spacing
    if len(goals) == 0:
        return np.full(len(elsewhere), math.inf)
    index = np.argwhere(start)[elsewhere]
    tree = KDTree(goals)
    # Surfaces that are close to each other are the usual case, and the tree is quick at it. Far from the goal it may
    # have to look at every element, most of all in the middle of a ball; an upper limit shields the first look.
    near = 8 * math.prod(spacing) ** (1 / len(spacing))
    found, _ = tree.query(index * spacing, distance_upper_bound=near)
    far = np.flatnonzero(np.isinf(found))
    if len(far) * len(goals) <= 16 * goal.size:
        found[far], _ = tree.query(index[far] * spacing)
    else:
        # Measured: the transform takes about as long for 16 voxels as the tree for one far element and one goal.
        everywhere = ndimage.distance_transform_edt(~goal, sampling=spacing)
        found[far] = np.asarray(everywhere)[tuple(index[far].T)]
    distances[elsewhere] = found
    return distances


def _weighted_percentile95(distances: Float[np.ndarray, "n"], areas: Float[np.ndarray, "n"]) -> float:
    order = np.argsort(distances)
    reached = np.cumsum(areas[order])
    return float(distances[order[np.searchsorted(reached, 0.95 * (1 - _ROUNDING) * reached[-1])]])
