"""What goes to the page: an image as NIfTI in RAS order, how it may be windowed, and the part of a map that changed."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np

from palpate.images.image import Image
from palpate.images.intensity import WINDOWS, AsIs, Intensity, MinMax, Percentiles, Window, intensity_for
from palpate.server.annotation import Annotation
from palpate.server.grid import RasGrid

_SAMPLE = 2_000_000
"""Voxels that the range of a large volume is estimated from."""


def nifti_of(image: Image, grid: RasGrid) -> bytes:
    """The image re-stored in closest-RAS order, as an uncompressed NIfTI-1 file; colours are RGB24."""
    import nibabel

    volume = grid.to_ras(image.array)
    if image.colour:
        rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        volume = np.ascontiguousarray(_bytes_of(volume)).view(rgb)[..., 0]
    else:
        volume = volume.astype(_stored_as(volume), copy=False)
    file: Any = nibabel.Nifti1Image(volume, grid.affine)  # pyright: ignore[reportPrivateImportUsage]
    file.header.set_xyzt_units("mm")
    stream = io.BytesIO()
    file.to_stream(stream)
    return stream.getvalue()


def window_of(image: Image, rule: Intensity | None = None) -> dict[str, Any]:
    """The range of values that is shown as black to white, and others to choose from: {low, high, presets}.

    It is what the model sees the image by: `rule`, or the one for images of this kind.
    """
    if image.colour:
        return {"low": 0.0, "high": 255.0, "presets": []}
    values = image.array.ravel()[:: max(1, image.array.size // _SAMPLE)].astype(np.float64)
    lowest, highest = float(values.min()), float(values.max())
    whole = {"name": "whole range", "low": lowest, "high": max(highest, lowest + 1e-6)}
    rule = rule or intensity_for(image)
    presets: list[dict[str, Any]] = []
    if isinstance(rule, Window):
        chosen = _preset(rule)
        presets = [_preset(window) for window in WINDOWS.values()] if image.modality == "CT" else []
        presets = presets if rule in WINDOWS.values() and presets else [chosen, *presets]
    elif isinstance(rule, Percentiles):
        inside = values[values != 0]
        low, high = np.percentile(inside if inside.size else values, [rule.low, rule.high]).tolist()
        chosen = {"name": "percentiles", "low": low, "high": high} if high > low else whole
        presets = [] if chosen is whole else [chosen]
    else:
        assert isinstance(rule, AsIs | MinMax)
        chosen = {"name": "as it is", "low": 0.0, "high": 255.0} if isinstance(rule, AsIs) else whole
    return {"low": chosen["low"], "high": chosen["high"], "presets": [*presets, whole]}


def patch_of(annotation: Annotation, window: tuple[slice, ...] | None) -> dict[str, Any] | None:
    """What is shown in a window of the array, for a client that has the rest; None if there is nothing new."""
    if window is None:
        return None
    return packed(annotation.shown(window), window, annotation.opened.grid)


def packed(values: np.ndarray, window: tuple[slice, ...], grid: RasGrid) -> dict[str, Any]:
    """Values of a window of the array, as {from, to, data} of the RAS grid: i fastest, then j, then k."""
    low = [part.start for part in window]
    high = [part.stop - 1 for part in window]
    if grid.picture:
        low, high = [0, *low], [0, *high]
    ends = np.array([grid.to_ras_index((low[0], low[1], low[2])), grid.to_ras_index((high[0], high[1], high[2]))])
    data = zlib.compress(grid.to_ras(values).astype(np.uint8).tobytes(order="F"), 1)
    return {
        "from": ends.min(axis=0).tolist(),
        "to": ends.max(axis=0).tolist(),
        "data": base64.b64encode(data).decode(),
    }


def _preset(window: Window) -> dict[str, Any]:
    low, high = window.level - window.width / 2, window.level + window.width / 2
    return {"name": window.name or f"{window.level:g}/{window.width:g}", "low": float(low), "high": float(high)}


def _bytes_of(volume: np.ndarray) -> np.ndarray:
    """Colours as 8 bits: deeper ones are stretched."""
    if volume.dtype == np.uint8:
        return volume
    values = volume.astype(np.float64)
    low, high = values.min(), values.max()
    return ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)


def _stored_as(volume: np.ndarray) -> type[np.generic]:
    """A type that viewers know and that holds all values."""
    if volume.dtype == np.uint8 or volume.dtype.kind == "b":
        return np.uint8
    if volume.dtype.kind in "iu":
        low, high = int(volume.min()), int(volume.max())
        if low >= -32768 and high <= 32767:
            return np.int16
        if volume.dtype.itemsize <= 4 and low >= -(2**31) and high < 2**31:
            return np.int32
    return np.float32
