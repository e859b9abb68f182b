"""The order in which clients see voxels: every voxel keeps its place, and every index finds its way back."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from palpate.errors import PromptError
from palpate.images import Geometry, Image
from palpate.images.geometry import affine_from_spacing, orientation
from palpate.images.slices import slice_first, slicing_axis
from palpate.server.grid import PLANES, RasGrid, off_slice, on_slice

ORDERS = [(order, signs) for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]
"""All 48 ways of storing a body: which world axis x, y and z run along, and in which direction."""


def affine_of(order: tuple[int, ...], signs: tuple[float, ...], spacing_mm=(1.0, 1.0, 1.0), turned=(0.0, 0.0, 0.0)):
    affine = np.eye(4)
    for voxel in range(3):
        affine[:3, voxel] = 0
        affine[order[voxel], voxel] = signs[voxel] * spacing_mm[voxel]
    affine[:3, :3] = Rotation.from_euler("xyz", turned, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = 12.5, -40.25, 300
    return affine


sizes = st.sampled_from([0.1, 0.7, 1.0, 2.5, 10.0])


Grid = tuple[tuple[int, ...], np.ndarray]
"""A shape and an affine."""


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    order, signs = draw(st.sampled_from(ORDERS))
    degrees = st.one_of(st.just(0.0), st.floats(-180, 180))
    affine = affine_of(order, signs, draw(st.tuples(sizes, sizes, sizes)), draw(st.tuples(degrees, degrees, degrees)))
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=3))
    return tuple(shape), affine


def numbered(geometry: Geometry) -> np.ndarray:
    """Every voxel has a value of its own."""
    return np.arange(np.prod(geometry.shape)).reshape(geometry.shape)


def as_volume(index: tuple[int, ...]) -> tuple[int, int, int]:
    """An array index as (z, y, x), z being 0 in a picture."""
    return (0,) * (3 - len(index)) + index


def place(affine: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    return (affine @ [*index, 1])[:3]


@given(grids())
def test_every_voxel_keeps_its_place_in_the_patient(drawn: Grid):
    geometry = Geometry(*drawn)
    grid = RasGrid.of(geometry)
    array = numbered(geometry)
    volume = grid.to_ras(array)
    assert volume.shape == grid.shape
    for index in np.ndindex(array.shape):
        zyx = as_volume(index)
        ijk = grid.to_ras_index(zyx)
        assert grid.to_array_index(ijk) == zyx
        assert volume[ijk] == array[index]
        np.testing.assert_allclose(place(grid.affine, ijk), place(geometry.affine, zyx[::-1]), atol=1e-6)


@given(grids(), st.booleans())
def test_the_way_there_and_back_is_a_view_and_changes_nothing(drawn: Grid, colour: bool):
    geometry = Geometry(*drawn)
    grid = RasGrid.of(geometry)
    array = numbered(geometry)
    if colour:
        array = np.stack([array, array + 1000, array + 2000], axis=-1)
    volume = grid.to_ras(array)
    back = grid.from_ras(volume)
    np.testing.assert_array_equal(back, array)
    assert np.shares_memory(volume, array)
    assert np.shares_memory(back, array)
    assert volume.shape == grid.shape + ((3,) if colour else ())
    inside = np.random.default_rng(0).random(volume.shape)
    np.testing.assert_array_equal(grid.to_ras(grid.from_ras(inside)), inside)


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_axes_of_the_patient_are_put_in_order_exactly(order: tuple[int, ...], signs: tuple[float, ...]):
    spacing_mm = (0.5, 2.0, 7.0)
    geometry = Geometry((2, 3, 4), affine_of(order, signs, spacing_mm))
    grid = RasGrid.of(geometry)
    wanted = [0.0, 0.0, 0.0]
    for voxel in range(3):
        wanted[order[voxel]] = spacing_mm[voxel]
    np.testing.assert_array_equal(grid.affine[:3, :3], np.diag(wanted))
    assert grid.shape == tuple((4, 3, 2)[order.index(world)] for world in range(3))


@given(grids())
def test_the_order_is_the_nearest_to_ras(drawn: Grid):
    geometry = Geometry(*drawn)
    grid = RasGrid.of(geometry)
    # palpate and nibabel may part where two axes are about as near to the same direction.
    cosines = np.abs(grid.affine[:3, :3]) / np.linalg.norm(grid.affine[:3, :3], axis=0)
    clear = all(np.sort(cosines[:, axis])[-1] - np.sort(cosines[:, axis])[-2] > 0.01 for axis in range(3))
    if clear and len(set(cosines.argmax(axis=0).tolist())) == 3:
        assert nibabel.aff2axcodes(grid.affine) == ("R", "A", "S")
    assert orientation(grid.affine) == "RAS"
    assert (np.diag(grid.affine)[:3] >= 0).all()
    again = RasGrid.of(Geometry(grid.shape[::-1], grid.affine))
    np.testing.assert_array_equal(again.affine, grid.affine)


def test_a_ras_image_stays_as_it_is():
    geometry = Geometry((2, 3, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
    grid = RasGrid.of(geometry)
    assert (grid.shape, grid.source, grid.flipped) == ((4, 3, 2), (0, 1, 2), (False, False, False))
    np.testing.assert_array_equal(grid.to_ras(numbered(geometry)), numbered(geometry).transpose())


def test_a_picture_is_seen_from_the_front_of_the_screen():
    """Row 0 is on top and column 0 on the reader's left, which is the patient's right: i and j run the other way."""
    grid = RasGrid.of(Geometry((2, 3), affine_from_spacing((1.0, 1.0, 1.0))))
    assert grid.picture
    assert (grid.shape, grid.flipped) == ((3, 2, 1), (True, True, False))
    assert grid.to_array_index((2, 1, 0)) == (0, 0, 0)
    assert grid.to_array_index((0, 1, 0)) == (0, 0, 2)


# Planes -----------------------------------------------------------------------------------------------------------


@given(grids())
def test_a_plane_is_cut_along_the_axis_that_stands_still(drawn: Grid):
    geometry = Geometry(*drawn)
    grid = RasGrid.of(geometry)
    for ras_axis in range(3):
        axis = grid.array_axis(ras_axis)
        assert grid.ras_axis(axis) == ras_axis
        plane = grid.plane(axis)
        assert PLANES[plane] == ras_axis
        if grid.picture and axis != 0:
            with pytest.raises(PromptError, match=f"a picture, so nothing can be drawn on a {plane} plane"):
                grid.plane_axis(plane)
        else:
            assert grid.plane_axis(plane) == axis
            if not grid.picture:
                assert slicing_axis(Image(np.ones(geometry.shape), geometry.affine), plane) == axis
    for number in range(grid.shape[2]):
        axis = grid.array_axis(2)
        on_it = {grid.to_array_index((i, j, number))[axis] for i in range(grid.shape[0]) for j in range(grid.shape[1])}
        assert len(on_it) == 1


@given(grids(), st.integers(0, 2))
@example(((2, 3, 4), np.eye(4)), 1)
def test_a_place_on_a_slice_is_that_of_the_prompts(drawn: Grid, axis: int):
    geometry = Geometry(*drawn)
    shape = as_volume(geometry.shape) if len(geometry.shape) == 3 else (1, *geometry.shape)
    array = np.arange(np.prod(shape)).reshape(shape)
    for z, y, x in np.ndindex(shape):
        column, row, number = on_slice((z, y, x), axis)
        assert slice_first(array, axis)[number, row, column] == array[z, y, x]
        assert off_slice(column, row, number, axis) == (z, y, x)


# What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ijk", [(-1, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2), (0, 0, 10**12)])
def test_a_voxel_outside_is_refused(ijk: tuple[int, int, int]):
    grid = RasGrid.of(Geometry((2, 3, 4), np.eye(4)))
    with pytest.raises(PromptError, match=r"outside the image, whose voxels go from \(0, 0, 0\) to \(3, 2, 1\)"):
        grid.to_array_index(ijk)


def test_an_unknown_plane_is_refused_and_the_planes_are_told():
    grid = RasGrid.of(Geometry((2, 3, 4), np.eye(4)))
    with pytest.raises(PromptError, match="no plane 'oblique'; choose axial, coronal, sagittal"):
        grid.plane_axis("oblique")
