"""From scanner values to the 0..255 that models were trained on.

The rules are those of MedSAM's and LiteMedSAM's data preparation: a window for CT, percentiles of the non-zero
voxels for MR, ultrasound and PET, display values as they are. They work on the whole volume, so that a slice looks
the same whether it is segmented alone or with its neighbours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from palpate.errors import ImageError, SettingError
from palpate.images.image import Image


@dataclass(frozen=True)
class Window:
    """Clip to [level - width / 2, level + width / 2], then stretch what is left to 0..255. For CT, in HU."""

    level: float | int
    width: float | int
    name: str = ""

    def __str__(self) -> str:
        low, high = self.level - self.width / 2, self.level + self.width / 2
        name = f"{self.name} " if self.name else ""
        return f"{name}window {self.level:g}/{self.width:g} ({low:g}..{high:g})"


@dataclass(frozen=True)
class Percentiles:
    """Clip to two percentiles of the non-zero voxels, stretch to 0..255; voxels that were zero stay zero."""

    low: float | int = 0.5
    high: float | int = 99.5

    def __str__(self) -> str:
        return f"percentiles {self.low:g}..{self.high:g} of the non-zero voxels"


@dataclass(frozen=True)
class MinMax:
    """Stretch the whole range to 0..255. For pictures of more than 8 bits."""

    def __str__(self) -> str:
        return "minimum..maximum"


@dataclass(frozen=True)
class AsIs:
    """Keep 8-bit values."""

    def __str__(self) -> str:
        return "8-bit values as they are"


Intensity = Window | Percentiles | MinMax | AsIs

WINDOWS: dict[str, Window] = {
    window.name: window
    for window in (
        Window(40, 400, "soft-tissue"),
        Window(-600, 1500, "lung"),
        Window(400, 1800, "bone"),
        Window(40, 80, "brain"),
        # The two windows of the adaptive-perturbation paper (arXiv 2503.19700): -360..440 and -1000..400 HU.
        Window(40, 800, "abdomen-wide"),
        Window(-300, 1400, "lung-wide"),
    )
}
"""Named CT windows as level/width in HU."""

_RASTERS = ("raster", "npz")


def intensity_for(image: Image) -> Intensity:
    """The rule for an image of this modality; `palpate info` states it, `--window` overrides it.

    CT takes the soft-tissue window. MR, US and PET take percentiles. 8-bit pictures stay as they are, whatever they
    show, because somebody has chosen their display values; deeper pictures are stretched. Greys of unknown kind are
    treated like MR, unless they come from a picture file.
    """
    picture = image.source is not None and image.source.format in _RASTERS
    if image.array.dtype == np.uint8 and (picture or image.colour or image.modality == "CT"):
        return AsIs()  # Hounsfield units do not fit 8 bits, so 8-bit CT was windowed before
    if image.modality == "CT":
        return WINDOWS["soft-tissue"]
    display = image.modality in ("photo", "XR") or (image.modality == "unknown" and (picture or image.source is None))
    if display or image.colour:
        return AsIs() if image.array.dtype == np.uint8 else MinMax()
    return Percentiles()


def parse_intensity(text: str) -> Intensity:
    """The rule a person names: a window's name, `LEVEL/WIDTH`, `LOW..HIGH`, `percentiles`, `min-max` or `as-is`.

    >>> parse_intensity("-360..440")
    Window(level=40.0, width=800.0, name='')

    Raises:
        SettingError: none of these, or a width that is not positive.
    """
    if text in WINDOWS:
        return WINDOWS[text]
    if text in ("percentiles", "min-max", "as-is"):
        return {"percentiles": Percentiles(), "min-max": MinMax(), "as-is": AsIs()}[text]
    number = r"([+-]?\d+(?:\.\d+)?)"
    if match := re.fullmatch(rf"{number}/{number}", text):
        level, width = map(float, match.groups())
    elif match := re.fullmatch(rf"{number}\.\.{number}", text):
        low, high = map(float, match.groups())
        level, width = (low + high) / 2, high - low
    else:
        raise SettingError(
            f"there is no window {text!r}; choose {', '.join(WINDOWS)}, or give LEVEL/WIDTH (40/400), LOW..HIGH "
            "(-160..240), percentiles, min-max or as-is"
        )
    if width <= 0:
        raise SettingError(f"the window {text!r} has no width; its upper end must lie above its lower end")
    return Window(level, width)


def to_uint8(image: Image, intensity: Intensity) -> UInt8[np.ndarray, "..."]:
    """The image's array as 0..255, the same shape.

    Raises:
        ImageError: nothing to see, because all voxels have one value (in this window).
    """
    array = image.array
    if array.min() == array.max():
        raise ImageError(
            f"all pixels have the value {float(array.flat[0]):g}; a constant image shows nothing to segment"
        )
    if isinstance(intensity, AsIs):
        if array.dtype != np.uint8:
            raise ImageError(f"values of type {array.dtype} cannot be taken as 8-bit; use --window min-max")
        return array
    if isinstance(intensity, Window):
        low, high = intensity.level - intensity.width / 2, intensity.level + intensity.width / 2
    elif isinstance(intensity, Percentiles):
        seen = array[array != 0]
        low, high = (float(value) for value in np.percentile(seen, (intensity.low, intensity.high)))
        if low == high:  # one value beside zero, as in a mask: the contrast is to zero
            low, high = float(array.min()), float(array.max())
    else:
        low, high = float(array.min()), float(array.max())
    bottom, top = (min(max(float(value), low), high) for value in (array.min(), array.max()))
    if bottom == top:
        raise ImageError(
            f"with {intensity} all pixels get the same value (the image ranges from {array.min():g} to "
            f"{array.max():g}); choose another --window"
        )
    pixels = np.empty(array.shape, dtype=np.uint8)
    # Double precision, as in the reference preparation, but not all at once: a volume would take four times its size.
    for values, out in zip(array, pixels, strict=True):
        # Cut, not rounded, as NumPy's cast does in the reference.
        out[...] = (np.clip(values.astype(np.float64), low, high) - bottom) / (top - bottom) * 255
    if isinstance(intensity, Percentiles):
        pixels[array == 0] = 0
    return pixels
