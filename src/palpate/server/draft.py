"""One object while it is being drawn: what the person and the model did, in order, and the mask that came of it.

A draft never changes; every verb gives a new one. Its mask follows from its steps alone, so that a draft can be made
again from a journal or a file:

- a look (`Step`) at one slice puts the model's mask for all prompts of that slice in place of what was there;
- a look that is carried along a range does so on every slice of it, but for those that were prompted by hand before;
- a stroke adds or removes what it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from jaxtyping import Bool

from palpate.errors import PromptError
from palpate.images.slices import slice_first
from palpate.inference.session import Progress
from palpate.prompts.file import RunLengths, from_run_lengths, run_lengths
from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble, Target
from palpate.server.opened import OpenImage
from palpate.server.strokes import Stroke

MAX_STEPS = 2000
"""Steps of one object. A person makes a dozen."""


@dataclass(frozen=True)
class Beside:
    """What prompts go in beside: a class by its name, and the file of learned prompts with the SHA-256 of it."""

    name: str
    file: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Step:
    """One look of the model: the prompts on a slice along `axis` of the array (None for a picture).

    With a slice range, or `until_end`, the mask is carried from there. `window` is the rule that the model sees the
    image by, None the one for images of this kind (`OpenImage.session`). With `learned` the prompts go in beside what
    was learned, which is what the mask is carried by, too (`Session.find_one`).
    """

    axis: int | None
    target: Target
    until_end: bool = False
    window: str | None = None
    learned: Beside | None = None

    @property
    def carried(self) -> bool:
        """Whether it goes beyond its slice."""
        return self.until_end or self.target.z_range is not None

    @property
    def place(self) -> tuple[int | None, int]:
        """The axis and the slice that the prompts were drawn on."""
        return self.axis, self.target.z or 0


@dataclass(frozen=True, eq=False)
class Draft:
    """An object being drawn; `mask` is on the image's grid in array order, `predicted_iou` that of the last look."""

    steps: tuple[Step | Stroke, ...]
    mask: Bool[np.ndarray, "..."]
    predicted_iou: float
    notes: tuple[str, ...] = ()

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Draft:
        """Nothing drawn yet, on an image of that shape."""
        return cls((), np.zeros(shape, dtype=bool), 0.0)

    def at(self, axis: int | None, z: int) -> Step | None:
        """The prompts on a slice, if it was prompted."""
        for step in reversed(self.steps):
            if isinstance(step, Step) and not step.carried and step.place == (axis, z):
                return step
        return None

    @property
    def last_prompted(self) -> Step | None:
        """The slice that was prompted last."""
        for step in reversed(self.steps):
            if isinstance(step, Step) and not step.carried:
                return step
        return None

    def prompted(
        self,
        opened: OpenImage,
        axis: int | None,
        target: Target,
        *,
        window: str | None = None,
        learned: Beside | None = None,
    ) -> Draft:
        """With more prompts on a slice; its mask is made anew from all prompts there, by this window and beside this.

        A box takes the place of the box before, as a mask does; points and scribbles are added.

        Raises:
            PromptError: prompts that make no sense on this image; UnsupportedPrompt: not for this model.
            InputError: what was learned is not there.
        """
        before = self.at(axis, target.z or 0)
        prompts = _joined(() if before is None else before.target.prompts, target.prompts)
        step = Step(axis, replace(target, prompts=prompts), window=window, learned=learned)
        others = tuple(other for other in self.steps if other is not before)
        return replace(self, steps=others)._with(opened, step)

    def propagated(
        self,
        opened: OpenImage,
        axis: int | None,
        first: int,
        last: int,
        *,
        until_end: bool = False,
        progress: Progress | None = None,
    ) -> Draft:
        """Carried from the slice along `axis` that was prompted last through the slices first..last, both included.

        With `until_end` it stops where the object seems to end. `progress` hears of every slice; what it raises ends
        the way, and the draft stays as it is.

        Raises:
            PromptError: nothing was prompted along this axis, or the range does not hold that slice.
        """
        start = next(
            (
                step
                for step in reversed(self.steps)
                if isinstance(step, Step) and not step.carried and step.axis == axis
            ),
            None,
        )
        if start is None or not opened.image.is_volume:
            raise PromptError(
                "there is nothing to carry through the volume; draw a box or a point on a slice of this plane first"
            )
        target = replace(start.target, z_range=(first, last))
        step = Step(axis, target, until_end, start.window, start.learned)
        return self._with(opened, step, progress=progress)

    def stroked(self, opened: OpenImage, stroke: Stroke) -> Draft:
        """With what a brush added, or an eraser removed.

        Raises:
            PromptError: as `Stroke.touched`.
        """
        where = stroke.touched(opened.image.geometry)  # first: it tells of a slice that does not exist
        mask = self.mask.copy()
        slices = slice_first(mask if opened.image.is_volume else mask[None], stroke.axis)
        slices[stroke.z][where] = stroke.tool == "brush"
        return replace(self, steps=self._more(stroke), mask=mask)

    def replayed(self, opened: OpenImage, *, progress: Progress | None = None) -> Draft:
        """The same steps once more, from nothing."""
        draft = Draft.empty(opened.image.shape)
        for step in self.steps:
            draft = (
                draft.stroked(opened, step)
                if isinstance(step, Stroke)
                else draft._with(opened, step, progress=progress)
            )
        return draft

    def _with(self, opened: OpenImage, step: Step, *, progress: Progress | None = None) -> Draft:
        # Checked first: a look takes a while.
        steps = self._more(step)
        with opened.lock:
            if step.learned is None:
                session = opened.session(step.axis, step.window)
                found = session.predict_all([step.target], until_end=step.until_end, progress=progress)
            else:
                session = opened.session(step.axis, step.window, step.learned.sha256)
                target = replace(step.target, name=step.learned.name)
                found = session.find_one(target, until_end=step.until_end, progress=progress)
        mask = self.mask.copy()
        if step.axis is None:
            mask[...] = found.mask
        else:
            # Only the slices that count are looked at: a volume has a hundred times their pixels.
            ours, theirs = slice_first(mask, step.axis), slice_first(found.labels, step.axis)
            z = step.target.z or 0
            first, last = step.target.z_range or ((0, len(ours) - 1) if step.until_end else (z, z))
            by_hand = {
                other.target.z
                for other in self.steps
                if isinstance(other, Step) and not other.carried and other.axis == step.axis and other.target.z != z
            }
            for number in range(first, last + 1):
                if not step.carried or number not in by_hand:
                    ours[number] = theirs[number] > 0
        return Draft(steps, mask, found.predicted_iou, found.notes)

    def _more(self, step: Step | Stroke) -> tuple[Step | Stroke, ...]:
        if len(self.steps) >= MAX_STEPS:
            raise PromptError(f"an object of {MAX_STEPS} steps is enough; accept it, and go on with a brush")
        return (*self.steps, step)


def _joined(before: tuple[Prompt, ...], more: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """All prompts on one slice, at most one of each kind."""
    kept: dict[type[Prompt], Prompt] = {}
    for prompt in (*before, *more):
        old = kept.get(type(prompt))
        if isinstance(prompt, Points) and isinstance(old, Points):
            prompt = Points((*old.coordinates, *prompt.coordinates), (*old.labels, *prompt.labels), z=prompt.z)
        elif isinstance(prompt, Scribble) and isinstance(old, Scribble):
            prompt = _both(old, prompt)
        kept[type(prompt)] = prompt
    return tuple(kept.values())


def _both(old: Scribble, new: Scribble) -> Scribble:
    """Two scribbles as one; where they disagree, the later one holds."""
    new = new.inside(old.positive.shape)
    nothing = np.zeros(old.positive.shape, dtype=bool)
    beside = nothing if new.negative is None else new.negative
    positive = (old.positive & ~beside) | new.positive
    negative = ((nothing if old.negative is None else old.negative) & ~new.positive) | beside
    return Scribble(positive, negative if negative.any() else None, z=new.z)


# JSON: every prompt exactly as it was, for the journal and for `palpate replay`.


def step_to_json(step: Step | Stroke) -> dict[str, Any]:
    """A step of a draft, exactly."""
    if isinstance(step, Stroke):
        return {
            "stroke": step.tool,
            "axis": step.axis,
            "slice": step.z,
            "path": [list(point) for point in step.path],
            "radius_mm": step.radius_mm,
        }
    entry: dict[str, Any] = {"axis": step.axis, "slice": step.target.z}
    for prompt in step.target.prompts:
        if isinstance(prompt, Box):
            entry["box"] = [prompt.x_min, prompt.y_min, prompt.x_max, prompt.y_max]
        elif isinstance(prompt, Points):
            entry["points"] = [[*at, label] for at, label in zip(prompt.coordinates, prompt.labels, strict=True)]
        elif isinstance(prompt, Scribble):
            entry["scribble"] = run_lengths(prompt.positive).model_dump()
            if prompt.negative is not None:
                entry["scribble_beside"] = run_lengths(prompt.negative).model_dump()
        else:
            entry["mask"] = run_lengths(prompt.mask).model_dump()
    if step.target.z_range is not None:
        entry["range"] = list(step.target.z_range)
    if step.until_end:
        entry["until_end"] = True
    if step.window is not None:
        entry["window"] = step.window
    if step.learned is not None:
        entry["learned"] = asdict(step.learned)
    return entry


def step_from_json(entry: Mapping[str, Any], *, pixels: int) -> Step | Stroke:
    """The step that `step_to_json` wrote. `pixels` is the most that a slice of the image has.

    Raises:
        PromptError: it is not one.
    """
    try:
        if "stroke" in entry:
            return _stroke(entry)
        z = None if entry["slice"] is None else int(entry["slice"])
        read: dict[str, Callable[[], Prompt]] = {
            "box": lambda: Box(*(float(value) for value in entry["box"]), z=z),
            "points": lambda: Points([p[:2] for p in entry["points"]], [p[2] for p in entry["points"]], z=z),
            "scribble": lambda: Scribble(
                _mask(entry["scribble"], pixels),
                _mask(entry["scribble_beside"], pixels) if "scribble_beside" in entry else None,
                z=z,
            ),
            "mask": lambda: MaskPrompt(_mask(entry["mask"], pixels), z=z),
        }
        # In the order they were given in: the same prompts in another order are the same, but their JSON is not.
        prompts = tuple(read[kind]() for kind in entry if kind in read)
        first_last = cast("list[int] | None", entry.get("range"))
        z_range = None if first_last is None else (int(first_last[0]), int(first_last[1]))
        axis = None if entry["axis"] is None else _axis(entry["axis"])
        window = None if entry.get("window") is None else str(entry["window"])
        learned = None if entry.get("learned") is None else _beside(entry["learned"])
        return Step(axis, Target(prompts, z_range=z_range), bool(entry.get("until_end", False)), window, learned)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:  # JSON has numbers without end
        raise PromptError(
            f"this is no step of a drawing ({type(error).__name__}: {error}): {str(entry)[:80]}"
        ) from None


def _stroke(entry: Mapping[str, Any]) -> Stroke:
    if entry["stroke"] not in ("brush", "eraser"):
        raise ValueError(f"no tool is called {entry['stroke']!r}")
    path = tuple((int(x), int(y)) for x, y in entry["path"])
    return Stroke(entry["stroke"], _axis(entry["axis"]), int(entry["slice"]), path, float(entry["radius_mm"]))


def _beside(value: Mapping[str, Any]) -> Beside:
    return Beside(str(value["name"]), str(value["file"]), str(value["sha256"]))


def _axis(value: object) -> int:
    if value not in (0, 1, 2):
        raise ValueError(f"{value!r} is no axis of an array")
    return int(cast(int, value))


def _mask(code: Any, pixels: int) -> Bool[np.ndarray, "row column"]:
    lengths = RunLengths.model_validate(code)
    # A few bytes of run lengths can claim gigabytes.
    if lengths.size[0] * lengths.size[1] > pixels:
        raise PromptError(f"the run lengths claim {lengths.size[0]} x {lengths.size[1]} pixels, more than a slice has")
    return from_run_lengths(lengths)
