"""`palpate data`: what it says, and with which exit status."""

import json
from pathlib import Path

import numpy as np
import pytest

import trees
from palpate.cli import main
from palpate.datasets import Region, open_dataset


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["data", *map(str, arguments)])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_a_sound_dataset_is_summed_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trees.pictures(tmp_path, {"p": 2, "q": 1}, split="train")
    status, out, _ = run(capsys, "check", tmp_path)
    assert status == 0
    assert out.strip() == "3 cases of 2 subjects in 1 dataset (manifest; train 3): 0 errors, 0 warnings"


def test_errors_are_grouped_and_the_status_tells(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trees.two_folders(tmp_path, tuple(f"case{letter}" for letter in "abcdefgh"))
    for path in (tmp_path / "labels").iterdir():
        if path.stem != "casea":
            path.unlink()
    status, out, _ = run(capsys, "check", tmp_path)
    assert status == 1
    assert "error: missing label (7)" in out
    assert "and 2 more; --all shows them" in out
    assert "caseh" in run(capsys, "check", tmp_path, "--all")[1]
    status, out, _ = run(capsys, "check", tmp_path, "--json")
    report = json.loads(out)
    assert (status, report["errors"], report["cases"]) == (1, 7, 1)
    assert report["problems"][0]["remedy"]


def test_warnings_do_not_fail_a_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trees.two_folders(tmp_path, ("a",))
    trees.png(tmp_path / "labels" / "a.png", trees.square() * 0)
    status, out, _ = run(capsys, "check", tmp_path)
    assert status == 0
    assert "warning: empty label (1)" in out


def test_what_is_no_dataset_is_an_error_of_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = run(capsys, "check", tmp_path, "--json")
    assert status == 2
    assert json.loads(out)["error"]["type"] == "DatasetError"
    assert "holds nothing" in err


def test_images_and_labels_may_be_two_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trees.two_folders(tmp_path)
    status, out, _ = run(capsys, "check", tmp_path / "images", "--labels", tmp_path / "labels")
    assert status == 0
    assert "2 cases" in out


def test_a_split_is_written_and_checks_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = tuple(f"p{patient:02}_{number}" for patient in range(10) for number in range(3))
    trees.two_folders(tmp_path, names)
    manifest = tmp_path / "manifest.csv"
    arguments = ("split", tmp_path, "-o", manifest, "--subject-pattern", "(.+)_")
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "train 21 (7 subjects), val 3 (1 subject), test 6 (2 subjects)" in out
    first = manifest.read_text()
    assert run(capsys, "check", tmp_path)[0] == 0
    status, _, err = run(capsys, *arguments)
    assert (status, "--overwrite" in err) == (2, True)
    # The folder is a manifest now; split again, it gives the same, and another seed gives another.
    assert run(capsys, *arguments, "--overwrite")[0] == 0
    assert manifest.read_text() == first
    again = json.loads(run(capsys, *arguments, "--overwrite", "--seed", 1, "--json")[1])
    assert again["datasets"][0]["test"] == {"cases": 6, "subjects": 2}
    assert manifest.read_text() != first
    kept = manifest.read_text()
    assert run(capsys, "split", manifest, "-o", manifest, "--overwrite", "--keep")[0] == 0
    assert manifest.read_text() == kept


def test_a_share_that_nobody_got_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trees.two_folders(tmp_path, ("a", "b"))
    status, out, _ = run(capsys, "split", tmp_path, "-o", tmp_path / "s.csv")
    assert status == 0
    assert "has no case in val" in out


def test_fractions_that_do_not_add_up_write_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trees.two_folders(tmp_path)
    status, _, err = run(capsys, "split", tmp_path, "-o", tmp_path / "s.csv", "--test", 0.5)
    assert (status, "1.3 in all" in err) == (2, True)
    assert not (tmp_path / "s.csv").exists()


def test_a_split_keeps_regions_what_to_ignore_and_spacings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    labels = {"background": 0, "organs": [1, 2], "tumour|old": 2, "ignore": 3}
    root = trees.nnunet(tmp_path, (), labels=labels, regions_class_order=[1, 2], file_ending=".tif", numTraining=3)
    unsure = trees.ORGANS.copy()
    unsure[2] = 3
    for case in "abc":
        trees.tiff(root / "imagesTr" / f"{case}_0000.tif", trees.VOLUME.astype(np.uint16), (3.0, 0.7, 0.5))
        trees.tiff(root / "labelsTr" / f"{case}.tif", unsure, (3.0, 0.7, 0.5))
    (tmp_path / "lists").mkdir()
    manifest = tmp_path / "lists" / "split.csv"
    status, out, _ = run(capsys, "split", root, "-o", manifest, "--train", 1, "--val", 0, "--test", 0)
    assert (status, "note" in out) == (0, False)
    before, after = open_dataset(root), open_dataset(manifest)
    assert len(after) == 3
    for one, other in zip(before, after, strict=True):
        assert other.regions == one.regions == (Region("organs", (1, 2)), Region("tumour|old", (2,)))
        assert other.ignore == one.ignore == 3
        read, again = one.read(), other.read()
        np.testing.assert_array_equal(read.labels, again.labels)
        np.testing.assert_array_equal(read.image.affine, again.image.affine)
        assert again.image.geometry.spacing == (0.5, 0.7, 3.0)
        assert other.objects(again.labels) == one.objects(read.labels)
        assert {path.resolve() for path in other.files()} == {path.resolve() for path in one.files()}
    assert "unexpected" not in run(capsys, "check", manifest)[1]
