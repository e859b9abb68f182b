"""Processes that do as they should: quick from the start, deaf to Ctrl-C, and gone when nobody needs them.

What they compute does not depend on how many they are: each uses one thread, for sums in another order would change the
last digits, and with them, now and then, a pixel.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Thing = TypeVar("Thing")


def leads() -> bool:
    """Whether this process speaks for all of them; under torchrun there are several that run the same command."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def serve_parent() -> None:
    """Leave interrupts to the first process, and end when it ends, however it ends.

    The initializer of a worker process, for `ProcessPoolExecutor` and `multiprocessing.Pool`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process decides
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # it was killed: nobody is left to work for

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def ended_tidily() -> Generator[None]:
    """For a worker's job that writes files: told to end, the process removes what is half written before it goes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        os._exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


_KEPT = {"MALLOC_MMAP_THRESHOLD_": (-3, 2**30), "MALLOC_TRIM_THRESHOLD_": (-1, 2**30), "MALLOC_TOP_PAD_": (-2, 2**28)}
"""Variables that glibc reads when a process starts; for one that runs, their numbers in malloc.h and the values."""


def be_quick() -> None:
    """Keep freed memory in this process, where the C library is glibc: as `quick_memory` does for others.

    Encoding is faster by a third. Idle threads are left as they are: one that sleeps is late for the short operations
    of a training step. What the user has set stays.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _KEPT):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option, value in _KEPT.values():
            mallopt(option, value)


@contextmanager
def quick_memory() -> Generator[None]:
    """Settings for processes that are started in this block: one thread, freed memory is kept, idle threads sleep.

    They are read when a process starts. A network's activations are freed and wanted again at once; handing them back
    to the system in between costs more than computing them. What the user has set stays.
    """
    wanted = {
        **{name: str(value) for name, (_, value) in _KEPT.items()},
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def worker_pool(workers: int) -> Generator[ProcessPoolExecutor]:
    """Worker processes for as long as the block lasts. When it ends by Ctrl-C or an error, so do they, at once."""
    others = set(multiprocessing.active_children())
    # A fork of a process that has run torch may hang.
    context = multiprocessing.get_context("spawn")
    with quick_memory():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=serve_parent)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
                child.join()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread() -> Generator[None]:
    """Networks compute with one thread in this block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Mine(threading.local):
    """The last thing that a thread made, and by what it is known."""

    key: object = None
    thing: Any = None


_mine = _Mine()


def kept_by_thread(key: object, make: Callable[[], Thing]) -> Thing:
    """What this thread made for an equal key the last time; else it is made now, and the former let go.

    For sessions of workers: they take long to load, and threads do not share one, because it has one image at a time.
    """
    if _mine.thing is None or _mine.key != key:
        _mine.key = _mine.thing = None  # two networks at once may be too much
        _mine.thing = make()
        _mine.key = key
    return _mine.thing
