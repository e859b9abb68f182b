from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palpate.errors import SettingError
from palpate.images import Image, Source
from palpate.images.slices import slice_back, slice_first, slice_letters, slice_name, slicing_axis

VOLUME = np.zeros((4, 5, 6), dtype=np.int16)  # z, y, x


def with_spacing(x: float, y: float, z: float, *, read_as: str = "nifti") -> Image:
    return Image(VOLUME, np.diag([x, y, z, 1.0]), source=Source(Path("volume"), read_as))


# The patient stands: x to the left, y to the head, z to the front.
CORONAL = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
SAGITTAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


class TestTheAxis:
    @pytest.mark.parametrize(
        ("spacing", "axis"),
        [
            ((1, 1, 5), 0),
            ((1, 5, 1), 1),
            ((5, 1, 1), 2),
            ((1, 1, 1), 0),
            ((0.7, 0.7, 0.5), 0),  # thin slices: nothing is clearly longer
            ((1.2, 1, 1), 0),
            ((1.3, 1, 1), 2),
            ((3, 3, 1), 0),  # two are long, so neither tells
        ],
    )
    def test_without_a_choice_it_is_the_one_of_thick_slices(self, spacing: tuple, axis: int) -> None:
        assert slicing_axis(with_spacing(*spacing)) == axis

    def test_dicom_series_are_stacked_along_z_however_thick(self) -> None:
        assert slicing_axis(with_spacing(5, 1, 1, read_as="dicom")) == 0

    def test_a_voxel_axis_may_be_named(self) -> None:
        assert [slicing_axis(with_spacing(1, 1, 9), name) for name in ("z", "y", "x")] == [0, 1, 2]

    @pytest.mark.parametrize(
        ("affine", "axial", "coronal", "sagittal"),
        [(np.diag([-1.0, -1, 1, 1]), 0, 1, 2), (CORONAL, 1, 0, 2), (SAGITTAL, 1, 2, 0)],
    )
    def test_anatomical_names_follow_the_patient(
        self, affine: np.ndarray, axial: int, coronal: int, sagittal: int
    ) -> None:
        image = Image(VOLUME, affine)
        found = [slicing_axis(image, name) for name in ("axial", "coronal", "sagittal")]
        assert found == [axial, coronal, sagittal]
        assert [slice_name(image, axis) for axis in found] == ["axial", "coronal", "sagittal"]

    def test_a_tilted_gantry_is_still_axial(self) -> None:
        tilt = np.eye(4)
        tilt[1:3, 1:3] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
        assert slicing_axis(Image(VOLUME, tilt), "axial") == 0

    @pytest.mark.parametrize("name", ["", "Z", "0", "transverse"])
    def test_an_axis_that_does_not_exist_gets_the_list(self, name: str) -> None:
        with pytest.raises(SettingError, match="choose one of z, y, x, axial, coronal, sagittal"):
            slicing_axis(with_spacing(1, 1, 1), name)


class TestCutting:
    @pytest.mark.parametrize(
        ("axis", "shape", "place"), [(0, (4, 5, 6), (1, 2, 3)), (1, (5, 4, 6), (2, 1, 3)), (2, (6, 4, 5), (3, 1, 2))]
    )
    def test_the_other_axes_keep_their_order(self, axis: int, shape: tuple, place: tuple) -> None:
        volume = VOLUME.copy()
        volume[1, 2, 3] = 7
        cut = slice_first(volume, axis)
        assert cut.shape == shape
        assert cut[place] == 7
        assert np.shares_memory(cut, volume)

    @given(st.integers(0, 2), st.booleans())
    def test_putting_back_is_the_inverse(self, axis: int, colour: bool) -> None:
        volume = np.arange(24 * (3 if colour else 1)).reshape((2, 3, 4, 3) if colour else (2, 3, 4))
        assert np.array_equal(slice_back(slice_first(volume, axis), axis), volume)

    def test_channels_stay_last(self) -> None:
        assert slice_first(np.zeros((2, 4, 5, 3)), 2).shape == (5, 2, 4, 3)


class TestTheLettersAtTheEdges:
    def test_a_radiologists_axial_slice(self) -> None:
        # x to the left, y to the back: the patient's right is at the picture's left, the front on top.
        assert slice_letters(Image(VOLUME, np.diag([-1.0, -1, 1, 1])), 0) == ("R", "L", "A", "P")

    def test_a_volume_stored_as_nifti_likes_it(self) -> None:
        assert slice_letters(Image(VOLUME, np.eye(4)), 0) == ("L", "R", "P", "A")

    def test_across_the_other_axes(self) -> None:
        image = Image(VOLUME, np.diag([-1.0, -1, 1, 1]))
        assert slice_letters(image, 1) == ("R", "L", "I", "S")  # rows are z, from the feet
        assert slice_letters(image, 2) == ("A", "P", "I", "S")  # columns are y

    def test_a_coronal_acquisition(self) -> None:
        assert slice_letters(Image(VOLUME, CORONAL), 0) == ("R", "L", "I", "S")
