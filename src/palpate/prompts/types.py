"""The prompt nouns: a box, points, a scribble, a mask, and the target they describe.

Coordinates are always pixels (x, y) of the slice a prompt was drawn on: x counts columns, y counts rows,
(0, 0) is the centre of the first pixel, and whole numbers are pixel centres. `z` is the number of that slice in its
volume, along the slicing axis; pictures have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index

import numpy as np
from jaxtyping import Bool

from palpate.errors import PromptError

_MAX_SCRIBBLE_POINTS = 8


@dataclass(frozen=True)
class Box:
    """A rectangle; its edges are the first and the last pixel inside (inclusive, as in MedSAM).

    A box of one pixel has x_min == x_max. Corners may lie between pixels.

    Raises:
        PromptError: coordinates that are not finite, or a maximum below its minimum.
    """

    x_min: float | int
    y_min: float | int
    x_max: float | int
    y_max: float | int
    z: int | None = None

    def __post_init__(self) -> None:
        for name in ("x_min", "y_min", "x_max", "y_max"):
            object.__setattr__(self, name, float(getattr(self, name)))  # NumPy's numbers cannot be written as JSON
        _require_finite((self.x_min, self.y_min, self.x_max, self.y_max), what="a box")
        for axis, low, high in (("x", self.x_min, self.x_max), ("y", self.y_min, self.y_max)):
            if high < low:
                raise PromptError(
                    f"the box {self} is inverted: {axis}_max {high:g} is below {axis}_min {low:g}; "
                    "give x_min y_min x_max y_max"
                )
        object.__setattr__(self, "z", _slice_number(self.z))

    @classmethod
    def around(cls, mask: Bool[np.ndarray, "row column"], *, z: int | None = None) -> Box:
        """The tight box of a mask: first and last row and column with a pixel in it.

        Raises:
            PromptError: the mask is empty.
        """
        if not mask.any():
            raise PromptError("no box fits an empty mask; skip the slice or pass another label")
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        return cls(int(xs[0]), int(ys[0]), int(xs[-1]), int(ys[-1]), z)

    def inside(self, shape: tuple[int, int]) -> Box:
        """This box, cut at the borders of an image of `shape` (rows, columns).

        Raises:
            PromptError: the box lies outside entirely.
        """
        rows, columns = shape
        if self.x_max < 0 or self.y_max < 0 or self.x_min > columns - 1 or self.y_min > rows - 1:
            raise PromptError(
                f"the box {self} lies outside the image, which has columns 0..{columns - 1} and rows 0..{rows - 1}"
            )
        return replace(
            self,
            x_min=max(self.x_min, 0),
            y_min=max(self.y_min, 0),
            x_max=min(self.x_max, columns - 1),
            y_max=min(self.y_max, rows - 1),
        )

    def __str__(self) -> str:
        return f"({self.x_min:g}, {self.y_min:g}, {self.x_max:g}, {self.y_max:g})"


@dataclass(frozen=True)
class Points:
    """Clicks: `coordinates` as (x, y) pairs, `labels` 1 on the object and 0 beside it (default: all 1).

    Raises:
        PromptError: no points, coordinates that are not finite, labels other than 0 and 1, or not one label a point.
    """

    coordinates: tuple[tuple[float, float], ...]
    labels: tuple[int, ...] = ()
    z: int | None = None

    def __init__(
        self, coordinates: Iterable[Sequence[float | int]], labels: Iterable[float | int] = (), z: int | None = None
    ) -> None:
        pairs = tuple(tuple(float(value) for value in pair) for pair in coordinates)
        if not pairs:
            raise PromptError("a points prompt needs at least one point (x, y)")
        for pair in pairs:
            if len(pair) != 2:
                raise PromptError(f"a point is a pair (x, y); {pair} has {len(pair)} numbers")
            _require_finite(pair, what="a point")
        marks = tuple(labels) or (1,) * len(pairs)
        if len(marks) != len(pairs):
            raise PromptError(f"{len(pairs)} points came with {len(marks)} labels; give one label a point")
        if set(marks) - {0, 1}:
            raise PromptError(f"point labels are 1 (on the object) or 0 (beside it), not {sorted(set(marks) - {0, 1})}")
        object.__setattr__(self, "coordinates", pairs)
        object.__setattr__(self, "labels", tuple(int(mark) for mark in marks))
        object.__setattr__(self, "z", _slice_number(z))

    def inside(self, shape: tuple[int, int]) -> Points:
        """These points, if all lie on an image of `shape` (rows, columns).

        Raises:
            PromptError: a point lies outside.
        """
        rows, columns = shape
        for x, y in self.coordinates:
            if not (-0.5 <= x <= columns - 0.5 and -0.5 <= y <= rows - 0.5):
                raise PromptError(
                    f"the point ({x:g}, {y:g}) lies outside the image, which has columns 0..{columns - 1} and "
                    f"rows 0..{rows - 1}; points are x y (column row)"
                )
        return self


@dataclass(frozen=True, eq=False)
class Scribble:
    """A freehand stroke over the object, and optionally one beside it; both as masks of the slice (row, column).

    Raises:
        PromptError: nothing is drawn on the object, or the two masks differ in shape or overlap.
    """

    positive: Bool[np.ndarray, "row column"]
    negative: Bool[np.ndarray, "_ _"] | None = None
    z: int | None = None

    def __post_init__(self) -> None:
        if self.positive.ndim != 2 or not self.positive.any():
            raise PromptError("a scribble needs at least one drawn pixel on the object, in a 2D mask")
        if self.negative is not None:
            if self.negative.shape != self.positive.shape:
                raise PromptError(
                    f"the strokes differ in shape: {self.positive.shape} on the object, {self.negative.shape} beside it"
                )
            if (self.negative & self.positive).any():
                raise PromptError("the strokes overlap: a pixel cannot be on the object and beside it")
        object.__setattr__(self, "z", _slice_number(self.z))

    def inside(self, shape: tuple[int, int]) -> Scribble:
        """This scribble, if it was drawn on a slice of `shape` (rows, columns).

        Raises:
            PromptError: the shapes differ.
        """
        _require_shape(self.positive, shape, what="scribble")
        return self

    def points(self) -> Points:
        """Up to eight points a stroke, spread as far from each other as they go; the same every time.

        Farthest-point sampling starting at the drawn pixel nearest to the stroke's centre.
        """
        strokes = [(self.positive, 1)] + ([(self.negative, 0)] if self.negative is not None else [])
        coordinates: list[tuple[float, float]] = []
        labels: list[int] = []
        for stroke, label in strokes:
            spread = _spread_points(stroke)
            coordinates += spread
            labels += [label] * len(spread)
        return Points(coordinates, labels, z=self.z)


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """A first guess at the object, as a mask of the slice (row, column).

    Raises:
        PromptError: the mask is empty or not 2D.
    """

    mask: Bool[np.ndarray, "row column"]
    z: int | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or not self.mask.any():
            raise PromptError(
                "a mask prompt needs at least one pixel inside, in a 2D mask; pass another slice or label"
            )
        object.__setattr__(self, "z", _slice_number(self.z))

    def inside(self, shape: tuple[int, int]) -> MaskPrompt:
        """This mask, if it was drawn on a slice of `shape` (rows, columns).

        Raises:
            PromptError: the shapes differ.
        """
        _require_shape(self.mask, shape, what="mask")
        return self


Prompt = Box | Points | Scribble | MaskPrompt


@dataclass(frozen=True, eq=False)
class Target:
    """One object to segment: its prompts, all on one slice, and how far to carry the result.

    `label` is its value in the label map (from 1). `z_range` are the first and last slice to segment, both included;
    without it only the prompted slice is segmented. Two targets with the same label are parts of one object.

    Raises:
        PromptError: no prompt, prompts on different slices, a label below 1, or an inverted range.
    """

    prompts: tuple[Prompt, ...]
    label: int = 1
    name: str = ""
    z_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise PromptError("an object needs at least one prompt: a box, a point, a scribble or a mask")
        if self.label < 1:
            raise PromptError(f"label {self.label} is taken by the background; labels start at 1")
        if not self.name.isascii() and self.name != self.name.encode(errors="replace").decode():
            raise PromptError(
                f"the name {self.name!r} is not text that a file could hold (half a character); correct it"
            )
        slices = {prompt.z for prompt in self.prompts}
        if len(slices) > 1:
            raise PromptError(
                f"the prompts of one object lie on different slices ({', '.join(map(str, slices))}); make them targets "
                "of their own with the same label"
            )
        if self.z_range is not None and self.z_range[1] < self.z_range[0]:
            raise PromptError(f"the slice range {self.z_range} is inverted; give the first and the last slice")
        for number in self.z_range or ():
            _slice_number(number)
        object.__setattr__(self, "label", index(self.label))
        object.__setattr__(self, "z_range", self.z_range and (index(self.z_range[0]), index(self.z_range[1])))

    @property
    def z(self) -> int | None:
        """The slice the prompts were drawn on; without one, the middle of `z_range`; None for a picture.

        The middle is int((z_max - z_min) / 2 + z_min), as in LiteMedSAM's 3D inference.
        """
        if self.prompts[0].z is None and self.z_range is not None:
            return middle_of(self.z_range)
        return self.prompts[0].z


def middle_of(z_range: tuple[int, int]) -> int:
    """The slice that a prompt without one was drawn on."""
    return (z_range[1] - z_range[0]) // 2 + z_range[0]


def _spread_points(stroke: Bool[np.ndarray, "row column"]) -> list[tuple[float, float]]:
    drawn = np.argwhere(stroke).astype(np.float64)
    if not len(drawn):
        return []
    chosen = [int(np.argmin(((drawn - drawn.mean(axis=0)) ** 2).sum(axis=1)))]
    distance = np.full(len(drawn), np.inf)
    while len(chosen) < _MAX_SCRIBBLE_POINTS:
        distance = np.minimum(distance, ((drawn - drawn[chosen[-1]]) ** 2).sum(axis=1))
        farthest = int(np.argmax(distance))
        if distance[farthest] == 0:
            break
        chosen.append(farthest)
    return [(float(x), float(y)) for y, x in drawn[chosen]]


def _require_finite(values: Sequence[float], *, what: str) -> None:
    if not all(math.isfinite(value) for value in values):
        raise PromptError(f"{what} has coordinates that are not finite numbers: {tuple(values)}")


def _slice_number(z: int | None) -> int | None:
    if z is not None and z < 0:
        raise PromptError(f"slice {z} does not exist; slices count from 0")
    return None if z is None else index(z)


def _require_shape(mask: np.ndarray, shape: tuple[int, int], *, what: str) -> None:
    if mask.shape != shape:
        raise PromptError(
            f"the {what} has {mask.shape[0]} rows and {mask.shape[1]} columns but the slice has {shape[0]} and "
            f"{shape[1]}; draw it on the slice itself, at its own size"
        )
