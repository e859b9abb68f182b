import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from any_masks import masks
from palpate.errors import PromptError, SettingError
from palpate.prompts import Box, Points, Prompt, Target
from palpate.prompts.volumes import (
    from_middle,
    key_slices_missing,
    middle_slice,
    on_every_slice,
    on_wrong_slice,
    z_range_changed,
)
from phantoms import column, empty, rectangle

FOOTPRINT = rectangle((8, 8), 2, 3, 5, 6)
ORGAN = column((20, 8, 8), FOOTPRINT, 4, 13)
"""Ten of twenty slices, 4 to 13; the middle is (4 + 13) // 2 = 8."""

seeds = st.integers(0, 2**16)
fractions = st.floats(0, 1)


def a_box(mask: np.ndarray, z: int) -> tuple[Prompt, ...]:
    return (Box.around(mask, z=z),)


@st.composite
def volumes(draw: st.DrawFn) -> np.ndarray:
    """Any mask on any slices of a volume, with gaps, with a different part on each slice, never empty."""
    mask = draw(masks())
    depth = draw(st.integers(1, 12))
    shown = draw(st.lists(st.booleans(), min_size=depth, max_size=depth).filter(any))
    volume = mask & np.array(shown)[:, None, None]
    return np.array([np.roll(cut, z, axis=1) for z, cut in enumerate(volume)])


def slices_of(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask.any(axis=(1, 2))).tolist()


def gapped(*slices: int, depth: int = 12) -> np.ndarray:
    volume = np.zeros((depth, 8, 8), dtype=bool)
    volume[list(slices)] = FOOTPRINT
    return volume


class TestTheMiddleSlice:
    def test_is_the_middle_of_the_range(self) -> None:
        assert middle_slice(ORGAN) == 8
        assert middle_slice(gapped(5)) == 5

    def test_is_the_nearest_that_shows_the_object(self) -> None:
        # The range 1..9 has its middle at 5; 1 is 4 away and 8 is 3 away.
        assert middle_slice(gapped(1, 8, 9)) == 8

    def test_is_the_lower_of_two_as_near(self) -> None:
        assert middle_slice(gapped(3, 7)) == 3

    @given(volumes())
    def test_always_shows_the_object(self, mask: np.ndarray) -> None:
        assert mask[middle_slice(mask)].any()


class TestPromptsAsTheyShouldBe:
    def test_one_box_on_the_middle_for_the_whole_range(self) -> None:
        (target,) = from_middle(ORGAN, a_box, label=3)
        assert target.prompts == (Box(2, 3, 5, 6, z=8),)
        assert target.z_range == (4, 13)
        assert target.label == 3

    def test_a_box_on_every_slice_for_itself(self) -> None:
        targets = on_every_slice(gapped(3, 4, 7), a_box, label=3)
        assert [target.z for target in targets] == [3, 4, 7]
        assert all(target.z_range is None and target.label == 3 for target in targets)

    @given(volumes())
    def test_every_slice_has_the_box_of_its_own_mask(self, mask: np.ndarray) -> None:
        targets = on_every_slice(mask, a_box)
        assert [target.prompts for target in targets] == [(Box.around(mask[z], z=z),) for z in slices_of(mask)]


class TestKeySlicesMissing:
    @given(volumes(), fractions, seeds)
    def test_the_ranges_tile_the_objects_range(self, mask: np.ndarray, fraction: float, seed: int) -> None:
        targets = key_slices_missing(mask, a_box, fraction=fraction, rng=np.random.default_rng(seed))
        covered = [z for t in targets if t.z_range for z in range(t.z_range[0], t.z_range[1] + 1)]
        shown = slices_of(mask)
        assert covered == list(range(shown[0], shown[-1] + 1))

    @given(volumes(), fractions, seeds)
    def test_each_slice_belongs_to_the_nearest_that_kept_its_prompts(
        self, mask: np.ndarray, fraction: float, seed: int
    ) -> None:
        targets = key_slices_missing(mask, a_box, fraction=fraction, rng=np.random.default_rng(seed))
        kept = [target.prompts[0].z for target in targets]
        for target in targets:
            assert target.z_range is not None
            for z in range(target.z_range[0], target.z_range[1] + 1):
                # min takes the first of equals, which is the lower.
                assert target.z == min(kept, key=lambda other, z=z: abs(other - z))
            assert target.prompts == (Box.around(mask[target.z], z=target.z),)

    @pytest.mark.parametrize(("fraction", "kept"), [(0, 10), (0.01, 9), (0.3, 7), (0.9, 1), (1, 1)])
    def test_the_share_is_of_the_objects_slices_and_one_stays(self, fraction: float, kept: int) -> None:
        assert len(key_slices_missing(ORGAN, a_box, fraction=fraction, rng=np.random.default_rng(0))) == kept

    def test_of_two_slices_one_carries_the_gap_between_too(self) -> None:
        (target,) = key_slices_missing(gapped(2, 6), a_box, fraction=0.5, rng=np.random.default_rng(0))
        assert target.z_range == (2, 6)

    def test_a_slice_between_two_as_near_belongs_to_the_lower(self) -> None:
        lower, upper = key_slices_missing(gapped(2, 6), a_box, fraction=0, rng=np.random.default_rng(0))
        assert (lower.z_range, upper.z_range) == ((2, 4), (5, 6))

    def test_every_slice_is_as_likely_to_be_missing(self) -> None:
        rng = np.random.default_rng(0)
        kept = Counter(t.z for _ in range(400) for t in key_slices_missing(ORGAN, a_box, fraction=0.5, rng=rng))
        # 200 each, with a deviation of 10.
        assert set(kept) == set(range(4, 14))
        assert all(140 < count < 260 for count in kept.values())

    @pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
    def test_a_share_lies_between_nothing_and_all(self, fraction: float) -> None:
        with pytest.raises(SettingError, match="is no share of an object's slices; give 0 to 1"):
            key_slices_missing(ORGAN, a_box, fraction=fraction, rng=np.random.default_rng(0))


class TestOnTheWrongSlice:
    def test_the_middle_slices_box_lies_a_share_of_the_extent_away(self) -> None:
        mask = ORGAN.copy()
        mask[8, 0, 0] = True  # only the middle slice reaches into the corner
        found = set()
        for seed in range(20):
            (target,) = on_wrong_slice(mask, a_box, fraction=0.2, rng=np.random.default_rng(seed))
            assert target.prompts == (Box(0, 0, 5, 6, z=target.z),)
            assert target.z_range == (4, 13)
            found.add(target.z)
        # 0.2 of 10 slices is 2; that all of 20 coins agree has a chance of 2 in a million, and the seeds are fixed.
        assert found == {6, 10}

    def test_where_one_way_leads_out_of_the_volume_it_goes_the_other(self) -> None:
        # The middle is 1; two slices below there are none.
        for seed in range(10):
            (target,) = on_wrong_slice(gapped(0, 1, 2, 3), a_box, fraction=0.5, rng=np.random.default_rng(seed))
            assert target.z == 3

    def test_where_both_ways_lead_out_it_stops_at_an_end(self) -> None:
        found = {
            on_wrong_slice(gapped(1, 2, depth=4), a_box, fraction=9, rng=np.random.default_rng(seed))[0].z
            for seed in range(20)
        }
        assert found == {0, 3}

    def test_the_range_is_widened_to_a_slice_beyond_the_object(self) -> None:
        for seed in range(10):
            (target,) = on_wrong_slice(gapped(5, 6), a_box, fraction=2, rng=np.random.default_rng(seed))
            assert (target.z, target.z_range) in [(1, (1, 6)), (9, (5, 9))]

    @given(volumes(), st.floats(0.001, 4), seeds)
    def test_it_is_wrong_by_a_slice_at_least_where_there_is_another(
        self, mask: np.ndarray, fraction: float, seed: int
    ) -> None:
        (target,) = on_wrong_slice(mask, a_box, fraction=fraction, rng=np.random.default_rng(seed))
        assert target.z is not None
        assert 0 <= target.z < len(mask)
        assert (target.z != middle_slice(mask)) == (len(mask) > 1)
        assert target.z_range is not None
        assert target.z_range[0] <= min(target.z, slices_of(mask)[0])
        assert target.z_range[1] >= max(target.z, slices_of(mask)[-1])

    @given(volumes(), seeds)
    def test_a_fraction_of_nothing_is_the_right_slice(self, mask: np.ndarray, seed: int) -> None:
        (target,) = on_wrong_slice(mask, a_box, fraction=0, rng=np.random.default_rng(seed))
        (right,) = from_middle(mask, a_box)
        assert (target.prompts, target.z_range) == (right.prompts, right.z_range)

    @pytest.mark.parametrize("fraction", [-0.1, math.inf, math.nan])
    def test_the_direction_is_drawn_not_given(self, fraction: float) -> None:
        with pytest.raises(SettingError, match="give a finite number, 0 or more"):
            on_wrong_slice(ORGAN, a_box, fraction=fraction, rng=np.random.default_rng(0))


class TestTheRangeChanged:
    @pytest.mark.parametrize(
        ("fraction", "z_range"),
        [(0, (4, 13)), (0.2, (2, 15)), (0.01, (3, 14)), (2, (0, 19)), (-0.2, (6, 11)), (-0.01, (5, 12)), (-1, (8, 8))],
    )
    def test_by_a_share_of_ten_slices_at_both_ends(self, fraction: float, z_range: tuple[int, int]) -> None:
        (target,) = z_range_changed(from_middle(ORGAN, a_box, label=2), fraction=fraction, depth=20)
        assert target.z_range == z_range
        assert target.prompts == (Box(2, 3, 5, 6, z=8),)
        assert target.label == 2

    @given(volumes(), st.floats(-3, 3), seeds)
    def test_contains_the_prompted_slice_and_stays_in_the_volume(
        self, mask: np.ndarray, fraction: float, seed: int
    ) -> None:
        wrong = on_wrong_slice(mask, a_box, fraction=0.3, rng=np.random.default_rng(seed))
        (target,) = z_range_changed(wrong, fraction=fraction, depth=len(mask))
        assert target.z is not None
        assert target.z_range is not None
        assert 0 <= target.z_range[0] <= target.z <= target.z_range[1] < len(mask)
        assert target.z == wrong[0].z

    def test_a_target_of_one_slice_has_that_range(self) -> None:
        (target,) = z_range_changed(on_every_slice(gapped(5), a_box), fraction=0.1, depth=12)
        assert target.z_range == (4, 6)
        (target,) = z_range_changed(on_every_slice(gapped(5), a_box), fraction=-0.1, depth=12)
        assert target.z_range == (5, 5)

    def test_prompts_without_a_slice_stay_where_they_were(self) -> None:
        # The middle of 0..4 is 2. Lengthened upwards only, the range would have another.
        targets = [Target((Box(0, 0, 1, 1), Points([(0, 0)])), z_range=(0, 4))]
        (target,) = z_range_changed(targets, fraction=0.4, depth=20)
        assert target.z_range == (0, 6)
        assert [prompt.z for prompt in target.prompts] == [2, 2]

    def test_a_target_of_a_picture_has_no_range(self) -> None:
        with pytest.raises(PromptError, match="has no range to change; give its prompts a z"):
            z_range_changed([Target((Box(0, 0, 1, 1),))], fraction=0.1, depth=5)

    def test_prompts_beyond_the_volume_are_refused(self) -> None:
        with pytest.raises(PromptError, match=r"lie on slice 8, but the volume has slices 0..7; check depth"):
            z_range_changed(from_middle(ORGAN, a_box), fraction=0.1, depth=8)

    def test_by_a_finite_share(self) -> None:
        with pytest.raises(SettingError, match="give a finite number, such as"):
            z_range_changed(from_middle(ORGAN, a_box), fraction=math.nan, depth=20)


class TestAnyOfThem:
    def test_an_empty_mask_has_no_prompts(self) -> None:
        nothing, rng = empty((4, 8, 8)), np.random.default_rng(0)
        for attempt in (
            lambda: middle_slice(nothing),
            lambda: from_middle(nothing, a_box),
            lambda: on_every_slice(nothing, a_box),
            lambda: key_slices_missing(nothing, a_box, fraction=0.5, rng=rng),
            lambda: on_wrong_slice(nothing, a_box, fraction=0.5, rng=rng),
        ):
            with pytest.raises(
                PromptError, match="no prompt fits an empty mask; skip the volume or pass another label"
            ):
                attempt()

    def test_prompts_that_forget_their_slice_are_refused(self) -> None:
        with pytest.raises(PromptError, match=r"drawn with z=None but belong on slice 8; pass the slice number"):
            from_middle(ORGAN, lambda mask, z: (Box.around(mask),))

    @given(volumes(), fractions, seeds)
    def test_the_same_generator_gives_the_same_prompts(self, mask: np.ndarray, fraction: float, seed: int) -> None:
        for perturbed in (key_slices_missing, on_wrong_slice):
            first, again = (
                [
                    (target.prompts, target.z_range)
                    for target in perturbed(mask, a_box, fraction=fraction, rng=np.random.default_rng(seed))
                ]
                for _ in range(2)
            )
            assert first == again
