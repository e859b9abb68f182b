"""Freehand strokes as pixels of a slice: scribbles, the brush and the eraser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from palpate.errors import PromptError
from palpate.images.geometry import Geometry

MAX_PATH = 20_000
"""Points of a path. A hand makes a few hundred; more is a mistake, or somebody who wants to keep the machine busy."""

_AT_ONCE = 500_000
"""Rows times lines that are worked out together, to keep the memory small."""

Tool = Literal["brush", "eraser"]


@dataclass(frozen=True)
class Stroke:
    """The way of a brush or an eraser over one slice.

    `axis` is the array axis that the slice is cut along (0 for a picture) and `z` its number; `path` are pixels (x, y)
    of the slice, joined by straight lines; everything within `radius_mm` of them is touched, at least the pixels that
    the lines run through.
    """

    tool: Tool
    axis: int
    z: int
    path: tuple[tuple[int, int], ...]
    radius_mm: float

    def touched(self, geometry: Geometry) -> Bool[np.ndarray, "row column"]:
        """The pixels of the slice that the stroke covers.

        Raises:
            PromptError: the slice or a point of the path does not exist, or the radius is not a size.
        """
        volume = geometry.shape if len(geometry.shape) == 3 else (1, *geometry.shape)
        if not 0 <= self.z < volume[self.axis]:
            raise PromptError(f"slice {self.z} does not exist; there are slices 0..{volume[self.axis] - 1}")
        rows, columns = (extent for axis, extent in enumerate(volume) if axis != self.axis)
        row_mm, column_mm = (mm for axis, mm in enumerate(geometry.spacing[::-1]) if axis != self.axis)
        return along(self.path, (rows, columns), (row_mm, column_mm), self.radius_mm)


def along(
    path: Sequence[tuple[int, int]], shape: tuple[int, int], spacing: tuple[float, float], radius: float
) -> Bool[np.ndarray, "row column"]:
    """The pixels of a slice of `shape` whose centres lie within `radius` of a path, and those that it runs through.

    The path is given as pixels (x, y), the `spacing` of rows and columns in the unit of the radius.

    Raises:
        PromptError: no point, too many of them, one outside the slice, or a radius that is not a size.
    """
    rows, columns = shape
    if not path or len(path) > MAX_PATH:
        raise PromptError(f"a stroke has 1 to {MAX_PATH} points; this one has {len(path)}")
    if not 0 <= radius <= 1000:
        raise PromptError(f"the radius {radius} is not between 0 and 1000 mm")
    for x, y in path:
        if not (0 <= x < columns and 0 <= y < rows):
            raise PromptError(
                f"the point ({x}, {y}) lies outside the slice; it has columns 0..{columns - 1} and rows 0..{rows - 1}"
            )
    points = np.array(path, dtype=np.float64)[:, ::-1]  # as (row, column)
    touched = _near(points * spacing, shape, spacing, radius)
    if radius < 0.5 * max(spacing):
        # A line thinner than the pixels has no gaps all the same: those that it runs through are of the path.
        touched |= _near(points, shape, (1.0, 1.0), 0.5)
    return touched


def _near(
    points: Float[np.ndarray, "point 2"], shape: tuple[int, int], spacing: tuple[float, float], reach: float
) -> Bool[np.ndarray, "row column"]:
    """The pixels within `reach` of a path, row by row: what lies near a straight line is one run of each row.

    So a path costs points times rows at most, however wide the brush is.
    """
    rows, columns = shape
    row_mm, column_mm = spacing
    reach += 1e-6  # rounding decides nothing
    edges = np.zeros((rows, columns + 1), dtype=np.int64)  # +1 where a run starts, -1 behind its end
    starts, ends = (points[:-1], points[1:]) if len(points) > 1 else (points, points)
    low = np.clip(np.ceil((np.minimum(starts, ends)[:, 0] - reach) / row_mm), 0, rows).astype(np.int64)
    high = np.clip(np.floor((np.maximum(starts, ends)[:, 0] + reach) / row_mm) + 1, low, rows).astype(np.int64)
    for first in range(0, len(starts), chunk := max(1, _AT_ONCE // rows)):
        part = slice(first, first + chunk)
        # All pairs of a line and a row that it comes near to.
        counts = (high - low)[part]
        line = np.repeat(np.arange(len(counts)) + first, counts)
        row = np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts) + low[line]
        away = row * row_mm - starts[line, 0]
        down, right = (ends - starts)[line].T
        length = np.hypot(down, right)
        reached: list[Float[np.ndarray, "_"]] = []
        for side in (-1, 1):
            # Where on the line the circle stands that reaches furthest to this side of the row.
            with np.errstate(divide="ignore", invalid="ignore"):
                along_it = (away + side * reach * right * np.sign(down) / length) / down
            level = np.where(side * right > 0, 1.0, 0.0)
            share = np.clip(np.where(down == 0, level, along_it), 0, 1)
            half = np.sqrt(np.maximum(reach**2 - (away - share * down) ** 2, 0))
            reached.append((starts[line, 1] + share * right + side * half) / column_mm)
        left = np.clip(np.ceil(reached[0]), 0, columns).astype(np.int64)
        behind = np.clip(np.floor(reached[1]) + 1, left, columns).astype(np.int64)
        np.add.at(edges, (row, left), 1)
        np.add.at(edges, (row, behind), -1)
    return np.cumsum(edges, axis=1)[:, :-1] > 0
