import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palpate.errors import PromptError
from palpate.prompts import Box, MaskPrompt, Points, Scribble, Target
from phantoms import disk, empty, one_voxel, rectangle, ring, touching_the_edge, two_organs, vessel


def line(y: int, first: int, last: int, shape: tuple[int, int] = (40, 40)) -> np.ndarray:
    return rectangle(shape, first, y, last, y)


class TestBox:
    def test_its_edges_are_the_first_and_last_pixel_inside(self) -> None:
        assert Box.around(two_organs() == 2) == Box(8, 10, 13, 12)

    def test_a_single_pixel_has_a_box_without_extent(self) -> None:
        assert Box.around(one_voxel((5, 9), (3, 7)), z=2) == Box(7, 3, 7, 3, z=2)

    def test_it_reaches_the_last_row_and_column(self) -> None:
        assert Box.around(touching_the_edge()) == Box(9, 11, 15, 15)

    def test_a_hole_does_not_matter(self) -> None:
        assert Box.around(ring((32, 32), centre=(10, 20), outer=6, inner=3)) == Box(4, 14, 16, 26)

    def test_a_vessel_on_the_diagonal_fills_it(self) -> None:
        assert Box.around(vessel((12, 8))) == Box(0, 0, 7, 7)

    def test_no_box_fits_an_empty_mask(self) -> None:
        with pytest.raises(PromptError, match="no box fits an empty mask; skip the slice or pass another label"):
            Box.around(empty((4, 4)))

    @pytest.mark.parametrize(
        ("corners", "told"),
        [
            ((5, 0, 4, 9), r"the box \(5, 0, 4, 9\) is inverted: x_max 4 is below x_min 5; give x_min y_min x_max"),
            ((0, 5, 9, 4.5), "inverted: y_max 4.5 is below y_min 5"),
            ((math.nan, 0, 1, 1), "not finite"),
            ((0, 0, math.inf, 1), "not finite"),
        ],
    )
    def test_corners_that_make_no_box(self, corners: tuple[float, ...], told: str) -> None:
        with pytest.raises(PromptError, match=told):
            Box(*corners)

    def test_slices_count_from_zero(self) -> None:
        with pytest.raises(PromptError, match="slice -1 does not exist"):
            Box(0, 0, 1, 1, z=-1)

    def test_it_is_cut_at_the_border(self) -> None:
        assert Box(-3, 2, 50, 90, z=4).inside((20, 30)) == Box(0, 2, 29, 19, z=4)

    def test_one_that_fits_stays_as_it_is(self) -> None:
        assert Box(0, 0, 29, 19).inside((20, 30)) == Box(0, 0, 29, 19)

    @pytest.mark.parametrize("corners", [(30, 0, 40, 5), (0, 20, 5, 25), (-9, 0, -1, 5), (0, -9, 5, -1)])
    def test_one_outside_is_refused(self, corners: tuple[int, int, int, int]) -> None:
        with pytest.raises(PromptError, match=r"lies outside the image, which has columns 0..29 and rows 0..19"):
            Box(*corners).inside((20, 30))

    @given(*[st.integers(-50, 50)] * 4)
    def test_a_cut_box_lies_inside_and_in_the_box(self, x: int, y: int, width: int, height: int) -> None:
        box = Box(x, y, x + abs(width), y + abs(height))
        try:
            cut = box.inside((20, 30))
        except PromptError:
            return
        assert 0 <= cut.x_min <= cut.x_max <= 29
        assert 0 <= cut.y_min <= cut.y_max <= 19
        assert box.x_min <= cut.x_min
        assert cut.x_max <= box.x_max


class TestPoints:
    def test_without_marks_all_lie_on_the_object(self) -> None:
        assert Points([(1, 2), (3, 4)]).labels == (1, 1)

    def test_rows_of_an_array_are_points(self) -> None:
        assert Points(np.array([[1, 2], [3, 4]]).tolist()) == Points([(1, 2), (3, 4)])

    @pytest.mark.parametrize(
        ("coordinates", "labels", "told"),
        [
            ([], [], "at least one point"),
            ([(1, 2, 3)], [], "has 3 numbers"),
            ([(1, math.nan)], [], "not finite"),
            ([(1, 2)], [1, 0], "1 points came with 2 labels"),
            ([(1, 2)], [2], r"not \[2\]"),
            ([(1, 2)], [0.5], r"not \[0.5\]"),
        ],
    )
    def test_what_makes_no_points(self, coordinates: list, labels: list, told: str) -> None:
        with pytest.raises(PromptError, match=told):
            Points(coordinates, labels)

    def test_a_point_may_lie_anywhere_in_the_last_pixel(self) -> None:
        points = Points([(-0.5, -0.5), (29.5, 19.5)])
        assert points.inside((20, 30)) == points

    @pytest.mark.parametrize("point", [(-0.6, 0), (29.6, 0), (0, -0.6), (0, 19.6), (5, 25)])
    def test_one_point_outside_is_refused(self, point: tuple[float, float]) -> None:
        with pytest.raises(PromptError, match=r"points are x y \(column row\)"):
            Points([(1, 1), point]).inside((20, 30))


class TestScribble:
    def test_a_stroke_of_few_pixels_gives_them_all(self) -> None:
        assert sorted(Scribble(line(5, 10, 12)).points().coordinates) == [(10, 5), (11, 5), (12, 5)]

    def test_points_are_spread_from_the_middle_to_the_ends(self) -> None:
        points = Scribble(line(3, 0, 32), z=6).points()
        # The middle, then an end (the first of two equally far), the other end, then the middles of what is left.
        assert points.coordinates[:3] == ((16, 3), (0, 3), (32, 3))
        assert {points.coordinates[3], points.coordinates[4]} == {(8, 3), (24, 3)}
        assert len(points.coordinates) == 8
        assert points.z == 6

    def test_strokes_beside_the_object_are_marked_so(self) -> None:
        points = Scribble(line(3, 0, 1), line(9, 5, 6)).points()
        assert points.labels == (1, 1, 0, 0)
        assert {y for _, y in points.coordinates[2:]} == {9}

    def test_an_empty_stroke_beside_the_object_says_nothing(self) -> None:
        assert Scribble(line(3, 0, 1), empty((40, 40))).points().labels == (1, 1)

    @given(st.integers(0, 2**16))
    def test_points_stay_on_a_thin_ring(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        stroke = ring((40, 40), centre=(20, 20), outer=15, inner=14) & (generator.random((40, 40)) < 0.5)
        stroke[20, 35] = True
        points = Scribble(stroke).points()
        assert all(stroke[int(y), int(x)] for x, y in points.coordinates)
        assert len(set(points.coordinates)) == len(points.coordinates) == min(8, stroke.sum())

    def test_the_same_stroke_gives_the_same_points(self) -> None:
        stroke = disk((40, 40), centre=(17, 21), radius=9)
        assert Scribble(stroke).points() == Scribble(stroke.copy()).points()

    @pytest.mark.parametrize(
        ("positive", "negative", "told"),
        [
            (empty((4, 4)), None, "at least one drawn pixel"),
            (line(0, 0, 1), empty((4, 4)), "differ in shape"),
            (line(0, 0, 5), line(0, 5, 9), "overlap"),
        ],
    )
    def test_what_makes_no_scribble(self, positive: np.ndarray, negative: np.ndarray | None, told: str) -> None:
        with pytest.raises(PromptError, match=told):
            Scribble(positive, negative)

    def test_it_must_be_drawn_on_the_slice_itself(self) -> None:
        with pytest.raises(PromptError, match="the scribble has 40 rows and 40 columns but the slice has 20 and 30"):
            Scribble(line(0, 0, 1)).inside((20, 30))


class TestMaskPrompt:
    def test_an_empty_guess_is_refused(self) -> None:
        with pytest.raises(PromptError, match="at least one pixel inside"):
            MaskPrompt(empty((4, 4)))

    def test_it_must_have_the_slices_size(self) -> None:
        with pytest.raises(PromptError, match="the mask has 4 rows and 5 columns but the slice has 5 and 4"):
            MaskPrompt(np.ones((4, 5), dtype=bool)).inside((5, 4))


class TestTarget:
    def test_without_a_slice_it_starts_in_the_middle_of_its_range(self) -> None:
        # int((z_max - z_min) / 2 + z_min), as in LiteMedSAM's 3D inference.
        assert Target((Box(0, 0, 1, 1),), z_range=(3, 8)).z == 5
        assert Target((Box(0, 0, 1, 1),), z_range=(4, 4)).z == 4
        assert Target((Box(0, 0, 1, 1, z=7),), z_range=(3, 8)).z == 7
        assert Target((Box(0, 0, 1, 1),)).z is None

    @pytest.mark.parametrize(
        ("prompts", "label", "z_range", "told"),
        [
            ((), 1, None, "at least one prompt"),
            ((Box(0, 0, 1, 1),), 0, None, "label 0 is taken by the background"),
            ((Box(0, 0, 1, 1, z=1), Points([(0, 0)], z=2)), 1, None, "different slices"),
            ((Box(0, 0, 1, 1, z=1), Points([(0, 0)])), 1, None, "different slices"),
            ((Box(0, 0, 1, 1, z=1),), 1, (5, 4), "inverted"),
            ((Box(0, 0, 1, 1, z=1),), 1, (-1, 4), "slice -1 does not exist"),
            ((Box(0, 0, 1, 1),), 1, (-4, -2), "slice -4 does not exist"),
        ],
    )
    def test_what_makes_no_target(
        self, prompts: tuple[Box | Points, ...], label: int, z_range: tuple[int, int] | None, told: str
    ) -> None:
        with pytest.raises(PromptError, match=told):
            Target(prompts, label=label, z_range=z_range)


def test_a_name_that_no_file_could_hold_is_refused() -> None:
    assert Target((Box(1, 2, 3, 4),), name="Drüse 肝臓").name == "Drüse 肝臓"
    with pytest.raises(PromptError, match="half a character"):
        Target((Box(1, 2, 3, 4),), name="\ud800x")
