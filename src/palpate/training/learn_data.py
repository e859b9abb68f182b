"""Which few images prompts are learned from, and what is looked for in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from palpate.datasets import open_dataset
from palpate.datasets.case import Case, Region
from palpate.datasets.splitting import split
from palpate.errors import DatasetError, PalpateError, SettingError
from palpate.models.promptable import LearnedClass
from palpate.training.learn_recipe import LearnDataRecipe, parse_class
from palpate.training.scenes import rng_for

LARGEST_LABEL = 65535
"""Label maps are written with 16 bits."""


def few(data: LearnDataRecipe, *, seed: int) -> tuple[list[Case], list[Case]]:
    """So many cases to learn from, and cases to validate with (none, if nothing is to be held out).

    The cases are drawn round by round, one of every subject before a second of any.

    Raises:
        DatasetError: the data cannot be opened, nothing is left to learn from, or a subject would be on both sides.
        SettingError: two ways of validating.
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
    if val and data.held_out:
        raise SettingError("val and held_out both say what to validate with; give one of them")
    chosen = drawn(train, data.shots, seed=seed)
    # By name alone, as everywhere: equal names in two data sets are one person.
    if both := {case.subject for case in chosen} & {case.subject for case in val}:
        raise DatasetError(
            f"{min(both)} would be learned from and validated with, so validation would be flattered; `palpate data "
            "split` makes splits by subject"
        )
    if not val and data.held_out:
        unassigned = [replace(case, split="") for case in chosen]
        parts = split(
            unassigned,
            fractions={"train": 1 - data.held_out, "val": data.held_out},
            rng=np.random.default_rng(seed),
        )
        chosen = [case for case in parts if case.split == "train"]
        val = [case for case in parts if case.split == "val"]
        subjects = sorted({case.subject for case in chosen})
        if not val and len(subjects) > 1:  # a fifth of two subjects is nobody, and nothing would be validated
            one = subjects[int(np.random.default_rng(seed).integers(len(subjects)))]
            val = [case for case in chosen if case.subject == one]
            chosen = [case for case in chosen if case.subject != one]
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

    A class has the first value of its region in label maps; where that is taken by another class (an nnU-Net region may
    lie in another one), the next value that nobody has.

    Raises:
        DatasetError: a target that is in none of the cases, or a case that cannot be read.
        SettingError: a target that cannot be read.
    """
    known: dict[str, tuple[int, ...]] = {}
    for case in cases:
        try:
            labels = case.read().labels
        except PalpateError as error:
            raise DatasetError(f"{case.dataset}/{case.name}: {error}") from error
        for region in case.objects(labels):
            known.setdefault(region.name, region.values)
    there = ", ".join(name if (name,) == tuple(map(str, v)) else f"{name}={v[0]}" for name, v in known.items())
    if not targets:
        names = sorted(known, key=lambda name: known[name][0])
        return _numbered([(name, known[name][0]) for name in names])
    values = {value for of_region in known.values() for value in of_region}
    found: list[tuple[str, int]] = []
    for text in targets:
        name, value = parse_class(text)
        if name in known and value is not None and value not in known[name]:
            raise DatasetError(f"the target {text!r} has the label {known[name][0]} in these data; there are: {there}")
        if name not in known and (value is None or value not in values):
            raise DatasetError(f"no image holds the target {text!r}; there are: {there or 'no labels at all'}")
        found.append((name, known[name][0] if name in known else int(value or 0)))
    by_value = [value for name, value in found if name not in known]
    if len(dict(found)) < len(found) or len(set(by_value)) < len(by_value):
        raise DatasetError("two targets are the same one; name each once")
    return _numbered(found)


def _numbered(named: Sequence[tuple[str, int]]) -> tuple[LearnedClass, ...]:
    taken: set[int] = set()
    classes: list[LearnedClass] = []
    for name, value in named:
        free = value if value not in taken else max([*taken, *(other for _, other in named)]) + 1
        if free > LARGEST_LABEL:
            raise DatasetError(f"the label {free} of {name} does not fit a 16-bit label map; number the labels from 1")
        taken.add(free)
        classes.append(LearnedClass(name, free))
    return tuple(classes)


def asking(cases: Sequence[Case], classes: Sequence[LearnedClass]) -> list[Case]:
    """The same cases with the classes as their regions, in the order of the classes.

    A case that names its regions and has none of a class's name cannot tell whether the class is there, whatever its
    label values are: it gets no region of that name.
    """
    found: list[Case] = []
    for case in cases:
        named = {region.name: region for region in case.regions}
        if named:
            regions = tuple(replace(named[one.name]) for one in classes if one.name in named)
        else:
            regions = tuple(Region(one.name, (one.value,)) for one in classes)
        if regions:
            found.append(replace(case, regions=regions))
    return found


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


def one_modality(cases: Sequence[Case]) -> str:
    """What all these images are said to be, CT or MR or another; empty where they differ, or some do not say."""
    said = {case.modality for case in cases}
    return said.pop() if len(said) == 1 else ""
