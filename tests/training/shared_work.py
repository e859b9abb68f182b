"""What several processes do in `test_devices.py`; run as a script, `shared_work.py WORK FOLDER` does it in two.

A process that waits says so by a file called waiting-RANK-PID, and one that was interrupted in time leaves saved-RANK.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from palpate.errors import DatasetError, SettingError
from palpate.training.devices import launched
from palpate.training.interrupts import Interrupts


@dataclass(frozen=True)
class Shared:
    processes: int
    folder: Path
    said: str = "more than fits into a pipe " * 10_000


def share(fabric: Any, *, folder: Path) -> Shared:
    return Shared(fabric.world_size, folder)


def fail_in_the_second(fabric: Any, *, folder: Path) -> None:
    if fabric.global_rank == 1:
        try:
            raise SettingError("a window that does not exist")
        except SettingError as error:
            raise DatasetError("case 7 cannot be read:\nsee above") from error
    fabric.barrier()


def stumble_in_the_second(fabric: Any, *, folder: Path) -> None:
    if fabric.global_rank == 1:
        raise ZeroDivisionError("a mistake of ours")
    fabric.barrier()


def interrupt_the_second(fabric: Any, *, folder: Path) -> None:
    if fabric.global_rank == 1:
        raise KeyboardInterrupt
    fabric.barrier()


def stop_together(fabric: Any, *, folder: Path) -> None:
    """As training does after the step in which one of them was interrupted."""
    fabric.barrier()
    raise KeyboardInterrupt


def die_in_the_second(fabric: Any, *, folder: Path) -> None:
    if fabric.global_rank == 1:
        os.kill(os.getpid(), 9)
    fabric.barrier()


def wait_and_save(fabric: Any, *, folder: Path) -> None:
    with Interrupts() as interrupts:
        (folder / f"waiting-{fabric.global_rank}-{os.getpid()}").touch()
        while not interrupts.came:
            time.sleep(0.01)
        time.sleep(0.5 * fabric.global_rank)  # the second has more to save
    (folder / f"saved-{fabric.global_rank}").touch()
    raise KeyboardInterrupt


def main() -> None:
    name, folder = sys.argv[1:]
    work = partial(globals()[name], folder=Path(folder))
    try:
        launched(work, returns=type(None), device="cpu", devices=2, nodes=1, precision="32-true")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
