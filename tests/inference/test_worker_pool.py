"""Worker processes end with the block that they were started for, however it ends; and memory that is freed is kept."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from palpate.inference.processes import worker_pool


def test_an_interrupt_ends_the_workers_and_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    before = set(multiprocessing.active_children())
    jobs: list[Future[None]] = []

    def interrupted() -> None:
        with worker_pool(1) as pool:
            assert pool.submit(os.getenv, "OMP_WAIT_POLICY").result() == "PASSIVE"
            assert set(multiprocessing.active_children()) - before
            jobs.extend(pool.submit(time.sleep, 600) for _ in range(4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for _ in range(200):  # whoever collects the ended process may need a moment, far less than the jobs would
        if not set(multiprocessing.active_children()) - before:
            break
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before
    # The pool's own thread tells the jobs that wait, a moment after the workers are gone.
    with pytest.raises((CancelledError, BrokenProcessPool)):
        jobs[-1].result(timeout=30)
    assert "OMP_WAIT_POLICY" not in os.environ


def test_jobs_that_are_done_give_their_answers() -> None:
    with worker_pool(2) as pool:
        assert [job.result() for job in [pool.submit(pow, 2, n) for n in range(5)]] == [1, 2, 4, 8, 16]


ASKED_FOR_MEMORY = """
import ctypes, sys
from palpate.inference.processes import be_quick

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks".split() + list("123456")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.malloc.argtypes = Mallinfo2, ctypes.c_void_p, [ctypes.c_size_t]
if "quick" in sys.argv:
    be_quick()
before = libc.mallinfo2().hblks
libc.malloc(64 * 2**20)
print(libc.mallinfo2().hblks - before)  # pieces that go back to the system as soon as they are freed
"""


@pytest.mark.skipif(
    not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")), reason="the C library is no glibc"
)
@pytest.mark.parametrize(
    ("arguments", "variables", "pieces"),
    [([], {}, 1), (["quick"], {}, 0), (["quick"], {"MALLOC_MMAP_THRESHOLD_": "1000000"}, 1)],
)
def test_freed_memory_is_kept_unless_the_user_set_otherwise(
    arguments: list[str], variables: dict[str, str], pieces: int
) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", ASKED_FOR_MEMORY, *arguments],
        env={**others, **variables},
        capture_output=True,
        check=True,
    )
    assert int(done.stdout) == pieces
