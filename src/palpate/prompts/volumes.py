"""Prompts for an object in a volume: as they should be, on the wrong slice, with slices missing, too far or not far.

`mask` is the object, slices first. `draw` makes the prompts: given the mask of a slice and the number of the slice, it
returns prompts with that number as their `z`. An empty mask raises PromptError everywhere.

The range of an object goes from its first slice to its last; slices between them may be without it, where the object
has parts. Its extent is the number of slices in the range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from palpate.errors import PromptError, SettingError
from palpate.prompts.types import Prompt, Target

Draw = Callable[[Bool[np.ndarray, "row column"], int], tuple[Prompt, ...]]


def middle_slice(mask: Bool[np.ndarray, "slice row column"]) -> int:
    """The slice with the object on it that is nearest to the middle of its range (of two, the lower).

    An object in parts may be missing on the exact middle; a person would draw on the nearest slice that shows it.
    """
    slices = _slices_of(mask)
    return int(slices[np.argmin(np.abs(slices - (slices[0] + slices[-1]) // 2))])


def from_middle(mask: Bool[np.ndarray, "slice row column"], draw: Draw, *, label: int = 1) -> list[Target]:
    """One target: prompts on the middle slice, to be carried through the object's range."""
    middle = middle_slice(mask)
    return [_target(mask, draw, drawn_from=middle, z=middle, label=label, z_range=_range_of(mask))]


def on_every_slice(mask: Bool[np.ndarray, "slice row column"], draw: Draw, *, label: int = 1) -> list[Target]:
    """One target a slice with the object on it, from the first to the last, none of them carried anywhere."""
    return [_target(mask, draw, drawn_from=int(z), z=int(z), label=label, z_range=None) for z in _slices_of(mask)]


def key_slices_missing(
    mask: Bool[np.ndarray, "slice row column"],
    draw: Draw,
    *,
    fraction: float | int,
    rng: np.random.Generator,
    label: int = 1,
) -> list[Target]:
    """Prompts on every slice of the object but a random share of them; the rest is carried over from the nearest.

    round(`fraction` x slices with the object) slices lose their prompts: at least one where `fraction` is positive, and
    never the last that is left. Every slice of the range belongs to the nearest one that kept its prompts, of two to
    the lower, so that the targets' ranges tile the object's range. Slices of the range without the object belong to a
    neighbour in the same way: whoever carries a mask does not know of the gap.
    """
    if not 0 <= fraction <= 1:
        raise SettingError(f"{fraction:g} is no share of an object's slices; give 0 to 1")
    slices = _slices_of(mask)
    lost = min(_count(fraction, len(slices)), len(slices) - 1)
    kept: list[int] = np.sort(rng.choice(slices, size=len(slices) - lost, replace=False)).tolist()
    first, last = _range_of(mask)
    ends = [(low + high) // 2 for low, high in pairwise(kept)] + [last]
    starts = [first] + [end + 1 for end in ends[:-1]]
    return [
        _target(mask, draw, drawn_from=z, z=z, label=label, z_range=(start, end))
        for z, start, end in zip(kept, starts, ends, strict=True)
    ]


def on_wrong_slice(
    mask: Bool[np.ndarray, "slice row column"],
    draw: Draw,
    *,
    fraction: float | int,
    rng: np.random.Generator,
    label: int = 1,
) -> list[Target]:
    """One target: the prompts of the middle slice, put on a slice that is round(`fraction` x extent) away.

    At least one slice away where `fraction` is positive, up or down at random; where only one of the two lies in the
    volume, that one; where neither does, the first or the last slice of the volume. In a volume of one slice the
    prompts stay where they are. The range is the object's, widened to the prompted slice where that lies beyond it, as
    the mask is carried from there.
    """
    if not 0 <= fraction < math.inf:
        raise SettingError(f"a slice cannot be wrong by {fraction:g} of the extent; give a finite number, 0 or more")
    first, last = _range_of(mask)
    middle, depth = middle_slice(mask), len(mask)
    off = min(_count(fraction, last - first + 1), depth)
    places = [z for z in (middle - off, middle + off) if 0 <= z < depth]
    places = places or [z for z in (0, depth - 1) if z != middle] or [middle]
    z = places[int(rng.integers(len(places)))]
    return [_target(mask, draw, drawn_from=middle, z=z, label=label, z_range=(min(first, z), max(last, z)))]


def z_range_changed(targets: Iterable[Target], *, fraction: float | int, depth: int) -> list[Target]:
    """The targets with ranges too long (positive) or too short (negative) at both ends, by round(`fraction` x extent).

    At least by one slice where `fraction` is not zero, never beyond the volume of `depth` slices, and never without the
    prompted slice, where a shortened range stops. A target without a range has that of its slice. Prompts without a
    slice of their own are put on the middle of the range before, so that they stay where they were.

    Raises:
        PromptError: a target of a picture, or prompts on a slice that the volume does not have.
    """
    if not math.isfinite(fraction):
        raise SettingError(f"a range cannot change by {fraction:g} of the extent; give a finite number, such as 0.2")
    return [_with_range(target, fraction=fraction, depth=depth) for target in targets]


def _with_range(target: Target, *, fraction: float | int, depth: int) -> Target:
    z = target.z
    if z is None:
        raise PromptError("a target without slices has no range to change; give its prompts a z, or leave pictures out")
    if z >= depth:
        raise PromptError(f"the prompts lie on slice {z}, but the volume has slices 0..{depth - 1}; check depth")
    first, last = target.z_range or (z, z)
    by = _count(abs(fraction), last - first + 1) * (1 if fraction > 0 else -1)
    first, last = max(min(first - by, z), 0), min(max(last + by, z), depth - 1)
    return replace(target, prompts=tuple(replace(prompt, z=z) for prompt in target.prompts), z_range=(first, last))


def _target(
    mask: Bool[np.ndarray, "slice row column"],
    draw: Draw,
    *,
    drawn_from: int,
    z: int,
    label: int,
    z_range: tuple[int, int] | None,
) -> Target:
    target = Target(draw(mask[drawn_from], z), label=label, z_range=z_range)
    if target.prompts[0].z != z:
        raise PromptError(
            f"the prompts were drawn with z={target.prompts[0].z} but belong on slice {z}; pass the slice number that "
            "draw is given on to its prompts"
        )
    return target


def _slices_of(mask: Bool[np.ndarray, "slice row column"]) -> np.ndarray:
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(slices):
        raise PromptError("no prompt fits an empty mask; skip the volume or pass another label")
    return slices


def _range_of(mask: Bool[np.ndarray, "slice row column"]) -> tuple[int, int]:
    slices = _slices_of(mask)
    return int(slices[0]), int(slices[-1])


def _count(fraction: float | int, extent: int) -> int:
    return max(1, round(fraction * extent)) if fraction > 0 else 0
