"""Overlap of two masks.

Both measures are undefined when both masks are empty. Papers disagree on what to report then, so the caller
says it: 1 (nothing was there and nothing was found), or NaN (leave the case out of the mean).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool


def dice(
    prediction: Bool[np.ndarray, "*grid"],
    reference: Bool[np.ndarray, "*grid"],
    *,
    both_empty: float = math.nan,
) -> float:
    """Twice the intersection over the sum of the sizes (Dice 1945), from 0 to 1; `both_empty` if there is neither."""
    total = int(prediction.sum()) + int(reference.sum())
    if total == 0:
        return both_empty
    return 2 * int((prediction & reference).sum()) / total


def iou(
    prediction: Bool[np.ndarray, "*grid"],
    reference: Bool[np.ndarray, "*grid"],
    *,
    both_empty: float = math.nan,
) -> float:
    """The intersection over the union (Jaccard 1901), from 0 to 1; `both_empty` if there is neither."""
    union = int((prediction | reference).sum())
    if union == 0:
        return both_empty
    return int((prediction & reference).sum()) / union
