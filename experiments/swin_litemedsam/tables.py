"""The paper's tables from what `run.py test` measured.

Writes tables.md and tables.csv, and curve.png: what the encoders of stage 1 cost, and how good they are.

    python experiments/swin_litemedsam/tables.py OUT

Seeds of training are seeds of the rows: they are averaged before subjects are resampled, so the intervals say what
other images might give, and the column of single seeds what another training might. What was not measured is left out.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from unseen import UNSEEN

from palpate.evaluation.modalities import CaseTime, by_modality, read_cases
from palpate.evaluation.statistics import Interval, Resampler, against, estimate, holm
from palpate.evaluation.summary import ALL, number, percent
from palpate.evaluation.table import Row, Run, read_run
from palpate.images.formats import replacing
from palpate.models.catalogue import card

NAMES = {
    "encoder": "encoder, LiteMedSAM's decoder",
    "skip": "+ skip connections",
    "points": "+ points from the box",
    "scribble": "+ scribble from the box",
    "adaptive": "the last, with adaptive boxes in and out",
    "half-encoder": "the first row, its encoder at half size from stage 1",
    "half-scribble": "the last row of the paper, its encoder at half size from stage 1",
    "mini-encoder": "the first row, with a small Swin encoder (mini) from stage 1",
    "mini-scribble": "the last row of the paper, with a small Swin encoder (mini) from stage 1",
    "swin-encoder": "the first row, with the paper's Swin encoder from stage 1",
    "swin-scribble": "the last row of the paper, with the paper's Swin encoder from stage 1",
    "lite-medsam": "LiteMedSAM, its decoder fine-tuned as long",
    "released": "LiteMedSAM as released",
}
PAIRS = (
    ("encoder", "skip"),
    ("skip", "points"),
    ("points", "scribble"),
    ("encoder", "scribble"),
    ("lite-medsam", "scribble"),
    ("scribble", "adaptive"),
    ("half-encoder", "half-scribble"),
    ("mini-encoder", "mini-scribble"),
    ("swin-encoder", "swin-scribble"),
    ("encoder", "half-encoder"),
)
MEASURES = ("dice", "nsd")
TIGHT = ("standard", 0.0)
SEVEN = (*(("shrink", s) for s in (0.25, 0.15, 0.08)), TIGHT, *(("expansion", s) for s in (0.08, 0.15, 0.25)))
"""The boxes of the robust Dice, from the tightest to the loosest."""
LEFT_OUT = {"medscribble/ACDC__patient056"}
"""The person of a test image whose other images, under another data set, are in `train`."""


@dataclass(frozen=True)
class Model:
    """One line of the tables: the rows of all its seeds, and what is known of each training."""

    name: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    cases: tuple[CaseTime, ...]
    made: tuple[dict[str, str], ...]
    network: str = ""

    @property
    def title(self) -> str:
        """What it is called in the tables."""
        return NAMES.get(self.name, self.name)

    def at(self, condition: tuple[str, float], *, seed: int | None = None) -> list[Row]:
        """Its rows with one kind of box: those of one seed, or of all, if each was asked."""
        found = [row for row in self.rows if (row.protocol, row.severity) == condition]
        if seed is not None:
            return [row for row in found if row.seed == seed]
        return found if {row.seed for row in found} == set(self.seeds) else []

    def on(self, datasets: Sequence[str]) -> Model:
        """The same on these data sets alone."""
        return replace(self, rows=tuple(row for row in self.rows if row.dataset in datasets))


@cache
def published() -> dict[str, str]:
    """Table 5 of Gao et al. 2024, arXiv 2409.07172: Dice / NSD in percent on the challenge's validation set."""
    with (Path(__file__).parent / "expected.csv").open(newline="", encoding="utf-8") as file:
        return {line["row"]: f"{line['dice']} / {line['nsd']}" for line in csv.DictReader(file)}


def read_models(out: Path) -> tuple[list[Model], list[Model]]:
    """What was measured of the rows of table 5, with what they are compared with; and of the encoders of stage 1.

    The released model stands in both.
    """
    by_name: dict[str, list[tuple[int, Path]]] = {}
    for folder in sorted((out / "test" / "stage2").glob("*")):
        found = re.fullmatch(r"(.+)-(\d+)", folder.name)
        if found and found[1] in NAMES:
            by_name.setdefault(found[1], []).append((int(found[2]), folder))
    released = _model("released", [(0, out / "test" / "released")])
    rows = [*(_model(name, sorted(by_name[name])) for name in NAMES if name in by_name), released]
    encoders = [
        released,
        *(_model(folder.name, [(0, folder)]) for folder in sorted((out / "test" / "stage1").glob("*"))),
    ]
    return [one for one in rows if one], [one for one in encoders if one]


def _model(name: str, folders: Sequence[tuple[int, Path]]) -> Model | None:
    """A model from the folders of its seeds; None where none of them is finished."""
    done = [(seed, folder, read_run(folder)) for seed, folder in folders if (folder / "results.csv").is_file()]
    if not done:
        return None
    rows = tuple(replace(row, seed=seed) for seed, _, run in done for row in run.rows if row.subject not in LEFT_OUT)
    cases = _known([(folder, one) for _, folder, _ in done for one in read_cases(folder)])
    made = tuple(_made(name, seed, run) for seed, _, run in done)
    network = str(done[0][2].record.get("model", ""))
    return Model(name, rows, tuple(seed for seed, _, _ in done), cases, made, network)


def _known(cases: Sequence[tuple[Path, CaseTime]]) -> tuple[CaseTime, ...]:
    """Each case once; of its times those of the first seed."""
    found: dict[tuple[str, str], CaseTime] = {}
    for folder, one in cases:
        first = found.setdefault((one.dataset, one.case), one)
        if first.modality != one.modality:
            sys.exit(
                f"{folder} calls {one.dataset}/{one.case} {one.modality or 'nothing'}, and another seed "
                f"{first.modality or 'nothing'}; test it again: its palpate is another one"
            )
    return tuple(found.values())


def _made(name: str, seed: int, run: Run) -> dict[str, str]:
    versions = run.record.get("versions", {})
    return {
        "model": f"{name}-{seed}" if name in NAMES and name != "released" else name,
        "weights": str(run.record.get("weights_hash"))[:12],
        "code": f"{versions.get('palpate')}, {versions.get('code')}",
        "torch": str(versions.get("torch")),
        "NSD at": str(run.record.get("settings", {}).get("plan", {}).get("tolerance")),
    }


@cache
def operations(network: str) -> float:
    """What a model's encoder takes for one canvas: multiplications and additions, in 10^9, as PyTorch counts them."""
    chosen = card(network)
    encoder = cast("Any", chosen.build()).image_encoder.eval()
    side = chosen.frame.size
    # Attention is only counted where it is computed step by step.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        encoder(torch.zeros(1, 3, side, side))
    return counted.get_total_flops() / 1e9


def curve(encoders: Sequence[Model], resampler: Resampler) -> Figure:
    """What encoders cost, and the Dice with tight boxes and the mean of the seven, with intervals."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for label, marker, boxes in (("tight boxes", "o", (TIGHT,)), ("mean of seven boxes", "s", SEVEN)):
        shown = [one for one in encoders if one.network and all(one.at(box) for box in boxes)]
        if not shown:
            continue
        found = [estimate([row for box in boxes for row in one.at(box)], "dice", resampler) for one in shown]
        x, y = [operations(one.network) for one in shown], [100 * one.estimate for one in found]
        spread = [[100 * (one.estimate - one.low) for one in found], [100 * (one.high - one.estimate) for one in found]]
        axes.errorbar(x, y, spread, fmt=marker, capsize=3, label=label)
        for one, place in zip(shown, zip(x, y, strict=True), strict=True):
            axes.annotate(one.name, place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("encoder, GFLOP for one image")
    axes.set_ylabel("Dice, %")
    axes.set_xscale("log")
    axes.set_xticks(ticks := [5, 10, 20, 50, 100], [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def in_words(condition: tuple[str, float]) -> str:
    """A kind of box, for the head of a column."""
    name, severity = condition
    return "tight" if condition == TIGHT else f"{'+' if name == 'expansion' else '-'}{100 * severity:g} %"


def boxes_of(models: Sequence[Model]) -> list[tuple[str, float]]:
    """The kinds of boxes that any of them answered, from the tightest to the loosest."""
    return [condition for condition in SEVEN if any(one.at(condition) for one in models)]


def robust(rows: Sequence[Row], resampler: Resampler) -> Interval | None:
    """The mean over the seven boxes; None where one of them was not asked."""
    if {(row.protocol, row.severity) for row in rows} < set(SEVEN):
        return None
    return estimate([row for row in rows if (row.protocol, row.severity) in SEVEN], "dice", resampler)


class Page:
    """Lines of Markdown, and the numbers in them as rows of a CSV file."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.numbers: list[tuple[object, ...]] = []

    def table(self, title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
        """A table, if it has lines."""
        if body:
            self.lines += [f"### {title}", "", f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
            self.lines += [f"| {' | '.join(line)} |" for line in body]
            self.lines.append("")

    def kept(self, table: str, model: str, condition: tuple[str, float], measure: str, found: Interval) -> str:
        """A number that goes into the CSV file as well, in percent."""
        self.numbers.append((table, model, *condition, measure, found.estimate, found.low, found.high))
        return percent(found)

    def boxes(self, table: str, model: Model, asked: Sequence[tuple[str, float]], resampler: Resampler) -> list[str]:
        """A model's Dice with each box."""
        rows = {box: model.at(box) for box in asked}
        return [
            model.title,
            *(
                self.kept(table, model.name, box, "dice", estimate(rows[box], "dice", resampler))
                if rows[box]
                else "not asked"
                for box in asked
            ),
        ]

    def encoders(self, title: str, encoders: Sequence[Model], resampler: Resampler) -> None:
        """The encoders of stage 1, and each minus the released one, if that is the first."""
        if len(encoders) < 2:
            return
        asked = boxes_of(encoders)
        body = [
            [
                *self.boxes(title.lower(), one, asked, resampler),
                f"{operations(one.network):.1f}" if one.network else "–",
            ]
            for one in encoders
        ]
        self.table(f"{title}: Dice in percent [95 % interval]", ["", *map(in_words, asked), "encoder, GFLOP"], body)
        if encoders[0].name == "released":
            self.differences(title, [(one, encoders[0]) for one in encoders[1:]], resampler)

    def differences(self, title: str, pairs: Sequence[tuple[Model, Model]], resampler: Resampler) -> None:
        """A table of the first of each pair minus the second, for each box that both answered."""
        asked = boxes_of([one for pair in pairs for one in pair])
        compared = [
            [against(b.at(box), a.at(box), "dice", resampler) if b.at(box) and a.at(box) else None for box in asked]
            for b, a in pairs
        ]
        adjusted = iter(holm([one.p for line in compared for one in line if one]))
        body: list[list[str]] = []
        for (b, a), line in zip(pairs, compared, strict=True):
            cells = [f"{b.title} – {a.title}"]
            for box, one in zip(asked, line, strict=True):
                if one is None:
                    cells.append("not asked")
                    continue
                self.kept("differences", f"{b.name} - {a.name}", box, "dice", one.difference)
                p = next(adjusted)
                cells.append(f"{number(one.difference, scale=100.0)}, p = {p:.2g}, {one.better} / {one.worse}")
            body.append(cells)
        self.table(
            f"{title} in points of Dice, by object [95 % interval]; p of a sign-flip test by subject, adjusted for all "
            "of the table (Holm); subjects better / worse",
            ["", *map(in_words, asked)],
            body,
        )


def page_of(models: Sequence[Model], encoders: Sequence[Model], resampler: Resampler) -> Page:
    """All tables."""
    page = Page()
    by_name = {one.name: one for one in models}

    body: list[list[str]] = []
    for one in models:
        tight = one.at(TIGHT)
        single = [estimate(one.at(TIGHT, seed=seed), "dice", resampler) for seed in one.seeds]
        for seed, value in zip(one.seeds, single, strict=True):
            page.kept("rows", f"{one.name}-{seed}", TIGHT, "dice", value)
        body.append(
            [
                one.title,
                published().get(one.name, "–"),
                *(page.kept("rows", one.name, TIGHT, name, estimate(tight, name, resampler)) for name in MEASURES),
                ", ".join(f"{100 * value.estimate:.1f}" for value in single) if len(single) > 1 else "–",
            ]
        )
    page.table(
        "Table 5: tight boxes, in percent [95 % interval]",
        ["", "paper, Dice / NSD", "Dice", "NSD", "Dice of each seed"],
        body,
    )
    pairs = [(by_name[b], by_name[a]) for a, b in PAIRS if a in by_name and b in by_name]
    page.differences("Differences", pairs, resampler)

    asked = boxes_of(models)
    body = []
    for one in models:
        mean = robust([row for condition in SEVEN for row in one.at(condition)], resampler)
        each = [robust([row for row in one.rows if row.seed == seed], resampler) for seed in one.seeds]
        for seed, value in zip(one.seeds, each, strict=True):
            if value is not None:
                page.kept("boxes", f"{one.name}-{seed}", ("seven", 0.0), "dice", value)
        body.append(
            [
                *page.boxes("boxes", one, asked, resampler),
                "–" if mean is None else page.kept("boxes", one.name, ("seven", 0.0), "dice", mean),
                ", ".join("–" if value is None else f"{100 * value.estimate:.1f}" for value in each),
            ]
        )
    page.table(
        "Boxes that are not tight: Dice in percent [95 % interval]",
        ["", *map(in_words, asked), "mean of seven", "of each seed"],
        body,
    )

    shown = [one for name in ("scribble", "lite-medsam", "released") if (one := by_name.get(name)) and one.cases]
    _known([(Path(one.name), case) for one in shown for case in one.cases])
    lines: dict[str, list[str]] = {}
    for one in shown:
        for found in by_modality(Run(tuple(one.at(TIGHT)), {}, Path()), one.cases, np.random.default_rng(0)):
            name = "mean of these" if found.modality == ALL else found.modality
            cells = lines.setdefault(name, [name, str(found.cases)])
            for measure, value in zip(MEASURES, (found.dice, found.nsd), strict=True):
                cells.append(page.kept(f"modality {found.modality}", one.name, TIGHT, measure, value.as_interval()))
    page.table(
        "By modality: tight boxes, Dice and NSD in percent [95 % interval] (the paper's tables 4 and 6)",
        ["", "images", *(f"{one.title}, {name}" for one in shown for name in ("Dice", "NSD"))],
        list(lines.values()),
    )

    page.encoders("Stage 1", encoders, resampler)
    if any(one.name == "half-unseen" for one in encoders):
        page.encoders(
            "Stage 1, data sets that `half-unseen` never saw", [one.on(UNSEEN) for one in encoders], resampler
        )

    rows = (models or encoders)[0].rows
    objects, subjects = len({row.key[:4] for row in rows}), len({row.subject for row in rows})
    tolerances = ", ".join(sorted({f"{line['NSD at']}" for one in (*models, *encoders) for line in one.made}))
    seeds = ", ".join(f"{one.name} {len(one.seeds)}" for one in models)
    page.lines += [
        f"{objects} objects of {subjects} subjects; seeds of training: {seeds}. NSD at {tolerances} mm, or pixels "
        "in images without spacing. `*`: fewer than eight subjects, or a data set with one alone, so the interval is "
        "likely too short.",
        "",
    ]
    made = [line for one in (*models, *(one for one in encoders if one.name != "released")) for line in one.made]
    page.table("What was measured", ["", *list(made[0])[1:]], [list(line.values()) for line in made])
    return page


def main() -> None:
    """Read, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that run.py filled")
    out = parser.parse_args().out
    models, encoders = read_models(out)
    if not models and not encoders:
        sys.exit(f"nothing is measured in {out / 'test'}; run: run.py DATA {out} test")
    page = page_of(models, encoders, Resampler(np.random.default_rng(0)))
    if any(one.network for one in encoders):
        with replacing(out / "curve.png", overwrite=True) as temporary:
            curve(encoders, Resampler(np.random.default_rng(0))).savefig(temporary, format="png", dpi=150)
    text = "\n".join(page.lines)
    with replacing(out / "tables.md", overwrite=True) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    with (
        replacing(out / "tables.csv", overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["table", "model", "protocol", "severity", "measure", "estimate", "low", "high"])
        writer.writerows([*line[:5], *(f"{value:.4f}" for value in line[5:])] for line in page.numbers)
    print(text)


if __name__ == "__main__":
    main()
