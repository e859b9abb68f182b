"""How a label map came about: every accepted object with its prompts, every stroke, what was guessed or brought along.

A record is what an export carries beside its masks, and what `palpate replay` makes the same masks from. It holds no
pixels of the image, only a hash that tells whether it is the same one.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from palpate.errors import InputError, PromptError
from palpate.images.image import Image
from palpate.images.slices import slice_first
from palpate.server.annotation import DRAFT, Annotation, erase, paint, rules_from_json
from palpate.server.draft import Draft, step_from_json
from palpate.server.opened import OpenImage
from palpate.server.strokes import Stroke

VERSION = 1


def image_hash(image: Image) -> str:
    """SHA-256 of an image's values and place."""
    digest = hashlib.sha256(f"{image.array.dtype.str} {image.array.shape} {image.colour}\0".encode())
    digest.update(np.ascontiguousarray(image.array).data)
    digest.update(np.ascontiguousarray(image.affine.round(6)).tobytes())
    return digest.hexdigest()


def map_hash(labels: UInt8[np.ndarray, "..."]) -> str:
    """SHA-256 of a label map's values in array order."""
    return hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest()


def record_of(
    annotation: Annotation, *, image_name: str, names: Mapping[int, str], made_by: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of a case, ready for JSON. `made_by` says which model and runtime computed."""
    actions: list[dict[str, Any]] = []
    for action in annotation.log:
        if action.kind == "accept" or (action.kind == "stroke" and action.body["label"] is not None):
            actions.append({"kind": action.kind, **action.body})
        elif action.patch is not None:  # a guess, or a map that was brought along: not to be made again, so it is here
            place = {"start": list(action.patch.start), "shape": list(action.patch.after.shape)}
            data = base64.b64encode(zlib.compress(action.patch.after.tobytes(), 9)).decode()
            actions.append({"kind": action.kind, **action.body, **place, "data": data})
    used = np.flatnonzero(annotation.voxels).tolist()
    return {
        "version": VERSION,
        "palpate": version("palpate"),
        "case": annotation.case,
        "image": image_name,
        "image_sha256": image_hash(annotation.opened.image),
        "shape": list(annotation.opened.image.shape),
        **made_by,
        "labels": [{"value": value, "name": names.get(value, f"label {value}")} for value in used],
        "labels_sha256": map_hash(annotation.labels),
        "actions": actions,
    }


def check_record(record: object) -> None:
    """Refuse what is no record, before a model is loaded for it.

    Raises:
        InputError: it is none, or one of a newer palpate.
    """
    content = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
    if not isinstance(content.get("actions"), list) or not isinstance(content.get("version"), int):
        raise InputError("this is no record of annotations; give the .prompts.json that an export holds")
    if content["version"] != VERSION:
        raise InputError(f"the record is of version {content['version']}, and this palpate knows {VERSION}; update it")


def learned_in(record: Mapping[str, Any]) -> dict[str, str]:
    """The files of learned prompts that objects were drawn beside: their names by their SHA-256.

    Raises:
        InputError: the record is damaged.
    """
    found: dict[str, str] = {}
    try:
        for action in record["actions"]:
            for step in action.get("steps", ()):
                if (learned := step.get("learned")) is not None:
                    found[str(learned["sha256"])] = str(learned["file"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the record is damaged ({type(error).__name__}: {error})") from None
    return found


def replayed(
    record: Mapping[str, Any], opened: OpenImage, *, progress: Callable[[int, int], None] | None = None
) -> UInt8[np.ndarray, "..."]:
    """The label map that a record describes, made again on its image, in array order.

    Raises:
        InputError: this is no record, or it is of another image.
        PromptError: a step of it makes no sense on the image.
    """
    check_record(record)
    image = opened.image
    if record.get("image_sha256") != image_hash(image):
        raise InputError(
            f"the record is of another image than this one: {record.get('image', 'its name is not there')}"
        )
    labels = np.zeros(image.shape, dtype=np.uint8)
    every = cast("list[Any]", record["actions"])
    for done, action in enumerate(every):
        try:
            _again(labels, action, opened)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError, zlib.error) as error:
            raise InputError(f"actions[{done}] of the record is damaged ({type(error).__name__}: {error})") from None
        if progress is not None:
            progress(done + 1, len(every))
    return labels


def _again(labels: UInt8[np.ndarray, "..."], action: Mapping[str, Any], opened: OpenImage) -> None:
    image = opened.image
    pixels = int(np.prod(sorted(image.shape)[-2:]))
    if "data" in action:
        window = tuple(
            slice(int(low), int(low) + int(n)) for low, n in zip(action["start"], action["shape"], strict=True)
        )
        part = labels[window]
        data = zlib.decompressobj().decompress(base64.b64decode(action["data"]), part.size + 1)
        part[...] = np.frombuffer(data, dtype=np.uint8).reshape(part.shape)
        return
    label = int(action["label"])
    if not 1 <= label < DRAFT:
        raise InputError(f"label {label} is not between 1 and {DRAFT - 1}")
    rules = rules_from_json(action)
    if action["kind"] == "accept":
        steps = tuple(step_from_json(step, pixels=pixels) for step in action["steps"])
        paint(labels, Draft(steps, np.zeros(image.shape, dtype=bool), 0.0).replayed(opened).mask, label, rules)
        return
    stroke = step_from_json(action, pixels=pixels)
    if not isinstance(stroke, Stroke):
        raise PromptError("a stroke is needed")
    where = stroke.touched(image.geometry)  # which looks whether there is such a slice
    part = slice_first(labels if image.is_volume else labels[None], stroke.axis)[stroke.z]
    if stroke.tool == "brush":
        paint(part, where, label, rules)
    else:
        erase(part, where, label)
