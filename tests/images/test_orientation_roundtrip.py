"""A mask lies in every program where it lay here: any axis order, flip, tilt and voxel shape.

The other programs are nibabel, pynrrd and SimpleITK, each with its own reader and its own idea of the world.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palpate.images import Geometry, read, write_mask
from palpate.images.formats import Mask

TOLERANCE_MM = 1e-4
"""NIfTI keeps float32: 500 mm from the origin that is good for 3e-5 mm."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

AXES = [(order, signs) for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]

lengths = st.floats(0.1, 6.0)
angles = st.floats(-np.pi, np.pi)
shifts = st.floats(-490.0, 490.0)


@st.composite
def affines(draw: st.DrawFn, *, sheared: bool = False) -> np.ndarray:
    """Axes in any of the 48 orders and flips, turned in space, with unequal voxel sides."""
    order, signs = draw(st.sampled_from(AXES))
    directions = np.diag(signs)[:, order]
    for axis, angle in zip(
        range(3), draw(st.one_of(st.just((0.0,) * 3), st.tuples(angles, angles, angles))), strict=True
    ):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        directions = turn @ directions
    affine = np.eye(4)
    affine[:3, :3] = directions * draw(st.tuples(lengths, lengths, lengths))
    if sheared:  # slices shifted against each other, as by a tilted gantry
        affine[:3, 2] += affine[:3, 1] * draw(st.floats(0.2, 1.0))
    affine[:3, 3] = draw(st.tuples(shifts, shifts, shifts))
    return affine


shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))


def labels_for(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, shape, dtype=np.uint8)


def corners(shape: tuple[int, ...]) -> np.ndarray:
    """The corner voxels as columns (x, y, z, 1)."""
    ends = [(0, extent - 1) for extent in shape[::-1]]
    return np.array([(*corner, 1) for corner in product(*ends)], dtype=float).T


@contextmanager
def written(suffix: str, labels: np.ndarray, affine: np.ndarray) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mask{suffix}"
        write_mask(path, Mask(labels, Geometry(labels.shape, affine)))
        yield path


def assert_same_place(theirs: np.ndarray, ours: np.ndarray, shape: tuple[int, ...]) -> None:
    """Every corner voxel is at the same millimetres."""
    np.testing.assert_allclose(theirs @ corners(shape), ours @ corners(shape), atol=TOLERANCE_MM, rtol=0)


def affine_by_nrrd(header: dict[str, np.ndarray]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = header["space directions"].T
    affine[:3, 3] = header["space origin"]
    return LPS @ affine


@given(affine=affines(), shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_nibabel_finds_a_nifti_mask_where_it_was(affine, shape, seed):
    labels = labels_for(shape, seed)
    with written(".nii.gz", labels, affine) as path:
        image = nib.load(path)
        np.testing.assert_array_equal(np.asarray(image.dataobj), labels.T)
        assert_same_place(image.affine, affine, shape)
        # Programs disagree on which of the two to believe, so both must say the same.
        assert_same_place(image.get_qform(), affine, shape)


@pytest.mark.parametrize("suffix", [".nrrd", ".seg.nrrd"])
@given(affine=affines(), shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_pynrrd_finds_an_nrrd_mask_where_it_was(suffix, affine, shape, seed):
    labels = labels_for(shape, seed)
    with written(suffix, labels, affine) as path:
        voxels, header = nrrd.read(str(path))
        np.testing.assert_array_equal(voxels, labels.T)
        assert_same_place(affine_by_nrrd(header), affine, shape)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd", ".mha"])
@given(affine=affines(), shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_simpleitk_finds_a_mask_where_it_was(suffix, affine, shape, seed):
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra palpate[sitk]")
    labels = labels_for(shape, seed)
    with written(suffix, labels, affine) as path:
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels)
        for corner in corners(shape).T:
            lps = image.TransformContinuousIndexToPhysicalPoint(corner[:3].tolist())
            np.testing.assert_allclose(LPS[:3, :3] @ lps, (affine @ corner)[:3], atol=TOLERANCE_MM, rtol=0)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".mha"])
@given(affine=st.one_of(affines(), affines(sheared=True)), shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_palpate_finds_its_own_mask_where_it_was_even_if_slices_are_shifted(suffix, affine, shape, seed):
    if suffix == ".mha":
        pytest.importorskip("SimpleITK", reason="needs the extra palpate[sitk]")
    labels = labels_for(shape, seed)
    with written(suffix, labels, affine) as path:
        image = read(path)
        np.testing.assert_array_equal(image.array, labels)
        assert image.array.dtype == labels.dtype
        assert_same_place(image.affine, affine, shape)


@given(affine=affines(sheared=True), shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_nibabel_and_pynrrd_find_a_sheared_mask_where_it_was(affine, shape, seed):
    labels = labels_for(shape, seed)
    with written(".nii.gz", labels, affine) as path:
        assert_same_place(nib.load(path).affine, affine, shape)
    with written(".nrrd", labels, affine) as path:
        assert_same_place(affine_by_nrrd(nrrd.read_header(str(path))), affine, shape)


# One patient, stored in many ways ---------------------------------------------------------------------------------


def ellipsoid_at(points_mm: np.ndarray) -> np.ndarray:
    """A tilted lump with no symmetry, so that no flip maps it onto itself; RAS+ points are columns."""
    x, y, z = points_mm - np.array([[6.0], [-4.0], [3.0]])
    return (x / 9 + y / 30) ** 2 + (y / 6) ** 2 + (z / 11 + x / 25) ** 2 + 0.02 * x < 1


def stored(order: tuple[int, ...], signs: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The ellipsoid on one grid of points 2 x 3 x 4 mm apart, stored in this order of axes; with its affine."""
    steps, counts = np.array([2.0, 3.0, 4.0]), np.array([20, 12, 11])
    first = np.array([-14.0, -20.0, -17.0])
    affine = np.eye(4)
    affine[:3, 3] = first
    for axis, world in enumerate(order):
        affine[:3, axis] = 0
        affine[world, axis] = signs[axis] * steps[world]
        if signs[axis] < 0:
            affine[world, 3] = first[world] + (counts[world] - 1) * steps[world]
    shape = tuple(int(counts[world]) for world in reversed(order))
    index = np.indices(shape).reshape(3, -1)[::-1]  # x, y, z
    points = affine @ np.vstack([index, np.ones(index.shape[1])])
    return ellipsoid_at(points[:3]).reshape(shape), affine


def foreground_mm(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The centres of the foreground voxels in mm, in an order that does not depend on the storage."""
    z, y, x = np.nonzero(array)
    points = (affine @ np.vstack([x, y, z, np.ones_like(x)]))[:3].T.round(3) + 0.0
    return points[np.lexsort(points.T)]


def test_the_phantom_has_no_symmetry_that_could_hide_a_flip():
    array, _ = stored((0, 1, 2), (1.0, 1.0, 1.0))
    assert 100 < array.sum() < array.size / 4
    for axes in (0, 1, 2, (0, 1), (0, 2), (1, 2)):
        assert (array != np.flip(array, axes)).any()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1.0, -1.0), repeat=3)))
def test_the_same_patient_stored_in_any_order_has_the_same_millimetres(tmp_path, suffix, order, signs):
    reference = foreground_mm(*stored((0, 1, 2), (1.0, 1.0, 1.0)))
    array, affine = stored(order, signs)
    path = tmp_path / f"patient{suffix}"
    if suffix == ".nrrd":
        lps = LPS @ affine
        header = {
            "space": "left-posterior-superior",
            "space directions": lps[:3, :3].T,
            "space origin": lps[:3, 3],
        }
        nrrd.write(str(path), array.astype(np.uint8).T, header)
    else:
        nib.save(nib.Nifti1Image(array.astype(np.uint8).T, affine), path)

    image = read(path)
    np.testing.assert_array_equal(foreground_mm(image.array, image.affine), reference)

    # And so does a mask made from it and read again.
    write_mask(tmp_path / f"mask{suffix}", Mask(image.array > 0, image.geometry))
    mask = read(tmp_path / f"mask{suffix}")
    np.testing.assert_array_equal(foreground_mm(mask.array, mask.affine), reference)
