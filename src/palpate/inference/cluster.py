"""Work on a dask cluster: told at once where it cannot begin, and not stopped by a worker that ends.

Workers need not be on this machine. They must see the same paths, and compute with the same versions.
"""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from palpate.errors import PalpateError, SettingError
from palpate.inference.environment import environment
from palpate.inference.processes import kept_by_thread
from palpate.inference.runtimes import Runtime

if TYPE_CHECKING:
    from distributed import Client, Future

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Made = TypeVar("Made")

Tell = Callable[[str], None]
"""Called with a sentence on what happened to the workers."""

_ANSWER_SECONDS = 10
"""How long a scheduler may take to answer, and a first worker to appear."""

_LOOK_SECONDS = 2.0
"""How often we look whether the workers are still there."""

PATIENCE_SECONDS = 60.0
"""How long we wait where no worker is left: one that ended may be started again."""


@dataclass(frozen=True)
class Lost:
    """In place of an answer: whoever worked on the item ended, time and again."""

    reason: str


@dataclass(frozen=True)
class Like:
    """What this machine computes with, and so must the workers, because one table has the answers of all."""

    weights_hash: str
    runtime: str
    versions: Mapping[str, str]

    @classmethod
    def of(cls, runtime: Runtime) -> Like:
        """This machine's, with that runtime."""
        return cls(runtime.weights_hash, runtime.describe(), dict(environment()))

    def loaded(self, key: object, load: Callable[[], Made], runtime_of: Callable[[Made], Runtime]) -> Made:
        """On a worker: what `load` gives, once a thread (see `kept_by_thread`), if its runtime is like ours.

        Raises:
            PalpateError: it cannot be loaded there, or is not alike; the message names the worker.
        """
        try:
            made = kept_by_thread(key, load)
        except PalpateError as error:
            raise PalpateError(f"the worker {_address()} could not load the model: {error}") from None
        found = Like.of(runtime_of(made))
        if found != self:
            raise PalpateError(f"the worker {_address()} {found.differences(self)}")
        return made

    def differences(self, here: Like) -> str:
        """In words, what is other than here, and what to do."""
        versions = unlike_versions(self.versions, here.versions)
        if versions:
            return versions
        if self.runtime != here.runtime:
            return (
                f"computes by {self.runtime}, and this machine by {here.runtime}; say which with --device or "
                "--runtime, or install the same there"
            )
        return (
            f"has other weights ({self.weights_hash[:12]}, here {here.weights_hash[:12]}); copy those of this machine"
        )


def unlike_versions(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """In words, which versions a worker has that are not ours, and what to do; empty if there are none."""
    differing = [
        f"{name} {there.get(name, 'missing')} (here {here.get(name, 'missing')})"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    return f"has {', '.join(differing)}; install the same on all machines" if differing else ""


def for_elsewhere(value: Any) -> Any:
    """An argument of `palpate.load` for a process that starts in another folder: absolute paths; links stay links."""
    if isinstance(value, Path):
        return value.absolute()
    is_file = isinstance(value, str) and value.endswith(".safetensors")  # an adapter in place of a model's name
    return str(Path(value).absolute()) if is_file else value


@contextmanager
def on_cluster(
    address: str,
    work: Callable[[Item], Answer],
    items: Sequence[Item],
    *,
    names: Sequence[str],
    tell: Tell | None = None,
) -> Generator[Iterator[tuple[int, Answer | Lost]]]:
    """Numbers of items with what the workers answer, as they come; what is queued is cancelled when the block is left.

    `work` and the items are pickled. A `PalpateError` that it raises stops everything, so what is wrong with one item
    alone is an answer. If a worker ends, its items go to others, and `tell` is told. An item whose workers ended so
    often that the scheduler gave it up may only have been beside the one to blame: it is tried once more when all
    others are done, alone, and is `Lost` after that. `names` are what items are called.

    Raises:
        SettingError: no scheduler at that address, no workers, workers with other versions, or dask is not installed.
        PalpateError: no worker was left for `PATIENCE_SECONDS`, or the scheduler ended.
    """
    try:
        from distributed import Client
    except ImportError:
        raise SettingError("--dask needs an extra package; install it with: pip install 'palpate[dask]'") from None
    try:
        client = Client(address, timeout=_ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise SettingError(f"no dask scheduler answers at {address!r} ({error}); start one or correct --dask") from None
    try:
        with _telling(address):
            _check_workers(client, address)
        yield _answers(client, address, work, items, names=names, tell=tell or (lambda words: None))
    finally:
        client.close()  # whatever only we wanted is forgotten by the scheduler


@contextmanager
def _telling(address: str) -> Generator[None]:
    """Say in words what goes wrong between the machines."""
    try:
        yield
    except (OSError, ImportError) as error:  # dask's CommClosedError is an OSError
        raise PalpateError(
            f"the cluster at {address} could not go on ({type(error).__name__}: {error}); what was done is kept, so "
            "mend it and run the command again"
        ) from None


def _check_workers(client: Client, address: str) -> None:
    """Told once and before anything is sent, not as the failure of every item."""
    try:
        client.wait_for_workers(1, timeout=_ANSWER_SECONDS)
    except TimeoutError:
        raise SettingError(
            f"the dask scheduler at {address!r} has no workers; start some, with `dask worker {address}`"
        ) from None
    here = environment()
    answers = cast("Mapping[str, Any]", client.run(environment, on_error="return"))
    for worker, there in answers.items():
        if isinstance(there, OSError):
            continue  # it has ended since
        if isinstance(there, Exception):
            reason = f"cannot run this palpate ({type(there).__name__}: {there}); install the same on all machines"
        else:
            reason = unlike_versions(there, here)
        if reason:
            raise SettingError(f"the worker {worker} {reason}")


def _answers(
    client: Client,
    address: str,
    work: Callable[[Item], Answer],
    items: Sequence[Item],
    *,
    names: Sequence[str],
    tell: Tell,
) -> Iterator[tuple[int, Answer | Lost]]:
    from distributed import KilledWorker

    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    futures: dict[int, Future[Answer]] = {}
    call = secrets.token_hex(4)  # two calls, or two tries, must not have one key

    def submit(number: int, trial: int) -> None:
        future = client.submit(work, items[number], key=f"palpate-{call}-{trial}-{number}", pure=False)
        futures[number] = future
        future.add_done_callback(partial(_put, ended, number))

    def answer(number: int) -> Answer | Lost:
        """What came of a future that ended."""
        future = futures.pop(number)
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker):
            return Lost("every worker that tried it ended; memory may have run out there")
        if future.status in ("cancelled", "lost"):
            raise PalpateError(
                f"the cluster at {address} gave up {names[number]} ({future.status}), so it was probably started anew; "
                "what was done is kept, so run the command again"
            )
        return future.result()

    with _telling(address):
        watch = _Watch(client, address, tell)  # before anything is sent: a worker may end at once
        for number in range(len(items)):
            submit(number, 1)
    suspects: list[int] = []
    alone: int | None = None
    while futures:
        with _telling(address):
            watch.look()
            try:
                number = ended.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            found = answer(number)
        if isinstance(found, Lost) and number != alone:
            suspects.append(number)
            tell(f"{names[number]}: its workers ended, again and again; it is tried once more after the others, alone")
        else:
            yield number, found
        if not futures and suspects:
            alone = suspects.pop(0)
            submit(alone, 2)


def _put(ended: queue.SimpleQueue[int], number: int, _future: Future[Any]) -> None:
    ended.put(number)


def _workers(client: Client) -> set[str]:
    """The addresses of those that are there."""
    return set(cast("Mapping[str, int]", client.nthreads()))


class _Watch:
    """Who is there, looked at now and then."""

    def __init__(self, client: Client, address: str, tell: Tell) -> None:
        self._client, self._address, self._tell = client, address, tell
        self._there = _workers(client)
        self._looked = self._seen = time.monotonic()

    def look(self) -> None:
        """Tell which workers are gone.

        Raises:
            PalpateError: all of them, and for too long.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        there = _workers(self._client)
        for worker in sorted(self._there - there):
            self._tell(f"the worker {worker} is gone; what it was at is done by others")
        if self._there and not there:
            self._tell(f"no worker is left; waiting {PATIENCE_SECONDS:g} s for one to come back")
        self._there, self._looked = there, now
        if there:
            self._seen = now
        elif now - self._seen > PATIENCE_SECONDS:
            raise PalpateError(
                f"the cluster at {self._address} has lost all its workers; what was done is kept, so start others and "
                "run the command again"
            )


def _address() -> str:
    """Of the worker that this runs on."""
    from distributed import get_worker

    return get_worker().address
