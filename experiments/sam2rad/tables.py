"""Tables of what run.py measured: learned prompts beside the tight box; writes tables.md, tables.csv and few-shot.png.

    python experiments/sam2rad/tables.py OUT [--split test]

A task's Dice is the mean over subjects of the mean over their objects and the slices that show them, then over draws:
where nothing is there, nobody draws a box. How many of those were left empty, as they should be, has a column of its
own, and the AUROC of the object score is of all slices. The tight box is that of the released model, whose rows every
task has. "Counted by all" is the mean that the summary of `palpate evaluate` prints: what is found where nothing is
counts as Dice 0. A second table has the Dice of each class. Then come the paper's tables 2 to 4 in its shape, Dice and
IoU, as far as they were run; few-shot.png is its figure 6, and what was run stands below.
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
from matplotlib.figure import Figure

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
    iou: dict[str, float]
    by_class: dict[tuple[str, str], float]
    """By protocol and class."""
    by_all: float
    """Of learned prompts, with the slices that do not show the class."""
    made: dict[str, str]
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
    dice, iou = (
        {name: over_subjects((row for row in shown if row.protocol == name), measure) for name in names}
        for measure in ("dice", "iou")
    )
    by_class = {
        (name, one): over_subjects(row for row in shown if row.protocol == name and row.object.partition("@")[0] == one)
        for name in names
        for one in sorted({row.object.partition("@")[0] for row in shown}, key=_as_number)
    }
    by_all = over_subjects(row for row in run.rows if row.protocol == "learned")
    versions = run.record.get("versions", {})
    made = {
        "palpate": f"{versions.get('palpate')}, code {versions.get('code')}",
        "torch": str(versions.get("torch")),
        "weights": str(run.record.get("weights_hash"))[:12],
    }
    lines = presence_summary(run.presence)
    # The last line is of all classes, where there are several.
    whole = lines[-1] if lines else None
    shots, draw, way = about if about != ["released"] else ("", "0", "released")
    return Measured(
        task,
        way,
        shots,
        int(draw),
        dice=dice,
        iou=iou,
        by_class=by_class,
        by_all=by_all,
        made=made,
        auroc=math.nan if whole is None else whole.auroc,
        present=0 if whole is None else whole.present,
        absent=0 if whole is None else whole.absent,
        denied=math.nan if whole is None else whole.denied,
    )


def _as_number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (10**9, name)


def over_subjects(rows: Iterable[Row], measure: str = "dice") -> float:
    """The mean over subjects of a measure, Dice or IoU; NaN without rows."""
    subjects: dict[str, list[float]] = {}
    for row in rows:
        subjects.setdefault(row.subject, []).append(getattr(row, measure))
    return float(np.mean([np.mean(values) for values in subjects.values()])) if subjects else math.nan


def table(runs: Sequence[Measured], way: str, shots: str) -> list[str]:
    """One way of learning from so many images: a line a task, and their mean."""
    released = {run.task: run.dice["standard"] for run in runs if run.way == "released"}
    lines = [
        f"| {shots} images, {way} | draws | learned | box + learned | tight box | learned / tight | counted by "
        "all | AUROC | left empty |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    columns: list[tuple[float, ...]] = []
    for task in TASKS:
        own = [run for run in runs if (run.task, run.way, run.shots) == (task, way, shots)]
        if not own or task not in released:
            continue
        learned, both = (float(np.mean([run.dice[name] for run in own])) for name in ("learned", "box+learned"))
        ratio = learned / released[task]
        by_all = float(np.mean([run.by_all for run in own])) / released[task]
        columns.append((learned, both, released[task], ratio, by_all))
        spread = f" ({min(run.dice['learned'] for run in own):.3f} to {max(run.dice['learned'] for run in own):.3f})"
        area = float(np.mean([run.auroc for run in own]))
        denied = float(np.mean([run.denied for run in own]))
        empty = "n/a" if math.isnan(denied) else f"{100 * denied:.0f} %"
        seen = "n/a" if math.isnan(area) else f"{area:.2f} ({own[0].present} with, {own[0].absent} without)"
        cells = (
            f"{learned:.3f}{spread}",
            f"{both:.3f}",
            f"{released[task]:.3f}",
            f"{ratio:.2f}",
            f"{by_all:.2f}",
            seen,
            empty,
        )
        lines.append(f"| {task} | {len(own)} | {' | '.join(cells)} |")
    if columns:
        means = np.mean(columns, axis=0)
        dice, ratios = (f"{mean:.3f}" for mean in means[:3]), (f"{mean:.2f}" for mean in means[3:])
        lines.append(f"| mean | | {' | '.join(dice)} | {' | '.join(ratios)} | | |")
    return lines


def classes_table(runs: Sequence[Measured], way: str, shots: str) -> list[str]:
    """The Dice of each class of the tasks that have several: mean over draws of learned prompts, and the tight box."""
    lines = ["| task | class | learned | box + learned | tight box |", "|---|---|---:|---:|---:|"]
    released = {run.task: run for run in runs if run.way == "released"}
    for task in TASKS:
        own = [run for run in runs if (run.task, run.way, run.shots) == (task, way, shots)]
        names = [one for name, one in own[0].by_class if name == "learned"] if own else []
        if len(names) < 2 or task not in released:
            continue
        for one in names:
            values = [float(np.mean([run.by_class[name, one] for run in own])) for name in ("learned", "box+learned")]
            values.append(released[task].by_class["standard", one])
            lines.append(f"| {task} | {one} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return lines if len(lines) > 2 else []


def paper_table(runs: Sequence[Measured], title: str, columns: Sequence[tuple[str, str, str]], shots: str) -> list[str]:
    """A table of the paper's, in its shape: Dice / IoU in percent, the mean over draws, a column a task and prompt.

    `columns` are, for each task, (name of the prompt, way of learning, protocol). Nothing if no task has all of them.
    """
    heads: list[str] = []
    cells: list[str] = []
    for task in TASKS:
        found: list[tuple[str, list[Measured], str]] = []
        for name, way, protocol in columns:
            asked = "" if way == "released" else shots
            own = [run for run in runs if (run.task, run.way, run.shots) == (task, way, asked)]
            found.append((name, own, protocol))
        if not all(own for _, own, _ in found):
            continue
        for name, own, protocol in found:
            heads.append(f"{task}, {name}")
            cells.append(
                f"{100 * float(np.mean([run.dice[protocol] for run in own])):.1f} / "
                f"{100 * float(np.mean([run.iou[protocol] for run in own])):.1f}"
            )
    if not heads:
        return []
    return [
        f"| {title} | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
        f"| LiteMedSAM | {' | '.join(cells)} |",
    ]


def paper_tables(runs: Sequence[Measured]) -> list[list[str]]:
    """The paper's tables 2, 3 and 4; the last two for each number of images that both prompts were learned from."""
    box = ("box", "released", "standard")
    parts = [paper_table(runs, "Table 2: tight box, nothing trained", [box], "")]
    for shots in sorted({run.shots for run in runs if run.shots}, key=_as_images):
        frozen, lora = "none-localiser", "lora-localiser"
        parts += [
            paper_table(
                runs, f"Table 3: {in_words(shots)}, decoder frozen", [box, ("learned", frozen, "learned")], shots
            ),
            paper_table(
                runs,
                f"Table 4: {in_words(shots)}, LoRA on the decoder",
                [("learned", lora, "learned"), ("box + learned", lora, "box+learned")],
                shots,
            ),
        ]
    return [part for part in parts if part]


def _as_images(shots: str) -> float:
    return math.inf if shots == "all" else int(shots)


def in_words(shots: str) -> str:
    """A number of images, for a title."""
    return "all images" if shots == "all" else f"{shots} images"


def few_shot(runs: Sequence[Measured], way: str) -> Figure:
    """The paper's figure 6: Dice of learned prompts against the number of images, a line a task, and the tight box.

    Points are means over draws, bars go from the lowest to the highest draw; a dashed line is the released model's
    tight box.
    """
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    every = sorted({run.shots for run in runs if run.way == way}, key=_as_images)
    for axes, task in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, TASKS, strict=True):
        axes.set_title(task)
        axes.grid(alpha=0.3)
        axes.set_xticks(range(len(every)), every)
        axes.set_ylim(0, 1)
        for label, protocol in (("learned", "learned"), ("box + learned", "box+learned")):
            x: list[int] = []
            values: list[list[float]] = []
            for place, shots in enumerate(every):
                own = [run.dice[protocol] for run in runs if (run.task, run.way, run.shots) == (task, way, shots)]
                if own:
                    x.append(place)
                    values.append(own)
            if not x:
                continue
            means = [float(np.mean(one)) for one in values]
            spread = [
                [mean - min(one) for mean, one in zip(means, values, strict=True)],
                [max(one) - mean for mean, one in zip(means, values, strict=True)],
            ]
            axes.errorbar(x, means, spread, marker="o", capsize=3, label=label)
        for run in runs:
            if (run.task, run.way) == (task, "released"):
                axes.axhline(run.dice["standard"], color="black", linestyle="--", linewidth=1, label="tight box")
    figure.supxlabel("labelled images")
    figure.supylabel("Dice, test")
    named = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if named:
        figure.legend(named.values(), named.keys(), frameon=False, loc="outside upper center", ncols=3)
    return figure


def provenance(runs: Sequence[Measured]) -> list[str]:
    """What every run was made by: versions and weights."""
    lines = ["| run | palpate | torch | weights |", "|---|---|---|---|"]
    for run in runs:
        name = " ".join(
            str(part) for part in (run.task, run.way, run.shots, run.draw if run.shots else "") if part != ""
        )
        lines.append(f"| {name} | {run.made['palpate']} | {run.made['torch']} | {run.made['weights']} |")
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
    parts = [part for kind in kinds for part in (table(runs, *kind), classes_table(runs, *kind)) if part]
    text = "\n\n".join("\n".join(part) for part in (*parts, *paper_tables(runs), provenance(runs))) + "\n"
    with replacing(given.out / "tables.md", overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["task", "way", "shots", "draw", "protocol", "dice", "iou", "auroc"])
    for run in runs:
        for name, dice in run.dice.items():
            numbers = (f"{value:.6f}" for value in (dice, run.iou[name], run.auroc))
            writer.writerow([run.task, run.way, run.shots, run.draw, name, *numbers])
    with replacing(given.out / "tables.csv", overwrite=True) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")
    with replacing(given.out / "few-shot.png", overwrite=True) as temporary:
        few_shot(runs, "decoder-localiser").savefig(temporary, format="png", dpi=150)
    print(text)


if __name__ == "__main__":
    main()
