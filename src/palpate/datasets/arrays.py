"""Single slices and label maps in .npy files, as MedSAM's preparation writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from palpate.errors import FormatError, ImageError
from palpate.images.formats.npz import read_npy
from palpate.images.image import Image, Source


def read_image(path: Path) -> Image:
    """One picture.

    Raises:
        FormatError: no array, damaged, too large, or Python objects inside.
        ImageError: not finite, or neither in [0, 1] nor of 8 bits.
    """
    array = read_npy(path)
    colour = array.ndim == 3 and array.shape[-1] == 3
    if array.ndim != 2 and not colour:
        raise FormatError(f"{path} has shape {array.shape}; one picture (y, x) or (y, x, 3) is needed")
    image = Image(array, colour=colour, source=Source(path, "npy"))
    if array.dtype != np.uint8:
        if array.dtype.kind != "f" or float(array.min()) < 0 or float(array.max()) > 1:
            raise ImageError(
                f"{path} holds {array.dtype} from {array.min():g} to {array.max():g}; MedSAM's folders hold numbers "
                "from 0 to 1, or 8 bits"
            )
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    if colour and (array == array[..., :1]).all():
        return replace(image, array=np.ascontiguousarray(array[..., 0]), colour=False)
    return replace(image, array=array)


def read_labels(path: Path) -> Image:
    """One label map.

    Raises:
        FormatError: no array, damaged, too large, or Python objects inside.
        ImageError: not two-dimensional, or not finite.
    """
    return Image(read_npy(path), source=Source(path, "npy"))
