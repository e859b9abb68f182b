import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from palpate.errors import OutputError
from palpate.training import checkpoint


def state(number: int) -> dict[str, object]:
    return {"text": str(number), "weights": {"a": torch.full((50, 20), float(number))}}


def number_of(folder: Path) -> int | None:
    kept = checkpoint.latest(folder)
    return None if kept is None else int(kept["text"])


def test_the_newest_comes_back_whole(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state(step))
    kept = checkpoint.latest(tmp_path)
    assert kept is not None
    assert kept["text"] == "3"
    assert torch.equal(kept["weights"]["a"], torch.full((50, 20), 3.0))


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 100):
        checkpoint.save(tmp_path, step, state(step))
    assert sorted(path.name[:13] for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_another_one_of_the_same_step_takes_its_place(tmp_path: Path) -> None:
    for step, number in ((1, 1), (2, 2), (2, 3)):
        checkpoint.save(tmp_path, step, state(number))
    assert number_of(tmp_path) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere") is None
    assert not checkpoint.exist(tmp_path / "nowhere")


def test_a_damaged_one_is_passed_over_wherever_the_damage_is(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1))
    path = checkpoint.save(tmp_path, 2, state(2))
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert number_of(tmp_path) == 1
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        assert number_of(tmp_path) == 1
    path.write_bytes(content)
    assert number_of(tmp_path) == 2


def test_clearing_leaves_nothing_of_ours(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 1, state(1))
    (folder / ".step-00000002.part").write_bytes(b"half")
    checkpoint.clear(folder)
    assert not folder.exists()


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1))
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write a checkpoint"):
        checkpoint.save(tmp_path / "file", 1, state(1))


SAVING_FOR_EVER = """
import sys
from pathlib import Path
import torch
from palpate.training import checkpoint
for step in range(1, 10**6):
    checkpoint.save(Path(sys.argv[1]), step, {"text": str(step), "weights": {"a": torch.full((300, 300), float(step))}})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_9_leaves_a_sound_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVING_FOR_EVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        last = int(process.stdout.read().split()[-1])
    kept = checkpoint.latest(tmp_path)
    assert kept is not None
    step = int(kept["text"])
    assert step in (last, last + 1)
    assert bool((kept["weights"]["a"] == step).all())
    checkpoint.save(tmp_path, step + 1, state(step + 1))
    assert not list(tmp_path.glob(".*"))
