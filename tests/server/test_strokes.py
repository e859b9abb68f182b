"""Brush strokes in millimetres: what they cover, worked out by hand."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palpate.errors import PromptError
from palpate.images import Geometry
from palpate.server.strokes import MAX_PATH, Stroke, along

ISOTROPIC = (1.0, 1.0)


def drawn(*rows: str) -> np.ndarray:
    """A mask as it looks: # inside, . outside."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def near(path, shape, spacing, radius) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that surely lie within `radius` of a path, and those that do so or are on the very edge, one by one."""
    points = np.array(path, dtype=float)[:, ::-1] * spacing
    at = np.stack(np.indices(shape), axis=-1) * np.array(spacing)
    distance = np.full(shape, np.inf)
    for start, end in zip(points, points[1:] if len(points) > 1 else points, strict=False):
        line = end - start
        share = np.clip((at - start) @ line / max(line @ line, 1e-300), 0, 1)[..., None]
        distance = np.minimum(distance, np.linalg.norm(at - start - share * line, axis=-1))
    return distance <= radius - 1e-5, distance <= radius + 1e-5


# Discs ------------------------------------------------------------------------------------------------------------


def test_a_click_of_radius_two_is_a_disc():
    touched = along([(2, 2)], (5, 5), ISOTROPIC, 2.0)
    np.testing.assert_array_equal(touched, drawn("..#..", ".###.", "#####", ".###.", "..#.."))


def test_a_disc_is_round_in_millimetres_not_in_pixels():
    # Rows 3 mm apart, columns 1 mm: 3 mm is one row or three columns; and (1 row, 0 columns) is on the edge.
    touched = along([(4, 2)], (5, 9), (3.0, 1.0), 3.0)
    np.testing.assert_array_equal(touched, drawn(".........", "....#....", ".#######.", "....#....", "........."))


def test_a_brush_that_is_thinner_than_the_rows_grows_along_no_axis():
    touched = along([(4, 1)], (3, 9), (5.0, 1.0), 1.0)
    np.testing.assert_array_equal(touched, drawn(".........", "...###...", "........."))


@pytest.mark.parametrize("radius", [0.0, 0.4])
def test_a_click_without_a_size_is_one_pixel(radius: float):
    for spacing in (ISOTROPIC, (5.0, 1.0), (1.0, 5.0)):
        np.testing.assert_array_equal(along([(3, 1)], (3, 5), spacing, radius), drawn(".....", "...#.", "....."))


def test_corners_are_reached_and_nothing_goes_round_to_the_other_side():
    shape = (4, 6)
    for x, y in ((0, 0), (5, 0), (0, 3), (5, 3)):
        touched = along([(x, y)], shape, ISOTROPIC, 1.0)
        assert sorted(map(tuple, np.argwhere(touched).tolist())) == sorted(
            (row, column)
            for row, column in ((y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if 0 <= row < 4 and 0 <= column < 6
        )


def test_the_largest_brush_covers_everything():
    assert along([(0, 0)], (50, 40), (0.5, 0.5), 1000.0).all()


# Lines ------------------------------------------------------------------------------------------------------------


def test_a_line_is_a_sausage():
    touched = along([(2, 2), (6, 2)], (5, 9), ISOTROPIC, 1.0)
    np.testing.assert_array_equal(touched, drawn(".........", "..#####..", ".#######.", "..#####..", "........."))


@pytest.mark.parametrize("spacing", [ISOTROPIC, (5.0, 1.0), (1.0, 5.0), (0.01, 900.0)])
def test_a_thin_line_has_no_gaps(spacing: tuple[float, float]):
    """Neighbouring pixels of it share an edge or a corner, all the way, in any direction and either way round."""
    from scipy.ndimage import label

    for end in ((9, 0), (9, 3), (9, 9), (2, 9), (0, 9)):
        touched = along([(0, 0), end], (10, 10), spacing, 0.0)
        np.testing.assert_array_equal(touched, along([end, (0, 0)], (10, 10), spacing, 0.0))
        assert label(touched, np.ones((3, 3)))[1] == 1
        assert touched[0, 0]
        assert touched[end[1], end[0]]
        # Thin: never more than two pixels at a step.
        assert min(touched.sum(axis=0).max(), touched.sum(axis=1).max()) <= 2


def test_a_thin_diagonal_is_the_diagonal():
    np.testing.assert_array_equal(along([(0, 0), (4, 4)], (5, 5), ISOTROPIC, 0.0), np.eye(5, dtype=bool))


@given(st.data())
def test_what_is_covered_is_what_lies_within_the_radius(data: st.DataObject):
    rows, columns = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    point = st.tuples(st.integers(0, columns - 1), st.integers(0, rows - 1))
    path = data.draw(st.lists(point, min_size=1, max_size=5))
    sizes = st.sampled_from([0.25, 0.5, 1.0, 1.37, 3.0, 10.0])
    spacing = data.draw(st.tuples(sizes, sizes))
    radius = data.draw(st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]), st.floats(0, 20)))
    touched = along(path, (rows, columns), spacing, radius)
    surely, perhaps = near(path, (rows, columns), spacing, radius)
    assert touched[surely].all()
    # Beyond the radius there is only what the line runs through.
    _, thin = near(path, (rows, columns), (1.0, 1.0), 0.5)
    assert not touched[~(perhaps | thin)].any()
    assert all(touched[y, x] for x, y in path)


def test_the_longest_path_with_a_wide_brush_takes_seconds():
    """As much as anybody may ask for: point by point, it would take minutes."""
    rng = np.random.default_rng(0)
    path = [(int(x), int(y)) for x, y in rng.integers(0, 256, (MAX_PATH, 2))]
    started = time.process_time()
    assert along(path, (256, 256), ISOTROPIC, 200.0).all()
    assert time.process_time() - started < 20


# Slices of a volume -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "shape", "place", "spread"),
    [
        (0, (6, 7), (2, 3), (1, 2)),  # along z: rows are y (2 mm), columns are x (1 mm)
        (1, (5, 7), (2, 3), (0, 2)),  # along y: rows are z (4 mm), columns are x
        (2, (5, 6), (2, 3), (0, 1)),  # along x: rows are z, columns are y
    ],
)
def test_a_slice_has_the_spacing_of_its_own_two_axes(axis, shape, place, spread):
    geometry = Geometry((5, 6, 7), np.diag([-1.0, -2.0, 4.0, 1.0]))
    touched = Stroke("brush", axis, 0, (place,), 2.0).touched(geometry)
    assert touched.shape == shape
    x, y = place
    rows, columns = np.nonzero(touched)
    assert (rows.max() - y, columns.max() - x) == spread


def test_a_picture_is_one_slice():
    geometry = Geometry((3, 5), np.diag([-1.0, -1.0, 1.0, 1.0]))
    touched = Stroke("eraser", 0, 0, ((1, 1),), 1.0).touched(geometry)
    np.testing.assert_array_equal(touched, drawn(".#...", "###..", ".#..."))


# What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-1, 5, 10**9])
def test_a_slice_that_does_not_exist_is_refused(z: int):
    with pytest.raises(PromptError, match=r"there are slices 0\.\.4"):
        Stroke("brush", 0, z, ((0, 0),), 1.0).touched(Geometry((5, 6, 7), np.eye(4)))


@pytest.mark.parametrize("point", [(-1, 0), (7, 0), (0, 6), (0, -1), (10**15, 0)])
def test_a_point_outside_the_slice_is_refused(point: tuple[int, int]):
    with pytest.raises(PromptError, match=r"outside the slice; it has columns 0\.\.6 and rows 0\.\.5"):
        along([(0, 0), point], (6, 7), ISOTROPIC, 1.0)


@pytest.mark.parametrize("radius", [-1.0, 1000.5, float("inf"), float("nan")])
def test_a_radius_that_is_no_size_is_refused(radius: float):
    with pytest.raises(PromptError, match="not between 0 and 1000"):
        along([(0, 0)], (6, 7), ISOTROPIC, radius)


def test_a_path_has_a_point_and_not_too_many():
    for count in (0, MAX_PATH + 1):
        with pytest.raises(PromptError, match=f"1 to {MAX_PATH} points; this one has {count}"):
            along([(0, 0)] * count, (6, 7), ISOTROPIC, 1.0)
