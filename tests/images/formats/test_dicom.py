"""DICOM in: a series is complete and in its place, or refused by name."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEGLosslessSV1,
    RTStructureSetStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

import dicom_phantoms as phantom
from palpate.errors import FormatError, GeometryError, PalpateError, SeriesError
from palpate.images import read
from palpate.images.formats import dicom
from palpate.images.geometry import LPS_TO_RAS
from palpate.images.image import Image


def in_lps(image: Image, x: float, y: float, z: float) -> np.ndarray:
    return (LPS_TO_RAS @ image.affine @ [x, y, z, 1])[:3]


class TestPlace:
    def test_an_axial_series_becomes_a_volume_of_its_slices(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(), tmp_path))

        np.testing.assert_array_equal(image.array, phantom.voxels())
        np.testing.assert_allclose(image.geometry.spacing, (0.5, 0.5, 2.5))
        np.testing.assert_allclose(in_lps(image, 0, 0, 0), (-10, -20, 30))
        np.testing.assert_allclose(in_lps(image, 1, 2, 3), (-10 + 0.5, -20 + 1, 30 + 7.5))
        assert image.modality == "CT"
        assert image.modality_origin == "header"

    def test_files_in_reversed_or_random_order_give_the_same_volume(self, tmp_path: Path) -> None:
        slices = phantom.series()
        forward = read(phantom.write(slices, tmp_path / "forward"))
        for name, order in (("reversed", [4, 3, 2, 1, 0]), ("shuffled", [2, 0, 4, 1, 3])):
            other = read(phantom.write([slices[k] for k in order], tmp_path / name))
            np.testing.assert_array_equal(other.array, forward.array)
            np.testing.assert_array_equal(other.affine, forward.affine)

    def test_slices_stored_against_their_normal_are_turned_along_it(self, tmp_path: Path) -> None:
        # Instance 1 lies on top; the first slice of the array is the lowest all the same.
        image = read(phantom.write(phantom.series(step=(0, 0, -2.5)), tmp_path))

        np.testing.assert_array_equal(image.array, phantom.voxels()[::-1])
        np.testing.assert_allclose(in_lps(image, 0, 0, 0), (-10, -20, 20))
        assert np.linalg.det(image.affine[:3, :3]) > 0

    def test_the_source_lists_files_in_the_order_of_slices(self, tmp_path: Path) -> None:
        folder = phantom.write(phantom.series()[::-1], tmp_path)
        source = read(folder).source

        assert source is not None
        assert [file.name for file in source.files] == ["04.dcm", "03.dcm", "02.dcm", "01.dcm", "00.dcm"]
        assert (source.path, source.format, source.series) == (folder, "dicom", phantom.SERIES)

    def test_sagittal_slices_run_through_the_patient_from_side_to_side(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(orientation=phantom.SAGITTAL), tmp_path))

        # Columns run to the back, rows to the feet; their normal points to the patient's right.
        assert image.geometry.orientation == "PIR"
        np.testing.assert_array_equal(image.array, phantom.voxels())

    @settings(max_examples=60, deadline=None)
    @given(
        angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
        origin=st.tuples(*[st.floats(-500, 500)] * 3),
        spacing=st.tuples(st.floats(0.1, 4), st.floats(0.1, 4)),
        distance=st.floats(0.3, 12),
        order=st.permutations(range(4)),
    )
    def test_every_slice_lies_where_its_file_says_in_any_orientation(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        angles: tuple[float, float, float],
        origin: tuple[float, float, float],
        spacing: tuple[float, float],
        distance: float,
        order: list[int],
    ) -> None:
        orientation = rotation(angles)[:, :2].T.ravel()
        slices = phantom.series(
            pixels=phantom.voxels(4),
            orientation=orientation,
            origin=origin,
            distance=distance,
            PixelSpacing=[phantom.ds(value) for value in spacing],
        )
        folder = tmp_path_factory.mktemp("series")
        image = read(phantom.write([slices[k] for k in order], folder))

        np.testing.assert_array_equal(image.array, phantom.voxels(4))
        for k, one in enumerate(slices):
            np.testing.assert_allclose(in_lps(image, 0, 0, k), one.ImagePositionPatient, atol=1e-4)
            # The far corner, by the formula of the standard (PS3.3 C.7.6.2.1.1).
            row, column = np.array(one.ImageOrientationPatient[:3]), np.array(one.ImageOrientationPatient[3:])
            corner = one.ImagePositionPatient + row * 7 * one.PixelSpacing[1] + column * 5 * one.PixelSpacing[0]
            np.testing.assert_allclose(in_lps(image, 7, 5, k), corner, atol=1e-4)

    def test_non_square_pixels_are_kept_in_the_affine(self, tmp_path: Path) -> None:
        # PixelSpacing is the distance between rows, then between columns.
        image = read(phantom.write(phantom.series(PixelSpacing=[2.0, 0.5]), tmp_path))

        np.testing.assert_allclose(image.geometry.spacing, (0.5, 2.0, 2.5))

    def test_a_tilted_gantry_shears_the_affine_and_moves_no_voxel(self, tmp_path: Path) -> None:
        slices = phantom.series(step=(0, 0.7, 2.5))
        image = read(phantom.write(slices, tmp_path))

        np.testing.assert_array_equal(image.array, phantom.voxels())
        for k, one in enumerate(slices):
            np.testing.assert_allclose(in_lps(image, 0, 0, k), one.ImagePositionPatient, atol=1e-4)

    def test_positions_rounded_by_the_scanner_are_no_gap(self, tmp_path: Path) -> None:
        slices = phantom.series(pixels=phantom.voxels(40), distance=0.625)
        for one in slices:
            one.ImagePositionPatient[2] = f"{float(one.ImagePositionPatient[2]):.1f}"

        assert read(phantom.write(slices, tmp_path)).shape == (40, 6, 8)

    def test_one_file_of_a_series_is_that_slice_alone_in_its_place(self, tmp_path: Path) -> None:
        folder = phantom.write(phantom.series(), tmp_path)
        image = read(folder / "02.dcm")

        assert image.shape == (6, 8)
        np.testing.assert_array_equal(image.array, phantom.voxels()[2])
        np.testing.assert_allclose(in_lps(image, 0, 0, 0), (-10, -20, 35))
        np.testing.assert_allclose(image.geometry.spacing, (0.5, 0.5, 2.5))
        assert image.source is not None
        assert image.source.files == (folder / "02.dcm",)

    def test_a_folder_with_one_slice_is_a_picture_like_the_file(self, tmp_path: Path) -> None:
        assert read(phantom.write(phantom.series()[:1], tmp_path)).shape == (6, 8)

    def test_sub_folders_belong_to_the_folder(self, tmp_path: Path) -> None:
        slices = phantom.series()
        phantom.write(slices[:3], tmp_path / "disk1")
        phantom.write(slices[3:], tmp_path / "disk2")

        assert read(tmp_path).shape == (5, 6, 8)


class TestGate:
    def test_a_missing_slice_is_named_by_its_neighbours(self, tmp_path: Path) -> None:
        slices = phantom.series()
        del slices[2]
        with pytest.raises(SeriesError, match=r"01\.dcm and 02\.dcm are 5 mm apart.*1 slice is missing"):
            read(phantom.write(slices, tmp_path))

    @pytest.mark.parametrize("missing", [1, 2, 10, 17, 18])
    def test_a_slice_missing_anywhere_inside_is_found(self, tmp_path: Path, missing: int) -> None:
        slices = phantom.series(pixels=phantom.voxels(20))
        del slices[missing]
        with pytest.raises(SeriesError, match="missing"):
            read(phantom.write(slices, tmp_path))

    def test_two_slices_in_one_place_are_named(self, tmp_path: Path) -> None:
        slices = phantom.series()
        slices[3].ImagePositionPatient = slices[1].ImagePositionPatient
        with pytest.raises(SeriesError, match=r"in one place, 1 times: 01\.dcm and 03\.dcm"):
            read(phantom.write(slices, tmp_path))

    def test_a_localizer_in_the_series_is_named(self, tmp_path: Path) -> None:
        slices = phantom.series()
        slices[0].ImageOrientationPatient = list(phantom.SAGITTAL)
        with pytest.raises(SeriesError, match=r"mixes orientations: 00\.dcm is not parallel"):
            read(phantom.write(slices, tmp_path))

    def test_slices_of_another_size_are_named(self, tmp_path: Path) -> None:
        slices = phantom.series()
        slices[4] = phantom.ct_slice(np.zeros((5, 8), np.int16), (-10, -20, 40))
        with pytest.raises(SeriesError, match=r"more than one size: 04\.dcm is unlike the rest \(\(6, 8\)\)"):
            read(phantom.write(slices, tmp_path))

    def test_slices_of_another_pixel_spacing_are_named(self, tmp_path: Path) -> None:
        slices = phantom.series()
        slices[1].PixelSpacing = [0.51, 0.5]
        with pytest.raises(SeriesError, match=r"mixes pixel spacings: 01\.dcm is unlike"):
            read(phantom.write(slices, tmp_path))

    def test_colour_among_grey_slices_is_named(self, tmp_path: Path) -> None:
        slices = phantom.series()
        slices[2] = phantom.ct_slice(np.zeros((6, 8, 3), np.uint8), (-10, -20, 35))
        with pytest.raises(SeriesError, match=r"colour channels: 02\.dcm"):
            read(phantom.write(slices, tmp_path))

    def test_slices_that_jump_sideways_are_refused(self, tmp_path: Path) -> None:
        slices = phantom.series()
        slices[2].ImagePositionPatient[0] = -6
        with pytest.raises(SeriesError, match=r"do not lie on one line \(see 02\.dcm\)"):
            read(phantom.write(slices, tmp_path))

    def test_slices_without_a_place_make_no_volume(self, tmp_path: Path) -> None:
        slices = phantom.series()
        del slices[1].ImagePositionPatient
        with pytest.raises(SeriesError, match=r"01\.dcm is without ImagePositionPatient"):
            read(phantom.write(slices, tmp_path))

    def test_x_rays_of_one_series_are_opened_one_by_one(self, tmp_path: Path) -> None:
        views = [phantom.image(phantom.voxels()[k], Modality="CR") for k in range(2)]
        folder = phantom.write(views, tmp_path)
        with pytest.raises(SeriesError, match="give one of the files"):
            read(folder)
        assert read(folder / "01.dcm").modality == "XR"

    @pytest.mark.parametrize(
        "cosines", [(1, 0, 0, 1, 0, 0), (0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 1, 0)], ids=["parallel", "zero", "long"]
    )
    def test_directions_that_are_none_are_refused(self, tmp_path: Path, cosines: tuple[int, ...]) -> None:
        path = phantom.save(phantom.ct_slice(phantom.voxels()[0], (0, 0, 0)), tmp_path / "a.dcm")
        dataset = pydicom.dcmread(path)
        dataset.ImageOrientationPatient = list(cosines)
        with pytest.raises(GeometryError, match=r"a\.dcm has the orientation"):
            read(phantom.save(dataset, path))

    @pytest.mark.parametrize("spacing", [[0, 1], [1, -1], [1e9, 1]])
    def test_pixel_spacings_that_cannot_be_are_refused(self, tmp_path: Path, spacing: list[float]) -> None:
        dataset = phantom.ct_slice(phantom.voxels()[0], (0, 0, 0), PixelSpacing=spacing)
        with pytest.raises(GeometryError, match=r"a\.dcm has a pixel spacing"):
            read(phantom.save(dataset, tmp_path / "a.dcm"))


class TestChoice:
    @pytest.fixture
    def two_series(self, tmp_path: Path) -> Path:
        phantom.write(phantom.series(), tmp_path / "a")
        other = phantom.series(
            pixels=phantom.voxels() + 1, SeriesInstanceUID="1.2.3.9", SeriesNumber=11, SeriesDescription="T2 TSE"
        )
        phantom.write(other, tmp_path / "b")
        return tmp_path

    def test_several_series_are_listed_with_the_way_to_choose(self, two_series: Path) -> None:
        with pytest.raises(SeriesError) as caught:
            read(two_series)
        for part in ("holds 2 series", "7  phantom  CT  5 files  1.2.3.3", "11  T2 TSE", "--series", "series=..."):
            assert part in str(caught.value)

    @pytest.mark.parametrize("choice", ["1.2.3.9", "11", "T2 TSE", "t2 tse"])
    def test_a_series_is_chosen_by_uid_number_or_description(self, two_series: Path, choice: str) -> None:
        image = read(two_series, series=choice)
        np.testing.assert_array_equal(image.array, phantom.voxels() + 1)

    def test_a_choice_that_fits_nothing_lists_what_there_is(self, two_series: Path) -> None:
        with pytest.raises(SeriesError, match=r"(?s)fits 'T1'.*phantom.*T2 TSE"):
            read(two_series, series="T1")

    def test_a_choice_that_fits_two_series_lists_both(self, two_series: Path) -> None:
        phantom.write(phantom.series(SeriesInstanceUID="1.2.3.10", SeriesDescription="again"), two_series / "c")
        with pytest.raises(SeriesError, match=r"(?s)2 series.*fit '7'.*phantom.*again"):
            read(two_series, series="7")

    def test_a_single_file_of_another_series_is_refused(self, two_series: Path) -> None:
        with pytest.raises(SeriesError, match="no series"):
            read(two_series / "a" / "00.dcm", series="11")

    def test_what_is_no_image_is_skipped_in_a_folder(self, tmp_path: Path) -> None:
        phantom.write(phantom.series(), tmp_path)
        (tmp_path / "notes.txt").write_text("a note")
        (tmp_path / "empty").touch()
        (tmp_path / "._00.dcm").write_bytes(b"what a Mac leaves behind")
        for k, kind in enumerate((SegmentationStorage, RTStructureSetStorage)):
            other = phantom.image(phantom.voxels()[0], SOPClassUID=kind, SeriesInstanceUID=f"1.2.3.{k + 20}")
            phantom.save(other, tmp_path / f"other{k}.dcm")

        assert read(tmp_path).shape == (5, 6, 8)

    def test_an_object_that_is_no_image_is_named_for_what_it_is(self, tmp_path: Path) -> None:
        path = phantom.save(phantom.image(phantom.voxels()[0], SOPClassUID=RTStructureSetStorage), tmp_path / "rs.dcm")
        with pytest.raises(FormatError, match="not an image \\(RT Structure Set Storage\\)"):
            read(path)

    def test_a_folder_without_images_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("a note")
        with pytest.raises(FormatError, match="holds no DICOM images \\(1 other files\\)"):
            read(tmp_path)


class TestDamage:
    @pytest.mark.parametrize("kept", [0, 100, 200, 400, -1])
    def test_a_truncated_file_in_a_series_is_an_error_that_names_it(self, tmp_path: Path, kept: int) -> None:
        folder = phantom.write(phantom.series(), tmp_path)
        # The last slice: were it skipped, no gap would show.
        last = folder / "04.dcm"
        last.write_bytes(last.read_bytes()[:kept])
        with pytest.raises(FormatError, match=r"04\.dcm"):
            read(folder)

    def test_a_header_that_claims_more_pixels_than_there_are_is_not_believed(self, tmp_path: Path) -> None:
        dataset = phantom.image(phantom.voxels()[0], NumberOfFrames=100_000)
        with pytest.raises(FormatError, match="truncated: its header promises 9600000 bytes of pixels, 96 are there"):
            read(phantom.save(dataset, tmp_path / "a.dcm"))

    def test_a_header_that_claims_more_than_memory_is_refused_before_decoding(self, tmp_path: Path) -> None:
        dataset = phantom.image(phantom.voxels()[0], Rows=65535, Columns=65535, NumberOfFrames=100_000)
        with pytest.raises(FormatError, match="GiB"):
            read(phantom.save(dataset, tmp_path / "a.dcm"))

    def test_a_deflated_bomb_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dicom, "MAX_INFLATED_BYTES", 10_000)
        dataset = phantom.image(np.zeros((200, 200), np.int16))
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        path = phantom.save(dataset, tmp_path / "a.dcm")
        assert path.stat().st_size < 2000
        with pytest.raises(FormatError, match="unpacks to more than"):
            read(path)

    def test_a_deflated_file_is_read(self, tmp_path: Path) -> None:
        dataset = phantom.image(phantom.voxels()[0])
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        np.testing.assert_array_equal(read(phantom.save(dataset, tmp_path / "a.dcm")).array, phantom.voxels()[0])

    def test_damaged_deflation_is_named(self, tmp_path: Path) -> None:
        dataset = phantom.image(phantom.voxels()[0])
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        path = phantom.save(dataset, tmp_path / "a.dcm")
        content = path.read_bytes()
        path.write_bytes(content[:-60] + bytes(60))
        with pytest.raises(FormatError, match=r"a\.dcm"):
            read(path)

    def test_an_error_does_not_quote_the_patient(self, tmp_path: Path) -> None:
        path = phantom.save(phantom.image(phantom.voxels()[0], PatientName="Secret^Name"), tmp_path / "a.dcm")
        content = path.read_bytes()
        # Rows of an odd number of bytes: pydicom quotes what it could not read.
        start = content.index(b"\x28\x00\x10\x00US")
        path.write_bytes(content[: start + 6] + b"\x03\x00" + content[start + 8 :])
        with pytest.raises(FormatError) as caught:
            read(path)
        assert "Secret" not in str(caught.value)

    def test_an_unknown_compression_names_itself_and_the_extra(self, tmp_path: Path) -> None:
        dataset = phantom.image(phantom.voxels()[0])
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8not a picture\xff\xd9"])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        with pytest.raises(FormatError, match=r"(?s)JPEG Lossless.*pip install 'palpate\[dicom-codecs\]'"):
            read(phantom.save(dataset, tmp_path / "a.dcm"))

    @pytest.mark.parametrize("seed", range(40))
    def test_damaged_bytes_give_an_image_or_a_clear_error(self, tmp_path: Path, seed: int) -> None:
        rng = np.random.default_rng(seed)
        original = phantom.save(phantom.enhanced_ct(phantom.voxels(3), [(0, 0, k) for k in range(3)]), tmp_path / "a")
        content = bytearray(original.read_bytes())
        for place in rng.integers(132, len(content), size=8):
            content[place] = rng.integers(256)
        path = tmp_path / "b.dcm"
        path.write_bytes(content)
        try:
            image = read(path)
        except PalpateError:
            return
        assert np.isfinite(image.array).all()


class TestPixels:
    def test_hounsfield_units_are_integers(self, tmp_path: Path) -> None:
        stored = phantom.voxels().astype(np.uint16)
        image = read(phantom.write(phantom.series(pixels=stored, RescaleIntercept=-1024), tmp_path))

        assert image.array.dtype == np.int16
        np.testing.assert_array_equal(image.array, phantom.voxels() - 1024)

    def test_values_that_need_more_than_16_bits_take_32(self, tmp_path: Path) -> None:
        stored = np.array([[0, 65535]], np.uint16)
        image = read(phantom.save(phantom.image(stored, RescaleSlope=2, RescaleIntercept=-5), tmp_path / "a.dcm"))

        assert image.array.dtype == np.int32
        np.testing.assert_array_equal(image.array, [[-5, 131065]])

    def test_each_slice_of_a_pet_has_its_own_slope(self, tmp_path: Path) -> None:
        slices = phantom.series(Modality="PT")
        for k, one in enumerate(slices):
            one.RescaleSlope = 0.5 * (k + 1)
        image = read(phantom.write(slices, tmp_path))

        assert image.modality == "PET"
        assert image.array.dtype == np.float32
        np.testing.assert_allclose(image.array[3], phantom.voxels()[3] * 2.0)

    @pytest.mark.parametrize("slope", [0, "1e400"])
    def test_a_slope_that_loses_all_values_is_refused(self, tmp_path: Path, slope: float | str) -> None:
        dataset = phantom.image(phantom.voxels()[0], RescaleSlope=slope)
        with pytest.raises(FormatError, match="rescales its values"):
            read(phantom.save(dataset, tmp_path / "a.dcm"))

    def test_a_modality_table_is_applied(self, tmp_path: Path) -> None:
        table = Dataset()
        table.add_new("LUTDescriptor", "US", [4, 0, 16])
        table.add_new("LUTData", "US", [0, 10, 200, 3000])
        dataset = phantom.image(np.array([[0, 1], [2, 9]], np.uint8), ModalityLUTSequence=[table])
        np.testing.assert_array_equal(read(phantom.save(dataset, tmp_path / "a.dcm")).array, [[0, 10], [200, 3000]])

    def test_monochrome1_is_turned_over_so_that_bone_is_bright(self, tmp_path: Path) -> None:
        dataset = phantom.image(
            np.array([[0, 1000, 4095]], np.uint16),
            Modality="DX",
            PhotometricInterpretation="MONOCHROME1",
            BitsStored=12,
        )
        np.testing.assert_array_equal(read(phantom.save(dataset, tmp_path / "a.dcm")).array, [[4095, 3095, 0]])

    def test_monochrome1_with_signs_is_turned_over_within_its_range(self, tmp_path: Path) -> None:
        dataset = phantom.image(
            np.array([[-128, 0, 127]], np.int8), Modality="DX", PhotometricInterpretation="MONOCHROME1"
        )
        np.testing.assert_array_equal(read(phantom.save(dataset, tmp_path / "a.dcm")).array, [[127, -1, -128]])

    def test_monochrome1_leaves_hounsfield_units_alone(self, tmp_path: Path) -> None:
        slices = phantom.series(PhotometricInterpretation="MONOCHROME1")
        np.testing.assert_array_equal(read(phantom.write(slices, tmp_path)).array, phantom.voxels())

    def test_colour_is_rgb_with_channels_last(self, tmp_path: Path) -> None:
        pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
        image = read(phantom.save(phantom.image(pixels, Modality="ES"), tmp_path / "a.dcm"))

        assert image.colour
        assert image.modality == "photo"
        np.testing.assert_array_equal(image.array, pixels)

    def test_colour_stored_plane_by_plane_is_the_same(self, tmp_path: Path) -> None:
        pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
        dataset = phantom.image(pixels, PlanarConfiguration=1)
        dataset.PixelData = pixels.transpose(2, 0, 1).tobytes()
        np.testing.assert_array_equal(read(phantom.save(dataset, tmp_path / "a.dcm")).array, pixels)

    def test_ybr_becomes_rgb(self, tmp_path: Path) -> None:
        grey_and_red = np.array([[[100, 128, 128], [76, 85, 255]]], np.uint8)
        dataset = phantom.image(grey_and_red, PhotometricInterpretation="YBR_FULL")
        image = read(phantom.save(dataset, tmp_path / "a.dcm"))
        np.testing.assert_allclose(image.array, [[[100, 100, 100], [254, 0, 0]]], atol=1)

    @pytest.mark.parametrize("bits", [8, 16])
    def test_a_palette_becomes_rgb(self, tmp_path: Path, bits: int) -> None:
        kind = np.dtype(f"<u{bits // 8}")
        scale = 1 if bits == 8 else 257  # full range in 16 bits
        dataset = phantom.image(np.array([[0, 1]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
        for name, entries in (("Red", [0, 255]), ("Green", [7, 128]), ("Blue", [9, 0])):
            dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [2, 0, bits])
            entries_bytes = (np.array(entries) * scale).astype(kind).tobytes()
            dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", entries_bytes)
        image = read(phantom.save(dataset, tmp_path / "a.dcm"))

        assert image.colour
        assert image.array.dtype == np.uint8
        np.testing.assert_array_equal(image.array, [[[0, 7, 9], [255, 128, 0]]])

    def test_a_ct_in_colour_is_a_picture_of_a_ct(self, tmp_path: Path) -> None:
        dataset = phantom.image(np.zeros((6, 8, 3), np.uint8), Modality="CT")
        assert read(phantom.save(dataset, tmp_path / "a.dcm")).modality == "photo"

    @pytest.mark.parametrize(
        ("code", "modality", "origin"),
        [
            ("MR", "MR", "header"),
            ("US", "US", "header"),
            ("MG", "XR", "header"),
            ("RF", "XR", "header"),
            ("OT", "unknown", "unknown"),
            ("NM", "unknown", "unknown"),
        ],
    )
    def test_the_header_says_the_modality(self, tmp_path: Path, code: str, modality: str, origin: str) -> None:
        image = read(phantom.save(phantom.image(phantom.voxels()[0], Modality=code), tmp_path / "a.dcm"))
        assert (image.modality, image.modality_origin) == (modality, origin)


class TestSpacing:
    def spacing(self, tmp_path: Path, **attributes: object) -> tuple[float, float, float]:
        return read(phantom.save(phantom.image(phantom.voxels()[0], **attributes), tmp_path / "a.dcm")).geometry.spacing

    def test_an_x_ray_takes_the_spacing_of_its_detector(self, tmp_path: Path) -> None:
        assert self.spacing(tmp_path, ImagerPixelSpacing=[0.2, 0.1]) == (0.1, 0.2, 1.0)

    def test_an_ultrasound_takes_the_spacing_of_its_region(self, tmp_path: Path) -> None:
        doppler, tissue = Dataset(), Dataset()
        doppler.PhysicalUnitsXDirection, doppler.PhysicalUnitsYDirection = 4, 7  # seconds and cm/s
        doppler.PhysicalDeltaX, doppler.PhysicalDeltaY = 9.0, 9.0
        tissue.PhysicalUnitsXDirection, tissue.PhysicalUnitsYDirection = 3, 3
        tissue.PhysicalDeltaX, tissue.PhysicalDeltaY = 0.01, -0.02
        found = self.spacing(tmp_path, Modality="US", SequenceOfUltrasoundRegions=[doppler, tissue])
        np.testing.assert_allclose(found, (0.1, 0.2, 1.0))

    def test_a_mere_aspect_ratio_keeps_the_shape_of_pixels(self, tmp_path: Path) -> None:
        assert self.spacing(tmp_path, PixelAspectRatio=[2, 1]) == (1.0, 2.0, 1.0)

    def test_without_any_a_pixel_is_a_millimetre(self, tmp_path: Path) -> None:
        assert self.spacing(tmp_path) == (1.0, 1.0, 1.0)


class TestFrames:
    def test_frames_that_know_their_place_are_sorted_like_slices(self, tmp_path: Path) -> None:
        positions = [(5, 6, z) for z in (4.0, 0.0, 2.0)]
        path = phantom.save(phantom.enhanced_ct(phantom.voxels(3), positions), tmp_path / "a.dcm")
        image = read(path)

        np.testing.assert_array_equal(image.array, phantom.voxels(3)[[1, 2, 0]])
        np.testing.assert_allclose(image.geometry.spacing, (0.5, 0.75, 2.0))
        np.testing.assert_allclose(in_lps(image, 0, 0, 2), (5, 6, 4))
        assert image.source is not None
        assert image.source.files == (path,)

    def test_a_frame_missing_in_the_middle_is_named(self, tmp_path: Path) -> None:
        dataset = phantom.enhanced_ct(phantom.voxels(4), [(0, 0, z) for z in (0, 1, 2, 4)])
        with pytest.raises(SeriesError, match=r"frame 3 of a\.dcm and frame 4 of a\.dcm are 2 mm apart"):
            read(phantom.save(dataset, tmp_path / "a.dcm"))

    def test_frames_repeated_in_time_are_refused(self, tmp_path: Path) -> None:
        dataset = phantom.enhanced_ct(phantom.voxels(4), [(0, 0, z) for z in (0, 1, 0, 1)])
        with pytest.raises(SeriesError, match="in one place, 2 times"):
            read(phantom.save(dataset, tmp_path / "a.dcm"))

    def test_each_frame_is_rescaled_by_its_own_slope(self, tmp_path: Path) -> None:
        dataset = phantom.enhanced_ct(phantom.voxels(2), [(0, 0, 0), (0, 0, 1)])
        for k, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            frame.PixelValueTransformationSequence = [Dataset()]
            frame.PixelValueTransformationSequence[0].RescaleSlope = k + 1
            frame.PixelValueTransformationSequence[0].RescaleIntercept = -1000
        image = read(phantom.save(dataset, tmp_path / "a.dcm"))

        assert image.array.dtype == np.int16
        np.testing.assert_array_equal(image.array[1], phantom.voxels(2)[1] * 2 - 1000)

    def test_a_header_that_describes_fewer_frames_than_it_claims_is_damaged(self, tmp_path: Path) -> None:
        dataset = phantom.enhanced_ct(phantom.voxels(3), [(0, 0, 0), (0, 0, 1)])
        with pytest.raises(FormatError, match="claims 3 frames and describes 2"):
            read(phantom.save(dataset, tmp_path / "a.dcm"))

    @pytest.mark.parametrize("colour", [False, True])
    def test_a_film_is_a_stack_in_the_order_of_time(self, tmp_path: Path, colour: bool) -> None:
        pixels = phantom.voxels(3).astype(np.uint8)
        if colour:
            pixels = np.stack([pixels, pixels + 1, pixels + 2], axis=-1)
        image = read(phantom.save(phantom.film(pixels, PixelSpacing=[0.3, 0.2]), tmp_path / "a.dcm"))

        assert image.is_volume
        assert image.colour == colour
        np.testing.assert_array_equal(image.array, pixels)
        np.testing.assert_allclose(image.geometry.spacing, (0.2, 0.3, 1.0))

    def test_a_film_of_one_frame_is_a_picture(self, tmp_path: Path) -> None:
        pixels = phantom.voxels(1).astype(np.uint8)
        assert read(phantom.save(phantom.film(pixels), tmp_path / "a.dcm")).shape == (6, 8)

    def test_several_films_in_one_series_are_opened_one_by_one(self, tmp_path: Path) -> None:
        films = [phantom.film(phantom.voxels(3).astype(np.uint8)) for _ in range(2)]
        with pytest.raises(SeriesError, match="give one file instead of the folder"):
            read(phantom.write(films, tmp_path))

    def test_a_slide_in_tiles_is_not_mistaken_for_a_film(self, tmp_path: Path) -> None:
        dataset = phantom.image(
            np.zeros((4, 6, 8, 3), np.uint8),
            SOPClassUID=VLWholeSlideMicroscopyImageStorage,
            Modality="SM",
            NumberOfFrames=4,
            TotalPixelMatrixRows=12,
            TotalPixelMatrixColumns=16,
        )
        with pytest.raises(FormatError, match="whole slide in 4 tiles"):
            read(phantom.save(dataset, tmp_path / "a.dcm"))


def pydicoms_own_files() -> list[str]:
    return sorted(
        name
        for name in get_testdata_files()
        # The rest would be downloaded, or are folders and notes.
        if Path(name).is_file() and Path(name).read_bytes()[128:132] == b"DICM"
    )


@pytest.mark.parametrize("name", pydicoms_own_files(), ids=lambda name: "/".join(Path(name).parts[-2:]))
def test_pydicoms_own_files_give_an_image_or_a_clear_error(name: str) -> None:
    try:
        image = read(name)
    except PalpateError:
        return
    assert np.isfinite(image.array).all()


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "modality", "low", "high"),
    [
        ("CT_small.dcm", (128, 128), "int16", "CT", -896, 1167),
        ("MR_small_RLE.dcm", (64, 64), "int16", "MR", 127, 4000),
        ("JPEG2000.dcm", (1024, 256), "int16", "unknown", -40, 3000),
        ("examples_palette.dcm", (350, 800), "uint8", "US", 0, 255),
        ("examples_ybr_color.dcm", (30, 240, 320), "uint8", "US", 0, 255),
    ],
)
def test_some_of_pydicoms_files_are_read_as_known(
    name: str, shape: tuple[int, ...], dtype: str, modality: str, low: int, high: int
) -> None:
    image = read(next(path for path in pydicoms_own_files() if path.endswith(name)))
    assert image.shape == shape
    assert image.array.dtype == dtype
    assert image.modality == modality
    assert low <= image.array.min() < image.array.max() <= high


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    """Three turns about x, y and z: every orientation there is."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    return matrix


@pytest.mark.real_data
class TestRealData:
    @pytest.mark.parametrize(
        ("folder", "series", "shape", "spacing", "modality"),
        [
            ("ibsi1_lung_ct_rtstruct", None, (60, 201, 204), (0.977, 0.977, 3.0), "CT"),
            ("sts002_ct_mr_pet_rtstruct", "3", (48, 143, 161), (0.97656, 0.97656, 3.27), "CT"),
            ("sts002_ct_mr_pet_rtstruct", "IBSI_1_STS_002_MR_T1_image", (35, 90, 115), (0.97656, 0.97656, 3.27), "MR"),
            ("sts002_ct_mr_pet_rtstruct/PET", None, (48, 27, 30), (5.46875, 5.46875, 3.27), "PET"),
            ("dcmqi_ct3slice_liver_seg", None, (3, 512, 512), (0.81055, 0.81055, 1.0), "CT"),
            ("dcmqi_small_24x38x3/multiframe", None, (3, 38, 24), (0.7, 0.7, 2.5), "CT"),
            ("ucsf_br06_breast_mr_seg", None, (42, 256, 256), (0.70313, 0.70313, 2.0), "MR"),
            ("udacity_hippocampus_crop_mr_series", None, (40, 50, 34), (1.0, 1.0, 1.0), "MR"),
            ("rtutils_oriented_ct", None, (3, 50, 100), (2.5, 3.5, 4.5), "CT"),
        ],
    )
    def test_series_from_public_archives_are_read(
        self,
        data_root: Path,
        folder: str,
        series: str | None,
        shape: tuple[int, ...],
        spacing: tuple[float, float, float],
        modality: str,
    ) -> None:
        image = read(data_root / "dicom_io" / folder, series=series)
        assert image.shape == shape
        assert image.modality == modality
        np.testing.assert_allclose(image.geometry.spacing, spacing, atol=1e-4)

    @pytest.mark.parametrize("width", [23, 24])
    def test_a_multi_frame_file_equals_the_series_it_was_made_from(self, data_root: Path, width: int) -> None:
        folder = data_root / "dicom_io" / f"dcmqi_small_{width}x38x3"
        single, multi = read(folder / "image"), read(folder / "multiframe")
        np.testing.assert_array_equal(multi.array, single.array)
        np.testing.assert_allclose(multi.affine, single.affine, atol=1e-4)

    def test_slices_lie_where_a_public_segmentation_of_them_says(self, data_root: Path) -> None:
        folder = data_root / "dicom_io" / "dcmqi_ct3slice_liver_seg"
        image = read(folder)
        seg = pydicom.dcmread(folder / "seg" / "liver.dcm")
        frames = [f.PlanePositionSequence[0].ImagePositionPatient for f in seg.PerFrameFunctionalGroupsSequence]
        for k, position in enumerate(sorted(frames, key=lambda position: position[2])):
            np.testing.assert_allclose(in_lps(image, 0, 0, k), position, atol=1e-4)

    def test_an_organ_outlined_by_a_public_mask_lies_in_the_same_voxels(self, data_root: Path) -> None:
        folder = data_root / "dicom_io"
        image = read(folder / "ibsi1_lung_ct_rtstruct")
        mask = read(folder / "golden_masks" / "ibsi1_lung_ct_GTV-1.nii.gz")
        # Another reader and another format: a voxel of the one is the same voxel of the other in the patient.
        there = mask.affine @ [*np.argwhere(mask.array)[0][::-1], 1]
        here = np.round(np.linalg.inv(image.affine) @ there)[:3].astype(int)
        np.testing.assert_allclose(image.affine @ [*here, 1], there, atol=1e-2)
        assert (here >= 0).all()
        assert (here < image.shape[::-1]).all()

    def test_a_missing_slice_of_a_real_series_is_found(self, data_root: Path, tmp_path: Path) -> None:
        files = sorted((data_root / "dicom_io" / "ibsi1_lung_ct_rtstruct" / "image").iterdir())
        for file in files[:20] + files[21:]:
            (tmp_path / file.name).symlink_to(file)
        with pytest.raises(SeriesError, match="1 slice is missing"):
            read(tmp_path)


def test_files_without_a_series_uid_make_one_unnamed_series(tmp_path: Path) -> None:
    image = read(phantom.write(phantom.series(SeriesInstanceUID=None), tmp_path))
    assert image.source is not None
    assert image.source.series is None


def test_a_file_without_a_dicm_mark_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(zlib.compress(b"anything"))
    with pytest.raises(FormatError, match="not a DICOM file"):
        read(path)


def test_odd_but_harmless_headers_do_not_warn(tmp_path: Path) -> None:
    dataset = phantom.image(phantom.voxels()[0], SeriesInstanceUID=generate_uid())
    path = phantom.save(dataset, tmp_path / "a.dcm")
    content = path.read_bytes()
    # A UID component with a leading zero breaks the rules of the standard and nothing else.
    uid = str(dataset.SeriesInstanceUID).encode()
    path.write_bytes(content.replace(uid, b"1.02." + b"3" * (len(uid) - 5)))
    assert read(path).shape == (6, 8)
