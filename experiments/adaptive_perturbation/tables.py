"""The paper's tables from what run.py measured; writes tables.md and tables.csv.

    python experiments/adaptive_perturbation/tables.py OUT

Seeds of training are seeds of the rows: they are averaged before subjects are resampled, so the intervals say what
other images might give, and the column of single seeds what another training might.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from palpate.evaluation.statistics import (
    Interval,
    PairedDifference,
    Resampler,
    against,
    holm,
    interval,
    size_class,
    subject_values,
)
from palpate.evaluation.summary import number, percent
from palpate.evaluation.table import Row, read_run
from palpate.images.formats import replacing

ARMS = {
    "released": "released LiteMedSAM, not trained further",
    "medsam": "MedSAM's jitter",
    "bidirectional": "+ δ, ε (in and out)",
    "adaptive": "+ θ, ξ (in proportion)",
    "adaptive-bidirectional": "+ both",
}
CONDITIONS = {
    ("standard", 0.0): "Standard",
    ("expansion", 0.1): "Expansion 10 %",
    ("shrink", 0.1): "Shrink 10 %",
    ("expansion", 0.25): "Expansion 25 %",
    ("shrink", 0.15): "Shrink 15 %",
    ("shrink", 0.25): "Shrink 25 %",
}
LEFT_OUT = {"medscribble/ACDC__patient056"}
"""The subject of a test image whose other images, under another data set, are in `train`."""

TABLE_1 = (("standard", 0.0), ("expansion", 0.1), ("shrink", 0.1))


@dataclass(frozen=True)
class Arm:
    """One arm's rows, those of all its seeds."""

    name: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]

    def at(self, condition: tuple[str, float], *, tiny: bool = False, seed: int | None = None) -> list[Row]:
        """Its rows under a condition: all, or those of tiny targets, or of one seed."""
        return [
            row
            for row in self.rows
            if (row.protocol, row.severity) == condition
            and (not tiny or size_class(row.area) == "tiny")
            and (seed is None or row.seed == seed)
        ]


def read_arms(out: Path) -> list[Arm]:
    """All that were measured, in the order of the tables."""
    arms: list[Arm] = []
    for name in ARMS:
        rows: list[Row] = []
        seeds: list[int] = []
        for folder in sorted((out / "test").glob("released" if name == "released" else f"{name}-[0-9]*")):
            if not (folder / "results.csv").is_file():
                continue
            seed = 0 if name == "released" else int(folder.name.rpartition("-")[2])
            seeds.append(seed)
            rows += [replace(row, seed=seed) for row in read_run(folder).rows if row.subject not in LEFT_OUT]
        if rows:
            arms.append(Arm(name, tuple(rows), tuple(seeds)))
    return arms


def estimate(rows: Sequence[Row], measure: str, resampler: Resampler) -> Interval:
    """The mean with its interval, by subject."""
    return interval(subject_values(rows, measure), resampler)


def single_seeds(arm: Arm, condition: tuple[str, float], measure: str, resampler: Resampler, *, tiny: bool) -> str:
    """The estimate of each seed alone."""
    found = [estimate(arm.at(condition, tiny=tiny, seed=seed), measure, resampler).estimate for seed in arm.seeds]
    return ", ".join(f"{100 * value:.1f}" for value in found)


def shown(difference: PairedDifference, p: float) -> str:
    """A difference in points with its interval and p."""
    return f"{number(difference.difference, scale=100.0)}, p = {p:.3g}"


def error_difference(rows: Sequence[Row], baseline: Sequence[Row], resampler: Resampler) -> Interval:
    """How much larger the share of errors is, by subject; both have the same objects."""
    here, there = subject_values(rows, "error"), subject_values(baseline, "error")
    differences = {
        dataset: {subject: value - there[dataset][subject] for subject, value in subjects.items()}
        for dataset, subjects in here.items()
    }
    return interval(differences, resampler)


def main() -> None:
    """Read, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that run.py filled")
    out = parser.parse_args().out
    arms, resampler = read_arms(out), Resampler(np.random.default_rng(0))
    lines: list[str] = []
    numbers: list[tuple[object, ...]] = []

    def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines.extend([f"### {title}", "", f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)])
        lines.extend(f"| {' | '.join(row)} |" for row in rows)
        lines.append("")

    for measure, word in (("dice", "Dice"), ("nsd", "NSD")):
        body: list[list[str]] = []
        for condition, name in CONDITIONS.items():
            cells = [name]
            for arm in arms:
                found = estimate(arm.at(condition), measure, resampler)
                cells.append(percent(found))
                numbers.append(("all", arm.name, *condition, measure, found.estimate, found.low, found.high))
            body.append(cells)
        mean = ["Mean of Standard, Expansion 10 %, Shrink 10 %"]
        for arm in arms:
            rows = [row for condition in TABLE_1 for row in arm.at(condition)]
            mean.append(percent(estimate(rows, measure, resampler)))
        body.append(mean)
        table(f"{word}, in percent [95 % interval]", ["box", *(ARMS[arm.name] for arm in arms)], body)

    body = []
    for condition, name in CONDITIONS.items():
        cells = [name]
        for arm in arms:
            found = estimate(arm.at(condition, tiny=True), "error", resampler)
            cells.append(percent(found))
            numbers.append(("tiny", arm.name, *condition, "error", found.estimate, found.low, found.high))
        body.append(cells)
    table("Errors on tiny targets, in percent [95 % interval]", ["box", *(ARMS[arm.name] for arm in arms)], body)

    body = []
    for arm in arms:
        if arm.seeds == (0,) and arm.name == "released":
            continue
        body.append(
            [
                ARMS[arm.name],
                single_seeds(arm, ("standard", 0.0), "dice", resampler, tiny=False),
                single_seeds(arm, ("shrink", 0.1), "dice", resampler, tiny=False),
                single_seeds(arm, ("standard", 0.0), "error", resampler, tiny=True),
            ]
        )
    table("Each seed of training", ["arm", "Dice, tight", "Dice, shrink 10 %", "errors on tiny targets, tight"], body)

    by_name = {arm.name: arm for arm in arms}
    pairs = [
        ("released", "medsam"),
        ("medsam", "bidirectional"),
        ("medsam", "adaptive"),
        ("medsam", "adaptive-bidirectional"),
        ("bidirectional", "adaptive-bidirectional"),
    ]
    compared: list[tuple[str, list[PairedDifference], Interval]] = []
    for first, second in pairs:
        if first in by_name and second in by_name:
            a, b = by_name[first], by_name[second]
            tight = ("standard", 0.0)
            differences = [against(b.at(one), a.at(one), "dice", resampler) for one in TABLE_1]
            errors = error_difference(b.at(tight, tiny=True), a.at(tight, tiny=True), resampler)
            compared.append((f"{ARMS[second]} against {ARMS[first]}", differences, errors))
    adjusted = iter(holm([one.p for _, differences, _ in compared for one in differences]))
    table(
        "Differences, in points, by object (errors: by subject) [95 % interval]; p of a sign-flip test by subject, "
        "adjusted for all of the table (Holm)",
        ["", "Dice, tight", "Dice, expansion 10 %", "Dice, shrink 10 %", "errors on tiny targets, tight"],
        [
            [name, *(shown(one, next(adjusted)) for one in differences), percent(errors)]
            for name, differences, errors in compared
        ],
    )
    objects = len({row.key[:4] for row in arms[0].rows}) if arms else 0
    tiny = len({row.key[:4] for row in arms[0].rows if size_class(row.area) == "tiny"}) if arms else 0
    seeds = ", ".join(f"{arm.name} {len(arm.seeds)}" for arm in arms)
    lines.append(
        f"{objects} objects, {tiny} of them tiny; seeds of training: {seeds}. NSD at 2 mm, or at 2 pixels "
        "in images without spacing. `*`: fewer than eight subjects, or a data set with one alone, so the interval is "
        "likely too short."
    )
    for name, text in (("tables.md", "\n".join(lines) + "\n"),):
        with replacing(out / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with (
        replacing(out / "tables.csv", overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["targets", "arm", "protocol", "severity", "measure", "estimate", "low", "high"])
        writer.writerows([*row[:5], *(f"{value:.4f}" for value in row[5:])] for row in numbers)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
