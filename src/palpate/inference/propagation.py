"""Carry objects through a volume, slice by slice.

The rule is that of LiteMedSAM's 3D inference (CVPR 2024 MedSAM on Laptop, script of 2024-05-15): start on the prompted
slice, go up to the last slice and then down to the first, both included; on each slice the prompt is the tight
box of the object's own mask on the slice before, grown by three canvas pixels. Where that mask is empty, the
prompt falls back to the given box.

Two things differ from the script, neither in the masks. All objects move together, so that one slice's prompts are
decoded as one batch; and each object's mask on the slice before is taken as 0/1, whatever its label, where the
script resamples the label value itself (so that label 5 got a slightly larger box than label 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from palpate.models.frame import CanvasPrompt, Frame

PROPAGATION_MARGIN = 3
"""How far, in canvas pixels, the box of the previous slice's mask is grown."""

END_PREDICTED_IOU = 0.5
"""With `until_end`, an object has ended where the model itself expects less overlap than this."""

END_AREA = 0.1
"""With `until_end`, an object has ended where its mask is smaller than this share of the prompted slice's."""


@dataclass(frozen=True, eq=False)
class SliceMask:
    """One object's mask on one slice, stored as its bounding rectangle to keep hundreds of objects small."""

    shape: tuple[int, int]
    top: int
    left: int
    inside: Bool[np.ndarray, "row column"]
    predicted_iou: float

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "row column"], predicted_iou: float) -> SliceMask:
        """Cut a full mask to its rectangle."""
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(ys):
            return cls((mask.shape[0], mask.shape[1]), 0, 0, np.zeros((0, 0), dtype=bool), predicted_iou)
        inside = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].copy()
        return cls((mask.shape[0], mask.shape[1]), int(ys[0]), int(xs[0]), inside, predicted_iou)

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int(self.inside.sum())

    @property
    def window(self) -> tuple[slice, slice]:
        """Where the rectangle lies on the slice."""
        rows, columns = self.inside.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)

    def full(self) -> Bool[np.ndarray, "row column"]:
        """The mask on the whole slice."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[self.window] = self.inside
        return mask


@dataclass(eq=False)
class Track:
    """One object on its way: where it starts, how far it goes, and its masks so far, by slice number."""

    prompt: CanvasPrompt
    start: int
    first: int
    last: int
    masks: dict[int, SliceMask] = field(default_factory=dict[int, SliceMask])

    def __len__(self) -> int:
        """The number of slices to visit."""
        return self.last - self.first + 1


DecodeSlice = Callable[[int, Sequence[CanvasPrompt]], Sequence[SliceMask]]
"""Slice number and prompts on it -> one mask a prompt."""


def propagate(tracks: Sequence[Track], frame: Frame, decode: DecodeSlice, *, until_end: bool = False) -> Iterator[int]:
    """Fill in the masks of all tracks, yielding after each slice how many (object, slice) pairs were just settled.

    With `until_end`, an object stops in a direction where its mask is empty, much smaller than on the prompted slice
    (`END_AREA`), or doubted by the model itself (`END_PREDICTED_IOU`); that slice stays empty, too.
    """
    if not tracks:
        return
    ended: set[int] = set()
    upwards = range(min(t.start for t in tracks), max(t.last for t in tracks) + 1)
    for z in upwards:
        moving = [t for t in tracks if t.start <= z <= t.last]
        yield from _visit(z, z - 1, moving, ended, frame, decode, until_end=until_end)
    ended.clear()
    downwards = range(max(t.start for t in tracks) - 1, min(t.first for t in tracks) - 1, -1)
    for z in downwards:
        moving = [t for t in tracks if t.first <= z < t.start]
        yield from _visit(z, z + 1, moving, ended, frame, decode, until_end=until_end)


def _visit(
    z: int,
    before: int,
    moving: Sequence[Track],
    ended: set[int],
    frame: Frame,
    decode: DecodeSlice,
    *,
    until_end: bool,
) -> Iterator[int]:
    if not moving:
        return
    asked: list[tuple[Track, CanvasPrompt]] = []
    for track in moving:
        prompt = None if id(track) in ended else _prompt_for(track, z, before, frame)
        if prompt is None:
            ended.add(id(track))
        else:
            asked.append((track, prompt))
    if asked:
        for (track, _), mask in zip(asked, decode(z, [prompt for _, prompt in asked]), strict=True):
            if until_end and z != track.start and _has_ended(mask, track.masks[track.start]):
                ended.add(id(track))
            else:
                track.masks[z] = mask
    yield len(moving)


def _prompt_for(track: Track, z: int, before: int, frame: Frame) -> CanvasPrompt | None:
    if z == track.start:
        return track.prompt
    carried = track.masks.get(before)
    box = frame.box_around(carried.full(), margin=PROPAGATION_MARGIN) if carried and carried.area else None
    if box is None:
        box = track.prompt.box
    if box is None and track.masks[track.start].area:
        # Clicks give no box to fall back to; the first slice's mask does.
        box = frame.box_around(track.masks[track.start].full(), margin=PROPAGATION_MARGIN)
    return None if box is None else CanvasPrompt(box=box)


def doubtful_slices(track: Track) -> list[int]:
    """Slices of a range where `until_end` would have stopped: the mask is small, empty or doubted by the model."""
    started = track.masks.get(track.start)
    if started is None:
        return []
    return sorted(z for z, mask in track.masks.items() if z != track.start and _has_ended(mask, started))


def _has_ended(mask: SliceMask, started: SliceMask) -> bool:
    return mask.area == 0 or mask.area < END_AREA * started.area or mask.predicted_iou < END_PREDICTED_IOU
