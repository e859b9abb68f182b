"""Boxes perturbed in proportion to what they hold: Li, Yuan and Tan (2025), arXiv 2503.19700, equations (1) to (8).

A box has the corners alpha = (x_min, y_min) and beta = (x_max, y_max). Along axis i its sides move by draws from
[eps_i, delta_i], where

    eps_1   = eps_shrink * theta      eps_2   = eps_shrink * theta / xi       (1), (2)
    delta_1 = delta_expand * theta    delta_2 = delta_expand * theta / xi     (3), (4)

and each of the four coordinates is drawn for itself (5) to (8). The paper gives no code and leaves open what the
symbols measure; these readings are ours:

- Index 1 is x and index 2 is y, and xi = width / height. The range then has the proportions of the box itself, which is
  what the paper asks of xi.
- theta is the target's size relative to the canvas, in units of `theta_ref`: the size at which the adaptive range is
  MedSAM's fixed one. By default the size is the box's width. With (1) to (4) both axes then move by the same share of
  their side, and a transposed image gives a transposed box.
- `delta_expand` and `eps_shrink` are pixels of a canvas of side 1024, and shrink or grow with the canvas. A shrinking
  factor is negative.
- A draw moves a side outward, so that delta enlarges, eps shrinks, and MedSAM's own jitter is the special case theta =
  xi = 1, eps = 0. As printed, (5) to (8) add the draw to every coordinate, which shifts the box when eps is 0.
- The limits eps_min and delta_max bound the factors, not the moves: a large target may move by more than delta_max.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from palpate.errors import PromptError, SettingError
from palpate.prompts.types import Box

ThetaMode = Literal["width", "sqrt_area", "area", "mask_area"]
Sign = Literal["outward", "literal"]
FactorSampling = Literal["constant", "uniform"]
ClipHigh = Literal["last_pixel", "side"]

_REFERENCE_SIDE = 1024


@dataclass(frozen=True)
class Coefficients:
    """How much a box moves: `theta` along x, `theta` / `xi` along y."""

    theta: float
    xi: float


@dataclass(frozen=True)
class Ranges:
    """The first and the last place that each side may come to."""

    x_min: tuple[float, float]
    y_min: tuple[float, float]
    x_max: tuple[float, float]
    y_max: tuple[float, float]


@dataclass(frozen=True)
class Offsets:
    """How far each side was moved outward, in canvas pixels."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True)
class PerturbedBox:
    """A box and the draws that moved it, as they came, before any cut."""

    box: Box
    offsets: Offsets


@dataclass(frozen=True)
class AdaptivePerturbation:
    """The adaptive bounding-box perturbation; without arguments, the paper's full method in our reading (see above).

    `adaptive`: theta and xi follow the target; else both are 1. `bidirectional`: sides may move inward; else eps is 0.

    `delta_expand`, `delta_max`, `eps_shrink`, `eps_min`: the factors and their limits, in pixels at canvas side 1024.
    delta is cut to delta_max, eps to eps_min. A positive eps is taken as a magnitude and negated: eps <= 0 <= delta.

    `theta_ref`: the side of a target, as a share of the canvas, whose theta is 1. `theta_mode`: what theta compares
    with it: the box's "width", the root of its area ("sqrt_area"), or, with theta_ref squared, the box's "area" or the
    mask's ("mask_area"). All but "width" are not symmetric under transposition, as xi divides only y.

    `sign`: "outward", or "literal" to add the draws to all coordinates as (5) to (8) are printed.

    `factor_sampling`: "constant", or "uniform" to draw delta from U(0, delta_max) and eps from U(eps_min, 0) for every
    box. `whole_numbers`: draws are whole pixels at canvas side 1024, as in MedSAM. `max_offset_px`: no side moves by
    more than this many pixels at canvas side 1024; ranges are cut to it before drawing.

    `min_side_px`, `min_side_fraction`: where x_max - x_min falls below the larger of this many canvas pixels and this
    share of the width before, the box is centred between its sides with that width, the same for y. A box that was
    narrower before is kept at its own width, so that ranges of zero change nothing.

    `clip_hi`: the highest coordinate is the "last_pixel", side - 1, as in LiteMedSAM, or the "side", as in MedSAM.
    `pixel_inclusive`: width and height count pixels, x_max - x_min + 1; else they are x_max - x_min, but at least 1.

    Raises:
        SettingError: a value that makes no range.
    """

    adaptive: bool = True
    bidirectional: bool = True
    delta_expand: float | int = 20.0
    delta_max: float | int = 20.0
    eps_shrink: float | int = -20.0
    eps_min: float | int = -20.0
    theta_ref: float | int = 0.2
    theta_mode: ThetaMode = "width"
    sign: Sign = "outward"
    factor_sampling: FactorSampling = "constant"
    whole_numbers: bool = False
    max_offset_px: float | int | None = None
    min_side_px: float | int = 1.0
    min_side_fraction: float | int = 0.25
    clip_hi: ClipHigh = "last_pixel"
    pixel_inclusive: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("theta_mode", get_args(ThetaMode)),
            ("sign", get_args(Sign)),
            ("factor_sampling", get_args(FactorSampling)),
            ("clip_hi", get_args(ClipHigh)),
        ):
            if getattr(self, name) not in known:
                raise SettingError(f"there is no {name} {getattr(self, name)!r}; choose one of {', '.join(known)}")
        for name in ("delta_expand", "delta_max", "theta_ref", "max_offset_px", "min_side_px", "min_side_fraction"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("eps_shrink", "eps_min"):
            object.__setattr__(self, name, -abs(float(getattr(self, name))))
            _require(name, -getattr(self, name), ">= 0", hint="its sign does not matter, it always shrinks")
        for name in ("delta_expand", "delta_max"):
            _require(name, getattr(self, name), ">= 0", hint="shrinking is what eps_shrink does")
        _require(
            "theta_ref", self.theta_ref, "> 0", hint="0.2 makes a target of a fifth of the canvas move as in MedSAM"
        )
        if self.max_offset_px is not None:
            _require("max_offset_px", self.max_offset_px, ">= 0", hint="None is no limit")
        _require("min_side_px", self.min_side_px, ">= 0", hint="1 keeps a pixel")
        _require("min_side_fraction", self.min_side_fraction, ">= 0", hint="0.25 keeps a quarter of the side")
        if self.min_side_fraction > 1:
            raise SettingError(f"min_side_fraction {self.min_side_fraction:g} is more than the whole side; give 0 to 1")

    def coefficients(self, box: Box, *, canvas_side: int, mask_area: int | None = None) -> Coefficients:
        """theta and xi for a tight box in pixels of a square canvas; 1 and 1 where not `adaptive`.

        Raises:
            SettingError: theta_mode is "mask_area" and `mask_area`, the mask's number of canvas pixels, is missing.
        """
        if not self.adaptive:
            return Coefficients(theta=1.0, xi=1.0)
        width, height = self._size(box)
        if self.theta_mode == "width":
            relative = width / canvas_side / self.theta_ref
        elif self.theta_mode == "sqrt_area":
            relative = math.sqrt(width * height) / canvas_side / self.theta_ref
        elif self.theta_mode == "area":
            relative = width * height / (canvas_side * self.theta_ref) ** 2
        else:
            relative = _area(mask_area) / (canvas_side * self.theta_ref) ** 2
        return Coefficients(theta=relative, xi=width / height)

    def ranges(self, box: Box, *, canvas_side: int, mask_area: int | None = None) -> Ranges:
        """Where each side may come to lie, first and last coordinate, before cuts at borders and the smallest width.

        With uniform factors these are the widest ranges that can be drawn.
        """
        delta, eps = self._limits()
        low, high = self._moves(box, delta, eps, canvas_side=canvas_side, mask_area=mask_area)
        least, most = [(value * (canvas_side / _REFERENCE_SIDE)).tolist() for value in (low, high)]
        x_min, y_min, x_max, y_max = [
            (coordinate + start, coordinate + end)
            for coordinate, start, end in zip(_coordinates(box), least, most, strict=True)
        ]
        if self.sign == "outward":  # the first two sides go down
            x_min, y_min = (box.x_min - most[0], box.x_min - least[0]), (box.y_min - most[1], box.y_min - least[1])
        return Ranges(x_min, y_min, x_max, y_max)

    def sample(
        self, box: Box, *, canvas_side: int, rng: np.random.Generator, mask_area: int | None = None
    ) -> PerturbedBox:
        """A tight box in pixels of a square canvas, perturbed and cut to the canvas; real numbers, never inverted.

        It is cut to the whole canvas, padding included, as in MedSAM and LiteMedSAM.

        Raises:
            PromptError: the box lies outside the canvas.
        """
        return self._sample(box, (canvas_side, canvas_side), canvas_side=canvas_side, rng=rng, mask_area=mask_area)

    def on_image(
        self, box: Box, *, shape: tuple[int, int], rng: np.random.Generator, mask_area: int | None = None
    ) -> PerturbedBox:
        """As `sample`, in pixels of an image of `shape` (rows, columns), whose longer side fills the canvas.

        The box is cut to the image, not to the padding beside it.
        """
        return self._sample(box, shape, canvas_side=max(shape), rng=rng, mask_area=mask_area)

    def _sample(
        self,
        box: Box,
        shape: tuple[int, int],
        *,
        canvas_side: int,
        rng: np.random.Generator,
        mask_area: int | None,
    ) -> PerturbedBox:
        beyond = 1 if self.clip_hi == "side" else 0
        rows, columns = shape[0] + beyond, shape[1] + beyond
        box = box.inside((rows, columns))
        delta, eps = self._limits()
        if self.factor_sampling == "uniform":
            delta, eps = rng.uniform(0, delta), rng.uniform(eps, 0)
        low, high = self._moves(box, delta, eps, canvas_side=canvas_side, mask_area=mask_area)
        if self.whole_numbers:
            drawn = rng.integers(np.ceil(low).astype(np.int64), np.floor(high).astype(np.int64), endpoint=True)
        else:
            drawn = rng.uniform(low, high)
        moved = drawn * (canvas_side / _REFERENCE_SIDE)
        outward = moved * [-1, -1, 1, 1] if self.sign == "literal" else moved
        left, top, right, bottom = outward.tolist()
        width, height = self._size(box)
        x_min, x_max = self._edges(box.x_min, box.x_max, left, right, width=width, last=float(columns - 1))
        y_min, y_max = self._edges(box.y_min, box.y_max, top, bottom, width=height, last=float(rows - 1))
        perturbed = replace(box, x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)
        return PerturbedBox(perturbed, Offsets(left, top, right, bottom))

    def _limits(self) -> tuple[float, float]:
        """The constant factors within their limits; for uniform ones, the limits themselves."""
        if self.factor_sampling == "uniform":
            return self.delta_max, self.eps_min if self.bidirectional else 0.0
        return min(self.delta_expand, self.delta_max), max(self.eps_shrink, self.eps_min) if self.bidirectional else 0.0

    def _moves(
        self, box: Box, delta: float, eps: float, *, canvas_side: int, mask_area: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Equations (1) to (4): the least and the largest move of every side, in pixels at canvas side 1024."""
        found = self.coefficients(box, canvas_side=canvas_side, mask_area=mask_area)
        along = np.array([found.theta, found.theta / found.xi] * 2)
        furthest = math.inf if self.max_offset_px is None else self.max_offset_px
        return np.maximum(eps * along, -furthest), np.minimum(delta * along, furthest)

    def _size(self, box: Box) -> tuple[float, float]:
        width, height = box.x_max - box.x_min, box.y_max - box.y_min
        return (width + 1, height + 1) if self.pixel_inclusive else (max(1.0, width), max(1.0, height))

    def _edges(
        self, low: float, high: float, before: float, after: float, *, width: float, last: float
    ) -> tuple[float, float]:
        new_low, new_high = low - before, high + after
        least = min(max(self.min_side_px, self.min_side_fraction * width), high - low)
        if new_high - new_low < least:
            middle = (new_low + new_high) / 2
            new_low, new_high = middle - least / 2, middle + least / 2
        return min(max(new_low, 0.0), last), min(max(new_high, 0.0), last)


def _coordinates(box: Box) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max


def _area(mask_area: int | None) -> int:
    if mask_area is None:
        raise SettingError(
            'theta_mode "mask_area" needs the mask\'s number of pixels; pass mask_area, or take theta_mode "width"'
        )
    if mask_area < 1:
        raise PromptError("no box fits an empty mask; skip the slice or pass another label")
    return mask_area


def _require(name: str, value: float, bound: Literal["> 0", ">= 0"], *, hint: str) -> None:
    if not math.isfinite(value) or value < 0 or (bound == "> 0" and value == 0):
        raise SettingError(f"{name} {value:g} makes no range; give a finite number {bound} ({hint})")


PRESETS: Mapping[str, AdaptivePerturbation] = MappingProxyType(
    {
        "medsam": AdaptivePerturbation(adaptive=False, bidirectional=False, whole_numbers=True),
        "bidirectional": AdaptivePerturbation(adaptive=False),
        "adaptive": AdaptivePerturbation(bidirectional=False),
        "adaptive-bidirectional": AdaptivePerturbation(),
    }
)
"""The four arms of the paper's ablation (Tables II and III): MedSAM's own jitter in whole pixels, with delta and eps
alone, with theta and xi alone, and with both."""
