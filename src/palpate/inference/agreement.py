"""How steady a mask is: does it stay the same where its prompts are drawn slightly differently?

A hand draws no box twice. Where that decides about the mask, the mask deserves a second look; where it does not, the
image says clearly enough what is meant. No label is needed for it, and the image is encoded already, so it costs one
batch of decodes. `benchmarks/agreement.py` measures what it says about the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32
from scipy.ndimage import binary_dilation, binary_erosion

from palpate.errors import SettingError
from palpate.inference.finding import Mode
from palpate.inference.session import Session
from palpate.metrics import dice
from palpate.prompts.perturbation import jittered
from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble, Target

DRAWS = 8
"""As many other prompts are tried."""

AMOUNT = 0.05
"""How far the sides of boxes move at most, as a share of their lengths."""

_CLICKS = 0.2
"""Clicks and strokes move by this share of `amount` times the image's longest side: 5 pixels of 512 for 0.05.

A hand misses by so many pixels of the screen, on which the image is shown whole: what lies under it does not matter,
and of a click nobody knows how large the object is."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """How much a mask agrees with those of slightly different prompts.

    - `dice` between the mask and that of each draw. It is 0 where either is empty, also where both are: a prompt for
      which nothing is found needs a look, whatever its neighbours say.
    - `share`: in how many of the draws each pixel of the prompted slice is inside, 0 to 1.
    - `mask` of the prompts as they are, on that slice.
    """

    dice: tuple[float, ...]
    share: Float32[np.ndarray, "row column"]
    mask: Bool[np.ndarray, "row column"]

    @property
    def mean(self) -> float:
        """The mean Dice over the draws, 0 to 1; 1: whatever was drawn, it is the same mask."""
        return float(np.mean(self.dice))


def agreement(
    session: Session,
    target: Target,
    *,
    draws: int = DRAWS,
    amount: float | int = AMOUNT,
    mode: Mode | str = "manual",
    rng: np.random.Generator,
) -> Agreement:
    """The agreement of a target's mask, on the slice that it was prompted on, with those of `draws` other prompts.

    Every side of a box moves by its own draw of up to `amount` times its length. Every click moves by its own draw, and
    a scribble as a whole, along both axes (see `_CLICKS`). A mask loses or gains one pixel all around, or stays. What
    would leave the image stops at its border. The same state of `rng` gives the same answer. `mode` is that of
    `Session.masks`.

    Raises:
        PromptError: no image is set, or a prompt that makes no sense on it.
        UnsupportedPrompt: the model does not take a prompt of this kind.
        SettingError: another mode, fewer than one draw, or an amount that is negative or no finite number.
    """
    if draws < 1:
        raise SettingError(f"agreement needs at least one other prompt, and draws is {draws}")
    if not math.isfinite(amount) or amount < 0:
        raise SettingError(f"prompts are moved by a share of their size from 0 on, got {amount}")
    target = replace(target, prompts=tuple(_on_slice(prompt, target.z) for prompt in target.prompts), z_range=None)
    others = [moved(target, amount=amount, shape=session.slices.shape[1:3], rng=rng) for _ in range(draws)]
    mask, *found = session.masks([target, *others], mode=mode)
    share = np.stack(found).mean(axis=0, dtype=np.float32)
    return Agreement(tuple(dice(one, mask, both_empty=0.0) for one in found), share, mask)


def moved(target: Target, *, amount: float | int, shape: tuple[int, ...], rng: np.random.Generator) -> Target:
    """The target as another hand may have drawn it, on a slice of `shape` (rows, columns); see `agreement`."""
    rows, columns = shape
    pixels = _CLICKS * amount * max(rows, columns)
    return replace(
        target, prompts=tuple(_moved(prompt, amount, pixels, (rows, columns), rng) for prompt in target.prompts)
    )


def _moved(
    prompt: Prompt, amount: float | int, pixels: float, shape: tuple[int, int], rng: np.random.Generator
) -> Prompt:
    if isinstance(prompt, Box):
        return jittered(prompt, fraction=amount, shape=shape, rng=rng)
    if isinstance(prompt, Points):
        return _clicked_again(prompt, pixels, shape, rng)
    if isinstance(prompt, Scribble):
        return _drawn_again(prompt, pixels, rng)
    return _painted_again(prompt, rng)


def _clicked_again(points: Points, pixels: float, shape: tuple[int, int], rng: np.random.Generator) -> Points:
    steps = rng.uniform(-pixels, pixels, (len(points.coordinates), 2))
    last = np.array([shape[1] - 1, shape[0] - 1])
    # A click may lie on the outer half of the border's pixels, where it then stays.
    places = np.array(points.coordinates)
    places = np.clip(places + steps, np.minimum(places, 0), np.maximum(places, last))
    return Points(places.tolist(), points.labels, z=points.z)


def _drawn_again(scribble: Scribble, pixels: float, rng: np.random.Generator) -> Scribble:
    """All strokes move together, by whole pixels, so that none comes to lie on another."""
    furthest = max(1, round(pixels)) if pixels > 0 else 0
    down, right = rng.integers(-furthest, furthest, 2, endpoint=True).tolist()
    positive = _shifted(scribble.positive, down, right)
    if not positive.any():  # it would have left the image
        return scribble
    negative = None if scribble.negative is None else _shifted(scribble.negative, down, right)
    return Scribble(positive, negative if negative is not None and negative.any() else None, z=scribble.z)


def _painted_again(prompt: MaskPrompt, rng: np.random.Generator) -> MaskPrompt:
    step = int(rng.integers(-1, 1, endpoint=True))
    if step > 0:
        return MaskPrompt(binary_dilation(prompt.mask), z=prompt.z)
    # Along the image's own border nothing is lost: what is outside, nobody painted.
    smaller = binary_erosion(prompt.mask, border_value=1) if step < 0 else prompt.mask
    return MaskPrompt(smaller if smaller.any() else prompt.mask, z=prompt.z)


def _shifted(stroke: Bool[np.ndarray, "row column"], down: int, right: int) -> Bool[np.ndarray, "row column"]:
    moved_stroke = np.zeros_like(stroke)
    rows, columns = stroke.shape
    if abs(down) < rows and abs(right) < columns:
        kept = stroke[max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)]
        moved_stroke[max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)] = kept
    return moved_stroke


def _on_slice(prompt: Prompt, z: int | None) -> Prompt:
    if isinstance(prompt, Points):
        return Points(prompt.coordinates, prompt.labels, z=z)
    return replace(prompt, z=z)
