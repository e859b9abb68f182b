"""Where training runs: one process or many, through Lightning Fabric.

Processes that are started here leave Ctrl-C to the first process, which passes it on to each of them once, waits for
what they save, and raises it then. A `PalpateError` of one of them ends all of them and is raised in the first. They
end at once when the first process is killed.

What they have to say comes back as JSON, and nothing is unpickled here. (How torch starts processes, and that it hands
over text and printed tracebacks, is multiprocessing's own matter.)
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from palpate import errors
from palpate.errors import OutputError, PalpateError, SettingError
from palpate.inference.runtimes.torch import choose_device

Result = TypeVar("Result")

_SECONDS_FOR_THE_OTHERS = 60.0
"""How long the others may go on once one was interrupted: enough to save, and nobody waits for a lost one for ever."""

_RESULT = "result.json"

_KINDS: dict[str, type[PalpateError | KeyboardInterrupt]] = {
    **{name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, PalpateError)},
    "KeyboardInterrupt": KeyboardInterrupt,
}
"""What a process may say that it was ended by; nothing else is made from what is read."""


def launched(
    work: Callable[[Any], Result], *, returns: type[Result], device: str, devices: int, nodes: int, precision: str
) -> Result:
    """Do some work in as many processes as there are devices, and give the first one's result.

    Under torchrun the processes are there already and each does the work. Otherwise they are started here, for which
    `work` must be picklable if there are several. A `PalpateError` of theirs is raised here; a class of it that
    `palpate.errors` does not have comes as the nearest one that it has. `returns` is the class of the result: of plain
    values, paths and dataclasses of them, for it may come as JSON.

    Raises:
        SettingError: a device or a precision that does not exist here.
        PalpateError: what one of them raised, or one of them was killed.
        KeyboardInterrupt: this process was interrupted, or one of them; all have ended.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    if devices < 1 or nodes < 1:
        raise SettingError(f"{devices} devices on {nodes} machines cannot work; give at least 1")
    chosen = choose_device(device)
    if precision == "16-mixed" and chosen.type == "cpu":
        raise SettingError("16-mixed needs a GPU; choose 32-true, or bf16-mixed where the CPU has it")
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if by_torchrun:  # how many there are is settled
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    many = devices * nodes > 1 or by_torchrun
    if many and chosen.type == "mps":
        raise SettingError("several devices need CUDA or the CPU; Apple's MPS is one device")
    strategy: Any = "auto"
    if many:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        # Processes of torchrun, or of a cluster, are not started by us.
        strategy = DDPStrategy(
            process_group_backend=backend, start_method="popen" if by_torchrun or nodes > 1 else "spawn"
        )
    try:
        fabric = Fabric(
            accelerator={"cuda": "cuda", "mps": "mps"}.get(chosen.type, "cpu"),
            devices=[chosen.index or 0] if chosen.type == "cuda" and not many else devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=precision,  # pyright: ignore[reportArgumentType]
        )
    except (ValueError, RuntimeError) as error:
        raise SettingError(f"this cannot run on {devices} x {chosen.type}: {error}") from error
    if not many:
        return work(fabric)
    if by_torchrun or nodes > 1:
        return fabric.launch(work)
    return _spawned(fabric, work, returns)


def _spawned(fabric: Any, work: Callable[[Any], Result], returns: type[Result]) -> Result:
    """Do the work in processes started from here.

    How one of them ended is told in a folder: Fabric hands over the result of the first alone, torch ends the others
    only where one fails, and of an exception it keeps the printed traceback.
    The folder is open to this user alone and vanishes with the block.
    """
    from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

    others = set(multiprocessing.active_children())
    with tempfile.TemporaryDirectory(prefix="palpate-") as name:
        folder = Path(name)
        try:
            result = fabric.launch(partial(_carried_out, work=work, returns=returns, folder=folder))
        except KeyboardInterrupt:
            _stop(set(multiprocessing.active_children()) - others, folder)
            raise
        except ProcessException as error:
            ended_by = told(folder)
            if ended_by is None and isinstance(error, ProcessExitedException):
                ended_by = PalpateError(f"a process of several ended ({error}); memory may have run out")
            raise ended_by or error from None
        if not result:
            raise KeyboardInterrupt
        return from_json((folder / _RESULT).read_text(encoding="utf-8"), returns)


def _carried_out(fabric: Any, *, work: Callable[[Any], Result], returns: type[Result], folder: Path) -> bool:
    """Leave the first one's result as JSON in the folder, and say that it is there; False after an interrupt.

    Fabric would take the result apart on its way and fail. And it carries it through a pipe that nobody reads before
    all have ended, so that more than fits into one would wait for ever.
    """
    _follow_parent()
    with suppress(OSError):
        (folder / f"{fabric.global_rank}.begun").touch()
    try:
        result = work(fabric)
        if fabric.global_rank == 0:
            _leave(folder / _RESULT, to_json(result, returns))
        return True
    except (PalpateError, KeyboardInterrupt) as error:
        tell(folder, fabric.global_rank, error)
        if isinstance(error, KeyboardInterrupt):
            return False  # a failure would have torch end the others, and one of them may be saving
        raise


def _leave(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"all is done, but {path} cannot be written to say so ({error.strerror or error}); make room there, or "
            "choose another folder with TMPDIR, and give the same command again: it finds what is done"
        ) from error


def _follow_parent() -> None:
    """Be interrupted by the first process alone, and end when it ends, however it ends."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # out of reach of a terminal's Ctrl-C: with what is passed on, it would be a second one
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # it was killed; what was saved last is whole

    threading.Thread(target=follow, daemon=True).start()


def _stop(children: Collection[BaseProcess], folder: Path) -> None:
    """Interrupt all, and wait for what they save; a second Ctrl-C ends them at once."""
    try:
        # One that is still being started has nothing to save, and may wait for others that will never come.
        if hasattr(os, "setpgid") and len(list(folder.glob("*.begun"))) == len(children):
            for child in children:
                if child.pid is not None and child.is_alive():
                    os.kill(child.pid, signal.SIGINT)
            wait([child.sentinel for child in children])
            end = time.monotonic() + _SECONDS_FOR_THE_OTHERS
            for child in children:
                child.join(max(0.0, end - time.monotonic()))
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.join()


def to_json(result: Result, returns: type[Result]) -> str:
    """A result on its way to the first process; see `launched` for what it may hold."""
    # Not by pydantic's own JSON, which makes null of a number that is not finite.
    return json.dumps(TypeAdapter(returns).dump_python(result), default=os.fspath)


def from_json(text: str, returns: type[Result]) -> Result:
    """The same result, in the first process."""
    return TypeAdapter(returns).validate_python(json.loads(text))


def tell(folder: Path, rank: int, error: PalpateError | KeyboardInterrupt) -> None:
    """Leave word of what ended a process: RANK.ended, which is there whole or not at all."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind in _KINDS.values())
    half = folder / f"{rank}.part"
    with suppress(OSError):  # a full disk: torch's traceback has to do
        half.write_text(json.dumps({"time": time.time(), "kind": kind, "message": str(error)}), encoding="utf-8")
        half.replace(folder / f"{rank}.ended")


def told(folder: Path) -> PalpateError | KeyboardInterrupt | None:
    """What ended the work: the first of what the processes told, for the others may have failed for want of it.

    Raises:
        PalpateError: they told something, and all of it is damaged.
    """
    ends: list[tuple[float, PalpateError | KeyboardInterrupt]] = []
    damage: Exception | None = None
    for path in folder.glob("*.ended"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            ends.append((float(content["time"]), _KINDS[content["kind"]](content["message"])))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            damage = error
    if damage is not None and not ends:
        raise PalpateError(
            f"a process of several failed, and what it left in {folder.parent} to say why is damaged; make room "
            "there, or choose another folder with TMPDIR, and run it again"
        ) from damage
    return min(ends, key=lambda end: end[0])[1] if ends else None
