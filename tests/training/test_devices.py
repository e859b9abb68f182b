"""How several processes end: with a result, an error, an interrupt, or the first process."""

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
import shared_work
from torch.multiprocessing.spawn import ProcessRaisedException

from palpate import errors
from palpate.errors import DatasetError, OutputError, PalpateError, WeightsError
from palpate.models.cards import AdapterCard, LearnedCard, Trained
from palpate.models.promptable import LearnedClass
from palpate.training.devices import from_json, launched, tell, to_json, told
from palpate.training.finetune import Finetuned
from palpate.training.learn_prompts import LearnedFrom

CLASSES = (LearnedClass("liver", 1), LearnedClass("spleen", 3))
TRAINED = Trained(parts=("decoder", "lora"), where=("encoder",))
RESULTS = [
    Finetuned(
        Path("run \udcff"),  # of bytes that are no UTF-8
        Path("run/adapter.safetensors"),
        AdapterCard(
            "discs",
            "tiny",
            "ab12",
            TRAINED,
            ("box", "points"),
            summary="Kreise, größer als 3 Pixel",
            recipe={"optimiser": {"rate": 1e-3, "clip": None}, "prompts": [{"strategy": "standard"}]},
            metrics={"val_dice": {"mean": 0.1 + 0.2}, "best": -math.inf},
        ),
        6,
    ),
    LearnedFrom(
        Path("a.safetensors"),
        LearnedCard("a", "tiny", "ab12", CLASSES, "localiser", 4, TRAINED, 10, metrics={"x": 0.3}),
        20,
    ),
    LearnedFrom(Path("b.safetensors"), LearnedCard("b", "tiny", "ab12", CLASSES, "linear", 8, None, 10), 20),
]


@pytest.mark.parametrize("result", RESULTS, ids=["finetune", "learn", "learn, the base as it was"])
def test_what_training_returns_survives_json(result: Any) -> None:
    assert from_json(to_json(result, type(result)), type(result)) == result


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        to_json({"weights": object()}, dict)


class OfAnotherPackage(DatasetError):
    def __init__(self, case: int, why: str) -> None:
        super().__init__(case, why)

    def __str__(self) -> str:
        return "case {}: {}".format(*self.args)


class TestTelling:
    """What a process leaves in the folder when it ends, and what the first makes of it."""

    @pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
    def test_every_error_comes_back_as_it_was(self, kind: type[PalpateError], tmp_path: Path) -> None:
        message = 'Fall "7", größer als\n3 Pixel: /data/\udcff.png'  # a name of bytes that are no UTF-8
        tell(tmp_path, 1, kind(message))
        found = told(tmp_path)
        assert type(found) is kind
        assert str(found) == message

    def test_so_does_an_interrupt(self, tmp_path: Path) -> None:
        tell(tmp_path, 0, KeyboardInterrupt())
        assert type(told(tmp_path)) is KeyboardInterrupt

    def test_a_class_of_another_package_comes_as_the_nearest_of_ours(self, tmp_path: Path) -> None:
        tell(tmp_path, 0, OfAnotherPackage(7, "cannot be read"))
        found = told(tmp_path)
        assert type(found) is DatasetError
        assert str(found) == "case 7: cannot be read"

    @pytest.mark.parametrize("first", [0, 1])
    def test_the_first_of_several_counts(self, first: int, tmp_path: Path) -> None:
        tell(tmp_path, first, OutputError("the disk is full"))
        tell(tmp_path, 1 - first, KeyboardInterrupt())
        assert type(told(tmp_path)) is OutputError

    def test_nothing_told(self, tmp_path: Path) -> None:
        (tmp_path / "0.begun").touch()
        assert told(tmp_path) is None

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b'{"time": 1.0, "kind": "DatasetErr',
            b"\xff\xfe",
            b"7",
            b'{"time": 1.0, "kind": "SystemExit", "message": "2"}',
            b'{"time": "now", "kind": "DatasetError", "message": ""}',
            pickle.dumps((1.0, DatasetError("case 7"))),
        ],
        ids=["empty", "cut short", "no text", "a number", "no kind of ours", "no time", "pickle"],
    )
    def test_what_is_damaged_is_told_clearly_and_does_not_hide_another(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "0.ended").write_bytes(content)
        with pytest.raises(PalpateError, match="say why is damaged; make room") as raised:
            told(tmp_path)
        assert type(raised.value) is PalpateError
        tell(tmp_path, 1, WeightsError("the weights are gone"))
        assert type(told(tmp_path)) is WeightsError


def in_two(work: Callable[..., Any], folder: Path, returns: type = NoneType) -> Any:
    some = partial(work, folder=folder)
    return launched(some, returns=returns, device="cpu", devices=2, nodes=1, precision="32-true")


@pytest.mark.slow
def test_the_result_comes_back_as_it_is(tmp_path: Path) -> None:
    assert in_two(shared_work.share, tmp_path, shared_work.Shared) == shared_work.Shared(2, tmp_path)


@pytest.mark.slow
def test_an_error_of_the_second_is_raised_here_without_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as raised:
        in_two(shared_work.fail_in_the_second, tmp_path)
    assert str(raised.value) == "case 7 cannot be read:\nsee above"


@pytest.mark.slow
def test_of_a_mistake_of_ours_the_traceback_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException, match=r"(?s)shared_work\.py.*ZeroDivisionError: a mistake of ours"):
        in_two(shared_work.stumble_in_the_second, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("work", [shared_work.interrupt_the_second, shared_work.stop_together])
def test_an_interrupt_of_theirs_is_raised_here(work: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        in_two(work, tmp_path)


@pytest.mark.slow
def test_one_that_was_killed_is_told(tmp_path: Path) -> None:
    with pytest.raises(PalpateError, match=r"SIGKILL.*memory may have run out"):
        in_two(shared_work.die_in_the_second, tmp_path)


@contextmanager
def waiting(folder: Path) -> Generator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A first process whose two others wait, and their process ids; it has a process group, as from a shell."""
    command = [sys.executable, "-W", "ignore", shared_work.__file__, "wait_and_save", str(folder)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        while len(there := list(folder.glob("waiting-*"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        yield process, [int(path.name.split("-")[2]) for path in there]
    finally:
        process.kill()
        process.wait()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("end", [os.kill, os.killpg], ids=["kill", "ctrl-c"])
def test_an_interrupt_here_reaches_each_once_and_waits_for_what_they_save(
    end: Callable[[int, int], None], tmp_path: Path
) -> None:
    with waiting(tmp_path) as (process, others):
        end(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
        assert (tmp_path / "saved-0").exists()
        assert (tmp_path / "saved-1").exists()
        assert not any(map(is_alive, others))


@pytest.mark.slow
def test_they_end_when_the_first_is_killed(tmp_path: Path) -> None:
    with waiting(tmp_path) as (process, others):
        process.kill()
        end = time.monotonic() + 20
        while any(map(is_alive, others)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(is_alive, others))
