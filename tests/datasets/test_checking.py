from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trees
from palpate.datasets import Report, check


def kinds(report: Report) -> list[tuple[str, str]]:
    return [(problem.severity, problem.kind) for problem in report.problems]


def test_a_sound_dataset_has_no_problems(tmp_path: Path) -> None:
    for folder in (
        trees.pictures(tmp_path / "m", {"p": 2, "q": 1}, split="train"),
        trees.nnunet(tmp_path / "n", channels=2),
        trees.npy_slices(tmp_path / "npy"),
        trees.two_folders(tmp_path / "f"),
        trees.npz_case(tmp_path / "z" / "CT_one.npz").parent,
    ):
        assert check(folder).problems == ()


@pytest.mark.real_data
def test_real_images_have_no_problems(data_root: Path) -> None:
    report = check(data_root, dataset=["sts_sarcoma_ct", "isic2017_dermoscopy"])
    assert report.problems == ()
    assert len(report.cases) == 7 - 2 + 9


def _nan(root: Path) -> None:
    trees.nifti(root / "imagesTr" / "a_0000.nii.gz", np.where(trees.ORGANS == 1, np.nan, 1.5).astype(np.float32))


def _nan_label(root: Path) -> None:
    trees.nifti(root / "labelsTr" / "a.nii.gz", np.where(trees.ORGANS == 1, np.nan, 1).astype(np.float32))


def _cut(root: Path) -> None:
    path = root / "imagesTr" / "a_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])


CHANGES: dict[str, Callable[[Path], object]] = {
    "missing label": lambda root: (root / "labelsTr" / "a.nii.gz").unlink(),
    "missing image": lambda root: (root / "imagesTr" / "a_0000.nii.gz").unlink(),
    "unreadable (image)": _cut,
    "values (image)": _nan,
    "values (label)": _nan_label,
    "shape": lambda root: trees.nifti(root / "labelsTr" / "a.nii.gz", trees.ORGANS[:2]),
    "spacing": lambda root: trees.nifti(root / "labelsTr" / "a.nii.gz", trees.ORGANS, trees.AFFINE * [2, 1, 1, 1]),
    "direction": lambda root: trees.nifti(root / "labelsTr" / "a.nii.gz", trees.ORGANS, trees.AFFINE * [-1, 1, 1, 1]),
    "origin": lambda root: trees.nifti(
        root / "labelsTr" / "a.nii.gz", trees.ORGANS, trees.AFFINE + np.outer([9, 0, 0, 0], [0, 0, 0, 1])
    ),
    "unexpected values": lambda root: trees.nifti(root / "labelsTr" / "a.nii.gz", trees.ORGANS + 2),
    "constant image": lambda root: trees.nifti(root / "imagesTr" / "a_0000.nii.gz", trees.VOLUME * 0),
    "channels": lambda root: trees.nifti(root / "imagesTr" / "a_0001.nii.gz", trees.VOLUME),
    "file name": lambda root: trees.nifti(root / "imagesTr" / "c.nii.gz", trees.VOLUME),
    "numTraining": lambda root: [
        trees.nifti(root / "imagesTr" / "c_0000.nii.gz", trees.VOLUME + 99),
        trees.nifti(root / "labelsTr" / "c.nii.gz", trees.ORGANS),
    ],
}


@pytest.mark.parametrize("kind", CHANGES)
def test_each_fault_is_an_error_of_its_own_and_hides_no_other(tmp_path: Path, kind: str) -> None:
    root = trees.nnunet(tmp_path, ("a", "b"))
    CHANGES[kind](root)
    (root / "imagesTr" / "b_0000.nii.gz").write_bytes(b"damaged")
    errors = check(root).errors
    assert kind in {problem.kind for problem in errors if problem.case != "b"}
    assert ("b", "unreadable (image)") in {(problem.case, problem.kind) for problem in errors}
    assert all(problem.what and problem.remedy for problem in errors)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"numTraining": None, "file_ending": None}, "lacks numTraining, file_ending"),
        ({"numTraining": 5}, "numTraining is 5 and there are 2"),
        ({"labels": {"0": "background", "1": "liver"}}, "'background'"),
        ({"labels": {"liver": 1, "tumour": 2}}, "no background"),
        ({"labels": {"background": 0, "liver": 1, "tumour": 2, "lung": 4}}, "0, 1, 2, 4"),
        ({"labels": {"background": 0, "all": [1, 2], "tumour": 2}}, "regions_class_order"),
        ({"labels": {"background": 0, "liver": 1.5}}, "1.5"),
        ({"labels": [1, 2]}, "no object"),
        ({"file_ending": "nii.gz"}, "with its dot"),
    ],
)
def test_a_faulty_dataset_json_is_reported(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    errors = check(trees.nnunet(tmp_path, **changes)).errors
    assert any(said in str(problem) for problem in errors)


def test_the_other_channels_are_looked_at(tmp_path: Path) -> None:
    root = trees.nnunet(tmp_path, channels=2)
    trees.nifti(root / "imagesTr" / "a_0001.nii.gz", trees.VOLUME[:2])
    (root / "imagesTr" / "b_0001.nii.gz").unlink()
    assert kinds(check(root)) == [("error", "missing channel"), ("error", "shape (channel)")]


def test_pictures_may_hold_all_channels_in_one_file(tmp_path: Path) -> None:
    names = {"0": "R", "1": "G", "2": "B"}
    root = trees.nnunet(
        tmp_path, (), file_ending=".png", channel_names=names, numTraining=2, labels={"background": 0, "x": 1}
    )
    for name in "ab":
        trees.png(root / "labelsTr" / f"{name}.png", trees.square())
        trees.png(
            root / "imagesTr" / f"{name}_0000.png", np.dstack([trees.grey(n + ord(name)) for n in range(0, 30, 10)])
        )
    assert check(root).problems == ()
    trees.png(root / "imagesTr" / "b_0000.png", trees.grey(1))
    assert kinds(check(root)) == [("error", "channels")]


def test_a_spacing_that_only_nnunet_refuses_is_a_warning(tmp_path: Path) -> None:
    root = trees.nnunet(tmp_path)
    trees.nifti(root / "labelsTr" / "a.nii.gz", trees.ORGANS, trees.AFFINE * [1.0002, 1, 1, 1])
    assert kinds(check(root)) == [("warning", "spacing")]


def test_the_ignored_label_is_expected_and_alone_it_is_empty(tmp_path: Path) -> None:
    root = trees.nnunet(tmp_path, labels={"background": 0, "liver": 1, "tumour": 2, "ignore": 3})
    trees.nifti(root / "labelsTr" / "a.nii.gz", (trees.ORGANS > 0).astype(np.uint8) * 3)
    assert kinds(check(root)) == [("warning", "empty label")]


def test_declared_labels_that_nobody_holds_are_named(tmp_path: Path) -> None:
    (problem,) = check(trees.nnunet(tmp_path, labels={"background": 0, "a": 1, "b": 2, "spleen": 3})).problems
    assert (problem.severity, problem.kind) == ("warning", "unused label")
    assert "spleen" in problem.what


def test_subjects_that_cross_splits_are_errors_even_when_one_split_is_asked_for(tmp_path: Path) -> None:
    trees.pictures(tmp_path, {"p": 1, "q": 1})
    rows = [
        {"image": f"i/{name}_0.png", "label": f"l/{name}_0.png", "subject": "one", "split": split}
        for name, split in (("p", "train"), ("q", "test"))
    ]
    trees.manifest(tmp_path, rows)
    assert kinds(check(tmp_path)) == [("error", "subject crosses splits")]
    assert kinds(check(tmp_path, split="test")) == [("error", "subject crosses splits")]


def test_the_same_pixels_in_two_splits_are_a_leak_whatever_the_file(tmp_path: Path) -> None:
    trees.png(tmp_path / "i" / "a.png", trees.grey(0))
    trees.png(tmp_path / "i" / "b.bmp", trees.grey(0))
    trees.png(tmp_path / "l" / "a.png", trees.square())
    rows = [{"image": f"i/{name}", "label": "l/a.png", "subject": name} for name in ("a.png", "b.bmp")]
    trees.manifest(tmp_path, rows)
    assert kinds(check(tmp_path)) == [("warning", "copy")]
    trees.manifest(tmp_path, [{**row, "split": split} for row, split in zip(rows, ("train", "test"), strict=True)])
    assert kinds(check(tmp_path)) == [("error", "leak")]


def test_rows_of_a_manifest_are_checked(tmp_path: Path) -> None:
    trees.two_folders(tmp_path, ("a", "b"))
    row = {"image": "images/a.png", "label": "labels/a.png", "scribbles": ""}
    trees.png(tmp_path / "small.png", trees.square((3, 3)))
    rows = [
        row,
        row,
        {**row, "label": ""},
        {**row, "image": "images/b.png", "label": "labels/b.png", "scribbles": "small.png"},
        {**row, "image": "gone.png"},
        {**row, "label": "images/a.png"},
    ]
    trees.manifest(tmp_path, rows)
    assert sorted(kind for severity, kind in kinds(check(tmp_path)) if severity == "error") == [
        "duplicate",
        "label",
        "missing image",
        "missing label",
        "scribbles",
    ]


def test_names_that_look_like_slices_of_a_patient_are_pointed_out(tmp_path: Path) -> None:
    trees.two_folders(tmp_path, ("pat01_slice1", "pat01_slice2", "pat02_slice1", "pat02_slice2"))
    (problem,) = check(tmp_path).problems
    assert "--subject-pattern" in problem.remedy
    assert check(tmp_path, subject_pattern="(.+)_").problems == ()


def test_numbered_names_alone_say_nothing_about_subjects(tmp_path: Path) -> None:
    trees.two_folders(tmp_path, ("train_10", "train_11", "test_10", "test_11"))
    assert check(tmp_path).problems == ()


def test_progress_counts_cases(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    check(trees.two_folders(tmp_path), progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_rows_of_a_manifest_may_declare_different_regions(tmp_path: Path) -> None:
    for name in ("a", "b"):
        trees.png(tmp_path / f"{name}.png", trees.grey(ord(name)))
        trees.png(tmp_path / f"{name}_label.png", trees.square() * (1 + (name == "b")))
    regions = {"a": "liver=1|spleen=3", "b": "liver=2"}
    trees.manifest(tmp_path, [{"image": f"{n}.png", "label": f"{n}_label.png", "regions": regions[n]} for n in regions])
    assert [(problem.kind, problem.what) for problem in check(tmp_path).problems] == [
        ("unused label", "no label holds spleen")
    ]
