"""Which few images prompts are learned from, and what is looked for in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from palpate.datasets import open_dataset
from palpate.datasets.case import Case
from palpate.datasets.splitting import split
from palpate.errors import DatasetError, PalpateError
from palpate.models.learned import LearnedClass
from palpate.training.learn_recipe import LearnDataRecipe, parse_class
from palpate.training.scenes import rng_for


def few(data: LearnDataRecipe, *, seed: int) -> tuple[list[Case], list[Case]]:
    """So many cases to learn from, and cases to validate with (none, if nothing is to be held out).

    The cases are drawn round by round, one of every subject before a second of any.

    Raises:
        DatasetError: the data cannot be opened, or nothing is left to learn from.
    """
    found = open_dataset(data.path, labels=data.labels, dataset=list(data.dataset) or None, channel=data.channel)
    everything = not data.train or (data.train == "train" and not any(case.split for case in found))
    train = [case for case in found if everything or case.split == data.train]
    if not train:
        splits = ", ".join(sorted({case.split for case in found})) or "none"
        raise DatasetError(
            f"nothing of {data.path} is left to learn from; check train = {data.train!r} (splits: {splits})"
        )
    val = [case for case in found if data.val and case.split == data.val]
    if data.val and not val:
        raise DatasetError(f"val: {data.path} has no split {data.val!r}")
    chosen = drawn(train, data.shots, seed=seed)
    if not val and data.held_out:
        unassigned = [replace(case, split="") for case in chosen]
        parts = split(
            unassigned,
            fractions={"train": 1 - data.held_out, "val": data.held_out},
            rng=np.random.default_rng(seed),
        )
        chosen = [case for case in parts if case.split == "train"]
        val = [case for case in parts if case.split == "val"]
    return chosen, val


def drawn(cases: Sequence[Case], shots: int | None, *, seed: int) -> list[Case]:
    """So many of the cases, in their order: one of every subject before a second of any; None: all.

    Raises:
        DatasetError: there are fewer.
    """
    if shots is None:
        return list(cases)
    if shots > len(cases):
        raise DatasetError(
            f"{shots} images are asked for and {len(cases)} are there; ask for fewer, or leave out shots"
        )
    rng = rng_for(seed, "shots")
    order = rng.permutation(len(cases)).tolist()
    rounds: dict[str, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for rank, i in enumerate(order):
        subject = cases[i].subject
        ranked.append((rounds.get(subject, 0), rank, i))
        rounds[subject] = rounds.get(subject, 0) + 1
    return [cases[i] for i in sorted(i for _, _, i in sorted(ranked)[:shots])]


def classes_of(targets: Sequence[str], cases: Sequence[Case]) -> tuple[LearnedClass, ...]:
    """What is to be looked for: the targets, or every region that the cases have, in the order of label values.

    Raises:
        DatasetError: a target that is in none of the cases, or a case that cannot be read.
        SettingError: a target that cannot be read.
    """
    known: dict[str, int] = {}
    for case in cases:
        try:
            labels = case.read().labels
        except PalpateError as error:
            raise DatasetError(f"{case.dataset}/{case.name}: {error}") from error
        for region in case.objects(labels):
            known.setdefault(region.name, region.values[0])
    if not targets:
        return tuple(LearnedClass(name, value) for name, value in sorted(known.items(), key=lambda item: item[1]))
    values = set(known.values())
    found: list[LearnedClass] = []
    for text in targets:
        name, value = parse_class(text)
        if name not in known and (value is None or value not in values):
            there = ", ".join(f"{name}={value}" if name != str(value) else name for name, value in known.items())
            raise DatasetError(f"no image holds the target {text!r}; there are: {there or 'no labels at all'}")
        found.append(LearnedClass(name, known[name] if name in known else int(value or 0)))
    if len({one.value for one in found}) < len(found) or len({one.name for one in found}) < len(found):
        raise DatasetError("two targets are the same one; name each once")
    return tuple(found)


def described(train: Sequence[Case], val: Sequence[Case]) -> str:
    """One line for a card: how many images of which data sets."""
    counts: dict[str, int] = {}
    for case in train:
        counts[case.dataset] = counts.get(case.dataset, 0) + 1
    parts = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f"{shown(train)} to learn from ({parts}), {len(val)} to validate with"


def shown(cases: Sequence[Case]) -> str:
    """`10 images`."""
    return f"{len(cases)} image{'' if len(cases) == 1 else 's'}"
