"""`palpate distill`: flags and files give one recipe, what comes of it is a checkpoint, and mistakes are told."""

from pathlib import Path

import numpy as np
from PIL import Image

from command_line import Run
from palpate.training.distill import read_about

QUICK = ("--student", "tiny", "--teacher", "tiny", "--epochs", 1, "--steps", 2, "--batch", 2, "--device", "cpu")


def test_a_student_from_flags_is_a_checkpoint_for_predict(palpate: Run, tiny: object, pictures: Path) -> None:
    answer = palpate(
        "distill", "--data", pictures, *QUICK, "-o", "s.safetensors", "--licence", "CC0-1.0", "--flips", "x"
    )
    assert answer.status == 0, answer.err
    assert "10 views, 2 steps of 2 views: about" in answer.err
    assert "tiny, taught by tiny" in answer.out
    assert "--model tiny --weights s.safetensors" in answer.out
    about = read_about(Path("s.safetensors"))
    assert (about["licence"], about["recipe"]["data"]["flips"]) == ("CC0-1.0", ["x"])
    assert about["command"].startswith("palpate distill --data")

    image = next((pictures / "images").iterdir())
    used = palpate(
        *("predict", image, "--model", "tiny", "--weights", "s.safetensors", "--device", "cpu"),
        *("--box", 7, 9, 25, 27, "-o", "mask.png"),
    )
    assert used.status == 0, used.err
    assert np.asarray(Image.open("mask.png")).shape == (40, 56)


def test_a_recipe_and_flags_that_change_it(palpate: Run, tiny: object, pictures: Path) -> None:
    Path("r.toml").write_text(
        f'student = "tiny"\nteacher = "tiny"\nepochs = 7\n[data]\npath = "{pictures}"\n', encoding="utf-8"
    )
    answer = palpate("distill", "r.toml", *QUICK[4:], "--error", "mse", "-o", "s.safetensors", "--json")
    assert answer.status == 0, answer.err
    assert answer.json["steps"] == 2
    assert answer.json["ready"]
    assert answer.json["about"]["recipe"]["error"] == "mse"
    again = palpate("distill", "r.toml", *QUICK[4:], "--error", "l1", "-o", "s.safetensors")
    assert again.status == 2
    assert "--overwrite" in again.err


def test_whether_anything_was_learned_is_told(palpate: Run, tiny: object, pictures: Path) -> None:
    for rate, learned in (("2e-3", True), ("1e-30", False)):
        answer = palpate(
            "distill", "--data", pictures, *QUICK, "--rate", rate, "--steps", 5, "-o", f"{rate}.safetensors"
        )
        assert answer.status == 0, answer.err
        assert "their distance from the teacher's on val" in answer.out
        assert ("train it longer" in answer.out) != learned


def test_both_stages_with_one_command(palpate: Run, tiny: object, pictures: Path) -> None:
    then = "[then]\nepochs = 1\nsteps = 1\nbatch = 2\nprompts = [{ strategy = 'standard' }]\n"
    Path("r.toml").write_text(f'[data]\npath = "{pictures}"\n{then}', encoding="utf-8")
    answer = palpate("distill", "r.toml", *QUICK, "-o", "s.safetensors", "--two-stages")
    assert answer.status == 0, answer.err
    assert "after stage 1" in answer.out
    assert "--model tiny --weights s.safetensors" in answer.out
    about = read_about(Path("s.safetensors"))
    assert about["recipe"]["then"]["steps"] == 1  # the flag leaves the recipe's own section alone
    assert Path("s.run/stage2/adapter.safetensors").is_file()
    again = palpate("distill", "r.toml", *QUICK, "-o", "s.safetensors")
    assert again.status == 0, again.err


def test_mistakes_are_one_sentence_that_tells_the_way_out(palpate: Run, tiny: object, pictures: Path) -> None:
    for arguments, words in (
        (("--data", pictures), "-o FILE.safetensors"),
        (("--data", pictures, "-o", "s.pth"), "-o s.safetensors"),
        (("-o", "s.safetensors", "--student", "tiny"), "--data DATA"),
        ((pictures, "-o", "s.safetensors"), f"--data {pictures}"),
        (("--data", pictures, "-o", "s.safetensors", "--student", "tinny"), "did you mean 'tiny'?"),
        (("--data", pictures, "-o", "s.safetensors", "--error", "l3"), "l1"),
        (("--data", pictures, *QUICK, "-o", "s.safetensors", "--start", "none.pth"), "no file none.pth"),
    ):
        answer = palpate("distill", *arguments)
        assert answer.status in (1, 2), (arguments, answer.err)
        assert words in answer.err, (arguments, answer.err)
        assert "Traceback" not in answer.err
    assert not Path("s.safetensors").exists()
