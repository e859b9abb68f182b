"""Encoding a data set ahead: `palpate embed`, and the first minutes of a fine-tuning run with a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from palpate.datasets.case import Case
from palpate.errors import DatasetError, PalpateError
from palpate.inference.cluster import Like, Lost, Tell, for_elsewhere, on_cluster
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.inference.loading import load
from palpate.inference.processes import kept_by_thread, one_thread, quick_memory, serve_parent
from palpate.inference.runtimes import Runtime
from palpate.training.scenes import Scene, Views, sights_of

Progress = Callable[[int, int], None]
"""Called with cases done and cases in all."""


@dataclass(frozen=True)
class Embedded:
    """What was done: scenes in all, and how many of them had to be encoded."""

    scenes: tuple[Scene, ...]
    encoded: int


def embed(
    cases: Sequence[Case],
    runtime: Runtime,
    cache: EmbeddingCache,
    *,
    views: Views | None = None,
    views_of_volumes: Views | None = None,
    slices_per_volume: int | None = None,
    min_pixels: int = 1,
    intensity: str | None = None,
    absent: int | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Put the embedding of every scene of these cases into the cache; those that are there are not encoded again.

    Interrupted, it has lost at most the scene it was encoding. `views_of_volumes` are those of slices of volumes, where
    they differ from `views`; the other arguments are those of `palpate.training.scenes.sights_of`.

    Raises:
        DatasetError: a case cannot be read; the message names it.
        OutputError: the cache cannot be written.
    """
    scenes: list[Scene] = []
    encoded = 0
    for done, case in enumerate(cases):
        if progress is not None:
            progress(done, len(cases))
        try:
            sights = sights_of(
                case,
                frame=runtime.frame,
                encoder_hash=runtime.encoder_hash,
                views=views,
                views_of_volumes=views_of_volumes,
                slices_per_volume=slices_per_volume,
                min_pixels=min_pixels,
                intensity=intensity,
                absent=absent,
            )
            for sight in sights:
                scenes.append(sight.scene)
                if sight.scene.key not in cache:
                    cache.put(sight.scene.key, runtime.encode(runtime.frame.canvas(sight.pixels)[None]))
                    encoded += 1
        except PalpateError as error:
            raise DatasetError(f"{case.dataset}/{case.name}: {error}") from error
    if progress is not None:
        progress(len(cases), len(cases))
    return Embedded(tuple(scenes), encoded)


@dataclass(frozen=True)
class Order:
    """What `embed_many` asks of every process; it can be pickled. `model`, `weights` and `device` are as in
    `palpate.load`."""

    folder: Path
    max_bytes: int
    model: str | None = None
    weights: Path | None = None
    device: str = "auto"
    views: Views | None = None
    slices_per_volume: int | None = None
    intensity: str | None = None

    def load(self) -> Runtime:
        """What encodes.

        Raises:
            ModelError, SettingError: see `palpate.load`.
        """
        # torch, whose embeddings training reads and makes itself, so that a run has the same bits either way
        return load(self.model, weights=self.weights, device=self.device, runtime="torch").runtime

    def absolute(self) -> Order:
        """The same for a process that starts in another folder."""
        return Order(**{one.name: for_elsewhere(getattr(self, one.name)) for one in fields(self)})

    def carry_out(self, case: Case, runtime: Runtime) -> tuple[int, int]:
        """Encode what is missing of one case: scenes in all, and how many of them were encoded."""
        done = embed(
            [case],
            runtime,
            EmbeddingCache(self.folder, max_bytes=self.max_bytes),
            views=self.views,
            slices_per_volume=self.slices_per_volume,
            intensity=self.intensity,
        )
        return len(done.scenes), done.encoded


def embed_many(
    cases: Sequence[Case],
    order: Order,
    *,
    workers: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> tuple[int, int]:
    """Fill a cache by several processes of one thread each: scenes in all, and how many of them were encoded.

    They are `workers` of this machine, or those of the dask cluster at address `dask`, who must see the same paths;
    `tell` is told of those that end. Interrupted, each process has lost at most the scene it was encoding.

    Raises:
        DatasetError: a case cannot be read; the message names it.
        ModelError, SettingError: see `palpate.load`.
        OutputError: the cache cannot be written.
        PalpateError: processes ended, or the cluster did; see `palpate.inference.cluster`.
    """
    scenes = encoded = 0
    if dask is not None:
        answers = _on_cluster(dask, cases, order, tell)
    else:
        answers = _here(cases, order) if workers == 1 else _in_processes(cases, order, workers)
    for done, (some, new) in enumerate(answers, start=1):
        scenes, encoded = scenes + some, encoded + new
        if progress is not None:
            progress(done, len(cases))
    # Each process counts what it wrote itself, so that together they may have passed the bound.
    EmbeddingCache(order.folder, max_bytes=order.max_bytes).prune()
    return scenes, encoded


def _here(cases: Sequence[Case], order: Order) -> Iterator[tuple[int, int]]:
    with one_thread():
        runtime = order.load()
        for case in cases:
            yield order.carry_out(case, runtime)


def _on_cluster(address: str, cases: Sequence[Case], order: Order, tell: Tell | None) -> Iterator[tuple[int, int]]:
    work = partial(_on_worker, order=order.absolute(), like=Like.of(order.load()))
    names = [f"{case.dataset}/{case.name}" for case in cases]
    with on_cluster(address, work, [case.resolved() for case in cases], names=names, tell=tell) as answers:
        for number, answer in answers:
            if isinstance(answer, Lost):
                raise PalpateError(f"{names[number]}: {answer.reason}; what was encoded is kept")
            if isinstance(answer, str):
                raise DatasetError(answer)
            yield answer


def _on_worker(case: Case, *, order: Order, like: Like) -> tuple[int, int] | str:
    """What came of a case on a worker of a cluster, or what is wrong with the case."""
    runtime = like.loaded(order, order.load, lambda made: made)
    try:
        with one_thread():
            return order.carry_out(case, runtime)
    except DatasetError as error:
        return str(error)


def _in_process(case: Case, order: Order) -> tuple[int, int]:
    return order.carry_out(case, kept_by_thread(order, order.load))


def _in_processes(cases: Sequence[Case], order: Order, workers: int) -> Iterator[tuple[int, int]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    others = set(multiprocessing.active_children())
    with quick_memory():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        futures = [pool.submit(_in_process, case, order) for case in cases]
    try:
        yield from (future.result() for future in as_completed(futures))
    except BrokenProcessPool:
        raise PalpateError(
            f"one of {workers} processes ended; memory may have run out, and fewer workers (--workers) need less. What "
            "was encoded is kept: run it again"
        ) from None
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    pool.shutdown()


def _start_worker() -> None:
    """One thread, whatever the user's own settings: an embedding's last digits follow from it."""
    import torch

    torch.set_num_threads(1)
    serve_parent()
