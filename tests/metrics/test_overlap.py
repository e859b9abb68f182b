import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from palpate.metrics import dice, iou
from phantoms import column, disk, empty, one_voxel, rectangle, two_organs, vessel

masks = arrays(bool, (4, 5))


def test_a_mask_agrees_with_itself() -> None:
    for mask in (disk((9, 9), centre=(4, 4), radius=3), vessel((9, 9)), one_voxel((3, 3, 3), (1, 2, 0))):
        assert dice(mask, mask) == 1
        assert iou(mask, mask) == 1


def test_masks_apart_have_nothing_in_common() -> None:
    labels = two_organs()
    assert dice(labels == 1, labels == 2) == 0
    assert iou(labels == 1, labels == 2) == 0


def test_half_covered_by_hand() -> None:
    # 2 x 4 = 8 pixels each, shifted by two columns: 4 in common, 12 together.
    prediction, reference = rectangle((6, 8), 0, 0, 3, 1), rectangle((6, 8), 2, 0, 5, 1)
    assert dice(prediction, reference) == 2 * 4 / (8 + 8)
    assert iou(prediction, reference) == 4 / 12


def test_a_volume_counts_voxels_not_slices() -> None:
    footprint = rectangle((4, 4), 0, 0, 1, 1)
    long, short = column((6, 4, 4), footprint, 0, 4), column((6, 4, 4), footprint, 0, 1)
    # 20 voxels and 8, all 8 in common.
    assert dice(long, short) == 2 * 8 / 28
    assert iou(long, short) == 8 / 20


def test_one_empty_mask_scores_zero() -> None:
    full, nothing = np.ones((3, 3), dtype=bool), empty((3, 3))
    for both_empty in (1.0, math.nan):
        assert dice(full, nothing, both_empty=both_empty) == 0
        assert dice(nothing, full, both_empty=both_empty) == 0
        assert iou(nothing, full, both_empty=both_empty) == 0


def test_two_empty_masks_score_what_the_caller_says() -> None:
    nothing = empty((3, 3))
    assert math.isnan(dice(nothing, nothing))
    assert math.isnan(iou(nothing, nothing))
    assert dice(nothing, nothing, both_empty=1.0) == 1
    assert iou(nothing, nothing, both_empty=0.0) == 0


def test_large_masks_do_not_overflow() -> None:
    everything = np.ones((3000, 3000), dtype=bool)
    assert dice(everything, everything) == 1


@given(masks, masks)
def test_the_order_does_not_matter(a: np.ndarray, b: np.ndarray) -> None:
    assert dice(a, b, both_empty=1.0) == dice(b, a, both_empty=1.0)
    assert iou(a, b, both_empty=1.0) == iou(b, a, both_empty=1.0)


@given(masks, masks)
def test_dice_and_iou_say_the_same(a: np.ndarray, b: np.ndarray) -> None:
    j = iou(a, b, both_empty=1.0)
    assert dice(a, b, both_empty=1.0) == pytest.approx(2 * j / (1 + j))
