"""The files that an image is read from: its own, and those that belong to it without being named anywhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_LONGEST_HEADER = 2**24
"""What the readers allow, too."""

_NAMES_ITS_DATA = {
    ".mhd": re.compile(r"\s*(ElementDataFile)\s*[=:](.*)"),
    ".mha": re.compile(r"\s*(ElementDataFile)\s*[=:](.*)"),
    ".nhdr": re.compile(r"\s*(data ?file)\s*:=?(.*)", re.IGNORECASE),
    ".nrrd": re.compile(r"\s*(data ?file)\s*:=?(.*)", re.IGNORECASE),
}
"""The line of a header that names the file with the voxels."""

_TIFF = (".tif", ".tiff")


def files_of(path: Path, *, numbered: bool = False) -> Iterator[Path]:
    """The file, and what reading it depends on beside it. No voxel is read, and a missing file is named all the same.

    - The data file of a detached MetaImage or NRRD header. One outside the header's folder is never read, and not
      named here.
    - The spacing beside a TIFF, if it is there; see `spacing_beside`.
    - Of a DICOM folder every file that is not hidden, in the order of their names.
    """
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if not file.name.startswith(".") and file.is_file())
        return
    yield path
    suffix = path.suffix.lower()
    if suffix in _NAMES_ITS_DATA and (data := _data_file(path, _NAMES_ITS_DATA[suffix])) is not None:
        yield data
    if suffix in _TIFF and (spacing := spacing_beside(path, numbered=numbered)).is_file():
        yield spacing


def spacing_beside(path: Path, *, numbered: bool) -> Path:
    """Where the spacing of a TIFF volume is written, as nnU-Net does it: `CASE.json`, whether or not it is there.

    `numbered` images end in the number of their channel, which the .json does not have.
    """
    name = re.sub(r"_\d{4}$", "", path.stem) if numbered else path.stem
    return path.with_name(f"{name}.json")


def _data_file(path: Path, naming: re.Pattern[str]) -> Path | None:
    try:
        name = _named(path, naming)
        if not name or name.upper() == "LOCAL":
            return None
        folder = path.parent.resolve()
        found = (folder / name).resolve()
        found.is_file()  # raises where the name is impossible
        return path.parent / name if found.is_relative_to(folder) else None
    except (OSError, ValueError, RuntimeError):  # not there, a zero byte, a name too long, links in a circle
        return None


def _named(path: Path, naming: re.Pattern[str]) -> str:
    left = _LONGEST_HEADER
    with path.open("rb") as file:
        # A header ends at a blank line, or at the line that names the data.
        while left > 0 and (line := file.readline(left)).strip():
            left -= len(line)
            if match := naming.fullmatch(line.decode("utf-8", "replace").rstrip()):
                return match[2].strip()
    return ""
