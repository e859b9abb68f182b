"""Worker processes end with the block that they were started for, however it ends."""

import multiprocessing
import os
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
