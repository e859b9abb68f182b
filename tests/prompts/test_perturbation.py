import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from any_masks import masks
from palpate.errors import PromptError, SettingError
from palpate.prompts import Box
from palpate.prompts.perturbation import (
    SIDES,
    enlarged,
    enlarged_at_random,
    jittered,
    medsam_jitter,
    one_sided,
    one_sided_at_random,
    per_axis,
    per_axis_at_random,
    scaled,
    scaled_at_random,
    shifted,
    shifted_at_random,
    shrunk,
    shrunk_at_random,
)

ROOM = (100, 200)
"""Rows and columns of an image with room around BOX."""

BOX = Box(50, 40, 69, 49, z=3)
"""20 pixels wide and 10 high."""

AT_RANDOM: dict[str, Callable[..., Box]] = {
    "enlarged": enlarged_at_random,
    "shrunk": shrunk_at_random,
    "shifted": shifted_at_random,
    "scaled": scaled_at_random,
    "one side": one_sided_at_random,
    "per axis": per_axis_at_random,
    "jittered": jittered,
    "medsam": lambda box, *, fraction, shape, rng: medsam_jitter(box, shape=shape, rng=rng),
}

EVERY: dict[str, Callable[..., Box]] = AT_RANDOM | {
    "enlarged by": lambda box, *, fraction, shape, rng: enlarged(box, fraction=fraction, shape=shape),
    "shrunk by": lambda box, *, fraction, shape, rng: shrunk(box, fraction=fraction, shape=shape),
    "shifted by": lambda box, *, fraction, shape, rng: shifted(
        box, x_fraction=fraction, y_fraction=-fraction, shape=shape
    ),
    "scaled by": lambda box, *, fraction, shape, rng: scaled(box, factor=fraction, shape=shape),
    "left by": lambda box, *, fraction, shape, rng: one_sided(box, side="left", fraction=-fraction, shape=shape),
    "bottom by": lambda box, *, fraction, shape, rng: one_sided(box, side="bottom", fraction=fraction, shape=shape),
    "per axis by": lambda box, *, fraction, shape, rng: per_axis(
        box, x_fraction=fraction, y_fraction=-fraction, shape=shape
    ),
}

fractions = st.floats(0, 3)
seeds = st.integers(0, 2**16)


def corners(box: Box) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max


def contains(outer: Box, inner: Box) -> bool:
    return (
        outer.x_min <= inner.x_min
        and outer.y_min <= inner.y_min
        and inner.x_max <= outer.x_max
        and inner.y_max <= outer.y_max
    )


class TestEveryPerturbation:
    @pytest.mark.parametrize("name", EVERY)
    @given(mask=masks(), fraction=fractions, seed=seeds)
    def test_the_box_of_any_mask_stays_a_box_on_the_image(
        self, name: str, mask: np.ndarray, fraction: float, seed: int
    ) -> None:
        rows, columns = mask.shape
        box = EVERY[name](Box.around(mask, z=5), fraction=fraction, shape=mask.shape, rng=np.random.default_rng(seed))
        assert 0 <= box.x_min <= box.x_max <= columns - 1
        assert 0 <= box.y_min <= box.y_max <= rows - 1
        assert box.z == 5

    @pytest.mark.parametrize("name", EVERY.keys() - {"medsam", "scaled by"})
    def test_a_fraction_of_nothing_changes_nothing(self, name: str) -> None:
        assert EVERY[name](BOX, fraction=0, shape=ROOM, rng=np.random.default_rng(0)) == BOX

    @pytest.mark.parametrize("name", AT_RANDOM)
    def test_the_same_generator_gives_the_same_box_and_another_another(self, name: str) -> None:
        first, again, other = (
            AT_RANDOM[name](BOX, fraction=0.3, shape=ROOM, rng=np.random.default_rng(seed)) for seed in (7, 7, 8)
        )
        assert first == again
        assert first != other

    @pytest.mark.parametrize("name", EVERY)
    def test_a_box_that_reaches_out_is_cut_first(self, name: str) -> None:
        cut, reaching = (
            EVERY[name](box, fraction=0.1, shape=ROOM, rng=np.random.default_rng(0))
            for box in (Box(0, 40, 19, 99), Box(-30, 40, 19, 300))
        )
        assert cut == reaching

    @pytest.mark.parametrize("name", EVERY)
    def test_a_box_outside_is_refused(self, name: str) -> None:
        with pytest.raises(PromptError, match="lies outside the image"):
            EVERY[name](Box(200, 0, 210, 5), fraction=0.1, shape=ROOM, rng=np.random.default_rng(0))

    @pytest.mark.parametrize("name", EVERY.keys() - {"medsam"})
    @pytest.mark.parametrize("fraction", [math.nan, math.inf])
    def test_a_fraction_is_a_finite_number(self, name: str, fraction: float) -> None:
        with pytest.raises(SettingError, match="give a finite share of its length"):
            EVERY[name](BOX, fraction=fraction, shape=ROOM, rng=np.random.default_rng(0))

    @pytest.mark.parametrize("name", [*AT_RANDOM.keys() - {"medsam"}, "enlarged by", "shrunk by", "scaled by"])
    def test_a_direction_in_the_name_is_not_turned_round_by_a_sign(self, name: str) -> None:
        with pytest.raises(SettingError, match=r"-0.1 is negative.*one_sided or per_axis, where negative is inward"):
            EVERY[name](BOX, fraction=-0.1, shape=ROOM, rng=np.random.default_rng(0))


class TestEnlarged:
    def test_each_side_goes_out_by_its_share_of_the_pixels_covered(self) -> None:
        # A tenth of 20 pixels is 2, of 10 pixels 1.
        assert enlarged(BOX, fraction=0.1, shape=ROOM) == Box(48, 39, 71, 50, z=3)

    def test_a_box_of_one_pixel_grows_too(self) -> None:
        assert enlarged(Box(5, 5, 5, 5), fraction=0.25, shape=(9, 9)) == Box(4.75, 4.75, 5.25, 5.25)

    def test_it_stops_at_the_border(self) -> None:
        assert enlarged(Box(1, 0, 10, 9), fraction=0.5, shape=(12, 14)) == Box(0, 0, 13, 11)

    @given(masks(), fractions, seeds)
    def test_it_contains_the_box_it_came_from(self, mask: np.ndarray, fraction: float, seed: int) -> None:
        box = Box.around(mask)
        most = enlarged(box, fraction=fraction, shape=mask.shape)
        drawn = enlarged_at_random(box, fraction=fraction, shape=mask.shape, rng=np.random.default_rng(seed))
        assert contains(drawn, box)
        assert contains(most, drawn)

    def test_at_random_the_sides_go_out_by_half_the_fraction_on_average_each_for_itself(self) -> None:
        rng = np.random.default_rng(0)
        moved = np.array([corners(enlarged_at_random(BOX, fraction=0.2, shape=ROOM, rng=rng)) for _ in range(2000)])
        # U(0, 4) along x: mean 2, deviation of the mean 1.15 / sqrt(2000) = 0.026. U(0, 2) along y: half of that.
        assert moved.mean(axis=0) == pytest.approx([48, 39, 71, 50], abs=0.13)
        between = np.corrcoef(moved.T)[~np.eye(4, dtype=bool)]
        assert np.abs(between).max() < 0.12


class TestShrunk:
    def test_each_side_comes_in_by_its_share_of_the_pixels_covered(self) -> None:
        assert shrunk(BOX, fraction=0.1, shape=ROOM) == Box(52, 41, 67, 48, z=3)

    def test_from_half_on_the_centre_is_left(self) -> None:
        assert shrunk(BOX, fraction=0.5, shape=ROOM) == Box(59.5, 44.5, 59.5, 44.5, z=3)
        assert shrunk(BOX, fraction=2, shape=ROOM) == Box(59.5, 44.5, 59.5, 44.5, z=3)

    def test_a_box_of_one_row_stays_on_its_row(self) -> None:
        assert shrunk(Box(0, 4, 9, 4), fraction=0.2, shape=(9, 20)) == Box(2, 4, 7, 4)

    @given(masks(), fractions, seeds)
    def test_it_lies_inside_the_box_it_came_from(self, mask: np.ndarray, fraction: float, seed: int) -> None:
        box = Box.around(mask)
        assert contains(box, shrunk(box, fraction=fraction, shape=mask.shape))
        drawn = shrunk_at_random(box, fraction=fraction, shape=mask.shape, rng=np.random.default_rng(seed))
        assert contains(box, drawn)

    @given(st.floats(0, 0.4))
    def test_a_box_that_had_room_comes_back_when_enlarged(self, fraction: float) -> None:
        small = shrunk(BOX, fraction=fraction, shape=ROOM)
        # What is left has 1 - 2 f of the length, so that f of the old length is f / (1 - 2 f) of the new one.
        back = enlarged(small, fraction=fraction / (1 - 2 * fraction), shape=ROOM)
        assert corners(back) == pytest.approx(corners(BOX))


class TestShifted:
    def test_it_moves_by_shares_of_its_sides(self) -> None:
        assert shifted(BOX, x_fraction=0.5, y_fraction=-0.2, shape=ROOM) == Box(60, 38, 79, 47, z=3)

    def test_at_the_border_it_stops(self) -> None:
        assert shifted(Box(5, 5, 14, 14), x_fraction=-3, y_fraction=0.3, shape=(16, 40)) == Box(0, 6, 9, 15)

    @given(masks(), st.floats(-3, 3), st.floats(-3, 3))
    def test_it_keeps_its_size(self, mask: np.ndarray, x_fraction: float, y_fraction: float) -> None:
        box = Box.around(mask)
        moved = shifted(box, x_fraction=x_fraction, y_fraction=y_fraction, shape=mask.shape)
        assert moved.x_max - moved.x_min == pytest.approx(box.x_max - box.x_min)
        assert moved.y_max - moved.y_min == pytest.approx(box.y_max - box.y_min)

    @given(seeds)
    def test_at_random_it_goes_the_same_way_in_all_directions(self, seed: int) -> None:
        moved = shifted_at_random(BOX, fraction=0.4, shape=ROOM, rng=np.random.default_rng(seed))
        # In units of the sides, the corner lies on a circle of radius 0.4.
        assert math.hypot((moved.x_min - 50) / 20, (moved.y_min - 40) / 10) == pytest.approx(0.4)

    def test_no_direction_is_preferred(self) -> None:
        rng = np.random.default_rng(0)
        moved = [shifted_at_random(BOX, fraction=0.4, shape=ROOM, rng=rng) for _ in range(2000)]
        quarters = Counter((box.x_min > 50, box.y_min > 40) for box in moved)
        # 500 each, with a deviation of sqrt(2000 * 1/4 * 3/4) = 19.
        assert all(400 < quarters[quarter] < 600 for quarter in [(a, b) for a in (False, True) for b in (False, True)])


class TestScaled:
    def test_it_covers_so_many_times_the_pixels_about_its_centre(self) -> None:
        # 40 x 20 pixels about (59.5, 44.5).
        assert scaled(BOX, factor=2, shape=ROOM) == Box(40, 35, 79, 54, z=3)
        assert scaled(BOX, factor=0.5, shape=ROOM) == Box(55, 42.5, 64, 46.5, z=3)

    def test_an_axis_may_have_a_factor_of_its_own(self) -> None:
        assert scaled(BOX, x_factor=2, shape=ROOM) == Box(40, 40, 79, 49, z=3)
        assert scaled(BOX, factor=0.5, y_factor=2, shape=ROOM) == Box(55, 35, 64, 54, z=3)

    def test_to_nothing_leaves_the_centre(self) -> None:
        assert scaled(BOX, factor=0, shape=ROOM) == Box(59.5, 44.5, 59.5, 44.5, z=3)

    @given(masks(), fractions)
    def test_twice_the_fraction_on_top_of_one_is_enlarged(self, mask: np.ndarray, fraction: float) -> None:
        box = Box.around(mask)
        assert corners(scaled(box, factor=1 + 2 * fraction, shape=mask.shape)) == pytest.approx(
            corners(enlarged(box, fraction=fraction, shape=mask.shape))
        )

    @given(seeds)
    def test_at_random_it_keeps_its_proportions(self, seed: int) -> None:
        box = scaled_at_random(BOX, fraction=0.5, shape=ROOM, rng=np.random.default_rng(seed))
        width, height = box.x_max - box.x_min + 1, box.y_max - box.y_min + 1
        assert width == pytest.approx(2 * height)
        assert 10 <= width <= 30


class TestOneSided:
    @pytest.mark.parametrize(
        ("side", "expected"),
        [
            ("left", Box(46, 40, 69, 49, z=3)),
            ("top", Box(50, 38, 69, 49, z=3)),
            ("right", Box(50, 40, 73, 49, z=3)),
            ("bottom", Box(50, 40, 69, 51, z=3)),
        ],
    )
    def test_one_side_goes_out_by_its_share(self, side: str, expected: Box) -> None:
        assert one_sided(BOX, side=side, fraction=0.2, shape=ROOM) == expected

    def test_a_negative_share_comes_in(self) -> None:
        assert one_sided(BOX, side="left", fraction=-0.2, shape=ROOM) == Box(54, 40, 69, 49, z=3)

    def test_a_side_that_would_cross_its_opposite_leaves_the_middle_line(self) -> None:
        assert one_sided(BOX, side="top", fraction=-1.5, shape=ROOM) == Box(50, 44.5, 69, 44.5, z=3)

    # Other names are refused with the list of these; here, the type checks of the tests come first.
    def test_the_sides_have_names(self) -> None:
        assert SIDES == ("left", "top", "right", "bottom")

    def test_at_random_each_side_has_its_turn_and_goes_both_ways(self) -> None:
        rng = np.random.default_rng(0)
        turns: Counter[tuple[int, bool]] = Counter()
        for _ in range(1600):
            moved = np.array(corners(one_sided_at_random(BOX, fraction=0.2, shape=ROOM, rng=rng))) - corners(BOX)
            (side,) = np.flatnonzero(moved)
            turns[int(side), bool(moved[side] > 0)] += 1
        # Eight cases of 200 each, with a deviation of sqrt(1600 * 1/8 * 7/8) = 13.
        assert len(turns) == 8
        assert all(130 < count < 270 for count in turns.values())


class TestPerAxis:
    def test_the_axes_have_shares_of_their_own(self) -> None:
        assert per_axis(BOX, x_fraction=0.1, y_fraction=-0.1, shape=ROOM) == Box(48, 41, 71, 48, z=3)

    @given(seeds)
    def test_at_random_both_sides_of_an_axis_move_alike(self, seed: int) -> None:
        box = per_axis_at_random(BOX, fraction=0.3, shape=ROOM, rng=np.random.default_rng(seed))
        assert box.x_min + box.x_max == pytest.approx(50 + 69)
        assert box.y_min + box.y_max == pytest.approx(40 + 49)
        assert abs(box.x_min - 50) <= 6
        assert abs(box.y_min - 40) <= 3


class TestJittered:
    @given(masks(), st.floats(0, 0.5), seeds)
    def test_no_side_moves_further_than_its_share(self, mask: np.ndarray, fraction: float, seed: int) -> None:
        box = Box.around(mask)
        moved = jittered(box, fraction=fraction, shape=mask.shape, rng=np.random.default_rng(seed))
        largest = enlarged(box, fraction=fraction, shape=mask.shape)
        smallest = shrunk(box, fraction=fraction, shape=mask.shape)
        assert contains(largest, moved)
        if smallest.x_min < smallest.x_max and smallest.y_min < smallest.y_max:
            assert contains(moved, smallest)

    def test_the_sides_stay_where_they_are_on_average(self) -> None:
        rng = np.random.default_rng(0)
        moved = np.array([corners(jittered(BOX, fraction=0.2, shape=ROOM, rng=rng)) for _ in range(2000)])
        # U(-4, 4) along x: deviation of the mean 2.31 / sqrt(2000) = 0.052.
        assert moved.mean(axis=0) == pytest.approx(corners(BOX), abs=0.26)
        assert moved.std(axis=0) == pytest.approx([8 / 12**0.5, 4 / 12**0.5] * 2, rel=0.06)


class TestMedsamJitter:
    def test_offsets_are_the_whole_numbers_from_0_to_20_each_as_likely(self) -> None:
        rng, box = np.random.default_rng(0), Box(100, 200, 300, 260)
        drawn = np.array([corners(medsam_jitter(box, shape=(1024, 1024), rng=rng)) for _ in range(2100)])
        for offsets in ((np.array(corners(box)) - drawn) * [1, 1, -1, -1]).T:
            counts = Counter(offsets.tolist())
            assert set(counts) == set(range(21))
            # 100 each, with a deviation of sqrt(2100 * 1/21 * 20/21) = 10.
            assert all(50 < count < 150 for count in counts.values())

    @given(seeds)
    def test_pixels_of_the_canvas_become_pixels_of_the_image(self, seed: int) -> None:
        # An image whose longer side is 512 has half a pixel for every one of the canvas.
        box = medsam_jitter(Box(100, 200, 300, 260), shape=(300, 512), rng=np.random.default_rng(seed))
        assert box.x_min in {100 - offset / 2 for offset in range(21)}
        assert box.y_max in {260 + offset / 2 for offset in range(21)}

    @given(seeds)
    def test_lite_medsam_draws_up_to_5_on_a_canvas_of_256(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        box = medsam_jitter(Box(100, 90, 150, 120), shape=(256, 256), rng=rng, max_offset=5, canvas_side=256)
        assert 100 - box.x_min in range(6)
        assert 90 - box.y_min in range(6)
        assert box.x_max - 150 in range(6)
        assert box.y_max - 120 in range(6)

    @given(masks(), seeds)
    def test_it_never_shrinks(self, mask: np.ndarray, seed: int) -> None:
        box = Box.around(mask)
        assert contains(medsam_jitter(box, shape=mask.shape, rng=np.random.default_rng(seed)), box)

    @pytest.mark.parametrize(("max_offset", "canvas_side"), [(-1, 1024), (20, 0)])
    def test_what_cannot_be_drawn(self, max_offset: int, canvas_side: int) -> None:
        with pytest.raises(SettingError, match="give max_offset 0 or more and canvas_side 1 or more"):
            medsam_jitter(BOX, shape=ROOM, rng=np.random.default_rng(0), max_offset=max_offset, canvas_side=canvas_side)
