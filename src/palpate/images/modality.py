"""What kind of scanner an image comes from, when its file does not say."""

from __future__ import annotations

from dataclasses import replace
from typing import cast, get_args

import numpy as np

from palpate.errors import SettingError
from palpate.images.image import Image, Modality, ModalityOrigin

MODALITIES: tuple[Modality, ...] = get_args(Modality)

_AIR_HU = -500
"""Only CT stores values this far below zero: air is -1000 HU, the least dense tissue (lung) about -900."""


def with_modality(image: Image, modality: str | None = None, *, origin: ModalityOrigin = "given") -> Image:
    """The image with its modality settled: given, from the header, or guessed.

    `origin` says who gives the modality. The one guess: values below -500 mean CT. It is labelled as a guess; other
    greys stay `unknown`.

    Raises:
        SettingError: a modality that does not exist.
    """
    if modality is not None:
        return replace(image, modality=parse_modality(modality), modality_origin=origin)
    if image.modality != "unknown":
        return image
    if image.colour:
        return replace(image, modality=cast(Modality, "photo"), modality_origin="guessed")
    if image.array.dtype.kind in "if" and np.min(image.array) < _AIR_HU:
        return replace(image, modality=cast(Modality, "CT"), modality_origin="guessed")
    return image


def parse_modality(text: str) -> Modality:
    """A modality from its name, in upper or lower case.

    >>> parse_modality("ct")
    'CT'

    Raises:
        SettingError: a modality that does not exist.
    """
    known: dict[str, Modality] = {name.lower(): name for name in MODALITIES}
    if text.lower() not in known:
        raise SettingError(f"there is no modality {text!r}; choose one of {', '.join(MODALITIES)}")
    return known[text.lower()]
