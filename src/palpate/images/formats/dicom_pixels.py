"""From stored pixel data to values: decompression, colour, and the rescaling that the header asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID

from palpate.errors import FormatError
from palpate.images.formats import check_size
from palpate.images.formats.dicom_geometry import functional_group

_QUANTITATIVE = ("CT", "PT")
"""Modalities whose values are measurements: MONOCHROME1 changes how they are shown, not what they are."""


def pixel_values(dataset: Dataset, *, path: Path) -> tuple[np.ndarray, bool]:
    """All frames of an instance as (frame, y, x) or, for colour, (frame, y, x, 3), and whether it is colour.

    - Grey: modality table, or slope and intercept (each frame's own) are applied. Integers stay integers where
      slope and intercept are integers (int16, else int32); otherwise values are float32.
    - MONOCHROME1 (low is white) is turned over within the range of its stored bits, so that dense tissue is bright
      as everywhere else; CT and PET are left alone, where it only concerns the display.
    - Colour comes out as RGB, whatever the file holds (YBR, palette).

    Raises:
        FormatError: pixel data that are missing, truncated, larger than may be, or that no decoder takes.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    palette = dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
    # Rescaling may need four bytes a voxel whatever the file takes.
    check_size((frames, rows, columns, 3 if palette else samples), 4, path=path)
    stored = _stored(dataset, path)
    shape = (frames, rows, columns) if samples == 1 else (frames, rows, columns, samples)
    if stored.size != np.prod(shape, dtype=np.int64):
        raise FormatError(f"the pixels of {path} make {stored.shape}, its header claims {shape}; it is damaged")
    stored = stored.reshape(shape)
    if palette:
        return _coloured(stored, dataset), True
    if samples == 1:
        return _measured(stored, dataset, path), False
    if samples != 3:
        raise FormatError(f"{path} has {samples} channels; 1 (grey) or 3 (colour) are read")
    return _native(stored), True


def joined(slices: list[np.ndarray]) -> np.ndarray:
    """Slices as one array of the narrowest kind that holds them all; float32 if any needs it."""
    kinds = {one.dtype for one in slices}
    if any(kind.kind == "f" for kind in kinds):
        return np.stack(slices, dtype=np.float32, casting="same_kind")
    return np.stack(slices)


def _stored(dataset: Dataset, path: Path) -> np.ndarray:
    syntax = UID(dataset.file_meta.TransferSyntaxUID) if hasattr(dataset, "file_meta") else UID("")
    if "PixelData" in dataset and not syntax.is_compressed:
        expected, got = get_expected_length(dataset, unit="bytes"), len(dataset.PixelData)
        if got < expected:
            raise FormatError(
                f"{path} is truncated: its header promises {expected} bytes of pixels, {got} are there; copy it again"
            )
    try:
        return dataset.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        # pydicom wraps whatever its decoders raise in RuntimeError, a missing decoder included.
        if not syntax.is_compressed:
            raise
        raise FormatError(
            f"{path} is compressed as {syntax.name}, which could not be decoded ({_first_line(error)}); install more "
            "decoders with: pip install 'palpate[dicom-codecs]'; if they are installed, the file is damaged"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(":")


def _native(array: np.ndarray) -> np.ndarray:
    """In the machine's own byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _coloured(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    colours = apply_color_lut(stored, dataset)[..., :3]  # a fourth channel would be transparency
    if colours.dtype.itemsize == 2:
        # 16-bit palettes hold either full-range entries or plain bytes, and do not say which.
        colours = colours >> 8 if colours.max() > 255 else colours
        colours = colours.astype(np.uint8)
    return colours


def _measured(stored: np.ndarray, dataset: Dataset, path: Path) -> np.ndarray:
    low, high = _stored_range(stored, dataset)
    if dataset.get("ModalityLUTSequence"):
        stored = apply_modality_lut(stored, dataset)
        low, high = 0, int(np.iinfo(stored.dtype).max)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1" and dataset.get("Modality") not in _QUANTITATIVE:
        stored = _turned_over(stored, low, high)
    stored = _native(stored)
    lines = [_line(dataset, frame, path) for frame in range(len(stored))]
    if all(line == (1.0, 0.0) for line in lines):
        return stored
    return joined([_rescaled(frame, *line) for frame, line in zip(stored, lines, strict=True)])


def _stored_range(stored: np.ndarray, dataset: Dataset) -> tuple[int, int]:
    if stored.dtype.kind == "f":
        return 0, 0
    bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 8 * stored.dtype.itemsize)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.dtype.kind == "i" else (0, 2**bits - 1)
    if int(stored.min()) < low or int(stored.max()) > high:  # a header that understates its bits
        return int(np.iinfo(stored.dtype).min), int(np.iinfo(stored.dtype).max)
    return low, high


def _turned_over(stored: np.ndarray, low: int, high: int) -> np.ndarray:
    if stored.dtype.kind == "f":
        return stored.min() + stored.max() - stored
    # The result lies in low..high again and so fits its type; only the way there needs more room.
    return (low + high - stored.astype(np.int64)).astype(stored.dtype)


def _line(dataset: Dataset, frame: int, path: Path) -> tuple[float, float]:
    """Slope and intercept of one frame."""
    holder = functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    # A modality table takes the place of the line (they exclude each other), and padding of either may be empty.
    if dataset.get("ModalityLUTSequence"):
        return 1.0, 0.0
    slope, intercept = holder.get("RescaleSlope"), holder.get("RescaleIntercept")
    slope = 1.0 if slope is None or slope == "" else float(slope)
    intercept = 0.0 if intercept is None or intercept == "" else float(intercept)
    if not (np.isfinite([slope, intercept]).all() and slope != 0):
        raise FormatError(
            f"{path} rescales its values by {slope:g} x + {intercept:g}; repair its RescaleSlope and RescaleIntercept"
        )
    return slope, intercept


def _rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        ends = [int(stored.min()) * int(slope) + int(intercept), int(stored.max()) * int(slope) + int(intercept)]
        for kind in (np.int16, np.int32):
            if np.iinfo(kind).min <= min(ends) and max(ends) <= np.iinfo(kind).max:
                return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(kind)
    # What overflows becomes infinite and is refused by Image in words that help more than numpy's warning.
    with np.errstate(over="ignore", invalid="ignore"):
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
