"""Pictures: PNG, JPEG, TIFF and BMP.

- Grey of 1, 8, 16 or 32 bits and floating-point TIFF keep their values; 1 bit becomes 0 and 1.
- Colour is RGB, even where all three channels are equal. A palette is looked up, alpha is dropped. Colour of 16 bits
  a channel is read with 8, because Pillow has no more.
- A TIFF of several pages of one size and kind is a volume. A JPEG has one picture; previews in it are left alone.
- Pixels lie as they are stored. An EXIF orientation is **not** applied: a mask must fit the stored pixels, whoever
  opens them next.
- A pixel is 1 mm: the resolution in such files speaks about printing.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile

from palpate.errors import FormatError, OutputError
from palpate.images.formats import Mask, check_size
from palpate.images.formats.labels import unsigned_labels
from palpate.images.formats.payload import opened
from palpate.images.image import Image, Source

# Only these parsers may look at the bytes, whatever the name says. Pillow knows many more, some of which start
# other programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

_GREY = {"1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_GREY_WITH_ALPHA = {"LA", "La"}

_SAMPLE_FORMAT = 339
"""The TIFF tag that tells signed from unsigned integers: 1 unsigned, 2 signed."""
_BITS_PER_SAMPLE = 258

_BYTES = 4
"""What Pillow needs for a pixel at most."""

# Pillow's parsers raise nearly anything on hostile bytes: OSError and SyntaxError for what they notice; the others
# come from arithmetic and look-ups on values that were not checked. Warning: "Truncated File Read", made an error.
_PARSER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, AttributeError, RuntimeError),
    *(OverflowError, ZeroDivisionError, MemoryError, NotImplementedError, struct.error, zlib.error, UserWarning),
)


def read(path: Path) -> Image:
    """Read a picture, or a TIFF stack as a volume.

    Raises:
        FormatError: not such a picture, damaged, truncated, too large, or a TIFF whose pages differ.
    """
    try:
        with opened(path) as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # damaged EXIF: not our pixels
            warnings.filterwarnings("error", "Truncated File Read", UserWarning)
            warnings.filterwarnings("error", category=PILImage.DecompressionBombWarning)
            with PILImage.open(file, formats=_FORMATS) as picture:
                check_size(picture.size[::-1], _BYTES, path=path)
                array = _pages(picture, path) if picture.format == "TIFF" else _pixels(picture)
                colour = picture.mode not in _GREY | _GREY_WITH_ALPHA
    except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning) as error:
        raise FormatError(
            f"{path} claims more than {PILImage.MAX_IMAGE_PIXELS} pixels; crop it, or cut it into tiles"
        ) from error
    except PILImage.UnidentifiedImageError as error:
        raise FormatError(f"{path} is not a PNG, JPEG, TIFF or BMP picture, or its header is damaged") from error
    except _PARSER_ERRORS as error:
        raise FormatError(f"{path} is damaged or truncated ({error}); copy or export it again") from error
    source = Source(path, "raster")
    if colour:
        return Image(array, modality="photo", modality_origin="guessed", colour=True, source=source)
    return Image(array, source=source)


def write_mask(path: Path, mask: Mask) -> None:
    """Write a label map of one slice as a grey PNG of 8 bits, or of 16 if there are more than 255 labels."""
    labels = unsigned_labels(mask)
    if labels.ndim == 3:
        if len(labels) > 1:
            raise OutputError(f"a PNG holds one slice and this mask has {len(labels)}; choose .nii.gz or pass --slice")
        labels = labels[0]
    text = PngInfo()
    text.add_itxt("Description", mask.description)
    PILImage.fromarray(labels).save(path, format="PNG", pnginfo=text)


def _pixels(picture: PILImage.Image) -> np.ndarray:
    """The current page, as stored; (y, x) or (y, x, 3)."""
    if picture.mode in _GREY_WITH_ALPHA:
        return np.array(picture.convert("LA").getchannel("L"))
    if picture.mode not in _GREY:
        return np.array(picture.convert("RGB"))
    array = np.array(picture)
    if array.dtype == bool:
        return array.astype(np.uint8)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _pages(picture: PILImage.Image, path: Path) -> np.ndarray:
    """All pages of a TIFF: one is a picture, several are a volume."""
    assert isinstance(picture, TiffImageFile)
    count, size, mode = picture.n_frames, picture.size, picture.mode
    picture.seek(0)
    first = _signed_as_stored(_pixels(picture), picture)
    if count == 1:
        return first
    check_size((count, *first.shape), first.itemsize, path=path)
    volume = np.empty((count, *first.shape), first.dtype)
    volume[0] = first
    for page in range(1, count):
        picture.seek(page)
        if (picture.size, picture.mode) != (size, mode):
            raise FormatError(
                f"page {page + 1} of {path} is {picture.size[0]} x {picture.size[1]} {picture.mode} and the first is "
                f"{size[0]} x {size[1]} {mode}, so they are no stack; export the one page to segment"
            )
        volume[page] = _signed_as_stored(_pixels(picture), picture)
    return volume


def _signed_as_stored(array: np.ndarray, picture: TiffImageFile) -> np.ndarray:
    # Pillow keeps int8 in its unsigned mode and uint32 in its signed one, so the bits are right and the sign is not.
    signed = picture.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if picture.mode == "L" and signed:
        return array.view(np.int8)
    if picture.mode == "I" and not signed and picture.tag_v2.get(_BITS_PER_SAMPLE, (0,))[0] == 32:
        return array.view(np.uint32)
    return array
