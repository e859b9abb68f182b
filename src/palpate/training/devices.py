"""Where training runs: one process or many, through Lightning Fabric."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from palpate import errors
from palpate.errors import PalpateError, SettingError
from palpate.inference.runtimes.torch import choose_device

Result = TypeVar("Result")


def launched(work: Callable[[Any], Result], *, device: str, devices: int, nodes: int, precision: str) -> Result:
    """Do some work in as many processes as there are devices, and give the first one's result.

    Under torchrun the processes are there already and each does the work. Otherwise they are started here, for which
    `work` must be picklable if there are several. A `PalpateError` of theirs is raised here.

    Raises:
        SettingError: a device or a precision that does not exist here.
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
    from torch.multiprocessing.spawn import ProcessRaisedException

    try:
        return pickle.loads(fabric.launch(partial(_packed, work=work)))
    except ProcessRaisedException as error:
        raise _own_error(str(error)) or error from None


def _packed(fabric: Any, *, work: Callable[[Any], Any]) -> bytes:
    """The result as bytes: on its way from another process Fabric would take it apart, and fail."""
    return pickle.dumps(work(fabric))


def _own_error(traceback: str) -> PalpateError | None:
    """What palpate raised in another process, of which only the printed traceback comes back."""
    match = re.search(r"^palpate\.errors\.(\w+): (.*)", traceback, flags=re.MULTILINE | re.DOTALL)
    return getattr(errors, match[1])(match[2].strip()) if match else None
