"""A user teaches a model with images of their own: the real command line and weights, from pictures to better masks."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image as Picture

from command_line import Run
from phantoms import disk, picture

pytestmark = [pytest.mark.weights, pytest.mark.slow, pytest.mark.usefixtures("weights")]

QUICK = ("--epochs", "2", "--steps", "3", "--batch", "2", "--threads", "1", "--device", "cpu")
SLOPPY = ("--prompts", "jitter@0-0.25:2,standard:1", "--rate", "3e-4")


def _pictures(folder: Path, *, count: int, seed: int) -> Path:
    """A folder with images/ and labels/: pictures of a bright disk, and of a smaller grey one beside it."""
    rng = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        large = disk((60, 80), centre=(25 + 3 * number, 25 + seed), radius=12)
        small = disk((60, 80), centre=(66, 42 + seed), radius=5)
        image = picture((large, 190), (small, 150), background=40) + rng.integers(0, 25, (60, 80)).astype(np.uint8)
        Picture.fromarray(image).save(folder / f"images/p{number}.png")
        Picture.fromarray(large.astype(np.uint8) + 2 * small.astype(np.uint8)).save(folder / f"labels/p{number}.png")
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """To learn from."""
    return _pictures(tmp_path / "mine", count=6, seed=3)


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """To be judged by: other noise, other places."""
    return _pictures(tmp_path / "unseen", count=4, seed=1)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def _stopped(command: list[str], folder: Path, *, at: str, by: signal.Signals) -> tuple[int, str]:
    """Start a run and send it a signal when it says a line that begins with `at`: its exit status, and what it said."""
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    said = ""
    try:
        assert process.stderr is not None
        while not said.splitlines()[-1:] or not said.splitlines()[-1].startswith(at):
            line = process.stderr.readline()
            assert line, f"the run ended before it could be stopped: {said}"
            said += line
        os.kill(process.pid, by)
        said += process.communicate(timeout=120)[1]
    finally:
        process.kill()
    return process.returncode, said


def test_own_images_make_a_better_model_whatever_happens_on_the_way(
    palpate: Run, mine: Path, unseen: Path, tmp_path: Path
) -> None:
    cache = ("--cache", "embeddings")
    embedded = palpate("embed", mine, *cache, "--workers", 1, "--device", "cpu")
    assert embedded.out.startswith("6 encoded, 0 were there"), embedded.err
    kept = {path: path.stat().st_ino for path in Path("embeddings").rglob("*.safetensors")}

    asked = ("finetune", "--data", str(mine), *cache, *QUICK, *SLOPPY, "--name", "mine", "-o")
    taught = palpate(*asked, "run")
    assert taught.status == 0, taught.err
    assert {path: path.stat().st_ino for path in Path("embeddings").rglob("*.safetensors")} == kept
    on_val = [float(text) for text in re.findall(r"^epoch \d: Dice (\S+)", taught.err, flags=re.MULTILINE)]
    assert len(on_val) == 3
    assert max(on_val) > on_val[0] + 0.02

    command = [sys.executable, "-m", "palpate", *asked, "killed"]
    status, said = _stopped(command, tmp_path, at="epoch 1", by=signal.SIGINT)
    assert status == 130
    assert said.endswith("interrupted; the same command goes on where it was\n")
    status, said = _stopped(command, tmp_path, at="going on after step", by=signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not Path("killed/adapter.safetensors").exists()
    resumed = palpate(*asked, "killed")
    assert resumed.status == 0, resumed.err
    assert "going on after step" in resumed.err
    straight, interrupted = _tensors(Path("run/adapter.safetensors")), _tensors(Path("killed/adapter.safetensors"))
    assert straight.keys() == interrupted.keys()
    assert all(torch.equal(straight[name], interrupted[name]) for name in straight)

    box = ("predict", mine / "images/p0.png", "--box", 13, 16, 37, 40, "-o")
    assert palpate(*box, "adapted.npz", "--adapter", "run/adapter.safetensors").status == 0
    assert palpate("models", "merge", "run/adapter.safetensors", "-o", "whole.safetensors").status == 0
    assert palpate(*box, "merged.npz", "--weights", "whole.safetensors").status == 0
    adapted, merged = (np.load(name)["segs"] for name in ("adapted.npz", "merged.npz"))
    assert adapted.any()
    assert np.array_equal(adapted, merged)

    measure = (
        "evaluate",
        unseen,
        "--protocol",
        "shrink",
        "--severity",
        0.1,
        "--worst",
        0,
        "--workers",
        1,
        *cache,
        "--json",
    )
    dice: dict[str, float] = {}
    for name, chosen in (("released", ()), ("taught", ("--adapter", "run/adapter.safetensors"))):
        answer = palpate(*measure, *chosen, "-o", f"out-{name}")
        assert answer.status == 0, answer.err
        dice[name] = _mean_dice(Path(f"out-{name}/results.csv"))
    assert dice["taught"] > dice["released"] + 0.02


def _mean_dice(results: Path) -> float:
    with results.open(encoding="utf-8", newline="") as file:
        return float(np.mean([float(row["dice"]) for row in csv.DictReader(file)]))
