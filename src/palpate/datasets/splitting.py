"""Training, validation and test, by subject."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from palpate.datasets.case import Case
from palpate.errors import DatasetError, SettingError

_Counts = dict[str, dict[str, float]]
"""Cases by dataset and split."""


def split(
    cases: Sequence[Case], *, fractions: Mapping[str, float], rng: np.random.Generator, keep: bool = False
) -> list[Case]:
    """The cases, in their order, each with the split that its subject drew.

    - All cases of a subject get one split.
    - Every dataset is split on its own, so that each has its share of every split. Datasets that share subjects are
      split together.
    - Subjects come in random order, each to the split that lacks most cases. A dataset that shares no subjects so
      meets its fractions to within the cases of its largest subject.
    - The same subjects and generator give the same split, in whatever order the cases come and whichever other
      datasets are there.
    - With `keep`, subjects that have a split already stay there, and the others fill up.

    Raises:
        SettingError: fractions that are negative or do not add up to one.
        DatasetError: with `keep`, a subject that crosses splits already.
    """
    _check(fractions)
    drawn: dict[str, str] = _kept(cases) if keep else {}
    # One number of the generator, and the datasets' names, so that one dataset's dice do not move another's.
    base = int(rng.integers(2**32))
    for datasets in _groups(cases):
        seed = [base, zlib.crc32("\n".join(datasets).encode())]
        ours = [case for case in cases if case.dataset in datasets]
        drawn |= _drawn(ours, fractions, np.random.default_rng(seed), drawn)
    return [replace(case, split=drawn[case.subject]) for case in cases]


def _drawn(
    cases: list[Case], fractions: Mapping[str, float], rng: np.random.Generator, kept: Mapping[str, str]
) -> dict[str, str]:
    """A split for every subject that has none."""
    sizes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for case in cases:
        sizes[case.subject][case.dataset] += 1
    # Cases that stay in a split of another name take no part.
    counted = [case for case in cases if kept.get(case.subject, "") in ("", *fractions)]
    lacking: _Counts = defaultdict(dict)
    for dataset in sorted({case.dataset for case in counted}):
        total = sum(case.dataset == dataset for case in counted)
        lacking[dataset] = {name: share * total for name, share in fractions.items() if share > 0}
    for case in counted:
        name = kept.get(case.subject, "")
        if name in lacking[case.dataset]:
            lacking[case.dataset][name] -= 1
    drawn: dict[str, str] = {}
    free = sorted(set(sizes) - set(kept))
    for index in rng.permutation(len(free)):
        subject = free[int(index)]
        chosen = _neediest(sizes[subject], lacking, [name for name, share in fractions.items() if share > 0])
        drawn[subject] = chosen
        for dataset, count in sizes[subject].items():
            lacking[dataset][chosen] -= count
    return drawn


def _neediest(size: Mapping[str, int], lacking: _Counts, names: list[str]) -> str:
    # The choice that brings the squared distance to all datasets' fractions down most; with one dataset, the split
    # that lacks most.
    return max(names, key=lambda name: sum(count * lacking[dataset][name] for dataset, count in size.items()))


def _groups(cases: Iterable[Case]) -> list[tuple[str, ...]]:
    """Datasets that share subjects, directly or through others."""
    groups: list[tuple[set[str], set[str]]] = []  # datasets, subjects
    subjects: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        subjects[case.dataset].add(case.subject)
    for dataset, own in sorted(subjects.items()):
        touching = [group for group in groups if group[1] & own]
        groups = [group for group in groups if not group[1] & own]
        groups.append(
            ({dataset}.union(*(group[0] for group in touching)), own.union(*(group[1] for group in touching)))
        )
    return [tuple(sorted(datasets)) for datasets, _ in groups]


def _kept(cases: Iterable[Case]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for case in cases:
        if case.split and kept.setdefault(case.subject, case.split) != case.split:
            raise DatasetError(
                f"the subject {case.subject} is in {kept[case.subject]} and in {case.split}, so that its split cannot "
                "be kept; correct it, or split anew"
            )
    return kept


def _check(fractions: Mapping[str, float]) -> None:
    said = ", ".join(f"{name} {share:g}" for name, share in fractions.items())
    if not all(math.isfinite(share) and 0 <= share <= 1 for share in fractions.values()):
        raise SettingError(f"the fractions are {said}; each lies between 0 and 1")
    if not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise SettingError(f"the fractions are {said}, which is {sum(fractions.values()):g} in all; make it 1")
