"""A manifest.csv: one row a labelled image.

`image` and `label` are needed. `dataset`, `modality`, `subject`, `split` and `scribbles` (several, parted by `;`) are
understood; other columns are kept. Paths are relative to the manifest. They may be absolute or leave its folder: a
manifest is a list that somebody wrote of files on this machine, and they are only ever read as images.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from palpate.datasets.case import Case
from palpate.datasets.layouts import Listing, stem
from palpate.datasets.pair import FILES, known_modality
from palpate.datasets.report import Problem
from palpate.errors import DatasetError
from palpate.images.formats import check_writable, replacing

NAME = "manifest.csv"

_UNDERSTOOD = ("dataset", "modality", "subject", "split", "image", "label", "scribbles")

Row = dict[str, str]


def recognises(path: Path) -> bool:
    """Whether it is a manifest, or a folder with one."""
    return path.suffix.lower() == ".csv" if path.is_file() else (path / NAME).is_file()


def listing(path: Path) -> Listing:
    """The rows of the manifest.

    Raises:
        DatasetError: no table, or one without the columns `image` and `label`.
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
            cases.append(_case(row, name, manifest.parent))
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
    )


def _scribbles(row: Row) -> list[str]:
    return [part.strip() for part in row.get("scribbles", "").split(";") if part.strip()]


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
        DatasetError: a scribble whose name holds the `;` that parts them.
    """
    path = Path(path)
    check_writable(path, overwrite=overwrite, kinds={".csv": "manifest"})
    columns = dict.fromkeys([*_UNDERSTOOD, *(name for case in cases for name, _ in case.extra)])
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(case, path.parent.resolve()) for case in cases)


def _row(case: Case, folder: Path) -> Row:
    strokes = [_relative(scribble, folder) for scribble in case.scribbles]
    if any(";" in name for name in strokes):
        raise DatasetError(f"a scribble of {case.name} has a `;` in its name, which parts names; rename the file")
    return {
        "dataset": case.dataset,
        "modality": case.modality,
        "subject": case.subject,
        "split": case.split,
        "image": _relative(case.image, folder),
        "label": _relative(case.label, folder),
        "scribbles": ";".join(strokes),
        **dict(case.extra),
    }


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
