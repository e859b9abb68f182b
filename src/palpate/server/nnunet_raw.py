"""Finished cases as a raw dataset of nnU-Net (v2), ready for `nnUNetv2_plan_and_preprocess`.

- `DatasetXXX_Name` with imagesTr, labelsTr and dataset.json; our records lie beside them, where nnU-Net does not look.
- Labels are numbered 1, 2, 3, ... as nnU-Net wants; dataset.json keeps under `original_values` what they were.
- Pictures of 8 bits (grey ones also of 16) become PNG. All else becomes NIfTI, colour as three channels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from palpate.errors import OutputError, SettingError
from palpate.images.formats import Mask, nifti, write_mask
from palpate.images.geometry import Geometry
from palpate.images.image import Image
from palpate.server.finished import Finished, classes_of

_MODALITIES = ("CT", "MR", "US", "PET", "XR")
_RESERVED = ("background", "ignore")
"""Labels that mean something to nnU-Net."""


def nnunet_files(finished: Sequence[Finished], folder: Path, *, number: int, name: str) -> Generator[tuple[Path, str]]:
    """The files of the dataset one after the other, each with its name in the archive.

    Raises:
        SettingError: a number or a name that nnU-Net does not take.
        OutputError: nothing is drawn, one label has two names, or cases that make no one dataset: pictures and
            volumes, or grey and colour.
    """
    if not 1 <= number <= 999 or not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
        raise SettingError(
            f"nnU-Net's datasets are called Dataset001_Name to Dataset999_Name, and {number}, {name!r} does not make "
            "such a name; use a number of 1 to 999 and letters, digits, - and _"
        )
    root = f"Dataset{number:03d}_{name}"
    classes = classes_of(finished, reserved=_RESERVED)
    ending, channels = _form(finished)
    new = {value: place for place, value in enumerate(classes, start=1)}
    for one in finished:
        for channel, path in enumerate(_image_files(one.image, ending, folder)):
            yield path, f"{root}/imagesTr/{one.case}_{channel:04d}{ending}"
        path = folder / f"labels{ending}"
        # Without its source: image and labels then say their place in the very same words.
        geometry = Geometry(one.image.shape, one.image.affine)
        write_mask(path, Mask(_renumbered(one.labels, new), geometry, description=one.mask.description))
        yield path, f"{root}/labelsTr/{one.case}{ending}"
    described = {
        "name": name,
        "description": "made with palpate",
        "channel_names": {str(place): channel for place, channel in enumerate(channels)},
        "labels": {"background": 0, **{title: new[value] for value, title in classes.items()}},
        "numTraining": len(finished),
        "file_ending": ending,
        "original_values": {title: value for value, title in classes.items()},
    }
    path = folder / "dataset.json"
    path.write_text(json.dumps(described, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    yield path, f"{root}/dataset.json"


def records_folder(*, number: int, name: str) -> str:
    """Where the records of the cases lie in the archive."""
    return f"Dataset{number:03d}_{name}/prompts/"


def _form(finished: Sequence[Finished]) -> tuple[str, list[str]]:
    """The ending of the files, and what their channels are called."""
    kinds = {(one.image.is_volume, one.image.colour) for one in finished}
    if len(kinds) > 1:
        first, other = (next(one.case for one in finished if _kind(one) == kind) for kind in sorted(kinds)[:2])
        what = "pictures and volumes" if len({is_volume for is_volume, _ in kinds}) > 1 else "grey and colour"
        raise OutputError(
            f"nnU-Net's cases must all be alike, and these are {what} ({first}, {other}); export them apart, "
            "one by one if need be"
        )
    ((is_volume, colour),) = kinds
    deep = (np.uint8,) if colour else (np.uint8, np.uint16)
    ending = ".png" if not is_volume and all(one.image.array.dtype in deep for one in finished) else ".nii.gz"
    if colour:
        return ending, ["R", "G", "B"]
    modalities = {one.image.modality for one in finished}
    modality = modalities.pop() if len(modalities) == 1 else ""
    # The name decides how nnU-Net normalises; `CT` for images that are not all CT would be wrong for all.
    return ending, [modality if modality in _MODALITIES else "image"]


def _kind(one: Finished) -> tuple[bool, bool]:
    return one.image.is_volume, one.image.colour


def _image_files(image: Image, ending: str, folder: Path) -> Generator[Path]:
    path = folder / f"image{ending}"
    if ending == ".png":
        PILImage.fromarray(image.array).save(path)
        yield path
        return
    for array in np.moveaxis(image.array, -1, 0) if image.colour else [image.array]:
        nifti.write_grey(path, array, image.affine)
        yield path


def _renumbered(labels: np.ndarray, new: dict[int, int]) -> np.ndarray:
    most = max(int(labels.max(initial=0)), *new)
    table = np.zeros(most + 1, dtype=np.uint16)
    for value, place in new.items():
        table[value] = place
    return table[labels.astype(np.int64, copy=False)]
