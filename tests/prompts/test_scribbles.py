import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from any_masks import masks
from palpate.errors import PromptError
from palpate.prompts import Box
from palpate.prompts.clicks import depth, largest_part
from palpate.prompts.scribbles import (
    STROKES,
    StrokeStyle,
    free_form_stroke,
    guess_convention,
    human_scribble,
    scribble_inside,
    swin_scribble_inference,
    swin_scribble_training,
)
from phantoms import disk, empty, one_voxel, picture, rectangle, ring, vessel

seeds = st.integers(0, 2**32 - 1)
styles = st.sampled_from(list(STROKES.values()))


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def in_one_piece(stroke: np.ndarray) -> bool:
    return bool((largest_part(stroke) == stroke).all())


class TestFreeFormStroke:
    @given(masks(allow_empty=True), styles, seeds)
    def test_it_is_one_piece_of_six_pixels_in_the_region_or_nothing(
        self, region: np.ndarray, style: StrokeStyle, seed: int
    ) -> None:
        before = region.copy()
        stroke = free_form_stroke(region, rng=dice(seed), style=style)
        assert not (stroke & ~region).any()
        assert not stroke.any() or stroke.sum() > 5
        assert in_one_piece(stroke)
        assert (region == before).all()

    @given(masks(), seeds)
    def test_the_same_dice_draw_the_same_stroke(self, region: np.ndarray, seed: int) -> None:
        assert (free_form_stroke(region, rng=dice(seed)) == free_form_stroke(region, rng=dice(seed))).all()

    @pytest.mark.parametrize("region", [empty((9, 9)), rectangle((9, 9), 0, 0, 4, 0)])
    def test_five_pixels_are_too_few(self, region: np.ndarray) -> None:
        assert not any(free_form_stroke(region, rng=dice(seed)).any() for seed in range(20))

    def test_six_pixels_can_be_enough(self) -> None:
        region = rectangle((9, 9), 0, 0, 2, 1)
        drawn = [free_form_stroke(region, rng=dice(seed)) for seed in range(20)]
        assert any((stroke == region).all() for stroke in drawn)

    def test_what_lies_around_the_region_changes_nothing(self) -> None:
        small = np.ones((60, 50), dtype=bool)
        large = np.pad(small, ((7, 30), (11, 2)))
        stroke = free_form_stroke(large, rng=dice(3))
        assert (stroke[7:67, 11:61] == free_form_stroke(small, rng=dice(3))).all()

    def test_presets_differ_in_size(self) -> None:
        region = np.ones((256, 256), dtype=bool)
        sizes = {
            name: np.mean([free_form_stroke(region, rng=dice(seed), style=style).sum() for seed in range(40)])
            for name, style in STROKES.items()
        }
        assert sizes["tiny"] < sizes["small"] < sizes["rand_curve"]

    def test_a_straight_pen_draws_a_line_of_its_length_and_width(self) -> None:
        # 4 steps of 0..20, no turns, no acceleration: one straight line, at most 80 + brush long.
        style = StrokeStyle(vertices=(5, 6), speed=20, acceleration=0, turning=0, motion=0, shake=0, brush=(3, 4))
        for seed in range(20):
            stroke = free_form_stroke(np.ones((200, 200), dtype=bool), rng=dice(seed), style=style)
            y, x = np.nonzero(stroke)
            length = math.hypot(np.ptp(x), np.ptp(y))
            assert length < 84
            assert stroke.sum() <= 4.5 * (length + 4)

    def test_a_stroke_is_thin_beside_its_length(self) -> None:
        region = np.ones((256, 256), dtype=bool)
        for seed in range(20):
            stroke = free_form_stroke(region, rng=dice(seed))
            assert depth(stroke).max() <= 9

    def test_starts_are_spread_over_the_whole_region(self) -> None:
        region = np.ones((64, 64), dtype=bool)
        often = np.mean(
            [free_form_stroke(region, rng=dice(seed), style=STROKES["tiny"]) for seed in range(400)], axis=0
        )
        quarters = [often[:32, :32].sum(), often[:32, 32:].sum(), often[32:, :32].sum(), often[32:, 32:].sum()]
        assert max(quarters) < 1.5 * min(quarters)

    def test_a_hand_scales_with_the_image(self) -> None:
        twice = STROKES["rand_curve"].scaled(2)
        assert (twice.speed, twice.acceleration, twice.motion, twice.shake) == (40, 30, 6, 6)
        assert (twice.brush, twice.vertices, twice.turning) == ((6, 20), (10, 30), 0.5)
        assert STROKES["rand_curve"].scaled(0.01).brush == (1, 2)


class TestSwinScribble:
    def test_in_training_it_lies_in_the_box_whatever_is_there(self) -> None:
        box = Box(60, 70, 200, 190)
        inside = rectangle((256, 256), 60, 70, 200, 190)
        strokes = [swin_scribble_training(box, shape=(256, 256), rng=dice(seed)) for seed in range(20)]
        assert all(stroke.any() and not (stroke & ~inside).any() for stroke in strokes)

    def test_at_inference_it_keeps_to_what_is_not_black_in_a_smaller_box(self) -> None:
        # Sides of 120: 120 // 8 = 15 to 120 // 6 - 1 = 19 pixels inwards, so 75..165 is the most that can be reached.
        body = disk((240, 240), centre=(120, 120), radius=70)
        inside = body & rectangle((240, 240), 75, 75, 165, 165)
        pixels = picture((body, 80))
        drawn = np.zeros_like(body)
        for seed in range(40):
            stroke = swin_scribble_inference(pixels, Box(60, 60, 180, 180), rng=dice(seed))
            assert not (stroke & ~inside).any()
            drawn |= stroke
        assert drawn.any()

    def test_a_black_image_gets_none(self) -> None:
        assert not swin_scribble_inference(np.zeros((50, 50), np.uint8), Box(5, 5, 40, 40), rng=dice()).any()

    @given(masks(), seeds)
    def test_any_box_works(self, mask: np.ndarray, seed: int) -> None:
        box, shape = Box.around(mask), (mask.shape[0], mask.shape[1])
        for stroke in (
            swin_scribble_training(box, shape=shape, rng=dice(seed)),
            swin_scribble_inference(picture((mask, 9)), box, rng=dice(seed)),
        ):
            assert stroke.shape == mask.shape
            assert not stroke.any() or Box.around(stroke).x_min >= box.x_min


class TestScribbleInside:
    @given(masks(), styles, seeds)
    def test_it_is_one_piece_on_the_mask_and_never_nothing(
        self, mask: np.ndarray, style: StrokeStyle, seed: int
    ) -> None:
        scribble = scribble_inside(mask, rng=dice(seed), style=style, z=5)
        assert scribble.positive.any()
        assert not (scribble.positive & ~mask).any()
        assert in_one_piece(scribble.positive)
        assert scribble.negative is None
        assert scribble.z == 5

    @given(masks(), seeds)
    def test_the_same_dice_draw_the_same_stroke(self, mask: np.ndarray, seed: int) -> None:
        first, second = (scribble_inside(mask, rng=dice(seed)).positive for _ in range(2))
        assert (first == second).all()

    def test_on_a_vessel_it_follows_the_vessel(self) -> None:
        stroke = scribble_inside(vessel((60, 60)), rng=dice()).positive
        assert stroke.sum() > 20

    @pytest.mark.parametrize(
        "draw",
        [
            lambda: disk((256, 256), centre=(120, 120), radius=60),
            lambda: ring((256, 256), centre=(128, 128), outer=90, inner=70),
            lambda: rectangle((256, 256), 20, 100, 230, 130),
        ],
    )
    def test_it_is_a_line_that_keeps_clear_of_the_border(self, draw: Callable[[], np.ndarray]) -> None:
        mask = draw()
        for seed in range(10):
            stroke = scribble_inside(mask, rng=dice(seed)).positive
            box = Box.around(stroke)
            # Longer than a brush is wide, covering little of the object, mostly off the border.
            assert math.hypot(box.x_max - box.x_min, box.y_max - box.y_min) > 30
            assert stroke.sum() < 0.3 * mask.sum()
            assert (depth(mask)[stroke] > 1).mean() > 0.8

    def test_of_several_parts_the_largest_is_drawn_on(self) -> None:
        large = disk((64, 64), centre=(40, 40), radius=15)
        small = disk((64, 64), centre=(8, 8), radius=5)
        assert not (scribble_inside(large | small, rng=dice()).positive & small).any()

    def test_a_single_pixel_is_drawn_on(self) -> None:
        mask = one_voxel((9, 9), (8, 0))
        assert (scribble_inside(mask, rng=dice()).positive == mask).all()

    def test_nothing_is_drawn_in_an_empty_mask(self) -> None:
        with pytest.raises(PromptError, match="no scribble fits an empty mask; skip the slice or pass another label"):
            scribble_inside(empty((9, 9)), rng=dice())


def strokes() -> np.ndarray:
    marks = np.zeros((8, 8), dtype=np.uint8)
    marks[2, 2:5], marks[6, 0:7] = 1, 2
    return marks


def classes() -> np.ndarray:
    """Background drawn in row 0, object 1 in row 2, object 3 in row 4; 4 is not drawn on."""
    marks = np.full((8, 8), 4, dtype=np.uint8)
    marks[0, 0:6], marks[2, 2:5], marks[4, 3:7] = 0, 1, 3
    return marks


class TestHumanScribble:
    def test_strokes_are_on_and_beside_the_object(self) -> None:
        scribble = human_scribble(strokes(), value=1, convention="strokes", z=9)
        assert scribble is not None
        assert scribble.negative is not None
        assert (scribble.positive == (strokes() == 1)).all()
        assert (scribble.negative == (strokes() == 2)).all()
        assert scribble.z == 9

    def test_the_strokes_of_all_other_classes_are_beside_the_object(self) -> None:
        scribble = human_scribble(classes(), value=3, convention="classes")
        assert scribble is not None
        assert scribble.negative is not None
        assert (scribble.positive == (classes() == 3)).all()
        assert (scribble.negative == ((classes() == 0) | (classes() == 1))).all()

    def test_an_object_without_a_stroke_has_none(self) -> None:
        assert human_scribble(classes(), value=2, convention="classes") is None
        assert human_scribble(empty((4, 4)).astype(np.uint8), value=1, convention="strokes") is None

    def test_without_strokes_beside_the_object_there_is_no_negative(self) -> None:
        marks = np.where(strokes() == 1, 1, 0).astype(np.uint8)
        scribble = human_scribble(marks, value=1, convention="strokes")
        assert scribble is not None
        assert scribble.negative is None

    def test_classes_are_not_taken_for_strokes(self) -> None:
        with pytest.raises(PromptError, match=r"these also \[3, 4\].*pass convention='classes'"):
            human_scribble(classes(), value=1, convention="strokes")

    def test_the_value_of_nothing_is_no_object(self) -> None:
        with pytest.raises(PromptError, match="value 4 stands where nothing was drawn"):
            human_scribble(classes(), value=4, convention="classes")

    def test_a_slice_drawn_on_everywhere_needs_to_say_what_nothing_is(self) -> None:
        marks = np.zeros((8, 8), dtype=np.uint8)
        marks[2, 2:5] = 1
        scribble = human_scribble(marks, value=1, convention="classes", unlabelled=4)
        assert scribble is not None
        assert scribble.negative is not None
        assert scribble.negative.sum() == 61


class TestGuessConvention:
    def test_strokes_lie_on_and_beside_the_label(self) -> None:
        labels = rectangle((8, 8), 1, 1, 5, 3).astype(np.uint8)
        assert guess_convention(strokes(), labels) == "strokes"

    def test_classes_lie_on_their_labels(self) -> None:
        labels = np.zeros((8, 8), dtype=np.uint8)
        labels[2, 1:6], labels[4, 2:8] = 1, 3
        assert guess_convention(classes(), labels) == "classes"

    def test_what_fits_both_or_neither_is_for_a_person_to_say(self) -> None:
        only = np.where(strokes() == 1, 1, 0).astype(np.uint8)
        with pytest.raises(PromptError, match="both fit"):
            guess_convention(only, only)
        with pytest.raises(PromptError, match="neither fits"):
            guess_convention(strokes(), np.zeros((8, 8), dtype=np.uint8))
        with pytest.raises(PromptError, match="must be one slice"):
            guess_convention(strokes(), np.zeros((8, 9), dtype=np.uint8))
