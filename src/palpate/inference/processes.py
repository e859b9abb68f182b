"""Worker processes that do as they should: quick from the start, deaf to Ctrl-C, and gone when nobody needs them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


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
def quick_memory() -> Generator[None]:
    """Settings for processes that are started in this block: one thread, freed memory is kept, idle threads sleep.

    They are read when a process starts. A network's activations are freed and wanted again at once; handing them back
    to the system in between costs more than computing them. What the user has set stays.
    """
    wanted = {
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "MALLOC_TOP_PAD_": str(2**28),
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
