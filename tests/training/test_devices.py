"""How several processes end: with a result, an error, an interrupt, or the first process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import shared_work

from palpate.errors import DatasetError, PalpateError
from palpate.training.devices import launched

pytestmark = pytest.mark.slow


def in_two(work: Callable[..., Any], folder: Path) -> Any:
    return launched(partial(work, folder=folder), device="cpu", devices=2, nodes=1, precision="32-true")


def test_the_result_comes_back_as_it_is(tmp_path: Path) -> None:
    assert in_two(shared_work.share, tmp_path) == (2, tmp_path)


def test_an_error_is_the_one_that_was_raised_last_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as raised:
        in_two(shared_work.fail_in_the_second, tmp_path)
    assert str(raised.value) == "case 7 cannot be read:\nsee above"


@pytest.mark.parametrize("work", [shared_work.interrupt_the_second, shared_work.stop_together])
def test_an_interrupt_of_theirs_is_raised_here(work: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        in_two(work, tmp_path)


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
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


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


def test_they_end_when_the_first_is_killed(tmp_path: Path) -> None:
    with waiting(tmp_path) as (process, others):
        process.kill()
        end = time.monotonic() + 20
        while any(map(is_alive, others)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(is_alive, others))
