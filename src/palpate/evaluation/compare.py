"""Two runs over the same prompts, subject by subject."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from palpate.errors import DatasetError
from palpate.evaluation.statistics import (
    LOWER_IS_BETTER,
    UNBOUNDED,
    Interval,
    PairedDifference,
    Resampler,
    holm,
    matched,
    paired,
    value_of,
)
from palpate.evaluation.summary import ALL, NAMES, Condition, by_condition, cell, label_of, number
from palpate.evaluation.table import Row, Run, mixed_units, unit_of

By = Literal["all", "dataset"]


@dataclass(frozen=True)
class ComparisonLine:
    """One dataset (or all of them), one protocol and severity: B minus A, and `p_adjusted` for all lines (Holm)."""

    dataset: str
    protocol: str
    severity: float
    result: PairedDifference
    p_adjusted: float

    @property
    def condition(self) -> Condition:
        """The protocol and how severe."""
        return self.protocol, self.severity


@dataclass(frozen=True)
class Comparison:
    """What changed from run A to run B, and what must be known to judge it."""

    measure: str
    lines: tuple[ComparisonLine, ...]
    rows: int
    left_out: tuple[int, int]
    notes: tuple[str, ...]
    unit: str = "mm or pixels"
    """That of distances in these runs."""

    @property
    def scale(self) -> float:
        """By what numbers are multiplied for people: percentages are read more easily."""
        return 1.0 if self.measure in UNBOUNDED else 100.0

    @property
    def title(self) -> str:
        """The measure and how it is shown: `Dice, in percent`."""
        unit = self.unit if self.measure in UNBOUNDED else "percent"
        return f"{NAMES.get(self.measure, self.measure)}, in {unit}"

    def csv(self) -> str:
        """The lines as a table for programs."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for place, record in enumerate(self._records()):
            if place == 0:
                writer.writerow(record)
            writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in record.values()])
        return text.getvalue()

    def json(self) -> dict[str, Any]:
        """Everything, ready for JSON: numbers that are not finite are null, or "inf" and "-inf"."""
        return {
            "measure": self.measure,
            "unit": self.unit if self.measure in UNBOUNDED else None,
            "higher_is_better": self.measure not in LOWER_IS_BETTER,
            "rows": self.rows,
            "only_a": self.left_out[0],
            "only_b": self.left_out[1],
            "notes": list(self.notes),
            "lines": [{name: _finite(value) for name, value in record.items()} for record in self._records()],
        }

    def markdown(self) -> str:
        """A table for people, and the notes beneath."""
        scale = self.scale
        lines = [
            f"B minus A, {self.title} [95 % interval]\n",
            "| dataset | prompt | A | B | B - A | subjects | better/worse/equal | p | p (Holm) |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for line in self.lines:
            result = line.result
            lines.append(
                f"| {cell(line.dataset)} | {cell(label_of(line.condition))} | {_plain(result.a * scale)} "
                f"| {_plain(result.b * scale)} | {signed(result.difference, scale=scale)} "
                f"| {result.difference.subjects} | {result.better}/{result.worse}/{result.equal} "
                f"| {p_text(result.p)} | {p_text(line.p_adjusted)} |"
            )
        return "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in self.notes) + "\n"

    def _records(self) -> list[dict[str, Any]]:
        return [
            {
                "dataset": line.dataset,
                "protocol": line.protocol,
                "severity": line.severity,
                "measure": self.measure,
                "a": line.result.a,
                "b": line.result.b,
                "difference": line.result.difference.estimate,
                "low": line.result.difference.low,
                "high": line.result.difference.high,
                "subjects": line.result.difference.subjects,
                **{
                    name: value
                    for name, value in asdict(line.result).items()
                    if name in ("better", "worse", "equal", "p", "exact", "smallest_p", "rows")
                },
                "p_adjusted": line.p_adjusted,
            }
            for line in self.lines
        ]


def compare(
    run_a: Run,
    run_b: Run,
    rng: np.random.Generator,
    *,
    measure: str = "dice",
    by: By = "all",
    common_only: bool = False,
) -> Comparison:
    """B minus A for each protocol and severity: over all datasets, or for each dataset by itself.

    All lines are one family for Holm's adjustment. `a` and `b` of `hd95` and `assd` are medians.

    Raises:
        DatasetError: the runs did not measure the same rows; with `common_only`, only if they share none.
        SettingError: no such measure.
    """
    if not {row.key for row in run_a.rows} & {row.key for row in run_b.rows}:
        raise DatasetError(
            f"the runs have no row in common: the first measured {_datasets(run_a)}, the second {_datasets(run_b)}; "
            "compare runs over the same datasets, cases, protocols and seeds"
        )
    a, b = matched(run_a.rows, run_b.rows, common_only=common_only)
    value_of(a[0], measure)
    resampler = Resampler(rng)
    datasets = [ALL] if by == "all" else sorted({row.dataset for row in a})
    lines: list[ComparisonLine] = []
    partner = {row.key: mate for row, mate in zip(a, b, strict=True)}
    for dataset in datasets:
        of_dataset = [row for row in a if by == "all" or row.dataset == dataset]
        for condition, rows in by_condition(of_dataset).items():
            result = paired(rows, [partner[row.key] for row in rows], measure, resampler)
            lines.append(ComparisonLine(dataset, *condition, result, math.nan))
    adjusted = holm([line.result.p for line in lines])
    lines = [replace(line, p_adjusted=p) for line, p in zip(lines, adjusted, strict=True)]
    left_out = (len(run_a.rows) - len(a), len(run_b.rows) - len(b))
    measured = {row.dataset for row in a}
    units = [{name: unit for name, unit in run.units.items() if name in measured} for run in (run_a, run_b)]
    notes = _notes(run_a, run_b, lines, left_out, measure, a, units)
    # A dataset whose unit differs between the runs is in neither.
    unit = unit_of({f"{which} {name}": unit for which, of in enumerate(units) for name, unit in of.items()})
    return Comparison(measure, tuple(lines), len(a), left_out, notes, unit)


def p_text(p: float) -> str:
    """A p-value as journals print it.

    >>> p_text(0.0123), p_text(0.0001), p_text(0.2)
    ('0.012', '< 0.001', '0.20')
    """
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def signed(interval: Interval, *, scale: float = 1.0) -> str:
    """A difference with its interval; a gain carries a plus."""
    text = number(interval, scale=scale)
    return f"+{text}" if interval.estimate > 0 and not text.startswith("0.0") else text


def _datasets(run: Run) -> str:
    names = sorted({row.dataset for row in run.rows})
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"the dataset{'s' if len(names) > 1 else ''} {shown}" if names else "nothing"


def _notes(
    run_a: Run,
    run_b: Run,
    lines: Sequence[ComparisonLine],
    left_out: tuple[int, int],
    measure: str,
    rows: Sequence[Row],
    units: Sequence[Mapping[str, str]],
) -> tuple[str, ...]:
    notes: list[str] = []
    ours, theirs = run_a.record.get("data_sha256"), run_b.record.get("data_sha256")
    if ours is not None and theirs is not None and ours != theirs:
        notes.append("The runs used different data (their hashes differ): a difference may come from the labels.")
    if measure in (*UNBOUNDED, "nsd"):
        differing = [
            f"{name} ({unit} in A, {units[1][name]} in B)" for name, unit in units[0].items() if units[1][name] != unit
        ]
        if differing:
            notes.append(f"The runs measured in different units of distance: {'; '.join(differing)}.")
        elif measure in UNBOUNDED and (mixed := mixed_units(units[0])):
            notes.append(mixed)
    if any(left_out):
        notes.append(f"Left out: {left_out[0]} rows that only A has and {left_out[1]} that only B has.")
    undefined = len(rows) - sum(line.result.rows for line in lines)
    if undefined:
        notes.append(f"Left out: {undefined} rows where {measure} is undefined in one of the runs.")
    small = sum(not line.result.can_be_significant for line in lines)
    if small:
        notes.append(
            f"In {small} of {len(lines)} lines fewer than six subjects differ: the test cannot reach p < 0.05 there, "
            "whatever the effect."
        )
    if any(line.result.difference.is_frail for line in lines):
        notes.append("*: fewer than eight subjects, or a dataset with one alone; the interval is likely too short.")
    direction = "Lower is better." if measure in LOWER_IS_BETTER else "Higher is better."
    middle = "Medians" if measure in UNBOUNDED else "Means"
    notes.append(
        f"{direction} {middle} over subjects; intervals are bootstrapped by subject; p is two-sided, from flipping the "
        f"signs of the subjects' differences; Holm's adjustment is for the {len(lines)} "
        f"line{'s' if len(lines) != 1 else ''} shown. An interval may exclude zero where p does not reach 0.05, and "
        "the other way round: they are two methods."
    )
    return tuple(notes)


def _plain(value: float) -> str:
    return number(Interval(value, math.nan, math.nan, 0))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def json_text(comparison: Comparison) -> str:
    """The comparison as a JSON document."""
    return json.dumps(comparison.json(), indent=2) + "\n"
