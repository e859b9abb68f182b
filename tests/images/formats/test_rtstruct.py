"""DICOM RTSTRUCT out: contours that, filled again, are the mask, at the same millimetres."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from test_dicom import rotation

import dicom_phantoms as phantom
from contours import filled, structures
from palpate.errors import OutputError
from palpate.images import Image, read
from palpate.images.formats import Mask, write_mask
from palpate.images.formats.outlines import outlines
from palpate.images.geometry import LPS_TO_RAS
from phantoms import disk, one_voxel, ring, touching_the_edge, vessel

NAME = "organs.rtstruct.dcm"


def organs(image: Image) -> np.ndarray:
    """Label 1 a ring with an island in its hole and a second piece, in two slices; label 2 in one corner voxel."""
    labels = np.zeros((1, *image.shape)[-3:], np.uint8)
    labels[:2, 1:6, 1:6] = 1
    labels[:2, 2:5, 2:5] = 0
    labels[:2, 3, 3] = 1
    labels[0, 0, 7] = 1
    labels[-1, -1, -1] = 2
    return labels.reshape(image.shape)


def written(image: Image, labels: np.ndarray, folder: Path, names: dict[int, str] | None = None) -> Path:
    write_mask(folder / NAME, Mask(labels, image.geometry, names or {}))
    return folder / NAME


def errors_of(path: Path) -> list[str]:
    """What DICOM's own validator objects to."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    report = found.stdout + found.stderr
    assert "RTStructureSet" in report  # it recognised the kind of object
    return [line for line in report.splitlines() if line.startswith("Error")]


def area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2


class TestOutlines:
    def test_a_pixel_is_outlined_at_its_borders_and_not_at_its_centre(self) -> None:
        (outline,) = outlines(one_voxel((4, 5), (2, 3)))
        assert sorted(map(tuple, outline.tolist())) == [(2.5, 1.5), (2.5, 2.5), (3.5, 1.5), (3.5, 2.5)]

    def test_a_rectangle_has_four_corners_and_its_own_area(self) -> None:
        (outline,) = outlines(touching_the_edge())
        assert (len(outline), area(outline)) == (4, 35)

    def test_nothing_has_no_outline(self) -> None:
        assert outlines(np.zeros((3, 4), dtype=bool)) == []

    def test_pixels_that_touch_at_corners_are_pieces_of_their_own(self) -> None:
        assert len(outlines(vessel((6, 6)))) == 6

    @pytest.mark.parametrize(
        "mask",
        [
            disk((40, 50), centre=(20, 18), radius=15),
            ring((40, 50), centre=(20, 18), outer=15, inner=7),
            ring((40, 50), centre=(20, 18), outer=15, inner=7) | one_voxel((40, 50), (18, 20)),
            ring((40, 50), centre=(20, 18), outer=15, inner=12) | ring((40, 50), centre=(20, 18), outer=8, inner=4),
        ],
        ids=["disk", "ring", "island in a hole", "ring in a ring"],
    )
    def test_the_area_inside_is_that_of_the_pixels(self, mask: np.ndarray) -> None:
        found = outlines(mask)
        assert len(found) == ndimage.label(mask)[1]
        assert sum(area(outline) for outline in found) == mask.sum()

    @settings(max_examples=200, deadline=None)
    @given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
    def test_any_mask_is_its_outlines_filled_and_these_do_not_overlap(self, mask: np.ndarray) -> None:
        pieces = [filled(outline, mask.shape) for outline in outlines(mask)]
        total = np.sum(pieces, axis=0, dtype=int) if pieces else np.zeros(mask.shape, int)
        np.testing.assert_array_equal(total, mask)  # so union and exclusive or are the same
        assert len(pieces) == ndimage.label(mask)[1]

    def test_a_channel_stays_inside_its_piece(self) -> None:
        mask = ring((30, 30), centre=(14, 14), outer=12, inner=4)
        (outline,) = outlines(mask)
        steps = np.c_[outline, np.roll(outline, -1, axis=0)]
        seen = {tuple(step) for step in steps}
        channel = [(x, y, x_end, y_end) for x, y, x_end, y_end in seen if (x_end, y_end, x, y) in seen]
        assert len(channel) == 2  # there and back
        x, y, x_end, _ = channel[0]
        assert mask[round(y), round(min(x, x_end) + 0.5) : round(max(x, x_end) - 0.5) + 1].all()

    def test_a_thousand_holes_in_a_row_are_no_deep_recursion(self) -> None:
        mask = np.ones((3, 3001), dtype=bool)
        mask[1, 1::2] = False
        (outline,) = outlines(mask)
        np.testing.assert_array_equal(filled(outline, mask.shape), mask)


class TestRoundTrip:
    @settings(max_examples=25, deadline=None)
    @given(
        angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
        spacing=st.tuples(st.floats(0.2, 4), st.floats(0.2, 4)),
        distance=st.floats(0.5, 8),
        content=st.integers(0, 2**32 - 1),
    )
    def test_a_mask_comes_back_voxel_for_voxel_however_the_slices_are_turned(
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
        found = structures(written(image, labels, folder), image)
        assert list(found) == ["label 1", "label 2", "label 3"]
        for label in (1, 2, 3):
            np.testing.assert_array_equal(found[f"label {label}"], labels == label)

    def test_a_pixel_lies_where_its_header_says(self, tmp_path: Path) -> None:
        # Slice 3 lies at z = 30 + 3 x 2.5; column 4 of 0.5 mm has its centre at x = -10 + 2, row 2 at y = -20 + 1.
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        rtss = pydicom.dcmread(written(image, one_voxel(image.shape, (3, 2, 4)), tmp_path))
        (contour,) = rtss.ROIContourSequence[0].ContourSequence
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        np.testing.assert_allclose(points.min(axis=0), [-8.25, -19.25, 37.5])
        np.testing.assert_allclose(points.max(axis=0), [-7.75, -18.75, 37.5])

    def test_rows_and_columns_of_different_spacing_are_not_mixed_up(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(PixelSpacing=[2.0, 0.5]), tmp_path / "images"))
        (outline,) = (
            pydicom.dcmread(written(image, one_voxel(image.shape, (0, 1, 3)), tmp_path))
            .ROIContourSequence[0]
            .ContourSequence
        )
        points = np.array(outline.ContourData, dtype=float).reshape(-1, 3)
        np.testing.assert_allclose(np.ptp(points, axis=0), [0.5, 2.0, 0])
        np.testing.assert_allclose(points.mean(axis=0), [-10 + 3 * 0.5, -20 + 2.0, 30])

    @pytest.mark.parametrize(
        "slices",
        [
            phantom.series(orientation=phantom.SAGITTAL),
            phantom.series(orientation=phantom.CORONAL),
            phantom.series(step=(0, 0.7, 2.5)),
        ],
        ids=["sagittal", "coronal", "sheared"],
    )
    def test_holes_islands_and_single_voxels_come_back(self, tmp_path: Path, slices: list) -> None:
        image = read(phantom.write(slices, tmp_path / "images"))
        labels = organs(image)
        found = structures(written(image, labels, tmp_path, {1: "ring", 2: "dot"}), image)
        np.testing.assert_array_equal(found["ring"], labels == 1)
        np.testing.assert_array_equal(found["dot"], labels == 2)

    def test_a_large_disk_and_a_ring_come_back_on_fine_pixels(self, tmp_path: Path) -> None:
        shape = (120, 140)
        pixels = np.zeros((3, *shape), np.int16)
        turned = rotation((0.3, -0.2, 0.1))[:, :2].T.ravel()
        image = read(phantom.write(phantom.series(pixels=pixels, orientation=turned), tmp_path / "images"))
        labels = np.zeros(image.shape, np.uint8)
        labels[0] = disk(shape, centre=(60, 50), radius=45)
        labels[1:] = 2 * ring(shape, centre=(70, 60), outer=50, inner=20)
        found = structures(written(image, labels, tmp_path), image)
        for label in (1, 2):
            overlap = 2 * (found[f"label {label}"] & (labels == label)).sum()
            assert overlap / (found[f"label {label}"].sum() + (labels == label).sum()) == 1

    def test_a_multi_frame_image_is_referred_to_by_its_frames(self, tmp_path: Path) -> None:
        dataset = phantom.enhanced_ct(phantom.voxels(3), [(5, 6, z) for z in (4.0, 0.0, 2.0)])
        image = read(phantom.save(dataset, tmp_path / "image.dcm"))
        labels = np.zeros(image.shape, np.uint8)
        labels[2, 1, 1] = 1  # the highest slice, which the file has first
        path = written(image, labels, tmp_path)
        np.testing.assert_array_equal(structures(path, image)["label 1"], labels == 1)
        (contour,) = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
        assert contour.ContourImageSequence[0].ReferencedFrameNumber == 1
        assert errors_of(path) == []

    def test_one_slice_of_a_series_is_enough(self, tmp_path: Path) -> None:
        folder = phantom.write(phantom.series(), tmp_path / "images")
        image = read(folder / "03.dcm")
        labels = organs(image)
        path = written(image, labels, tmp_path)
        assert errors_of(path) == []
        np.testing.assert_array_equal(structures(path, image)["label 1"], labels == 1)

    def test_a_contour_longer_than_explicit_vr_can_hold_is_whole(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(pixels=np.zeros((1, 60, 60), np.int16)), tmp_path / "images"))
        labels = np.ones(image.shape, np.uint8)
        labels[..., 1:-1:2, 1:-1:2] = 0
        path = written(image, labels, tmp_path)
        assert len(pydicom.dcmread(path).ROIContourSequence[0].ContourSequence[0].ContourData) >= 3 * 5000
        np.testing.assert_array_equal(structures(path, image)["label 1"], labels == 1)


class TestStructures:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Image:
        return read(phantom.write(phantom.series(), tmp_path / "images"))

    def test_names_numbers_and_colours_are_those_of_the_labels(self, image: Image, tmp_path: Path) -> None:
        mask = Mask(organs(image), image.geometry, {1: "Leber", 2: "肾"}, "lite-medsam 79d8", {2: (10, 200, 30)})
        write_mask(tmp_path / NAME, mask)
        rtss = pydicom.dcmread(tmp_path / NAME)
        assert [(roi.ROINumber, roi.ROIName) for roi in rtss.StructureSetROISequence] == [(1, "Leber"), (2, "肾")]
        first, second = (list(item.ROIDisplayColor) for item in rtss.ROIContourSequence)
        assert second == [10, 200, 30]
        assert first == list(mask.colour(1)) != second
        assert rtss.StructureSetROISequence[0].ROIGenerationDescription == "lite-medsam 79d8"
        assert rtss.StructureSetROISequence[0].ROIGenerationAlgorithm == "SEMIAUTOMATIC"

    def test_study_patient_frame_of_reference_and_images_are_those_of_the_source(
        self, image: Image, tmp_path: Path
    ) -> None:
        rtss = pydicom.dcmread(written(image, organs(image), tmp_path))
        slices = [pydicom.dcmread(path).SOPInstanceUID for path in sorted((tmp_path / "images").iterdir())]
        assert (rtss.StudyInstanceUID, rtss.PatientName) == (phantom.STUDY, "Phantom^One")
        (frame,) = rtss.ReferencedFrameOfReferenceSequence
        assert frame.FrameOfReferenceUID == phantom.FRAME_OF_REFERENCE
        (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
        assert series.SeriesInstanceUID == phantom.SERIES
        assert [one.ReferencedSOPInstanceUID for one in series.ContourImageSequence] == slices
        dot = rtss.ROIContourSequence[1].ContourSequence[0]
        assert dot.ContourImageSequence[0].ReferencedSOPInstanceUID == slices[-1]
        assert {roi.ReferencedFrameOfReferenceUID for roi in rtss.StructureSetROISequence} == {
            phantom.FRAME_OF_REFERENCE
        }

    def test_a_named_label_that_was_not_drawn_is_a_structure_without_contours(
        self, image: Image, tmp_path: Path
    ) -> None:
        path = written(image, np.zeros(image.shape, np.uint8), tmp_path, {3: "spleen"})
        assert "ContourSequence" not in pydicom.dcmread(path).ROIContourSequence[0]
        assert not structures(path, image)["spleen"].any()
        assert errors_of(path) == []

    def test_the_validator_finds_no_error(self, image: Image, tmp_path: Path) -> None:
        assert errors_of(written(image, organs(image), tmp_path, {1: "liver", 2: "left kidney"})) == []

    def test_what_research_files_lack_is_filled_in(self, tmp_path: Path) -> None:
        patient = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName")
        study = ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "FrameOfReferenceUID")
        bare = dict.fromkeys((*patient, *study, "Modality"))
        image = read(phantom.write(phantom.series(**bare), tmp_path / "bare"))
        assert errors_of(written(image, organs(image), tmp_path)) == []


class TestRefusals:
    def test_an_image_that_is_not_dicom_is_told_what_to_write(self, tmp_path: Path) -> None:
        image = Image(np.zeros((2, 3, 4)))
        with pytest.raises(OutputError, match=r"RTSTRUCT refers to the DICOM images.*\.nii\.gz or \.nrrd"):
            written(image, np.ones(image.shape, np.uint8), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_an_x_ray_has_no_place_for_contours(self, tmp_path: Path) -> None:
        image = read(phantom.save(phantom.image(phantom.voxels()[0], Modality="DX"), tmp_path / "image.dcm"))
        with pytest.raises(OutputError, match=r"do not say where in the patient.*\.dcm"):
            written(image, np.ones(image.shape, np.uint8), tmp_path)

    def test_an_empty_mask_without_names_is_no_structure_set(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        with pytest.raises(OutputError, match="the mask is empty, and an RTSTRUCT needs at least one structure"):
            written(image, np.zeros(image.shape, np.uint8), tmp_path)

    def test_a_mask_on_another_grid_is_refused(self, tmp_path: Path) -> None:
        image = read(phantom.write(phantom.series(), tmp_path / "images"))
        flipped = type(image.geometry)(image.shape, image.affine @ np.diag([1.0, -1, 1, 1]), image.geometry.source)
        with pytest.raises(OutputError, match="lies elsewhere"):
            write_mask(tmp_path / NAME, Mask(organs(image), flipped))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "golden", "name"),
    [
        ("ibsi1_lung_ct_rtstruct", "ibsi1_lung_ct_GTV-1", "GTV-1"),
        ("sts002_ct_mr_pet_rtstruct/PET", "sts002_pet_GTV_Mass", "GTV_Mass"),
    ],
)
def test_a_tumour_becomes_the_contours_that_its_hospital_drew(
    data_root: Path, tmp_path: Path, folder: str, golden: str, name: str
) -> None:
    case = data_root / "dicom_io" / folder
    image = read(case / "image")
    reference = read(data_root / "dicom_io" / "golden_masks" / f"{golden}.nii.gz")
    # The reference is on the same voxels, perhaps in another order of them.
    np.testing.assert_allclose(abs(np.linalg.det(reference.affine)), abs(np.linalg.det(image.affine)), rtol=1e-3)
    # Slices of these series lie up to 0.05 mm from even places; each contour lies in its own slice.
    theirs = structures(next((case / "mask").iterdir()), image, off_mm=0.1)
    drawn = theirs[next(one for one in theirs if name in one)]
    assert drawn.sum() == (reference.array > 0).sum()

    path = written(image, drawn.astype(np.uint8), tmp_path, {1: name})
    np.testing.assert_array_equal(structures(path, image, off_mm=0.1)[name], drawn)
    if folder != "sts002_ct_mr_pet_rtstruct/PET":  # its study has an ID longer than may be, and so have its contours
        assert errors_of(path) == []


@pytest.mark.real_data
@pytest.mark.parametrize(
    "folder",
    ["dcmqi_ct3slice_liver_seg/ct", "dcmqi_small_24x38x3/multiframe", "rtutils_oriented_ct", "ucsf_br06_breast_mr_seg"],
)
def test_public_images_take_structures_in_place(data_root: Path, tmp_path: Path, folder: str) -> None:
    image = read(data_root / "dicom_io" / folder)
    labels = organs(image)
    path = written(image, labels, tmp_path)
    np.testing.assert_array_equal(structures(path, image)["label 1"], labels == 1)
    corner = LPS_TO_RAS @ image.affine @ [*np.array(image.shape)[::-1] - 0.5, 1]
    assert np.isfinite(corner).all()
    assert errors_of(path) == []
