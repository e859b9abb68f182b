import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_opening, maximum_filter

from any_masks import masks
from palpate.errors import PromptError
from palpate.prompts import Box
from palpate.prompts.clicks import depth, largest_part
from palpate.prompts.from_box import (
    Shrinking,
    box_quadrant_points,
    derived_prompts,
    scribble_in_box,
    shrunk_box,
    training_prompts,
)
from palpate.prompts.sampling import swin_points_inference, swin_points_training
from palpate.prompts.scribbles import swin_scribble_inference, swin_scribble_training
from phantoms import disk, empty, one_voxel, picture, rectangle, ring, vessel

seeds = st.integers(0, 2**32 - 1)
rules: list[Shrinking] = ["points-code", "points-paper", "scribble"]


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def corners(x_min: float | int, y_min: float | int, x_max: float | int, y_max: float | int) -> np.ndarray:
    return np.array([x_min, y_min, x_max, y_max], dtype=np.float32)


@st.composite
def boxes(draw: st.DrawFn) -> np.ndarray:
    """On, across and beside grids of up to 40 pixels; of one pixel, without width, between pixels, half a pixel off."""
    number = st.one_of(
        st.integers(-8, 60).map(float), st.integers(-8, 60).map(lambda whole: whole + 0.5), st.floats(-8, 60, width=32)
    )
    (x_min, x_max), (y_min, y_max) = (
        sorted((first, draw(st.one_of(st.just(first), number)))) for first in (draw(number), draw(number))
    )
    return corners(x_min, y_min, x_max, y_max)


def on_the_grid(box: np.ndarray, grid: np.ndarray) -> tuple[int, int, int, int]:
    """First and last column, first and last row that the box covers; the last may be one past the grid."""
    x_min, y_min, x_max, y_max = box.astype(int).tolist()
    rows, columns = grid.shape
    columns_covered = min(max(x_min, 0), columns - 1), min(max(x_max, 0), columns)
    rows_covered = min(max(y_min, 0), rows - 1), min(max(y_max, 0), rows)
    return *columns_covered, *rows_covered


def quarters(box: np.ndarray, grid: np.ndarray) -> tuple[list[tuple[slice, slice]], tuple[int, int]]:
    """Rows and columns of each quarter in the order of the points, and the centre (x, y)."""
    left, right, top, bottom = on_the_grid(box, grid)
    x, y = (left + right) // 2, (top + bottom) // 2
    rows, columns = (slice(top, y), slice(y, bottom)), (slice(left, x), slice(x, right))
    return [(rows[0], columns[0]), (rows[1], columns[0]), (rows[1], columns[1]), (rows[0], columns[1])], (x, y)


class TestBoxQuadrantPoints:
    def test_on_a_grid_of_five_the_last_row_and_column_belong_to_no_quarter(self) -> None:
        # The box 0..4 has its centre at (0 + 4) // 2 = 2: rows and columns 0, 1 | 2, 3 and nothing of 4.
        #
        #     column  0 1 2 3 4
        #     row 0   . A . . #     A, B, C, D: top left, bottom left, bottom right, top right, one pixel each
        #     row 1   . . D . #     #: in the last row or column, never drawn
        #     row 2   . . . . #
        #     row 3   B . . C #
        #     row 4   # # # # #
        inside = rectangle((5, 5), 4, 0, 4, 4) | rectangle((5, 5), 0, 4, 4, 4)
        for x, y in ((1, 0), (0, 3), (3, 3), (2, 1)):
            inside[y, x] = True
        for seed in range(20):
            points = box_quadrant_points(inside, corners(0, 0, 4, 4), rng=dice(seed))
            assert points.tolist() == [[1, 0], [0, 3], [3, 3], [2, 1]]

    def test_the_centre_s_row_and_column_belong_below_and_to_the_right(self) -> None:
        full, box = np.ones((5, 5), dtype=bool), corners(0, 0, 4, 4)
        drawn = np.array([box_quadrant_points(full, box, rng=dice(seed)) for seed in range(100)])
        low, high = {0, 1}, {2, 3}
        assert [set(drawn[:, place, 0].tolist()) for place in range(4)] == [low, low, high, high]
        assert [set(drawn[:, place, 1].tolist()) for place in range(4)] == [low, high, high, low]

    def test_a_quarter_with_nothing_inside_gives_the_centre(self) -> None:
        # Only the top left quarter holds a pixel; the centre of 1..6 is (1 + 6) // 2 = 3.
        points = box_quadrant_points(one_voxel((9, 9), (1, 2)), corners(1, 1, 6, 6), rng=dice())
        assert points.tolist() == [[2, 1], [3, 3], [3, 3], [3, 3]]

    @pytest.mark.parametrize(
        ("box", "point"),
        [
            (corners(2, 3, 2, 3), [2, 3]),
            (corners(2.5, 3.5, 2.5, 3.5), [2, 3]),
            (corners(4, 1, 4, 5), [4, 3]),
            (corners(-0.5, -0.5, 0.5, 0.5), [0, 0]),
            (corners(-9, -9, -2, -2), [0, 0]),
            (corners(20, 20, 30, 30), [8, 8]),
        ],
        ids=["one pixel", "between pixels", "without width", "half a pixel off", "before the grid", "beyond the grid"],
    )
    def test_where_there_is_nothing_to_divide_the_centre_comes_four_times(
        self, box: np.ndarray, point: list[int]
    ) -> None:
        for inside in (np.ones((9, 9), dtype=bool), empty((9, 9))):
            assert box_quadrant_points(inside, box, rng=dice()).tolist() == [point] * 4

    def test_a_box_that_ends_one_past_the_grid_takes_its_last_column(self) -> None:
        points = box_quadrant_points(one_voxel((8, 8), (7, 7)), corners(4, 4, 8, 8), rng=dice())
        assert points[2].tolist() == [7, 7]

    @given(masks(allow_empty=True), boxes(), seeds)
    def test_each_lies_on_what_is_inside_its_quarter_or_in_the_middle(
        self, inside: np.ndarray, box: np.ndarray, seed: int
    ) -> None:
        points = box_quadrant_points(inside, box, rng=dice(seed))
        places, centre = quarters(box, inside)
        assert points.dtype == np.float32
        for (rows, columns), (x, y) in zip(places, points.astype(int).tolist(), strict=True):
            if inside[rows, columns].any():
                assert inside[y, x]
                assert rows.start <= y < rows.stop
                assert columns.start <= x < columns.stop
            else:
                assert (x, y) == centre

    @given(masks(allow_empty=True), boxes(), seeds, st.booleans())
    def test_they_lie_in_the_box_and_the_same_dice_give_the_same(
        self, inside: np.ndarray, box: np.ndarray, seed: int, apart: bool
    ) -> None:
        first, second = (box_quadrant_points(inside, box, rng=dice(seed), independent_xy=apart) for _ in range(2))
        left, right, top, bottom = on_the_grid(box, inside)
        assert (first == second).all()
        assert ((left <= first[:, 0]) & (first[:, 0] <= right)).all()
        assert ((top <= first[:, 1]) & (first[:, 1] <= bottom)).all()
        assert (first < inside.shape[::-1]).all()

    def test_drawn_apart_they_leave_a_ring_and_drawn_whole_they_do_not(self) -> None:
        mask, box = ring((64, 64), centre=(32, 32), outer=28, inner=25), corners(4, 4, 60, 60)

        def share_on(apart: bool) -> float:
            drawn = [box_quadrant_points(mask, box, rng=dice(seed), independent_xy=apart) for seed in range(100)]
            x, y = np.concatenate(drawn).astype(int).T
            return float(mask[y, x].mean())

        assert share_on(apart=False) == 1
        assert share_on(apart=True) < 0.6

    @pytest.mark.parametrize("bad", [corners(5, 1, 2, 4), corners(1, 1, np.nan, 4), corners(1, 1, np.inf, 4)])
    def test_what_is_no_box_is_refused(self, bad: np.ndarray) -> None:
        for draw in (box_quadrant_points, scribble_in_box, derived_prompts, training_prompts):
            with pytest.raises(PromptError, match=r"inverted|finite"):
                draw(np.ones((9, 9), dtype=bool), bad, rng=dice())


# By hand: the side w, and what its edges move by. Empty ranges move nothing, which is 0 here.
SHIFTS: list[tuple[Shrinking, int, set[int]]] = [
    ("points-code", 0, {0}),  # 0 .. -2
    ("points-code", 3, {0}),  # 0 .. -1
    ("points-code", 4, {0}),  # 0 .. 0
    ("points-code", 5, {0}),  # 1 .. 0
    ("points-code", 6, {1}),  # 1 .. 1
    ("points-code", 10, {2, 3}),  # 2 .. 3
    ("points-code", 33, set(range(6, 15))),  # 6 .. 14
    ("points-code", 100, set(range(20, 49))),  # 20 .. 48
    ("points-paper", 2, {0}),  # 0 .. -1
    ("points-paper", 3, {0}),  # 0 .. 0
    ("points-paper", 5, {1}),  # 1 .. 1
    ("points-paper", 20, {4, 5, 6, 7}),  # 4 .. 7
    ("points-paper", 33, set(range(6, 13))),  # 6 .. 12
    ("points-paper", 100, set(range(20, 40))),  # 20 .. 39
    ("scribble", 5, {0}),  # 0 .. -1
    ("scribble", 8, {0}),  # 1 .. 0
    ("scribble", 12, {1}),  # 1 .. 1
    ("scribble", 60, {7, 8, 9}),  # 7 .. 9
    ("scribble", 240, set(range(30, 40))),  # 30 .. 39
]


class TestShrunkBox:
    @pytest.mark.parametrize(("rule", "side", "shifts"), SHIFTS, ids=[f"{rule}-{side}" for rule, side, _ in SHIFTS])
    def test_edges_move_by_exactly_these_pixels(self, rule: Shrinking, side: int, shifts: set[int]) -> None:
        # The rarest of 29 values is missed by 600 draws with a chance of 29 * (28/29)^600, below one in ten million.
        rng = dice(side)
        drawn = np.array([shrunk_box(corners(3, 7, 3 + side, 7), rng=rng, rule=rule) for _ in range(600)])
        across = np.array([shrunk_box(corners(3, 7, 3, 7 + side), rng=rng, rule=rule) for _ in range(600)])
        assert set((drawn[:, 0] - 3).tolist()) == set((3 + side - drawn[:, 2]).tolist()) == shifts
        assert set((across[:, 1] - 7).tolist()) == set((7 + side - across[:, 3]).tolist()) == shifts
        assert (drawn[:, [1, 3]] == 7).all()
        assert (across[:, [0, 2]] == 3).all()

    @pytest.mark.parametrize("rule", rules)
    def test_every_number_of_pixels_is_equally_likely_and_axes_are_independent(self, rule: Shrinking) -> None:
        rng = dice()
        drawn = np.array([shrunk_box(corners(0, 0, 60, 60), rng=rng, rule=rule)[:2] for _ in range(2500)]).astype(int)
        x, y = drawn.T
        counts = np.bincount(x)[x.min() :]
        # Binomial: five standard deviations around the same number for all.
        expected = len(x) / len(counts)
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(len(x))

    @given(boxes(), st.sampled_from(rules), seeds)
    def test_the_centre_stays_and_the_box_never_turns_inside_out(
        self, box: np.ndarray, rule: Shrinking, seed: int
    ) -> None:
        smaller = shrunk_box(box, rng=dice(seed), rule=rule)
        whole = box.astype(int)
        assert smaller.dtype == box.dtype
        assert ((smaller[:2] + smaller[2:]) // 2 == (whole[:2] + whole[2:]) // 2).all()
        assert (whole[:2] <= smaller[:2]).all()
        assert (smaller[:2] <= smaller[2:]).all()
        assert (smaller == shrunk_box(box, rng=dice(seed), rule=rule)).all()

    def test_corners_are_cut_even_where_nothing_shrinks(self) -> None:
        assert shrunk_box(corners(1.5, 2.9, 3.5, 4.2), rng=dice(), rule="scribble").tolist() == [1, 2, 3, 4]

    def test_the_box_handed_in_stays_as_it_is(self) -> None:
        box = corners(10, 20, 70, 90)
        shrunk_box(box, rng=dice(), rule="points-code")
        assert box.tolist() == [10, 20, 70, 90]


class TestScribbleInBox:
    @given(masks(allow_empty=True), boxes(), seeds)
    def test_it_is_one_piece_inside_the_box_or_nothing(self, inside: np.ndarray, box: np.ndarray, seed: int) -> None:
        before = inside.copy()
        stroke = scribble_in_box(inside, box, rng=dice(seed))
        left, right, top, bottom = on_the_grid(box, inside)
        region = inside & rectangle((inside.shape[0], inside.shape[1]), left, top, right, bottom)
        assert not (stroke & ~region).any()
        assert (largest_part(stroke) == stroke).all()
        assert not stroke.any() or stroke.sum() > 5
        assert (stroke == scribble_in_box(inside, box, rng=dice(seed))).all()
        assert (inside == before).all()

    def test_the_last_row_and_column_of_the_box_take_part(self) -> None:
        full, box = np.ones((20, 20), dtype=bool), corners(4, 4, 12, 12)
        drawn = np.any([scribble_in_box(full, box, rng=dice(seed)) for seed in range(60)], axis=0)
        assert (drawn == rectangle((20, 20), 4, 4, 12, 12)).all()

    def test_five_pixels_get_none_after_six_tries(self) -> None:
        full = np.ones((9, 9), dtype=bool)
        assert not any(scribble_in_box(full, corners(2, 2, 6, 2), rng=dice(seed)).any() for seed in range(20))
        assert any(scribble_in_box(full, corners(2, 2, 7, 2), rng=dice(seed)).any() for seed in range(20))

    def test_the_brush_is_three_to_nine_pixels_wide(self) -> None:
        # The middle of a line of 9 pixels is 5 from the nearest pixel beside it; a pen that slows down paints over its
        # own line, which adds little. Little of a stroke is thinner than two pixels; thin and thick ones both occur.
        full = np.ones((256, 256), dtype=bool)
        middles = []
        for seed in range(40):
            stroke = scribble_in_box(full, corners(0, 0, 255, 255), rng=dice(seed))
            deep = depth(stroke)
            ridge = stroke & (deep == maximum_filter(deep, size=3))
            middles.append(np.median(deep[ridge]))
            assert middles[-1] <= 5
            assert deep.max() <= 7
            assert binary_opening(stroke, np.ones((2, 2))).sum() > 0.8 * stroke.sum()
        assert min(middles) < 2
        assert max(middles) > 4


class TestDerivedPrompts:
    @given(masks(allow_empty=True), boxes(), seeds)
    def test_any_box_gets_four_points_and_a_scribble_in_it(
        self, inside: np.ndarray, box: np.ndarray, seed: int
    ) -> None:
        points, stroke = derived_prompts(inside, box, rng=dice(seed))
        left, right, top, bottom = on_the_grid(box, inside)
        _, centre = quarters(box, inside)
        for x, y in points.astype(int).tolist():
            assert inside[y, x] or (x, y) == centre
            assert left <= x <= right
            assert top <= y <= bottom
        assert not (stroke & ~(inside & rectangle((inside.shape[0], inside.shape[1]), left, top, right, bottom))).any()

    def test_points_and_scribble_each_have_a_smaller_box_of_their_own(self) -> None:
        # Sides of 120 shrink by 24 to 58 pixels for the points, and by 15 to 19 for the scribble; nothing is black.
        full = np.ones((256, 256), dtype=bool)
        drawn = [derived_prompts(full, corners(40, 60, 160, 180), rng=dice(seed)) for seed in range(60)]
        from_the_corner = np.concatenate([points for points, _ in drawn]) - (40, 60)
        assert from_the_corner.min() >= 24
        assert from_the_corner.max() < 120 - 24
        painted = Box.around(np.any([stroke for _, stroke in drawn], axis=0))
        assert (painted.x_min, painted.y_min, painted.x_max, painted.y_max) == (55, 75, 145, 165)

    def test_sides_of_six_shrink_by_one_for_points_and_not_for_the_scribble(self) -> None:
        # 10..16 becomes 11..15 with the centre 13: columns and rows 11, 12 | 13, 14.
        full = np.ones((30, 30), dtype=bool)
        drawn = [derived_prompts(full, corners(10, 10, 16, 16), rng=dice(seed)) for seed in range(60)]
        assert set(np.array([points for points, _ in drawn]).ravel().tolist()) == {11, 12, 13, 14}
        painted = np.any([stroke for _, stroke in drawn], axis=0)
        assert (painted == rectangle((30, 30), 10, 10, 16, 16)).all()

    def test_a_black_image_gives_the_centre_and_no_scribble(self) -> None:
        points, stroke = derived_prompts(empty((64, 64)), corners(10, 20, 51, 40), rng=dice())
        assert points.tolist() == [[30, 30]] * 4
        assert not stroke.any()

    def test_a_box_across_the_border_is_cut_before_it_shrinks(self) -> None:
        # -40..40 covers 0..40 of the grid: its centre is 20, and the edges move by 40 // 5 = 8 to 18, so that points
        # have columns 8 to 31. Cut afterwards, the whole width of 80 would shrink and the box begin at 0.
        full = np.ones((64, 64), dtype=bool)
        drawn = [derived_prompts(full, corners(-40, 0, 40, 40), rng=dice(seed))[0] for seed in range(200)]
        left, right = np.array(drawn)[:, :2, 0], np.array(drawn)[:, 2:, 0]
        assert (left.min(), left.max()) == (8, 19)
        assert (right.min(), right.max()) == (20, 31)

    @given(seeds, st.booleans())
    def test_on_a_box_on_the_image_they_are_the_prompts_of_an_evaluation(self, seed: int, apart: bool) -> None:
        body = disk((64, 64), centre=(30, 34), radius=22)
        box, rng = Box(4, 9, 55, 60), dice(seed)
        expected = (
            swin_points_inference(picture((body, 80)), box, rng=rng, independent_xy=apart),
            swin_scribble_inference(picture((body, 80)), box, rng=rng),
        )
        points, stroke = derived_prompts(body, corners(4, 9, 55, 60), rng=dice(seed), independent_xy=apart)
        assert points.tolist() == [list(place) for place in expected[0].coordinates]
        assert (stroke == expected[1]).all()


class TestTrainingPrompts:
    @given(masks(allow_empty=True), boxes(), seeds)
    def test_points_come_from_the_mask_and_the_scribble_from_the_box(
        self, mask: np.ndarray, box: np.ndarray, seed: int
    ) -> None:
        points, stroke = training_prompts(mask, box, rng=dice(seed))
        left, right, top, bottom = on_the_grid(box, mask)
        _, centre = quarters(box, mask)
        assert all(mask[y, x] or (x, y) == centre for x, y in points.astype(int).tolist())
        assert not (stroke & ~rectangle((mask.shape[0], mask.shape[1]), left, top, right, bottom)).any()

    def test_the_scribble_does_not_look_at_the_object(self) -> None:
        mask = vessel((80, 80))
        box = corners(5, 5, 70, 70)
        strokes = [training_prompts(mask, box, rng=dice(seed))[1] for seed in range(20)]
        assert all((stroke & ~mask).any() for stroke in strokes)

    def test_an_empty_mask_gives_the_centre_and_a_scribble_all_the_same(self) -> None:
        points, stroke = training_prompts(empty((64, 64)), corners(10, 20, 51, 40), rng=dice())
        assert points.tolist() == [[30, 30]] * 4
        assert stroke.any()

    @given(seeds, st.booleans())
    def test_on_a_box_on_the_image_they_are_the_prompts_of_an_evaluation(self, seed: int, apart: bool) -> None:
        mask = disk((64, 64), centre=(30, 34), radius=22)
        box, rng = Box(4, 9, 55, 60), dice(seed)
        expected = (
            swin_points_training(mask, box, rng=rng, independent_xy=apart),
            swin_scribble_training(box, shape=(64, 64), rng=rng),
        )
        points, stroke = training_prompts(mask, corners(4, 9, 55, 60), rng=dice(seed), independent_xy=apart)
        assert points.tolist() == [list(place) for place in expected[0].coordinates]
        assert (stroke == expected[1]).all()
