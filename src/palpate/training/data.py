"""Which cases a recipe trains on and which it validates with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from palpate.datasets import open_dataset
from palpate.datasets.case import Case
from palpate.datasets.splitting import split
from palpate.errors import DatasetError
from palpate.training.recipe import DataRecipe
from palpate.training.scenes import rng_for


def cases_for(data: DataRecipe, *, seed: int) -> tuple[list[Case], list[Case]]:
    """Cases to train on, and cases to validate with; no subject is in both.

    Raises:
        DatasetError: the data cannot be opened, nothing is left to train on, or a subject crosses the two.
    """
    found = open_dataset(data.path, labels=data.labels, dataset=list(data.dataset) or None, channel=data.channel)
    _check_exist("leave_out", data.leave_out, {case.dataset for case in found}, "data set")
    found = [case for case in found if case.dataset not in data.leave_out and _has(case, data.only)]
    # A folder of images has no splits: all of it is `train`.
    everything = not data.train or (data.train == "train" and not any(case.split for case in found))
    train = [case for case in found if everything or case.split == data.train]
    if not train:
        raise DatasetError(
            f"nothing of {data.path} is left to train on; check train = {data.train!r}, dataset, leave_out and only in "
            "[data] (splits: " + (", ".join(sorted({case.split for case in found})) or "none") + ")"
        )
    if data.val not in ("", "val"):  # whoever names a split wants that one
        _check_exist("val", [data.val], {case.split for case in found if case.split}, "split")
    val = [case for case in found if data.train and data.val and case.split == data.val]
    if not val:
        unassigned = [replace(case, split="") for case in train]
        fractions = {"train": 1 - data.held_out, "val": data.held_out}
        drawn = split(unassigned, fractions=fractions, rng=np.random.default_rng(seed))
        train = [case for case in drawn if case.split == "train"]
        val = [case for case in drawn if case.split == "val"]
        subjects = sorted({case.subject for case in train})
        if not val and len(subjects) > 1:  # a tenth of five subjects is nobody, and nothing would be validated
            one = subjects[int(np.random.default_rng(seed).integers(len(subjects)))]
            val = [case for case in train if case.subject == one]
            train = [case for case in train if case.subject != one]
    # By name alone, as everywhere: equal names in two data sets are one person.
    both = {case.subject for case in train} & {case.subject for case in val}
    if both:
        raise DatasetError(
            f"{min(both)} is in both splits, so validation would be flattered; `palpate data split` makes splits by "
            "subject"
        )
    return _some(train, data.cases_per_dataset, seed), val


def _some(cases: Sequence[Case], most: int | None, seed: int) -> list[Case]:
    """At most so many cases of each data set, in their order."""
    places: dict[str, list[int]] = {}
    for place, case in enumerate(cases):
        places.setdefault(case.dataset, []).append(place)
    kept: list[int] = []
    for name, own in places.items():
        kept += [own[i] for i in rng_for(seed, "cases", name).permutation(len(own))[:most].tolist()]
    return [cases[place] for place in sorted(kept)]


def _check_exist(key: str, wanted: Sequence[str], there: set[str], kind: str) -> None:
    """A name with a slip in it would be left out silently, and what it names would be trained on."""
    if unknown := [name for name in wanted if name not in there]:
        raise DatasetError(f"{key}: there is no {kind} {unknown[0]!r}; there are: {', '.join(sorted(there)) or 'none'}")


def _has(case: Case, only: dict[str, str]) -> bool:
    extra = dict(case.extra)
    return all(extra.get(column) == value for column, value in only.items())


def described(cases: Sequence[Case], val: Sequence[Case]) -> str:
    """One line for a card: how many images of which data sets."""
    counts: dict[str, int] = {}
    for case in cases:
        counts[case.dataset] = counts.get(case.dataset, 0) + 1
    parts = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f"{len(cases)} images to train on ({parts}), {len(val)} to validate with"
