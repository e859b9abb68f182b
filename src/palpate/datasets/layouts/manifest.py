"""A manifest.csv: one row a labelled image.

`image` and `label` are needed. `dataset`, `modality`, `subject`, `split`, `scribbles` (several, parted by `;`),
`scribble_convention`, `regions` and `ignore` are understood; other columns are kept. Paths are relative to the
manifest. They may be absolute or leave its folder: a manifest is a list that somebody wrote of files on this machine,
and they are only ever read as images.

Regions are names with their label values, `liver=1|kidneys=2+3`. In a name, `%7C` is a `|`, `%3D` a `=` and `%25`
a `%`, as in a URL; white space that would be lost is written so, too.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

from palpate.datasets.case import Case, Region, ScribbleConvention
from palpate.datasets.layouts import Listing, stem
from palpate.datasets.pair import FILES, known_modality
from palpate.datasets.report import Problem
from palpate.errors import DatasetError
from palpate.images.formats import check_writable, replacing

NAME = "manifest.csv"

_ALWAYS = ("dataset", "modality", "subject", "split", "image", "label", "scribbles")
_WHERE_STATED = ("scribble_convention", "regions", "ignore")
_UNDERSTOOD = (*_ALWAYS, *_WHERE_STATED)

_CONVENTIONS: tuple[ScribbleConvention, ...] = get_args(ScribbleConvention)

Row = dict[str, str]


def recognises(path: Path) -> bool:
    """Whether it is a manifest, or a folder with one."""
    return path.suffix.lower() == ".csv" if path.is_file() else (path / NAME).is_file()


def listing(path: Path) -> Listing:
    """The rows of the manifest.

    Raises:
        DatasetError: no table, one without the columns `image` and `label`, or regions, an `ignore` or a
            `scribble_convention` that cannot be understood: without them something else would be measured.
    """
    manifest = path if path.is_file() else path / NAME
    own_name = manifest.parent.resolve().name
    cases: list[Case] = []
    incomplete: list[Problem] = []
    problems: list[Problem] = []
    rows = [(number, {**row, "dataset": row.get("dataset") or own_name}) for number, row in read_rows(manifest)]
    lines: dict[tuple[str, str, str], int] = {}
    for (number, row), name in zip(rows, _names([row for _, row in rows]), strict=True):
        lack = _lack(row, manifest.parent)
        first = lines.setdefault((row["dataset"], row["image"], row["label"]), number)
        where = (row["dataset"], name, row.get("split", ""))
        if lack:
            remedy = f"mend line {number} of {manifest}, or put the file there"
            incomplete += [Problem("error", f"missing {kind}", what, remedy, *where) for kind, what in lack]
        elif first != number:
            what = f"lines {first} and {number} of {manifest} are the same case"
            problems.append(Problem("error", "duplicate", what, "drop one of them", *where))
        else:
            try:
                cases.append(_case(row, name, manifest.parent))
            except DatasetError as error:
                raise DatasetError(f"line {number} of {manifest}: {error}") from None
    stated = any(row.get("subject") for _, row in rows)
    return Listing(tuple(cases), FILES, tuple(incomplete), tuple(problems), subjects_stated=stated)


def _lack(row: Row, folder: Path) -> list[tuple[str, str]]:
    """What a row lacks: the kind of file, and a sentence."""
    files = [*((kind, row[kind]) for kind in ("image", "label")), *(("scribbles", name) for name in _scribbles(row))]
    return [
        (kind, f"{folder / name} is not there" if name else f"no {kind} is named")
        for kind, name in files
        if not name or not (folder / name).exists()
    ]


def _case(row: Row, name: str, folder: Path) -> Case:
    stated = row.get("modality", "")
    modality = known_modality(stated) or ""
    extra = tuple((column, value) for column, value in row.items() if column not in _UNDERSTOOD)
    return Case(
        dataset=row["dataset"],
        subject=row.get("subject") or f"{row['dataset']}/{name}",
        name=name,
        image=folder / row["image"],
        label=folder / row["label"],
        load=FILES,
        modality=modality,
        split=row.get("split", ""),
        scribbles=tuple(folder / part for part in _scribbles(row)),
        extra=extra if modality or not stated else (("modality", stated), *extra),
        scribble_convention=_convention(row.get("scribble_convention", "")),
        regions=_regions(row.get("regions", "")),
        ignore=_ignore(row.get("ignore", "")),
    )


def _scribbles(row: Row) -> list[str]:
    return [part.strip() for part in row.get("scribbles", "").split(";") if part.strip()]


def _convention(text: str) -> ScribbleConvention:
    for convention in _CONVENTIONS:
        if text.lower() == convention:
            return convention
    raise DatasetError(f"the scribble_convention is {text!r}; write `strokes` or `classes`, or leave it empty")


def _regions(text: str) -> tuple[Region, ...]:
    regions: list[Region] = []
    for part in text.split("|") if text else ():
        name, _, values = part.partition("=")
        if not re.fullmatch(r"\s*\d{1,18}\s*(\+\s*\d{1,18}\s*)*", values, re.ASCII):
            raise DatasetError(f"the region {part.strip()!r} is no name with label values; write liver=1|kidneys=2+3")
        region = Region(unquote(name.strip()), tuple(int(value) for value in values.split("+")))
        if 0 in region.values:
            raise DatasetError(f"the region {region.name!r} has the value 0, which is the background; leave it out")
        if region.name in (other.name for other in regions):
            raise DatasetError(
                f"two regions are called {region.name!r}; write all values behind one, {region.name}=1+2"
            )
        regions.append(region)
    return tuple(regions)


def _ignore(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise DatasetError(f"`ignore` is {text!r}; write the one label value of voxels that nobody labelled")
    return int(text)


def read_rows(manifest: Path) -> list[tuple[int, Row]]:
    """The rows of a manifest with their line numbers, values stripped, empty lines left out.

    Raises:
        DatasetError: no table, or one without the columns `image` and `label`.
    """
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            if not {"image", "label"} <= set(columns):
                found = ", ".join(columns)[:200] or "none"
                raise DatasetError(
                    f"{manifest} has the columns {found}; `image` and `label` are needed, parted by commas"
                )
            reader.fieldnames = columns
            rows: list[tuple[int, Row]] = []
            for row in reader:
                if None in row:
                    raise DatasetError(
                        f"line {reader.line_num} of {manifest} has more values than there are columns; quote values "
                        'that hold a comma, "like, this"'
                    )
                rows.append((reader.line_num, {column: (value or "").strip() for column, value in row.items()}))
    except OSError as error:
        raise DatasetError(f"cannot read {manifest}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{manifest} is no table in UTF-8 ({error}); save it as CSV with commas") from error
    return [(number, row) for number, row in rows if any(row.values())]


def write(path: str | Path, cases: Sequence[Case], *, overwrite: bool = False) -> None:
    """Write cases as a manifest, with paths relative to its folder.

    Raises:
        OutputError: the file exists, is no .csv, or cannot be written.
        DatasetError: a case that a manifest cannot hold: a scribble whose name holds the `;` that parts them, label
            values below zero, regions of one name, or a `load` of its own.
    """
    path = Path(path)
    check_writable(path, overwrite=overwrite, kinds={".csv": "manifest"})
    rows = [_row(case, path.parent.resolve()) for case in cases]
    stated = [name for name in _WHERE_STATED if any(row[name] for row in rows)]
    columns = dict.fromkeys([*_ALWAYS, *stated, *(name for case in cases for name, _ in case.extra)])
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _row(case: Case, folder: Path) -> Row:
    strokes = [_relative(scribble, folder) for scribble in case.scribbles]
    if any(";" in name for name in strokes):
        raise DatasetError(f"a scribble of {case.name} has a `;` in its name, which parts names; rename the file")
    if case.load != FILES:
        raise DatasetError(f"{case.name} is read in a way of its own (`load`), which a manifest cannot say; convert it")
    regions = "|".join(f"{_escaped(region.name)}={'+'.join(map(str, region.values))}" for region in case.regions)
    ignore = "" if case.ignore is None else str(case.ignore)
    try:
        kept = (_regions(regions), _ignore(ignore)) == (case.regions, case.ignore)
    except DatasetError as error:
        raise DatasetError(f"a manifest cannot hold the labels of {case.name}: {error}") from None
    assert kept, f"regions that are read as others: {regions}"
    return {
        "dataset": case.dataset,
        "modality": case.modality,
        "subject": case.subject,
        "split": case.split,
        "image": _relative(case.image, folder),
        "label": _relative(case.label, folder),
        "scribbles": ";".join(strokes),
        "scribble_convention": case.scribble_convention,
        "regions": regions,
        "ignore": ignore,
        **dict(case.extra),
    }


def _escaped(name: str) -> str:
    # Whatever is white inside a line and not at its ends is kept as it is.
    text = name.replace("%", "%25").replace("|", "%7C").replace("=", "%3D")
    inner = text.strip()
    start = text.index(inner) if inner else len(text)
    lost = (text[:start], text[start + len(inner) :])
    before, after = ("".join(f"%{byte:02X}" for byte in part.encode()) for part in lost)
    return before + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"%{ord(found[0]):02X}", inner) + after


def _relative(file: Path, folder: Path) -> str:
    # The folder is resolved and the file's is, too, but a link to a file stays a link.
    file = file.parent.resolve() / file.name
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # another drive
        return file.as_posix()


def _names(rows: list[Row]) -> list[str]:
    """A name for every row: the image's stem where that is unique in its dataset, else more of its path."""
    candidates = [
        (stem(Path(row["image"])), row["image"], f"{row['image']} ({stem(Path(row['label']))})") for row in rows
    ]
    uses = Counter((row["dataset"], name) for row, names in zip(rows, candidates, strict=True) for name in set(names))
    return [
        next((name for name in names if uses[row["dataset"], name] == 1), names[-1])
        for row, names in zip(rows, candidates, strict=True)
    ]
