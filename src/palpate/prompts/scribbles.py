"""Strokes: drawn by a generator for training, by a simulated hand for evaluation, and by people.

Three kinds of stroke, each for its purpose:

- `free_form_stroke` is the stroke that SEEM, LiteMedSAM's scribble branch and Swin-LiteMedSAM were trained with: a
  random walk of straight pieces, cut to a region and therefore often only what is left of one.
- `scribble_inside` is what a person would do: one calm line that stays inside the object and follows it.
- `human_scribble` reads what people did, from two public data sets.

Everything is in pixels of the image drawn on. The presets are meant for an image whose longer side is 256 pixels;
`StrokeStyle.scaled` makes them fit others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer, Num
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from palpate.errors import PromptError
from palpate.prompts.clicks import depth, largest_part
from palpate.prompts.sampling import image_foreground, moved_in
from palpate.prompts.types import Box, Scribble

_TRIES = 6
_FEWEST_PIXELS = 6
"""A stroke of five pixels or fewer is drawn again."""

_MOSTLY = 0.9
"""The share of a human stroke that lies where it should: hands slip by a pixel."""


def _both_ways(degrees: int) -> tuple[float, ...]:
    return tuple(math.radians(sign * turn) for turn in range(0, degrees + 1, 5) for sign in (1, -1))


_LOOKS = (
    (_both_ways(20), (1, 3, 6)),
    (_both_ways(45), (1, 3)),
    (_both_ways(75), (1,)),
)
"""What a hand tries in turn before it stops: turns in radians, and the pixels ahead that must be free for them."""


@dataclass(frozen=True)
class StrokeStyle:
    """How a free-form stroke is drawn; lengths are pixels, angles radians, and pairs are first and last + 1.

    `vertices` and `brush` (its width) are drawn once a stroke. From vertex to vertex the pen moves by its speed,
    between 0 and `speed`, which changes by up to `acceleration`, in a direction that changes by up to `turning`. At
    last the stroke is moved by a normal distance of standard deviation `motion`, and half of its vertices by up to
    `shake`.
    """

    vertices: tuple[int, int]
    speed: float | int
    acceleration: float | int
    turning: float | int
    motion: float | int
    shake: int
    brush: tuple[int, int]

    def scaled(self, factor: float | int) -> StrokeStyle:
        """The same hand on an image `factor` times as large; a brush never gets thinner than one pixel."""
        thin = max(1, round(self.brush[0] * factor))
        return replace(
            self,
            speed=self.speed * factor,
            acceleration=self.acceleration * factor,
            motion=self.motion * factor,
            shake=round(self.shake * factor),
            brush=(thin, max(thin + 1, round(self.brush[1] * factor))),
        )


STROKES: dict[str, StrokeStyle] = {
    "rand_curve": StrokeStyle(
        vertices=(10, 30), speed=20, acceleration=15, turning=0.5, motion=3, shake=3, brush=(3, 10)
    ),
    # The authors never draw these two; where they give fractions for a whole number, it is cut.
    "small": StrokeStyle(vertices=(6, 22), speed=12, acceleration=8, turning=0.5, motion=1.5, shake=1, brush=(2, 5)),
    "tiny": StrokeStyle(vertices=(3, 11), speed=6, acceleration=4, turning=0.5, motion=1, shake=1, brush=(2, 4)),
}


def free_form_stroke(
    region: Bool[np.ndarray, "row column"], *, rng: np.random.Generator, style: StrokeStyle = STROKES["rand_curve"]
) -> Bool[np.ndarray, "row column"]:
    """A random stroke that starts in the region, cut to the region: its largest 8-connected part.

    Up to six are drawn until one keeps more than five pixels there; if none does, nothing is drawn at all. A region of
    five pixels or fewer, or an empty one, therefore never gets a stroke.
    """
    stroke = np.zeros_like(region)
    if region.sum() < _FEWEST_PIXELS:
        return stroke
    # Only what lies in the region's box can stay; a canvas of that size is all that needs to be drawn.
    box = Box.around(region)
    place = slice(int(box.y_min), int(box.y_max) + 1), slice(int(box.x_min), int(box.x_max) + 1)
    part = region[place]
    for _ in range(_TRIES):
        vertices, brush = _random_walk(part, rng, style)
        kept = largest_part(_painted(vertices, brush, part.shape) & part)
        if kept.sum() >= _FEWEST_PIXELS:
            stroke[place] = kept
            break
    return stroke


def swin_scribble_training(
    box: Box,
    *,
    shape: tuple[int, int],
    rng: np.random.Generator,
    style: StrokeStyle = STROKES["rand_curve"],
) -> Bool[np.ndarray, "row column"]:
    """Swin-LiteMedSAM's scribble in training: a stroke anywhere in the (jittered) box, whatever is shown there.

    Empty for a box too small for strokes: the network then gets a mask of zeros.

    Raises:
        PromptError: the box lies outside the image.
    """
    region = _filled(box, np.ones(shape, dtype=bool))
    return free_form_stroke(region, rng=rng, style=style)


def swin_scribble_inference(
    pixels: Num[np.ndarray, "row column *channel"],
    box: Box,
    *,
    rng: np.random.Generator,
    style: StrokeStyle = STROKES["rand_curve"],
) -> Bool[np.ndarray, "row column"]:
    """Swin-LiteMedSAM's scribble where nobody knows the object: on what is not black inside a somewhat smaller box.

    The edges of an axis move inwards by floor(side/8) .. floor(side/6) - 1 pixels, or not if there is no such number.
    Black is what `image_foreground` leaves out. Empty where no stroke fits.

    Raises:
        PromptError: the box lies outside the image.
    """
    foreground = image_foreground(pixels)
    box.inside((foreground.shape[0], foreground.shape[1]))
    smaller = moved_in(box, rng=rng, first=lambda side: side // 8, end=lambda side: side // 6)
    return free_form_stroke(_filled(smaller, foreground), rng=rng, style=style)


def scribble_inside(
    mask: Bool[np.ndarray, "row column"],
    *,
    rng: np.random.Generator,
    style: StrokeStyle = STROKES["rand_curve"],
    z: int | None = None,
) -> Scribble:
    """A stroke as a person would draw it: one connected line inside the object's largest part, following its shape.

    The hand starts well inside, walks both ways with gentle turns (`style.turning`), keeps the brush clear of the
    border and stops where it cannot go on, or after the length of a stroke of that style, at most the part's diagonal.
    The brush is no wider than a quarter of the object where that is widest: on a vessel of one pixel the stroke is a
    piece of the vessel, on a single pixel that pixel.

    Raises:
        PromptError: the mask is empty.
    """
    if not mask.any():
        raise PromptError("no scribble fits an empty mask; skip the slice or pass another label")
    part = largest_part(mask)
    box = Box.around(part)
    place = slice(int(box.y_min), int(box.y_max) + 1), slice(int(box.x_min), int(box.x_max) + 1)
    part = part[place]
    deep = depth(part)
    # A brush of width b around a pixel deeper than b / 2 stays inside.
    brush = min(int(rng.integers(*style.brush)), max(1, int(deep.max() / 2)))
    room = largest_part(deep > brush / 2) if brush > 1 else part
    pace = style.speed / 2
    length = min(pace * int(rng.integers(*style.vertices)), math.hypot(*part.shape))
    starts = np.argwhere(room & (deep >= deep[room].max() / 2))
    walks = [_calm_walk(room, starts[rng.integers(len(starts))], length, style.turning / pace, rng) for _ in range(3)]
    path = np.zeros_like(part)
    path[tuple(np.transpose(max(walks, key=lambda walk: len(set(walk)))))] = True
    stroke = np.zeros_like(mask)
    away = np.asarray(distance_transform_edt(~path))
    stroke[place] = away < brush / 2
    return Scribble(stroke, z=z)


def human_scribble(
    marks: Integer[np.ndarray, "row column"],
    *,
    value: int,
    convention: Literal["strokes", "classes"],
    unlabelled: int | None = None,
    z: int | None = None,
) -> Scribble | None:
    """What a person drew for one object on one slice; None where nothing was drawn on it.

    "strokes", one file an object, as in MedScribble: 1 is drawn on the object, 2 beside it, 0 is nothing; `value` plays
    no part.

    "classes", one file for all objects, as in Valvano's scribbles for ACDC (0 background, 1 to 3 the objects, 4 not
    drawn on): the value of an object is drawn on it, every other drawn value beside it. `unlabelled` stands where
    nothing was drawn; by default it is the most frequent value of the slice.

    Raises:
        PromptError: strokes with values other than 0, 1 and 2; or `value` is the one that stands for nothing drawn.
    """
    if convention == "strokes":
        foreign = sorted(set(np.unique(marks).tolist()) - {0, 1, 2})
        if foreign:
            raise PromptError(
                f"strokes hold 0, 1 (on the object) and 2 (beside it), these also {foreign}; "
                "if every object has a value of its own, pass convention='classes'"
            )
        positive, negative = marks == 1, marks == 2
    else:
        nothing = _most_frequent(marks) if unlabelled is None else unlabelled
        if value == nothing:
            raise PromptError(
                f"value {value} stands where nothing was drawn; pass the value of an object, or say with `unlabelled` "
                "which value stands for nothing"
            )
        positive, negative = marks == value, (marks != nothing) & (marks != value)
    if not positive.any():
        return None
    return Scribble(positive, negative if negative.any() else None, z=z)


def guess_convention(
    marks: Integer[np.ndarray, "row column"], labels: Integer[np.ndarray, "_ _"]
) -> Literal["strokes", "classes"]:
    """The convention in which nine tenths of each drawn value lie where they should on the labels of the same slice.

    Raises:
        PromptError: neither fits, or both do and would read different objects; say the convention then.
    """
    if marks.shape != labels.shape:
        raise PromptError(f"the marks have shape {marks.shape}, their labels {labels.shape}; they must be one slice")
    nothing = _most_frequent(marks)
    drawn = [value for value in np.unique(marks).tolist() if value != nothing]
    on = {value: labels[marks == value] for value in drawn}
    strokes = nothing == 0 and not set(drawn) - {1, 2}
    strokes = strokes and all(((on[value] != 0) == (value == 1)).mean() >= _MOSTLY for value in drawn)
    classes = all((on[value] == value).mean() >= _MOSTLY for value in drawn)
    if strokes == classes:
        why = "both fit" if strokes else "neither fits"
        raise PromptError(
            f"the drawn values {drawn} leave open whether they are strokes or classes ({why}); say which convention"
        )
    return "strokes" if strokes else "classes"


def _most_frequent(marks: np.ndarray) -> int:
    values, counts = np.unique(marks, return_counts=True)
    return int(values[counts.argmax()])


def _filled(box: Box, foreground: np.ndarray) -> np.ndarray:
    cut = box.inside((foreground.shape[0], foreground.shape[1]))
    region = np.zeros_like(foreground)
    place = slice(int(cut.y_min), int(cut.y_max) + 1), slice(int(cut.x_min), int(cut.x_max) + 1)
    region[place] = foreground[place]
    return region


def _random_walk(region: np.ndarray, rng: np.random.Generator, style: StrokeStyle) -> tuple[np.ndarray, int]:
    """Vertices (x, y), which may lie anywhere, and the width of the brush."""
    y, x = np.argwhere(region)[rng.integers(region.sum())]
    count = int(rng.integers(*style.vertices))
    angle, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0, style.speed)
    vertices = np.empty((count, 2))
    vertices[0] = x, y
    for number in range(1, count):
        speed = min(max(speed + rng.uniform(-style.acceleration, style.acceleration), 0), style.speed)
        angle += rng.uniform(-style.turning, style.turning)
        vertices[number] = vertices[number - 1] + (speed * math.sin(angle), speed * math.cos(angle))
    far, angle = abs(rng.normal(0, style.motion)), rng.uniform(0, 2 * math.pi)
    vertices += int(far * math.cos(angle)), int(far * math.sin(angle))
    if style.shake:
        shaken = rng.permutation(count)[: count // 2]
        vertices[shaken] += rng.integers(-style.shake, style.shake, size=(len(shaken), 2))
    return vertices, int(rng.integers(*style.brush))


def _painted(vertices: np.ndarray, brush: int, shape: tuple[int, ...]) -> np.ndarray:
    canvas = Image.new("1", (shape[1], shape[0]))
    draw = ImageDraw.Draw(canvas)
    draw.line([(x, y) for x, y in vertices.tolist()], fill=1, width=brush)
    radius = brush // 2 - 1
    if radius >= 0:
        for x, y in vertices.tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.array(canvas, dtype=bool)


def _calm_walk(
    room: np.ndarray, start: np.ndarray, length: float, bend: float, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Neighbouring pixels (row, column) of `room`: from the start one way, then the opposite way.

    `bend` is the sharpest turn a pixel, in radians, as long as there is room.
    """
    heading = rng.uniform(0, 2 * math.pi)
    there = length * rng.uniform(0.3, 0.7)
    first, set_out = _one_way(room, start, heading, there, bend, rng)
    second, _ = _one_way(room, start, set_out + math.pi, length - there, bend, rng)
    return second[::-1] + first


def _one_way(
    room: np.ndarray, start: np.ndarray, heading: float, length: float, bend: float, rng: np.random.Generator
) -> tuple[list[tuple[int, int]], float]:
    """The pixels, and the direction in which the walk set out."""
    y, x = float(start[0]), float(start[1])
    pixels = [(int(start[0]), int(start[1]))]
    curve, set_out = 0.0, None
    for _ in range(int(length)):
        curve = min(max(curve + rng.uniform(-bend, bend) / 5, -bend), bend)
        ahead = _way_on(room, y, x, heading + curve)
        if ahead is None:
            break
        heading = ahead
        set_out = heading if set_out is None else set_out
        y, x = y + math.sin(heading), x + math.cos(heading)
        pixels.append(_pixel(y, x))
    return pixels, heading if set_out is None else set_out


def _way_on(room: np.ndarray, y: float, x: float, heading: float) -> float | None:
    """The direction nearest to `heading` that stays in the room: for some pixels if possible, else for one."""
    for turns, distances in _LOOKS:
        for turn in turns:
            angle = heading + turn
            places = (_pixel(y + d * math.sin(angle), x + d * math.cos(angle)) for d in distances)
            if all(0 <= r < room.shape[0] and 0 <= c < room.shape[1] and room[r, c] for r, c in places):
                return angle
    return None


def _pixel(y: float, x: float) -> tuple[int, int]:
    return math.floor(y + 0.5), math.floor(x + 0.5)
