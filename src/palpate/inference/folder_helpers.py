"""Who segments the images of a folder: this process, some of this machine, or the workers of a dask cluster."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from palpate.errors import OutputError, PalpateError
from palpate.inference.cluster import Like, Lost, Tell, for_elsewhere, on_cluster
from palpate.inference.folder_book import made_with
from palpate.inference.folder_masks import Job, rows_or_reason
from palpate.inference.folder_table import Row
from palpate.inference.processes import ended_tidily, kept_by_thread, one_thread, worker_pool
from palpate.inference.session import Session

Answer = list[Row] | str
"""The rows of an image, or why it could not be done."""


@dataclass(frozen=True)
class Loading:
    """How to load a session: the arguments of `palpate.load` by name."""

    arguments: Mapping[str, Any]

    def __call__(self) -> Session:
        """A session of its own for whoever asks.

        Raises:
            ModelError, SettingError: see `palpate.load`.
        """
        from palpate.inference import loading

        return loading.load(**self.arguments)

    def elsewhere(self) -> Loading:
        """The same for a process that starts in another folder."""
        return replace(self, arguments={name: for_elsewhere(value) for name, value in self.arguments.items()})


@dataclass(frozen=True)
class Helpers:
    """So many processes of this machine, or the workers of the dask cluster at address `dask`.

    They load sessions of their own, by `loading`, and compute with one thread each; `tell` is told what happens to
    workers of a cluster. They must see the same paths.
    """

    loading: Loading
    workers: int = 1
    dask: str | None = None
    tell: Tell | None = None

    def check(self) -> None:
        """Whether they could begin, to be told before anything is written.

        Raises:
            SettingError: no cluster at that address, or one that does not fit; see `on_cluster`.
        """
        if self.dask is not None:
            with on_cluster(self.dask, len, [], names=[]):
                pass


@contextmanager
def segmented(
    jobs: Sequence[Job], session: Session, helpers: Helpers | None, settings: Mapping[str, Any]
) -> Generator[Iterator[tuple[int, Answer]]]:
    """Numbers of jobs and what came of them, as they end; what waits is cancelled when the block is left.

    `settings` are what the output's run is made with.

    Raises:
        SettingError, PalpateError: see `on_cluster`; or a process of this machine ended.
    """
    if not jobs:
        yield iter(())
    elif helpers is None:
        yield ((number, rows_or_reason(session, job)) for number, job in enumerate(jobs))
    elif helpers.dask is not None:
        with _on_cluster(helpers.dask, jobs, session, helpers, settings) as answers:
            yield answers
    elif min(helpers.workers, len(jobs)) > 1:
        with _in_processes(jobs, helpers) as answers:
            yield answers
    else:
        with one_thread():
            yield ((number, rows_or_reason(session, job)) for number, job in enumerate(jobs))


@contextmanager
def _in_processes(jobs: Sequence[Job], helpers: Helpers) -> Generator[Iterator[tuple[int, Answer]]]:
    workers = min(helpers.workers, len(jobs))
    try:
        with worker_pool(workers) as pool:
            asked = {pool.submit(_in_process, job, helpers.loading): number for number, job in enumerate(jobs)}
            yield ((asked[future], future.result()) for future in as_completed(asked))
    except BrokenProcessPool:
        raise PalpateError(
            f"one of {workers} processes ended. In a script of your own, the call must stand under "
            "`if __name__ == '__main__':`, because every process reads the script; else memory may have run out, and "
            "fewer workers (--workers) need less. The masks that are done are kept: run it again"
        ) from None


def _in_process(job: Job, load: Loading) -> Answer:
    session = kept_by_thread(load, load)
    with one_thread(), ended_tidily():
        return rows_or_reason(session, job)


@contextmanager
def _on_cluster(
    address: str, jobs: Sequence[Job], session: Session, helpers: Helpers, settings: Mapping[str, Any]
) -> Generator[Iterator[tuple[int, Answer]]]:
    work = partial(_on_worker, load=helpers.loading.elsewhere(), like=Like.of(session.runtime), settings=dict(settings))
    names = [job.entry.name for job in jobs]
    with on_cluster(address, work, [_elsewhere(job) for job in jobs], names=names, tell=helpers.tell) as answers:
        yield ((number, _here(answer, jobs[number])) for number, answer in answers)


def _on_worker(job: Job, *, load: Loading, like: Like, settings: dict[str, Any]) -> Answer:
    session = like.loaded(load, load, lambda made: made.runtime)

    def check() -> None:
        # Nothing can stop a worker in the middle of an image, and its folder may have got a new owner since.
        if made_with(job.stem.parent) != settings:
            raise OutputError(f"{job.stem.parent} is of another run by now")

    with one_thread():
        return rows_or_reason(session, job, check=check)


def _elsewhere(job: Job) -> Job:
    """The same for a process that starts in another folder; links stay links."""
    entry = replace(job.entry, path=job.entry.path.absolute())
    previews = None if job.previews is None else job.previews.absolute()
    return replace(job, entry=entry, stem=job.stem.absolute(), previews=previews)


def _here(answer: Answer | Lost, job: Job) -> Answer:
    """What a worker answered, in the words that this process would have used."""
    if isinstance(answer, Lost):
        return answer.reason
    if not isinstance(answer, str):
        return answer
    paths: list[Path] = [job.entry.path, job.stem.parent, *([job.previews] if job.previews else [])]
    for path in paths:
        answer = answer.replace(str(path.absolute()), str(path))
    return answer
