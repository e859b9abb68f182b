"""Who is connected by nnInteractive's protocol: leases with two clocks, and one piece of work for each.

A lease ends when its person does nothing for long (`idle`; heartbeats do not count), or when nothing at all comes from
its program for a while (`liveness`). Whoever is being answered keeps the lease until the answer is there. What a lease
held is let go of with it; what it is computing stops at the next slice.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from palpate.server.leases import IDLE_SECONDS, LIVENESS_SECONDS, Full, Gone
from palpate.server.nninteractive_work import Work


@dataclass
class _Client:
    work: Work
    heard: float | int
    used: float | int
    busy: int = 0
    bytes: int = 0


class Clients:
    """At most `most` leases, whose images take at most `most_bytes` together. The clock counts seconds."""

    def __init__(
        self,
        make_work: Callable[[], Work],
        *,
        most: int,
        most_bytes: int,
        idle: float | int = IDLE_SECONDS,
        liveness: float | int = LIVENESS_SECONDS,
        clock: Callable[[], float | int] = monotonic,
    ) -> None:
        self.most, self.most_bytes, self.idle, self.liveness = most, most_bytes, idle, liveness
        self._make_work = make_work
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: dict[str, _Client] = {}

    def claim(self) -> str:
        """The token of a new lease.

        Raises:
            Full: as many as may be are at work.
        """
        with self._lock:
            now = self._reap()
            if len(self._clients) >= self.most:
                raise Full(f"{self.most} programs are connected already; close one, or try again in a minute")
            token = secrets.token_urlsafe(24)
            self._clients[token] = _Client(self._make_work(), now, now)
            return token

    @contextmanager
    def at_work(self, token: str) -> Generator[Work]:
        """The work of a lease, for as long as an action takes.

        Raises:
            Gone: there is no such lease, or not any more.
        """
        with self._lock:
            client = self._found(token)
            client.busy += 1
            client.heard = client.used = self._clock()
        try:
            yield client.work
        finally:
            with self._lock:
                client.busy -= 1
                client.heard = client.used = self._clock()

    def reserve(self, token: str, size: int) -> None:
        """Count so many bytes for the image of a lease, in place of what was counted before.

        Raises:
            Gone: as `at_work`. Full: the images of all take more than they may.
        """
        with self._lock:
            client = self._found(token)
            others = sum(other.bytes for other in self._clients.values() if other is not client)
            if others + size > self.most_bytes:
                raise Full("other programs' images take the memory there is; close one of them, or try again later")
            client.bytes = size

    def left(self, token: str, *, heard: bool) -> float | int:
        """How many seconds are left until the lease ends for want of actions; `heard` counts as a sign of life.

        Raises:
            Gone: as `at_work`.
        """
        with self._lock:
            client = self._found(token)
            now = self._clock()
            if heard:
                client.heard = now
            return max(0.0, self.idle - (now - client.used))

    def release(self, token: str) -> bool:
        """End a lease; says whether there was one."""
        with self._lock:
            self._reap()
            client = self._clients.pop(token, None)
        if client is not None:
            client.work.stop()
        return client is not None

    def sweep(self) -> int:
        """End the leases whose time is over; says how many are left."""
        with self._lock:
            self._reap()
            return len(self._clients)

    def _found(self, token: str) -> _Client:
        self._reap()
        if token not in self._clients:
            raise Gone("this session has ended, or never was; connect again (in 3D Slicer: Initialize)")
        return self._clients[token]

    def _reap(self) -> float | int:
        now = self._clock()
        for token, client in list(self._clients.items()):
            over = now - client.heard > self.liveness or now - client.used > self.idle
            if over and not client.busy:
                del self._clients[token]
                client.work.stop()
        return now
