"""One page that a reviewer can read without us: the answer, its uncertainty, the worst, and how it was made."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palpate.evaluation.compare import p_text, signed
from palpate.evaluation.presence import PRESENCE_COLUMNS, presence_cells, presence_summary
from palpate.evaluation.statistics import (
    CLICK_PROTOCOLS,
    FEW_SUBJECTS,
    SIZES,
    Interval,
    PairedDifference,
    Resampler,
    against,
    calibration,
    clicks_needed,
    holm,
    risk_coverage,
    size_class,
    subject_values,
)
from palpate.evaluation.summary import (
    ALL,
    Condition,
    SummaryRow,
    by_condition,
    in_words,
    label_of,
    number,
    percent,
    severity_text,
    summarise,
)
from palpate.evaluation.table import Row, Run, mixed_units, object_name, unit_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from palpate.evaluation.plots import Panel

_TWO_SIDED = ("shrink", "expansion")
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_SIZES_IN_WORDS = {
    "tiny": "tiny (box up to 0.5 % of the image)",
    "small": "small (up to 2 %)",
    "medium": "medium (up to 10 %)",
    "large": "large",
}
_HUMAN = "scribble-human"
_LEAST_RANKED = 8
_BROAD = 760  # wider pictures are two panels, which would be unreadable in one column
_UNITS_IN_WORDS = {"mm": "millimetres", "pixels": "pixels", "mm or pixels": "millimetres or pixels"}


@dataclass(frozen=True, eq=False)
class WorstCase:
    """A row to look at, its picture, and what to see there."""

    row: Row
    picture: Picture
    note: str = ""


def write_report(
    run: Run,
    path: str | Path,
    *,
    worst: Sequence[WorstCase] = (),
    summary: Sequence[SummaryRow] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the report of a run as one HTML file that needs nothing else.

    `summary` is what `summarise` gave for this run, with all measures and sizes; without it, it is made again.

    Raises:
        OutputError: the file exists, or cannot be written there.
    """
    from palpate.images.formats import check_writable, replacing

    path = Path(path)
    check_writable(path, overwrite=overwrite, kinds={".html": "report", ".htm": "report"})
    text = report_html(run, worst=worst, summary=summary)
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def report_html(run: Run, *, worst: Sequence[WorstCase] = (), summary: Sequence[SummaryRow] | None = None) -> str:
    """The report as text: the same run gives the same page. `summary` as in `write_report`."""
    from jinja2 import Environment, StrictUndefined

    template = files("palpate.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(template).render(_Page(run, worst, summary).content())


class _Page:
    """What the template shows; all its numbers come from one summary and one set of resamples."""

    def __init__(self, run: Run, worst: Sequence[WorstCase], summary: Sequence[SummaryRow] | None) -> None:
        self.run, self.worst = run, worst
        seed = run.record.get("seed")
        seed = seed if isinstance(seed, int) and seed >= 0 else 0
        self.summary = summarise(run, np.random.default_rng(seed)) if summary is None else summary
        self.resampler = Resampler(np.random.default_rng(seed))
        self.conditions = by_condition(run.rows)
        self.datasets = sorted({row.dataset for row in run.rows})
        self.found = {(row.dataset, row.size, row.condition, row.measure): row for row in self.summary}
        self.several = {
            name
            for name, _ in self.conditions
            if sum(other == name for other, _ in self.conditions) > 1 or name in _TWO_SIDED
        }
        self.standard: Condition | None = ("standard", 0.0) if ("standard", 0.0) in self.conditions else None
        self.differences = self._differences()

    def content(self) -> dict[str, Any]:
        """Everything the template asks for."""
        rows = self.run.rows
        subjects = {row.subject for row in rows}
        record = self.run.record
        return {
            "title": self._title(),
            "record": record,
            "answer": self._answer(),
            "counts": {
                "datasets": len(self.datasets),
                "subjects": len(subjects),
                "cases": len({(row.dataset, row.subject, row.case) for row in rows}),
                "objects": len({(row.dataset, row.case, object_name(row)) for row in rows}),
                "prompts": len(rows),
            },
            "marked": self._marked(),
            "few": len(subjects) < FEW_SUBJECTS,
            "few_limit": FEW_SUBJECTS,
            "per_dataset": self._per_dataset(),
            "curves": self._curves(),
            "sizes": self._sizes(),
            "tiny": self._tiny(),
            "boxes": self._boxes(),
            "banded": any(row.as_interval().is_known for row in self.summary if row.measure in ("dice", "nsd")),
            "elsewhere": self._elsewhere(),
            "table": self._table(),
            "changes": self._changes(),
            "worst_are": self._worst_are(),
            "worst": [self._worst(place, item) for place, item in enumerate(self.worst, start=1)],
            "calibration": self._calibration(),
            "clicks": self._clicks(),
            "presence": [presence_cells(line) for line in presence_summary(self.run.presence)],
            "presence_columns": PRESENCE_COLUMNS,
            "human": self._human(),
            "made": self._made(),
            "notes": [*_listed(record.get("notes")), *([mixed] if (mixed := mixed_units(self.run.units)) else [])],
            "protocols": self._protocols(),
            "tolerance": self._tolerance(),
            "unit": unit_of(self.run.units),
            "fixed": max((row.fixed for row in self.summary if row.dataset == ALL and row.size == ALL), default=0),
        }

    def _title(self) -> str:
        model = str(self.run.record.get("model") or "Evaluation")
        if not self.datasets:
            return model
        few = len(self.datasets) <= 3
        return f"{model} on {_and(self.datasets) if few else f'{len(self.datasets)} datasets'}"

    def _marked(self) -> bool:
        """Whether anything on the page carries a star."""
        differences = [result.difference for result, _ in self.differences.values()]
        return any(interval.is_frail for interval in (*(row.as_interval() for row in self.summary), *differences))

    def _cell(
        self, condition: Condition, measure: str = "dice", *, dataset: str = ALL, size: str = ALL
    ) -> SummaryRow | None:
        row = self.found.get((dataset, size, condition, measure))
        return None if row is None or math.isnan(row.estimate) else row

    def _text(self, condition: Condition, measure: str = "dice", *, dataset: str = ALL, size: str = ALL) -> str:
        row = self._cell(condition, measure, dataset=dataset, size=size)
        if row is None:
            return "–"
        return number(row.as_interval()) if measure in ("hd95", "assd") else percent(row.as_interval())

    def _label(self, condition: Condition) -> str:
        return label_of(condition, several=condition[0] in self.several).replace(" %", "\u00a0%")

    def _differences(self) -> dict[Condition, tuple[PairedDifference, float]]:
        """Each condition against the tight box, over the objects that have both, with Holm's p."""
        if self.standard is None:
            return {}
        tight = self.conditions[self.standard]
        others = [condition for condition in self.conditions if condition != self.standard]
        results = [against(self.conditions[condition], tight, "dice", self.resampler) for condition in others]
        adjusted = holm([result.p for result in results])
        return {
            condition: (result, p)
            for condition, result, p in zip(others, results, adjusted, strict=True)
            if result.rows
        }

    def _answer(self) -> list[str]:
        """Three sentences at most, made of numbers; and a fourth, where those have no intervals."""
        if not self.conditions:
            return ["This run has no rows: nothing was measured."]
        first = self.standard or next(iter(self.conditions))
        sentences: list[str] = []
        row = self._cell(first)
        # Said once at the end instead of behind every number.
        quiet = row is not None and not row.as_interval().is_known
        if row is not None:
            over = f" over {len(self.datasets)} datasets, each counting once" if len(self.datasets) > 1 else ""
            errors = self._in_percent(self.found[ALL, ALL, first, "error"], quiet=quiet)
            sentences.append(
                f"{in_words(first)}, the mean Dice is {self._in_percent(row, quiet=quiet)}{over} ({row.subjects} "
                f"subject{'s' if row.subjects != 1 else ''}); {errors} of results "
                "would have to be redone (Dice below 0.5, a leak above 20 %, or nothing found)."
            )
        sides = [self._nearest(name, 0.1) for name in _TWO_SIDED]
        parts = [
            f"{in_words(condition)[0].lower()}{in_words(condition)[1:]} it {self._changed(condition, quiet=quiet)}"
            for condition in sides
            if condition is not None and condition in self.differences
        ]
        if parts:
            text = "; ".join(parts)
            sentences.append(f"{text[0].upper()}{text[1:]}.")
        tiny = self._cell(first, "error", size="tiny")
        large = self._cell(first, "error")
        if tiny is not None and large is not None and tiny.objects < large.objects:
            which = "one tiny object" if tiny.objects == 1 else f"{tiny.objects} tiny objects"
            sentences.append(
                f"Of the {which} (box up to 0.5 % of the image), "
                f"{self._in_percent(tiny, quiet=quiet)} would have to be redone."
            )
        if quiet:
            sentences.append("Too few subjects for intervals or tests: another subject may do much better or worse.")
        return [sentence.replace(" %", "\u00a0%") for sentence in sentences]

    @staticmethod
    def _in_percent(row: SummaryRow, *, quiet: bool) -> str:
        interval = row.as_interval()
        text = f"{100 * row.estimate:.1f} %"
        if not interval.is_known:
            return text if quiet else f"{text} (too few subjects for an interval)"
        if interval.low == interval.high:
            return f"{text} (the same in all {interval.subjects} subjects)"
        frail = ", likely too narrow" if interval.is_frail else ""
        return f"{text} (95 % interval {100 * row.low:.1f} to {100 * row.high:.1f}{frail})"

    def _changed(self, condition: Condition, *, quiet: bool) -> str:
        result, p = self.differences[condition]
        change = result.difference
        direction = "falls" if change.estimate < 0 else "rises"
        text = f"{direction} by {abs(100 * change.estimate):.1f} points"
        if change.is_known:
            ends = sorted(
                (100 * change.low, 100 * change.high)
                if direction == "rises"
                else (-100 * change.high, -100 * change.low)
            )
            text += f" (95 % interval {ends[0]:.1f} to {ends[1]:.1f}"
            if not result.can_be_significant:
                return f"{text}, too few subjects to test)"
            text += f", p {p_text(p) if p < 0.001 else '= ' + p_text(p)} after Holm"
            if (change.low > 0 or change.high < 0) != (p < 0.05):
                text += ": interval and test disagree, so nothing is settled"
            return text + ")"
        return text if quiet else f"{text} (too few subjects for an interval or a test)"

    def _nearest(self, protocol: str, severity: float) -> Condition | None:
        found = [condition for condition in self.conditions if condition[0] == protocol]
        return min(found, key=lambda condition: abs(condition[1] - severity), default=None)

    def _points(
        self, protocol: str, measure: str = "dice", *, sign: int = 1, dataset: str = ALL, size: str = ALL
    ) -> list[tuple[float, Interval]]:
        scale = 1.0 if protocol in CLICK_PROTOCOLS else 100.0
        return [
            (sign * scale * condition[1], _in_percents(row.as_interval()))
            for condition in self.conditions
            if condition[0] == protocol and (row := self._cell(condition, measure, dataset=dataset, size=size))
        ]

    def _two_sided(
        self, measure: str = "dice", *, dataset: str = ALL, size: str = ALL
    ) -> tuple[tuple[float, Interval], ...]:
        """Too tight to the left, too loose to the right, the tight box in the middle: one line."""
        return (
            *self._points("shrink", measure, sign=-1, dataset=dataset, size=size),
            *self._points("standard", measure, dataset=dataset, size=size),
            *self._points("expansion", measure, dataset=dataset, size=size),
        )

    def _curves(self) -> dict[str, Any]:
        from palpate.evaluation import plots

        content: dict[str, Any] = {"overall": "", "datasets": "", "sizes": "", "others": "", "single": ""}
        both = (("Dice", "dice"), ("NSD", "nsd"))
        if any(name in _TWO_SIDED for name, _ in self.conditions):
            title = "all datasets" if len(self.datasets) > 1 else self.datasets[0]
            lines = tuple(plots.Series(label, self._two_sided(measure)) for label, measure in both)
            label = "← sides too far in · % of the box's side · too far out →"
            content["overall"] = plots.curves(
                [plots.Panel(title, lines, x_label=label)], name="overall", y_label="%", zero=True
            )
            panels = [self._panel(name, self._two_sided(dataset=name)) for name in self.datasets]
            if len(panels) > 1:
                content["datasets"] = plots.curves(panels, name="datasets", y_label="Dice, %", zero=True)
            panels = [
                self._panel(f"{size} ({_counted(self._objects_of(size), 'object')})", self._two_sided(size=size))
                for size in SIZES
                if self._objects_of(size)
            ]
            if panels:
                content["sizes"] = plots.curves(panels, name="sizes", y_label="Dice, %", zero=True)
        level = self._cell(self.standard) if self.standard else None
        others = [
            plots.Panel(
                name,
                tuple(plots.Series(label, tuple(self._points(name, measure))) for label, measure in both),
                level=100 * level.estimate if level else math.nan,
                x_label="clicks" if name in CLICK_PROTOCOLS else "severity, %",
            )
            for name in sorted(self.several - set(_TWO_SIDED))
        ]
        if others:
            content["others"] = plots.curves(others, name="others", y_label="%")
            content["level"] = level is not None
        single = [condition for condition in self.conditions if condition[0] not in self.several]
        entries = [
            (
                self._label(condition),
                _in_percents(row.as_interval()),
                [100 * each.estimate for d in self.datasets if (each := self._cell(condition, dataset=d))]
                if len(self.datasets) > 1
                else [],
            )
            for condition in single
            if (row := self._cell(condition))
        ]
        alone = {condition for condition in single if self._cell(condition)} == {self.standard}
        if entries and not alone and len({row.subject for row in self.run.rows}) > 1:
            content["single"] = plots.dots(entries, name="single", x_label="mean Dice, %")
        return content

    @staticmethod
    def _panel(title: str, points: tuple[tuple[float, Interval], ...]) -> Panel:
        from palpate.evaluation.plots import Panel, Series

        return Panel(title, (Series("Dice", points),), x_label="change of the box, % of its side")

    def _objects_of(self, size: str) -> int:
        return len({(row.dataset, row.case, object_name(row)) for row in self.run.rows if size_class(row.area) == size})

    def _main_conditions(self) -> list[Condition]:
        """A few that tell the story, for tables that cannot hold all."""
        near = [self._nearest("shrink", 0.1), self.standard, self._nearest("expansion", 0.1)]
        chosen = [condition for condition in near if condition is not None]
        chosen += [condition for condition in self.conditions if condition[0] not in self.several]
        return list(dict.fromkeys(chosen))[:6] or list(self.conditions)[:6]

    def _elsewhere(self) -> str:
        """What the tables of the main conditions leave out, in words."""
        main = self._main_conditions()
        sentences: list[str] = []
        partly = [
            condition
            for condition in main
            if condition[0] in _TWO_SIDED and sum(name == condition[0] for name, _ in self.conditions) > 1
        ]
        if partly:
            shown = _and([self._label(condition) for condition in partly])
            sentences.append(f"Of several severities only one is shown here: {shown}.")
        names = {name for name, _ in main}
        absent = list(dict.fromkeys(name for name, _ in self.conditions if name not in names))
        if absent:
            sentences.append(f"Not shown here: {_and(absent)}.")
        return " ".join([*sentences, "All of them are in summary.csv."]) if sentences else ""

    def _per_dataset(self) -> dict[str, Any]:
        conditions = self._main_conditions()
        names = [*self.datasets, *([ALL] if len(self.datasets) > 1 else [])]
        return {
            "columns": [self._label(condition) for condition in conditions],
            "rows": [
                {
                    "name": "all datasets" if name == ALL else name,
                    "subjects": len({row.subject for row in self.run.rows if name in (ALL, row.dataset)}),
                    "cells": [self._text(condition, dataset=name) for condition in conditions],
                }
                for name in names
            ],
        }

    def _sizes(self) -> dict[str, Any]:
        conditions = self._main_conditions()
        return {
            "columns": [self._label(condition) for condition in conditions],
            "rows": [
                {
                    "name": _SIZES_IN_WORDS[size],
                    "objects": self._objects_of(size),
                    "cells": [self._text(condition, size=size) for condition in conditions],
                }
                for size in SIZES
                if self._objects_of(size)
            ],
        }

    def _tiny(self) -> list[dict[str, Any]]:
        return [
            {
                "label": self._label(condition),
                "objects": row.objects,
                "subjects": row.subjects,
                "error": percent(row.as_interval()),
                "miss": self._text(condition, "miss", size="tiny"),
                "leak": self._text(condition, "leak", size="tiny"),
                "rest": self._text(condition, "error"),
            }
            for condition in self.conditions
            if (row := self._cell(condition, "error", size="tiny"))
        ]

    def _boxes(self) -> str:
        from palpate.evaluation import plots

        groups: list[tuple[str, list[float]]] = []
        for condition, rows in self.conditions.items():
            values = subject_values(rows, "dice")
            pooled = [100 * value for subjects in values.values() for value in subjects.values()]
            if pooled:
                groups.append((f"{self._label(condition)}  (n = {len(pooled)})", pooled))
        return (
            plots.boxes(
                groups, name="boxes", x_label="Dice, %, a value for each subject and dataset", least=FEW_SUBJECTS
            )
            if any(len(values) > 1 for _, values in groups)
            else ""
        )

    def _table(self) -> list[dict[str, Any]]:
        return [
            {
                "label": self._label(condition),
                **{
                    measure: self._text(condition, measure)
                    for measure in ("dice", "nsd", "iou", "hd95", "assd", "leak", "miss", "error", "predicted_iou")
                },
                "subjects": len({row.subject for row in rows}),
                "prompts": len(rows),
                "undefined": sum(math.isnan(row.dice) for row in rows),
            }
            for condition, rows in self.conditions.items()
        ]

    def _changes(self) -> list[dict[str, Any]]:
        return [
            {
                "label": self._label(condition),
                "difference": signed(result.difference, scale=100.0),
                "subjects": result.difference.subjects,
                "objects": result.objects,
                "worse": f"{result.worse}/{result.better}/{result.equal}",
                "p": p_text(result.p) if result.can_be_significant else "–",
                "adjusted": p_text(p) if result.can_be_significant else "too few †",
                "few": not result.can_be_significant,
            }
            for condition, (result, p) in self.differences.items()
        ]

    def _worst_are(self) -> str:
        """Which rows the worst are of, if they are all of one condition."""
        conditions = {(item.row.protocol, item.row.severity) for item in self.worst}
        if len(conditions) != 1:
            return ""
        (condition,) = conditions
        cases = len({(row.dataset, row.subject, row.case) for row in self.run.rows})
        which = (
            f"The {len(self.worst)} worst of {_counted(cases, 'case')}, one prompt a case"
            if len(self.worst) > 1
            else f"The worst of {_counted(cases, 'case')}"
        )
        mildest = " at its mildest" if condition[1] else ""
        return f"{which}, all of {label_of(condition)}: the run's first protocol{mildest}.".replace(" %", "\u00a0%")

    def _random(self, protocol: str) -> bool:
        """Whether the protocol draws dice; one that nobody recorded may."""
        recorded = self.run.record.get("protocols")
        recorded = recorded if isinstance(recorded, list | tuple) else ()
        known = [item for item in recorded if isinstance(item, Mapping) and item.get("name") == protocol]
        return bool(known[0].get("random")) if known else protocol != "standard"

    def _seed(self, row: Row) -> str:
        if row.protocol == _HUMAN:
            return f", person {row.seed}"
        return f", seed {row.seed}" if self._random(row.protocol) else ""

    def _worst(self, place: int, item: WorstCase) -> dict[str, Any]:
        row, file = item.row, io.BytesIO()
        item.picture.save(file, format="PNG", optimize=True)
        return {
            "place": place,
            "row": row,
            "prompt": self._label((row.protocol, row.severity)),
            "object": _object_in_words(row.object),
            "seed": self._seed(row),
            "broad": item.picture.width > _BROAD,
            "dice": f"{100 * row.dice:.1f}",
            "predicted": "" if math.isnan(row.predicted_iou) else f"{100 * row.predicted_iou:.0f}",
            "iou": "–" if math.isnan(row.iou) else f"{100 * row.iou:.0f}",
            "size": size_class(row.area),
            "note": _continued(item.note),
            "picture": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"),
            "width": item.picture.width,
            "height": item.picture.height,
        }

    def _calibration(self) -> dict[str, Any] | None:
        from palpate.evaluation import plots

        groups = {"all prompts": list(self.run.rows)}
        if self.standard is not None and len(self.conditions) > 1:
            groups["tight box"] = self.conditions[self.standard]
        found = [(label, calibration(rows, self.resampler)) for label, rows in groups.items()]
        found = [(label, result) for label, result in found if result.prompts]
        if not found:
            return None
        return {
            "plot": plots.reliability(found, name="reliability"),
            "kept_plot": plots.kept(
                [(label, risk_coverage(groups[label])) for label, _ in found],
                name="kept",
            ),
            "lines": [
                {
                    "label": label,
                    "prompts": result.prompts,
                    "error": f"{100 * result.error:.1f}",
                    "difference": signed(result.difference, scale=100.0),
                    # Of seven prompts or fewer, ranks agree by chance too often to say anything.
                    "spearman": "–"
                    if math.isnan(result.spearman) or result.prompts < _LEAST_RANKED
                    else f"{result.spearman:.2f}",
                }
                for label, result in found
            ],
            "kept": [
                {
                    "threshold": f"{item.threshold:g}",
                    "share": f"{100 * item.share:.0f}",
                    "dice": "–" if math.isnan(item.dice) else f"{100 * item.dice:.1f}",
                }
                for item in risk_coverage(groups["all prompts"], (0.0, *_THRESHOLDS))
            ],
        }

    def _clicks(self) -> list[dict[str, Any]]:
        return [
            {
                "protocol": item.protocol,
                "goal": f"{100 * item.goal:.0f}",
                "clicks": number(item.clicks),
                "failures": percent(item.failures),
                "most": item.most,
                "objects": item.objects,
            }
            for item in clicks_needed(self.run.rows, self.resampler)
        ]

    def _human(self) -> dict[str, Any] | None:
        condition = next((item for item in self.conditions if item[0] == _HUMAN), None)
        if condition is None:
            return None
        rows = self.conditions[condition]
        result = self.differences.get(condition)
        return {
            "dice": self._text(condition),
            "nsd": self._text(condition, "nsd"),
            "error": self._text(condition, "error"),
            "subjects": len({row.subject for row in rows}),
            "people": len({row.seed for row in rows}),
            "scribbles": len(rows),
            "difference": signed(result[0].difference, scale=100.0) if result else None,
        }

    def _protocols(self) -> list[dict[str, str]]:
        known = [item for item in self.run.record.get("protocols") or () if isinstance(item, Mapping)]
        shown: list[dict[str, str]] = []
        for item in known:
            name = str(item.get("name", ""))
            severities = [condition for condition in self.conditions if condition[0] == name and condition[1] > 0]
            shown.append(
                {
                    "name": name,
                    "says": str(item.get("says") or ""),
                    "severities": ", ".join(severity_text(condition) for condition in severities) or "–",
                    "source": str(item.get("source") or ""),
                    "random": "yes" if item.get("random") else "no",
                }
            )
        return shown

    def _tolerance(self) -> str:
        """That of the NSD, with its unit; empty where nobody recorded it."""
        settings = self.run.record.get("settings")
        plan = settings.get("plan") if isinstance(settings, Mapping) else None
        value = plan.get("tolerance") if isinstance(plan, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ""
        unit = unit_of(self.run.units)
        return f"{value:g} {unit.removesuffix('s') if value == 1 else unit}"

    def _made(self) -> list[tuple[str, str]]:
        record = self.run.record
        names = {
            "command": "Command",
            "model": "Model",
            "weights_hash": "Weights, SHA-256",
            "runtime": "Runtime",
            "data": "Data",
            "data_sha256": "Data, SHA-256",
            "seed": "Seed",
            "seeds": "Repetitions",
            "machine": "Machine",
            "versions": "Versions",
        }
        known = [(label, record[key]) for key, label in names.items() if record.get(key) not in (None, "", {}, [])]
        if isinstance(record.get("units"), Mapping) and self.datasets:
            known.append(("Distances in", _units_in_words(self.run.units)))
        settings = record.get("settings")
        if isinstance(settings, Mapping) and isinstance(settings.get("plan"), Mapping):
            # The rest of the settings is in other lines, and the protocols have a table of their own.
            plan = {name: value for name, value in settings["plan"].items() if name != "protocols"}
            known.append(("Settings", plan))
        times = sorted(row.milliseconds for row in self.run.rows if not math.isnan(row.milliseconds))
        shown = [(label, _in_line(value)) for label, value in known]
        if times:
            shown.append(
                ("Time from prompt to mask", f"{float(np.median(times)):.0f} ms (median, image encoded before)")
            )
        return shown


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _and(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def _units_in_words(units: Mapping[str, str]) -> str:
    by_unit: dict[str, list[str]] = {}
    for name, unit in units.items():
        by_unit.setdefault(_UNITS_IN_WORDS[unit], []).append(name)
    if len(by_unit) == 1:
        return next(iter(by_unit))
    return "; ".join(f"{unit} ({', '.join(names)})" for unit, names in by_unit.items())


def _object_in_words(name: str) -> str:
    """`1@17` is label 1 on slice 17; other names stay as they are."""
    label, at, place = name.rpartition("@")
    label, place = (label, place) if at and place.isdecimal() else (name, "")
    label = f"label {label}" if label.isdecimal() else label
    return f"{label}, slice {place}" if place else label


def _continued(note: str) -> str:
    """A note as the end of a sentence that has no full stop yet: one of its own, or a part."""
    if not note:
        return "."
    return f"{'.' if note[0].isupper() else ';'} {note}{'' if note.endswith('.') else '.'}"


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)] if value else []


def _in_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_line(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _in_percents(interval: Interval) -> Interval:
    return replace(interval, estimate=100 * interval.estimate, low=100 * interval.low, high=100 * interval.high)
