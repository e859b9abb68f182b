"""What a client of MONAI Label asks of a model, and the mask it gets.

Places are voxels (i, j, k) of the file that the client has; see `monai_label_files`. Two models answer:

- `palpate-2d` segments one slice of constant k, because 3D Slicer puts the answer into that plane of its segment.
- `palpate-3d` cuts the volume along its axis of acquisition, starts on the slice with most of the clicks, and carries
  the mask through the range of the region, or until the object seems to end. Other slices with clicks on the object
  are segmented from these.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from palpate.errors import InputError, PromptError
from palpate.prompts.types import Box, Points, Prompt, Target
from palpate.server.draft import Draft
from palpate.server.grid import Voxel, on_slice
from palpate.server.opened import OpenImage

MODELS = {"palpate-2d": 2, "palpate-3d": 3}
"""The models by name, and how many dimensions their answer has."""

_Number = Annotated[float, Field(allow_inf_nan=False, ge=-(2**31), le=2**31)]
_Place = Annotated[list[_Number], Field(min_length=2, max_length=3)]
_Places = Annotated[list[_Place], Field(max_length=1000)]


class Asked(BaseModel):
    """The `params` of a request to infer. Whatever else clients send is for other servers."""

    model_config = ConfigDict(extra="ignore")

    label: str = "object"
    foreground: _Places = []
    background: _Places = []
    roi: Annotated[list[_Number], Field(max_length=6)] = []
    slice: int | None = None
    result_extension: str = ".nrrd"
    result_dtype: str = "uint8"
    result_compress: bool = True

    @field_validator("foreground", "background", "roi", mode="before")
    @classmethod
    def _nothing(cls, value: object) -> object:
        return [] if value is None else value

    @field_validator("label", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return value if isinstance(value, str) and value.strip() and value.isprintable() else "object"

    @field_validator("roi")
    @classmethod
    def _whole(cls, roi: list[float]) -> list[float]:
        if len(roi) not in (0, 6):
            raise ValueError("a region has six numbers: imin, imax, jmin, jmax, kmin, kmax")
        return roi


def asked(params: str) -> Asked:
    """The parameters of a request, from their JSON.

    Raises:
        InputError: no JSON object, or values that make no sense.
    """
    try:
        return Asked.model_validate_json(params or "{}")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "params"
        raise InputError(f"{place}: {first['msg']}") from None


@dataclass(frozen=True, eq=False)
class Found:
    """The mask in array order, the slice it was started on (along k of a 2D model), and what to know about it."""

    mask: Bool[np.ndarray, "..."]
    slice: int
    predicted_iou: float
    notes: tuple[str, ...]


def segment(opened: OpenImage, asked: Asked, *, dimension: int) -> Found:
    """The object that was asked for.

    Raises:
        PromptError: nothing to go by, or places outside the image. UnsupportedPrompt: not for this model.
    """
    image = opened.image
    axis = None if not image.is_volume else 0 if dimension == 2 else opened.axis
    cut = axis or 0
    shape = image.shape if image.is_volume else (1, *image.shape)
    region = _region(asked.roi, shape)
    clicks = _by_slice([(_voxel(place, shape), 1) for place in asked.foreground], cut)
    beside = _by_slice([(_voxel(place, shape), 0) for place in asked.background], cut)
    start = _start(asked, dimension, clicks, region, cut)
    if not 0 <= start < shape[cut]:
        raise PromptError(f"slice {start} does not exist; this image has slices 0..{shape[cut] - 1}")
    if dimension == 2 or axis is None:
        clicks = {z: some for z, some in clicks.items() if z == start}
    unused = sum(len(some) for z, some in beside.items() if z not in {*clicks, start})
    draft = Draft.empty(image.shape)
    # The slice that is carried on comes last.
    for z in sorted(clicks.keys() | {start}, key=lambda z: (z == start, z)):
        prompts: list[Prompt] = []
        number = None if axis is None else z
        if region is not None and z == start:
            (y1, y2), (x1, x2) = (region[other] for other in (0, 1, 2) if other != cut)
            prompts.append(Box(x1, y1, x2, y2, z=number))
        if marks := clicks.get(z, []) + beside.get(z, []):
            prompts.append(Points([(x, y) for x, y, _ in marks], [label for _, _, label in marks], z=number))
        if not prompts or not (region is not None or clicks.get(z)):
            raise PromptError(f"nothing is marked on slice {start}; click on the object there, or give a region (roi)")
        draft = draft.prompted(opened, axis, Target(tuple(prompts)))
    if dimension == 3 and axis is not None:
        first, last = region[cut] if region is not None else (0, shape[cut] - 1)
        draft = draft.propagated(opened, axis, min(first, start), max(last, start), until_end=region is None)
    notes = draft.notes
    if unused:
        notes = (*notes, f"{unused} background points lie on slices without a click on the object and were not used")
    return Found(draft.mask, start, draft.predicted_iou, notes)


def _start(
    asked: Asked,
    dimension: int,
    clicks: dict[int, list[tuple[int, int, int]]],
    region: tuple[tuple[int, int], ...] | None,
    cut: int,
) -> int:
    if dimension == 2 and asked.slice is not None:
        return asked.slice
    if clicks:
        # Of equals, the slice that was clicked last: it is the one that is being looked at.
        latest = {z: position for position, z in enumerate(clicks)}
        count = Counter({z: len(some) for z, some in clicks.items()})
        return max(count, key=lambda z: (count[z], latest[z]))
    if region is not None:
        first, last = region[cut]
        return (first + last) // 2
    raise PromptError("there is nothing to go by; click on the object (foreground), or give a region (roi)")


def _voxel(place: list[float], shape: tuple[int, ...]) -> Voxel:
    i, j, k = (round(value) for value in (*place, 0)[:3])
    if any(not 0 <= index < extent for index, extent in zip((k, j, i), shape, strict=True)):
        raise PromptError(
            f"the voxel ({i}, {j}, {k}) lies outside the image, whose voxels go from (0, 0, 0) to "
            f"{tuple(extent - 1 for extent in shape[::-1])}"
        )
    return k, j, i


def _region(roi: list[float], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...] | None:
    """The first and last voxel along z, y and x; Slicer's minimum is a maximum where an axis runs the other way."""
    if not roi:
        return None
    region: list[tuple[int, int]] = []
    for extent, ends in zip(shape, (roi[4:6], roi[2:4], roi[0:2]), strict=True):
        first, last = sorted(round(end) for end in ends)
        if last < 0 or first >= extent:
            raise PromptError("the region (roi) lies outside the image; it is imin, imax, jmin, jmax, kmin, kmax")
        region.append((max(first, 0), min(last, extent - 1)))
    return tuple(region)


def _by_slice(marks: list[tuple[Voxel, int]], cut: int) -> dict[int, list[tuple[int, int, int]]]:
    """Columns, rows and labels by slice; the slice that was marked last comes last."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for voxel, label in marks:
        x, y, z = on_slice(voxel, cut)
        found[z] = [*found.pop(z, []), (x, y, label)]
    return found
