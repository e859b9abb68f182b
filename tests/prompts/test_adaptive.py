import math
from collections import Counter
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from any_masks import masks
from palpate.errors import PromptError, SettingError
from palpate.prompts import Box
from palpate.prompts.adaptive import PRESETS, AdaptivePerturbation, Offsets
from palpate.prompts.perturbation import medsam_jitter

EXAMPLE = Box(100, 200, 300, 260)
"""200 wide and 60 high: on a canvas of 1024, theta = (200 / 1024) / 0.2 = 0.9765625 and xi = 200 / 60 = 10 / 3."""

FULL = PRESETS["adaptive-bidirectional"]

arms = st.sampled_from(sorted(PRESETS))
seeds = st.integers(0, 2**16)


# Boxes are made in the tests: the type checks of their arguments draw random numbers, which strategies must not do.
places = st.tuples(st.integers(300, 500), st.integers(300, 500), st.integers(0, 200), st.integers(0, 200))


def inner_box(place: tuple[int, int, int, int]) -> Box:
    """A box on a canvas of 1024, so far from the border that nothing is cut."""
    x, y, width, height = place
    return Box(x, y, x + width, y + height)


def corners(box: Box) -> np.ndarray:
    return np.array([box.x_min, box.y_min, box.x_max, box.y_max])


def samples(perturbation: AdaptivePerturbation, box: Box, *, count: int, side: int = 1024) -> np.ndarray:
    """`count` rows of x_min, y_min, x_max, y_max."""
    rng = np.random.default_rng(0)
    return np.array([corners(perturbation.sample(box, canvas_side=side, rng=rng).box) for _ in range(count)])


class TestTheWorkedExample:
    def test_its_coefficients(self) -> None:
        found = FULL.coefficients(EXAMPLE, canvas_side=1024)
        assert found.theta == pytest.approx(0.9765625)
        assert found.xi == pytest.approx(10 / 3)

    # Offsets: 20 * 0.9765625 = 19.53125 along x, divided by 10 / 3 5.859375 along y.
    @pytest.mark.parametrize(
        ("arm", "ranges"),
        [
            ("medsam", [(80, 100), (180, 200), (300, 320), (260, 280)]),
            ("bidirectional", [(80, 120), (180, 220), (280, 320), (240, 280)]),
            ("adaptive", [(80.46875, 100), (194.140625, 200), (300, 319.53125), (260, 265.859375)]),
            (
                "adaptive-bidirectional",
                [(80.46875, 119.53125), (194.140625, 205.859375), (280.46875, 319.53125), (254.140625, 265.859375)],
            ),
        ],
    )
    def test_its_ranges_in_the_four_arms(self, arm: str, ranges: list[tuple[float, float]]) -> None:
        found = astuple(PRESETS[arm].ranges(EXAMPLE, canvas_side=1024))  # x_min, y_min, x_max, y_max
        for ends, expected in zip(found, ranges, strict=True):
            assert ends == pytest.approx(expected)

    @pytest.mark.parametrize("arm", PRESETS)
    def test_draws_fill_the_ranges_from_end_to_end(self, arm: str) -> None:
        drawn = samples(PRESETS[arm], EXAMPLE, count=1000)
        for values, (first, last) in zip(drawn.T, astuple(PRESETS[arm].ranges(EXAMPLE, canvas_side=1024)), strict=True):
            assert first <= values.min() <= values.max() <= last
            # Of 1000 uniform draws, none in the outer 3 percent has a chance of 0.97^1000, about 1e-13.
            assert values.min() < first + 0.03 * (last - first)
            assert values.max() > last - 0.03 * (last - first)

    def test_a_canvas_of_a_quarter_has_ranges_of_a_quarter(self) -> None:
        ranges = FULL.ranges(Box(25, 50, 75, 65), canvas_side=256)
        assert ranges.x_min == pytest.approx((80.46875 / 4, 119.53125 / 4))
        assert ranges.y_max == pytest.approx((254.140625 / 4, 265.859375 / 4))


class TestTheMedsamArm:
    def test_draws_the_whole_numbers_from_0_to_20_each_as_likely(self) -> None:
        drawn = samples(PRESETS["medsam"], EXAMPLE, count=2100)
        for offsets in ((corners(EXAMPLE) - drawn) * [1, 1, -1, -1]).T:
            counts = Counter(offsets.tolist())
            assert set(counts) == set(range(21))
            # 100 each, with a deviation of sqrt(2100 * 1/21 * 20/21) = 10.
            assert all(50 < count < 150 for count in counts.values())

    @given(masks(), seeds)
    def test_is_medsams_jitter(self, mask: np.ndarray, seed: int) -> None:
        box = Box.around(mask)
        drawn = PRESETS["medsam"].on_image(box, shape=mask.shape, rng=np.random.default_rng(seed))
        assert drawn.box == medsam_jitter(box, shape=mask.shape, rng=np.random.default_rng(seed))


class TestEveryArm:
    @given(masks(), arms, seeds)
    def test_the_box_of_any_mask_stays_a_box_on_the_image(self, mask: np.ndarray, arm: str, seed: int) -> None:
        rows, columns = mask.shape
        box = PRESETS[arm].on_image(Box.around(mask, z=4), shape=mask.shape, rng=np.random.default_rng(seed)).box
        assert 0 <= box.x_min <= box.x_max <= columns - 1
        assert 0 <= box.y_min <= box.y_max <= rows - 1
        assert box.z == 4

    @given(masks(), arms, seeds)
    def test_on_a_canvas_it_may_reach_into_the_padding(self, mask: np.ndarray, arm: str, seed: int) -> None:
        side = max(mask.shape)
        box = PRESETS[arm].sample(Box.around(mask), canvas_side=side, rng=np.random.default_rng(seed)).box
        assert 0 <= box.x_min <= box.x_max <= side - 1
        assert 0 <= box.y_min <= box.y_max <= side - 1

    @given(places, arms, seeds)
    def test_the_same_generator_gives_the_same_box(self, place: tuple[int, int, int, int], arm: str, seed: int) -> None:
        box = inner_box(place)
        first, again = (PRESETS[arm].sample(box, canvas_side=1024, rng=np.random.default_rng(seed)) for _ in range(2))
        assert first == again

    @given(places, arms, seeds, st.sampled_from(["width", "sqrt_area", "area"]))
    def test_without_delta_or_eps_it_changes_nothing(
        self, place: tuple[int, int, int, int], arm: str, seed: int, mode: Any
    ) -> None:
        box = inner_box(place)
        still = replace(PRESETS[arm], delta_expand=0, eps_shrink=0, theta_mode=mode)
        drawn = still.sample(box, canvas_side=1024, rng=np.random.default_rng(seed))
        assert drawn.box == box
        assert drawn.offsets == Offsets(0.0, 0.0, 0.0, 0.0)

    @given(masks(), st.sampled_from(["medsam", "adaptive"]), seeds)
    def test_arms_that_only_enlarge_never_cut_the_tight_box(self, mask: np.ndarray, arm: str, seed: int) -> None:
        tight = Box.around(mask)
        box = PRESETS[arm].on_image(tight, shape=mask.shape, rng=np.random.default_rng(seed)).box
        assert box.x_min <= tight.x_min
        assert box.y_min <= tight.y_min
        assert box.x_max >= tight.x_max
        assert box.y_max >= tight.y_max

    @given(places, arms, seeds)
    def test_offsets_say_how_far_each_side_went_out(
        self, place: tuple[int, int, int, int], arm: str, seed: int
    ) -> None:
        box = inner_box(place)
        big = Box(box.x_min - 100, box.y_min - 100, box.x_max + 100, box.y_max + 100)  # nothing is cut or re-centred
        drawn = PRESETS[arm].sample(big, canvas_side=1024, rng=np.random.default_rng(seed))
        assert (corners(drawn.box) - corners(big)) * [-1, -1, 1, 1] == pytest.approx(
            np.array(astuple(drawn.offsets)), abs=1e-9
        )

    @pytest.mark.parametrize("arm", PRESETS)
    def test_the_mean_move_is_half_of_eps_and_delta_together(self, arm: str) -> None:
        rng = np.random.default_rng(0)
        offsets = np.array(
            [astuple(PRESETS[arm].sample(EXAMPLE, canvas_side=1024, rng=rng).offsets) for _ in range(2000)]
        )
        x, y = (19.53125, 5.859375) if PRESETS[arm].adaptive else (20, 20)
        mean = np.array([x, y, x, y]) / 2 * (not PRESETS[arm].bidirectional)
        # The widest range, 40 px, has a deviation of 11.5, that of the mean is 11.5 / sqrt(2000) = 0.26.
        assert offsets.mean(axis=0) == pytest.approx(mean, abs=1.3)

    def test_a_box_outside_the_canvas_is_refused(self) -> None:
        with pytest.raises(PromptError, match="lies outside the image"):
            FULL.sample(Box(1024, 0, 1030, 5), canvas_side=1024, rng=np.random.default_rng(0))


class TestTheAdaptiveRange:
    @given(places)
    def test_has_the_proportions_of_the_box(self, place: tuple[int, int, int, int]) -> None:
        box = inner_box(place)
        ranges = FULL.ranges(box, canvas_side=1024)
        x, y = ranges.x_min[1] - ranges.x_min[0], ranges.y_min[1] - ranges.y_min[0]
        width, height = max(1, box.x_max - box.x_min), max(1, box.y_max - box.y_min)
        assert y / x == pytest.approx(height / width, rel=1e-6)

    @given(places)
    def test_is_the_same_share_of_every_box(self, place: tuple[int, int, int, int]) -> None:
        box = inner_box(place)
        # delta 20 of 1024 at a side of 0.2 of 1024: 20 / 204.8 of the side, whatever the side.
        _, x_max = FULL.ranges(box, canvas_side=1024).x_max
        assert x_max - box.x_max == pytest.approx(20 / 204.8 * max(1, box.x_max - box.x_min))

    @given(places)
    def test_transposes_with_the_image(self, place: tuple[int, int, int, int]) -> None:
        box = inner_box(place)
        across = FULL.ranges(box, canvas_side=1024)
        down = FULL.ranges(Box(box.y_min, box.x_min, box.y_max, box.x_max), canvas_side=1024)
        assert down.x_min == pytest.approx(across.y_min)
        assert down.y_min == pytest.approx(across.x_min)
        assert down.x_max == pytest.approx(across.y_max)
        assert down.y_max == pytest.approx(across.x_max)

    @given(st.integers(1, 500), st.integers(1, 500), st.sampled_from(["width", "sqrt_area", "area"]))
    def test_grows_with_the_target(self, width: int, growth: int, mode: Any) -> None:
        perturbation = replace(FULL, theta_mode=mode)
        small, large = (
            perturbation.ranges(Box(10, 10, 10 + side, 10 + side), canvas_side=1024).x_min
            for side in (width, width + growth)
        )
        assert small[1] - small[0] < large[1] - large[0]

    def test_of_a_large_target_goes_beyond_medsams(self) -> None:
        # A liver, 450 px wide: 450 / 204.8 * 20 = 43.9 px. The limits bound the factors, not the moves.
        _, x_max = FULL.ranges(Box(0, 0, 450, 300), canvas_side=1024).x_max
        assert x_max - 450 == pytest.approx(43.945, abs=1e-3)

    def test_can_be_limited_in_pixels(self) -> None:
        limited = replace(FULL, max_offset_px=10)
        assert limited.ranges(Box(0, 0, 450, 0), canvas_side=1024).x_max == pytest.approx((440, 460))
        assert limited.ranges(Box(0, 0, 225, 0), canvas_side=512).x_max == pytest.approx((220, 230))

    def test_of_a_box_of_one_pixel_is_that_of_a_side_of_one(self) -> None:
        # 20 / 204.8 = 0.0977 px.
        assert FULL.ranges(Box(7, 7, 7, 7), canvas_side=1024).x_max == pytest.approx((6.90234, 7.09766), abs=1e-5)

    @pytest.mark.parametrize(
        ("mode", "theta"),
        [
            ("width", 200 / 204.8),
            ("sqrt_area", math.sqrt(200 * 60) / 204.8),
            ("area", 200 * 60 / 204.8**2),
            ("mask_area", 9000 / 204.8**2),
        ],
    )
    def test_may_follow_other_sizes_than_the_width(self, mode: Any, theta: float) -> None:
        found = replace(FULL, theta_mode=mode).coefficients(EXAMPLE, canvas_side=1024, mask_area=9000)
        assert found.theta == pytest.approx(theta)

    def test_may_count_pixels_as_the_other_perturbations_do(self) -> None:
        counting = replace(FULL, pixel_inclusive=True)
        assert counting.coefficients(Box(0, 0, 9, 4), canvas_side=100).theta == pytest.approx(10 / 20)
        assert counting.coefficients(Box(0, 0, 9, 4), canvas_side=100).xi == pytest.approx(2)

    def test_by_the_masks_area_needs_the_area(self) -> None:
        by_area = replace(FULL, theta_mode="mask_area")
        with pytest.raises(SettingError, match=r"needs the mask's number of pixels; pass mask_area"):
            by_area.ranges(EXAMPLE, canvas_side=1024)
        with pytest.raises(PromptError, match="no box fits an empty mask"):
            by_area.ranges(EXAMPLE, canvas_side=1024, mask_area=0)


class TestTheFactors:
    def test_stay_within_their_limits(self) -> None:
        # delta 30 is cut to 20, eps -30 to -10, as (1) to (4) demand.
        fixed = AdaptivePerturbation(adaptive=False, delta_expand=30, delta_max=20, eps_shrink=-30, eps_min=-10)
        assert fixed.ranges(EXAMPLE, canvas_side=1024).x_max == pytest.approx((290, 320))

    def test_a_shrinking_factor_may_be_given_as_a_magnitude(self) -> None:
        assert AdaptivePerturbation(eps_shrink=5, eps_min=8) == AdaptivePerturbation(eps_shrink=-5, eps_min=-8)

    @given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0, 50), st.floats(0, 50))
    def test_eps_is_never_above_nor_delta_below_zero(
        self, eps_shrink: float, eps_min: float, delta_expand: float, delta_max: float
    ) -> None:
        perturbation = AdaptivePerturbation(
            eps_shrink=eps_shrink, eps_min=eps_min, delta_expand=delta_expand, delta_max=delta_max
        )
        first, last = perturbation.ranges(EXAMPLE, canvas_side=1024).x_max
        assert first <= 300 <= last

    def test_drawn_for_every_box_they_favour_small_moves(self) -> None:
        # t = u * d with u and d uniform has mean |t| = 1/4 of the limit, not 1/2.
        drawn = replace(PRESETS["adaptive"], factor_sampling="uniform", adaptive=False)
        moves = samples(drawn, EXAMPLE, count=2000)[:, 2] - 300
        assert moves.mean() == pytest.approx(5, abs=0.5)
        assert moves.max() <= 20

    def test_drawn_for_every_box_they_may_shrink_too(self) -> None:
        drawn = replace(FULL, factor_sampling="uniform", adaptive=False)
        moves = samples(drawn, EXAMPLE, count=500)[:, 2] - 300
        assert -20 <= moves.min() < 0 < moves.max() <= 20

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"delta_expand": -1}, "delta_expand -1 makes no range; give a finite number >= 0 .shrinking is what eps"),
            ({"delta_max": math.inf}, "delta_max inf"),
            ({"eps_shrink": math.nan}, "eps_shrink nan makes no range"),
            ({"theta_ref": 0}, "theta_ref 0 makes no range; give a finite number > 0"),
            ({"max_offset_px": -1}, "max_offset_px -1"),
            ({"min_side_px": -1}, "min_side_px -1"),
            ({"min_side_fraction": 1.5}, "min_side_fraction 1.5 is more than the whole side; give 0 to 1"),
        ],
    )
    def test_what_makes_no_range(self, settings: dict[str, float], told: str) -> None:
        with pytest.raises(SettingError, match=told):
            AdaptivePerturbation(**settings)


class TestTheSign:
    def test_taken_literally_min_and_max_move_the_same_way(self) -> None:
        literal = AdaptivePerturbation(adaptive=False, eps_shrink=-5, sign="literal")
        ranges = literal.ranges(EXAMPLE, canvas_side=1024)
        assert ranges.x_min == pytest.approx((95, 120))
        assert ranges.x_max == pytest.approx((295, 320))
        drawn = samples(literal, EXAMPLE, count=500)
        assert 95 <= drawn[:, 0].min() < 96 < 119 < drawn[:, 0].max() <= 120
        assert 295 <= drawn[:, 2].min() < 296 < 319 < drawn[:, 2].max() <= 320

    def test_makes_no_difference_to_the_range_where_eps_is_minus_delta(self) -> None:
        outward, literal = (
            replace(FULL, sign=sign).ranges(EXAMPLE, canvas_side=1024) for sign in ("outward", "literal")
        )
        for one, other in zip(astuple(outward), astuple(literal), strict=True):
            assert one == pytest.approx(other)

    @given(seeds)
    def test_offsets_are_outward_all_the_same(self, seed: int) -> None:
        literal = AdaptivePerturbation(adaptive=False, bidirectional=False, sign="literal")
        drawn = literal.sample(EXAMPLE, canvas_side=1024, rng=np.random.default_rng(seed))
        # Without eps, printed signs shift: the left side comes in, the right side goes out.
        assert drawn.box.x_min >= 100
        assert drawn.offsets.x_min <= 0
        assert drawn.offsets.x_max >= 0


class TestSmallTargets:
    @given(st.integers(1, 39), seeds)
    def test_a_quarter_of_the_side_is_left(self, side: int, seed: int) -> None:
        # Sides that come in by up to 20 px each would cross on a target below 40 px.
        drawn = PRESETS["bidirectional"].sample(
            Box(500, 500, 500 + side, 500 + side), canvas_side=1024, rng=np.random.default_rng(seed)
        )
        least = max(1, side / 4)
        assert drawn.box.x_max - drawn.box.x_min >= least - 1e-9
        assert drawn.box.y_max - drawn.box.y_min >= least - 1e-9

    def test_a_box_without_extent_stays_one_where_it_would_be_turned_inside_out(self) -> None:
        drawn = samples(FULL, Box(500, 500, 500, 500), count=200)
        widths = drawn[:, 2] - drawn[:, 0]
        assert widths.min() == 0
        assert 0 < widths.max() <= 2 * 20 / 204.8

    @given(st.integers(4, 500), seeds)
    def test_the_adaptive_range_never_needs_the_rule(self, side: int, seed: int) -> None:
        # Two sides in by 9.8 percent each leave 80 percent.
        drawn = FULL.sample(Box(100, 100, 100 + side, 100 + side), canvas_side=1024, rng=np.random.default_rng(seed))
        assert drawn.box.x_min == pytest.approx(100 - drawn.offsets.x_min)
        assert drawn.box.x_max == pytest.approx(100 + side + drawn.offsets.x_max)


class TestTheBorder:
    def test_is_the_last_pixel_as_in_lite_medsam(self) -> None:
        drawn = samples(PRESETS["medsam"], Box(0, 0, 1023, 1023), count=20)
        assert (drawn == [0, 0, 1023, 1023]).all()

    def test_may_be_the_canvas_side_as_in_medsam(self) -> None:
        drawn = samples(replace(PRESETS["medsam"], clip_hi="side"), Box(0, 0, 1023, 1023), count=50)
        assert drawn.max() == 1024

    def test_of_an_image_is_the_images_own(self) -> None:
        rng = np.random.default_rng(0)
        drawn = [PRESETS["medsam"].on_image(Box(0, 0, 511, 299), shape=(300, 512), rng=rng).box for _ in range(20)]
        assert {box.y_max for box in drawn} == {299}
