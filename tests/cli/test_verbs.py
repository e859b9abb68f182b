"""The words around the work: help, info, models, points."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from palpate.cli import joined_points, main
from palpate.cli.predict import parse_point
from palpate.errors import PromptError


def _said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert not stop.value.code
    return capsys.readouterr().out


def test_help_loads_neither_torch_nor_numpy() -> None:
    script = (
        "import sys\nsys.argv = ['palpate', '--help']\n"
        "from palpate.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'nibabel') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"
    assert "predict" in answer.stdout


def test_info_states_what_would_be_done(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    volume = np.full((20, 30, 5), -1000, dtype=np.int16)
    volume[5:15, 5:15] = 60
    nibabel.Nifti1Image(volume, np.diag([-0.5, -0.5, 4.0, 1.0])).to_filename(tmp_path / "ct.nii.gz")
    text = _said(capsys, "info", tmp_path / "ct.nii.gz")
    for words in (
        "5 x 30 x 20 (z y x)",
        "0.5 x 0.5 x 4 mm",
        "LPS",
        "-1000 to 60",
        "CT (guessed)",
        "soft-tissue",
        "axial",
    ):
        assert words in text
    facts = json.loads(_said(capsys, "info", tmp_path / "ct.nii.gz", "--json"))
    assert facts["slicing"] == {"axis": "z", "plane": "axial", "slices": 5, "rows": 30, "columns": 20}
    sagittal = json.loads(_said(capsys, "info", tmp_path / "ct.nii.gz", "--json", "--axis", "sagittal"))
    assert sagittal["slicing"] == {"axis": "x", "plane": "sagittal", "slices": 20, "rows": 5, "columns": 30}


def test_models_says_how_to_get_weights_that_are_not_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path))
    text = _said(capsys, "models")
    for words in ("lite-medsam", "Apache-2.0", "2304.12306", "palpate models get", "mobile-sam", "641 M"):
        assert words in text
    entries = {entry["name"]: entry for entry in json.loads(_said(capsys, "models", "--json"))["models"]}
    assert list(entries)[:2] == ["lite-medsam", "lite-medsam-robust"]
    for name, entry in entries.items():
        assert entry["weights"] is None
        base = "lite-medsam" if name == "lite-medsam-robust" else name  # which is made of the same file
        assert entry["get"] == f"palpate models get {base}"
    assert entries["medsam"]["prompts_trained"] == ["box"]
    assert entries["sam-vit-b"]["prompts_trained"] == ["box", "points"]
    assert entries["sam-vit-b"]["file"] == "sam_vit_b_01ec64.pth"
    assert entries["lite-medsam-robust"]["file"] == "lite_medsam.pth"


@pytest.mark.parametrize(
    ("text", "point"),
    [("120 80", (120, 80, 1)), ("120 80:-", (120, 80, 0)), ("1.5 -0.25:+", (1.5, -0.25, 1)), ("3,4:-", (3, 4, 0))],
)
def test_a_point_is_read(text: str, point: tuple[float, float, int]) -> None:
    assert parse_point(text) == point


@pytest.mark.parametrize("text", ["", "12", "12 ", "1 2 3", "x y", "1 2:?"])
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="write --point X Y"):
        parse_point(text)


def test_points_of_two_words_are_joined_and_the_rest_left_alone() -> None:
    words = ["predict", "--point", "1", "2:-", "--box", "1", "2", "3", "4", "--point", "5 6", "-o", "m.png", "--point"]
    joined = ["predict", "--point", "1 2:-", "--box", "1", "2", "3", "4", "--point", "5 6", "-o", "m.png", "--point"]
    assert joined_points(words) == joined


@pytest.mark.parametrize("point", ["120,80", "120", "120 80:-"])
def test_a_point_takes_no_option_for_its_second_number(point: str) -> None:
    assert joined_points(["--point", point, "-o", "m.png"]) == ["--point", point, "-o", "m.png"]


def test_a_point_may_have_negative_numbers() -> None:
    assert joined_points(["--point", "-3", "-.5"]) == ["--point", "-3 -.5"]


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert _said(capsys, "--version").startswith("palpate 0.")
