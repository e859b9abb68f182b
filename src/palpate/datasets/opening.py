"""A dataset by its path: which layout it has, and its cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from palpate.datasets.case import Case
from palpate.datasets.layouts import Listing, folders, manifest, nnunet, npy, npz
from palpate.datasets.report import Problem
from palpate.errors import DatasetError, SettingError


@dataclass(frozen=True)
class Layout:
    """A way to lie on disk: how it looks, and the functions that know it."""

    name: str
    look: str
    recognises: Callable[[Path], bool]
    listing: Callable[..., Listing]
    has_channels: bool = False


# The first that recognises a path lists it.
LAYOUTS = (
    Layout("manifest", "a manifest.csv with the columns image and label", manifest.recognises, manifest.listing),
    Layout("nnU-Net raw", "imagesTr, labelsTr and dataset.json", nnunet.recognises, nnunet.listing, has_channels=True),
    Layout("MedSAM npy", "imgs/*.npy and gts/*.npy", npy.recognises, npy.listing),
    Layout("two folders", "images/ and labels/ (or --labels)", folders.recognises, folders.listing, has_channels=True),
    Layout("challenge npz", "*.npz with imgs and gts", npz.recognises, npz.listing),
)


def open_dataset(
    path: str | Path,
    *,
    labels: str | Path | None = None,
    dataset: Sequence[str] | None = None,
    split: str | None = None,
    channel: int = 0,
    subject_pattern: str | None = None,
    allow_missing: bool = False,
) -> list[Case]:
    """The cases of a dataset in any known layout. No image is opened.

    `labels` is the folder of labels where `path` is the folder of images. `dataset` and `split` choose among those
    that the layout states. `channel` picks one channel of cases that have several. `subject_pattern` finds the
    subject in a case's name: its first group, or all that it matches.

    A case without its files is an error, because leaving it out would change what is measured; with `allow_missing`
    it is left out.

    Raises:
        DatasetError: no known layout, missing files, nothing left to choose from, or a name without a subject.
        SettingError: `subject_pattern` is no regular expression.
    """
    _, listing = list_dataset(
        path, labels=labels, dataset=dataset, split=split, channel=channel, subject_pattern=subject_pattern
    )
    if listing.incomplete and not allow_missing:
        first = "\n".join(f"  {problem.what}" for problem in listing.incomplete[:5])
        more = len(listing.incomplete) - 5
        raise DatasetError(
            f"{len(listing.incomplete)} files or cases are missing in {path}; `palpate data check` lists them all, and "
            f"measuring without them would measure something else:\n{first}" + (f"\n  and {more} more" * (more > 0))
        )
    if not listing.cases:
        raise DatasetError(f"{path} holds no complete pair of image and label; `palpate data check {path}` says why")
    return list(listing.cases)


def list_dataset(
    path: str | Path,
    *,
    labels: str | Path | None = None,
    dataset: Sequence[str] | None = None,
    split: str | None = None,
    channel: int = 0,
    subject_pattern: str | None = None,
) -> tuple[str, Listing]:
    """The layout's name, and everything it lists, incomplete cases and problems too.

    Raises:
        DatasetError, SettingError: as `open_dataset`, but for missing files.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"there is no file or folder {path}")
    if labels is not None and not path.is_dir():
        raise DatasetError(f"labels go with a folder of images, and {path} is a file; leave them out")
    try:
        if labels is not None:
            layout, listing = "two folders", folders.listing(path, labels=Path(labels), channel=channel)
        else:
            found = layout_of(path)
            options = {"channel": channel} if found.has_channels else {}
            layout, listing = found.name, found.listing(path, **options)
    except OSError as error:
        raise DatasetError(f"cannot look into {error.filename or path}: {error.strerror or error}") from error
    if subject_pattern is not None:
        listing = replace(listing, cases=tuple(_with_subject(case, subject_pattern) for case in listing.cases))
    return layout, chosen_from(listing, dataset, split)


def layout_of(path: Path) -> Layout:
    """The layout that a path has.

    Raises:
        DatasetError: none that is known; the message lists them.
    """
    for layout in LAYOUTS:
        if layout.recognises(path):
            return layout
    known = "\n".join(f"  {layout.name}: {layout.look}" for layout in LAYOUTS)
    if path.is_file():
        raise DatasetError(f"{path} is a file and no .csv; a dataset is one of\n{known}")
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    inside = ", ".join(entries[:8]) + (f" and {len(entries) - 8} more" if len(entries) > 8 else "")
    raise DatasetError(f"{path} holds {inside or 'nothing'}; a dataset is one of\n{known}")


def chosen_from(listing: Listing, datasets: Sequence[str] | None, split: str | None) -> Listing:
    """The part of a listing that was asked for.

    Raises:
        DatasetError: no such dataset or split.
    """
    for wanted, attribute, word in ((datasets, "dataset", "dataset"), ([split] if split else None, "split", "split")):
        if wanted is None:
            continue
        stated: set[str] = {getattr(one, attribute) for one in (*listing.cases, *listing.incomplete)} - {""}
        for name in wanted:
            if name not in stated:
                there = f"there are {', '.join(sorted(stated))}" if stated else f"no case states a {word}"
                raise DatasetError(f"there is no {word} {name!r}; {there}")

    def asked(one: Case | Problem) -> bool:
        # What is said about a whole dataset or about no split in particular stays.
        ours = datasets is None or one.dataset in datasets or (isinstance(one, Problem) and not one.dataset)
        return ours and (split is None or one.split == split or (isinstance(one, Problem) and not one.split))

    return replace(
        listing,
        cases=tuple(filter(asked, listing.cases)),
        incomplete=tuple(filter(asked, listing.incomplete)),
        problems=tuple(filter(asked, listing.problems)),
    )


def _with_subject(case: Case, pattern: str) -> Case:
    try:
        match = re.search(pattern, case.name)
    except re.error as error:
        raise SettingError(f"the subject pattern {pattern!r} is no regular expression ({error})") from None
    found = match and (match[1] if match.re.groups else match[0])
    if not found:
        raise DatasetError(f"the pattern {pattern!r} finds no subject in the name {case.name!r}; widen the pattern")
    prefix = f"{case.dataset}/"
    return replace(case, subject=prefix + found if case.subject.startswith(prefix) else found)
