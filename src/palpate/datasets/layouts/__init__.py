"""The layouts that datasets come in. One module a layout; a new one is a file and a line in `palpate.datasets.opening`.

Every module offers `recognises(path)` and `listing(path)`. Listing opens no image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from palpate.datasets.case import Case
from palpate.datasets.pair import Loader
from palpate.datasets.report import Problem

_IMAGES = (
    *(".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd"),
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npz", ".npy"),
)
_DICOM = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Listing:
    """What lies in a dataset, before any image is opened.

    - `incomplete` are the cases that cannot be had because a file is missing; `problems` is what else is wrong.
    - `further` are the other channels of an image, by the image's path.
    - `channels` is how many channels every image of a dataset must have, where the layout says so.
    - `subjects_stated` is whether somebody wrote down whose images these are.
    """

    cases: tuple[Case, ...]
    load: Loader
    incomplete: tuple[Problem, ...] = ()
    problems: tuple[Problem, ...] = ()
    further: Mapping[Path, tuple[Path, ...]] = field(default_factory=dict[Path, tuple[Path, ...]])
    channels: Mapping[str, int] = field(default_factory=dict[str, int])
    subjects_stated: bool = False


def stem(path: Path) -> str:
    """A file's name without its suffix, however many dots that has.

    >>> stem(Path("a/case.01.nii.gz"))
    'case.01'
    """
    name = path.name.lower()
    suffix = next((known for known in (*_IMAGES, *_DICOM) if name.endswith(known)), "")
    return path.name[: -len(suffix)] if suffix else path.name


def files_by_stem(folder: Path) -> dict[str, list[Path]]:
    """The images in a folder and its subfolders, by their path in it without suffix.

    A folder of DICOM files is one image. Hidden files, and files that are no images, do not count.
    """
    found: dict[str, list[Path]] = {}
    for path in _images(folder):
        relative = path.relative_to(folder)
        name = relative if path.is_dir() else relative.with_name(stem(path))
        found.setdefault(name.as_posix(), []).append(path)
    return found


def joined(listings: Iterable[Listing]) -> Listing:
    """Several listings as one; they share their way of loading."""
    every = list(listings)
    return Listing(
        cases=tuple(case for one in every for case in one.cases),
        load=every[0].load,
        incomplete=tuple(problem for one in every for problem in one.incomplete),
        problems=tuple(problem for one in every for problem in one.problems),
        further={path: others for one in every for path, others in one.further.items()},
        channels={name: count for one in every for name, count in one.channels.items()},
    )


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> Iterable[Path]:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if any(path.name.lower().endswith(_DICOM) for path in entries):
        yield folder
        return
    for path in entries:
        if path.is_dir():
            yield from _images(path)
        elif path.name.lower().endswith(_IMAGES):
            yield path
