"""Cases of the MedSAM challenges: every .npz with `imgs` and `gts`, in a folder or up to two below it.

Folders below the first are datasets of their own, called by their path. In the validation sets images and references
are apart: `imgs/NAME.npz` holds `imgs`, `gts/NAME.npz` holds `gts`. The modality is what the file's or folder's name
states (`CT_...`, `MR_...`); the values are display values all the same, and no window is applied to them.
"""

from __future__ import annotations

from pathlib import Path

from palpate.datasets.case import Case
from palpate.datasets.layouts import Listing
from palpate.datasets.pair import FILES, kind_in
from palpate.datasets.report import Problem


def recognises(path: Path) -> bool:
    """Whether there is an .npz in it, or up to two folders below."""
    return path.is_dir() and bool(_files(path))


def listing(path: Path) -> Listing:
    """The cases of the folder. Whether a file holds `gts` is only seen when it is opened."""
    apart = all((path / name).is_dir() and any((path / name).glob("*.npz")) for name in ("imgs", "gts"))
    if apart:
        return _apart(path)
    own_name = path.resolve().name
    files = _files(path)
    several = len({file.parent for file in files}) > 1
    cases: list[Case] = []
    for file in files:
        folder = file.parent.relative_to(path).as_posix()
        dataset = own_name if folder == "." else folder
        subject = f"{dataset}/{file.stem}" if several else file.stem
        modality, extra = kind_in(file.stem, dataset)
        cases.append(Case(dataset, subject, file.stem, file, file, FILES, modality=modality, extra=extra))
    return Listing(tuple(cases), FILES)


def _apart(path: Path) -> Listing:
    dataset = path.resolve().name
    images, labels = ({file.stem: file for file in (path / name).glob("*.npz")} for name in ("imgs", "gts"))
    cases: list[Case] = []
    incomplete: list[Problem] = []
    for name in sorted({*images, *labels}):
        if name in images and name in labels:
            modality, extra = kind_in(name)
            files = images[name], labels[name]
            cases.append(Case(dataset, name, name, *files, FILES, modality=modality, extra=extra))
            continue
        there = images.get(name) or labels[name]
        kind, absent = ("image", "imgs") if name in labels else ("label", "gts")
        what = f"{there} has no partner {absent}/{name}.npz"
        incomplete.append(Problem("error", f"missing {kind}", what, "add or remove the file", dataset, name))
    return Listing(tuple(cases), FILES, tuple(incomplete))


def _files(path: Path) -> list[Path]:
    return sorted(file for pattern in ("*.npz", "*/*.npz", "*/*/*.npz") for file in path.glob(pattern))
