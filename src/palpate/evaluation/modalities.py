"""How good and how fast by modality: the table of the challenge "Segment Anything in Medical Images on Laptop" (and of
tables 4 and 6 of Gao et al. 2024, arXiv 2409.07172), a line for CT, one for MR and so on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from palpate.errors import FormatError
from palpate.evaluation.summary import ALL, SummaryRow, by_condition, cell, label_of, percent, summarise
from palpate.evaluation.table import Row, Run, object_name

UNKNOWN = "not said"


@dataclass(frozen=True)
class CaseTime:
    """What a case is, and how long a model took over it before any prompt, in milliseconds.

    `reading` is from the files, labels among them, to grey values; `encoding` is what of the image was encoded, or came
    from a cache, for all that the run asked. With the answers to its prompts (`Row.milliseconds`) it is the time of the
    case.
    """

    dataset: str
    subject: str
    case: str
    modality: str
    reading: float
    encoding: float


def cases_csv(cases: Iterable[CaseTime]) -> str:
    """The table `cases.csv` of a run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(CaseTime)])
    for one in cases:
        writer.writerow([f"{value:.3f}" if isinstance(value, float) else value for value in astuple(one)])
    return text.getvalue()


def read_cases(folder: Path) -> tuple[CaseTime, ...]:
    """That table again, from the run's folder; nothing where the run is of an older palpate, which wrote none.

    Raises:
        FormatError: a damaged table.
    """
    path = folder / "cases.csv"
    if not path.is_file():
        return ()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(
                CaseTime(
                    line["dataset"],
                    line["subject"],
                    line["case"],
                    line["modality"],
                    float(line["reading"]),
                    float(line["encoding"]),
                )
                for line in csv.DictReader(file, strict=True)
            )
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged ({type(error).__name__}: {error}); run the evaluation again") from None


@dataclass(frozen=True)
class ModalityRow:
    """One modality, asked in the first way that the run asked; `seconds` is the mean of a case."""

    modality: str
    cases: int
    dice: SummaryRow
    nsd: SummaryRow
    seconds: float


def by_modality(run: Run, cases: Sequence[CaseTime], rng: np.random.Generator) -> list[ModalityRow]:
    """Each modality and, last, the mean of them, of the rows of the run's first condition (the tight box, if asked).

    Within a modality all subjects count alike, whatever data set they are of. A case's time is reading, encoding and
    the answers to the prompts of that condition.
    """
    known = {(one.dataset, one.case): one for one in cases}
    conditions = by_condition(run.rows)
    if not conditions or not any(one.modality for one in cases):
        return []
    rows = [row for row in next(iter(conditions.values())) if (row.dataset, row.case) in known]
    answers = _answering(rows)
    seconds: dict[str, list[float]] = {}
    for place, milliseconds in answers.items():
        one = known[place]
        seconds.setdefault(one.modality or UNKNOWN, []).append((one.reading + one.encoding + milliseconds) / 1000)
    renamed = [
        replace(
            row,
            dataset=known[row.dataset, row.case].modality or UNKNOWN,
            subject=f"{row.dataset}/{row.subject}",
            case=f"{row.dataset}/{row.case}",
        )
        for row in rows
    ]
    summary = summarise(replace(run, rows=tuple(renamed)), rng, measures=("dice", "nsd"), by_size=False)
    found = {(row.dataset, row.measure): row for row in summary}
    means = {name: fmean(times) for name, times in seconds.items()}
    means[ALL] = fmean(means.values())
    counts = {name: len(times) for name, times in seconds.items()}
    counts[ALL] = sum(counts.values())
    return [
        ModalityRow(name, counts[name], found[name, "dice"], found[name, "nsd"], means[name])
        for name in (*sorted(seconds), ALL)
    ]


def _answering(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """The milliseconds of answering each case's prompts once.

    The rows of several slices of an object are one answer, and so are those of all classes that a look found.
    """
    answers: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for row in rows:
        of_case = answers.setdefault((row.dataset, row.case), {})
        at_once = row.protocol.endswith("learned")
        place = "" if at_once else object_name(row), row.seed
        of_case[place] = max(of_case.get(place, 0.0), row.milliseconds)
    seeds = {place: len({seed for _, seed in of_case}) for place, of_case in answers.items()}
    return {place: sum(of_case.values()) / seeds[place] for place, of_case in answers.items()}


def modalities_markdown(run: Run, rows: Sequence[ModalityRow]) -> str:
    """The table for people, with a line on what it means; empty where nothing is known."""
    if not rows:
        return ""
    condition = next(iter(by_condition(run.rows)))
    lines = [
        f"## By modality, {label_of(condition)}\n",
        "| modality | cases | Dice, % | NSD, % | seconds a case |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        name = "mean of these" if row.modality == ALL else cell(row.modality)
        dice, nsd = percent(row.dice.as_interval()), percent(row.nsd.as_interval())
        lines.append(f"| {name} | {row.cases} | {dice} | {nsd} | {row.seconds:.2f} |")
    said = run.record.get("settings", {}).get("runtime", "")
    lines.append(
        "\nWithin a modality every subject counts alike. A case's time is reading, encoding and answering these "
        f"prompts once{f' ({said}; a process uses one thread of a CPU)' if said else ''}; encoding is short where "
        "embeddings came from a cache.\n"
    )
    return "\n".join(lines)


__all__ = ["CaseTime", "ModalityRow", "by_modality", "cases_csv", "modalities_markdown", "read_cases"]
