"""The tidy table: one row a prompt, and the folder it lives in.

A run's folder holds

- `results.csv`: everything that is the same when the same command runs again, byte by byte;
- `times.csv`: the same keys and `milliseconds`, which never are the same twice;
- `cases.csv`: what each case is, and how long it took before any prompt; see `palpate.evaluation.modalities`;
- `presence.csv`, if the model was asked to find its classes: how sure it was of each on each slice;
- `run.json`: the command, settings, versions and hashes that made it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from palpate.errors import FormatError

_SLICE = re.compile(r"@\d+$")

KEYS = ("dataset", "subject", "case", "object", "protocol", "severity", "seed")
MEASURES = ("dice", "iou", "nsd", "hd95", "assd", "leak", "area", "predicted_iou")


@dataclass(frozen=True)
class Row:
    """One object, prompted once and scored.

    - `object` ends in `@17` where only slice 17 of a volume was scored; `object_name` is the name without it.
    - `severity` is how far the prompt was from the ideal, as a fraction of the box's side or of the slices; for
      corrective clicks it is the number of clicks so far. `seed` is the repetition, 0 where nothing is drawn; with
      human scribbles, the person.
    - `dice`, `iou`, `nsd` lie in [0, 1]. `hd95` and `assd` are in mm (pixels where an image has no spacing: see
      `Run.units`), and infinite where nothing was found, or something on a slice without the object.
    - `leak` is the share of the prediction that lies more than two pixels outside the object (in a volume, slice by
      slice); NaN for no prediction.
    - `area` is the size of the target: its tight box as a share of the image (in a volume, of its largest slice); NaN
      for a slice without the object, where something was found.
    - `predicted_iou` is the model's own estimate, for the whole object also where its slices are scored.
    - `milliseconds` is the time from prompt to mask with the image already encoded.
    """

    dataset: str
    subject: str
    case: str
    object: str
    protocol: str
    severity: float
    seed: int
    dice: float
    iou: float
    nsd: float
    hd95: float
    assd: float
    leak: float
    area: float
    predicted_iou: float
    milliseconds: float = math.nan

    @property
    def key(self) -> tuple[str, str, str, str, str, float, int]:
        """What identifies the row in its run."""
        return self.dataset, self.subject, self.case, self.object, self.protocol, self.severity, self.seed


@dataclass(frozen=True)
class Presence:
    """How sure the model was that a class is on a slice, with nothing drawn.

    - `slice` is -1 for a picture. `wanted` is the class's name on the card (in the file the column is `class`).
    - `present` says whether any pixel of the slice is labelled so.
    - `object_logit` is above 0 where the model believes that the class is there; `object_probability` is its sigmoid.
    - `pixels` is how many it gave to the class: none below a logit of 0, whatever the mask.
    """

    dataset: str
    subject: str
    case: str
    slice: int
    wanted: str
    present: bool
    object_probability: float
    object_logit: float
    pixels: int


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its rows, the record of how they were made, and what was believed to be there."""

    rows: tuple[Row, ...]
    record: dict[str, Any]
    folder: Path
    presence: tuple[Presence, ...] = ()

    @property
    def units(self) -> dict[str, str]:
        """In what each dataset's distances are: `mm`, `pixels`, or `mm or pixels` where it has both or nobody knows."""
        known = self.record.get("units")
        known = known if isinstance(known, Mapping) else {}
        return {
            name: known[name] if known.get(name) in ("mm", "pixels") else EITHER_UNIT
            for name in sorted({row.dataset for row in self.rows})
        }


EITHER_UNIT = "mm or pixels"


def unit_of(units: Mapping[str, str]) -> str:
    """One word for all these datasets' distances.

    >>> unit_of({"liver": "mm", "spleen": "mm"}), unit_of({"liver": "mm", "polyps": "pixels"})
    ('mm', 'mm or pixels')
    """
    several = set(units.values())
    return several.pop() if len(several) == 1 else EITHER_UNIT


def mixed_units(units: Mapping[str, str]) -> str | None:
    """A sentence, if these datasets have distances in mm and in pixels and would be pooled."""
    if unit_of(units) != EITHER_UNIT or not units:
        return None
    if set(units.values()) == {EITHER_UNIT}:
        return "Distances may be in mm for some images and in pixels for others: HD95 and ASSD may mix both."
    named = "; ".join(
        f"in {unit}: {', '.join(name for name in units if units[name] == unit)}" for unit in sorted(set(units.values()))
    )
    return f"Distances are in mm and in pixels ({named}): HD95 and ASSD over several of these datasets mix both."


def object_name(row: Row) -> str:
    """The object's name without the slice that was scored: `1@17` is a slice of object `1`."""
    return _SLICE.sub("", row.object)


def results_csv(rows: Iterable[Row]) -> str:
    """The table without times: the same rows give the same text."""
    return _csv(rows, (*KEYS, *MEASURES))


def times_csv(rows: Iterable[Row]) -> str:
    """The keys and the milliseconds."""
    return _csv(rows, (*KEYS, "milliseconds"))


_PRESENCE = ("dataset", "subject", "case", "slice", "class", "present", "object_probability", "object_logit", "pixels")


def presence_csv(found: Iterable[Presence]) -> str:
    """The table of what was believed to be there; `slice` is empty for a picture, `present` is yes or no."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_PRESENCE)
    for one in found:
        z = "" if one.slice < 0 else str(one.slice)
        sureness = (_text(one.object_probability), _text(one.object_logit))
        writer.writerow(
            [one.dataset, one.subject, one.case, z, one.wanted, "yes" if one.present else "no", *sureness, one.pixels]
        )
    return text.getvalue()


def read_presence(path: Path) -> tuple[Presence, ...]:
    """That table again.

    Raises:
        FormatError: not a table of this kind, or a damaged one.
    """
    found: list[Presence] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file, strict=True):
                found.append(
                    Presence(
                        dataset=line["dataset"],
                        subject=line["subject"],
                        case=line["case"],
                        slice=int(line["slice"] or -1),
                        wanted=line["class"],
                        present={"yes": True, "no": False}[line["present"]],
                        object_probability=float(line["object_probability"]),
                        object_logit=float(line["object_logit"]),
                        pixels=int(line["pixels"]),
                    )
                )
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged ({type(error).__name__}: {error}); {_AGAIN}") from None
    return tuple(found)


def read_rows(results: Path, times: Path | None = None) -> tuple[Row, ...]:
    """The rows of a table, with times where they are known.

    Raises:
        FormatError: not a table of this kind, or a damaged one.
    """
    measured = {} if times is None else {key: values for _, key, values in _lines(times, ("milliseconds",))}
    rows: list[Row] = []
    for number, key, values in _lines(results, MEASURES):
        texts = (*key, *values, *measured.get(key, ("nan",)))
        try:
            rows.append(
                Row(**{field.name: _parsed(t, str(field.type)) for field, t in zip(fields(Row), texts, strict=True)})
            )
        except ValueError as error:
            raise FormatError(f"line {number} of {results} is no row of a run: {error}; {_AGAIN}") from None
    return tuple(rows)


def read_run(folder: str | Path) -> Run:
    """A finished run, from its folder.

    Raises:
        FormatError: no finished run lies there, or its files are damaged.
    """
    folder = Path(folder)
    results, record = folder / "results.csv", folder / "run.json"
    if not results.is_file() or not record.is_file():
        raise FormatError(
            f"{folder} holds no finished run (results.csv and run.json); run the `palpate evaluate` that was meant to "
            "write it, which goes on where it stopped"
        )
    times = folder / "times.csv"
    try:
        made = json.loads(record.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{record} is damaged: {error}; {_AGAIN}") from None
    if not isinstance(made, dict):
        raise FormatError(f"{record} is no record of a run, which is a JSON object; {_AGAIN}")
    presence = folder / "presence.csv"
    found = read_presence(presence) if presence.is_file() else ()
    return Run(read_rows(results, times if times.is_file() else None), made, folder, found)


def _csv(rows: Iterable[Row], columns: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_text(getattr(row, column)) for column in columns])
    return text.getvalue()


def _text(value: str | float | int) -> str:
    # Six decimals are far below what matters, and short enough for people; 0.05 stays 0.05.
    if isinstance(value, str):
        return value
    text = f"{value:.6f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text  # "inf" and "nan" have no point
    return "0" if text == "-0" else text


_AGAIN = "copy it again, or run the `palpate evaluate` that made it with --overwrite"


def _lines(path: Path, columns: tuple[str, ...]) -> list[tuple[int, tuple[str, ...], tuple[str, ...]]]:
    """Each line's number, its keys, and what stands in these columns."""
    found: list[tuple[int, tuple[str, ...], tuple[str, ...]]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            heading = next(reader, [])
            if missing := [name for name in (*KEYS, *columns) if name not in heading]:
                raise FormatError(f"{path} is no table of a run: it has no column {', '.join(missing)}; {_AGAIN}")
            of_key, of_rest = [heading.index(name) for name in KEYS], [heading.index(name) for name in columns]
            for cells in filter(None, reader):
                if len(cells) != len(heading):
                    raise FormatError(
                        f"line {reader.line_num} of {path} has {len(cells)} cells and the heading {len(heading)}; "
                        f"{_AGAIN}"
                    )
                found.append((reader.line_num, tuple(cells[i] for i in of_key), tuple(cells[i] for i in of_rest)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} is damaged: {error}; {_AGAIN}") from None
    return found


def _parsed(text: str, kind: str) -> Any:
    return text if kind == "str" else int(text) if kind == "int" else float(text)
