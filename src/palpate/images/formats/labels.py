"""Label maps as files hold them."""

from __future__ import annotations

import numpy as np

from palpate.errors import OutputError
from palpate.images.formats import Mask

_MOST = int(np.iinfo(np.uint16).max)


def unsigned_labels(mask: Mask) -> np.ndarray:
    """The labels as uint8 if they fit, otherwise as uint16.

    Every reader of every format knows these two types.

    Raises:
        OutputError: another shape than the geometry's, fractions, negative labels, or more than 65535 of them.
    """
    labels = mask.labels
    if labels.shape != mask.geometry.shape:
        raise OutputError(f"the mask has shape {labels.shape} and its image {mask.geometry.shape}; they must be equal")
    if labels.dtype.kind not in "bui":
        raise OutputError(f"the mask holds values of type {labels.dtype}; round it to integer labels first")
    least, most = int(labels.min(initial=0)), int(labels.max(initial=0))
    if least < 0 or most > _MOST:
        raise OutputError(f"the mask holds labels from {least} to {most}; 0 to {_MOST} can be written")
    return np.ascontiguousarray(labels, dtype=np.uint8 if most <= np.iinfo(np.uint8).max else np.uint16)
