"""Tables of what run.py measured: learned prompts beside the tight box, for each task; writes tables.md and tables.csv.

    python experiments/sam2rad/tables.py OUT [--split test]

A task's Dice is the mean over subjects of the mean over their objects and the slices that show them, then over draws:
where nothing is there, nobody draws a box. How many of those were left empty, as they should be, has a column of its
own, and the AUROC of the object score is of all slices. The tight box is that of the released model, whose rows every
task has.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from palpate.evaluation.presence import presence_summary
from palpate.evaluation.table import Row, read_run
from palpate.images.formats import replacing

TASKS = ("carotid", "breast", "heart", "hippocampus", "spine", "polyp")


@dataclass(frozen=True)
class Measured:
    """One run: a task, how it was learned, of which draw, and the Dice of every protocol."""

    task: str
    way: str
    shots: str
    draw: int
    dice: dict[str, float]
    auroc: float
    present: int
    absent: int
    denied: float


def measured(folder: Path) -> Measured | None:
    """What lies in a run's folder; None if it is not finished."""
    if not (folder / "results.csv").is_file():
        return None
    run = read_run(folder)
    task, *about = folder.name.split("-", 3)
    names = dict.fromkeys(row.protocol for row in run.rows)
    shown = [row for row in run.rows if not math.isnan(row.area)]  # the share of the image that the object's box covers
    dice = {name: over_subjects(row for row in shown if row.protocol == name) for name in names}
    lines = presence_summary(run.presence)
    # The last line is of all classes, where there are several.
    whole = lines[-1] if lines else None
    if about == ["released"]:
        return Measured(task, "released", "", 0, dice, math.nan, 0, 0, math.nan)
    shots, draw, way = about
    if whole is None:
        return Measured(task, way, shots, int(draw), dice, math.nan, 0, 0, math.nan)
    return Measured(task, way, shots, int(draw), dice, whole.auroc, whole.present, whole.absent, whole.denied)


def over_subjects(rows: Iterable[Row]) -> float:
    """The mean Dice over subjects; NaN without rows."""
    subjects: dict[str, list[float]] = {}
    for row in rows:
        subjects.setdefault(row.subject, []).append(row.dice)
    return float(np.mean([np.mean(values) for values in subjects.values()])) if subjects else math.nan


def table(runs: Sequence[Measured], way: str, shots: str) -> list[str]:
    """One way of learning from so many images: a line a task, and their mean."""
    released = {run.task: run.dice["standard"] for run in runs if run.way == "released"}
    lines = [
        f"| {shots} images, {way} | draws | learned | box + learned | tight box | learned / tight | AUROC | left "
        "empty |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    columns: list[tuple[float, float, float, float]] = []
    for task in TASKS:
        own = [run for run in runs if (run.task, run.way, run.shots) == (task, way, shots)]
        if not own or task not in released:
            continue
        learned, both = (float(np.mean([run.dice[name] for run in own])) for name in ("learned", "box+learned"))
        ratio = learned / released[task]
        columns.append((learned, both, released[task], ratio))
        spread = f" ({min(run.dice['learned'] for run in own):.3f} to {max(run.dice['learned'] for run in own):.3f})"
        area = float(np.mean([run.auroc for run in own]))
        denied = float(np.mean([run.denied for run in own]))
        empty = "n/a" if math.isnan(denied) else f"{100 * denied:.0f} %"
        seen = "n/a" if math.isnan(area) else f"{area:.2f} ({own[0].present} with, {own[0].absent} without)"
        cells = (f"{learned:.3f}{spread}", f"{both:.3f}", f"{released[task]:.3f}", f"{ratio:.2f}", seen, empty)
        lines.append(f"| {task} | {len(own)} | {' | '.join(cells)} |")
    if columns:
        means = np.mean(columns, axis=0)
        lines.append(f"| mean | | {means[0]:.3f} | {means[1]:.3f} | {means[2]:.3f} | {means[3]:.2f} | | |")
    return lines


def main() -> None:
    """Read every run and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    folders = sorted(path for path in (given.out / given.split).iterdir() if path.is_dir())
    runs = [run for run in map(measured, folders) if run is not None]
    kinds = sorted({(run.way, run.shots) for run in runs if run.way != "released"}, key=str)
    text = "\n\n".join("\n".join(table(runs, way, shots)) for way, shots in kinds) + "\n"
    with replacing(given.out / "tables.md", overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["task", "way", "shots", "draw", "protocol", "dice", "auroc"])
    for run in runs:
        for name, dice in run.dice.items():
            writer.writerow([run.task, run.way, run.shots, run.draw, name, f"{dice:.6f}", f"{run.auroc:.6f}"])
    with replacing(given.out / "tables.csv", overwrite=True) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
