"""What an object being drawn becomes with every prompt, carry and stroke, and that it can be made again exactly."""

import inspect
import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fake_runtime import FakeRuntime
from palpate.errors import PromptError
from palpate.images import Image
from palpate.inference.session import Session
from palpate.prompts import Box, MaskPrompt, Points, Prompt, Scribble, Target
from palpate.server.draft import MAX_STEPS, Draft, Step, step_from_json, step_to_json
from palpate.server.opened import OpenImage
from palpate.server.strokes import Stroke
from phantoms import column, disk, empty, one_voxel, rectangle

SLICE = (64, 64)  # the fake model's own canvas
LEFT, RIGHT = rectangle(SLICE, 5, 10, 14, 19), rectangle(SLICE, 40, 30, 51, 39)
WHOLE = Box(0, 0, 63, 63)
DEPTH = 8


def open_image(bright: np.ndarray) -> OpenImage:
    image = Image(np.where(bright, 255, 0).astype(np.uint8))
    return OpenImage(image, lambda: Session(FakeRuntime()))


@pytest.fixture
def on_picture() -> OpenImage:
    """Two white rectangles on black."""
    return open_image(LEFT | RIGHT)


@pytest.fixture
def on_volume() -> OpenImage:
    """Eight slices of the same rectangles."""
    return open_image(np.repeat((LEFT | RIGHT)[None], DEPTH, axis=0))


def box(x_min: int, y_min: int, x_max: int, y_max: int, *, z: int | None = None) -> Target:
    return Target((Box(x_min, y_min, x_max, y_max, z),))


def left(z: int | None = None) -> Target:
    return box(0, 0, 30, 63, z=z)


def right(z: int | None = None) -> Target:
    return box(31, 0, 63, 63, z=z)


def begin(opened: OpenImage, axis: int | None, target: Target) -> Draft:
    return Draft.empty(opened.image.shape).prompted(opened, axis, target)


# A prompt ---------------------------------------------------------------------------------------------------------


def test_a_prompt_on_a_picture_gives_its_mask(on_picture: OpenImage):
    draft = begin(on_picture, None, left())
    np.testing.assert_array_equal(draft.mask, LEFT)
    assert draft.predicted_iou == 1.0


def test_a_prompt_on_a_volume_changes_its_slice_alone(on_volume: OpenImage):
    draft = begin(on_volume, 0, left(z=3)).prompted(on_volume, 0, right(z=5))
    np.testing.assert_array_equal(
        draft.mask, column(draft.mask.shape, LEFT, 3, 3) | column(draft.mask.shape, RIGHT, 5, 5)
    )


@pytest.mark.parametrize("axis", [1, 2])
def test_a_prompt_across_the_slices_is_put_there(axis: int):
    body = np.zeros((64, 64, 64), dtype=bool)
    body[10:20, 30:40, 50:60] = True
    draft = begin(open_image(body), axis, Target((Box(0, 0, 63, 63, z=(10, 30, 50)[axis]),)))
    cut = np.zeros_like(body)
    place = [slice(None)] * 3
    place[axis] = slice((10, 30, 50)[axis], (10, 30, 50)[axis] + 1)
    cut[tuple(place)] = body[tuple(place)]
    np.testing.assert_array_equal(draft.mask, cut)


def test_a_second_box_takes_the_place_of_the_first(on_volume: OpenImage):
    draft = begin(on_volume, 0, left(z=3)).prompted(on_volume, 0, right(z=3))
    np.testing.assert_array_equal(draft.mask[3], RIGHT)
    assert len(draft.steps) == 1


def test_points_and_scribbles_are_added(on_picture: OpenImage):
    draft = begin(on_picture, None, Target((Points([(10, 12)]),)))
    draft = draft.prompted(on_picture, None, Target((Points([(45, 33)]),)))
    np.testing.assert_array_equal(draft.mask, LEFT | RIGHT)
    draft = draft.prompted(on_picture, None, Target((Points([(10, 12)], [0]),)))
    np.testing.assert_array_equal(draft.mask, RIGHT)
    (step,) = draft.steps
    assert isinstance(step, Step)
    (points,) = step.target.prompts
    assert points == Points([(10, 12), (45, 33), (10, 12)], [1, 1, 0])


def test_of_two_scribbles_the_later_one_holds(on_picture: OpenImage):
    first = Scribble(rectangle(SLICE, 5, 10, 14, 10), rectangle(SLICE, 0, 0, 3, 0))
    second = Scribble(rectangle(SLICE, 0, 0, 1, 0), rectangle(SLICE, 14, 10, 20, 10))
    draft = begin(on_picture, None, Target((first,))).prompted(on_picture, None, Target((second,)))
    (step,) = draft.steps
    assert isinstance(step, Step)
    (both,) = step.target.prompts
    assert isinstance(both, Scribble)
    np.testing.assert_array_equal(both.positive, rectangle(SLICE, 5, 10, 13, 10) | rectangle(SLICE, 0, 0, 1, 0))
    assert both.negative is not None
    np.testing.assert_array_equal(both.negative, rectangle(SLICE, 2, 0, 3, 0) | rectangle(SLICE, 14, 10, 20, 10))


def test_prompts_of_different_kinds_stand_side_by_side(on_picture: OpenImage):
    draft = begin(on_picture, None, Target((WHOLE,))).prompted(on_picture, None, Target((Points([(45, 33)]),)))
    np.testing.assert_array_equal(draft.mask, RIGHT)
    (step,) = draft.steps
    assert isinstance(step, Step)
    assert [type(prompt) for prompt in step.target.prompts] == [Box, Points]


def test_two_prompts_of_one_kind_that_come_together_become_one(on_picture: OpenImage):
    """A journal has one entry of each kind, so nothing would be left of the other."""
    draft = begin(on_picture, None, Target((Points([(10, 12)]), Points([(45, 33)]))))
    np.testing.assert_array_equal(draft.mask, LEFT | RIGHT)
    np.testing.assert_array_equal(again(draft, on_picture).mask, draft.mask)


def test_a_refused_prompt_leaves_the_draft_as_it_was(on_volume: OpenImage):
    draft = begin(on_volume, 0, left(z=3))
    for target in (box(70, 0, 80, 5, z=3), left(z=DEPTH), Target((MaskPrompt(np.ones((3, 3), dtype=bool), z=3),))):
        with pytest.raises(PromptError):
            draft.prompted(on_volume, 0, target)
    np.testing.assert_array_equal(draft.mask, column(draft.mask.shape, LEFT, 3, 3))


def test_a_scribble_of_another_shape_than_the_one_before_is_refused(on_picture: OpenImage):
    draft = begin(on_picture, None, Target((Scribble(LEFT),)))
    with pytest.raises(PromptError, match="scribble"):
        draft.prompted(on_picture, None, Target((Scribble(LEFT[:32]),)))


# Carried through a volume -----------------------------------------------------------------------------------------


def test_a_mask_is_carried_from_the_slice_prompted_last(on_volume: OpenImage):
    draft = begin(on_volume, 0, left(z=1)).prompted(on_volume, 0, right(z=4)).propagated(on_volume, 0, 3, 6)
    np.testing.assert_array_equal(
        draft.mask, column(draft.mask.shape, LEFT, 1, 1) | column(draft.mask.shape, RIGHT, 3, 6)
    )


def test_slices_prompted_by_hand_survive_carrying(on_volume: OpenImage):
    draft = begin(on_volume, 0, left(z=2)).prompted(on_volume, 0, left(z=5)).prompted(on_volume, 0, right(z=4))
    draft = draft.propagated(on_volume, 0, 0, 7)
    for z in range(DEPTH):
        np.testing.assert_array_equal(draft.mask[z], LEFT if z in (2, 5) else RIGHT, err_msg=f"slice {z}")
    # ... and a correction of a carried slice survives the next carry.
    draft = draft.prompted(on_volume, 0, left(z=6)).prompted(on_volume, 0, right(z=4)).propagated(on_volume, 0, 0, 7)
    np.testing.assert_array_equal(draft.mask[6], LEFT)


def test_until_the_end_stops_where_the_object_does():
    opened = open_image(column((DEPTH, *SLICE), LEFT, 2, 5))
    draft = begin(opened, 0, left(z=3)).propagated(opened, 0, 0, 7, until_end=True)
    np.testing.assert_array_equal(draft.mask, column((DEPTH, *SLICE), LEFT, 2, 5))


def test_carrying_empties_the_slices_behind_the_end():
    opened = open_image(column((DEPTH, *SLICE), LEFT, 2, 5))
    stroke = Stroke("brush", 0, 7, ((30, 30),), 3.0)
    draft = begin(opened, 0, left(z=3)).stroked(opened, stroke).propagated(opened, 0, 0, 7, until_end=True)
    assert not draft.mask[7].any()


def test_progress_hears_of_every_slice_and_may_end_the_way(on_volume: OpenImage):
    draft = begin(on_volume, 0, left(z=3))
    heard: list[tuple[int, int]] = []
    draft.propagated(on_volume, 0, 1, 6, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(done, 6) for done in range(1, 7)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draft.propagated(on_volume, 0, 1, 6, progress=stop)
    np.testing.assert_array_equal(draft.mask, column(draft.mask.shape, LEFT, 3, 3))


def test_there_is_something_to_carry_and_somewhere_to_go(on_volume: OpenImage, on_picture: OpenImage):
    draft = begin(on_volume, 0, left(z=3))
    with pytest.raises(PromptError, match="draw a box or a point on a slice of this plane"):
        draft.propagated(on_volume, 1, 0, 5)
    with pytest.raises(PromptError, match="nothing to carry"):
        Draft.empty(on_volume.image.shape).propagated(on_volume, 0, 0, 5)
    with pytest.raises(PromptError, match="nothing to carry"):
        begin(on_picture, None, left()).propagated(on_picture, None, 0, 0)
    for first, last in ((4, 6), (0, DEPTH), (-1, 5), (5, 2)):
        with pytest.raises(PromptError):
            draft.propagated(on_volume, 0, first, last)


# Strokes ----------------------------------------------------------------------------------------------------------


def test_a_brush_adds_and_an_eraser_removes(on_picture: OpenImage):
    at = ((20, 15),)
    draft = begin(on_picture, None, left()).stroked(on_picture, Stroke("brush", 0, 0, at, 4.0))
    disc = disk(SLICE, centre=(20, 15), radius=4)
    np.testing.assert_array_equal(draft.mask, LEFT | disc)
    draft = draft.stroked(on_picture, Stroke("eraser", 0, 0, at, 8.0))
    np.testing.assert_array_equal(draft.mask, LEFT & ~disk(SLICE, centre=(20, 15), radius=8))


def test_a_stroke_alone_is_an_object(on_volume: OpenImage):
    draft = Draft.empty(on_volume.image.shape).stroked(on_volume, Stroke("brush", 1, 10, ((5, 2),), 1.0))
    assert sorted(map(tuple, np.argwhere(draft.mask).tolist())) == [
        (1, 10, 5), (2, 10, 4), (2, 10, 5), (2, 10, 6), (3, 10, 5)
    ]  # fmt: skip
    assert draft.predicted_iou == 0.0


def test_a_new_look_at_a_slice_puts_its_mask_in_place_of_strokes(on_volume: OpenImage):
    draft = begin(on_volume, 0, left(z=3)).stroked(on_volume, Stroke("brush", 0, 3, ((60, 60),), 2.0))
    draft = draft.stroked(on_volume, Stroke("brush", 0, 4, ((60, 60),), 2.0)).prompted(on_volume, 0, left(z=3))
    np.testing.assert_array_equal(draft.mask[3], LEFT)
    assert draft.mask[4].any()


@pytest.mark.parametrize(("axis", "z"), [(0, -1), (0, DEPTH), (1, 64), (2, 64)])
def test_a_stroke_on_a_slice_that_does_not_exist_is_refused(on_volume: OpenImage, axis: int, z: int):
    with pytest.raises(PromptError, match=f"slice {z} does not exist"):
        Draft.empty(on_volume.image.shape).stroked(on_volume, Stroke("brush", axis, z, ((0, 0),), 1.0))


def test_an_object_has_an_end(on_picture: OpenImage):
    stroke = Stroke("brush", 0, 0, ((1, 1),), 0.0)
    full = Draft((stroke,) * MAX_STEPS, LEFT, 1.0)
    with pytest.raises(PromptError, match="accept it"):
        full.stroked(on_picture, stroke)
    with pytest.raises(PromptError, match="accept it"):
        full.prompted(on_picture, None, left())


# The same steps once more -----------------------------------------------------------------------------------------


def again(draft: Draft, opened: OpenImage) -> Draft:
    """The draft made anew from its steps, after a journey through JSON."""
    told = json.loads(json.dumps([step_to_json(step) for step in draft.steps]))
    pixels = int(np.prod(sorted(opened.image.shape)[-2:]))
    steps = tuple(step_from_json(step, pixels=pixels) for step in told)
    assert json.loads(json.dumps([step_to_json(step) for step in steps])) == told
    return Draft(steps, empty(opened.image.shape), 0.0).replayed(opened)


CUBE = open_image(np.random.default_rng(5).random((6, 9, 12)) < 0.6)
"""Small, irregular, and of another size along each axis: nothing agrees by accident."""


def any_prompt(data: st.DataObject, shape: tuple[int, int], z: int) -> Prompt:
    rows, columns = shape
    x, y = st.integers(0, columns - 1), st.integers(0, rows - 1)
    kind = data.draw(st.sampled_from(["box", "points", "scribble", "mask"]))
    if kind == "box":
        xs, ys = sorted([data.draw(x), data.draw(x)]), sorted([data.draw(y), data.draw(y)])
        return Box(xs[0], ys[0], xs[1], ys[1], z)
    if kind == "points":
        points = data.draw(st.lists(st.tuples(x, y, st.integers(0, 1)), min_size=1, max_size=3))
        return Points([p[:2] for p in points], [p[2] for p in points], z=z)
    marks = np.random.default_rng(data.draw(st.integers(0, 1000))).integers(0, 3, shape)
    marks[data.draw(y), data.draw(x)] = 1
    if kind == "mask":
        return MaskPrompt(marks == 1, z=z)
    return Scribble(marks == 1, (marks == 2) if data.draw(st.booleans()) and (marks == 2).any() else None, z=z)


@settings(max_examples=40, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.data())
def test_the_same_steps_give_the_identical_mask(data: st.DataObject):
    shape = CUBE.image.shape
    draft = Draft.empty(shape)
    for _ in range(data.draw(st.integers(1, 10))):
        axis = data.draw(st.integers(0, 2))
        z = data.draw(st.integers(0, shape[axis] - 1))
        rows, columns = (extent for other, extent in enumerate(shape) if other != axis)
        verb = data.draw(st.sampled_from(["prompt", "prompt", "carry", "stroke"]))
        if verb == "stroke":
            path = data.draw(
                st.lists(st.tuples(st.integers(0, columns - 1), st.integers(0, rows - 1)), min_size=1, max_size=3)
            )
            tool = data.draw(st.sampled_from(["brush", "eraser"]))
            draft = draft.stroked(CUBE, Stroke(tool, axis, z, tuple(path), data.draw(st.floats(0, 3))))
        elif verb == "prompt":
            prompt = any_prompt(data, (rows, columns), z)
            draft = draft.prompted(CUBE, axis, Target((prompt,)))
        elif (
            start := next(
                (s for s in reversed(draft.steps) if isinstance(s, Step) and not s.carried and s.axis == axis), None
            )
        ) is not None:
            here = start.target.z or 0
            first, last = data.draw(st.integers(0, here)), data.draw(st.integers(here, shape[axis] - 1))
            by_hand = {s.target.z for s in draft.steps if isinstance(s, Step) and not s.carried and s.axis == axis} - {
                here
            }
            before = np.moveaxis(draft.mask, axis, 0)
            draft = draft.propagated(CUBE, axis, first, last, until_end=data.draw(st.booleans()))
            after = np.moveaxis(draft.mask, axis, 0)
            for kept in range(shape[axis]):
                if kept in by_hand or not first <= kept <= last:
                    np.testing.assert_array_equal(after[kept], before[kept])
    for made in (draft.replayed(CUBE), again(draft, CUBE)):
        np.testing.assert_array_equal(made.mask, draft.mask)
        if any(isinstance(step, Step) for step in draft.steps):
            assert made.predicted_iou == draft.predicted_iou


def test_a_picture_is_made_again_as_well(on_picture: OpenImage):
    draft = begin(on_picture, None, left()).stroked(on_picture, Stroke("brush", 0, 0, ((40, 3), (50, 9)), 2.5))
    draft = draft.prompted(on_picture, None, Target((Points([(10.5, 12.25)]),)))
    draft = draft.stroked(on_picture, Stroke("eraser", 0, 0, ((7, 12),), 1.0))
    np.testing.assert_array_equal(again(draft, on_picture).mask, draft.mask)


# JSON -------------------------------------------------------------------------------------------------------------

STEPS: list[Step | Stroke] = [
    Step(None, Target((Box(0.1, 1 / 3, 20.7, 1e-9 + 30),))),
    Step(2, Target((Points([(0.1, 2.0), (3.5, 4)], [1, 0], z=7),))),
    Step(0, Target((Scribble(LEFT, RIGHT, z=1),), z_range=(0, 5))),
    Step(1, Target((Scribble(RIGHT, z=0), Points([(1, 2)], z=0), Box(0, 0, 5, 5, z=0))), until_end=True),
    Step(0, Target((MaskPrompt(one_voxel(SLICE, (63, 0)), z=2), Box(1, 2, 3, 4, z=2)), z_range=(2, 2)), until_end=True),
    Stroke("brush", 2, 9, ((0, 0), (63, 1)), 0.1 + 0.2),
    Stroke("eraser", 0, 0, ((5, 5),), 0.0),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_every_step_goes_through_json_exactly(step: Step | Stroke):
    back = step_from_json(json.loads(json.dumps(step_to_json(step))), pixels=64 * 64)
    if isinstance(step, Stroke):
        assert back == step
        return
    assert isinstance(back, Step)
    assert (back.axis, back.until_end, back.carried, back.place) == (
        step.axis, step.until_end, step.carried, step.place
    )  # fmt: skip
    assert (back.target.z, back.target.z_range) == (step.target.z, step.target.z_range)
    for ours, theirs in zip(step.target.prompts, back.target.prompts, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, Box | Points):
            assert ours == theirs
        elif isinstance(ours, Scribble):
            assert isinstance(theirs, Scribble)
            np.testing.assert_array_equal(ours.positive, theirs.positive)
            assert (ours.negative is None) == (theirs.negative is None)
            if ours.negative is not None:
                np.testing.assert_array_equal(ours.negative, theirs.negative)
        else:
            assert isinstance(theirs, MaskPrompt)
            np.testing.assert_array_equal(ours.mask, theirs.mask)


BOX = {"axis": 0, "slice": 1, "box": [0, 0, 5, 5]}
BRUSH = {"stroke": "brush", "axis": 0, "slice": 1, "path": [[0, 0]], "radius_mm": 1.0}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {**BOX, "axis": 3},
        {**BOX, "axis": "z"},
        {**BOX, "axis": [0]},
        {**BOX, "slice": "one"},
        {**BOX, "slice": -1},
        {**BOX, "slice": float("inf")},
        {**BOX, "slice": {}},
        {**BOX, "box": [0, 0, 5]},
        {**BOX, "box": [5, 0, 0, 5]},
        {**BOX, "box": [0, 0, float("nan"), 5]},
        {**BOX, "box": None},
        {**BOX, "range": [1]},
        {**BOX, "range": [5, 2]},
        {**BOX, "range": [-1, 2]},
        {**BOX, "range": [0, float("inf")]},
        {**BOX, "range": 7},
        {"axis": 0, "slice": 1},
        {"axis": 0, "slice": 1, "points": []},
        {"axis": 0, "slice": 1, "points": [[1, 2]]},
        {"axis": 0, "slice": 1, "points": [[1, 2, 5]]},
        {"axis": 0, "slice": 1, "scribble": "stroke.png"},
        {"axis": 0, "slice": 1, "scribble": {"size": [2, 2], "counts": [4]}},
        {"axis": 0, "slice": 1, "mask": {"size": [2, 2], "counts": [1, 2]}},
        {"axis": 0, "slice": 1, "mask": {"size": [2, 2], "counts": [-4, 8]}},
        {"axis": 0, "slice": 1, "mask": {"size": [2], "counts": [4]}},
        {**BRUSH, "stroke": "axe"},
        {**BRUSH, "stroke": None},
        {**BRUSH, "axis": None},
        {**BRUSH, "path": 5},
        {**BRUSH, "path": [[0, 0, 0]]},
        {**BRUSH, "path": [[float("inf"), 0]]},
        {**BRUSH, "slice": None},
        {**BRUSH, "radius_mm": "wide"},
        {**BRUSH, "radius_mm": 10**400},
        {"stroke": "brush"},
        [],
        ["stroke"],
        "stroke",
        None,
        7,
    ],
)
def test_what_is_no_step_is_refused(entry: object):
    # As it comes from a file: without the type checks that the tests hang on functions.
    read: Callable[..., object] = inspect.unwrap(step_from_json)
    with pytest.raises(PromptError):
        read(entry, pixels=64 * 64)


@pytest.mark.parametrize("kind", ["scribble", "mask"])
def test_run_lengths_cannot_claim_more_than_a_slice(kind: str):
    bomb = {"size": [65535, 65535], "counts": [0, 65535 * 65535]}
    with pytest.raises(PromptError, match="more than a slice has"):
        step_from_json({"axis": 0, "slice": 1, kind: bomb}, pixels=64 * 64)
    wrong = {"size": [8, 8], "counts": [0, 10**15]}
    with pytest.raises(PromptError, match="add up"):
        step_from_json({"axis": 0, "slice": 1, kind: wrong}, pixels=64 * 64)
