"""Older masks and previews of images that failed: moved aside, so that nobody takes them for what was made now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path

from palpate.errors import OutputError
from palpate.inference.folder_book import make_folder

ASIDE = "earlier"
"""The folder for them, where they were."""

Seen = dict[Path, tuple[int, int]]
"""Files, and by what one sees that nobody has written them since: inode, and time in nanoseconds."""


def seen(paths: Iterable[Path]) -> Seen:
    """Those of the files that exist, as they are now."""
    found: Seen = {}
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        found[path] = (stat.st_ino, stat.st_mtime_ns)
    return found


def set_aside(before: Mapping[Path, tuple[int, int]]) -> list[Path]:
    """Move what was there before and was not written since into a folder `earlier`; the paths it has now.

    Nothing there is replaced: a second `p7.png` becomes `2-p7.png`.

    Raises:
        OutputError: a file cannot be moved; those before it were.
    """
    moved: list[Path] = []
    for path in [path for path, now in seen(before).items() if before[path] == now]:
        make_folder(path.parent / ASIDE)
        place = _free(path.parent / ASIDE, path.name)
        try:
            path.rename(place)
        except OSError as error:
            raise OutputError(
                f"{path} is older and cannot be moved aside: {error.strerror or error}; remove it"
            ) from error
        moved.append(place)
    return moved


def _free(folder: Path, name: str) -> Path:
    names = (name if number == 1 else f"{number}-{name}" for number in count(1))
    return next(folder / name for name in names if not (folder / name).exists())
