"""Two folders, images and labels, whose files have equal stems.

Subfolders are followed; a case's name is its path without suffix. An image may end in nnU-Net's channel number
(`CASE_0000.nii.gz` with the label `CASE.nii.gz`). A folder of DICOM files is one image. The subject is the name.
"""

from __future__ import annotations

import re
from pathlib import Path

from palpate.datasets.case import Case
from palpate.datasets.layouts import Listing, files_by_stem
from palpate.datasets.pair import FILES
from palpate.datasets.report import Problem
from palpate.errors import DatasetError

_LABELS = ("labels", "masks")


def recognises(path: Path) -> bool:
    """Whether it is a folder with `images` and `labels` (or `masks`) in it."""
    return (path / "images").is_dir() and any((path / name).is_dir() for name in _LABELS)


def listing(path: Path, *, labels: Path | None = None, channel: int = 0) -> Listing:
    """The pairs in `path` and `labels`, or in the subfolders of `path` that are called so.

    Raises:
        DatasetError: a folder is not there.
    """
    images = path
    name = path.resolve().name
    if labels is None:
        images, labels = path / "images", next(path / name for name in _LABELS if (path / name).is_dir())
    elif name == "images":
        name = path.resolve().parent.name
    for folder in (images, labels):
        if not folder.is_dir():
            raise DatasetError(f"there is no folder {folder}; give the folder of images, and the labels' with --labels")
    references = files_by_stem(labels)
    pictures, others = _channels(files_by_stem(images), set(references), channel)
    incomplete: list[Problem] = []
    cases: list[Case] = []
    for case in sorted({*pictures, *references}):
        found, wanted = pictures.get(case, []), references.get(case, [])

        def say(kind: str, what: str, remedy: str, *, case: str = case) -> Problem:
            return Problem("error", kind, what, remedy, dataset=name, case=case)

        if not found and case in others:
            what = f"there is no channel {channel} of {case}, only {', '.join(path.name for path in others[case])}"
            incomplete.append(say("missing channel", what, "choose another channel, or add the file"))
        elif not found:
            what = f"{wanted[0]} has no image of its name in {images}"
            incomplete.append(say("missing image", what, "add the image, or move the label away"))
        elif not wanted:
            what = f"{found[0]} has no label of its name in {labels}"
            incomplete.append(say("missing label", what, "add the label, or move the image away"))
        elif len(found) > 1 or len(wanted) > 1:
            several = ", ".join(map(str, found if len(found) > 1 else wanted))
            incomplete.append(say("ambiguous", f"{several} have the same stem", "keep one of them"))
        else:
            cases.append(Case(name, case, case, found[0], wanted[0], FILES))
    return Listing(tuple(cases), FILES, tuple(incomplete))


def _channels(
    images: dict[str, list[Path]], references: set[str], channel: int
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The images by their case, and the channels that were not chosen."""
    chosen: dict[str, list[Path]] = {}
    others: dict[str, list[Path]] = {}
    for name, paths in images.items():
        match = re.fullmatch(r"(.+)_(\d{4})", name)
        if name in references or match is None or match[1] not in references:
            chosen.setdefault(name, []).extend(paths)
        elif int(match[2]) == channel:
            chosen.setdefault(match[1], []).extend(paths)
        else:
            others.setdefault(match[1], []).extend(paths)
    return chosen, others
