"""Who works on what: a lease is lost by whoever does nothing for long, or whose program is gone."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from palpate.errors import InputError, PalpateError

IDLE_SECONDS = 600.0
"""After so long without an action a lease ends, if somebody else wants its place."""

LIVENESS_SECONDS = 60.0
"""After so long without any sign of life, a heartbeat say, a lease ends."""


class Taken(InputError):
    """Somebody else works on it."""


class Gone(InputError):
    """The lease has ended, or never was."""


class Full(PalpateError):
    """As many are at work as the machine can serve."""


@dataclass
class _Lease:
    token: str
    heard: float
    used: float


class Leases:
    """Leases on things with a name, at most `most` at a time. The clock counts seconds."""

    def __init__(
        self,
        *,
        most: int,
        idle: float = IDLE_SECONDS,
        liveness: float = LIVENESS_SECONDS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.most, self.idle, self.liveness = most, idle, liveness
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Lease] = {}

    def take(self, name: str, *, take_over: bool = False) -> str:
        """A token for a thing that nobody has, or with `take_over` from whoever has it.

        Raises:
            Taken: somebody else has it. Full: too many things are held.
        """
        with self._lock:
            now = self._reap()
            if name in self._held and not take_over:
                raise Taken(f"{name} is open in another window or program; close it there, or take it over")
            if name not in self._held and len(self._held) >= self.most:
                self._reap_idle(now)
                if len(self._held) >= self.most:
                    raise Full(f"{self.most} cases are open already; close one, or try again in a minute")
            token = secrets.token_urlsafe(24)
            self._held[name] = _Lease(token, now, now)
            return token

    def check(self, name: str, token: str, *, used: bool = True) -> float:
        """How many seconds are left before the thing is given to others who ask; an action (`used`) starts anew.

        Raises:
            Gone: this is not the token of whoever has it.
        """
        with self._lock:
            now = self._reap()
            lease = self._of(name, token)
            lease.heard = now
            if used:
                lease.used = now
            return max(0.0, self.idle - (now - lease.used))

    def give_back(self, name: str, token: str) -> None:
        """End a lease.

        Raises:
            Gone: as `check`.
        """
        with self._lock:
            self._reap()
            self._of(name, token)  # in one go: whoever takes it over meanwhile keeps it
            del self._held[name]

    def held(self) -> set[str]:
        """The names of what is held."""
        with self._lock:
            self._reap()
            return set(self._held)

    def _of(self, name: str, token: str) -> _Lease:
        lease = self._held.get(name)
        # Every comparison takes the same time, whatever is wrong with the token.
        if not hmac.compare_digest((lease.token if lease else "").encode(), token.encode()) or lease is None:
            raise Gone(f"{name} is not open here any more; it was closed, taken over, or left for too long: open it")
        return lease

    def _reap(self) -> float:
        now = self._clock()
        self._held = {name: one for name, one in self._held.items() if now - one.heard <= self.liveness}
        return now

    def _reap_idle(self, now: float) -> None:
        self._held = {name: one for name, one in self._held.items() if now - one.used <= self.idle}
