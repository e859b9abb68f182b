"""Prompts in a JSON file: several objects at once, and every result replayed.

    {
      "version": 1,
      "objects": [
        {"label": 1, "name": "liver", "box": [92, 110, 301, 330], "slice": 41, "z": [20, 63]},
        {"label": 2, "name": "kidneys", "boxes": [[60, 200, 110, 260], [300, 205, 352, 262]], "slice": 41},
        {"label": 3, "points": [[210, 180], [230, 190, 0]], "slice": 41},
        {"label": 4, "scribble": "stroke.png"},
        {"label": 5, "mask": "first-guess.png"}
      ]
    }

Everything is in pixels (x, y) of the slice, see `palpate.prompts.types`. A box has four numbers (x_min, y_min, x_max,
y_max) or, in a volume, six (x_min, y_min, z_min, x_max, y_max, z_max), as in the npz files of the CVPR 2024 MedSAM
challenge. A point is [x, y] or [x, y, mark] with mark 1 on the object and 0 beside it. `scribble` and `mask` name a
picture, relative to the JSON file, or hold COCO's uncompressed run-length code
{"size": [rows, columns], "counts": [...]}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from palpate.errors import InputError, PromptError
from palpate.images import Image, read
from palpate.images.slices import slice_first, slicing_axis
from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble, Target, middle_of

# Finite numbers only: JSON has no NaN, but Python's reader takes it.
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Box = Annotated[list[_Number], Field(min_length=4, max_length=6)]
_Point = Annotated[list[_Number], Field(min_length=2, max_length=3)]
_Slice = Annotated[int, Field(ge=0)]

_SAME_GRID = 0.1
"""How far, in voxels, a mask's corners may lie from the image's: headers round."""


class RunLengths(BaseModel):
    """COCO's uncompressed run-length code: counts of 0 and 1 in turn, down the columns, starting with 0."""

    model_config = ConfigDict(extra="forbid")
    size: tuple[Annotated[int, Field(gt=0, le=65535)], Annotated[int, Field(gt=0, le=65535)]]
    counts: list[Annotated[int, Field(ge=0)]]


# The kind is settled before the content is checked, so that a mistake is told about the kind that was meant.
_Mark = Annotated[
    Annotated[str, Field(min_length=1), Tag("<file>")] | Annotated[RunLengths, Tag("<run lengths>")],
    Discriminator(lambda mark: "<file>" if isinstance(mark, str) else "<run lengths>"),
]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid")
    label: Annotated[int, Field(ge=1, le=65535)] | None = None
    name: str = ""
    box: _Box | None = None
    boxes: list[_Box] | None = None
    points: list[_Point] | None = None
    scribble: _Mark | None = None
    mask: _Mark | None = None
    slice: _Slice | None = None
    z: tuple[_Slice, _Slice] | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")  # the record that `palpate predict --json` prints is a prompts file
    version: Literal[1] = 1
    objects: Annotated[list[_Object], Field(min_length=1)]


def read_prompts(path: str | Path, *, axis: str | None = None, image: Image | None = None) -> list[Target]:
    """The targets of a prompts file.

    Volumes given as `scribble` or `mask` are cut along `axis`, and must lie on the grid of `image`, if that is given.

    Raises:
        PromptError: not readable, not JSON, or a field that is wrong; the message starts with its place in the file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors start files with a mark
    except OSError as error:
        raise PromptError(f"cannot read the prompts file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or lists in lists without end
        raise PromptError(f"{path} is not JSON: {error}") from error
    try:
        objects = _File.model_validate(content).objects
    except ValidationError as error:
        raise PromptError(f"{path}: {_told(error)}") from None
    targets: list[Target] = []
    for number, item in enumerate(objects):
        try:
            targets += _targets(item, label=item.label or number + 1, folder=path.parent, axis=axis, image=image)
        except InputError as error:
            raise PromptError(f"{path}: objects[{number}]: {error}") from None
    return targets


def target_to_json(target: Target) -> dict[str, Any]:
    """One target as an entry of `objects`; `read_prompts` makes the same target of it."""
    entry: dict[str, Any] = {"label": target.label}
    if target.name:
        entry["name"] = target.name
    points: list[list[float]] = []
    for prompt in target.prompts:
        if isinstance(prompt, Box):
            entry["box"] = [prompt.x_min, prompt.y_min, prompt.x_max, prompt.y_max]
        elif isinstance(prompt, Points):
            points += [[x, y, label] for (x, y), label in zip(prompt.coordinates, prompt.labels, strict=True)]
        elif isinstance(prompt, Scribble):
            strokes = prompt.points()
            points += [[x, y, label] for (x, y), label in zip(strokes.coordinates, strokes.labels, strict=True)]
        else:
            entry["mask"] = run_lengths(prompt.mask).model_dump()
    if points:
        entry["points"] = points
    if target.prompts[0].z is not None:
        entry["slice"] = target.prompts[0].z
    if target.z_range is not None:
        entry["z"] = list(target.z_range)
    return entry


def read_mark(
    path: str | Path, *, z: int | None = None, axis: str | None = None, image: Image | None = None
) -> np.ndarray:
    """A drawn picture as a 2D array of its values; of a volume, slice `z`, cut as `image` is.

    Raises:
        PromptError: a colour picture, a volume without a slice number, or one that lies elsewhere than `image`.
        FormatError: the file cannot be read.
    """
    mark = read(path)
    if mark.colour:
        raise PromptError(f"{path} is a colour picture; a scribble or mask is drawn in one channel, 0 where nothing is")
    if not mark.is_volume:
        return mark.array
    if image is not None and image.is_volume and image.knows_place and mark.knows_place:
        _require_grid(mark, image, path)
    cut = image if image is not None and image.shape == mark.shape else mark
    slices = slice_first(mark.array, slicing_axis(cut, axis))
    if z is None and len(slices) > 1:
        raise PromptError(f"{path} is a volume of {len(slices)} slices; say which one the prompt was drawn on (slice)")
    if (z or 0) >= len(slices):
        raise PromptError(f"{path} has slices 0..{len(slices) - 1}; slice {z} does not exist")
    return slices[z or 0]


def scribble_from(mark: np.ndarray, *, z: int | None = None) -> Scribble:
    """A scribble from a drawn picture: 2 is beside the object, every other value but 0 is on it."""
    negative = mark == 2
    return Scribble((mark != 0) & ~negative, negative if negative.any() else None, z=z)


def run_lengths(mask: Bool[np.ndarray, "row column"]) -> RunLengths:
    """COCO's uncompressed run-length code of a mask."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    rows, columns = mask.shape
    return RunLengths(size=(rows, columns), counts=([0] if flat[0] else []) + counts)


def from_run_lengths(code: RunLengths) -> Bool[np.ndarray, "row column"]:
    """The mask of a run-length code.

    Raises:
        PromptError: the counts do not add up to the size.
    """
    total = code.size[0] * code.size[1]
    if sum(code.counts) != total:
        raise PromptError(f"the run lengths add up to {sum(code.counts)} pixels; {code.size} needs {total}")
    values = np.arange(len(code.counts)) % 2 == 1
    return np.repeat(values, code.counts).reshape(code.size, order="F")


def _require_grid(mark: Image, image: Image, path: str | Path) -> None:
    # A mask from another tool may be cropped (3D Slicer) or flipped (dcm2niix); by number, its slices would be others.
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    far = corners * [*(extent - 1 for extent in image.shape[::-1]), 1]
    shift = np.linalg.norm(far @ (mark.affine - image.affine).T, axis=1).max()
    if mark.shape != image.shape or shift > _SAME_GRID * min(image.geometry.spacing):
        raise PromptError(
            f"{path} lies on another grid than the image (cropped, flipped or resampled); bring it to the image's grid"
        )


def _targets(item: _Object, *, label: int, folder: Path, axis: str | None, image: Image | None) -> list[Target]:
    boxes = ([item.box] if item.box is not None else []) + (item.boxes or [])
    others: list[Prompt] = []
    drawn_on = middle_of(item.z) if item.slice is None and item.z is not None else item.slice
    if item.points:
        marks = [point[2] if len(point) == 3 else 1 for point in item.points]
        others.append(Points([point[:2] for point in item.points], marks, z=item.slice))
    if item.scribble is not None:
        others.append(scribble_from(_mark(item.scribble, folder, drawn_on, axis, image), z=item.slice))
    if item.mask is not None:
        others.append(MaskPrompt(_mark(item.mask, folder, drawn_on, axis, image) != 0, z=item.slice))
    if len(boxes) > 1 and others:
        raise PromptError(
            "several boxes and other prompts together leave open which belong together; give each box and its points "
            "an entry of its own with the same label"
        )
    if not boxes:
        return [Target(tuple(others), label=label, name=item.name, z_range=item.z)]
    return [_box_target(numbers, tuple(others), item, label) for numbers in boxes]


def _box_target(numbers: list[float], others: tuple[Prompt, ...], item: _Object, label: int) -> Target:
    if len(numbers) == 5:
        raise PromptError(f"a box has four numbers, or six with z; this one has five: {numbers}")
    if len(numbers) == 4:
        return Target((Box(*numbers, z=item.slice), *others), label=label, name=item.name, z_range=item.z)
    x_min, y_min, z_min, x_max, y_max, z_max = numbers
    if item.z is not None:
        raise PromptError("the slice range is said twice, by six numbers in the box and by z; leave one out")
    if z_min % 1 or z_max % 1:
        raise PromptError(f"slices are whole numbers; this box goes from {z_min:g} to {z_max:g}")
    z_range = (int(z_min), int(z_max))
    return Target(
        (Box(x_min, y_min, x_max, y_max, z=item.slice), *others), label=label, name=item.name, z_range=z_range
    )


def _mark(mark: str | RunLengths, folder: Path, z: int | None, axis: str | None, image: Image | None) -> np.ndarray:
    if isinstance(mark, RunLengths):
        # A few bytes of run lengths can claim gigabytes; a slice of the image itself is what they must cover.
        if image is not None and mark.size[0] * mark.size[1] > image.array.size:
            raise PromptError(f"the run lengths claim {mark.size[0]} x {mark.size[1]} pixels, more than the image has")
        return from_run_lengths(mark).astype(np.uint8)
    return read_mark(folder / mark, z=z, axis=axis, image=image)


def _told(error: ValidationError) -> str:
    """The first mistake of a file, with its place written as a person would: `objects[2].box[3]`."""
    first = error.errors()[0]
    place = ""
    for step in first["loc"]:
        if isinstance(step, int):
            place += f"[{step}]"
        elif not step.startswith("<"):  # the kind of a mark is no part of the file
            place += f".{step}"
    others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    what = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "model_type":
        what = "an object in braces is needed"
    came = "" if first["type"] == "missing" else f"; it is {json.dumps(first['input'], default=str)[:80]}"
    return f"{place.lstrip('.') or 'the file'}: {what}{came}{others}"
