"""Encoding a data set ahead: `palpate embed`, and the first minutes of a fine-tuning run with a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from palpate.datasets.case import Case
from palpate.errors import DatasetError, PalpateError
from palpate.inference.embedding_cache import EmbeddingCache
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
    slices_per_volume: int | None = None,
    min_pixels: int = 1,
    intensity: str | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Put the embedding of every scene of these cases into the cache; those that are there are not encoded again.

    Interrupted, it has lost at most the scene it was encoding.

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
                slices_per_volume=slices_per_volume,
                min_pixels=min_pixels,
                intensity=intensity,
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
