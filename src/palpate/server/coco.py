"""Finished cases as a COCO dataset: one JSON with a mask for each label on each slice, and the pictures it speaks of.

- A picture is one image; a volume is one for each slice of its first axis on which something is drawn, and its file
  name says which (`CASE_z0012.png`, counted from 0).
- Masks are run-length encoded without compression, as COCO's own are: `counts` run down the columns and begin with
  background. Category numbers are the labels' values. `iscrowd` is 0: each mask is one object.
- The pictures are 8 bits deep, as the model sees them (a window for CT, percentiles for MR): COCO's readers know no
  others.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image as PILImage

from palpate.errors import ImageError
from palpate.images.image import Image
from palpate.images.intensity import intensity_for, to_uint8
from palpate.server.finished import Finished, classes_of


def coco_files(finished: Sequence[Finished], folder: Path) -> Generator[tuple[Path, str]]:
    """The files of the dataset one after the other, each with its name in the archive.

    Raises:
        OutputError: nothing is drawn, or one label has two names.
    """
    classes = classes_of(finished)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for one in finished:
        pixels = _pixels(one.image)
        depth = one.labels.reshape(-1, *one.labels.shape[-2:])
        for z, labels in enumerate(depth):
            if one.image.is_volume and not labels.any():
                continue
            name = f"{one.case}_z{z:04d}.png" if one.image.is_volume else f"{one.case}.png"
            height, width = labels.shape
            entry: dict[str, Any] = {"id": len(images) + 1, "file_name": name, "height": height, "width": width}
            images.append(entry | {"case": one.case} | ({"slice": z} if one.image.is_volume else {}))
            for value in np.unique(labels[labels != 0]).tolist():
                mask = labels == value
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": int(value),
                        "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                        "area": int(mask.sum()),
                        "bbox": _box(mask),
                        "iscrowd": 0,
                    }
                )
            PILImage.fromarray(pixels[z] if one.image.is_volume else pixels).save(folder / "picture.png")
            yield folder / "picture.png", f"images/{name}"
    described = {
        "info": {"description": "made with palpate", "version": "1.0"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": value, "name": name, "supercategory": ""} for value, name in classes.items()],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(described, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    yield path, "annotations.json"


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """How long the runs of background and mask are in turn, column by column; background comes first.

    >>> run_lengths(np.array([[False, True], [True, True]]))
    [1, 3]
    """
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


def _box(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """The box around a mask as x, y, width, height: a single pixel is 1 wide and 1 high."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def _pixels(image: Image) -> UInt8[np.ndarray, "..."]:
    try:
        return to_uint8(image, intensity_for(image))
    except ImageError:  # all of one value: there is nothing to see, and somebody drew on it all the same
        return image.array if image.array.dtype == np.uint8 else np.zeros(image.array.shape, dtype=np.uint8)
