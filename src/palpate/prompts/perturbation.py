"""Boxes as hands draw them: larger, smaller, beside, lopsided.

All of these move the sides of a box and agree on the rest:

- A side's length is the number of pixels that the box covers, x_max - x_min + 1, so that a box of one pixel moves too.
- Fractions are shares of the length along the side's own axis. Positive is outward.
- Coordinates stay real numbers, and `z` stays as it is.
- A box that reaches out of the image of `shape` (rows, columns) is cut before and after; one entirely outside raises
  PromptError.
- Nothing is turned inside out: along an axis where the sides would cross, both come to lie on the middle of the box.
- Functions named `at_random`, `jittered` and `medsam_jitter` draw from `rng` alone: the same state, the same box.
- A fraction that is not a finite number, or negative where a direction is in the name, raises SettingError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from palpate.errors import SettingError
from palpate.prompts.types import Box

Side = Literal["left", "top", "right", "bottom"]
SIDES: tuple[Side, ...] = get_args(Side)
"""The sides in the order of a box's coordinates: x_min, y_min, x_max, y_max."""


def enlarged(box: Box, *, fraction: float | int, shape: tuple[int, int]) -> Box:
    """The box with each side moved outward by `fraction`; it contains the box it came from.

    The jittered boxes of Ranem et al. (2023) with 0.05, 0.1 and 0.2, and the expansion test of Li et al. (2025,
    arXiv 2503.19700), which leaves the fraction open.
    """
    return _by_fractions(box, [_share(fraction)] * 4, shape)


def enlarged_at_random(box: Box, *, fraction: float | int, shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """The box with each side moved outward by its own draw from U(0, `fraction`); it contains the box it came from."""
    return _by_fractions(box, rng.uniform(0, _share(fraction), 4).tolist(), shape)


def shrunk(box: Box, *, fraction: float | int, shape: tuple[int, int]) -> Box:
    """The box with each side moved inward by `fraction`; it lies inside the box it came from.

    The shrink test of Li et al. (2025, arXiv 2503.19700). From 0.5 on nothing but the centre is left.
    """
    return _by_fractions(box, [-_share(fraction)] * 4, shape)


def shrunk_at_random(box: Box, *, fraction: float | int, shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """The box with each side moved inward by its own draw from U(0, `fraction`); it lies inside the box before."""
    return _by_fractions(box, (-rng.uniform(0, _share(fraction), 4)).tolist(), shape)


def shifted(box: Box, *, x_fraction: float | int, y_fraction: float | int, shape: tuple[int, int]) -> Box:
    """The box moved right by `x_fraction` of its width and down by `y_fraction` of its height.

    It keeps its size: at the border of the image it stops.
    """
    box = box.inside(shape)
    width, height = _lengths(box)
    rows, columns = shape
    right = _limited(_number(x_fraction) * width, lowest=-box.x_min, highest=columns - 1 - box.x_max)
    down = _limited(_number(y_fraction) * height, lowest=-box.y_min, highest=rows - 1 - box.y_max)
    return _outward(box, [-right, -down, right, down], shape)


def shifted_at_random(box: Box, *, fraction: float | int, shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """The box moved in a random direction, by `fraction` of its sides.

    An angle is drawn; the box goes right by its cosine and down by its sine, each times `fraction` of that side. It
    keeps its size: at the border of the image it stops.
    """
    angle, share = rng.uniform(0, 2 * math.pi), _share(fraction)
    return shifted(box, x_fraction=share * math.cos(angle), y_fraction=share * math.sin(angle), shape=shape)


def scaled(
    box: Box,
    *,
    shape: tuple[int, int],
    factor: float | int = 1,
    x_factor: float | int | None = None,
    y_factor: float | int | None = None,
) -> Box:
    """The box with its sides `factor` times as long, about its centre; `x_factor` and `y_factor` settle one axis.

    A factor of 1 + 2 f is `enlarged` by f.
    """
    x, y = (_share(factor if own is None else own) for own in (x_factor, y_factor))
    return _by_fractions(box, [(x - 1) / 2, (y - 1) / 2] * 2, shape)


def scaled_at_random(box: Box, *, fraction: float | int, shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """The box `scaled` by one factor for both axes, drawn from U(1 - `fraction`, 1 + `fraction`), not below 0."""
    share = _share(fraction)
    return scaled(box, factor=max(0.0, rng.uniform(1 - share, 1 + share)), shape=shape)


def one_sided(box: Box, *, side: Side, fraction: float | int, shape: tuple[int, int]) -> Box:
    """The box with one side moved outward by `fraction` (inward where negative).

    The other sides stay, unless the moved one would cross its opposite (see the module).
    """
    if side not in SIDES:
        raise SettingError(f"a box has no side {side!r}; choose one of {', '.join(SIDES)}")
    return _by_fractions(box, [_number(fraction) if name == side else 0.0 for name in SIDES], shape)


def one_sided_at_random(box: Box, *, fraction: float | int, shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """The box with one side, each as likely, moved by a draw from U(-`fraction`, `fraction`)."""
    side, share = SIDES[int(rng.integers(4))], _share(fraction)
    return one_sided(box, side=side, fraction=rng.uniform(-share, share), shape=shape)


def per_axis(box: Box, *, x_fraction: float | int, y_fraction: float | int, shape: tuple[int, int]) -> Box:
    """The box with left and right moved outward by `x_fraction`, top and bottom by `y_fraction` (negative: inward)."""
    return _by_fractions(box, [_number(x_fraction), _number(y_fraction)] * 2, shape)


def per_axis_at_random(box: Box, *, fraction: float | int, shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """The box with each axis moved `per_axis` by its own draw from U(-`fraction`, `fraction`)."""
    share = _share(fraction)
    x, y = rng.uniform(-share, share, 2).tolist()
    return per_axis(box, x_fraction=x, y_fraction=y, shape=shape)


def jittered(box: Box, *, fraction: float | int, shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """The box with each side moved by its own draw from U(-`fraction`, `fraction`): as likely out as in."""
    share = _share(fraction)
    return _by_fractions(box, rng.uniform(-share, share, 4).tolist(), shape)


def medsam_jitter(
    box: Box, *, shape: tuple[int, int], rng: np.random.Generator, max_offset: int = 20, canvas_side: int = 1024
) -> Box:
    """The box as MedSAM saw it in training: each side outward by its own whole number of pixels, 0 to `max_offset`.

    The pixels are those of a square canvas of `canvas_side`, max(`shape`) / `canvas_side` image pixels each.
    LiteMedSAM's training is max_offset=5, canvas_side=256.

    Deviations: MedSAM stretches an image that is not square onto its canvas, so that its pixels have another length
    along the shorter axis; and it cuts at the last pixel's far edge. Here, as in LiteMedSAM, pixels are square and the
    cut is at the last pixel's centre.
    """
    if max_offset < 0 or canvas_side < 1:
        raise SettingError(
            f"an offset up to {max_offset} on a canvas of side {canvas_side} cannot be drawn; give max_offset 0 or "
            "more and canvas_side 1 or more"
        )
    offsets = rng.integers([0] * 4, [max_offset] * 4, endpoint=True) * (max(shape) / canvas_side)
    return _outward(box.inside(shape), offsets.tolist(), shape)


def _by_fractions(box: Box, fractions: Sequence[float], shape: tuple[int, int]) -> Box:
    """The box with its sides (left, top, right, bottom) moved outward by shares of their length."""
    box = box.inside(shape)
    width, height = _lengths(box)
    offsets = [share * length for share, length in zip(fractions, (width, height, width, height), strict=True)]
    return _outward(box, offsets, shape)


def _outward(box: Box, offsets: Sequence[float], shape: tuple[int, int]) -> Box:
    """The box with its sides (left, top, right, bottom) moved outward by pixels."""
    left, top, right, bottom = offsets
    rows, columns = shape
    x_min, x_max = _edges(box.x_min, box.x_max, before=left, after=right, last=float(columns - 1))
    y_min, y_max = _edges(box.y_min, box.y_max, before=top, after=bottom, last=float(rows - 1))
    return replace(box, x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


def _edges(low: float, high: float, *, before: float, after: float, last: float) -> tuple[float, float]:
    new_low, new_high = low - before, high + after
    if new_high < new_low:
        new_low = new_high = (low + high) / 2
    return _limited(new_low, lowest=0.0, highest=last), _limited(new_high, lowest=0.0, highest=last)


def _lengths(box: Box) -> tuple[float, float]:
    return box.x_max - box.x_min + 1, box.y_max - box.y_min + 1


def _limited(value: float, *, lowest: float, highest: float) -> float:
    return min(max(value, lowest), highest)


def _number(value: float | int) -> float:
    if not math.isfinite(value):
        raise SettingError(f"a side cannot move by {value}; give a finite share of its length, such as 0.1")
    return float(value)


def _share(value: float | int) -> float:
    if _number(value) < 0:
        raise SettingError(
            f"{value:g} is negative, but the name of a perturbation says its direction; give 0 or more, or take "
            "one_sided or per_axis, where negative is inward"
        )
    return float(value)
