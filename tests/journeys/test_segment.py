"""A user points at something and gets a mask: the whole way, through the real command line and the real weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

from command_line import Run
from palpate.metrics import dice

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("weights")]

BALL = ("--box", 24, 20, 56, 48, "--slice", 7)  # its widest slice


def _labels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).T  # type: ignore[attr-defined]


def test_a_box_on_a_real_ct_slice_gives_a_mask_a_picture_and_an_account(palpate: Run, ct_slice: Path) -> None:
    answer = palpate(
        "predict", ct_slice, "--box", 48, 42, 71, 61, "-o", "canal.nii.gz", "--preview", "look.png", "--json"
    )
    assert answer.status == 0
    account = answer.json
    assert account["modality"] == "CT"
    assert account["intensity"].startswith("soft-tissue window 40/400")
    assert account["model"] == "lite-medsam"
    assert len(account["weights_hash"]) == 64
    assert account["results"][0]["predicted_iou"] > 0.8
    mask = _labels(Path("canal.nii.gz"))
    assert mask.shape == (128, 128)
    # The canal is soft tissue (about 30 HU) in a ring of bone; its area on this slice is about 300 pixels.
    assert 250 < mask.sum() < 400
    assert mask[51, 60] == 1
    with Picture.open("look.png") as picture:
        assert min(picture.size) > 400


def test_the_same_box_gives_the_same_mask_from_python(palpate: Run, ct_slice: Path) -> None:
    palpate("predict", ct_slice, "--box", 48, 42, 71, 61, "-o", "canal.npz")
    import palpate as toolkit

    session = toolkit.load("lite-medsam")
    session.set_image(toolkit.images.read(ct_slice))
    mask = session.predict(toolkit.Box(48, 42, 71, 61)).labels
    np.testing.assert_array_equal(np.load("canal.npz")["segs"], mask)


def test_one_slice_of_a_volume_fills_that_slice_only(palpate: Run, ct_volume: Path) -> None:
    assert palpate("predict", ct_volume, *BALL, "-o", "ball_slice.nii.gz").status == 0
    mask, truth = _labels(Path("ball_slice.nii.gz")), _labels(Path("ball.nii.gz")) > 0
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [7]
    assert dice(mask[7] > 0, truth[7]) > 0.95


def test_a_box_on_one_slice_is_carried_to_both_ends(palpate: Run, ct_volume: Path) -> None:
    answer = palpate("predict", ct_volume, *BALL, "--z", 3, 11, "-o", "all.nii.gz", "--preview", "p.png", "--json")
    assert answer.json["results"][0]["slices"] == [3, 11]
    mask, truth = _labels(Path("all.nii.gz")) > 0, _labels(Path("ball.nii.gz")) > 0
    assert dice(mask, truth) > 0.9
    source, written = nibabel.load(ct_volume), nibabel.load("all.nii.gz")
    np.testing.assert_array_equal(source.affine, written.affine)  # type: ignore[attr-defined]


def test_until_end_stops_near_where_the_object_stops(palpate: Run, ct_volume: Path) -> None:
    answer = palpate("predict", ct_volume, *BALL, "--until-end", "-o", "found.nii.gz", "--json")
    first, last = answer.json["results"][0]["slices"]
    # The ball spans slices 3 to 11 of 0 to 14; the rule is a guess, and need not be exact.
    assert abs(first - 3) <= 2
    assert abs(last - 11) <= 2


def test_a_click_alone_finds_the_ball(palpate: Run, ct_volume: Path) -> None:
    answer = palpate("predict", ct_volume, "--slice", 7, "--point", 40, 34, "-o", "clicked.nii.gz", "--json")
    assert any("answered by the box that fits it best" in note for note in answer.json["notes"])
    found, truth = _labels(Path("clicked.nii.gz"))[7] > 0, _labels(Path("ball.nii.gz"))[7] > 0
    assert dice(found, truth) > 0.9


def test_what_json_prints_makes_the_same_mask_again(palpate: Run, ct_volume: Path) -> None:
    first = palpate("predict", ct_volume, *BALL, "--z", 5, 9, "--point", 40, 34, "-o", "one.nii.gz", "--json")
    Path("again.json").write_text(first.out, encoding="utf-8")
    assert palpate("predict", ct_volume, "--prompts", "again.json", "-o", "two.nii.gz").status == 0
    np.testing.assert_array_equal(_labels(Path("one.nii.gz")), _labels(Path("two.nii.gz")))


def test_several_objects_come_as_named_labels_in_one_file(palpate: Run, ct_volume: Path) -> None:
    objects = [
        {"label": 3, "name": "body", "box": [5, 4, 91, 68], "slice": 7},
        {"label": 7, "name": "ball", "box": [24, 20, 56, 48], "slice": 7},
    ]
    Path("prompts.json").write_text(json.dumps({"objects": objects}), encoding="utf-8")
    assert palpate("predict", ct_volume, "--prompts", "prompts.json", "-o", "both.seg.nrrd").status == 0
    import nrrd

    _, header = nrrd.read("both.seg.nrrd")
    named = {header[f"Segment{i}_Name"]: int(header[f"Segment{i}_LabelValue"]) for i in (0, 1)}
    assert named == {"body": 3, "ball": 7}


def test_scribbles_and_first_guesses_are_taken_from_pictures(palpate: Run, ct_volume: Path) -> None:
    stroke = np.zeros((72, 96), dtype=np.uint8)
    stroke[34, 30:50] = 1
    Picture.fromarray(stroke).save("stroke.png")
    answer = palpate("predict", ct_volume, *BALL, "--scribble", "stroke.png", "-o", "s.nii.gz", "--json")
    assert answer.status == 0
    assert any("was trained with box prompts only" in note for note in answer.json["notes"])
    guess = (_labels(Path("ball.nii.gz"))[7] * 255).astype(np.uint8)
    Picture.fromarray(guess).save("guess.png")
    assert palpate("predict", ct_volume, *BALL, "--mask", "guess.png", "-o", "m.nii.gz").status == 0


def test_boxes_in_a_challenge_file_are_used(palpate: Run, ct_volume: Path) -> None:
    volume = _labels(ct_volume)
    windowed = (np.clip(volume, -160, 240) + 160.0) / 400 * 255
    boxes = np.array([[24, 20, 3, 56, 48, 11]])
    np.savez_compressed("3D_CT_ball.npz", imgs=windowed.astype(np.uint8), spacing=[0.8, 0.8, 3.0], boxes=boxes)
    assert palpate("predict", "3D_CT_ball.npz", "-o", "segs.npz").status == 0
    mask = np.load("segs.npz")["segs"]
    assert mask.dtype == np.uint8
    assert dice(mask == 1, _labels(Path("ball.nii.gz")) > 0) > 0.9


def test_dicom_in_gives_dicom_seg_out(palpate: Run, ct_slice: Path) -> None:
    box = ("--box", 48, 42, 71, 61)
    assert palpate("predict", ct_slice, *box, "--name", "spinal canal", "-o", "canal.dcm").status == 0
    import highdicom

    seg = highdicom.seg.segread("canal.dcm")
    assert list(seg.segment_numbers) == [1]
    assert "palpate" in seg.get_segment_description(1).SegmentAlgorithmName
    palpate("predict", ct_slice, *box, "-o", "canal.png")
    # By frame, because an image of one slice has no spacing that a volume could be made of.
    with Picture.open("canal.png") as picture:
        np.testing.assert_array_equal(np.squeeze(seg.pixel_array) > 0, np.asarray(picture) > 0)


def test_dicom_in_gives_contours_out(palpate: Run, ct_slice: Path) -> None:
    from contours import structures
    from palpate.images import read

    box = ("--box", 48, 42, 71, 61)
    assert palpate("predict", ct_slice, *box, "--name", "spinal canal", "-o", "canal.rtstruct.dcm").status == 0
    palpate("predict", ct_slice, *box, "-o", "canal.png")
    with Picture.open("canal.png") as picture:
        drawn = np.asarray(picture) > 0
    np.testing.assert_array_equal(structures(Path("canal.rtstruct.dcm"), read(ct_slice))["spinal canal"], drawn)


def test_the_answer_is_the_same_along_every_axis(palpate: Run, ct_volume: Path) -> None:
    import palpate as toolkit

    image = toolkit.images.read(ct_volume)
    session = toolkit.load("lite-medsam")
    session.set_image(image)
    upright = session.predict(toolkit.Box(24, 20, 56, 48, z=7)).mask
    # The same voxels stored with y first: cut along y, the slice and so the mask must be the same.
    turned = toolkit.Image(
        np.ascontiguousarray(np.swapaxes(image.array, 0, 1)), image.affine[:, [0, 2, 1, 3]], image.modality
    )
    session.set_image(turned, axis="y", modality="CT")
    again = session.predict(toolkit.Box(24, 20, 56, 48, z=7)).mask
    np.testing.assert_array_equal(np.swapaxes(again, 0, 1), upright)


def _loaded_libraries(pid: int) -> str:
    maps = Path(f"/proc/{pid}/maps")
    return maps.read_text(encoding="utf-8") if maps.exists() else "libtorch"  # elsewhere, the five seconds must do


def test_an_interrupt_in_the_middle_of_a_volume_leaves_nothing(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(-100, 200, (400, 64, 64), dtype=np.int16)
    nibabel.Nifti1Image(volume.T, np.eye(4)).to_filename(tmp_path / "long.nii")
    command = [
        sys.executable,
        "-m",
        "palpate",
        "predict",
        "long.nii",
        "--box",
        "8",
        "8",
        "50",
        "50",
        "--z",
        "0",
        "399",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*command, "-o", "mask.nii.gz"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while "libtorch" not in _loaded_libraries(process.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(15)  # the model loads in two, on a machine with other work in ten; 400 slices on a CPU take minutes
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    # Python dies of the signal itself, which a shell calls 130 as well, if it came while text was being executed, as
    # dataclasses and named tuples do when they are imported.
    assert process.returncode in (130, -signal.SIGINT), said.decode()
    assert b"nothing was written" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.nii"]


def test_the_readme_python_lines_run(palpate: Run, ct_volume: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    lines = readme.split("```python")[1].split("```")[0]
    # The README's liver is this phantom's ball.
    lines = lines.replace("92, 110, 301, 330, z=41", "24, 20, 56, 48, z=7").replace("(20, 63)", "(6, 8)")
    exec(compile(lines, "README.md", "exec"), {})
    assert _labels(Path("liver.nii.gz")).any()
    assert Path("liver.png").is_file()
