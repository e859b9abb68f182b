"""Predictions that run out of their target, and what counts as failing on a tiny one."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from palpate.metrics.overlap import dice as dice_of

TINY_SHARE: Final = 0.005
"""A target is tiny when its tight box covers at most this share of the image."""
LEAK_LIMIT: Final = 0.2
DICE_LIMIT: Final = 0.5


def leak_ratio(
    prediction: Bool[np.ndarray, "*grid"],
    reference: Bool[np.ndarray, "*grid"],
    *,
    distance_px: float = 2.0,
) -> float:
    """The share of the prediction that lies farther than `distance_px` from the reference, from 0 to 1.

    Pixels count from centre to centre, along all axes of the array alike; measure a volume with thick slices slice
    by slice. NaN for an empty prediction; 1 for an empty reference.
    """
    parts = ndimage.find_objects(prediction.view(np.uint8))
    if not parts:
        return math.nan
    # A reference that is farther away than this cannot hold anything.
    margin = math.ceil(distance_px)
    box = tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in parts[0])
    predicted, target = prediction[box], reference[box]
    if not target.any():
        return 1.0
    distances = np.asarray(ndimage.distance_transform_edt(~target))
    return int((distances[predicted] > distance_px).sum()) / int(predicted.sum())


def is_tiny(reference: Bool[np.ndarray, "row column"], *, share: float = TINY_SHARE) -> bool:
    """Whether the tight box of the target covers at most `share` of the image; False where there is no target."""
    parts = ndimage.find_objects(reference.view(np.uint8))
    if not parts:
        return False
    return math.prod(side.stop - side.start for side in parts[0]) <= share * reference.size


def is_tiny_error(
    prediction: Bool[np.ndarray, "*grid"],
    reference: Bool[np.ndarray, "*grid"],
    *,
    leak_above: float = LEAK_LIMIT,
    dice_below: float = DICE_LIMIT,
) -> bool:
    """Whether a tiny target counts as failed: the prediction leaks, or misses it, or is empty.

    The mean over a set's tiny targets is its tiny-target error rate. The thresholds are ours; the literature gives
    the rate without them. A prediction where there is no target is an error, and none where there is none is not.
    """
    return must_be_redone(
        dice=dice_of(prediction, reference),
        leak=leak_ratio(prediction, reference),
        leak_above=leak_above,
        dice_below=dice_below,
    )


def must_be_redone(*, dice: float, leak: float, leak_above: float = LEAK_LIMIT, dice_below: float = DICE_LIMIT) -> bool:
    """Whether a result with these numbers is an error: it leaks, or misses its target, or is empty.

    A leak of NaN says that nothing was predicted, and a Dice of NaN that nothing was there, either: no error.
    """
    if math.isnan(leak):
        return not math.isnan(dice)
    return leak > leak_above or dice < dice_below
