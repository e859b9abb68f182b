"""What clients of /api/v1 ask, checked, and turned from voxels of the RAS grid into prompts of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field

from palpate.errors import PromptError
from palpate.prompts.types import Box, Points, Prompt, Scribble, Target
from palpate.server.draft import Draft
from palpate.server.grid import Plane, RasGrid, off_slice, on_slice
from palpate.server.strokes import MAX_PATH, Stroke, Tool, along

_Index = Annotated[int, Field(ge=0, lt=2**20)]
_Voxel = tuple[_Index, _Index, _Index]
_Path = Annotated[list[_Voxel], Field(min_length=1, max_length=MAX_PATH)]


Seen = Annotated[str | None, Field(max_length=40, examples=["-600/1500", "percentiles"])]
"""A rule of `palpate.images.intensity` by its name, for the model to see the image by; None: the server's."""


ClassName = Annotated[str | None, Field(max_length=200, examples=["liver"])]
"""The name of a class that was learned, for a prompt to go in beside what was learned of it; None: the prompt alone."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BoxAsked(_Asked):
    """A rectangle on a plane, given by two opposite corners, both inside."""

    kind: Literal["box"]
    plane: Plane
    from_: _Voxel = Field(alias="from")
    to: _Voxel
    window: Seen = None
    learned: ClassName = None


class PointAsked(_Asked):
    """A click on the object or, not positive, beside it."""

    kind: Literal["point"]
    plane: Plane
    at: _Voxel
    positive: bool = True
    window: Seen = None
    learned: ClassName = None


class ScribbleAsked(_Asked):
    """A freehand line over the object or, not positive, beside it; `radius` in pixels."""

    kind: Literal["scribble"]
    plane: Plane
    path: _Path
    positive: bool = True
    radius: Annotated[float, Field(ge=0, le=50)] = 1.0
    window: Seen = None
    learned: ClassName = None


PromptAsked = Annotated[BoxAsked | PointAsked | ScribbleAsked, Discriminator("kind")]


class StrokeAsked(_Asked):
    """A way of the brush or the eraser; without a label it changes the object being drawn."""

    revision: int
    tool: Tool
    plane: Plane
    path: _Path
    radius_mm: Annotated[float, Field(ge=0, le=1000)]
    label: Annotated[int, Field(ge=1, le=254)] | None = None


def target_of(asked: BoxAsked | PointAsked | ScribbleAsked, grid: RasGrid) -> tuple[int | None, Target]:
    """The array axis that the slice is cut along (None for a picture), and the prompt on it.

    Raises:
        PromptError: a voxel outside the image, or places on different slices.
    """
    axis = grid.plane_axis(asked.plane)
    if isinstance(asked, BoxAsked):
        places, z = _on_one_slice([asked.from_, asked.to], axis, grid)
        (x1, y1), (x2, y2) = places
        number = None if grid.picture else z
        prompt: Prompt = Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2), z=number)
    elif isinstance(asked, PointAsked):
        places, z = _on_one_slice([asked.at], axis, grid)
        number = None if grid.picture else z
        prompt = Points(places, [int(asked.positive)], z=number)
    else:
        places, z = _on_one_slice(asked.path, axis, grid)
        number = None if grid.picture else z
        extents = _array_shape(grid)
        rows, columns = (extent for other, extent in enumerate(extents) if other != axis)
        line = along(places, (rows, columns), (1.0, 1.0), asked.radius)
        # Networks take a stroke beside the object as points there, so that is what it becomes.
        prompt = Scribble(line, z=number)
        if not asked.positive:
            spread = prompt.points()
            prompt = Points(spread.coordinates, [0] * len(spread.coordinates), z=number)
    return (None if grid.picture else axis), Target((prompt,))


def stroke_of(asked: StrokeAsked, grid: RasGrid) -> Stroke:
    """The stroke on its slice.

    Raises:
        PromptError: a voxel outside the image, or places on different slices.
    """
    axis = grid.plane_axis(asked.plane)
    places, z = _on_one_slice(asked.path, axis, grid)
    return Stroke(asked.tool, axis, z, tuple(places), asked.radius_mm)


def prompts_told(draft: Draft, grid: RasGrid) -> list[dict[str, object]]:
    """What was drawn, as clients ask it, so that a page that comes back can show it."""
    told: list[dict[str, object]] = []
    for step in draft.steps:
        if isinstance(step, Stroke) or step.carried:
            continue
        axis, z = step.axis or 0, step.target.z or 0
        plane = grid.plane(axis)

        def voxel(x: float | int, y: float | int, *, axis: int = axis, z: int = z) -> list[int]:
            return list(grid.to_ras_index(off_slice(round(x), round(y), z, axis)))

        for prompt in step.target.prompts:
            if isinstance(prompt, Box):
                ends = np.array([voxel(prompt.x_min, prompt.y_min), voxel(prompt.x_max, prompt.y_max)])
                low, high = ends.min(axis=0).tolist(), ends.max(axis=0).tolist()
                told.append({"kind": "box", "plane": plane, "from": low, "to": high})
            elif isinstance(prompt, Points):
                for (x, y), label in zip(prompt.coordinates, prompt.labels, strict=True):
                    told.append({"kind": "point", "plane": plane, "at": voxel(x, y), "positive": label == 1})
            elif isinstance(prompt, Scribble):
                path = [voxel(x, y) for y, x in np.argwhere(prompt.positive)[:MAX_PATH].tolist()]
                told.append({"kind": "scribble", "plane": plane, "path": path, "positive": True, "radius": 0})
    return told


def _on_one_slice(
    voxels: Sequence[tuple[int, int, int]], axis: int, grid: RasGrid
) -> tuple[list[tuple[int, int]], int]:
    placed = [on_slice(grid.to_array_index(voxel), axis) for voxel in voxels]
    numbers = {z for _, _, z in placed}
    if len(numbers) > 1:
        raise PromptError(
            f"a prompt lies on one slice; this one touches {len(numbers)} of the {grid.plane(axis)} plane"
        )
    return [(x, y) for x, y, _ in placed], numbers.pop()


def _array_shape(grid: RasGrid) -> tuple[int, int, int]:
    z, y, x = (grid.shape[grid.ras_axis(axis)] for axis in (0, 1, 2))
    return z, y, x
