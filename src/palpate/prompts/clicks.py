"""A user who corrects: where would somebody click who sees the prediction beside the truth?

    points = None
    while (click := next_click(prediction, reference)) is not None:
        points = added(points, click)
        prediction = ...

That simulated user, who clicks into the middle of the largest error, is the one that interactive segmentation is
measured with since Xu et al. 2016 ("Deep Interactive Object Selection"), RITM and SAM included.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as connected_components

from palpate.errors import PromptError
from palpate.prompts.types import Points


def next_click(
    prediction: Bool[np.ndarray, "row column"],
    reference: Bool[np.ndarray, "row column"],
    *,
    rng: np.random.Generator | None = None,
    z: int | None = None,
) -> Points | None:
    """One point in the largest error: label 1 where the object was missed, 0 where too much was taken, else None.

    An error is an 8-connected region of wrong pixels of one kind; of equally large ones, missed regions come first,
    then the first in row order. The click goes to the pixel farthest from the region's border (Euclidean; the image
    ends there, too), of several to the first in row order. With `rng` it goes to a random pixel at least half as deep.
    """
    missed, too_much = largest_part(reference & ~prediction), largest_part(prediction & ~reference)
    region, label = (missed, 1) if missed.sum() >= too_much.sum() else (too_much, 0)
    if not region.any():
        return None
    deep = depth(region)
    if rng is None:
        place = np.argmax(deep)
    else:
        place = rng.choice(np.flatnonzero(deep >= deep.max() / 2))
    y, x = divmod(int(place), region.shape[1])
    return Points([(x, y)], [label], z=z)


def added(points: Points | None, click: Points) -> Points:
    """The points with one more click, which comes last.

    Raises:
        PromptError: they lie on different slices.
    """
    if points is None:
        return click
    if points.z != click.z:
        raise PromptError(f"a click on slice {click.z} does not join points on slice {points.z}; keep to one slice")
    return Points(points.coordinates + click.coordinates, points.labels + click.labels, z=click.z)


def largest_part(mask: Bool[np.ndarray, "row column"]) -> Bool[np.ndarray, "row column"]:
    """The 8-connected part with the most pixels; of equally large ones the first in row order. Empty if the mask is."""
    parts = np.zeros(mask.shape, dtype=np.int32)
    connected_components(mask, structure=np.ones((3, 3)), output=parts)
    if parts.max() <= 1:
        return mask
    return parts == np.bincount(parts[mask]).argmax()


def depth(mask: Bool[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """How far each pixel of the mask lies from the nearest pixel beside it; beyond the image all are beside it.

    A mask of one pixel is 1 deep; beside the mask it is 0.
    """
    deep = np.zeros(mask.shape)
    if mask.any():
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        deep[part] = np.asarray(distance_transform_edt(np.pad(mask[part], 1)))[1:-1, 1:-1]
    return deep
