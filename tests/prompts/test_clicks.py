import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from any_masks import masks
from palpate.errors import PromptError
from palpate.prompts import Points
from palpate.prompts.clicks import added, depth, largest_part, next_click
from phantoms import disk, empty, one_voxel, rectangle, touching_the_edge, vessel


class TestNextClick:
    def test_a_perfect_prediction_needs_none(self) -> None:
        mask = disk((20, 20), centre=(9, 9), radius=4)
        assert next_click(mask, mask) is None
        assert next_click(empty((5, 5)), empty((5, 5))) is None

    def test_what_was_missed_is_clicked_in_its_middle(self) -> None:
        mask = rectangle((20, 30), 10, 4, 16, 10)
        assert next_click(empty((20, 30)), mask, z=3) == Points([(13, 7)], [1], z=3)

    def test_what_was_too_much_gets_a_negative_click(self) -> None:
        mask = rectangle((20, 30), 10, 4, 16, 10)
        assert next_click(mask, empty((20, 30))) == Points([(13, 7)], [0])

    def test_the_larger_error_is_clicked(self) -> None:
        missed, too_much = rectangle((20, 20), 1, 1, 3, 3), rectangle((20, 20), 9, 9, 13, 13)
        assert next_click(too_much, missed) == Points([(11, 11)], [0])
        assert next_click(missed, too_much) == Points([(11, 11)], [1])

    def test_two_errors_side_by_side_are_not_one(self) -> None:
        # 3 missed beside 4 too much beside 3 missed: the largest is the 4 in the middle, 8-connected or not.
        missed = rectangle((1, 10), 0, 0, 2, 0) | rectangle((1, 10), 7, 0, 9, 0)
        assert next_click(rectangle((1, 10), 3, 0, 6, 0), missed) == Points([(3, 0)], [0])

    def test_of_equal_errors_the_missed_one_then_the_first_row_is_clicked(self) -> None:
        upper, lower = one_voxel((9, 9), (1, 7)), one_voxel((9, 9), (6, 1))
        assert next_click(upper, lower) == Points([(1, 6)], [1])
        assert next_click(empty((9, 9)), upper | lower) == Points([(7, 1)], [1])

    def test_pixels_that_touch_at_corners_are_one_error(self) -> None:
        # Six on the diagonal outnumber the block of four.
        reference = np.zeros((12, 12), dtype=bool)
        reference[:6, :6] = vessel((6, 6))
        reference[9:11, 9:11] = True
        assert next_click(empty((12, 12)), reference) == Points([(0, 0)], [1])

    def test_the_border_of_the_image_counts_as_the_end_of_the_object(self) -> None:
        # Rows 11..15 and columns 9..15: three pixels deep in the middle row, of columns 11..13 the first.
        assert next_click(empty((16, 16)), touching_the_edge()) == Points([(11, 13)], [1])

    @given(masks(allow_empty=True), st.integers(0, 2**16), st.booleans())
    def test_it_lies_on_an_error_of_its_kind(self, mask: np.ndarray, seed: int, by_chance: bool) -> None:
        rng = np.random.default_rng(seed)
        prediction = rng.random(mask.shape) < rng.random()
        click = next_click(prediction, mask, rng=rng if by_chance else None, z=1)
        if click is None:
            assert (prediction == mask).all()
            return
        ((x, y),), (label,) = click.coordinates, click.labels
        assert mask[int(y), int(x)] == (label == 1)
        assert prediction[int(y), int(x)] == (label == 0)
        assert click.z == 1

    @given(masks(), st.integers(0, 2**16))
    def test_a_click_by_chance_is_at_least_half_as_deep(self, mask: np.ndarray, seed: int) -> None:
        click = next_click(np.zeros_like(mask), mask, rng=np.random.default_rng(seed))
        assert click is not None
        ((x, y),) = click.coordinates
        deep = depth(largest_part(mask))
        assert deep[int(y), int(x)] >= deep.max() / 2

    def test_clicks_by_chance_differ(self) -> None:
        mask, rng = disk((40, 40), centre=(20, 20), radius=12), np.random.default_rng(0)
        clicks = {next_click(empty((40, 40)), mask, rng=rng) for _ in range(20)}
        assert len(clicks) > 10

    @given(masks(allow_empty=True))
    def test_a_user_who_mends_what_is_clicked_comes_to_an_end(self, mask: np.ndarray) -> None:
        prediction, left = np.zeros_like(mask), int(mask.sum())
        for _ in range(min(left, 30)):
            click = next_click(prediction, mask)
            assert click is not None
            ((x, y),) = click.coordinates
            prediction = prediction.copy()
            prediction[int(y), int(x)] = True
        if left <= 30:
            assert next_click(prediction, mask) is None


class TestAdded:
    def test_the_click_comes_last(self) -> None:
        first = added(None, Points([(1, 2)], [1], z=4))
        assert added(first, Points([(3, 4)], [0], z=4)) == Points([(1, 2), (3, 4)], [1, 0], z=4)

    def test_it_stays_on_its_slice(self) -> None:
        with pytest.raises(PromptError, match="slice 5 does not join points on slice 4"):
            added(Points([(1, 2)], z=4), Points([(1, 2)], z=5))


class TestDepth:
    def test_it_counts_from_the_nearest_pixel_beside_the_mask(self) -> None:
        assert depth(rectangle((5, 5), 1, 1, 3, 3))[1:4, 1:4].tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]
        assert depth(np.ones((3, 3), dtype=bool)).tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]

    @given(masks(allow_empty=True))
    def test_it_is_at_least_one_on_the_mask_and_zero_beside_it(self, mask: np.ndarray) -> None:
        assert (depth(mask)[mask] >= 1).all()
        assert not depth(mask)[~mask].any()
