"""What a run says, a line a question: which data, which size of target, which prompt, which measure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np

from palpate.evaluation.statistics import (
    CLICK_PROTOCOLS,
    SIZES,
    SUMMARISED,
    UNBOUNDED,
    Interval,
    Resampler,
    intervals,
    is_miss,
    size_class,
    subject_values,
    value_of,
)
from palpate.evaluation.table import Row, Run, object_name

ALL = "all"
"""Stands for all datasets, or all sizes."""

Condition = tuple[str, float]
"""A protocol and how severe."""

_PLACE = {
    "standard": "with a tight box",
    "expansion": "with every side of the box {} too far out",
    "shrink": "with every side of the box {} too far in",
    "learned": "with learned prompts alone",
    "box+learned": "with learned prompts and a tight box",
}


@dataclass(frozen=True)
class SummaryRow:
    """One number with its interval, and what it rests on.

    `undefined` counts rows where the measure does not exist (left out), `misses` rows where nothing was found;
    `objects` counts the slices of an object as one. For `hd95` and `assd` the estimate is a median and may be infinite.
    Bounds are NaN with fewer than two subjects; `fixed` counts the datasets in it that have a single subject and are
    taken as certain.
    """

    dataset: str
    size: str
    protocol: str
    severity: float
    measure: str
    estimate: float
    low: float
    high: float
    subjects: int
    cases: int
    objects: int
    undefined: int
    misses: int
    fixed: int = 0

    @property
    def condition(self) -> Condition:
        """The protocol and how severe."""
        return self.protocol, self.severity

    def as_interval(self) -> Interval:
        """The number alone."""
        return Interval(self.estimate, self.low, self.high, self.subjects, self.fixed)


def summarise(
    run: Run, rng: np.random.Generator, *, measures: Sequence[str] = SUMMARISED, by_size: bool = True
) -> list[SummaryRow]:
    """Every dataset and all of them, every size of target and all of them, every protocol and severity.

    The same rows and the same dice give the same numbers, in whatever order the rows come.
    """
    resampler = Resampler(rng)
    found: list[SummaryRow] = []
    values: list[dict[str, dict[str, float]]] = []
    datasets = sorted({row.dataset for row in run.rows})
    for dataset in (ALL, *datasets):
        of_dataset = [row for row in run.rows if dataset in (ALL, row.dataset)]
        for size in (ALL, *SIZES) if by_size else (ALL,):
            of_size = of_dataset if size == ALL else [row for row in of_dataset if size_class(row.area) == size]
            for condition, rows in by_condition(of_size).items():
                found += [_counted(dataset, size, condition, measure, rows) for measure in measures]
                values += [subject_values(rows, measure) for measure in measures]
    for by_median in (False, True):
        places = [place for place, row in enumerate(found) if (row.measure in UNBOUNDED) is by_median]
        results = intervals([values[place] for place in places], resampler, by_median=by_median)
        for place, result in zip(places, results, strict=True):
            found[place] = replace(
                found[place],
                **{name: getattr(result, name) for name in ("estimate", "low", "high", "subjects", "fixed")},
            )
    return found


def by_condition(rows: Iterable[Row]) -> dict[Condition, list[Row]]:
    """The rows of each protocol and severity: the tight box first, then by name, mild ones before severe ones."""
    found: dict[Condition, list[Row]] = {}
    for row in rows:
        found.setdefault((row.protocol, round(row.severity, 6)), []).append(row)
    return {condition: found[condition] for condition in sorted(found, key=_rank)}


def label_of(condition: Condition, *, several: bool = True) -> str:
    """How a condition is called in tables; `several` says whether its protocol comes with more than one severity.

    >>> label_of(("shrink", 0.1)), label_of(("clicks", 3.0)), label_of(("standard", 0.0))
    ('shrink 10 %', 'clicks 3', 'standard')
    """
    protocol, severity = condition
    if severity == 0 and (not several or protocol not in CLICK_PROTOCOLS):
        return protocol
    return f"{protocol} {severity_text(condition)}"


def severity_text(condition: Condition) -> str:
    """A severity in words: a percentage, or a number of clicks."""
    protocol, severity = condition
    return f"{severity:g}" if protocol in CLICK_PROTOCOLS else f"{100 * severity:g} %"


def in_words(condition: Condition) -> str:
    """A condition as the beginning of a sentence.

    >>> in_words(("shrink", 0.1))
    'With every side of the box 10 % too far in'
    """
    words = _PLACE.get(condition[0])
    text = f"with {label_of(condition)}" if words is None else words.format(severity_text(condition))
    return text[0].upper() + text[1:]


def summary_csv(rows: Iterable[SummaryRow]) -> str:
    """The summary as a table for programs; six decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(SummaryRow)])
    for row in rows:
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in astuple(row)])
    return text.getvalue()


def summary_markdown(rows: Sequence[SummaryRow], *, measures: Sequence[str] = ("dice", "nsd")) -> str:
    """The summary for people: Dice and NSD in percent with their intervals, one line a dataset."""
    parts: list[str] = []
    for measure in measures:
        shown = {
            (row.dataset, row.condition): row
            for row in rows
            if row.measure == measure and row.size == ALL and not math.isnan(row.estimate)
        }
        if not shown:
            continue
        datasets = list(dict.fromkeys(dataset for dataset, _ in shown))
        datasets = [*(name for name in datasets if name != ALL), *([ALL] if len(datasets) > 2 else [])]
        parts.append(f"## {NAMES[measure]}, in percent [95 % interval]\n")
        for conditions in _tables(dict.fromkeys(condition for _, condition in shown)):
            parts.append(_markdown_table(datasets, conditions, shown))
    frail = any(row.as_interval().is_frail for row in rows if row.size == ALL and row.measure in measures)
    parts.append(
        "Means over subjects (seeds, slices, objects and cases averaged within each); `all` is the mean of the "
        "datasets. Intervals are bootstrapped by subject."
        + (
            " `*`: fewer than eight subjects, or a dataset with one alone, so the interval is likely too short."
            if frail
            else ""
        )
        + "\n"
    )
    return "\n".join(parts)


NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "NSD",
    "hd95": "HD95",
    "assd": "ASSD",
    "leak": "Leak",
    "miss": "Nothing found",
    "error": "Errors",
    "area": "Area",
    "predicted_iou": "Predicted IoU",
}


def percent(interval: Interval) -> str:
    """A share with its interval, in percent.

    >>> percent(Interval(0.8123, 0.75, 0.861, 20))
    '81.2 [75.0, 86.1]'
    """
    return number(interval, scale=100.0)


def number(interval: Interval, *, scale: float = 1.0) -> str:
    """A number with its interval, to one decimal; a dash for what does not exist."""
    if math.isnan(interval.estimate):
        return "–"
    text = f"{_decimal(scale * interval.estimate)}"
    if interval.is_known:
        text += f" [{_decimal(scale * interval.low)}, {_decimal(scale * interval.high)}]"
    return text + ("*" if interval.is_frail else "")


def _decimal(value: float) -> str:
    text = "∞" if math.isinf(value) and value > 0 else "-∞" if math.isinf(value) else f"{value:.1f}"
    return "0.0" if text == "-0.0" else text


def _counted(dataset: str, size: str, condition: Condition, measure: str, rows: Sequence[Row]) -> SummaryRow:
    defined = [row for row in rows if not math.isnan(value_of(row, measure))]
    return SummaryRow(
        *(dataset, size, *condition, measure, math.nan, math.nan, math.nan, 0),
        cases=len({(row.dataset, row.subject, row.case) for row in defined}),
        objects=len({(row.dataset, row.case, object_name(row)) for row in defined}),
        undefined=len(rows) - len(defined),
        misses=sum(map(is_miss, rows)),
    )


def _rank(condition: Condition) -> tuple[bool, str, float]:
    return condition[0] != "standard", *condition


def _tables(conditions: Iterable[Condition]) -> list[list[Condition]]:
    """What goes side by side: all protocols with one severity, and each of the others alone with its severities."""
    several: dict[str, list[Condition]] = {}
    for condition in conditions:
        several.setdefault(condition[0], []).append(condition)
    single = [found[0] for found in several.values() if len(found) == 1]
    return [table for table in (single, *(found for found in several.values() if len(found) > 1)) if table]


def _markdown_table(
    datasets: Sequence[str], conditions: Sequence[Condition], shown: dict[tuple[str, Condition], SummaryRow]
) -> str:
    lines = [
        "| dataset | subjects | " + " | ".join(cell(label_of(condition)) for condition in conditions) + " |",
        "|---|---:|" + "---:|" * len(conditions),
    ]
    for dataset in datasets:
        found = [shown.get((dataset, condition)) for condition in conditions]
        subjects = max((row.subjects for row in found if row), default=0)
        if subjects:
            cells = [percent(row.as_interval()) if row else "–" for row in found]
            lines.append(f"| {cell(dataset)} | {subjects} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Names come from folders: nothing in them may end the cell, the line, or become HTML."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`")):
        text = text.replace(sign, instead)
    return " ".join(text.split())
