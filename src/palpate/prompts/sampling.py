"""Points drawn from masks and boxes, for training and for evaluation alike.

Points are (x, y) pixel centres. Whatever is random takes `rng` and nothing else decides: the same state of `rng`, mask
and box give the same points.

The conventions of two papers live here. Ranem et al. 2023 ("Exploring SAM Ablations ...") draw up to a hundred points,
mix in negative ones, and take a point of each quarter of the mask. Gao et al. 2024 (Swin-LiteMedSAM) derive four points
from every box, see `swin_points`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Num

from palpate.errors import PromptError
from palpate.prompts.types import Box, Points


def foreground_points(
    mask: Bool[np.ndarray, "row column"], *, count: int, rng: np.random.Generator, z: int | None = None
) -> Points:
    """Points drawn uniformly from the mask, all different; with repetition where the mask has fewer pixels than asked.

    Raises:
        PromptError: the mask is empty, or `count` is below 1.
    """
    _require_pixels(mask)
    return Points(_drawn(mask, count, rng), z=z)


def background_points(
    mask: Bool[np.ndarray, "row column"],
    *,
    count: int,
    rng: np.random.Generator,
    within: Box | None = None,
    z: int | None = None,
) -> Points:
    """Points beside the mask (label 0), drawn as `foreground_points` draws them; with `within`, only inside that box.

    Raises:
        PromptError: the mask leaves no background there, `within` lies outside the image, or `count` is below 1.
    """
    beside = ~mask
    if within is not None:
        cut = within.inside((mask.shape[0], mask.shape[1]))
        inside = np.zeros_like(mask)
        inside[math.ceil(cut.y_min) : math.floor(cut.y_max) + 1, math.ceil(cut.x_min) : math.floor(cut.x_max) + 1] = (
            True
        )
        beside &= inside
    if not beside.any():
        where = "the slice" if within is None else f"the box {within}"
        raise PromptError(
            f"the mask leaves no background in {where}, so no negative point fits; "
            + ("draw positive points only" if within is None else "enlarge the box, or leave `within` out")
        )
    return Points(_drawn(beside, count, rng), (0,) * count, z=z)


def points_on_both_sides(
    mask: Bool[np.ndarray, "row column"],
    *,
    positive: int,
    negative: int,
    rng: np.random.Generator,
    within: Box | None = None,
    z: int | None = None,
) -> Points:
    """`positive` points of the mask, then `negative` ones beside it.

    Raises:
        PromptError: the mask or the background is empty, or a count is below 1.
    """
    on = foreground_points(mask, count=positive, rng=rng)
    beside = background_points(mask, count=negative, rng=rng, within=within)
    return Points(on.coordinates + beside.coordinates, on.labels + beside.labels, z=z)


def box_centre(box: Box) -> Points:
    """The centre of the box as one point with label 1, even where the object has a hole or bends around it."""
    return Points([((box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2)], z=box.z)


def centroid(mask: Bool[np.ndarray, "row column"], *, snap: bool = False, z: int | None = None) -> Points:
    """The mean of the mask's pixel coordinates as one point, which may lie beside a hollow mask.

    `snap` takes the mask's pixel nearest to it instead (of several, the first in row order).

    Raises:
        PromptError: the mask is empty.
    """
    _require_pixels(mask)
    pixels = np.argwhere(mask)
    middle = pixels.mean(axis=0)
    if snap:
        middle = pixels[np.argmin(((pixels - middle) ** 2).sum(axis=1))]
    return Points([(float(middle[1]), float(middle[0]))], z=z)


def box_of_points(points: Points, *, margin: float | int, shape: tuple[int, int]) -> Box:
    """The box around the points on the object, `margin` pixels wider on every side, cut at the image's borders.

    Raises:
        PromptError: no point has label 1, or `margin` is negative.
    """
    if margin < 0:
        raise PromptError(f"a margin of {margin:g} pixels would cut points off; give 0 or more")
    on = [pair for pair, label in zip(points.coordinates, points.labels, strict=True) if label == 1]
    if not on:
        raise PromptError("no box goes around negative points alone; add a point on the object")
    x, y = np.array(on).T
    return Box(x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin, z=points.z).inside(shape)


def quadrant_points(
    mask: Bool[np.ndarray, "row column"],
    *,
    rng: np.random.Generator,
    empty: Literal["skip", "centre", "centroid"] = "skip",
    z: int | None = None,
) -> Points:
    """One uniform pixel of the mask from each quarter of its tight box: top left, bottom left, bottom right, top right.

    The quarters share no pixel and leave none out: a row or column exactly in the middle belongs to the lower, and
    to the right quarter. A quarter without a pixel of the mask gives no point ("skip"), the centre of the box, or the
    centroid of the mask; the latter two may lie beside the mask.

    Raises:
        PromptError: the mask is empty.
    """
    box = Box.around(mask)
    middle = (box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2
    instead = {"skip": None, "centre": middle, "centroid": centroid(mask).coordinates[0]}[empty]
    cut = math.ceil(middle[0]), math.ceil(middle[1])
    found = [_one_of(mask, rows, columns, rng) or instead for rows, columns in _quarters(box, cut, last_included=True)]
    return Points([point for point in found if point is not None], z=z)


def swin_points(
    foreground: Bool[np.ndarray, "row column"], box: Box, *, rng: np.random.Generator, independent_xy: bool = False
) -> Points:
    """The four points of Swin-LiteMedSAM, all with label 1: one of each quarter's foreground, else the box's centre.

    In the order top left, bottom left, bottom right, top right. As in the authors' code the box's corners are cut to
    whole numbers, its centre is rounded down, the centre's row and column belong to the lower and right quarters, and
    the last row and column of the box belong to none.

    A pixel is drawn as a whole, so that the point lies on the foreground. The authors draw row and column apart, which
    puts points beside anything that is not a rectangle; `independent_xy` does so too, to compare with them.

    Raises:
        PromptError: the box lies outside the image.
    """
    rows, columns = foreground.shape
    box.inside((rows, columns))
    # Their boxes reach to the width itself, one past the last column: with half-open slices it counts.
    whole = Box(
        max(int(box.x_min), 0),
        max(int(box.y_min), 0),
        min(max(int(box.x_max), 0), columns),
        min(max(int(box.y_max), 0), rows),
    )
    centre = int(whole.x_min + whole.x_max) // 2, int(whole.y_min + whole.y_max) // 2
    pick = _one_row_one_column if independent_xy else _one_of
    quarters = _quarters(whole, centre, last_included=False)
    return Points([pick(foreground, *quarter, rng) or centre for quarter in quarters], z=box.z)


def swin_points_training(
    mask: Bool[np.ndarray, "row column"], box: Box, *, rng: np.random.Generator, independent_xy: bool = False
) -> Points:
    """`swin_points` as drawn in training: the foreground is the reference; `box` is the jittered box.

    Raises:
        PromptError: the box lies outside the image.
    """
    return swin_points(mask, box, rng=rng, independent_xy=independent_xy)


def swin_points_inference(
    pixels: Num[np.ndarray, "row column *channel"],
    box: Box,
    *,
    rng: np.random.Generator,
    shift: Literal["code", "paper"] = "code",
    independent_xy: bool = False,
) -> Points:
    """`swin_points` where nobody knows the object: the foreground is what `image_foreground` finds in a smaller box.

    Every edge of the box moves inwards by a whole number of pixels, one for x and one for y. "code" draws it from
    floor(w/5) .. floor(w/2) - 2, "paper" from floor(w/5) .. floor(2w/5) - 1, with w = x_max - x_min (the paper says
    image where it must mean box). A box too small for any of these keeps its size.

    Raises:
        PromptError: the box lies outside the image.
    """
    foreground = image_foreground(pixels)
    box.inside((foreground.shape[0], foreground.shape[1]))
    smaller = moved_in(
        box,
        rng=rng,
        first=lambda side: side // 5,
        end=lambda side: side // 2 - 1 if shift == "code" else 2 * side // 5,
    )
    # They take the centre of the box before it shrinks; both edges move alike, so it is the same.
    return swin_points(foreground, smaller, rng=rng, independent_xy=independent_xy)


def image_foreground(pixels: Num[np.ndarray, "row column *channel"]) -> Bool[np.ndarray, "row column"]:
    """Where an image is not as dark as it gets: what Swin-LiteMedSAM takes for foreground when it has no mask.

    They ask for a channel mean above zero after scaling the image to 0..1; before scaling that is any channel above
    the image's minimum. Nothing in an image of one value is foreground.
    """
    above = pixels > pixels.min()
    return above if above.ndim == 2 else above.any(axis=tuple(range(2, above.ndim)))


def moved_in(box: Box, *, rng: np.random.Generator, first: Callable[[int], int], end: Callable[[int], int]) -> Box:
    """The box with both edges of an axis moved inwards by the same whole number, drawn for x, then for y.

    The number lies in first(side) .. end(side) - 1, where side is the distance of the two edges; an empty range moves
    nothing, and takes nothing from `rng`. Corners are cut to whole numbers.
    """
    x_min, y_min, x_max, y_max = (int(value) for value in (box.x_min, box.y_min, box.x_max, box.y_max))
    x, y = (
        int(rng.integers(first(side), end(side))) if first(side) < end(side) else 0
        for side in (x_max - x_min, y_max - y_min)
    )
    return Box(x_min + x, y_min + y, x_max - x, y_max - y, z=box.z)


_Place = tuple[float, float]
_Range = tuple[int, int]


def _quarters(box: Box, cut: tuple[int, int], *, last_included: bool) -> list[tuple[_Range, _Range]]:
    """Half-open ranges of rows and of columns: top left, bottom left, bottom right, top right."""
    beyond = 1 if last_included else 0
    left, right = (int(box.x_min), cut[0]), (cut[0], int(box.x_max) + beyond)
    top, bottom = (int(box.y_min), cut[1]), (cut[1], int(box.y_max) + beyond)
    return [(top, left), (bottom, left), (bottom, right), (top, right)]


def _one_of(mask: np.ndarray, rows: _Range, columns: _Range, rng: np.random.Generator) -> _Place | None:
    inside = np.argwhere(mask[slice(*rows), slice(*columns)])
    if not len(inside):
        return None
    y, x = inside[rng.integers(len(inside))]
    return float(x + columns[0]), float(y + rows[0])


def _one_row_one_column(mask: np.ndarray, rows: _Range, columns: _Range, rng: np.random.Generator) -> _Place | None:
    y, x = np.nonzero(mask[slice(*rows), slice(*columns)])
    if not len(y):
        return None
    return float(rng.choice(x) + columns[0]), float(rng.choice(y) + rows[0])


def _drawn(mask: np.ndarray, count: int, rng: np.random.Generator) -> list[_Place]:
    if count < 1:
        raise PromptError(f"{count} points say nothing; draw at least 1")
    inside = np.flatnonzero(mask)
    chosen = rng.choice(inside, size=count, replace=len(inside) < count)
    rows, columns = np.divmod(chosen, mask.shape[1])
    return [(float(x), float(y)) for x, y in zip(columns, rows, strict=True)]


def _require_pixels(mask: np.ndarray) -> None:
    if not mask.any():
        raise PromptError("no point fits an empty mask; skip the slice or pass another label")
