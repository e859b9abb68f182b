import math

import numpy as np
import pytest

from palpate.metrics import is_tiny, is_tiny_error, leak_ratio, must_be_redone
from phantoms import column, empty, one_voxel, rectangle


class TestLeakRatio:
    def test_two_pixels_outside_are_not_a_leak_and_three_are(self) -> None:
        target = one_voxel((1, 12), (0, 2))
        # Pixels 2 to 6 in a row; 3 and 4 are within two pixels of the target, 5 and 6 are not.
        assert leak_ratio(rectangle((1, 12), 2, 0, 6, 0), target) == 2 / 5
        assert leak_ratio(rectangle((1, 12), 2, 0, 4, 0), target) == 0
        assert leak_ratio(rectangle((1, 12), 2, 0, 6, 0), target, distance_px=3.0) == 1 / 5

    def test_distance_is_straight_not_along_the_grid(self) -> None:
        target = one_voxel((9, 9), (4, 4))
        # Of the square's 25 pixels those within 2 of the middle make a diamond: 1 + 3 + 5 + 3 + 1.
        assert leak_ratio(rectangle((9, 9), 2, 2, 6, 6), target) == (25 - 13) / 25

    def test_a_reference_far_from_the_prediction_does_not_help(self) -> None:
        assert leak_ratio(one_voxel((20, 20), (0, 0)), one_voxel((20, 20), (19, 19))) == 1
        near = one_voxel((20, 20), (0, 0)), one_voxel((20, 20), (0, 2))
        assert leak_ratio(*near) == 0

    def test_what_is_missing_is_no_leak(self) -> None:
        assert leak_ratio(one_voxel((9, 9), (4, 4)), np.ones((9, 9), dtype=bool)) == 0

    def test_empty_masks(self) -> None:
        pixel, nothing = one_voxel((5, 5), (2, 2)), empty((5, 5))
        assert math.isnan(leak_ratio(nothing, pixel))
        assert math.isnan(leak_ratio(nothing, nothing))
        assert leak_ratio(pixel, nothing) == 1

    def test_a_volume_counts_slices_as_pixels(self) -> None:
        long = column((10, 3, 3), one_voxel((3, 3), (1, 1)), 0, 7)
        assert leak_ratio(long, column((10, 3, 3), one_voxel((3, 3), (1, 1)), 0, 3)) == 2 / 8


class TestTinyTargets:
    def test_tiny_is_half_a_percent_of_the_image(self) -> None:
        # 0.5 % of 100 x 80 pixels are 40.
        assert is_tiny(rectangle((100, 80), 3, 3, 10, 7))  # 8 x 5
        assert not is_tiny(rectangle((100, 80), 3, 3, 43, 3))  # 41 x 1
        assert is_tiny(rectangle((100, 80), 3, 3, 43, 3), share=0.01)

    def test_it_is_the_box_that_is_tiny_not_the_pixels(self) -> None:
        assert not is_tiny(one_voxel((50, 50), (0, 0)) | one_voxel((50, 50), (49, 49)))

    def test_no_target_is_no_tiny_target(self) -> None:
        assert not is_tiny(empty((100, 80)))

    def test_a_good_mask_is_no_error(self) -> None:
        target = rectangle((40, 40), 10, 10, 14, 14)
        assert not is_tiny_error(target, target)
        # Half of it: a Dice of 2 * 15 / (15 + 25) = 0.75.
        assert not is_tiny_error(rectangle((40, 40), 10, 10, 14, 12), target)

    def test_missing_it_is_an_error(self) -> None:
        target = rectangle((40, 40), 10, 10, 14, 14)
        # 5 of 25: 2 * 5 / 30, and no leak at all.
        assert is_tiny_error(rectangle((40, 40), 10, 10, 14, 10), target)
        assert not is_tiny_error(rectangle((40, 40), 10, 10, 14, 10), target, dice_below=0.3)
        assert is_tiny_error(empty((40, 40)), target)

    def test_leaking_is_an_error_although_it_overlaps(self) -> None:
        target = rectangle((40, 40), 10, 10, 19, 19)
        # 10 rows of 14 columns more than the two that are forgiven: 4 of 16 columns leak, a quarter.
        leaking = rectangle((40, 40), 10, 10, 25, 19)
        assert leak_ratio(leaking, target) == 0.25
        assert is_tiny_error(leaking, target)
        assert not is_tiny_error(leaking, target, leak_above=0.25)

    @pytest.mark.parametrize(("found", "wrong"), [(True, True), (False, False)])
    def test_without_a_target_only_finding_something_is_wrong(self, found: bool, wrong: bool) -> None:
        prediction = one_voxel((9, 9), (4, 4)) if found else empty((9, 9))
        assert is_tiny_error(prediction, empty((9, 9))) is wrong

    @pytest.mark.parametrize(
        ("dice", "leak", "error"),
        [
            *((0.5, 0.2, False), (0.49, 0.2, True), (0.5, 0.21, True), (0.0, 1.0, True)),
            *((0.0, math.nan, True), (math.nan, math.nan, False)),
        ],
    )
    def test_the_numbers_alone_decide(self, dice: float, leak: float, error: bool) -> None:
        assert must_be_redone(dice=dice, leak=leak) is error
