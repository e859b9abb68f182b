"""A case being annotated: every verb against a model of lists, and nothing forgotten when it is opened again."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fake_runtime import FakeRuntime
from palpate.errors import InputError, OutputError, PromptError
from palpate.images import Image
from palpate.inference.session import Session
from palpate.prompts import Box, Points, Target
from palpate.server.annotation import _REMEMBERED, DRAFT, Annotation, Behind, Rules, rules_from_json
from palpate.server.draft import Draft, step_to_json
from palpate.server.journal import Journal
from palpate.server.opened import OpenImage
from palpate.server.strokes import Stroke

SHAPE = (4, 6, 7)
BRIGHT = np.random.default_rng(3).random(SHAPE) < 0.7
KEEP, OVERWRITE = Rules("keep", frozenset()), Rules("overwrite", frozenset())


def open_image(bright: np.ndarray = BRIGHT) -> OpenImage:
    return OpenImage(Image(np.where(bright, 255, 0).astype(np.uint8)), lambda: Session(FakeRuntime()))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        yield journal


@pytest.fixture
def annotation(journal: Journal) -> Annotation:
    return Annotation("liver", open_image(), journal)


def everything(z: int) -> Target:
    return Target((Box(0, 0, SHAPE[2] - 1, SHAPE[1] - 1, z),))


def dot(x: int, y: int, *, z: int = 0, tool: Literal["brush", "eraser"] = "brush") -> Stroke:
    return Stroke(tool, 0, z, ((x, y),), 0.0)


def same_state(one: Annotation, other: Annotation) -> None:
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_array_equal(one.shown(), other.shown())
    assert (one.draft is None) == (other.draft is None)
    if one.draft is not None and other.draft is not None:
        np.testing.assert_array_equal(one.draft.mask, other.draft.mask)
        assert one.draft.predicted_iou == other.draft.predicted_iou
        assert one.draft.notes == other.draft.notes
        assert [step_to_json(step) for step in one.draft.steps] == [step_to_json(step) for step in other.draft.steps]
    assert (one.undoable, one.redoable) == (other.undoable, other.redoable)


# Everything that can be done, in any order ------------------------------------------------------------------------

State = tuple[np.ndarray, Draft | None, str]
"""The label map, the draft, and the kind of action that led there."""

values = st.integers(1, 4)
places = st.tuples(st.integers(0, SHAPE[2] - 1), st.integers(0, SHAPE[1] - 1))
slices = st.integers(0, SHAPE[0] - 1)


class Annotating(RuleBasedStateMachine):
    """The model is a list of states and where in it we are."""

    locked: frozenset[int] = frozenset()

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.journal = Journal(Path(self.folder) / "journal.sqlite")
        self.opened = open_image()
        self.annotation = Annotation("liver", self.opened, self.journal)
        self.states: list[State] = [(np.zeros(SHAPE, dtype=np.uint8), None, "")]
        self.now = 0
        self.policy: Literal["keep", "overwrite"] = "keep"
        self.seen = {self.annotation.revision: self.annotation.shown()}

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            shutil.rmtree(self.folder)

    @property
    def labels(self) -> np.ndarray:
        return self.states[self.now][0]

    @property
    def draft(self) -> Draft | None:
        return self.states[self.now][1]

    @property
    def chosen(self) -> Rules:
        return Rules(self.policy, self.locked)

    def done(self, labels: np.ndarray, draft: Draft | None, kind: str) -> None:
        for value in self.locked:
            np.testing.assert_array_equal(self.annotation.labels == value, self.labels == value)
        self.states[self.now + 1 :] = [(labels, draft, kind)]
        self.now += 1

    def painted(self, where: np.ndarray, label: int) -> np.ndarray:
        after = self.labels.copy()
        for index in np.ndindex(SHAPE):
            there = after[index]
            taken = there == 0 or (self.policy == "overwrite" and int(there) not in self.locked)
            if where[index] and taken:
                after[index] = label
        return after

    @rule(value=values)
    def lock_or_unlock(self, value: int) -> None:
        self.locked ^= {value}

    @rule(policy=st.sampled_from(["keep", "overwrite"]))
    def choose_policy(self, policy: Literal["keep", "overwrite"]) -> None:
        self.policy = policy

    @rule(place=places, z=slices, box=st.booleans())
    def prompt(self, place: tuple[int, int], z: int, box: bool) -> None:
        x, y = place
        target = Target((Box(0, 0, x, y, z) if box else Points([place], z=z),))
        self.annotation.prompt(0, target)
        draft = (self.draft or Draft.empty(SHAPE)).prompted(self.opened, 0, target)
        self.done(self.labels, draft, "prompt")

    @rule()
    def carry(self) -> None:
        if self.draft is None or self.draft.last_prompted is None:
            with pytest.raises(PromptError):
                self.annotation.propagated(0, 0, SHAPE[0] - 1, until_end=False, progress=None)
            return
        draft = self.annotation.propagated(0, 0, SHAPE[0] - 1, until_end=False, progress=None)
        self.annotation.carry(draft)
        self.done(self.labels, draft, "propagate")

    @rule(place=places, z=slices, tool=st.sampled_from(["brush", "eraser"]), radius=st.floats(0, 3))
    def stroke_the_draft(self, place: Any, z: int, tool: Literal["brush", "eraser"], radius: float) -> None:
        stroke = Stroke(tool, 0, z, (place,), radius)
        if self.draft is None and tool == "eraser":
            with pytest.raises(Behind):
                self.annotation.stroke(stroke, label=None, rules=self.chosen)
            return
        taken = self.annotation.stroke(stroke, label=None, rules=self.chosen)
        before = self.draft or Draft.empty(SHAPE)
        draft = before.stroked(self.opened, stroke)
        assert (taken.voxels, taken.kept_by_others) == ((draft.mask != before.mask).sum(), 0)
        self.done(self.labels, draft, "stroke")

    @rule(place=places, z=slices, tool=st.sampled_from(["brush", "eraser"]), radius=st.floats(0, 3), label=values)
    def stroke_a_label(self, place: Any, z: int, tool: Literal["brush", "eraser"], radius: float, label: int) -> None:
        stroke = Stroke(tool, 0, z, (place,), radius)
        if label in self.locked:
            with pytest.raises(InputError, match="locked"):
                self.annotation.stroke(stroke, label=label, rules=self.chosen)
            return
        where = np.zeros(SHAPE, dtype=bool)
        where[z] = stroke.touched(self.opened.image.geometry)
        taken = self.annotation.stroke(stroke, label=label, rules=self.chosen)
        if tool == "brush":
            after = self.painted(where, label)
            assert taken.voxels == (after[where] == label).sum()
            assert taken.kept_by_others == (after[where] != label).sum()
        else:
            after = np.where(where & (self.labels == label), 0, self.labels).astype(np.uint8)
        self.done(after, self.draft, "stroke")

    @rule(label=values)
    def accept(self, label: int) -> None:
        if self.draft is None or not self.draft.mask.any():
            with pytest.raises(Behind):
                self.annotation.accept(label, rules=self.chosen)
        elif label in self.locked:
            with pytest.raises(InputError, match="locked"):
                self.annotation.accept(label, rules=self.chosen)
        else:
            after = self.painted(self.draft.mask, label)
            taken = self.annotation.accept(label, rules=self.chosen)
            assert taken.voxels == (after[self.draft.mask] == label).sum()
            assert taken.voxels + taken.kept_by_others == self.draft.mask.sum()
            self.done(after, None, "accept")

    @rule()
    def discard(self) -> None:
        if self.draft is None:
            with pytest.raises(Behind):
                self.annotation.discard()
        else:
            self.annotation.discard()
            self.done(self.labels, None, "discard")

    @precondition(lambda self: not self.locked)  # whoever puts a map looks after the locks, see Desk.put_labels
    @rule(seed=st.integers(0, 100))
    def put(self, seed: int) -> None:
        labels = np.random.default_rng(seed).integers(0, 5, SHAPE).astype(np.uint8)
        self.annotation.put(labels, kind="import", body={"seed": seed})
        self.done(labels, None, "import")

    @rule(times=st.integers(1, 6))
    def undo(self, times: int) -> None:
        for _ in range(times):
            if self.now == 0:
                with pytest.raises(Behind):
                    self.annotation.undo()
                return
            assert self.annotation.undo() == self.states[self.now][2]
            self.now -= 1
            self.look()

    @rule(times=st.integers(1, 6))
    def redo(self, times: int) -> None:
        for _ in range(times):
            if self.now == len(self.states) - 1:
                with pytest.raises(Behind):
                    self.annotation.redo()
                return
            self.now += 1
            assert self.annotation.redo() == self.states[self.now][2]
            self.look()

    @rule()
    def go_on_with_another(self) -> None:
        """As after a restart: its revisions begin anew."""
        again = Annotation("liver", self.opened, self.journal)
        same_state(again, self.annotation)
        self.annotation = again
        self.seen = {again.revision: again.shown()}

    def look(self) -> None:
        self.seen.setdefault(self.annotation.revision, self.annotation.shown())

    @invariant()
    def it_is_as_in_the_model(self) -> None:
        if not hasattr(self, "annotation"):
            return
        there = self.annotation
        np.testing.assert_array_equal(there.labels, self.labels)
        assert there.voxels.tolist() == [0, *np.bincount(self.labels.ravel(), minlength=256)[1:].tolist()]
        assert (there.draft is None) == (self.draft is None)
        shown = self.labels.copy()
        if there.draft is not None and self.draft is not None:
            np.testing.assert_array_equal(there.draft.mask, self.draft.mask)
            shown[self.draft.mask] = DRAFT
        np.testing.assert_array_equal(there.shown(), shown)
        assert there.undoable == (self.states[self.now][2] or None)
        assert there.redoable == (self.states[self.now + 1][2] if self.now + 1 < len(self.states) else None)
        assert len(there.log) == self.now
        same_state(Annotation("liver", self.opened, self.journal), there)

    @invariant()
    def whoever_is_behind_catches_up(self) -> None:
        if not hasattr(self, "annotation"):
            return
        self.look()
        shown = self.annotation.shown()
        for revision, known in self.seen.items():
            window = self.annotation.changed_since(revision)
            patched = known.copy()
            if window is not None:
                patched[window] = self.annotation.shown(window)
            np.testing.assert_array_equal(patched, shown)
        assert self.annotation.changed_since(self.annotation.revision) is None


TestAnnotating = Annotating.TestCase
TestAnnotating.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a failure is told at once; to shrink it takes minutes
)


# In particular ----------------------------------------------------------------------------------------------------


def test_a_hundred_steps_back_and_forth(annotation: Annotation):
    seen = [annotation.shown()]
    for number in range(105):
        if number % 7 == 3:
            annotation.prompt(0, everything(number % 4))
        elif number % 7 == 5:
            annotation.accept(number % 5 + 1, rules=OVERWRITE)
        else:
            label = None if number % 7 == 4 else number % 254 + 1
            annotation.stroke(dot(number % 7, number % 6, z=number % 4), label=label, rules=OVERWRITE)
        seen.append(annotation.shown())
    for wanted in reversed(seen[:-1]):
        annotation.undo()
        np.testing.assert_array_equal(annotation.shown(), wanted)
    for wanted in seen[1:]:
        annotation.redo()
        np.testing.assert_array_equal(annotation.shown(), wanted)


def test_whoever_is_too_far_behind_gets_everything(annotation: Annotation):
    whole = tuple(slice(0, extent) for extent in SHAPE)
    assert annotation.changed_since(0) is None
    for revision in (-1, 1, 10**30, -(10**30)):
        assert annotation.changed_since(revision) == whole
    for number in range(_REMEMBERED + 1):
        annotation.stroke(dot(2, 3, z=1, tool=("brush", "eraser")[number % 2]), label=1, rules=KEEP)
    assert annotation.changed_since(1) == (slice(1, 2), slice(3, 4), slice(2, 3))
    assert annotation.changed_since(0) == whole
    assert annotation.changed_since(-(10**30)) == whole


def test_what_changes_nothing_has_no_window(annotation: Annotation):
    annotation.stroke(dot(2, 3), label=1, rules=KEEP)
    annotation.stroke(dot(2, 3), label=1, rules=KEEP)
    assert annotation.changed_since(1) is None
    assert annotation.revision == 2


def test_a_new_object_leaves_the_voxels_of_others_or_takes_them(annotation: Annotation):
    annotation.put(np.full(SHAPE, 2, dtype=np.uint8), kind="import", body={})
    annotation.prompt(0, everything(1))
    assert annotation.draft is not None
    found = int(annotation.draft.mask.sum())
    assert found > 5
    taken = annotation.accept(1, rules=KEEP)
    assert (taken.voxels, taken.kept_by_others) == (0, found)
    annotation.prompt(0, everything(1))
    taken = annotation.accept(1, rules=Rules("overwrite", frozenset({2})))
    assert (taken.voxels, taken.kept_by_others) == (0, found)
    annotation.prompt(0, everything(1))
    taken = annotation.accept(1, rules=OVERWRITE)
    assert (taken.voxels, taken.kept_by_others) == (found, 0)
    assert annotation.voxels[:3].tolist() == [0, found, BRIGHT.size - found]


def test_a_preview_keeps_nothing(annotation: Annotation):
    draft = annotation.previewed(0, everything(1))
    assert draft.mask[1].any()
    assert annotation.draft is None
    assert annotation.revision == 0
    assert annotation.undoable is None


def test_an_action_says_by_which_rules_it_was_done(annotation: Annotation):
    rules = Rules("overwrite", frozenset({3, 7}))
    annotation.stroke(dot(1, 1), label=2, rules=rules)
    annotation.prompt(0, everything(1))
    annotation.accept(1, rules=rules)
    for action in annotation.log:
        if action.kind != "prompt":
            assert rules_from_json(action.body) == rules
    assert rules_from_json({}) == KEEP


@pytest.mark.parametrize("label", [0, 255, -1, 1000])
def test_a_label_that_is_none_is_refused(annotation: Annotation, label: int):
    annotation.prompt(0, everything(1))
    with pytest.raises(InputError, match="labels go from 1 to 254"):
        annotation.accept(label, rules=KEEP)
    with pytest.raises(InputError, match="labels go from 1 to 254"):
        annotation.stroke(dot(0, 0), label=label, rules=KEEP)
    assert annotation.revision == 1


def test_a_map_of_another_shape_is_refused(annotation: Annotation):
    with pytest.raises(InputError, match="shape"):
        annotation.put(np.zeros((4, 6, 8), dtype=np.uint8), kind="import", body={})


@pytest.mark.parametrize("label", [None, 1])
def test_a_stroke_outside_the_image_is_refused(annotation: Annotation, label: int | None):
    for stroke in (dot(0, 0, z=4), dot(0, 0, z=-1), dot(7, 0), dot(0, 6)):
        with pytest.raises(PromptError):
            annotation.stroke(stroke, label=label, rules=KEEP)
    assert annotation.revision == 0


def test_a_picture_is_annotated_as_well(journal: Journal):
    opened = open_image(BRIGHT[0])
    annotation = Annotation("skin", opened, journal)
    annotation.prompt(None, Target((Box(0, 0, 6, 5),)))
    assert annotation.draft is not None
    wanted = annotation.draft.mask.astype(np.uint8)
    assert wanted[0, 0]
    annotation.stroke(dot(0, 0, tool="eraser"), label=None, rules=KEEP)
    annotation.accept(1, rules=KEEP)
    annotation.stroke(dot(0, 0), label=2, rules=KEEP)
    wanted[0, 0] = 2
    np.testing.assert_array_equal(annotation.labels, wanted)
    assert annotation.changed_since(3) == (slice(0, 1), slice(0, 1))
    same_state(Annotation("skin", opened, journal), annotation)
    annotation.undo()
    annotation.undo()
    same_state(Annotation("skin", opened, journal), annotation)
    assert annotation.draft is not None


def test_what_cannot_be_kept_is_not_done(annotation: Annotation, journal: Journal):
    annotation.stroke(dot(1, 1), label=1, rules=KEEP)
    annotation.prompt(0, everything(2))
    shown = annotation.shown()
    journal._base.execute("PRAGMA query_only = 1")
    for verb in (
        lambda: annotation.prompt(0, everything(1)),
        lambda: annotation.stroke(dot(2, 2), label=1, rules=KEEP),
        lambda: annotation.accept(1, rules=KEEP),
        annotation.discard,
        annotation.undo,
    ):
        with pytest.raises(OutputError):
            verb()
        np.testing.assert_array_equal(annotation.shown(), shown)
        assert annotation.revision == 2
    journal._base.execute("PRAGMA query_only = 0")
    annotation.accept(1, rules=KEEP)
    same_state(Annotation("liver", annotation.opened, journal), annotation)


def test_an_undo_that_cannot_be_read_leaves_the_case_as_it_is(annotation: Annotation, journal: Journal):
    annotation.prompt(0, everything(1))
    annotation.stroke(dot(1, 1), label=1, rules=KEEP)
    shown = annotation.shown()
    journal._base.execute("UPDATE actions SET draft_mask = x'00' WHERE number = 1")
    with pytest.raises(OutputError, match="damaged"):
        annotation.undo()
    np.testing.assert_array_equal(annotation.shown(), shown)
    assert annotation.undoable == "stroke"


def test_two_cases_do_not_meet(annotation: Annotation, journal: Journal):
    other = Annotation("spleen", annotation.opened, journal)
    annotation.stroke(dot(1, 1), label=1, rules=KEEP)
    other.prompt(0, everything(1))
    annotation.undo()
    assert (annotation.undoable, annotation.redoable, other.undoable, other.redoable) == (
        None, "stroke", "prompt", None
    )  # fmt: skip
