"""Whatever is wrong, the user reads one sentence that says what to do, and finds nothing half-written."""

import gzip
import json
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

from command_line import Answer, Run

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("weights")]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.zeros((40, 50), dtype=np.uint8)
    pixels[10:30, 15:35] = 200
    Picture.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def _refused(answer: Answer, *words: str, status: int = 2) -> None:
    assert answer.status == status, answer.err
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err
    assert not list(Path.cwd().glob("*out*")), "something was written"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (["--box", 30, 10, 15, 25], ["inverted", "x_min y_min x_max y_max"]),
        (["--box", 60, 10, 70, 20], ["outside the image", "columns 0..49"]),
        (["--box", "nan", 1, 2, 3], ["not finite"]),
        (["--box", 1, 1, "inf", 3], ["not finite"]),
        (["--point", 50, 20], ["outside the image", "column row"]),
        (["--point", "nan", 20], ["not finite"]),
        (["--point", "here", "there"], ["--point X Y"]),
        (["--box", 15, 10, 34, 29, "--slice", 3], ["picture, not a volume"]),
        (["--box", 15, 10, 34, 29, "--z", 3, 4], ["picture, not a volume"]),
        (["--box", 15, 10, 34, 29, "--axis", "y"], ["one slice"]),
        (["--box", 15, 10, 34, 29, "--model", "lite-medsan"], ["did you mean 'lite-medsam'"]),
        (["--box", 15, 10, 34, 29, "--window", "brian"], ["brain"]),
        (["--box", 15, 10, 34, 29, "--modality", "CTT"], ["CT"]),
        (["--box", 15, 10, 34, 29, "--device", "gpu"], ["auto, cpu, cuda"]),
        (["--box", 15, 10, 34, 29, "--overlap", "all"], ["last, first, score"]),
        (["--box", 15, 10, 34, 29, "--weights", "none.pth"], ["none.pth"]),
        (["--scribble", "none.png"], ["none.png"]),
        (["--prompts", "none.json"], ["none.json"]),
        ([], ["nothing to segment"]),
    ],
)
def test_a_wrong_prompt_or_option_is_explained(
    palpate: Run, picture: Path, prompt: list[object], words: list[str]
) -> None:
    answer = palpate("predict", picture, *prompt, "-o", "out.png")
    status = 1 if "--model" in prompt or "--weights" in prompt else 2
    _refused(answer, *words, status=status)


def test_an_error_is_json_too_when_json_is_asked_for(palpate: Run, picture: Path) -> None:
    answer = palpate("predict", picture, "--box", 30, 10, 15, 25, "--json")
    assert answer.json["error"]["type"] == "PromptError"


def test_a_wrong_field_of_a_prompts_file_is_named_with_its_place(palpate: Run, picture: Path) -> None:
    objects = [{"box": [1, 2, 3, 4]}, {"box": [1, 2, "three", 4]}]
    Path("prompts.json").write_text(json.dumps({"objects": objects}), encoding="utf-8")
    _refused(palpate("predict", picture, "--prompts", "prompts.json", "-o", "out.png"), "objects[1].box[2]", "three")


def test_an_output_that_exists_is_kept(palpate: Run, picture: Path) -> None:
    Path("mine.png").write_bytes(b"precious")
    answer = palpate("predict", picture, "--box", 15, 10, 34, 29, "-o", "mine.png")
    assert answer.status == 2
    assert "--overwrite" in answer.err
    assert Path("mine.png").read_bytes() == b"precious"
    assert palpate("predict", picture, "--box", 15, 10, 34, 29, "-o", "mine.png", "--overwrite").status == 0
    assert Path("mine.png").read_bytes() != b"precious"


def test_a_preview_that_exists_stops_the_work_before_it_starts(palpate: Run, picture: Path) -> None:
    Path("look.png").write_bytes(b"precious")
    _refused(palpate("predict", picture, "--box", 15, 10, 34, 29, "-o", "out.png", "--preview", "look.png"), "look.png")


@pytest.mark.parametrize("name", ["out.bmp", "out", "nowhere/out.png", "."])
def test_an_output_that_cannot_be_is_refused_first(palpate: Run, picture: Path, name: str) -> None:
    _refused(palpate("predict", picture, "--box", 15, 10, 34, 29, "-o", name))


def test_a_result_that_the_output_cannot_hold_is_refused_first(palpate: Run, picture: Path, ct_volume: Path) -> None:
    _refused(palpate("predict", picture, "--box", 15, 10, 34, 29, "-o", "out.dcm"), "not DICOM")
    _refused(palpate("predict", picture, "--box", 15, 10, 34, 29, "-o", "out.rtstruct.dcm"), "an RTSTRUCT refers")
    box = ("--box", 24, 20, 56, 48, "--slice", 7)
    _refused(palpate("predict", ct_volume, *box, "--z", 3, 11, "-o", "out.png"), "one slice")
    _refused(palpate("predict", ct_volume, *box, "--until-end", "-o", "out.png"), "one slice")


def test_the_image_itself_is_never_overwritten(palpate: Run, picture: Path, ct_slice: Path) -> None:
    box = ("--box", 15, 10, 34, 29, "--overwrite")
    before = picture.read_bytes()
    _refused(palpate("predict", picture, *box, "-o", picture), "the image itself")
    _refused(palpate("predict", picture, *box, "--preview", picture), "the image itself")
    assert picture.read_bytes() == before
    series = Path("series")
    series.mkdir()
    (series / "1.dcm").write_bytes(ct_slice.read_bytes())
    _refused(palpate("predict", series, *box, "-o", "series/1.dcm"), "the image itself")
    assert (series / "1.dcm").read_bytes() == ct_slice.read_bytes()


def test_mask_and_preview_in_one_file_are_refused(palpate: Run, picture: Path) -> None:
    box = ("--box", 15, 10, 34, 29, "--overwrite")
    _refused(palpate("predict", picture, *box, "-o", "out.png", "--preview", "./out.png"), "different names")


def test_options_that_the_prompts_would_ignore_are_refused(palpate: Run, picture: Path) -> None:
    Path("prompts.json").write_text(json.dumps({"objects": [{"box": [15, 10, 34, 29]}]}), encoding="utf-8")
    _refused(palpate("predict", picture, "--prompts", "prompts.json", "--name", "organ", "-o", "out.png"), "--name")
    np.savez("2D.npz", imgs=np.asarray(Picture.open(picture)), boxes=np.array([[15, 10, 34, 29]]))
    for option in (("--name", "organ"), ("--slice", 0), ("--z", 0, 0)):
        _refused(palpate("predict", "2D.npz", *option, "-o", "out.png"), "leave --slice, --z and --name out")


def _nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def test_a_slice_out_of_range_is_refused_with_the_range(palpate: Run, tmp_path: Path) -> None:
    volume = _nifti(tmp_path / "v.nii", np.random.default_rng(0).random((20, 20, 6), dtype=np.float32))
    box = ("--box", 2, 2, 9, 9)
    _refused(palpate("predict", volume, *box, "--slice", 6, "-o", "out.nii"), "slices 0..5")
    _refused(palpate("predict", volume, *box, "--slice", 2, "--z", 1, 9, "-o", "out.nii"), "slices 0..5")
    _refused(palpate("predict", volume, *box, "--slice", 2, "--z", 4, 1, "-o", "out.nii"), "inverted")
    _refused(palpate("predict", volume, *box, "-o", "out.nii"), "--slice")


def test_pixels_that_show_nothing_are_refused(palpate: Run, tmp_path: Path) -> None:
    flat = _nifti(tmp_path / "flat.nii", np.full((9, 9, 3), 7, dtype=np.int16))
    _refused(palpate("predict", flat, "--box", 1, 1, 3, 3, "--slice", 1, "-o", "out.nii"), "constant")
    holed = np.ones((9, 9, 3), dtype=np.float32)
    holed[0, 0, 0] = np.nan
    _refused(
        palpate("predict", _nifti(tmp_path / "nan.nii", holed), "--box", 1, 1, 3, 3, "--slice", 1, "-o", "out.nii"),
        "NaN or infinite",
    )


def test_a_truncated_nifti_is_refused(palpate: Run, ct_volume: Path) -> None:
    whole = ct_volume.read_bytes()
    Path("cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    _refused(palpate("predict", "cut.nii.gz", "--box", 1, 1, 3, 3, "--slice", 1, "-o", "out.nii"), "cut.nii.gz")


def test_a_header_that_claims_the_impossible_is_refused(palpate: Run) -> None:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 20000, 20000, 20000, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 16, 32)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    Path("bomb.nii").write_bytes(bytes(header))
    Path("bomb.nii.gz").write_bytes(gzip.compress(bytes(header)))
    for name in ("bomb.nii", "bomb.nii.gz"):
        _refused(palpate("info", name), name)


def test_what_is_no_image_is_refused(palpate: Run) -> None:
    Path("notes.txt").write_text("not an image", encoding="utf-8")
    _refused(palpate("info", "notes.txt"), "known:")
    _refused(palpate("info", "missing.nii.gz"), "no file or folder")
    np.savez("objects.npz", imgs=np.array([{"run": "me"}], dtype=object))
    _refused(palpate("info", "objects.npz"), "objects.npz")


def test_missing_weights_name_the_command_that_gets_them(
    palpate: Run, picture: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "empty"))
    answer = palpate("predict", picture, "--box", 15, 10, 34, 29, "-o", "out.png")
    _refused(answer, "palpate models get lite-medsam", status=1)


def test_damaged_weights_name_the_command_that_mends_them(
    palpate: Run, picture: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from palpate.models.catalogue import stored

    whole = stored("lite-medsam").read_bytes()
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "damaged"))
    stored("lite-medsam").parent.mkdir(parents=True)
    stored("lite-medsam").write_bytes(whole[:1_000_000])
    answer = palpate("predict", picture, "--box", 15, 10, 34, 29, "-o", "out.png")
    _refused(answer, "cut short", "palpate models get lite-medsam", status=1)
