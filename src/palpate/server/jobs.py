"""Work that takes longer than a request: in threads, with progress, and it can be cancelled.

The work hears of being cancelled when it next tells its progress, and ends there by `Cancelled`; it leaves behind what
it would leave behind after an error at that place.

One lock guards all that is known of the jobs. The work runs outside it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from palpate.errors import InputError, PalpateError

MAX_RUNNING = 4
"""Jobs at once. Each wants the processor whole, so more of them make all slower, and hold their images in memory."""

KEPT = 100
"""Jobs that have ended and can still be asked about."""

RETRY_SECONDS = 5
"""After so long it is worth asking again."""

CLOSE_SECONDS = 30.0
"""How long `Jobs.close` waits for work to end; a slice of the largest models takes some seconds."""

Status = Literal["running", "finished", "failed", "cancelled"]

_log = logging.getLogger("palpate.server")


class Cancelled(Exception):
    """Somebody does not want this work any more; raised inside it by `Report`."""


class Busy(PalpateError):
    """There is too much to do at the moment; ask again in `retry_seconds`."""

    retry_seconds = RETRY_SECONDS


class UnknownJob(InputError):
    """There is no such job, or it ended long ago."""


@dataclass(frozen=True)
class Job:
    """A job at one moment.

    `done` of `total` in the units of the work (0 of 0: it cannot say), `detail` in words: what it is at, what came of
    it, or why it failed. `seconds_left` is a guess while it runs.
    """

    id: str
    kind: str
    case: str | None
    done: int
    total: int
    status: Status
    detail: str
    seconds_left: float | None


class Report:
    """What the work has of its job: to tell how far it is, and to hear whether it is still wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._done = self._total = 0
        self._detail = ""
        self._began: tuple[float, int] | None = None  # when the first of this total was told, and what was done then
        self._told = 0.0
        self._seconds_left: float | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the work is not wanted any more."""
        return self._cancelled.is_set()

    def wait(self, seconds: float | int) -> bool:
        """Wait so long, but no longer than until the work is cancelled; whether it is."""
        return self._cancelled.wait(seconds)

    def check(self) -> None:
        """End the work here if it is not wanted any more.

        Raises:
            Cancelled: it is not.
        """
        if self.cancelled:
            raise Cancelled

    def progress(
        self, done: int, total: int, detail: str | None = None, *, seconds_left: float | int | None = None
    ) -> None:
        """Tell how far the work is. What it says stays until it says something else.

        Without `seconds_left` it is guessed from how long it took so far; another total, or less done than before, is
        another stretch of work with a speed of its own.

        Raises:
            Cancelled: the work is not wanted any more.
        """
        self.check()
        now = time.monotonic()
        with self._lock:
            if self._began is None or total != self._total or done < self._done:
                self._began = (now, done)
            self._done, self._total, self._told = done, total, now
            self._detail = self._detail if detail is None else detail
            began, first = self._began
            if seconds_left is None and done > first:
                seconds_left = (now - began) / (done - first) * max(0, total - done)
            self._seconds_left = None if seconds_left is None else float(seconds_left)

    def say(self, detail: str) -> None:
        """Only what it is at, in words; also when it was cancelled, as the last word."""
        with self._lock:
            self._detail = detail

    def now(self) -> tuple[int, int, str, float | None]:
        """What was told: done, total, detail, and the seconds that are left of those that were left then."""
        with self._lock:
            left = self._seconds_left
            if left is not None:
                left = max(0.0, left - (time.monotonic() - self._told))
            return self._done, self._total, self._detail, left

    def cancel(self) -> None:
        """From now on the work is not wanted."""
        self._cancelled.set()


Work = Callable[[Report], str | None]
"""What is done, told by the report; what it returns is the job's last word."""


class _Entry:
    def __init__(self, kind: str, case: str | None) -> None:
        self.id, self.kind, self.case = secrets.token_hex(8), kind, case
        self.report = Report()
        self.status: Status = "running"
        self.thread: threading.Thread | None = None
        self.ended = threading.Event()

    def job(self) -> Job:
        done, total, detail, left = self.report.now()
        left = left if self.status == "running" else None
        return Job(self.id, self.kind, self.case, done, total, self.status, detail, left)


class Jobs:
    """Background work: at most `max_running` at once; the last `kept` that have ended can still be asked about."""

    def __init__(self, *, max_running: int = MAX_RUNNING, kept: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}  # in the order in which they were started
        self._max_running, self._kept = max_running, kept
        self._closed = False

    def start(self, kind: str, work: Work, *, case: str | None = None, alone: bool = False) -> Job:
        """Begin work in a thread of its own. `alone`: there is only one job of this kind at a time.

        Raises:
            Busy: too much is running already, or the server is about to end.
        """
        with self._lock:
            if self._closed:
                raise Busy("the server is about to stop; start it again, and ask again then")
            running = [entry for entry in self._entries.values() if entry.status == "running"]
            if alone and any(entry.kind == kind for entry in running):
                raise Busy(f"there is a job of this kind ({kind}) already; wait for it, or cancel it")
            if len(running) >= self._max_running:
                kinds = ", ".join(sorted(entry.kind for entry in running))
                raise Busy(f"{len(running)} jobs are running ({kinds}); wait until one has ended, or cancel one")
            entry = _Entry(kind, case)
            # A daemon: whoever stops the server without closing it must not wait for it.
            entry.thread = threading.Thread(target=self._run, args=(entry, work), name=f"palpate {kind}", daemon=True)
            self._entries[entry.id] = entry
            self._forget()
            entry.thread.start()
            return entry.job()

    def get(self, job: str) -> Job:
        """A job as it is now.

        Raises:
            UnknownJob: there is none of that id.
        """
        with self._lock:
            return self._entry(job).job()

    def running(self, kind: str | None = None, *, case: str | None = None) -> list[Job]:
        """The jobs that are running, of this kind and for this case where they are given; the oldest first."""
        with self._lock:
            return [
                entry.job()
                for entry in self._entries.values()
                if entry.status == "running" and kind in (None, entry.kind) and case in (None, entry.case)
            ]

    def last(self, kind: str, *, case: str | None = None) -> Job | None:
        """The job of this kind that was started last, running or not."""
        with self._lock:
            for entry in reversed(self._entries.values()):
                if entry.kind == kind and case in (None, entry.case):
                    return entry.job()
            return None

    def cancel(self, job: str) -> Job:
        """Ask a job to end; it still runs until it hears of it. One that has ended stays as it is.

        Raises:
            UnknownJob: there is none of that id.
        """
        with self._lock:
            entry = self._entry(job)
            if entry.status == "running":
                entry.report.cancel()
            return entry.job()

    def wait(self, job: str, seconds: float | int | None = None) -> Job:
        """A job when it has ended, or as it is after so many seconds.

        Raises:
            UnknownJob: there is none of that id.
        """
        with self._lock:
            entry = self._entry(job)
        entry.ended.wait(seconds)
        with self._lock:
            return entry.job()

    def close(self, *, seconds: float | int = CLOSE_SECONDS) -> bool:
        """Cancel everything, take nothing more, and wait for it up to so long; whether all has ended."""
        with self._lock:
            self._closed = True
            entries = [entry for entry in self._entries.values() if entry.status == "running"]
            for entry in entries:
                entry.report.cancel()
        deadline = time.monotonic() + seconds
        for entry in entries:
            if entry.thread is not None and entry.thread is not threading.current_thread():
                entry.thread.join(max(0.0, deadline - time.monotonic()))
        return all(entry.status != "running" for entry in entries)

    def _entry(self, job: str) -> _Entry:
        entry = self._entries.get(job)
        if entry is None:
            raise UnknownJob(f"there is no job {job[:40]!r}; it may have ended long ago, or before a restart")
        return entry

    def _forget(self) -> None:
        """Let go of the oldest that have ended, beyond what is kept."""
        ended = [entry.id for entry in self._entries.values() if entry.status != "running"]
        for job in ended[: max(0, len(ended) - self._kept)]:
            del self._entries[job]

    def _run(self, entry: _Entry, work: Work) -> None:
        try:
            said = work(entry.report)
            status: Status = "finished"
        except Cancelled:
            status, said = "cancelled", None
        except PalpateError as error:
            status, said = "failed", str(error)
        except MemoryError:
            status, said = "failed", "there was not enough memory; close other cases and try again"
        except Exception as error:  # noqa: BLE001 - a thread has nobody else who would tell
            _log.exception("the job %s failed", entry.kind)
            status, said = "failed", f"{type(error).__name__}: {error}"
        if said is not None:
            entry.report.say(said)
        with self._lock:
            entry.status = status
        entry.ended.set()
