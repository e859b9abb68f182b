"""The paper's tables 3 to 5 and figures 7 to 10 from results.csv, with the paper's numbers beside ours.

    python experiments/sam_ablations/tables.py OUT

run.py does this at its end. The paper's numbers are in expected.csv.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

HERE = Path(__file__).parent
DOMAINS = {"tumour": "radiology", "all-nuclei": "pathology", "one-nucleus": "pathology"}
TITLES = {
    "tumour": "brain tumour, MR",
    "all-nuclei": "all nuclei of an image as one mask, H&E",
    "one-nucleus": "single nuclei, H&E",
}
BLUE, ORANGE, GREEN = "#0072b2", "#e69f00", "#009e73"
MARKERS = {"tumour": ("o", BLUE), "all-nuclei": ("s", ORANGE), "one-nucleus": ("^", GREEN)}


@dataclass(frozen=True)
class Published:
    """One number of the paper: its table, the row's name, our strategy for it, and IoU and Dice in percent (NaN where
    the paper has none)."""

    table: int
    experiment: str
    strategy: str
    domain: str
    iou: float
    dice: float


@dataclass(frozen=True)
class Scores:
    """Dice and IoU in percent, by what was measured: (subject, case, object, seed)."""

    dice: dict[tuple[str, ...], float]
    iou: dict[tuple[str, ...], float]


Found = Mapping[tuple[str, str, str], Scores]
"""By target, strategy and model (released or trained)."""


def expected() -> list[Published]:
    """The paper's tables 3 to 5."""
    with (HERE / "expected.csv").open(newline="", encoding="utf-8") as file:
        return [
            Published(
                int(row["table"]),
                row["experiment"],
                row["strategy"],
                row["domain"],
                float(row["iou"] or "nan"),
                float(row["dice"] or "nan"),
            )
            for row in csv.DictReader(file)
        ]


def read_results(path: Path) -> Found:
    """What run.py wrote."""
    found: dict[tuple[str, str, str], Scores] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            scores = found.setdefault((row["target"], row["strategy"], row["model"]), Scores({}, {}))
            key = row["subject"], row["case"], row["object"], row["seed"]
            scores.dice[key], scores.iou[key] = 100 * float(row["dice"]), 100 * float(row["iou"])
    return found


def effort(strategy: str) -> int:
    """How many times a person clicks: a box is two clicks, a point one.

    The centre of a box takes the box. Centroid and quarters take the outline, which nobody would draw for a prompt; the
    points that come out are counted.
    """
    if strategy in ("centroid", "quadrants"):
        return {"centroid": 1, "quadrants": 4}[strategy]
    points = sum(int(part) for part in strategy.rpartition("points-")[2].split("+")) if "points" in strategy else 0
    return points + (0 if strategy.startswith("points") else 2)


def write_tables(out: Path) -> None:
    """Write tables.md and the figures beside results.csv."""
    found = read_results(out / "results.csv")
    targets = [name for name in DOMAINS if any(key[0] == name for key in found)]
    text = "\n".join(_target_tables(name, found) for name in targets)
    (out / "tables.md").write_text(text, encoding="utf-8", newline="")
    for name, figure in _figures(found, targets).items():
        with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})


# --- Tables -----------------------------------------------------------------------------------------------------------


def _target_tables(target: str, found: Found) -> str:
    rows = [row for row in expected() if row.domain == DOMAINS[target]]
    paper = "BraTS 2020" if DOMAINS[target] == "radiology" else "BCSS"
    lines = [f"## {TITLES[target][0].upper()}{TITLES[target][1:]}", ""]
    for table in (3, 4, 5):
        lines += [
            f"Table {table}. IoU / Dice in percent; better: test prompts that the trained model answers better.",
            "",
            f"| prompt | strategy | paper, {paper} | ours, released | ours, trained | Dice gained | better |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row, target, found) for row in rows if row.table == table]
        lines.append("")
    lines += [_agreement(rows, target, found), ""]
    return "\n".join(lines)


def _line(row: Published, target: str, found: Found) -> str:
    paper = "-" if math.isnan(row.dice) else f"{row.iou:.1f} / {row.dice:.1f}"
    released = found.get((target, row.strategy, "released"))
    trained = found.get((target, row.strategy, "trained"))
    gained = better = "-"
    if released is not None and trained is not None:
        steps = [trained.dice[key] - released.dice[key] for key in trained.dice if key in released.dice]
        gained = f"{np.mean(steps):+.1f}"
        better = f"{sum(step > 0 for step in steps)} of {len(steps)}"
    cells = (row.experiment, f"`{row.strategy}`", paper, _both(released), _both(trained), gained, better)
    return f"| {' | '.join(cells)} |"


def _both(scores: Scores | None) -> str:
    return "-" if scores is None else f"{_mean(scores.iou):.1f} / {_mean(scores.dice):.1f}"


def _mean(values: Mapping[tuple[str, ...], float]) -> float:
    return float(np.mean(list(values.values())))


def _agreement(rows: Sequence[Published], target: str, found: Found) -> str:
    """How far the order of the strategies is the paper's."""
    pairs = [
        (row.dice, _mean(found[target, row.strategy, "trained"].dice))
        for row in rows
        if not math.isnan(row.dice) and (target, row.strategy, "trained") in found
    ]
    if len(pairs) < 3:
        return ""
    paper, ours = zip(*pairs, strict=True)
    rank = float(cast("Any", spearmanr(paper, ours)).statistic)
    return f"Order of the strategies, the paper's against ours (trained): Spearman's rank correlation {rank:.2f}."


# --- Figures ----------------------------------------------------------------------------------------------------------


def _figures(found: Found, targets: Sequence[str]) -> dict[str, Figure]:
    """Figure 7 is radiology's points, 8 pathology's, 9 the boxes of all, 10 gain against effort."""
    figures: dict[str, Figure] = {}
    for name, domain in (("figure-7", "radiology"), ("figure-8", "pathology")):
        shown = [target for target in targets if DOMAINS[target] == domain]
        if shown:
            figures[name] = _box_plots(found, shown, tables=(3, 5))
    figures["figure-9"] = _box_plots(found, targets, tables=(4,))
    figures["figure-10"] = _effort_plot(found, targets)
    return figures


def _box_plots(found: Found, targets: Sequence[str], *, tables: Sequence[int]) -> Figure:
    strategies = {
        target: [row for row in expected() if row.domain == DOMAINS[target] and row.table in tables]
        for target in targets
    }
    most = max(len(rows) for rows in strategies.values())
    # Boxes need little room; a panel of four of them is wide enough for its names.
    size = (6.4 * len(targets) if most > 4 else 4.2 * len(targets), 4.8 if most > 4 else 3.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for axis, target in zip(axes, targets, strict=True):
        rows = strategies[target]
        for model, shift, colour in (("released", -0.2, "0.85"), ("trained", 0.2, BLUE)):
            known = [
                (place + shift, list(found[target, row.strategy, model].dice.values()))
                for place, row in enumerate(rows)
                if (target, row.strategy, model) in found
            ]
            if not known:
                continue
            places, values = zip(*known, strict=True)
            axis.boxplot(
                values,
                positions=places,
                widths=0.34,
                patch_artist=True,
                manage_ticks=False,
                label=f"{model} model",
                boxprops={"facecolor": colour, "alpha": 0.7},
                medianprops={"color": "black"},
                flierprops={"markersize": 3},
            )
        axis.set_xticks(range(len(rows)), [row.experiment for row in rows], rotation=45, ha="right")
        axis.set_title(TITLES[target], fontsize=10)
        axis.grid(axis="y", linewidth=0.4)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("Dice, %")
    axes[0].set_ylim(-2, 102)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, fontsize=8, loc="outside upper right", ncols=2)
    return figure


def _effort_plot(found: Found, targets: Sequence[str]) -> Figure:
    """Dice of each trained strategy against the mean over strategies, over the clicks that it takes."""
    figure = Figure(figsize=(6.6 * len(targets), 4.8), layout="constrained")
    axes = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for axis, target in zip(axes, targets, strict=True):
        means = {
            row: _mean(found[target, row.strategy, "trained"].dice)
            for row in expected()
            if row.domain == DOMAINS[target] and (target, row.strategy, "trained") in found
        }
        middle = float(np.mean(list(means.values()))) if means else 0.0
        marker, colour = MARKERS[target]
        # Names beside the marks would cover each other; numbers do not, and the list beside the plot tells them.
        named: list[Line2D] = []
        for number, ((place, height), names) in enumerate(reversed(_stacked(means, middle).items()), start=1):
            axis.scatter([place], [height], marker=marker, color=colour, s=25, zorder=3)
            axis.annotate(str(number), (place, height), xytext=(5, -2.5), textcoords="offset points", fontsize=7)
            named.append(Line2D([], [], linestyle="none", label=f"{number}  {names}"))
        axis.legend(
            handles=named, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7, handlelength=0, frameon=False
        )
        axis.axhline(0, color="0.4", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xlim(0.8, 180)
        axis.set_xticks([1, 2, 5, 10, 50, 100], ["1", "2", "5", "10", "50", "100"])
        axis.minorticks_off()
        axis.grid(linewidth=0.4)
        axis.set_axisbelow(True)
        axis.set_xlabel("clicks of the annotator")
        axis.set_title(TITLES[target], fontsize=10)
    axes[0].set_ylabel("Dice, points above the mean of all strategies")
    return figure


def _stacked(means: Mapping[Published, float], middle: float) -> dict[tuple[int, float], str]:
    """Names by place; strategies that lie close together share a mark, so that names can be read."""
    places: dict[tuple[int, float], list[str]] = {}
    close = 0.03 * (max(means.values()) - min(means.values())) if means else 0.0
    for row, value in sorted(means.items(), key=lambda item: item[1]):
        clicks, height = effort(row.strategy), value - middle
        near = next(
            (place for place in places if abs(place[0] / clicks - 1) < 0.1 and abs(place[1] - height) < close), None
        )
        places.setdefault(near or (clicks, height), []).append(row.experiment)
    return {place: ", ".join(names) for place, names in places.items()}


def main() -> None:
    """Write the tables of a finished experiment anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that run.py wrote")
    write_tables(parser.parse_args().out)


if __name__ == "__main__":
    main()
