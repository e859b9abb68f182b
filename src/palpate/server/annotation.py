"""One case that is being annotated: its label map, the object being drawn, and everything that was done.

Every verb is kept in the journal before it is answered. What the map shows, labels and draft, is on the image's grid in
array order; `changed_since` says what part of it differs from a revision, so that little has to be sent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from palpate.errors import InputError, PromptError
from palpate.images.slices import slice_first
from palpate.inference.session import Progress
from palpate.prompts.types import Box, Prompt, Target
from palpate.server.draft import Beside, Draft, Step, step_from_json, step_to_json
from palpate.server.journal import Action, Journal, Patch, bounds
from palpate.server.opened import OpenImage
from palpate.server.strokes import Stroke

DRAFT = 255
"""The value that the object being drawn has in what is shown; labels go from 1 to 254."""

Policy = Literal["keep", "overwrite"]
"""What happens where a new object claims voxels of another label: they stay, or go to the new one unless locked."""

_REMEMBERED = 256
"""Changes that are remembered one by one; whoever is further behind gets the whole map."""


class Behind(InputError):
    """What is asked for is not there: nothing to undo, no object to accept."""


@dataclass(frozen=True)
class Rules:
    """What may be overwritten at the moment."""

    policy: Policy
    locked: frozenset[int]


@dataclass(frozen=True)
class Taken:
    """What became of an object: voxels that got its label, and those that other labels kept."""

    voxels: int
    kept_by_others: int


@dataclass(frozen=True)
class Deed:
    """An action, as a person would call it.

    `what` was drawn (box, point, scribble, mask), the tool it was done with (brush, eraser), or else its kind
    (propagate, accept, discard, guess, import); `label` is the one that it changed, None for the object being drawn.
    """

    what: str
    label: int | None = None

    @classmethod
    def of(cls, kind: str, body: Mapping[str, Any]) -> Deed:
        """An action of the journal."""
        what = kind
        if kind == "stroke":
            what = str(body.get("stroke", kind))
        elif kind == "prompt":
            what = next((shape for shape in ("box", "scribble", "mask") if shape in body), "point")
            if len(body.get("points", ())) > 1:  # a click is one; a scribble beside the object is kept as many
                what = "scribble"
        return cls(what, body.get("label"))


class _Asked(NamedTuple):
    """All that decides about a look."""

    axis: int | None
    prompts: tuple[Prompt, ...]
    window: str | None
    learned: Beside | None


@dataclass(frozen=True, eq=False)
class _Look:
    """What a prompt made of a draft (None: of nothing)."""

    draft: Draft | None
    asked: _Asked
    found: Draft


class Annotation:
    """The work on one case. Callers hold `lock` from a verb to reading what came of it.

    Only `propagated` and `previewed` may be called without it: they take long, and keep nothing.
    """

    def __init__(self, case: str, opened: OpenImage, journal: Journal) -> None:
        self.case = case
        self.opened = opened
        self.lock = threading.RLock()
        self.labels: UInt8[np.ndarray, "..."] = np.zeros(opened.image.shape, dtype=np.uint8)
        """The label map, 0 where nothing is."""
        self.draft: Draft | None = None
        """The object that is being drawn."""
        self.revision = 0
        """Grows with every change of what is shown."""
        self.judged: tuple[Draft, float] | None = None
        """The agreement of a draft under small changes of its prompts, where it was asked for."""
        self.voxels = np.zeros(DRAFT + 1, dtype=np.int64)
        """How many voxels each value of the label map has; those of 0 are not counted."""
        self._journal = journal
        self._looked_at: _Look | None = None
        self._changes: deque[tuple[int, tuple[slice, ...] | None]] = deque(maxlen=_REMEMBERED)
        last: Action | None = None
        for action in journal.done(case, shape=opened.image.shape):
            if action.patch is not None:
                self._put(action.patch.window, action.patch.after)
            last = action
        self.draft = None if last is None else self._draft_of(last)

    # Drawing.

    def prompt(
        self, axis: int | None, target: Target, *, window: str | None = None, learned: Beside | None = None
    ) -> None:
        """Add a prompt to the object being drawn, or begin one.

        Raises:
            PromptError, UnsupportedPrompt, InputError: as `Draft.prompted`.
        """
        draft = self.previewed(axis, target, window=window, learned=learned)
        self._drawn("prompt", step_to_json(Step(axis, target, window=window, learned=learned)), draft)

    def previewed(
        self, axis: int | None, target: Target, *, window: str | None = None, learned: Beside | None = None
    ) -> Draft:
        """What a prompt would make of the object; nothing is kept."""
        with self.opened.lock:
            # A box is looked at while it is dragged, so when it is let go of the answer is often there already.
            known, asked = self._looked_at, _Asked(axis, target.prompts, window, learned)
            if known is not None and known.draft is self.draft and known.asked == asked:
                return known.found
            draft = self.draft
            found = (draft or Draft.empty(self.opened.image.shape)).prompted(
                self.opened, axis, target, window=window, learned=learned
            )
            if all(isinstance(prompt, Box) for prompt in target.prompts):
                self._looked_at = _Look(draft, asked, found)
            return found

    def propagated(
        self, axis: int | None, first: int, last: int, *, until_end: bool, progress: Progress | None
    ) -> Draft:
        """The object carried through slices; nothing is kept until `carry` is called with it."""
        draft = self.draft  # once: without the lock it may be gone a moment later
        if draft is None:
            raise PromptError("there is nothing to carry through the volume; draw a box or a point first")
        return draft.propagated(self.opened, axis, first, last, until_end=until_end, progress=progress)

    def carry(self, draft: Draft) -> None:
        """Keep what `propagated` made."""
        last = draft.steps[-1]
        self._drawn("propagate", step_to_json(last), draft)

    def stroke(self, stroke: Stroke, *, label: int | None, rules: Rules) -> Taken:
        """Brush or erase, in the object being drawn (`label` None) or in a label.

        A brush takes voxels of other labels by the rules; an eraser only those of its own label.

        Raises:
            PromptError: a stroke outside the image. Behind: no object is being drawn. InputError: the label is locked.
        """
        body = {**step_to_json(stroke), "label": label, **_rules_to_json(rules)}
        if label is None:
            if self.draft is None and stroke.tool == "eraser":
                raise Behind("no object is being drawn, so there is nothing to erase; choose a label, or draw one")
            draft = (self.draft or Draft.empty(self.opened.image.shape)).stroked(self.opened, stroke)
            changed = int((draft.mask != (False if self.draft is None else self.draft.mask)).sum())
            self._drawn("stroke", body, draft)
            return Taken(changed, 0)
        _check_unlocked(label, rules)
        after = self.labels.copy()
        where = stroke.touched(self.opened.image.geometry)
        part = slice_first(after if self.opened.image.is_volume else after[None], stroke.axis)[stroke.z]
        taken = paint(part, where, label, rules) if stroke.tool == "brush" else erase(part, where, label)
        self._labelled("stroke", body, after, keep_draft=True)
        return taken

    def accept(self, label: int, *, rules: Rules) -> Taken:
        """Give the object being drawn a label.

        Raises:
            Behind: nothing is being drawn, or its mask is empty. InputError: the label is locked.
        """
        if self.draft is None or not self.draft.mask.any():
            raise Behind("there is no mask to accept; draw a box or a point first")
        _check_unlocked(label, rules)
        after = self.labels.copy()
        taken = paint(after, self.draft.mask, label, rules)
        body = {
            "label": label,
            **_rules_to_json(rules),
            "steps": [step_to_json(step) for step in self.draft.steps],
            "predicted_iou": round(self.draft.predicted_iou, 4),
            "voxels": taken.voxels,
        }
        if self.judged is not None and self.judged[0] is self.draft:
            body["agreement"] = self.judged[1]
        self._labelled("accept", body, after, keep_draft=False)
        return taken

    def discard(self) -> None:
        """Give up the object being drawn.

        Raises:
            Behind: there is none.
        """
        if self.draft is None:
            raise Behind("nothing is being drawn, so there is nothing to discard")
        self._keep("discard", {}, draft=None, patch=None)

    def put(self, labels: UInt8[np.ndarray, "..."], *, kind: str, body: Mapping[str, Any]) -> None:
        """Put a whole label map in place of the one that is there, and give up the object being drawn."""
        if labels.shape != self.labels.shape:
            raise InputError(f"a label map of shape {labels.shape} came for an image of shape {self.labels.shape}")
        self._labelled(kind, body, labels.astype(np.uint8), keep_draft=False)

    # Going back and forth.

    @property
    def undoable(self) -> str | None:
        """The kind of action that would be undone."""
        return self._journal.kinds(self.case)[0]

    @property
    def redoable(self) -> str | None:
        """The kind of action that would be redone."""
        return self._journal.kinds(self.case)[1]

    @property
    def deeds(self) -> tuple[Deed | None, Deed | None]:
        """What would be undone, and what would be redone."""
        undo, redo = self._journal.next_ones(self.case)
        return undo and Deed.of(*undo), redo and Deed.of(*redo)

    def undo(self) -> str:
        """Take back the last action; its kind.

        Raises:
            Behind: there is none.
        """
        shape = self.opened.image.shape
        action = self._journal.last_done(self.case, shape=shape)
        if action is None:
            raise Behind("there is nothing to undo")
        # All is read before anything is changed: what cannot be read leaves the case as it is.
        before = self._journal.last_done(self.case, shape=shape, before=action.number)
        draft = None if before is None else self._draft_of(before)
        self._journal.set_undone(action.number, undone=True)
        if action.patch is not None:
            self._put(action.patch.window, action.patch.before)
        self._show(draft, action.patch)
        return action.kind

    def redo(self) -> str:
        """Do again what was undone last; its kind.

        Raises:
            Behind: there is nothing.
        """
        action = self._journal.next_undone(self.case, shape=self.opened.image.shape)
        if action is None:
            raise Behind("there is nothing to redo")
        draft = self._draft_of(action)
        self._journal.set_undone(action.number, undone=False)
        if action.patch is not None:
            self._put(action.patch.window, action.patch.after)
        self._show(draft, action.patch)
        return action.kind

    # Showing.

    def shown(self, window: tuple[slice, ...] | None = None) -> UInt8[np.ndarray, "..."]:
        """What is to be seen, in array order: labels, and `DRAFT` where the object being drawn is."""
        window = window or tuple(slice(None) for _ in self.labels.shape)
        values = self.labels[window].copy()
        if self.draft is not None:
            values[self.draft.mask[window]] = DRAFT
        return values

    def changed_since(self, revision: int) -> tuple[slice, ...] | None:
        """The window of what may have changed since a revision; None if nothing did, everything if it is not known."""
        if revision == self.revision:
            return None
        if not 0 < self.revision - revision <= len(self._changes):
            return tuple(slice(0, extent) for extent in self.labels.shape)
        windows = [window for number, window in self._changes if number > revision and window is not None]
        return _around(windows)

    @property
    def log(self) -> Sequence[Action]:
        """All actions that are not undone, first to last."""
        return list(self._journal.done(self.case, shape=self.opened.image.shape))

    def _put(self, window: tuple[slice, ...], values: UInt8[np.ndarray, "..."]) -> None:
        for part, sign in ((self.labels[window], -1), (values, 1)):
            self.voxels += sign * np.bincount(part.ravel(), minlength=DRAFT + 1)
        self.voxels[0] = 0
        self.labels[window] = values

    def _drawn(self, kind: str, body: Mapping[str, Any], draft: Draft) -> None:
        self._keep(kind, body, draft=draft, patch=None)

    def _labelled(
        self, kind: str, body: Mapping[str, Any], after: UInt8[np.ndarray, "..."], *, keep_draft: bool
    ) -> None:
        patch = Patch.between(self.labels, after)
        self._keep(kind, body, draft=self.draft if keep_draft else None, patch=patch)

    def _keep(self, kind: str, body: Mapping[str, Any], *, draft: Draft | None, patch: Patch | None) -> None:
        # First into the journal: what could not be kept has not been done.
        self._journal.add(
            self.case,
            kind,
            body,
            draft=None if draft is None else _draft_to_json(draft),
            mask=None if draft is None else draft.mask,
            patch=patch,
        )
        if patch is not None:
            self._put(patch.window, patch.after)
        self._show(draft, patch)

    def _show(self, draft: Draft | None, patch: Patch | None) -> None:
        """Take over a draft, and note where it and the labels differ from what was shown before."""
        nothing = np.zeros((), dtype=bool)
        old = nothing if self.draft is None else self.draft.mask
        new = nothing if draft is None else draft.mask
        windows = [] if patch is None else [patch.window]
        if draft is not self.draft and (drawn := bounds(np.broadcast_to(old != new, self.labels.shape))) is not None:
            windows.append(drawn)
        self.draft = draft
        self.revision += 1
        self._changes.append((self.revision, _around(windows)))

    def _draft_of(self, action: Action) -> Draft | None:
        if action.draft is None or action.mask is None:
            return None
        pixels = int(np.prod(sorted(self.opened.image.shape)[-2:]))
        steps = tuple(step_from_json(step, pixels=pixels) for step in action.draft["steps"])
        return Draft(steps, action.mask, float(action.draft["predicted_iou"]), tuple(action.draft["notes"]))


def _draft_to_json(draft: Draft) -> dict[str, Any]:
    return {
        "steps": [step_to_json(step) for step in draft.steps],
        "predicted_iou": draft.predicted_iou,
        "notes": list(draft.notes),
    }


def _rules_to_json(rules: Rules) -> dict[str, Any]:
    return {"policy": rules.policy, "locked": sorted(rules.locked)}


def rules_from_json(body: Mapping[str, Any]) -> Rules:
    """The rules that an action was done by."""
    return Rules("overwrite" if body.get("policy") == "overwrite" else "keep", frozenset(body.get("locked", ())))


def _check_unlocked(label: int, rules: Rules) -> None:
    if not 1 <= label < DRAFT:
        raise InputError(f"labels go from 1 to {DRAFT - 1}; {label} is none of them")
    if label in rules.locked:
        raise InputError(f"label {label} is locked; unlock it to change it")


def paint(labels: np.ndarray, where: Bool[np.ndarray, "..."], label: int, rules: Rules) -> Taken:
    """Give voxels of a label map, in place, to a label, as far as the rules allow."""
    there = labels[where]
    free = (there == 0) | (there == label)
    if rules.policy == "overwrite":
        free |= ~np.isin(there, sorted(rules.locked))
    labels[where] = np.where(free, label, there)
    return Taken(int(free.sum()), int((~free).sum()))


def erase(labels: np.ndarray, where: Bool[np.ndarray, "..."], label: int) -> Taken:
    """Take voxels of a label map, in place, from a label."""
    ours = where & (labels == label)
    labels[ours] = 0
    return Taken(int(ours.sum()), 0)


def _around(windows: Sequence[tuple[slice, ...]]) -> tuple[slice, ...] | None:
    if not windows:
        return None
    return tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*windows, strict=True)
    )
