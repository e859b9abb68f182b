"""What leaves: each kind of export read back, and it is what was drawn."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import highdicom
import nrrd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PILImage

import dicom_phantoms as phantom
from contours import structures
from palpate.datasets import check, open_dataset
from palpate.errors import InputError, OutputError, SettingError
from palpate.images import Image, read
from palpate.server.coco import run_lengths
from palpate.server.exporting import KINDS, Finished, export

RECORD = {"version": 1, "palpate": "0.1.0", "model": "lite-medsam", "actions": [{"kind": "accept", "label": 1}]}
NAMES = {1: "liver", 4: "left kidney", 9: "never drawn"}
COLOURS = {1: (230, 25, 75), 4: (60, 180, 75)}


def organs(shape: tuple[int, ...]) -> np.ndarray:
    """Label 1 with a hole on the first slice, label 4 in one corner voxel."""
    labels = np.zeros((1, *shape)[-3:], np.uint8)
    labels[0, 1:6, 2:7] = 1
    labels[0, 3, 4] = 0
    labels[-1, -1, -1] = 4
    return labels.reshape(shape)


def finished(image: Image, case: str = "one", labels: np.ndarray | None = None) -> Finished:
    return Finished(case, image, organs(image.shape) if labels is None else labels, NAMES, COLOURS, RECORD)


def volume(modality: str = "CT") -> Image:
    affine = np.array([[-0.7, 0, 0.1, 5], [0, -0.8, 0, 6], [0, 0.1, 2.5, 7], [0, 0, 0, 1.0]])
    return Image(phantom.voxels(), affine, modality, "given")


def picture(colour: bool = False, seed: int = 0) -> Image:
    shape = (9, 8, 3) if colour else (9, 8)
    return Image(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8), colour=colour)


@pytest.fixture
def series(tmp_path: Path) -> Image:
    return read(phantom.write(phantom.series(), tmp_path / "images"))


def unpacked(kind: str, cases: list[Finished], folder: Path) -> Path:
    export(kind, cases, folder / f"{kind}.zip")
    with ZipFile(folder / f"{kind}.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(folder / kind)
    return folder / kind


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def errors_of(path: Path) -> list[str]:
    """What DICOM's own validator objects to."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")]


# One mask file a case


def test_nifti_is_the_mask_on_its_own_grid_and_the_record_as_it_was_given(tmp_path: Path) -> None:
    image = volume()
    folder = unpacked("nifti", [finished(image), finished(image, "two")], tmp_path)
    assert names_in(folder) == ["one.nii.gz", "one.prompts.json", "two.nii.gz", "two.prompts.json"]
    mask = read(folder / "one.nii.gz")
    np.testing.assert_array_equal(mask.array, organs(image.shape))
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-6)
    assert json.loads((folder / "one.prompts.json").read_text()) == RECORD


def test_a_dicom_seg_is_valid_and_equal_to_what_was_drawn(tmp_path: Path, series: Image) -> None:
    folder = unpacked("dicom-seg", [finished(series)], tmp_path)
    seg = highdicom.seg.segread(folder / "one.dcm")
    labels = seg.get_volume(combine_segments=True)
    slices = labels if labels.affine[2, 0] > 0 else labels.flip_spatial(0)
    np.testing.assert_array_equal(slices.array, np.searchsorted([0, 1, 4], organs(series.shape)))
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["liver", "left kidney"]
    lab = [tuple(one.RecommendedDisplayCIELabValue) for one in seg.SegmentSequence]
    assert lab == [highdicom.color.CIELabColor.from_rgb(*COLOURS[value]).value for value in (1, 4)]
    assert errors_of(folder / "one.dcm") == []


def test_an_rtstruct_is_valid_and_filled_again_is_what_was_drawn(tmp_path: Path, series: Image) -> None:
    folder = unpacked("rtstruct", [finished(series)], tmp_path)
    assert names_in(folder) == ["one.prompts.json", "one.rtstruct.dcm"]
    back = structures(folder / "one.rtstruct.dcm", series)
    assert list(back) == ["liver", "left kidney"]
    np.testing.assert_array_equal(back["liver"], organs(series.shape) == 1)
    np.testing.assert_array_equal(back["left kidney"], organs(series.shape) == 4)
    contours = pydicom.dcmread(folder / "one.rtstruct.dcm").ROIContourSequence
    assert [tuple(one.ROIDisplayColor) for one in contours] == [COLOURS[1], COLOURS[4]]
    assert errors_of(folder / "one.rtstruct.dcm") == []


def test_slicer_gets_names_and_colours(tmp_path: Path) -> None:
    folder = unpacked("seg-nrrd", [finished(volume())], tmp_path)
    data, header = nrrd.read(str(folder / "one.seg.nrrd"))
    np.testing.assert_array_equal(data.T, organs(data.T.shape))
    said = [(header[f"Segment{n}_Name"], header[f"Segment{n}_LabelValue"]) for n in range(2)]
    assert said == [("liver", "1"), ("left kidney", "4")]
    for number, value in enumerate((1, 4)):
        colour = np.array(header[f"Segment{number}_Color"].split(), dtype=float)
        np.testing.assert_array_equal((colour * 255).round(), COLOURS[value])
        assert header[f"Segment{number}_ColorAutoGenerated"] == "0"
    assert "Segment2_Name" not in header


def test_a_case_with_nothing_on_it_keeps_its_names(tmp_path: Path, series: Image) -> None:
    case = finished(series, labels=np.zeros(series.shape, np.uint8))
    folder = unpacked("dicom-seg", [case], tmp_path)
    segments = pydicom.dcmread(folder / "one.dcm").SegmentSequence
    assert [one.SegmentLabel for one in segments] == list(NAMES.values())


@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
def test_what_is_not_dicom_is_told_what_to_choose_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OutputError, match="one is not DICOM; export it as nifti or seg-nrrd"):
        export(kind, [finished(volume())], tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_mask_that_cannot_be_written_says_of_which_case(tmp_path: Path, series: Image) -> None:
    (tmp_path / "images" / "02.dcm").unlink()
    with pytest.raises(OutputError, match=r"^one: .*02\.dcm could not be read"):
        export("rtstruct", [finished(series)], tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


# COCO


def decoded(encoded: dict) -> np.ndarray:
    """COCO's own rule: runs of 0 and 1 in turn, down the columns."""
    height, width = encoded["size"]
    flat, at = np.zeros(height * width, dtype=bool), 0
    for number, run in enumerate(encoded["counts"]):
        flat[at : at + run] = number % 2 == 1
        at += run
    assert at == flat.size
    return flat.reshape(width, height).T


@settings(max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_run_lengths_decode_to_the_mask(mask: np.ndarray) -> None:
    runs = run_lengths(mask)
    np.testing.assert_array_equal(decoded({"size": mask.shape, "counts": runs}), mask)
    assert all(run > 0 for run in runs[1:])


def test_coco_holds_each_label_on_each_slice_that_has_one(tmp_path: Path) -> None:
    image, flat = volume(), picture(colour=True)
    folder = unpacked("coco", [finished(image, "ct"), finished(flat, "skin")], tmp_path)
    described = json.loads((folder / "annotations.json").read_text())
    names = [one["file_name"] for one in described["images"]]
    assert names == ["ct_z0000.png", "ct_z0004.png", "skin.png"]
    assert [(one["id"], one["name"]) for one in described["categories"]] == [(1, "liver"), (4, "left kidney")]
    back = {"ct": np.zeros(image.shape, np.uint8), "skin": np.zeros(flat.shape, np.uint8)}
    by_id = {one["id"]: one for one in described["images"]}
    assert len({one["id"] for one in described["annotations"]}) == 4
    for one in described["annotations"]:
        entry = by_id[one["image_id"]]
        mask = decoded(one["segmentation"])
        assert mask.shape == (entry["height"], entry["width"])
        y, x = np.nonzero(mask)
        assert one["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert (one["area"], one["iscrowd"]) == (mask.sum(), 0)
        whole = back[entry["case"]]
        (whole[entry["slice"]] if whole.ndim == 3 else whole)[mask] = one["category_id"]
    np.testing.assert_array_equal(back["ct"], organs(image.shape))
    np.testing.assert_array_equal(back["skin"], organs(flat.shape))
    np.testing.assert_array_equal(np.array(PILImage.open(folder / "images" / "skin.png")), flat.array)
    assert np.array(PILImage.open(folder / "images" / "ct_z0004.png")).shape == image.shape[1:]
    assert json.loads((folder / "prompts" / "ct.prompts.json").read_text()) == RECORD


def test_coco_takes_an_image_on_which_there_is_nothing_to_see(tmp_path: Path) -> None:
    flat = Image(np.full((8, 9), 3.0), source=None)
    folder = unpacked("coco", [finished(flat)], tmp_path)
    assert not np.array(PILImage.open(folder / "images" / "one.png")).any()


# nnU-Net


def test_an_nnunet_dataset_is_sound_and_reads_back_as_what_was_drawn(tmp_path: Path) -> None:
    image, other = volume(), Image(phantom.voxels() + 7, volume().affine, "CT", "given")
    folder = unpacked("nnunet", [finished(image, "a.b"), finished(other, "c")], tmp_path) / "Dataset500_Palpate"
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "liver": 1, "left kidney": 2}
    assert described["original_values"] == {"liver": 1, "left kidney": 4}
    assert (described["channel_names"], described["numTraining"]) == ({"0": "CT"}, 2)
    report = check(folder)
    assert [problem for problem in report.problems if problem.severity == "error"] == []

    cases = {case.name: case for case in open_dataset(folder)}
    assert list(cases) == ["a.b", "c"]
    labelled = cases["a.b"].read()
    np.testing.assert_array_equal(labelled.labels, np.searchsorted([0, 1, 4], organs(image.shape)))
    np.testing.assert_array_equal(labelled.image.array, image.array)
    np.testing.assert_allclose(labelled.image.affine, image.affine, atol=1e-6)
    assert [(region.name, region.values) for region in cases["c"].regions] == [("liver", (1,)), ("left kidney", (2,))]
    assert json.loads((folder / "prompts" / "c.prompts.json").read_text()) == RECORD


def test_colour_pictures_become_one_png_each(tmp_path: Path) -> None:
    first, second = picture(colour=True), picture(colour=True, seed=1)
    folder = unpacked("nnunet", [finished(first, "a"), finished(second, "b")], tmp_path) / "Dataset500_Palpate"
    described = json.loads((folder / "dataset.json").read_text())
    assert (described["channel_names"], described["file_ending"]) == ({"0": "R", "1": "G", "2": "B"}, ".png")
    assert "imagesTr/a_0000.png" in names_in(folder)
    assert [problem for problem in check(folder).problems if problem.severity == "error"] == []
    case = open_dataset(folder)[1].read()
    np.testing.assert_array_equal(case.image.array, second.array)
    np.testing.assert_array_equal(case.labels, np.searchsorted([0, 1, 4], organs(second.shape)))


def test_slices_that_no_png_can_hold_become_nifti(tmp_path: Path) -> None:
    image = Image(phantom.voxels(1, 9, 8)[0] - 1000, volume().affine, "CT", "header")
    folder = unpacked("nnunet", [finished(image)], tmp_path) / "Dataset500_Palpate"
    assert [problem for problem in check(folder).problems if problem.severity == "error"] == []
    np.testing.assert_array_equal(open_dataset(folder)[0].read().image.array, image.array)


def test_colour_volumes_become_three_channels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 9, 8, 3)).astype(np.uint8)
    folder = unpacked("nnunet", [finished(Image(array, colour=True))], tmp_path) / "Dataset500_Palpate"
    for channel in range(3):
        np.testing.assert_array_equal(read(folder / f"imagesTr/one_{channel:04d}.nii.gz").array, array[..., channel])
    assert [problem for problem in check(folder).problems if problem.severity == "error"] == []


@pytest.mark.parametrize(
    ("cases", "what"),
    [((volume(), picture()), "pictures and volumes"), ((picture(), picture(colour=True)), "grey and colour")],
)
def test_cases_that_make_no_one_dataset_are_named(tmp_path: Path, cases: tuple[Image, Image], what: str) -> None:
    with pytest.raises(OutputError, match=rf"{what} \(\w+, \w+\); export them apart"):
        export("nnunet", [finished(cases[0], "a"), finished(cases[1], "b")], tmp_path / "n.zip")


def test_names_that_mean_something_to_nnunet_or_are_shared_get_their_value(tmp_path: Path) -> None:
    labels = np.zeros((9, 8), np.uint8)
    labels[0, :4] = 1, 2, 3, 4
    names = {1: "Ignore", 2: "liver", 3: "liver"}
    export("nnunet", [Finished("a", picture(), labels, names)], tmp_path / "n.zip", number=7, name="Mine")
    with ZipFile(tmp_path / "n.zip") as archive:
        described = json.loads(archive.read("Dataset007_Mine/dataset.json"))
    assert list(described["labels"]) == ["background", "Ignore 1", "liver 2", "liver 3", "label 4"]


# All of them


@pytest.mark.parametrize("kind", ["coco", "nnunet"])
def test_one_label_with_two_names_is_refused(tmp_path: Path, kind: str) -> None:
    cases = [Finished(case, picture(), organs((9, 8)), {1: name}) for case, name in (("a", "liver"), ("b", "lung"))]
    with pytest.raises(OutputError, match="label 1 is 'liver' in a and 'lung' in b"):
        export(kind, cases, tmp_path / "x.zip")


@pytest.mark.parametrize("kind", ["coco", "nnunet"])
def test_a_dataset_of_nothing_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OutputError, match="nothing is drawn"):
        export(kind, [finished(picture(), labels=np.zeros((9, 8), np.uint8))], tmp_path / "x.zip")


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_export_is_replaced_only_when_asked(tmp_path: Path, series: Image, kind: str) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"older")
    with pytest.raises(OutputError, match="exists"):
        export(kind, [finished(series)], path)
    assert path.read_bytes() == b"older"
    export(kind, [finished(series)], path, overwrite=True)
    with ZipFile(path) as archive:
        assert sum(name.endswith("one.prompts.json") for name in archive.namelist()) == 1
    assert {one.name for one in tmp_path.iterdir()} == {"images", "x.zip"}


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    case = finished(picture())
    with pytest.raises(SettingError, match="choose nifti, dicom-seg"):
        export("stl", [case], tmp_path / "x.zip")
    with pytest.raises(InputError, match="no case to export"):
        export("nifti", [], tmp_path / "x.zip")
    with pytest.raises(InputError, match="two cases are called one"):
        export("nifti", [case, case], tmp_path / "x.zip")
    with pytest.raises(OutputError, match=r"end it in \.zip"):
        export("nifti", [case], tmp_path / "x.tar")
    with pytest.raises(SettingError, match="1 to 999"):
        export("nnunet", [case], tmp_path / "x.zip", number=1000)
    with pytest.raises(SettingError, match="letters, digits"):
        export("nnunet", [case], tmp_path / "x.zip", name="../up")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "..", "", "a/b", "a b", "x" * 121])
def test_a_case_whose_name_is_no_file_name_cannot_be_finished(name: str) -> None:
    with pytest.raises(InputError, match="cannot be exported as"):
        finished(picture(), name)


def test_labels_of_another_grid_or_kind_cannot_be_finished() -> None:
    for labels in (np.zeros((3, 3), np.uint8), np.zeros((9, 8)), np.full((9, 8), -1)):
        with pytest.raises(InputError, match="the labels of one are"):
            finished(picture(), labels=labels)
