"""Ways to prompt for an object whose mask is known, each with a name: what an evaluation compares.

    shown = strategy("box+points-10").draw(mask, severity=0, rng=np.random.default_rng(7), z=12)

Every strategy works on every mask that is not empty: thin, tiny, hollow, in parts, at the border. What the papers leave
open is decided in `says`, and in docs/reference/strategies.md, which holds this table for reading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from palpate.errors import PromptError, SettingError
from palpate.prompts.adaptive import PRESETS
from palpate.prompts.clicks import next_click
from palpate.prompts.masks import rough_mask
from palpate.prompts.perturbation import (
    enlarged,
    enlarged_at_random,
    jittered,
    medsam_jitter,
    one_sided_at_random,
    per_axis_at_random,
    scaled,
    shifted_at_random,
    shrunk,
    shrunk_at_random,
)
from palpate.prompts.sampling import (
    box_centre,
    centroid,
    foreground_points,
    points_on_both_sides,
    quadrant_points,
    swin_points_inference,
    swin_points_training,
)
from palpate.prompts.scribbles import (
    STROKES,
    StrokeStyle,
    scribble_inside,
    swin_scribble_inference,
    swin_scribble_training,
)
from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble


@dataclass(frozen=True)
class Asked:
    """What a strategy may look at: `shape` is (rows, columns), `box` the mask's tight box, `pixels` the 8-bit slice."""

    mask: np.ndarray
    severity: float
    rng: np.random.Generator
    z: int | None
    pixels: np.ndarray | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.mask.shape[0], self.mask.shape[1]

    @property
    def box(self) -> Box:
        """The tight box."""
        return Box.around(self.mask, z=self.z)

    @property
    def stroke(self) -> StrokeStyle:
        """The stroke of Swin-LiteMedSAM, whose images have a longer side of 256 pixels, at the size of this one."""
        return STROKES["rand_curve"].scaled(max(self.shape) / 256)


@dataclass(frozen=True)
class Strategy:
    """One way to prompt.

    `says` is its promise in a line, `source` who proposed it. `random`: it draws from `rng`; the others ignore it.
    `uses_severity`: it is milder or harsher, 0 being the tight box or the mask itself; `default_severities` are worth
    comparing, and (0.0,) for the others, which ignore severity. `needs_pixels`: it looks at the image, and at the mask
    only for its tight box.
    """

    name: str
    says: str
    how: Callable[[Asked], tuple[Prompt, ...]]
    source: str
    random: bool = False
    uses_severity: bool = False
    default_severities: tuple[float, ...] = (0.0,)
    needs_pixels: bool = False

    def draw(
        self,
        mask: Bool[np.ndarray, "row column"],
        *,
        severity: float | int,
        rng: np.random.Generator,
        z: int | None = None,
        pixels: UInt8[np.ndarray, "_ _"] | UInt8[np.ndarray, "_ _ 3"] | None = None,
    ) -> tuple[Prompt, ...]:
        """The prompts for the object of this mask, all on slice `z`.

        Raises:
            PromptError: the mask is empty; negative points are needed and the mask leaves no room; or pixels are
                missing or of another size.
        """
        if not mask.any():
            raise PromptError("no prompt fits an empty mask; skip the slice or pass another label")
        if self.needs_pixels and pixels is None:
            raise PromptError(f"{self.name} looks at the image, not at the mask; pass the slice as `pixels`")
        if pixels is not None and pixels.shape[:2] != mask.shape:
            raise PromptError(
                f"the mask has shape {mask.shape}, its image {pixels.shape[:2]}; pass the same slice of both"
            )
        return self.how(Asked(mask, float(severity), rng, z, pixels))


def strategy(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        SettingError: there is none.
    """
    for known in STRATEGIES:
        if known.name == name:
            return known
    names = [known.name for known in STRATEGIES]
    near = get_close_matches(name, names, n=1)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    raise SettingError(f"no strategy is called {name!r}; {suggestion}choose one of {', '.join(names)}")


@runtime_checkable
class _Moved(Protocol):
    def __call__(self, box: Box, *, fraction: float, shape: tuple[int, int]) -> Box: ...


@runtime_checkable
class _MovedAtRandom(Protocol):
    def __call__(self, box: Box, *, fraction: float, shape: tuple[int, int], rng: np.random.Generator) -> Box: ...


def _by_severity(name: str, says: str, move: _Moved, source: str) -> Strategy:
    return Strategy(
        name,
        says,
        lambda asked: (move(asked.box, fraction=asked.severity, shape=asked.shape),),
        source,
        uses_severity=True,
        default_severities=_FRACTIONS,
    )


def _by_severity_at_random(name: str, says: str, move: _MovedAtRandom, source: str) -> Strategy:
    return Strategy(
        name,
        says,
        lambda asked: (move(asked.box, fraction=asked.severity, shape=asked.shape, rng=asked.rng),),
        source,
        random=True,
        uses_severity=True,
        default_severities=_FRACTIONS,
    )


def _grown(percent: int) -> Strategy:
    return Strategy(
        f"box-{percent}",
        f"The tight box, every side outward by {percent} % of its length",
        lambda asked: (enlarged(asked.box, fraction=percent / 100, shape=asked.shape),),
        _RANEM,
    )


def _grown_at_random(percent: int) -> Strategy:
    return Strategy(
        f"box-random-{percent}",
        f"The tight box, every side outward by its own draw from 0 to {percent} % of its length",
        lambda asked: (enlarged_at_random(asked.box, fraction=percent / 100, shape=asked.shape, rng=asked.rng),),
        _RANEM,
        random=True,
    )


def _points(count: int) -> Strategy:
    return Strategy(
        f"points-{count}",
        f"{count} points of the mask, all different where it has that many pixels",
        lambda asked: (foreground_points(asked.mask, count=count, rng=asked.rng, z=asked.z),),
        _RANEM,
        random=True,
    )


def _box_and_points(count: int) -> Strategy:
    return Strategy(
        f"box+points-{count}",
        f"The tight box, and points drawn as for points-{count}",
        lambda asked: (asked.box, foreground_points(asked.mask, count=count, rng=asked.rng, z=asked.z)),
        _RANEM,
        random=True,
    )


def _both_sides(asked: Asked) -> Points:
    return points_on_both_sides(asked.mask, positive=50, negative=50, rng=asked.rng, z=asked.z)


def _arm(preset: str, says: str) -> Strategy:
    return Strategy(
        f"arm-{preset}",
        says,
        lambda asked: (PRESETS[preset].on_image(asked.box, shape=asked.shape, rng=asked.rng).box,),
        _LI,
        random=True,
    )


def _swin(asked: Asked, *, independent_xy: bool = False) -> tuple[Prompt, ...]:
    assert asked.pixels is not None, "Strategy.draw has looked"
    points = swin_points_inference(asked.pixels, asked.box, rng=asked.rng, independent_xy=independent_xy)
    stroke = swin_scribble_inference(asked.pixels, asked.box, rng=asked.rng, style=asked.stroke)
    return _with_stroke(asked, asked.box, points, stroke)


def _swin_jitter(asked: Asked) -> Box:
    return medsam_jitter(asked.box, shape=asked.shape, rng=asked.rng, max_offset=5, canvas_side=256)


def _adaptive(asked: Asked) -> Box:
    return PRESETS["adaptive-bidirectional"].on_image(asked.box, shape=asked.shape, rng=asked.rng).box


def _swin_training_points(asked: Asked) -> tuple[Prompt, ...]:
    box = _swin_jitter(asked)
    return box, swin_points_training(asked.mask, box, rng=asked.rng)


def _swin_training_scribble(asked: Asked) -> tuple[Prompt, ...]:
    box = _swin_jitter(asked)
    stroke = swin_scribble_training(box, shape=asked.shape, rng=asked.rng, style=asked.stroke)
    return (box, Scribble(stroke, z=asked.z)) if stroke.any() else (box,)


def _swin_training(
    asked: Asked, *, independent_xy: bool = False, box_of: Callable[[Asked], Box] = _swin_jitter
) -> tuple[Prompt, ...]:
    box = box_of(asked)
    points = swin_points_training(asked.mask, box, rng=asked.rng, independent_xy=independent_xy)
    stroke = swin_scribble_training(box, shape=asked.shape, rng=asked.rng, style=asked.stroke)
    return _with_stroke(asked, box, points, stroke)


def _with_stroke(asked: Asked, box: Box, points: Points, stroke: np.ndarray) -> tuple[Prompt, ...]:
    return (box, points, Scribble(stroke, z=asked.z)) if stroke.any() else (box, points)


def _click(asked: Asked) -> tuple[Prompt, ...]:
    click = next_click(np.zeros_like(asked.mask), asked.mask, z=asked.z)
    assert click is not None, "the mask is not empty"
    return (click,)


_FRACTIONS = (0.05, 0.1, 0.15, 0.2)
_RANEM = "Ranem et al. 2023"
_LI = "Li et al. 2025"
_GAO = "Gao et al. 2024"
_MA = "Ma et al. 2024"
_OURS = "palpate"

STRATEGIES: tuple[Strategy, ...] = (
    Strategy(
        "standard", "The tight box: first and last row and column of the mask", lambda asked: (asked.box,), _RANEM
    ),
    _by_severity("expansion", "The tight box, every side outward by severity times its length", enlarged, _LI),
    _by_severity("shrink", "The tight box, every side inward by severity times its length", shrunk, _LI),
    _by_severity_at_random(
        "expansion-random", "Every side outward by its own draw from 0 to severity", enlarged_at_random, _LI
    ),
    _by_severity_at_random(
        "shrink-random", "Every side inward by its own draw from 0 to severity", shrunk_at_random, _LI
    ),
    _by_severity_at_random("jitter", "Every side by its own draw from -severity to severity", jittered, _OURS),
    _by_severity_at_random(
        "shift", "The whole box by severity times its sides, in a random direction", shifted_at_random, _OURS
    ),
    Strategy(
        "scale",
        "Both sides times 1 + severity about the centre; negative shrinks",
        lambda asked: (scaled(asked.box, factor=1 + asked.severity, shape=asked.shape),),
        _OURS,
        uses_severity=True,
        default_severities=(-0.2, -0.1, 0.1, 0.2),
    ),
    _by_severity_at_random(
        "one-sided", "One random side by a draw from -severity to severity", one_sided_at_random, _OURS
    ),
    _by_severity_at_random(
        "per-axis",
        "Both sides of an axis alike, each axis by a draw from -severity to severity",
        per_axis_at_random,
        _OURS,
    ),
    Strategy(
        "medsam-jitter",
        "Every side outward by its own whole number, 0 to 20 pixels of a canvas of 1024",
        lambda asked: (medsam_jitter(asked.box, shape=asked.shape, rng=asked.rng),),
        _MA,
        random=True,
    ),
    _arm("medsam", "The ablation's first arm: outward by 0 to 20 pixels of a canvas of 1024"),
    _arm("bidirectional", "The arm with delta and eps alone: in or out by up to 20 pixels of a canvas of 1024"),
    _arm("adaptive", "The arm with theta and xi alone: outward in proportion to the box"),
    _arm("adaptive-bidirectional", "The full method: in or out in proportion to the box"),
    *(_grown(percent) for percent in (5, 10, 20)),
    *(_grown_at_random(percent) for percent in (5, 10, 20)),
    *(_points(count) for count in (3, 10, 50, 100)),
    *(_box_and_points(count) for count in (3, 10, 50, 100)),
    Strategy(
        "points-50+50",
        "50 points of the mask, then 50 from anywhere beside it",
        lambda asked: (_both_sides(asked),),
        _RANEM,
        random=True,
    ),
    Strategy(
        "box+points-50+50",
        "The tight box, and points drawn as for points-50+50",
        lambda asked: (asked.box, _both_sides(asked)),
        _RANEM,
        random=True,
    ),
    Strategy(
        "box-centre",
        "The centre of the tight box as a positive point, on the mask or not",
        lambda asked: (box_centre(asked.box),),
        _RANEM,
    ),
    Strategy(
        "centroid",
        "The mean of the mask's pixels as a positive point, on the mask or not",
        lambda asked: (centroid(asked.mask, z=asked.z),),
        _RANEM,
    ),
    Strategy(
        "quadrants",
        "One random pixel of the mask from each quarter of its tight box; no point where a quarter is empty",
        lambda asked: (quadrant_points(asked.mask, rng=asked.rng, z=asked.z),),
        _RANEM,
        random=True,
    ),
    Strategy(
        "swin",
        "Tight box, four points and a stroke from the image alone, as at inference",
        _swin,
        _GAO,
        random=True,
        needs_pixels=True,
    ),
    Strategy(
        "swin-independent",
        "As swin, but row and column of a point are drawn apart, as the authors' code does",
        lambda asked: _swin(asked, independent_xy=True),
        _GAO,
        random=True,
        needs_pixels=True,
    ),
    Strategy(
        "swin-training",
        "Jittered box, four points of the mask and a stroke anywhere in the box, as in training",
        _swin_training,
        _GAO,
        random=True,
    ),
    Strategy(
        "swin-training-independent",
        "As swin-training, but row and column of a point are drawn apart, as the authors' code does",
        lambda asked: _swin_training(asked, independent_xy=True),
        _GAO,
        random=True,
    ),
    Strategy(
        "swin-training-adaptive",
        "As swin-training, but the box goes in or out in proportion, as in arm-adaptive-bidirectional",
        lambda asked: _swin_training(asked, box_of=_adaptive),
        _OURS,
        random=True,
    ),
    Strategy(
        "swin-training-box",
        "The jittered box of swin-training alone",
        lambda asked: (_swin_jitter(asked),),
        _GAO,
        random=True,
    ),
    Strategy(
        "swin-training-points",
        "The jittered box of swin-training and its four points, without the stroke",
        _swin_training_points,
        _GAO,
        random=True,
    ),
    Strategy(
        "swin-training-scribble",
        "The jittered box of swin-training and its stroke, without the points",
        _swin_training_scribble,
        _GAO,
        random=True,
    ),
    Strategy(
        "scribble",
        "One calm stroke inside the mask's largest part, as a person would draw it",
        lambda asked: (scribble_inside(asked.mask, rng=asked.rng, style=asked.stroke, z=asked.z),),
        _OURS,
        random=True,
    ),
    Strategy("click", "One click, on the deepest pixel of the mask's largest part", _click, _OURS),
    Strategy(
        "mask", "The mask itself, as a first guess", lambda asked: (MaskPrompt(asked.mask.copy(), z=asked.z),), _OURS
    ),
    Strategy(
        "mask-rough",
        "The mask, its border moved in or out by up to severity times the object's radius",
        lambda asked: (MaskPrompt(rough_mask(asked.mask, fraction=asked.severity, rng=asked.rng), z=asked.z),),
        _OURS,
        random=True,
        uses_severity=True,
        default_severities=(0.1, 0.2, 0.4),
    ),
)
