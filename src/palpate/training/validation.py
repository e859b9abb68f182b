"""Measuring a network in training: the Dice on image pixels, for every validation prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool

from palpate.metrics import dice
from palpate.models.promptable import ImageEmbedding
from palpate.training.items import Item


@dataclass(frozen=True, eq=False)
class Measured:
    """The Dice by prompt, and the first masks that were found in this process, to be looked at."""

    dice: Mapping[str, float]
    samples: Sequence[tuple[Item, np.ndarray]]


@runtime_checkable
class Answering(Protocol):
    """What is measured: a `Student`, or what answers like one."""

    def features(self, items: Sequence[Item]) -> ImageEmbedding:
        """The embeddings of the items' scenes, one for each item."""
        ...

    def mask(
        self, features: ImageEmbedding, item: Item, autocast: AbstractContextManager[Any]
    ) -> Bool[np.ndarray, "row column"]:
        """What is found for one item, in image pixels; `features` are of this item alone."""
        ...


def measure(
    student: Answering,
    items: Mapping[str, Sequence[Item]],
    *,
    fabric: Any,
    samples: int,
    heed: Callable[[], None],
) -> Measured:
    """The Dice of every prompt: the mean over data sets of the mean over objects; nothing for a prompt without items.

    The network is measured as it is. Every prompt asks for the same objects in the same order. Several processes share
    them and all get all results. `samples` masks of each prompt are kept, of objects spread over this process's part of
    the list and so over data sets. `heed` is called before each object and may raise.
    """
    mine: dict[str, list[tuple[int, float]]] = {label: [] for label in items}
    shown: list[tuple[str, Item, np.ndarray]] = []
    count = max(map(len, items.values()), default=0)
    asked_here = range(fabric.global_rank, count, fabric.world_size)
    looked_at = _spread(asked_here, samples)
    with torch.inference_mode():
        for i in asked_here:
            heed()
            features = student.features([next(iter(items.values()))[i]])
            for label, asked in items.items():
                found = student.mask(features, asked[i], fabric.autocast())
                judged = asked[i].scene.judged
                counted = found if judged is None else found & judged  # what nobody labelled is neither right nor wrong
                mine[label].append((i, dice(counted, asked[i].scene.mask(asked[i].region))))
                if i in looked_at:
                    shown.append((label, asked[i], found))
    gathered = [mine]
    if fabric.world_size > 1:
        gathered = [{} for _ in range(fabric.world_size)]
        torch.distributed.all_gather_object(gathered, mine)
    return Measured(
        dice={
            label: _over_data_sets(asked, sorted(pair for part in gathered for pair in part[label]))
            for label, asked in items.items()
            if asked
        },
        samples=[(item, found) for label in items for name, item, found in shown if name == label],
    )


def _spread(places: Sequence[int], number: int) -> set[int]:
    """So many of these places, from the whole of the list."""
    return {places[int((i + 0.5) * len(places) / number)] for i in range(number)} if places else set()


def _over_data_sets(items: Sequence[Item], values: Sequence[tuple[int, float]]) -> float:
    by_dataset: dict[str, list[float]] = {}
    for i, value in values:
        by_dataset.setdefault(items[i].scene.case.dataset, []).append(value)
    return float(np.mean([np.mean(values) for values in by_dataset.values()]))
