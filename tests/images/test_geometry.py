"""Where voxels are, and what an image refuses to be."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from palpate.errors import GeometryError, ImageError
from palpate.images import Geometry, Image, Source
from palpate.images.geometry import (
    LPS_TO_RAS,
    affine_from_spacing,
    anatomical_axes,
    checked_affine,
    orientation,
    spacing,
)

IDENTITY = np.eye(4)


def rotation_about_z(degrees: float) -> np.ndarray:
    turn = np.eye(4)
    angle = np.radians(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


# Affines ----------------------------------------------------------------------------------------------------------


def test_spacing_is_the_length_of_a_step_even_along_an_oblique_axis():
    affine = rotation_about_z(30) @ np.diag([0.5, 0.7, 3.0, 1.0])
    assert spacing(affine) == pytest.approx((0.5, 0.7, 3.0))


@pytest.mark.parametrize(
    ("diagonal", "letters"),
    [((1, 1, 1), "RAS"), ((-1, -1, 1), "LPS"), ((-1, 1, 1), "LAS"), ((1, 1, -1), "RAI")],
)
def test_orientation_says_where_the_axes_point(diagonal, letters):
    assert orientation(np.diag([*map(float, diagonal), 1.0])) == letters


def test_every_order_and_flip_of_the_axes_has_its_own_name():
    names = set()
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.diag(signs)[:, order]
            names.add(orientation(affine))
            assert anatomical_axes(affine) == dict(enumerate(order))
    assert len(names) == 48


def test_two_axes_nearest_to_one_direction_do_not_share_it():
    # x and y both lean to the front; y leans more, so it takes the front and x gets what is left.
    affine = np.eye(4)
    affine[:3, 0] = [0.6, 0.8, 0.0]
    affine[:3, 1] = [0.1, 0.99, 0.1]
    axes = anatomical_axes(affine)
    assert sorted(axes.values()) == [0, 1, 2]
    assert axes[1] == 1


def test_turning_lps_into_ras_twice_changes_nothing():
    np.testing.assert_array_equal(LPS_TO_RAS @ LPS_TO_RAS, IDENTITY)


def test_a_file_that_knows_only_its_voxel_size_lies_like_a_picture():
    affine = affine_from_spacing((0.5, 0.6, 2.0))
    assert spacing(affine) == (0.5, 0.6, 2.0)
    assert orientation(affine) == "LPS"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 3)])
def test_an_affine_that_is_not_finite_is_refused(value, place):
    affine = IDENTITY.copy()
    affine[place] = value
    with pytest.raises(GeometryError, match="NaN or infinite"):
        checked_affine(affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_spacing_of_zero_is_refused_by_the_name_of_its_axis(axis):
    affine = IDENTITY.copy()
    affine[axis, axis] = 0
    with pytest.raises(GeometryError, match=f"axis {'xyz'[axis]} a spacing of zero"):
        checked_affine(affine, what="scan.nii")


def test_two_parallel_axes_are_refused():
    affine = IDENTITY.copy()
    affine[:3, 1] = [3, 0, 0]
    with pytest.raises(GeometryError, match="parallel"):
        checked_affine(affine)


def test_tiny_voxels_are_voxels():
    # Electron microscopy: four nanometres. What counts is the shape of a voxel, not its size.
    affine = np.diag([4e-6, 4e-6, 30e-6, 1.0])
    np.testing.assert_array_equal(checked_affine(affine), affine)


def test_an_affine_has_four_rows_and_columns():
    with pytest.raises(GeometryError, match=r"shape \(3, 4\)"):
        checked_affine(np.eye(4)[:3])


def test_checking_an_affine_gives_back_something_new():
    affine = np.eye(4)
    checked = checked_affine(affine)
    affine[0, 0] = 7
    assert checked[0, 0] == 1
    assert checked.dtype == np.float64


def test_a_geometry_speaks_for_its_affine():
    geometry = Geometry((2, 3, 4), np.diag([-0.5, -0.6, 2.0, 1.0]))
    assert geometry.spacing == (0.5, 0.6, 2.0)
    assert geometry.orientation == "LPS"


# Images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "colour", "spatial", "volume"),
    [
        ((5, 6), False, (5, 6), False),
        ((4, 5, 6), False, (4, 5, 6), True),
        ((1, 5, 6), False, (1, 5, 6), True),
        ((5, 6, 3), False, (5, 6, 3), True),  # three columns are not three colours unless somebody says so
        ((5, 6, 3), True, (5, 6), False),
        ((4, 5, 6, 3), True, (4, 5, 6), True),
    ],
)
def test_an_image_knows_its_spatial_shape(shape, colour, spatial, volume):
    image = Image(np.ones(shape, np.uint8), colour=colour)
    assert image.shape == spatial
    assert image.is_volume is volume
    assert image.geometry.shape == spatial


@pytest.mark.parametrize(
    ("shape", "colour", "hint"),
    [
        ((5,), False, r"\(y, x\) or \(z, y, x\) is needed"),
        ((4, 5, 6, 3), False, "colour=True"),
        ((2, 4, 5, 6, 3), False, "pick one volume"),
        ((5, 6), True, r"\(y, x, 3\)"),
        ((5, 6, 4), True, r"\(y, x, 3\)"),
    ],
)
def test_a_wrong_number_of_axes_is_refused_with_a_hint(shape, colour, hint):
    with pytest.raises(ImageError, match=hint):
        Image(np.ones(shape, np.uint8), colour=colour)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ImageError, match="no pixels"):
        Image(np.ones((0, 5)))


@pytest.mark.parametrize("dtype", [np.complex64, object, "U3", "datetime64[s]"])
def test_values_that_are_no_real_numbers_are_refused(dtype):
    with pytest.raises(ImageError, match="integers or real numbers"):
        Image(np.ones((2, 2)).astype(dtype))


def test_values_that_are_not_finite_are_counted_and_refused():
    array = np.ones((3, 4), np.float32)
    array[0, :2] = np.nan
    array[2, 3] = np.inf
    with pytest.raises(ImageError, match=r"scan\.nii holds 3 NaN or infinite values of 12"):
        Image(array, source=Source(Path("scan.nii"), "nifti"))


def test_an_image_with_a_bad_affine_is_refused_by_name():
    with pytest.raises(GeometryError, match=r"the affine of scan\.nii"):
        Image(np.ones((2, 2)), np.full((4, 4), np.nan), source=Source(Path("scan.nii"), "nifti"))


def test_a_geometry_keeps_the_source_but_not_the_pixels():
    source = Source(Path("scan.nii"), "nifti")
    geometry = Image(np.ones((2, 3)), source=source).geometry
    assert geometry.source is source
    assert not hasattr(geometry, "array")
