"""One client's work by nnInteractive's protocol: an image, an object being drawn, and the way back.

nnInteractive's model sees a volume at once; ours see a slice. So every prompt is a look at a slice, carried from there:

- The object has a plane: that of the first box, lasso or scribble, which have a thickness of one voxel along one axis.
  Before there is any, it is that of acquisition: the axis along which voxels are clearly longer, if the client tells
  their spacing, else the one whose extent differs from two equal ones, else the first.
- A look is carried to both sides until the object seems to end. Where several slices were prompted, each slice in
  between follows the nearest of them, and those that were prompted stay as they are.
- A slice that was reached by carrying and is then corrected by a point or a scribble is looked at anew, with the box
  of the mask it had beside the correction.
- Points and scribbles of another plane count as points on the object's own slices. A box or lasso of another plane
  only changes its own slice.
- A box of some thickness along every axis is drawn on its middle slice and carried through its range, no further.
- A lasso is the box around what it encloses.
- Boxes and lassos beside the object cut away what they enclose, scribbles beside it what they cover; it stays away
  until a point or scribble says that it is the object after all. A point beside the object waits where there is
  nothing yet to take away.

Arrays have the client's axes, which are an image's (z, y, x) here, whatever the client calls them.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any, cast

import numpy as np
from jaxtyping import Bool
from scipy.ndimage import binary_fill_holes

from palpate.errors import PalpateError, PromptError, SettingError
from palpate.images.geometry import affine_from_spacing
from palpate.images.image import Image, Source
from palpate.images.slices import slice_first, slicing_axis
from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble, Target, middle_of
from palpate.server.draft import MAX_STEPS, Draft, Step
from palpate.server.grid import Voxel, off_slice, on_slice
from palpate.server.leases import Gone
from palpate.server.opened import OpenImage
from palpate.server.strokes import Stroke

Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""A part of the image: for each axis the first index and the one after the last."""

SECONDS = 40.0
"""How long a prompt may be carried; clients hang up after sixty seconds."""


class NoImage(PalpateError):
    """Something was asked about an image before there was one."""


class _Late(Exception):
    """The time for this prompt is over."""


@dataclass(frozen=True)
class Change:
    """What an action did to the mask. `bounds` is None where nothing changed; `ran` says whether the model looked."""

    ran: bool
    bounds: Bounds | None
    values: np.ndarray | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Cut:
    """A part that is not the object: all of `bounds`, or what `mask` says of it."""

    bounds: Bounds
    mask: Bool[np.ndarray, "..."] | None = None

    def holds(self, voxel: Voxel) -> bool:
        if any(not first <= index < end for index, (first, end) in zip(voxel, self.bounds, strict=True)):
            return False
        place = tuple(index - first for index, (first, _) in zip(voxel, self.bounds, strict=True))
        return self.mask is None or bool(self.mask[place])

    def apply(self, mask: Bool[np.ndarray, "..."]) -> None:
        part = mask[_window(self.bounds)]
        part[...] = False if self.mask is None else part & ~self.mask


@dataclass(frozen=True, eq=False)
class _Mark:
    """What a person drew, as prompts on slices along `axis`; `span` is the range of a box of some thickness."""

    axis: int
    prompts: tuple[Prompt, ...] = ()
    span: tuple[int, int] | None = None
    cut: _Cut | None = None
    positive: tuple[Voxel, ...] = ()


@dataclass(frozen=True, eq=False)
class _Sketch:
    """All that is known of the object but its mask."""

    steps: tuple[Step | Stroke, ...] = ()
    predicted_iou: float = 0.0
    axis: int | None = None
    spans: Mapping[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    cuts: tuple[_Cut, ...] = ()
    waiting: tuple[_Mark, ...] = ()
    """Drawn, but not looked at."""
    held: tuple[tuple[int, Points], ...] = ()
    """Points beside the object with their axis, on slices where there is nothing yet."""


@dataclass(frozen=True, eq=False)
class _Before:
    """The way back over one action: the sketch, and the part of the mask that changed, packed."""

    sketch: _Sketch
    bounds: Bounds | None
    bits: bytes


class Work:
    """What one client does. Its methods are for whoever holds `lock`, but for `stop`."""

    def __init__(
        self,
        make_opened: Callable[[Image], OpenImage],
        *,
        seconds: float | int = SECONDS,
        clock: Callable[[], float | int] = monotonic,
    ) -> None:
        self.lock = threading.RLock()
        self._make_opened = make_opened
        self._seconds = seconds
        self._clock = clock
        self._stopped = threading.Event()
        self._opened: OpenImage | None = None
        self._axis = 0
        self._mask: Bool[np.ndarray, "..."] = np.zeros((0, 0, 0), dtype=bool)
        self._sketch = _Sketch()
        self._history: list[_Before] = []
        self._dtype = np.dtype(np.uint8)
        self._blank = False

    def stop(self) -> None:
        """Nobody waits for this any more: let go of the image, and of a prediction at its next slice."""
        self._stopped.set()
        # Whoever is at work has the lock, and lets go itself.
        if self.lock.acquire(blocking=False):
            try:
                self.forget()
            finally:
                self.lock.release()

    def forget(self) -> None:
        """Let go of the image and of all that was done on it."""
        self._opened = None
        self._mask = np.zeros((0, 0, 0), dtype=bool)
        self._sketch, self._history = _Sketch(), []

    @property
    def shape(self) -> tuple[int, int, int]:
        """The image's shape.

        Raises:
            NoImage: none was sent.
        """
        z, y, x = self._ready().image.shape
        return z, y, x

    # The image.

    def set_image(self, array: np.ndarray, properties: Mapping[str, Any]) -> None:
        """Begin on an image: [channel, z, y, x], one channel of greys or three of colours.

        Of the properties, `spacing` is heeded: three lengths in the order of the axes.

        Raises:
            ImageError: nothing to see in it. PromptError: another number of axes or channels, or no spacing at all.
        """
        self.forget()
        if array.ndim != 4 or array.shape[0] not in (1, 3):
            raise PromptError(
                f"an image of shape {array.shape} came; send [channel, x, y, z] with one channel, or three for colours"
            )
        colour = array.shape[0] == 3
        values = np.moveaxis(array, 0, -1) if colour else array[0]
        if values.dtype in (np.bool_, np.float16):  # percentiles of half floats overflow
            values = values.astype(np.uint8 if values.dtype == np.bool_ else np.float32)
        spacing = _spacing(properties.get("spacing"))
        # A source that is no picture file: unknown greys are then stretched by percentiles, as those of scanners are.
        image = Image(
            np.ascontiguousarray(values),
            affine_from_spacing(spacing or (1.0, 1.0, 1.0)),
            colour=colour,
            source=Source(Path("image"), "nninteractive"),
        )
        axis = _acquired_along(image, told=spacing is not None)
        opened = self._make_opened(image)
        with opened.lock:
            opened.session(axis)  # what shows nothing is refused now
        self._axis, self._opened = axis, opened
        self._mask = np.zeros(image.shape, dtype=bool)
        self._dtype, self._blank = np.dtype(np.uint8), False

    def set_target(self, dtype: np.dtype[Any]) -> None:
        """The client has a new buffer, which it keeps itself: only the type of its values matters here."""
        self._ready()
        self._dtype, self._blank = dtype, True

    def reset(self) -> None:
        """The next object: nothing drawn, nothing to undo. The client empties its buffer itself."""
        self._sketch, self._history = _Sketch(), []
        self._mask = np.zeros_like(self._mask)
        self._blank = False

    # What a person draws.

    def point(self, voxel: Sequence[float | int], *, include: bool, run: bool) -> Change:
        """A click on the object, or beside it.

        Raises:
            NoImage: no image. PromptError: outside the image.
        """
        at = _rounded(voxel)
        if any(not 0 <= index < extent for index, extent in zip(at, self.shape, strict=True)):
            raise PromptError(f"the point {at} lies outside the image, which has the shape {self.shape}")
        axis = self._sketch.axis if self._sketch.axis is not None else self._axis
        return self._add(_points_on(axis, [at], include=include), run=run)

    def box(self, corners: Sequence[Sequence[float | int]], *, include: bool, run: bool) -> Change:
        """A box around the object, or around something that is not: half-open for each axis.

        Raises:
            NoImage: no image. PromptError: empty, or outside the image.
        """
        bounds = self._bounds(corners, clip=True)
        axis = self._plane(bounds)
        if not include:
            return self._add(_Mark(self._axis if axis is None else axis, cut=_Cut(bounds)), run=run)
        span = None
        if axis is None:
            axis = self._sketch.axis if self._sketch.axis is not None else self._axis
            span = (bounds[axis][0], bounds[axis][1] - 1)
        z = bounds[axis][0] if span is None else middle_of(span)
        (y_min, y_end), (x_min, x_end) = (bounds[other] for other in (0, 1, 2) if other != axis)
        mark = _Mark(axis, (Box(x_min, y_min, x_end - 1, y_end - 1, z=z),), span)
        return self._add(mark, run=run)

    def scribble(self, drawn: np.ndarray, where: Bounds | None, *, include: bool, run: bool) -> Change:
        """A stroke over the object, or beside it, as a mask of the image or of a part of it.

        Raises:
            NoImage: no image. PromptError: nothing drawn, or another shape.
        """
        mask, bounds = self._drawn(drawn, where)
        cut = None if include else _Cut(bounds, mask)
        plane = self._plane(bounds)
        axis = self._sketch.axis if self._sketch.axis is not None else (self._axis if plane is None else plane)
        strokes = self._on_slices(mask, bounds, axis if plane is None else plane)
        prompts: list[Prompt] = []
        voxels: list[Voxel] = []
        for stroke in strokes:
            around = plane if plane is not None else axis
            spread = stroke.points()
            voxels += [off_slice(int(x), int(y), stroke.z or 0, around) for x, y in spread.coordinates]
            if not include:
                prompts.append(Points(spread.coordinates, [0] * len(spread.coordinates), z=stroke.z))
            else:
                prompts.append(stroke)
        if plane is not None and plane != axis:
            return self._add(replace(_points_on(axis, voxels, include=include), cut=cut), run=run)
        return self._add(_Mark(axis, tuple(prompts), cut=cut, positive=tuple(voxels) if include else ()), run=run)

    def lasso(self, drawn: np.ndarray, where: Bounds | None, *, include: bool, run: bool) -> Change:
        """A line around the object, or around something that is not, filled or not.

        Raises:
            NoImage: no image. PromptError: nothing drawn, or another shape.
        """
        mask, bounds = self._drawn(drawn, where)
        plane = self._plane(bounds)
        axis = plane if plane is not None else self._sketch.axis if self._sketch.axis is not None else self._axis
        slices = slice_first(mask, axis)
        filled = np.stack([cast(np.ndarray, binary_fill_holes(one)) for one in slices])
        inside = np.ascontiguousarray(np.moveaxis(filled, 0, axis))
        if not include:
            return self._add(_Mark(axis, cut=_Cut(bounds, inside)), run=run)
        boxes = tuple(Box.around(one.positive, z=one.z) for one in self._on_slices(inside, bounds, axis))
        return self._add(_Mark(axis, boxes), run=run)

    def initial(self, drawn: np.ndarray, *, run: bool) -> Change:
        """An object that is there already, in place of all that was drawn; what is drawn next corrects it.

        With `run` the model looks at its largest slice, and carries what it sees there through the others.

        Raises:
            NoImage: no image. PromptError: another shape, or nothing in it for the model to look at.
        """
        given = self._checked(drawn, None)
        sketch, mask = _Sketch(axis=self._axis), given.copy()
        if not run:
            self._keep(sketch, mask)
            self._blank = False  # the client has put it into its buffer itself
            return Change(ran=False, bounds=None, values=None)
        if not mask.any():
            raise PromptError("the segmentation to begin with is empty; send one with voxels in it")
        slices = slice_first(mask, self._axis)
        areas = slices.sum(axis=(1, 2))
        touched = np.flatnonzero(areas)
        z = int(areas.argmax())
        support = self._ready().session(self._axis).runtime.prompts
        prompt = (
            Box.around(slices[z], z=z)
            if support.way("mask", beside_box=False) is None
            else MaskPrompt(slices[z].copy(), z=z)
        )
        mark = _Mark(self._axis, (prompt,), (int(touched[0]), int(touched[-1])))
        looked, seen, notes = self._looked(replace(sketch, waiting=(mark,)), mask)
        self._keep(looked, seen)
        self._blank = False
        return self._change(given, notes)

    def predict(self) -> Change:
        """Look at what was drawn and not looked at yet."""
        self._ready()
        if not self._sketch.waiting:
            return Change(ran=False, bounds=None, values=None)
        return self._run(self._sketch)

    def undo(self) -> Change:
        """Take back the last action, exactly; `ran` says whether there was one."""
        self._ready()
        if not self._history:
            return Change(ran=False, bounds=None, values=None)
        was = self._mask
        before = self._history.pop()
        self._sketch = before.sketch
        if before.bounds is not None:
            self._mask = was.copy()
            part = self._mask[_window(before.bounds)]
            bits = np.frombuffer(zlib.decompress(before.bits), dtype=np.uint8)
            part[...] = np.unpackbits(bits, count=part.size).reshape(part.shape)
        return self._change(was, ())

    # How it becomes a mask.

    def _add(self, mark: _Mark, *, run: bool) -> Change:
        sketch = self._sketch
        if len(sketch.waiting) + len(sketch.held) + len(sketch.cuts) + len(self._history) >= MAX_STEPS:
            raise PromptError(f"an object of {MAX_STEPS} prompts is enough; go on with the next one")
        if sketch.axis is None and any(not isinstance(one, Points) for one in mark.prompts):
            sketch = replace(sketch, axis=mark.axis)
        sketch = replace(sketch, waiting=(*sketch.waiting, mark))
        if run:
            return self._run(sketch)
        self._keep(sketch, self._mask)
        return Change(ran=False, bounds=None, values=None)

    def _run(self, sketch: _Sketch) -> Change:
        was = self._mask
        looked, mask, notes = self._looked(sketch, was)
        self._keep(looked, mask)
        return self._change(was, notes)

    def _looked(
        self, sketch: _Sketch, mask: Bool[np.ndarray, "..."]
    ) -> tuple[_Sketch, Bool[np.ndarray, "..."], tuple[str, ...]]:
        """The sketch and the mask after a look at all that waits. Nothing of this object changes."""
        until = self._clock() + self._seconds
        draft = Draft(sketch.steps, mask, sketch.predicted_iou)
        notes: dict[str, None] = {}
        for mark in sketch.waiting:
            sketch, draft = self._marked(sketch, draft, mark, until=until, notes=notes)
        mask = draft.mask.copy()
        for cut in sketch.cuts:
            cut.apply(mask)
        done = replace(sketch, steps=draft.steps, predicted_iou=draft.predicted_iou, waiting=())
        return done, mask, tuple(notes)

    def _marked(
        self, sketch: _Sketch, draft: Draft, mark: _Mark, *, until: float, notes: dict[str, None]
    ) -> tuple[_Sketch, Draft]:
        opened, axis = self._ready(), mark.axis
        cuts = tuple(cut for cut in sketch.cuts if not any(cut.holds(voxel) for voxel in mark.positive))
        sketch = replace(sketch, cuts=cuts if mark.cut is None else (*cuts, mark.cut))
        if mark.span is not None:
            sketch = replace(sketch, spans={**sketch.spans, axis: mark.span})
        slices = _by_slice(mark.prompts)
        own = sketch.axis is None or axis == sketch.axis
        for z, prompts in slices.items():
            self._check_wanted()
            held = tuple(points for along, points in sketch.held if (along, points.z) == (axis, z))
            prompts = _with_box_there(draft, axis, z, _joined_points((*held, *prompts)))
            if prompts is None:
                beside = tuple((axis, one) for one in slices[z] if isinstance(one, Points))
                sketch = replace(sketch, held=(*sketch.held, *beside))
                continue
            rest = tuple(one for one in sketch.held if (one[0], one[1].z) != (axis, z))
            sketch = replace(sketch, held=rest)
            draft = draft.prompted(opened, axis, Target(prompts))
            notes.update(dict.fromkeys(draft.notes))
            if own:
                draft = self._carried(sketch, draft, axis, z, set(slices), until=until, notes=notes)
        return sketch, draft

    def _carried(
        self, sketch: _Sketch, draft: Draft, axis: int, z: int, also: set[int], *, until: float, notes: dict[str, None]
    ) -> Draft:
        """The mask of slice `z` carried to both sides, as far as no other prompted slice is nearer."""
        slices = slice_first(draft.mask, axis)
        if not slices[z].any():
            return draft
        first, last = 0, len(slices) - 1
        span = sketch.spans.get(axis)
        if span is not None and span[0] <= z <= span[1]:
            first, last = span
        drawn = also | {
            s.target.z or 0 for s in draft.steps if isinstance(s, Step) and not s.carried and s.axis == axis
        }
        first = max([first, *((z + other) // 2 + 1 for other in drawn if other < z)])
        last = min([last, *((z + other) // 2 for other in drawn if other > z)])
        legs = [leg for leg in ((z, last), (first, z)) if leg[0] < leg[1]]
        now = self._clock()
        for number, leg in enumerate(legs, start=1):
            over = now + (until - now) * number / len(legs)
            draft = self._leg(draft, axis, z, leg, until_end=span is None, over=over, notes=notes)
        return draft

    def _leg(
        self,
        draft: Draft,
        axis: int,
        z: int,
        leg: tuple[int, int],
        *,
        until_end: bool,
        over: float,
        notes: dict[str, None],
    ) -> Draft:
        """Carried to one side, within the time there is."""
        opened, reached = self._ready(), 0

        def watch(done: int, _: int) -> None:
            nonlocal reached
            reached = done
            self._check_wanted()
            if self._clock() > over and done < leg[1] - leg[0] + 1:
                raise _Late

        try:
            carried = draft.propagated(opened, axis, *leg, until_end=until_end, progress=watch)
        except _Late:
            notes[
                f"the time for one prompt was over {reached - 1} slices away from slice {z}; prompt again where the "
                "mask ends"
            ] = None
            if reached < 2:
                return draft
            # Once more as far as it came: these slices are encoded already.
            leg = (z, z + reached - 1) if leg[0] == z else (z - reached + 1, z)
            over = float("inf")
            carried = draft.propagated(opened, axis, *leg, until_end=until_end, progress=watch)
        notes.update(dict.fromkeys(carried.notes))
        return carried

    def _check_wanted(self) -> None:
        if self._stopped.is_set():
            self.forget()
            raise Gone("this session was closed while it was working; connect again")

    # What is remembered, and what is told.

    def _keep(self, sketch: _Sketch, mask: Bool[np.ndarray, "..."]) -> None:
        bounds = _bounds_of(self._mask != mask) if mask is not self._mask else None
        bits = b"" if bounds is None else zlib.compress(np.packbits(self._mask[_window(bounds)]).tobytes(), level=1)
        self._history.append(_Before(self._sketch, bounds, bits))
        self._sketch, self._mask = sketch, mask

    def _change(self, was: Bool[np.ndarray, "..."], notes: tuple[str, ...]) -> Change:
        # A new buffer of the client is empty, whatever is drawn here.
        differs = (was != self._mask) | self._mask if self._blank else was != self._mask
        self._blank = False
        bounds = _bounds_of(differs)
        values = None if bounds is None else self._mask[_window(bounds)].astype(self._dtype)
        return Change(True, bounds, values, notes)

    # What comes from outside.

    def _ready(self) -> OpenImage:
        if self._opened is None:
            raise NoImage("there is no image yet; send one first (set_image)")
        return self._opened

    def _bounds(self, corners: Sequence[Sequence[float | int]], *, clip: bool) -> Bounds:
        if len(corners) != 3 or any(len(pair) != 2 for pair in corners):
            raise PromptError("a box is three pairs [first, one after the last], one for each axis of the image")
        pairs: list[tuple[int, int]] = []
        for (low, high), extent in zip((_rounded(pair) for pair in corners), self.shape, strict=True):
            if low >= high:
                raise PromptError(f"the box is empty: [{low}, {high}) holds nothing; its end is one after the last")
            if low >= extent or high <= 0 or (not clip and (low < 0 or high > extent)):
                raise PromptError(f"the box leaves the image: [{low}, {high}) along an axis of {extent} voxels")
            pairs.append((max(low, 0), min(high, extent)))
        return pairs[0], pairs[1], pairs[2]

    def part(self, corners: Sequence[Sequence[float | int]] | None) -> Bounds | None:
        """The part of the image that a drawing covers, if it is not all of it.

        Raises:
            NoImage: no image. PromptError: no part of it.
        """
        return None if corners is None else self._bounds(corners, clip=False)

    def _checked(self, drawn: np.ndarray, where: Bounds | None) -> Bool[np.ndarray, "..."]:
        wanted = self.shape if where is None else tuple(end - first for first, end in where)
        if drawn.shape != wanted:
            raise PromptError(f"a drawing of shape {drawn.shape} came; {wanted} is the shape of what it was drawn on")
        return drawn if drawn.dtype == np.bool_ else drawn > 0

    def _drawn(self, drawn: np.ndarray, where: Bounds | None) -> tuple[Bool[np.ndarray, "..."], Bounds]:
        """What was drawn, cut to where it is, and its place in the image."""
        mask = self._checked(drawn, where)
        tight = _bounds_of(mask)
        if tight is None:
            raise PromptError("nothing is drawn; draw at least one voxel")
        start = (0, 0, 0) if where is None else tuple(first for first, _ in where)
        moved = [(first + by, end + by) for (first, end), by in zip(tight, start, strict=True)]
        return mask[_window(tight)], (moved[0], moved[1], moved[2])

    def _plane(self, bounds: Bounds) -> int | None:
        """The axis that something flat stands on: the object's own if there is a choice; None for a body."""
        flat = [axis for axis, (first, end) in enumerate(bounds) if end - first == 1]
        for axis in (self._sketch.axis, self._axis):
            if axis in flat:
                return axis
        return flat[0] if flat else None

    def _on_slices(self, mask: Bool[np.ndarray, "..."], bounds: Bounds, axis: int) -> list[Scribble]:
        """The drawn pixels of each slice along an axis, on the whole slice."""
        rows, columns = (extent for other, extent in enumerate(self.shape) if other != axis)
        place = tuple(slice(*pair) for other, pair in enumerate(bounds) if other != axis)
        strokes: list[Scribble] = []
        for z, part in enumerate(slice_first(mask, axis), start=bounds[axis][0]):
            if part.any():
                whole = np.zeros((rows, columns), dtype=bool)
                whole[place] = part
                strokes.append(Scribble(whole, z=z))
        return strokes


def _with_box_there(draft: Draft, axis: int, z: int, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...] | None:
    """The prompts with the box of the mask that was carried there; None where only what is beside is known."""
    if draft.at(axis, z) is not None or any(isinstance(prompt, Box | MaskPrompt) for prompt in prompts):
        return prompts
    there = slice_first(draft.mask, axis)[z]
    positive = [point for prompt in prompts for point in _positive_points(prompt)]
    if not there.any():
        return prompts if positive else None
    box = Box.around(there, z=z)
    xs, ys = [box.x_min, box.x_max, *(x for x, _ in positive)], [box.y_min, box.y_max, *(y for _, y in positive)]
    return (Box(min(xs), min(ys), max(xs), max(ys), z=z), *prompts)


def _positive_points(prompt: Prompt) -> list[tuple[float, float]]:
    if isinstance(prompt, Points):
        return [at for at, label in zip(prompt.coordinates, prompt.labels, strict=True) if label]
    if isinstance(prompt, Scribble):
        ys, xs = np.nonzero(prompt.positive)
        return [(float(xs.min()), float(ys.min())), (float(xs.max()), float(ys.max()))]
    return []


def _joined_points(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """All points as one prompt: a target has at most one of each kind."""
    points = [prompt for prompt in prompts if isinstance(prompt, Points)]
    others = tuple(prompt for prompt in prompts if not isinstance(prompt, Points))
    if not points:
        return others
    coordinates = [at for prompt in points for at in prompt.coordinates]
    return (*others, Points(coordinates, [label for prompt in points for label in prompt.labels], z=points[0].z))


def _points_on(axis: int, voxels: Sequence[Voxel], *, include: bool) -> _Mark:
    prompts: list[Prompt] = []
    for voxel in voxels:
        x, y, z = on_slice(voxel, axis)
        prompts.append(Points([(x, y)], [int(include)], z=z))
    return _Mark(axis, tuple(prompts), positive=tuple(voxels) if include else ())


def _by_slice(prompts: Sequence[Prompt]) -> dict[int, tuple[Prompt, ...]]:
    found: dict[int, tuple[Prompt, ...]] = {}
    for prompt in prompts:
        found[prompt.z or 0] = (*found.get(prompt.z or 0, ()), prompt)
    return {z: _joined_points(together) for z, together in found.items()}


def _bounds_of(mask: Bool[np.ndarray, "..."]) -> Bounds | None:
    """The tight box of a mask; None if it is empty."""
    planes = mask.any(axis=(1, 2))
    ranges = np.flatnonzero(planes)
    if not len(ranges):
        return None
    first, end = int(ranges[0]), int(ranges[-1]) + 1
    seen = mask[first:end].any(axis=0)
    rows, columns = np.flatnonzero(seen.any(axis=-1)), np.flatnonzero(seen.any(axis=0))
    return (first, end), (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def _window(bounds: Bounds) -> tuple[slice, slice, slice]:
    return slice(*bounds[0]), slice(*bounds[1]), slice(*bounds[2])


def _rounded(values: Sequence[float | int]) -> Any:
    if any(not isfinite(value) or abs(value) > 2**31 for value in values):
        raise PromptError(f"{tuple(values)} are no indices of voxels")
    return tuple(round(value) for value in values)


def _spacing(told: Any) -> tuple[float, float, float] | None:
    """The lengths of a voxel in mm as (x, y, z), if the client says them; it does in the order of its axes, z first."""
    if told is None:
        return None
    try:
        lengths = [float(value) for value in told]
    except (TypeError, ValueError, OverflowError):  # JSON has numbers without end
        raise SettingError(
            f"the spacing {str(told)[:60]} is not three lengths in mm; leave it out, or correct it"
        ) from None
    if any(not isfinite(value) or not 1e-6 <= value <= 1e6 for value in lengths):
        raise SettingError(f"the spacing {str(told)[:60]} holds no lengths in mm; leave it out, or correct it")
    if len(lengths) == 2:  # of a picture, which comes as a volume of one slice
        lengths = [1.0, *lengths]
    return (lengths[2], lengths[1], lengths[0]) if len(lengths) == 3 else None


def _acquired_along(image: Image, *, told: bool) -> int:
    """The array axis that the slices lie along; clients differ in the order of their axes."""
    shape = image.shape
    if 1 in shape:
        return shape.index(1)
    if told and len({round(length, 3) for length in image.geometry.spacing}) > 1:
        return slicing_axis(image)
    for axis in (0, 1, 2):
        first, second = (extent for other, extent in enumerate(shape) if other != axis)
        if first == second != shape[axis]:
            return axis
    return 0
