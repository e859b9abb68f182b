"""First guesses at an object, as a careless hand or another program draws them: the mask, with its border moved."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt

from palpate.errors import PromptError, SettingError

FINEST_WAVE = 4
"""A border of thin objects does not change its mind from pixel to pixel; so many pixels at least are a wave."""


def rough_mask(
    mask: Bool[np.ndarray, "row column"], *, fraction: float | int, rng: np.random.Generator
) -> Bool[np.ndarray, "row column"]:
    """The mask with its border moved, here inward and there outward, by at most `fraction` of the object's radius.

    The radius is that of the largest disc inside the mask, which may hang over the image's border. How far the border
    moves is uniform at places one radius apart (no closer than four pixels) and smooth in between. Along the image's
    own border nothing moves, and at least the deepest pixel stays. With 0 the mask stays as it is; thin objects may,
    too, as no border moves by less than half a pixel.

    Raises:
        PromptError: the mask is empty.
        SettingError: the fraction is negative or no finite number.
    """
    if not mask.any():
        raise PromptError("no first guess can be made of an empty mask; skip the slice or pass another label")
    if not math.isfinite(fraction) or fraction < 0:
        raise SettingError(f"a mask is moved by a share of its radius from 0 on, got {fraction}")
    if mask.all():
        return mask.copy()
    part = _around(mask, margin=1)
    radius = float(_distance(mask[part]).max())
    part = _around(mask, margin=math.ceil(fraction * radius) + 1)
    near = mask[part]
    deep = np.where(near, _distance(near), -_distance(~near))
    moved = deep + fraction * radius * _waves(near.shape, length=max(FINEST_WAVE, radius), rng=rng)
    rough = np.zeros_like(mask)
    rough[part] = moved > 0
    if not rough.any():
        rough[part].flat[int(np.argmax(moved))] = True
    return rough


def _distance(region: Bool[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """How far each pixel's centre lies inside of the region's border, which is half a pixel from the next pixel's."""
    return np.asarray(distance_transform_edt(region), dtype=np.float64) - 0.5


def _around(mask: Bool[np.ndarray, "row column"], *, margin: int) -> tuple[slice, slice]:
    """The rows and columns of the mask and `margin` more, as far as the image goes."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + 1 + margin),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + 1 + margin),
    )


def _waves(shape: tuple[int, ...], *, length: float | int, rng: np.random.Generator) -> Float[np.ndarray, "row column"]:
    """Numbers in -1..1 that change smoothly: uniform at knots `length` pixels apart, with cubic steps in between."""
    places = [rng.uniform() + np.arange(extent) / length for extent in shape]
    (top, down), (left, right) = ((place.astype(int), place % 1) for place in places)
    knots = rng.uniform(-1, 1, (int(top[-1]) + 2, int(left[-1]) + 2))
    down, right = (down**2 * (3 - 2 * down))[:, None], right**2 * (3 - 2 * right)
    rows = knots[top] * (1 - down) + knots[top + 1] * down
    return rows[:, left] * (1 - right) + rows[:, left + 1] * right
