"""Which images a folder holds: the files that palpate reads, and each series of DICOM files as one image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from palpate.errors import FormatError, InputError
from palpate.images.formats import suffix_of

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Entry:
    """An image of a folder: a file, or one series of a folder of DICOM files. `name` is what the table calls it.

    `damage` says why there is no use in reading it; empty for all but files that seem to have been DICOM. Of DICOM,
    `uid` is the SeriesInstanceUID, also where one file is all of the series, and `lies_in` what holds it: the name of
    the sub-folder, or of its first file. Other than `name`, neither depends on which other series are there.
    """

    path: Path
    name: str
    series: str | None = None
    damage: str = ""
    uid: str | None = None
    lies_in: str = ""


@dataclass(frozen=True)
class Skipped:
    """What lies in the folder and is no image, and why."""

    name: str
    reason: str


def images_in(folder: Path, *, leave_out: Iterable[Path] = ()) -> tuple[list[Entry], list[Skipped]]:
    """The images in a folder, by name, and what else lies there; hidden files and the paths to leave out are no matter.

    Its sub-folders are not searched, but for DICOM: each series in one is an image. So is each series of DICOM files
    in the folder itself, which may thus be a single image. A file without a suffix among DICOM files that seems to have
    been one of them is an image that is damaged, not one that was never there.

    Raises:
        FormatError: no such folder.
    """
    if not folder.is_dir():
        raise FormatError(f"there is no folder {folder}")
    ours = {path.resolve() for path in leave_out}
    found: list[Entry] = []
    skipped: list[Skipped] = []
    loose: list[Path] = []
    unknown: list[Path] = []
    try:
        lying_there = sorted(folder.iterdir())
    except OSError as error:
        raise FormatError(f"cannot look into {folder}: {error.strerror or error}") from error
    for path in lying_there:
        if path.name.startswith(".") or path.resolve() in ours:
            continue
        if path.is_dir():
            files = dicom_in(path)
            images, others = _by_series(path, files, loose=False)
            images += [_damaged(one, path, loose=False) for one in _seem_lost(_others(path, files), files)]
            found += images
            # Reports and the like beside the images of a series are no news.
            skipped += [] if images else others or [Skipped(path.name, "a folder without DICOM images")]
        elif _is_dicom(path):
            loose.append(path)
        elif suffix_of(path):
            found.append(Entry(path, path.name))
        else:
            unknown.append(path)
    images, others = _by_series(folder, loose, loose=True)
    lost = _seem_lost(unknown, loose)
    found += [_damaged(path, folder, loose=True) for path in lost]
    skipped += [Skipped(path.name, "of no kind that palpate reads") for path in unknown if path not in lost]
    return sorted(found + images, key=lambda entry: entry.name), sorted(skipped + others, key=lambda one: one.name)


def dicom_in(folder: Path, *, leave_out: Path | None = None) -> list[Path]:
    """The DICOM files in a folder and those below it, without hidden ones and what lies in the folder to leave out.

    `leave_out` is a path that was resolved.
    """
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith(".")
        and (leave_out is None or leave_out not in path.resolve().parents)
        and _is_dicom(path)
    ]


def _is_dicom(path: Path) -> bool:
    """Whether it is a file that is DICOM by its name, or, where its name says nothing, by its start."""
    if not path.is_file():
        return False
    suffix = suffix_of(path)
    if suffix:
        return suffix in _DICOM_SUFFIXES
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # it may not be opened, so it will be told as a file of no kind
        return False


def _others(folder: Path, dicom: Sequence[Path]) -> list[Path]:
    """The files in a folder and those below it that are neither DICOM nor of another known kind, nor hidden."""
    known = set(dicom)
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path not in known and path.is_file() and not path.name.startswith(".") and not suffix_of(path)
    ]


def _seem_lost(files: Sequence[Path], dicom: Sequence[Path]) -> list[Path]:
    """Those of the files, none of which begins like DICOM, that seem to have been DICOM: cut short, or overwritten.

    They have no suffix, lie beside DICOM files, and are called like one of these (IM7 beside IM6) or are no text. So
    neither is README nor LICENSE.
    """
    beside: dict[Path, set[str]] = {}
    for path in dicom:
        beside.setdefault(path.parent, set()).add(_kind_of_name(path))
    return [
        path
        for path in files
        if path.parent in beside
        and re.fullmatch(r"(\.[\d_-]+)?", path.suffix)  # 1.2.840.7 is a whole name
        and (_kind_of_name(path) in beside[path.parent] or _holds_zeros(path))
    ]


def _kind_of_name(path: Path) -> str:
    return re.sub(r"[\d.]+", "#", path.name)


def _holds_zeros(path: Path) -> bool:
    """Whether there is a zero byte at its start, as in no text."""
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(4096)
    except OSError:
        return False


def _damaged(path: Path, folder: Path, *, loose: bool) -> Entry:
    return Entry(
        path,
        _name_of(path, folder, loose=loose),
        damage=f"{path} lies among DICOM files and does not begin like one, so it seems damaged; copy it again, or "
        "remove it",
    )


def _name_of(path: Path, folder: Path, *, loose: bool) -> str:
    """What a single file of a folder is called; in a sub-folder, two files of one name may lie below it."""
    return path.name if loose else "_".join([folder.name, *path.relative_to(folder).parts])


def _by_series(folder: Path, files: Sequence[Path], *, loose: bool) -> tuple[list[Entry], list[Skipped]]:
    """DICOM files of a folder as images: a file that is alone in its series, or all files of a series.

    Files that are `loose` lie beside others, and one of them is called by its own name rather than its folder's.
    """
    if not files:
        return [], []
    from palpate.images.formats.dicom import series_of  # it takes longer to import than most folders to list

    groups: dict[str, list[Path]] = {}
    skipped: list[Skipped] = []
    images: list[Entry] = []
    for path in files:
        try:
            series = series_of(path)
        except InputError:  # reading it will say what is wrong
            images.append(Entry(path, _name_of(path, folder, loose=loose)))
            continue
        if series is None:
            skipped.append(Skipped(path.name, "DICOM, but not an image"))
        else:
            groups.setdefault(series, []).append(path)
    name = folder.resolve().name
    ends = Counter(series.rpartition(".")[2] for series in groups)
    for series, members in groups.items():
        one = members[0]
        lies_in = one.name if loose else folder.name
        if len(members) == 1:
            called = one.name if loose else name if len(groups) == 1 else f"{name}_{one.name}"
            images.append(Entry(one, called, uid=series, lies_in=lies_in))
        else:
            end = series.rpartition(".")[2]
            called = name if len(groups) == 1 else f"{name}_{end if ends[end] == 1 else series}"
            images.append(Entry(folder, called, series, uid=series, lies_in=lies_in))
    return images, skipped
