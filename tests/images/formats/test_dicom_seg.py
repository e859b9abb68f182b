"""DICOM SEG out: the same voxels at the same millimetres, in a file that others accept."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes
from test_dicom import rotation

import dicom_phantoms as phantom
from palpate.errors import OutputError
from palpate.images import Image, read
from palpate.images.formats import Mask, dicom_seg, write_mask
from palpate.images.geometry import LPS_TO_RAS

LIVER_AND_KIDNEY = {1: "liver", 2: "left kidney"}


def two_organs(image: Image) -> np.ndarray:
    """Label 1 in a corner of the first slice (so that turned and mirrored masks show), label 2 in one voxel."""
    labels = np.zeros(image.shape, np.uint8)
    labels.reshape(-1, *labels.shape[-2:])[0, 1:4, 2:7] = 1
    labels[..., -1, -1].flat[-1] = 2
    return labels


def volume_on_the_grid_of(image: Image, path: Path) -> highdicom.Volume:
    """What highdicom makes of a SEG; it counts slices against their normal, we along it."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    against = (LPS_TO_RAS @ volume.affine[:, 0]) @ image.affine[:, 2] < 0
    return volume.flip_spatial(0) if against else volume


def pasted(path: Path, image: Image) -> np.ndarray:
    """The labels of a SEG on the image's grid, each frame put where its position says; the values are numbers
    of segments."""
    seg = highdicom.seg.segread(path)
    labels = np.zeros((1, *image.shape)[-3:], np.uint16)
    to_voxel = np.linalg.inv(LPS_TO_RAS @ image.affine)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        x, y, z, _ = to_voxel @ [*group.PlanePositionSequence[0].ImagePositionPatient, 1]
        np.testing.assert_allclose([x, y, z], [0, 0, round(z)], atol=1e-3)
        holder = group if "SegmentIdentificationSequence" in group else seg.SharedFunctionalGroupsSequence[0]
        labels[round(z)][frame > 0] = holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return labels.reshape(image.shape)


def dciodvfy_errors(path: Path) -> list[str]:
    """What DICOM's own validator objects to."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    report = found.stdout + found.stderr
    assert "Segmentation" in report  # it recognised the kind of object
    return [line for line in report.splitlines() if line.startswith("Error")]


class TestRoundTrip:
    @settings(max_examples=40, deadline=None)
    @given(
        angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
        spacing=st.tuples(st.floats(0.2, 4), st.floats(0.2, 4)),
        distance=st.floats(0.5, 8),
        content=st.integers(0, 2**32 - 1),
    )
    def test_a_mask_comes_back_bit_for_bit_at_the_same_millimetres(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        angles: tuple[float, float, float],
        spacing: tuple[float, float],
        distance: float,
        content: int,
    ) -> None:
        folder = tmp_path_factory.mktemp("series")
        slices = phantom.series(
            orientation=rotation(angles)[:, :2].T.ravel(),
            distance=distance,
            PixelSpacing=[phantom.ds(value) for value in spacing],
        )
        image = read(phantom.write(slices[::-1], folder / "images"))
        labels = np.random.default_rng(content).integers(0, 4, image.shape).astype(np.uint8)
        labels[0, 0, :3] = 1, 2, 3
        path = folder / "mask.dcm"
        write_mask(path, Mask(labels, image.geometry))

        volume = volume_on_the_grid_of(image, path)
        np.testing.assert_array_equal(volume.array, labels)
        # highdicom's affine takes (slice, row, column) to LPS; ours takes (x, y, z) to RAS.
        np.testing.assert_allclose(LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]], image.affine, atol=1e-4)

    @pytest.mark.parametrize("orientation", [phantom.AXIAL, phantom.SAGITTAL, phantom.CORONAL])
    def test_empty_slices_are_kept_so_that_the_grid_is_whole(
        self, tmp_path: Path, orientation: tuple[float, ...]
    ) -> None:
        image = read(phantom.write(phantom.series(orientation=orientation), tmp_path / "images"))
        labels = np.zeros(image.shape, np.uint8)
        labels[2, 1:3, 4:7] = 1
        write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry))

        volume = volume_on_the_grid_of(image, tmp_path / "mask.dcm")
        np.testing.assert_array_equal(volume.array, labels)

    def test_a_large_mask_leaves_empty_frames_out_and_keeps_the_rest_in_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dicom_seg, "WHOLE_GRID_BYTES", 10)
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        labels = two_organs(image)
        write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry))

        assert highdicom.seg.segread(tmp_path / "mask.dcm").NumberOfFrames == 2
        np.testing.assert_array_equal(pasted(tmp_path / "mask.dcm", image), labels)

    def test_a_mask_on_one_slice_of_a_series_refers_to_that_slice(self, tmp_path: Path) -> None:
        folder = phantom.write(phantom.series(), tmp_path / "images")
        image = read(folder / "03.dcm")
        labels = two_organs(image)
        write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry))

        np.testing.assert_array_equal(pasted(tmp_path / "mask.dcm", image), labels)
        seg = highdicom.seg.segread(tmp_path / "mask.dcm")
        referenced = [uid for _, _, uid in seg.get_source_image_uids()]
        assert referenced == [pydicom.dcmread(folder / "03.dcm").SOPInstanceUID]

    def test_a_mask_on_sheared_slices_stays_on_them(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(step=(0, 0.7, 2.5)), tmp_path / "images"))
        labels = two_organs(image)
        write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry))

        np.testing.assert_array_equal(pasted(tmp_path / "mask.dcm", image), labels)

    @pytest.mark.parametrize("per_frame", [False, True], ids=["shared groups", "per-frame groups"])
    def test_a_mask_on_a_multi_frame_image_returns_to_its_frames(self, tmp_path: Path, per_frame: bool) -> None:
        dataset = phantom.enhanced_ct(phantom.voxels(3), [(5, 6, z) for z in (4.0, 0.0, 2.0)])
        if per_frame:
            shared = dataset.SharedFunctionalGroupsSequence[0]
            for frame in dataset.PerFrameFunctionalGroupsSequence:
                frame.update(shared)
            del dataset.SharedFunctionalGroupsSequence
        image = read(phantom.save(dataset, tmp_path / "image.dcm"))
        labels = two_organs(image)
        write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry))

        volume = volume_on_the_grid_of(image, tmp_path / "mask.dcm")
        np.testing.assert_array_equal(volume.array, labels)
        np.testing.assert_allclose(LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]], image.affine, atol=1e-4)

    def test_a_mask_on_an_x_ray_needs_no_place_in_the_patient(self, tmp_path: Path) -> None:
        image = read(phantom.save(phantom.image(phantom.voxels()[0], Modality="DX"), tmp_path / "image.dcm"))
        labels = two_organs(image)
        write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry))

        frames = highdicom.seg.segread(tmp_path / "mask.dcm").pixel_array
        np.testing.assert_array_equal(frames[0], labels == 1)
        np.testing.assert_array_equal(frames[1], labels == 2)

    def test_three_hundred_segments_keep_their_numbers(self, tmp_path: Path) -> None:
        pixels = np.zeros((2, 20, 20), np.int16)
        image = read(phantom.write(phantom.series(pixels=pixels), tmp_path / "images"))
        labels = np.zeros(image.shape, np.uint16)
        labels.flat[:300] = np.arange(300) + 1
        write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry))

        volume = volume_on_the_grid_of(image, tmp_path / "mask.dcm")
        np.testing.assert_array_equal(volume.array, labels)


class TestSegments:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Image:
        return read(phantom.write(phantom.series(), tmp_path / "images"))

    def test_labels_with_gaps_become_consecutive_segments_that_say_their_label(
        self, image: Image, tmp_path: Path
    ) -> None:
        labels = two_organs(image).astype(np.int32)
        labels[labels == 2] = 1000
        write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry, {1: "liver", 1000: "left kidney"}))

        seg = highdicom.seg.segread(tmp_path / "mask.dcm")
        described = [(one.SegmentNumber, one.SegmentLabel, one.SegmentDescription) for one in seg.SegmentSequence]
        assert described == [(1, "liver", "label value 1"), (2, "left kidney", "label value 1000")]
        np.testing.assert_array_equal(pasted(tmp_path / "mask.dcm", image), two_organs(image))

    def test_a_named_label_that_was_not_drawn_is_an_empty_segment(self, image: Image, tmp_path: Path) -> None:
        write_mask(tmp_path / "mask.dcm", Mask(np.zeros(image.shape, np.uint8), image.geometry, {1: "spleen"}))

        seg = highdicom.seg.segread(tmp_path / "mask.dcm")
        assert [one.SegmentLabel for one in seg.SegmentSequence] == ["spleen"]
        assert not seg.pixel_array.any()

    def test_a_boolean_mask_is_label_one(self, image: Image, tmp_path: Path) -> None:
        labels = two_organs(image) == 1
        write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry))
        np.testing.assert_array_equal(pasted(tmp_path / "mask.dcm", image), labels)

    def test_the_model_that_made_it_is_on_record(self, image: Image, tmp_path: Path) -> None:
        write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), image.geometry, description="lite-medsam 79d8c9dc"))
        seg = pydicom.dcmread(tmp_path / "mask.dcm")
        segment = seg.SegmentSequence[0]
        assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmName == "palpate, lite-medsam 79d8c9dc"
        assert algorithm.AlgorithmParameters == "model=lite-medsam 79d8c9dc"

    def test_study_patient_and_frame_of_reference_are_those_of_the_images(self, image: Image, tmp_path: Path) -> None:
        write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), image.geometry))
        seg = pydicom.dcmread(tmp_path / "mask.dcm")
        assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (phantom.STUDY, phantom.FRAME_OF_REFERENCE)
        assert seg.PatientName == "Phantom^One"
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == phantom.SERIES
        assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 5

    def test_two_masks_of_one_image_are_two_series(self, image: Image, tmp_path: Path) -> None:
        for name in ("a.dcm", "b.dcm"):
            write_mask(tmp_path / name, Mask(two_organs(image), image.geometry))
        a, b = (pydicom.dcmread(tmp_path / name) for name in ("a.dcm", "b.dcm"))
        assert a.SeriesInstanceUID != b.SeriesInstanceUID
        assert a.SOPInstanceUID != b.SOPInstanceUID

    def test_names_in_any_script_and_of_any_length_fit(self, image: Image, tmp_path: Path) -> None:
        names = {1: "肝臓", 2: "a\\b\n" + "very " * 30 + "long"}
        write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), image.geometry, names))
        first, second = pydicom.dcmread(tmp_path / "mask.dcm").SegmentSequence
        assert first.SegmentLabel == "肝臓"
        assert len(second.SegmentLabel) <= 64
        assert second.SegmentLabel.startswith("a b very")


class TestCodes:
    @pytest.mark.parametrize(
        ("name", "meanings"),
        [
            ("liver", ["Anatomical Structure", "Liver"]),
            ("Left Kidney", ["Anatomical Structure", "Kidney", "Left"]),
            ("kidney_right", ["Anatomical Structure", "Kidney", "Right"]),
            ("gallbladder", ["Anatomical Structure", "Gallbladder"]),
            ("lung_upper_lobe_left", ["Anatomical Structure", "Lung", "Left"]),
            ("left ventricle", ["Anatomical Structure", "Left ventricle"]),
            ("liver tumour", ["Morphologically Altered Structure", "Neoplasm"]),
            ("GTV-1", ["Morphologically Altered Structure", "Neoplasm"]),
            ("vertebrae L4", ["Anatomical Structure", "Vertebra"]),
            ("label 5", ["Anatomical Structure", "Tissue"]),
            ("ribbon", ["Anatomical Structure", "Tissue"]),
        ],
    )
    def test_a_name_finds_its_code(self, name: str, meanings: list[str]) -> None:
        assert [code.meaning for code in dicom_seg.segment_code(name) if code] == meanings

    def test_codes_are_those_of_the_standards_dictionary(self) -> None:
        for table in (dicom_seg._ORGANS, dicom_seg._FINDINGS):
            for code in table.values():
                keyword = "".join(word.capitalize() for word in code.meaning.split())
                assert getattr(codes.SCT, keyword).value == code.value


class TestRefusals:
    def test_a_mask_that_was_not_drawn_on_dicom_goes_to_nifti(self, tmp_path: Path) -> None:
        image = Image(phantom.voxels())
        with pytest.raises(OutputError, match=r"not drawn on DICOM.*\.nii\.gz"):
            write_mask(tmp_path / "mask.dcm", Mask(np.ones(image.shape, np.uint8), image.geometry))
        assert not list(tmp_path.iterdir())

    def test_an_empty_mask_without_names_is_no_segmentation(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        with pytest.raises(OutputError, match="the mask is empty"):
            write_mask(tmp_path / "mask.dcm", Mask(np.zeros(image.shape, np.uint8), image.geometry))

    @pytest.mark.parametrize("value", [-1, 0.5])
    def test_labels_that_are_no_labels_are_refused(self, tmp_path: Path, value: float) -> None:
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        with pytest.raises(OutputError, match="whole numbers from 0 on"):
            write_mask(tmp_path / "mask.dcm", Mask(np.full(image.shape, value), image.geometry))

    def test_images_that_are_gone_are_named(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        (tmp_path / "images" / "02.dcm").unlink()
        with pytest.raises(OutputError, match=r"02\.dcm could not be read"):
            write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), image.geometry))

    def test_a_cropped_mask_is_refused(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        with pytest.raises(OutputError, match="has the shape"):
            write_mask(tmp_path / "mask.dcm", Mask(two_organs(image)[1:], image.geometry))

    def test_a_mask_on_another_grid_of_the_same_size_is_refused(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        geometry = image.geometry
        flipped = type(geometry)(geometry.shape, geometry.affine @ np.diag([1.0, -1, 1, 1]), geometry.source)
        with pytest.raises(OutputError, match="lies elsewhere"):
            write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), flipped))

    def test_a_film_without_places_goes_to_nifti(self, tmp_path: Path) -> None:
        image = read(phantom.save(phantom.film(phantom.voxels(3).astype(np.uint8)), tmp_path / "image.dcm"))
        with pytest.raises(OutputError, match=r"ImagePositionPatient"):
            write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), image.geometry))

    def test_images_that_cannot_be_referred_to_say_what_they_lack(self, tmp_path: Path) -> None:
        slices = phantom.series(SeriesInstanceUID=None)
        image = read(phantom.write(slices, tmp_path / "images"))
        with pytest.raises(OutputError, match="no SeriesInstanceUID"):
            write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), image.geometry))


class TestValidity:
    def test_the_validator_finds_no_error_in_a_mask_of_a_series(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), image.geometry, LIVER_AND_KIDNEY))
        assert dciodvfy_errors(tmp_path / "mask.dcm") == []

    def test_the_validator_finds_no_error_in_a_mask_of_a_multi_frame_image(self, tmp_path: Path) -> None:
        dataset = phantom.enhanced_ct(phantom.voxels(3), [(5, 6, z) for z in (4.0, 0.0, 2.0)])
        image = read(phantom.save(dataset, tmp_path / "image.dcm"))
        write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), image.geometry, LIVER_AND_KIDNEY))
        assert dciodvfy_errors(tmp_path / "mask.dcm") == []

    def test_the_validator_finds_no_error_in_a_mask_of_an_x_ray(self, tmp_path: Path) -> None:
        image = read(phantom.save(phantom.image(phantom.voxels()[0], Modality="DX"), tmp_path / "image.dcm"))
        write_mask(tmp_path / "mask.dcm", Mask(two_organs(image), image.geometry, LIVER_AND_KIDNEY))
        assert dciodvfy_errors(tmp_path / "mask.dcm") == []

    def test_what_research_files_lack_is_filled_in(self, tmp_path: Path) -> None:
        patient = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName")
        study = ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "FrameOfReferenceUID")
        bare = dict.fromkeys((*patient, *study, "Modality"))
        image = read(phantom.write(phantom.series(**bare), tmp_path / "images"))
        for name in ("a.dcm", "b.dcm"):
            write_mask(tmp_path / name, Mask(two_organs(image), image.geometry, LIVER_AND_KIDNEY))

        a, b = (pydicom.dcmread(tmp_path / name) for name in ("a.dcm", "b.dcm"))
        assert a.StudyInstanceUID == b.StudyInstanceUID
        assert a.FrameOfReferenceUID == b.FrameOfReferenceUID
        np.testing.assert_array_equal(pasted(tmp_path / "a.dcm", image), two_organs(image))
        assert dciodvfy_errors(tmp_path / "a.dcm") == []


@pytest.mark.real_data
@pytest.mark.parametrize(
    "folder",
    [
        "dcmqi_ct3slice_liver_seg",
        "dcmqi_small_23x38x3/image",
        "dcmqi_small_24x38x3/multiframe",
        "ucsf_br06_breast_mr_seg",
        "udacity_hippocampus_crop_mr_series",
        "rtutils_oriented_ct",
        "highdicom_test_files/ct_image.dcm",
    ],
)
def test_masks_of_public_images_are_valid_and_in_place(data_root: Path, tmp_path: Path, folder: str) -> None:
    image = read(data_root / "dicom_io" / folder)
    labels = two_organs(image)
    write_mask(tmp_path / "mask.dcm", Mask(labels, image.geometry, LIVER_AND_KIDNEY))

    np.testing.assert_array_equal(pasted(tmp_path / "mask.dcm", image), labels)
    assert dciodvfy_errors(tmp_path / "mask.dcm") == []
