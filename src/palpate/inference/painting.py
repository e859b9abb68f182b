"""From the masks of many objects to one label map, where each voxel belongs to one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int64, Shaped

from palpate.inference.propagation import Track

Overlap = Literal["last", "first", "score"]
"""Who gets a voxel that several objects claim: the last given, the first, or the one of the highest predicted IoU."""


def paint(
    tracks: Sequence[Track], labels: Sequence[int], *, shape: tuple[int, int, int], overlap: Overlap
) -> tuple[Shaped[np.ndarray, "slice row column"], Int64[np.ndarray, " object"]]:
    """The label map, and how many of its voxels each object got.

    `shape` is (slice, row, column). The map is uint8, or uint16 where a label is above 255. Objects of one label
    share it; a voxel that two of them claim is counted for one.
    """
    # Later paint covers earlier paint, so each policy is an order.
    order = list(range(len(tracks)))
    if overlap == "first":
        order.reverse()
    elif overlap == "score":
        order.sort(key=lambda i: score(tracks[i]))
    painted = np.zeros(shape, dtype=np.uint8 if max(labels) <= 255 else np.uint16)
    voxels = np.zeros(len(tracks), dtype=np.int64)
    label_of = np.array([0, *labels], dtype=painted.dtype)
    # Slice by slice: a map of owners for a whole volume would take four times the memory of its labels.
    for z in {z for track in tracks for z in track.masks}:
        owner = np.zeros(shape[1:], dtype=np.int32)
        for i in order:
            if z in tracks[i].masks:
                mask = tracks[i].masks[z]
                owner[mask.window][mask.inside] = i + 1
        painted[z] = label_of[owner]
        voxels += np.bincount(owner.ravel(), minlength=len(tracks) + 1)[1:]
    return painted, voxels


def score(track: Track) -> float:
    """The predicted IoU of an object, the mean over the slices it was found on; 0 if it was not found."""
    found = [mask.predicted_iou for mask in track.masks.values() if mask.area]
    return float(np.mean(found)) if found else 0.0
