import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from any_masks import masks
from palpate.errors import PromptError
from palpate.prompts import Box, Points
from palpate.prompts.sampling import (
    background_points,
    box_centre,
    box_of_points,
    centroid,
    foreground_points,
    image_foreground,
    moved_in,
    points_on_both_sides,
    quadrant_points,
    swin_points,
    swin_points_inference,
    swin_points_training,
)
from phantoms import disk, empty, one_voxel, picture, rectangle, ring, touching_the_edge, two_organs, vessel

seeds = st.integers(0, 2**32 - 1)


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def share_on(mask: np.ndarray, points: Points) -> float:
    return float(np.mean([mask[int(y), int(x)] for x, y in points.coordinates]))


class TestForegroundPoints:
    @given(masks(), st.integers(1, 60), seeds)
    def test_they_lie_on_the_mask_and_are_as_many_as_asked(self, mask: np.ndarray, count: int, seed: int) -> None:
        points = foreground_points(mask, count=count, rng=dice(seed), z=3)
        assert len(points.coordinates) == count
        assert set(points.labels) == {1}
        assert share_on(mask, points) == 1
        assert points.inside((mask.shape[0], mask.shape[1])).z == 3

    @given(masks(), seeds)
    def test_they_repeat_only_where_pixels_run_out(self, mask: np.ndarray, seed: int) -> None:
        pixels = int(mask.sum())
        assert len(set(foreground_points(mask, count=pixels, rng=dice(seed)).coordinates)) == pixels
        assert len(foreground_points(mask, count=pixels + 1, rng=dice(seed)).coordinates) == pixels + 1

    @given(masks(), seeds)
    def test_the_same_dice_give_the_same_points(self, mask: np.ndarray, seed: int) -> None:
        first, second = (foreground_points(mask, count=5, rng=dice(seed)) for _ in range(2))
        assert first == second

    def test_every_pixel_of_a_ring_is_equally_likely(self) -> None:
        mask = ring((24, 24), centre=(12, 12), outer=9, inner=7)
        draws, pixels = 20_000, int(mask.sum())
        drawn = np.array(foreground_points(mask, count=draws, rng=dice()).coordinates, dtype=int)
        counts = np.bincount(drawn[:, 1] * 24 + drawn[:, 0], minlength=24 * 24).reshape(24, 24)
        # Binomial with p = 1 / pixels: five standard deviations around the expected number, for every pixel.
        expected = draws / pixels
        assert np.abs(counts[mask] - expected).max() < 5 * np.sqrt(expected)
        assert counts[~mask].sum() == 0

    def test_no_point_fits_an_empty_mask(self) -> None:
        with pytest.raises(PromptError, match="no point fits an empty mask; skip the slice or pass another label"):
            foreground_points(empty((4, 4)), count=1, rng=dice())

    @pytest.mark.parametrize("count", [0, -1])
    def test_no_points_are_no_prompt(self, count: int) -> None:
        with pytest.raises(PromptError, match="draw at least 1"):
            foreground_points(two_organs() == 1, count=count, rng=dice())


class TestBackgroundPoints:
    @given(masks(allow_empty=True), st.integers(1, 40), seeds)
    def test_they_lie_beside_the_mask(self, mask: np.ndarray, count: int, seed: int) -> None:
        if mask.all():
            return
        points = background_points(mask, count=count, rng=dice(seed), z=0)
        assert points.labels == (0,) * count
        assert share_on(mask, points) == 0
        assert points.inside((mask.shape[0], mask.shape[1])).z == 0

    def test_within_a_box_they_stay_in_it(self) -> None:
        # Of the box from (1.5, 2) to (6, 5.9) the pixels 2..6 x 2..5 have their centres inside; 4 x 4 of them are mask.
        points = background_points(two_organs() == 1, count=4, rng=dice(), within=Box(1.5, 2, 6, 5.9))
        assert sorted(points.coordinates) == [(6, 2), (6, 3), (6, 4), (6, 5)]

    def test_a_mask_that_fills_the_slice_leaves_none(self) -> None:
        with pytest.raises(PromptError, match=r"leaves no background in the slice.*draw positive points only"):
            background_points(np.ones((4, 4), dtype=bool), count=1, rng=dice())

    def test_a_mask_that_fills_the_box_leaves_none(self) -> None:
        with pytest.raises(PromptError, match=r"no background in the box \(2, 2, 5, 5\).*enlarge the box"):
            background_points(two_organs() == 1, count=1, rng=dice(), within=Box(2, 2, 5, 5))

    def test_a_box_between_pixels_holds_none(self) -> None:
        with pytest.raises(PromptError, match="no background"):
            background_points(empty((9, 9)), count=1, rng=dice(), within=Box(2.2, 2, 2.8, 5))


@given(masks(), st.integers(1, 9), st.integers(1, 9), seeds)
def test_on_both_sides_the_positive_points_come_first(mask: np.ndarray, on: int, beside: int, seed: int) -> None:
    if mask.all():
        return
    points = points_on_both_sides(mask, positive=on, negative=beside, rng=dice(seed), z=8)
    assert points.labels == (1,) * on + (0,) * beside
    assert [bool(mask[int(y), int(x)]) for x, y in points.coordinates] == [True] * on + [False] * beside
    assert points.z == 8


class TestCentres:
    def test_the_centre_of_a_box_may_lie_between_pixels(self) -> None:
        assert box_centre(Box(2, 3, 5, 9, z=4)) == Points([(3.5, 6)], [1], z=4)

    def test_a_box_around_a_ring_has_its_centre_in_the_hole(self) -> None:
        mask = ring((32, 32), centre=(16, 16), outer=8, inner=4)
        assert share_on(mask, box_centre(Box.around(mask))) == 0

    def test_the_centroid_is_the_mean_of_the_pixels(self) -> None:
        # Columns 2, 3, 2 of rows 1, 1, 2.
        mask = one_voxel((5, 5), (1, 2)) | one_voxel((5, 5), (1, 3)) | one_voxel((5, 5), (2, 2))
        assert np.allclose(centroid(mask, z=1).coordinates, [(7 / 3, 4 / 3)])
        assert centroid(mask, snap=True, z=1) == Points([(2, 1)], z=1)

    def test_of_equally_near_pixels_the_centroid_snaps_to_the_first_row(self) -> None:
        mask = ring((32, 32), centre=(16, 16), outer=6, inner=5)
        assert centroid(mask).coordinates == ((16, 16),)
        assert centroid(mask, snap=True) == centroid(mask, snap=True)
        assert share_on(mask, centroid(mask, snap=True)) == 1

    @given(masks())
    def test_the_centroid_lies_in_the_box_and_snapped_on_the_mask(self, mask: np.ndarray) -> None:
        box, ((x, y),) = Box.around(mask), centroid(mask).coordinates
        assert box.x_min - 1e-9 <= x <= box.x_max + 1e-9
        assert box.y_min - 1e-9 <= y <= box.y_max + 1e-9
        assert share_on(mask, centroid(mask, snap=True)) == 1

    def test_an_empty_mask_has_no_centroid(self) -> None:
        with pytest.raises(PromptError, match="no point fits an empty mask"):
            centroid(empty((3, 3)))


class TestBoxOfPoints:
    def test_it_goes_around_the_positive_points_with_room(self) -> None:
        points = Points([(4, 5), (7, 6), (0, 0)], [1, 1, 0], z=2)
        assert box_of_points(points, margin=1.5, shape=(20, 20)) == Box(2.5, 3.5, 8.5, 7.5, z=2)

    def test_it_is_cut_at_the_image(self) -> None:
        assert box_of_points(Points([(1, 2), (18, 9)]), margin=5, shape=(10, 20)) == Box(0, 0, 19, 9)

    @pytest.mark.parametrize(
        ("points", "margin", "told"),
        [(Points([(1, 1)], [0]), 1, "add a point on the object"), (Points([(1, 1)]), -1, "give 0 or more")],
    )
    def test_what_makes_no_box(self, points: Points, margin: int, told: str) -> None:
        with pytest.raises(PromptError, match=told):
            box_of_points(points, margin=margin, shape=(9, 9))


class TestQuadrantPoints:
    @given(masks(), seeds)
    def test_they_lie_on_the_mask_one_a_quarter_in_order(self, mask: np.ndarray, seed: int) -> None:
        points = quadrant_points(mask, rng=dice(seed), z=6)
        box = Box.around(mask)
        middle = (box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2
        order = [(False, False), (False, True), (True, True), (True, False)]
        quarters = [(x >= middle[0], y >= middle[1]) for x, y in points.coordinates]
        assert share_on(mask, points) == 1
        assert quarters == [quarter for quarter in order if quarter in quarters]
        assert points.z == 6
        ys, xs = np.nonzero(mask)
        assert set(quarters) == set(zip((xs >= middle[0]).tolist(), (ys >= middle[1]).tolist(), strict=True))

    def test_a_quarter_without_mask_is_skipped_or_gets_a_centre(self) -> None:
        # The diagonal of 4 x 4 lies in two quarters only; its box has its centre between pixels.
        mask = vessel((4, 4))
        assert len(quadrant_points(mask, rng=dice()).coordinates) == 2
        assert quadrant_points(mask, rng=dice(), empty="centre").coordinates[1::2] == ((1.5, 1.5),) * 2
        mask[3, 3] = False  # the box is now 0..2, the mean of the diagonal 1
        assert quadrant_points(mask, rng=dice(), empty="centroid").coordinates[1] == (1, 1)

    def test_a_middle_row_and_column_belong_below_and_to_the_right(self) -> None:
        points = quadrant_points(one_voxel((5, 5), (2, 2)), rng=dice(), empty="skip")
        assert points.coordinates == ((2, 2),)
        three = rectangle((5, 5), 1, 1, 3, 1)  # columns 1, 2, 3 of one row: the left lower quarter has column 1 only
        assert {quadrant_points(three, rng=dice(seed)).coordinates[0] for seed in range(20)} == {(1, 1)}
        assert {quadrant_points(three, rng=dice(seed)).coordinates[1] for seed in range(20)} == {(2, 1), (3, 1)}

    def test_no_quarter_of_nothing(self) -> None:
        with pytest.raises(PromptError, match="empty mask"):
            quadrant_points(empty((3, 3)), rng=dice())


class TestSwinPoints:
    def test_quarters_leave_out_the_last_row_and_column_of_the_box(self) -> None:
        # Box 2..6: the centre is (2 + 6) // 2 = 4. Left columns are 2, 3, right ones 4, 5; the same for rows.
        box = Box(2, 2, 6, 6)
        full = np.ones((9, 9), dtype=bool)
        drawn = np.array([swin_points(full, box, rng=dice(seed)).coordinates for seed in range(200)], dtype=int)
        left, right = {2, 3}, {4, 5}
        assert [set(drawn[:, place, 0].tolist()) for place in range(4)] == [left, left, right, right]
        assert [set(drawn[:, place, 1].tolist()) for place in range(4)] == [left, right, right, left]

    def test_an_odd_sum_of_edges_rounds_the_centre_down(self) -> None:
        # Box 2..5: the centre is 7 // 2 = 3, so the left column is 2 and the right ones are 3, 4.
        assert swin_points(empty((9, 9)), Box(2, 2, 5, 5, z=4), rng=dice()) == Points([(3, 3)] * 4, z=4)
        only = one_voxel((9, 9), (2, 3))
        assert swin_points(only, Box(2, 2, 5, 5), rng=dice()).coordinates == ((3, 3), (3, 3), (3, 3), (3, 2))

    def test_the_last_row_alone_counts_as_empty(self) -> None:
        edge = rectangle((9, 9), 2, 6, 6, 6)
        assert set(swin_points(edge, Box(2, 2, 6, 6), rng=dice()).coordinates) == {(4, 4)}

    def test_a_box_to_the_width_itself_takes_the_last_column(self) -> None:
        mask = rectangle((8, 8), 7, 7, 7, 7)
        assert swin_points(mask, Box(4, 4, 8, 8), rng=dice()).coordinates[2] == (7, 7)

    def test_a_box_of_one_pixel_gives_that_pixel_four_times(self) -> None:
        mask = one_voxel((5, 5), (3, 2))
        assert swin_points(mask, Box.around(mask), rng=dice()).coordinates == ((2, 3),) * 4

    @given(masks(), seeds)
    def test_each_lies_on_the_foreground_or_in_the_middle_of_the_box(self, mask: np.ndarray, seed: int) -> None:
        box = Box.around(mask, z=1)
        centre = (box.x_min + box.x_max) // 2, (box.y_min + box.y_max) // 2
        points = swin_points_training(mask, box, rng=dice(seed))
        assert points.labels == (1,) * 4
        assert all(mask[int(y), int(x)] or (x, y) == centre for x, y in points.coordinates)
        assert points.inside((mask.shape[0], mask.shape[1])).z == 1

    @given(masks(), seeds, st.floats(-3, 6), st.floats(-3, 6), st.booleans())
    def test_any_box_on_the_image_gives_four_points_on_the_image(
        self, mask: np.ndarray, seed: int, before: float, after: float, apart: bool
    ) -> None:
        tight = Box.around(mask)
        corners = tight.x_min - before, tight.y_min - before, tight.x_max + after, tight.y_max + after
        shape = mask.shape[0], mask.shape[1]
        try:
            box = Box(*corners)
            box.inside(shape)
        except PromptError:
            return
        assert len(swin_points(mask, box, rng=dice(seed), independent_xy=apart).inside(shape).coordinates) == 4

    def test_drawn_as_a_whole_they_stay_on_a_vessel_and_drawn_apart_they_leave_it(self) -> None:
        # A diagonal of 33 pixels in a box 0..32: of two quarters with 16 pixels each a point drawn apart hits one in
        # 16 times; the two empty quarters give the centre (16, 16), which lies on the diagonal.
        mask, box, rng = vessel((33, 33)), Box(0, 0, 32, 32), dice()
        joint = [share_on(mask, swin_points(mask, box, rng=rng)) for _ in range(500)]
        apart = [share_on(mask, swin_points(mask, box, rng=rng, independent_xy=True)) for _ in range(500)]
        assert np.mean(joint) == 1
        # 1000 independent tries of chance 1/16, five standard deviations.
        hits = (np.mean(apart) - 0.5) * 2
        assert abs(hits - 1 / 16) < 5 * np.sqrt(1 / 16 * 15 / 16 / 1000)

    def test_drawn_apart_they_leave_a_ring_too(self) -> None:
        mask, rng = ring((64, 64), centre=(32, 32), outer=28, inner=25), dice()
        box = Box.around(mask)
        joint = [share_on(mask, swin_points(mask, box, rng=rng)) for _ in range(200)]
        apart = [share_on(mask, swin_points(mask, box, rng=rng, independent_xy=True)) for _ in range(200)]
        assert np.mean(joint) == 1
        assert np.mean(apart) < 0.6

    def test_a_box_beside_the_image_is_refused(self) -> None:
        with pytest.raises(PromptError, match="lies outside the image"):
            swin_points(empty((9, 9)), Box(10, 0, 12, 5), rng=dice())


class TestSwinPointsAtInference:
    @pytest.mark.parametrize(("shift", "most"), [("code", 8), ("paper", 7)])
    def test_the_box_shrinks_before_points_are_drawn(self, shift: str, most: int) -> None:
        # w = 20: code draws 20 // 5 .. 20 // 2 - 2 = 4..8, the paper's 4 .. 2 * 20 // 5 - 1 = 4..7. The left quarter
        # starts at 10 + shift and ends before the centre, 20; the right one starts there.
        pixels = picture((rectangle((50, 50), 1, 1, 49, 49), 200))
        draws = [
            swin_points_inference(pixels, Box(10, 10, 30, 30), rng=dice(seed), shift=shift).coordinates  # type: ignore[arg-type]
            for seed in range(400)
        ]
        xs = np.array(draws)[:, :, 0]
        assert (xs[:, :2].min(), xs[:, :2].max()) == (14, 19)
        assert (xs[:, 2:].min(), xs[:, 2:].max()) == (20, 25)
        moved = {
            moved_in(Box(10, 10, 30, 30), rng=dice(seed), first=lambda s: s // 5, end=lambda s: most + 1).x_min
            for seed in range(200)
        }
        assert moved == {10.0 + shift for shift in range(4, most + 1)}

    def test_a_small_box_does_not_shrink(self) -> None:
        # w = 3: from 3 // 5 = 0 to before 3 // 2 - 1 = 0, an empty range.
        pixels = picture((rectangle((9, 9), 2, 2, 5, 5), 200))
        rng = dice()
        points = swin_points_inference(pixels, Box(2, 2, 5, 5), rng=rng)
        assert points.coordinates[0] == (2, 2)

    def test_points_avoid_what_is_black(self) -> None:
        pixels = picture((disk((40, 40), centre=(20, 20), radius=12), 90))
        for seed in range(50):
            points = swin_points_inference(pixels, Box(5, 5, 35, 35), rng=dice(seed))
            assert share_on(pixels > 0, points) == 1

    def test_a_black_image_gives_the_centre(self) -> None:
        points = swin_points_inference(np.zeros((20, 20), dtype=np.uint8), Box(4, 4, 15, 12, z=2), rng=dice())
        assert points == Points([(9, 8)] * 4, z=2)

    def test_foreground_is_what_is_brighter_than_the_darkest_in_any_channel(self) -> None:
        pixels = np.zeros((2, 2, 3), dtype=np.uint8)
        pixels[0, 1, 2] = 1
        assert image_foreground(pixels).tolist() == [[False, True], [False, False]]
        assert not image_foreground(np.full((2, 2), 7, dtype=np.uint8)).any()

    def test_at_the_border_points_stay_on_the_image(self) -> None:
        mask = touching_the_edge()
        points = swin_points_inference(picture((mask, 255)), Box.around(mask), rng=dice())
        assert points.inside((16, 16)) == points
