"""The training folders of MedSAM and LiteMedSAM: `imgs/NAME.npy` and `gts/NAME.npy`, one slice or picture a file.

Images are (y, x) or (y, x, 3), floating point in [0, 1] or 8 bits. They are given as 8 bits, and as one channel where
all three are equal. `NAME-000` is slice 0 of the volume NAME, which is the subject.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from palpate.datasets.case import Case
from palpate.datasets.layouts import Listing, joined, subfolders
from palpate.datasets.pair import FILES, kind_in
from palpate.datasets.report import Problem


def recognises(path: Path) -> bool:
    """Whether it is such a folder, or holds some."""
    return path.is_dir() and bool(_roots(path))


def listing(path: Path) -> Listing:
    """The pairs of one folder, or of all that lie in it."""
    roots = _roots(path)
    if roots == [path]:
        return _listing(path)
    return joined(_nested(_listing(root)) for root in roots)


def _roots(path: Path) -> list[Path]:
    return [path] if _is_root(path) else [folder for folder in subfolders(path) if _is_root(folder)]


def _is_root(path: Path) -> bool:
    return all((path / name).is_dir() and any((path / name).glob("*.npy")) for name in ("imgs", "gts"))


def _nested(one: Listing) -> Listing:
    # Equal names in two datasets mean nothing.
    return replace(one, cases=tuple(replace(case, subject=f"{case.dataset}/{case.subject}") for case in one.cases))


def _listing(root: Path) -> Listing:
    dataset = root.resolve().name
    images, labels = ({path.stem: path for path in (root / name).glob("*.npy")} for name in ("imgs", "gts"))
    cases: list[Case] = []
    incomplete: list[Problem] = []
    for name in sorted({*images, *labels}):
        if name in images and name in labels:
            modality, extra = kind_in(name)
            subject = re.sub(r"-\d{3,}$", "", name)
            files = images[name], labels[name]
            cases.append(Case(dataset, subject, name, *files, FILES, modality=modality, extra=extra))
            continue
        there = images.get(name) or labels[name]
        kind, absent = ("image", "imgs") if name in labels else ("label", "gts")
        what = f"{there} has no partner {absent}/{name}.npy"
        incomplete.append(Problem("error", f"missing {kind}", what, "add or remove the file", dataset, name))
    return Listing(tuple(cases), FILES, tuple(incomplete))
