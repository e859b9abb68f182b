import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from any_masks import masks
from palpate.errors import PromptError, SettingError
from palpate.metrics import dice
from palpate.prompts.masks import rough_mask
from phantoms import disk, empty, rectangle

DISK = disk((100, 120), centre=(60, 50), radius=20)
seeds = st.integers(0, 2**32 - 1)


def rough(mask: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    return rough_mask(mask, fraction=fraction, rng=np.random.default_rng(seed))


@given(mask=masks(), seed=seeds, fraction=st.floats(0, 3))
def test_something_is_always_left_and_the_mask_given_is_not_touched(
    mask: np.ndarray, seed: int, fraction: float
) -> None:
    before = mask.copy()
    found = rough(mask, fraction, seed)
    assert found.any()
    assert found.shape == mask.shape
    assert np.array_equal(mask, before)


@given(mask=masks(), seed=seeds)
def test_moved_by_nothing_it_is_the_mask(mask: np.ndarray, seed: int) -> None:
    assert np.array_equal(rough(mask, 0, seed), mask)


@given(seed=seeds, fraction=st.sampled_from([0.1, 0.2, 0.5, 0.9]))
def test_the_border_moves_no_farther_than_its_share_of_the_radius(seed: int, fraction: float) -> None:
    # The largest disc inside has the disk's radius, of 20 pixels and at most half a pixel more.
    changed = rough(DISK, fraction, seed) != DISK
    away = np.where(DISK, distance_transform_edt(DISK), distance_transform_edt(~DISK)) - 0.5
    assert away[changed].max(initial=0) <= fraction * 20.5


def test_it_moves_in_and_out_and_the_more_the_rougher() -> None:
    for fraction, lowest, highest in ((0.1, 0.9, 0.99), (0.4, 0.7, 0.95)):
        found = [rough(DISK, fraction, seed) for seed in range(40)]
        # A border of six waves goes one way alone now and then.
        assert np.mean([(each & ~DISK).any() and (DISK & ~each).any() for each in found]) > 0.8
        assert lowest < np.mean([dice(each, DISK) for each in found]) < highest
    # Neither larger nor smaller than it was, on the whole.
    areas = [rough(DISK, 0.2, seed).sum() for seed in range(200)]
    assert np.mean(areas) == pytest.approx(DISK.sum(), rel=0.03)


def test_neighbours_move_alike() -> None:
    # The upper side of a wide body, column by column: with white noise, steps would be as large as the moves are.
    body = rectangle((120, 400), 0, 60, 399, 119)
    # Its radius is 60 pixels, as it goes on below the image: moves of up to 24, in waves of 60 columns.
    for seed in range(5):
        upper = rough(body, 0.4, seed).argmax(axis=0)
        assert upper.max() - upper.min() > 10
        assert np.abs(np.diff(upper)).max() <= 3


def test_where_the_image_cuts_the_object_it_has_no_border() -> None:
    body = rectangle((60, 60), 0, 0, 59, 39)
    found = rough(body, 0.5, seed=1)
    assert found[:20].all()
    assert np.array_equal(rough(np.ones((9, 9), dtype=bool), 0.9), np.ones((9, 9), dtype=bool))


def test_a_fraction_without_sense_is_refused() -> None:
    for fraction in (-0.1, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="a share of its radius from 0 on"):
            rough(DISK, fraction)


def test_nothing_can_be_made_of_nothing() -> None:
    with pytest.raises(PromptError, match="empty mask; skip the slice"):
        rough(empty((9, 9)), 0.1)
