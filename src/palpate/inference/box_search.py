"""Clicks, scribbles and first guesses for models that know only boxes.

Some models make nothing of prompts they were not trained with: LiteMedSAM answers a single click, given as SAM's
point token, with a Dice of 1 to 2 in 100, and a correct click added to a box makes its mask worse. They answer boxes
well. So what was drawn becomes a condition on boxes: candidates are decoded, all as one batch, and the one is kept
whose mask agrees with what was drawn (clicks on the object inside, clicks beside it outside) and, among those, has the
highest predicted IoU, or changes a given box's mask least. This is our own method, not from a paper;
`docs/results/other-prompts-lite-medsam.md` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from palpate.errors import PromptError
from palpate.models.frame import CanvasPrompt

_SIDES = (0.05, 0.09, 0.15, 0.24, 0.38, 0.6, 0.85)
"""Sides of the squares tried around clicks, as shares of the image's longest side."""

_HULL_GROWTH = 1.2
"""Clicks lie inside the object, so a box around several is tried no smaller than this much larger than their hull."""

_GUESS_GROWTH = 0.05
"""A first guess is boxed with this share of its sides as room: too tight a box costs far more than a loose one."""

_NUDGES = (0.08, -0.08, 0.16, -0.16)
"""How far the sides of a given box are moved, as shares, to satisfy clicks that its own mask does not."""

_LEAST_KEPT = 0.6
"""A box changed for a click must keep this IoU with the given box's mask."""


class Answer(NamedTuple):
    """One decoded prompt: logits on the canvas and the model's own estimate of the overlap."""

    logits: Float[np.ndarray, "row column"]
    predicted_iou: float


Decode = Callable[[Sequence[CanvasPrompt]], Sequence[Answer]]
Box = Float32[np.ndarray, "4"]


def best_box(asked: CanvasPrompt, decode: Decode, *, content: tuple[int, int]) -> Box:
    """The box, in canvas pixels, whose mask agrees best with everything in `asked`.

    `content` are the rows and columns of the canvas that show the image. A given box is kept if its mask satisfies
    the clicks; otherwise it is extended to clicks on the object, cut at clicks beside it, and nudged, and of those that
    satisfy most clicks the one is taken whose mask changes least. Without a box, squares of several sizes around the
    clicks are tried, and then the tight box of each answer. A first guess stands for its box; clicks then work as with
    a given box.

    Raises:
        PromptError: only clicks beside the object, and nothing on it.
    """
    size = np.array([content[1], content[0], content[1], content[0]], dtype=np.float32) - 1
    marks = _marks(asked)
    box = asked.box if asked.box is not None else _box_of_guess(asked, size)
    if box is not None:
        return _nearest_agreeing(box, marks, decode, size) if len(marks.labels) else box
    on_object = marks.places[marks.labels == 1]
    if not len(on_object):
        raise PromptError("all clicks lie beside the object; add one on it, or a box around it")
    squares = _squares(on_object, size)
    answers = list(decode([CanvasPrompt(box=square) for square in squares]))
    tight = [box for answer in answers if (box := _box_around_marked(answer.logits > 0, marks, size)) is not None]
    candidates = squares + tight
    answers += decode([CanvasPrompt(box=box) for box in tight]) if tight else []
    scores = [(marks.satisfied_by(answer.logits > 0), answer.predicted_iou) for answer in answers]
    return candidates[scores.index(max(scores))]


def _nearest_agreeing(box: Box, marks: _Marks, decode: Decode, size: Box) -> Box:
    """The given box, or the one that satisfies more clicks and changes the mask least."""
    candidates = _variants(box, marks, size)
    masks = [answer.logits > 0 for answer in decode([CanvasPrompt(box=candidate) for candidate in candidates])]
    given = masks[0]

    merits: list[tuple[float, float]] = []
    for mask in masks:
        union = int((mask | given).sum())
        kept = int((mask & given).sum()) / union if union else 1.0
        # A click corrects a part; an answer that turns to something else is no correction.
        merits.append((marks.satisfied_by(mask) if kept >= _LEAST_KEPT else -1.0, kept))
    return candidates[merits.index(max(merits))]


class _Marks(NamedTuple):
    """Clicks on the canvas: places (x, y) and labels, 1 on the object, 0 beside it."""

    places: Float32[np.ndarray, "mark 2"]
    labels: Float32[np.ndarray, " mark"]

    def satisfied_by(self, inside: Bool[np.ndarray, "row column"]) -> float:
        """The share of clicks that a mask of the canvas agrees with."""
        rows, columns = inside.shape
        x = self.places[:, 0].round().astype(int).clip(0, columns - 1)
        y = self.places[:, 1].round().astype(int).clip(0, rows - 1)
        return float(np.mean(inside[y, x] == (self.labels == 1)))


def _marks(asked: CanvasPrompt) -> _Marks:
    if asked.points is None or asked.point_labels is None:
        return _Marks(np.zeros((0, 2), dtype=np.float32), np.zeros(0, dtype=np.float32))
    return _Marks(asked.points, asked.point_labels)


def _box_of_guess(asked: CanvasPrompt, size: Box) -> Box | None:
    if asked.mask is None:
        return None
    # A guess thinner than a pixel of the canvas covers less than half of every pixel.
    guess = np.asarray(asked.mask[0] >= min(0.0, float(asked.mask[0].max())))
    return _grown(_tight(guess), _GUESS_GROWTH, size)


def _squares(on_object: Float32[np.ndarray, "mark 2"], size: Box) -> list[Box]:
    low, high = on_object.min(axis=0), on_object.max(axis=0)
    centre, hull = (low + high) / 2, (high - low) / 2 * _HULL_GROWTH + 1
    halves = [np.maximum(hull, side * (size.max() + 1) / 2) for side in _SIDES]
    return [np.concatenate([centre - half, centre + half]).astype(np.float32).clip(0, size) for half in halves]


def _variants(box: Box, marks: _Marks, size: Box) -> list[Box]:
    """The box itself, then what clicks suggest, then small changes; nearest to the given box first."""
    on_object, beside = marks.places[marks.labels == 1], marks.places[marks.labels == 0]
    variants = [box]
    if len(on_object):
        # Two pixels of room: a click on the rim is still on the object.
        reached = np.concatenate([on_object.min(axis=0) - 2, on_object.max(axis=0) + 2])
        united = np.concatenate([np.minimum(box[:2], reached[:2]), np.maximum(box[2:], reached[2:])])
        variants.append(united.astype(np.float32).clip(0, size))
    for place in beside:
        for side in range(4):
            cut = box.copy()
            cut[side] = place[side % 2] + (1 if side < 2 else -1)
            keeps = all((cut[:2] <= p).all() and (p <= cut[2:]).all() for p in on_object)
            # Of the parts that remain, small slivers are not what anybody meant.
            if keeps and (cut[2:] - cut[:2] >= (box[2:] - box[:2]) / 3).all():
                variants.append(cut.clip(0, size))
    return variants + [_grown(box, nudge, size) for nudge in _NUDGES]


def _box_around_marked(inside: Bool[np.ndarray, "row column"], marks: _Marks, size: Box) -> Box | None:
    """The box of the parts of a mask that were clicked on, with a little room; None if none was."""
    from scipy.ndimage import label as connected_components  # slow to import, and boxes need no search

    parts: np.ndarray = connected_components(inside)[0]  # pyright: ignore[reportIndexIssue, reportAssignmentType]
    places = marks.places[marks.labels == 1].round().astype(int).clip(0, np.array(inside.shape[::-1]) - 1)
    clicked = [part for part in np.unique(parts[places[:, 1], places[:, 0]]) if part > 0]
    if not clicked:
        return None
    tight = _tight(np.isin(parts, clicked))
    room = 1 + 0.03 * float((tight[2:] - tight[:2]).max())
    return (tight + np.array([-room, -room, room, room], dtype=np.float32)).clip(0, size)


def _tight(inside: Bool[np.ndarray, "row column"]) -> Box:
    ys, xs = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return np.array([xs[0], ys[0], xs[-1], ys[-1]], dtype=np.float32)


def _grown(box: Box, share: float, size: Box) -> Box:
    room = (box[2:] - box[:2] + 1) * share
    grown = np.concatenate([box[:2] - room, box[2:] + room])
    return (grown if (grown[:2] <= grown[2:]).all() else box).astype(np.float32).clip(0, size)
