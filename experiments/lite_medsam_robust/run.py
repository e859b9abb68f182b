"""Roads to a LiteMedSAM that forgives sloppy boxes and forgets nothing, each measured on data sets it never saw.

    python experiments/lite_medsam_robust/run.py DATA OUT [--roads jitter mixture ...] [--workers 2]

Training sees only rows whose licence allows weights to be given on. Each round leaves three whole data sets out of
that; they, and all data sets whose licence does not allow it, are unseen. Roads are compared on the train and val rows
of unseen data sets (`choose`), the chosen one is reported on their test rows (`--split test`). "Robust Dice" is the
mean over seven boxes, every side moved by -25, -15, -8, 0, +8, +15, +25 % of its length: per data set, then over data
sets. Everything can be interrupted; the same command goes on. Only public names of palpate are used.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regions

from palpate.datasets import open_dataset
from palpate.datasets.case import Case
from palpate.evaluation.measure import Plan
from palpate.evaluation.protocols import protocol
from palpate.evaluation.results import some_cases
from palpate.evaluation.run import ModelChoice, evaluate
from palpate.evaluation.statistics import subject_values
from palpate.evaluation.table import Row, read_run
from palpate.inference.processes import worker_pool
from palpate.models.averaging import average
from palpate.training.finetune import Event, finetune
from palpate.training.recipe import read_recipe

HERE = Path(__file__).parent

ROUNDS = {
    "a": ("busi_breast_us", "isic2017_dermoscopy", "spider_lumbar_mr_2d"),
    "b": ("ccaus_carotid_us", "dsb2018_nuclei", "msd_hippocampus_mr"),
}

MIXTURE = [
    {"strategy": "standard", "share": 2},
    {"strategy": "shrink", "severity": [0.0, 0.25], "share": 3},
    {"strategy": "expansion", "severity": [0.0, 0.3], "share": 4},
    {"strategy": "jitter", "severity": [0.05, 0.25], "share": 3},
]
LOOSE = [
    {"strategy": "standard", "share": 2},
    {"strategy": "shrink", "severity": [0.0, 0.25], "share": 3},
    {"strategy": "expansion", "severity": [0.0, 0.3], "share": 6},
    {"strategy": "jitter", "severity": [0.05, 0.2], "share": 1},
]
TIGHT = [
    {"strategy": "standard", "share": 5},
    {"strategy": "shrink", "severity": [0.0, 0.25], "share": 4},
    {"strategy": "expansion", "severity": [0.0, 0.25], "share": 3},
    {"strategy": "jitter", "severity": [0.0, 0.2], "share": 2},
]
BALANCED = [
    {"strategy": "standard", "share": 4},
    {"strategy": "shrink", "severity": [0.0, 0.25], "share": 4},
    {"strategy": "expansion", "severity": [0.0, 0.3], "share": 6},
    {"strategy": "jitter", "severity": [0.0, 0.2], "share": 1},
]
SHORT = {"epochs": 3}
REGIONS = {"data.path": "regions"}
"""Objects that nobody labelled, beside those of the data; see regions.py."""
TEACHER = {"preset": "bce+dice", "teacher": 1.0}
VIEWS = {"data.flips": ["x"], "data.crops": 2, "data.cases_per_dataset": 30}
VARIANTS = {"data.variants": 3, "data.cases_per_dataset": 30}
"""Other views of each slice, and not too many slices of the largest data set, since each view is encoded once."""

ROADS: Mapping[str, Mapping[str, Any]] = {
    "jitter": {},
    "mixture": {"prompts": MIXTURE},
    "loose": {"prompts": LOOSE},
    "mixture-teacher": {"prompts": MIXTURE, "loss": TEACHER},
    "tight": {"prompts": TIGHT, **SHORT},
    "tight-teacher": {"prompts": TIGHT, "loss": TEACHER, **SHORT},
    "tight-teacher-alone": {"prompts": TIGHT, "loss": {"teacher": 1.0}, **SHORT},
    "tight-lora": {
        "prompts": TIGHT,
        "trained": {"parts": ["lora"], "rank": 16, "alpha": 16, "targets": "linear"},
        "optimiser.rate": 5e-4,
        **SHORT,
    },
    "tight-views": {"prompts": TIGHT, **VIEWS, **SHORT},
    "tight-variants": {"prompts": TIGHT, **VARIANTS, **SHORT},
    "tight-regions": {"prompts": TIGHT, **REGIONS, **SHORT},
    "tight-regions-variants": {"prompts": TIGHT, **REGIONS, **VARIANTS, **SHORT},
    "balanced-regions-variants": {"prompts": BALANCED, **REGIONS, **VARIANTS, "epochs": 4},
    "tight-teacher-variants": {"prompts": TIGHT, "loss": TEACHER, **VARIANTS, **SHORT},
    "tight-teacher-views": {"prompts": TIGHT, "loss": TEACHER, **VIEWS, **SHORT},
    "teacher-alone": {"prompts": MIXTURE, "loss": {"teacher": 1.0}},
    "mixture-consistency": {"prompts": MIXTURE, "loss": {"preset": "bce+dice", "consistency": 1.0}},
    "mixture-anchor": {"prompts": MIXTURE, "loss": {"preset": "bce+dice", "anchor": 1.0}},
    "mixture-ema": {"prompts": MIXTURE, "optimiser.ema": 0.99, "optimiser.rate": 2e-4},
    "mixture-lora-4": {"prompts": MIXTURE, "trained": {"parts": ["lora"], "rank": 4}, "optimiser.rate": 5e-4},
    "mixture-lora-16-linear": {
        "prompts": MIXTURE,
        "trained": {"parts": ["lora"], "rank": 16, "alpha": 16, "targets": "linear"},
        "optimiser.rate": 5e-4,
    },
    "mixture-prompt-side": {"prompts": MIXTURE, "trained": ["prompt-encoder"], "optimiser.rate": 1e-3},
    "mixture-bias-norm": {"prompts": MIXTURE, "trained": ["bias-norm"], "optimiser.rate": 5e-4},
    # the encoder learns too, so that every step encodes
    "mixture-last-blocks": {
        "prompts": MIXTURE,
        "trained": {"parts": ["decoder", "last-blocks"]},
        "precision": "bf16-mixed",
    },
    "mixture-encoder-lora": {
        "prompts": MIXTURE,
        "trained": {"parts": ["decoder", "lora"], "where": ["encoder"], "rank": 8, "alpha": 8, "targets": "linear"},
        "precision": "bf16-mixed",
    },
    "mixture-views": {"prompts": MIXTURE, **VIEWS},
    "mixture-teacher-views": {"prompts": MIXTURE, "loss": TEACHER, **VIEWS},
    "teacher-alone-views": {"prompts": MIXTURE, "loss": {"teacher": 1.0}, **VIEWS},
    "mixture-slow": {"prompts": MIXTURE, "optimiser.rate": 3e-5},
}

AVERAGES: Mapping[str, tuple[str, ...]] = {
    "average-2": ("loose", "mixture"),
    "average-3": ("loose", "mixture", "mixture-teacher"),
    "average-4": ("loose", "mixture", "mixture-teacher", "mixture-consistency"),
}
"""Roads that train nothing: the weights of others, averaged."""

PLAN = Plan(
    protocols=(
        protocol("standard"),
        protocol("expansion", [0.08, 0.15, 0.25]),
        protocol("shrink", [0.08, 0.15, 0.25]),
    ),
    objects=2,
    volumes="one-slice",
    score="slice",
    in_pixels=("acdc_cardiac_mr",),
)
BOXES = (-0.25, -0.15, -0.08, 0.0, 0.08, 0.15, 0.25)
SHARES = (1.0, 0.7, 0.5)


@dataclass(frozen=True)
class Job:
    """A road in a round, or the released model in it (no road)."""

    road: str
    round: str

    @property
    def name(self) -> str:
        """The folder of its results."""
        return f"{self.road or 'released'}-{self.round}"


def unseen(data: Path, left_out: Sequence[str], splits: Sequence[str]) -> list[Case]:
    """The cases of data sets that training does not see."""
    return [
        case
        for case in open_dataset(data)
        if case.split in splits
        and (case.dataset in left_out or dict(case.extra).get("redistributable_weights") != "yes")
    ]


def do(job: Job, data: Path, out: Path, *, split: str, cases: int, shares: Sequence[float]) -> str:
    """Train a road in a round, and measure it, whole and by shares of the way from the released model."""
    cache = out / "embeddings"
    left_out = ROUNDS[job.round]
    splits = ("train", "val") if split == "choose" else (split,)
    chosen = some_cases(unseen(data, left_out, splits), most=cases, seed=0)
    if not job.road:
        evaluate(chosen, PLAN, out / split / job.name, model=ModelChoice(device="cpu", cache=cache), data=str(data))
        return job.name
    if job.road in AVERAGES:
        parts = [_trained(Job(road, job.round), data, out, left_out=left_out) for road in AVERAGES[job.road]]
    else:
        parts = [_trained(job, data, out, left_out=left_out)]
    for share in shares:
        adapter = parts[0]
        if share != 1 or len(parts) > 1:
            adapter = out / "runs" / f"{job.name}-{share:g}.safetensors"
            average(parts, adapter, share=share)
        choice = ModelChoice(device="cpu", adapter=adapter, cache=cache)
        evaluate(chosen, PLAN, out / split / f"{job.name}-{share:g}", model=choice, data=str(data), workers=1)
    return job.name


def _trained(job: Job, data: Path, out: Path, *, left_out: Sequence[str]) -> Path:
    """The adapter of a road in a round, trained now if it is not there."""
    changes = {"data.path": str(data), "name": job.name, **ROADS[job.road]}
    if changes["data.path"] == "regions":
        changes["data.path"] = str(out / "regions")
    there = {case.dataset for case in open_dataset(str(changes["data.path"]))}
    changes["data.leave_out"] = [name for name in [*left_out, *(f"regions_{n}" for n in left_out)] if name in there]
    recipe = read_recipe(HERE / "recipe.toml", changes=changes)
    folder = out / "runs" / job.name
    return finetune(recipe, folder, cache=out / "embeddings", device="cpu", threads=1, listener=_say(job.name)).adapter


def by_dataset(rows: Sequence[Row]) -> list[dict[str, float]]:
    """For each of the seven boxes the Dice of every data set, in percent: the mean of its subjects' means."""
    found: list[dict[str, float]] = []
    for severity in BOXES:
        name = "standard" if severity == 0 else "expansion" if severity > 0 else "shrink"
        here = [row for row in rows if row.protocol == name and row.severity == abs(severity)]
        values = subject_values(here, "dice")
        found.append({dataset: 100 * float(np.mean(list(each.values()))) for dataset, each in values.items()})
    return found


def curve(rows: Sequence[Row]) -> list[float]:
    """The Dice at each of the seven boxes, in percent: the mean of data sets' means."""
    return [float(np.mean(list(each.values()))) for each in by_dataset(rows)]


def numbers(rows: Sequence[Row]) -> list[float]:
    """The curve, its mean, and the share of errors of tight boxes on tiny targets, in percent."""
    tiny = [row for row in rows if row.protocol == "standard" and row.area <= 0.005]
    errors = subject_values(tiny, "error")
    mean_errors = 100 * float(np.mean([np.mean(list(v.values())) for v in errors.values()])) if errors else np.nan
    values = curve(rows)
    return [*values, float(np.mean(values)), mean_errors]


def head(*names: str) -> str:
    """The first two lines of a table of `numbers`."""
    columns = [*names, *(f"{100 * box:+.0f} %" for box in BOXES), "robust", "tiny errors"]
    return f"| {' | '.join(columns)} |\n" + "|---" * len(names) + "|---:" * (len(BOXES) + 2) + "|"


def table(out: Path, split: str) -> str:
    """All that was measured, a line a road, share and round; and the means over rounds."""
    lines = [head("road", "share", "round")]
    found: dict[tuple[str, str], list[list[float]]] = {}
    for folder in sorted((out / split).iterdir()):
        if not (folder / "results.csv").is_file():
            continue
        road, _, rest = folder.name.rpartition("-")
        share = rest if rest not in ROUNDS else ""
        road, _, round_ = road.rpartition("-") if share else (road, "", rest)
        here = numbers(read_run(folder).rows)
        found.setdefault((road, share), []).append(here)
        lines.append(_line(road, share, round_, here))
    for (road, share), many in found.items():
        if len(many) > 1:
            lines.append(_line(road, share, "mean", np.mean(many, axis=0).tolist()))
    return "\n".join(lines)


def write_by_dataset(out: Path, split: str) -> None:
    """Write SPLIT-by-dataset.csv into OUT: what the table averages over."""
    lines = ["run,dataset," + ",".join(f"{box:+g}" for box in BOXES)]
    for folder in sorted((out / split).iterdir()):
        if (folder / "results.csv").is_file():
            found = by_dataset(read_run(folder).rows)
            lines += [f"{folder.name},{name}," + ",".join(f"{each[name]:.2f}" for each in found) for name in found[0]]
    (out / f"{split}-by-dataset.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(road: str, share: str, round_: str, values: Sequence[float]) -> str:
    return f"| {road} | {share or '–'} | {round_} | " + " | ".join(f"{value:.1f}" for value in values) + " |"


def _say(name: str):
    def say(event: Event) -> None:
        if event.kind in ("estimate", "resumed", "validation", "finished"):
            print(f"{name}: {event.text}", flush=True)

    return say


def main() -> None:
    """Do all jobs, several at a time, print the table and write what it averages over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set with the splits train, val, test and licences")
    parser.add_argument("out", type=Path, help="the folder for everything that is made")
    parser.add_argument("--roads", nargs="*", default=list(ROADS), choices=[*ROADS, *AVERAGES])
    parser.add_argument("--rounds", nargs="*", default=list(ROUNDS), choices=list(ROUNDS))
    parser.add_argument("--split", choices=["choose", "test"], default="choose", help="what to measure on")
    parser.add_argument("--cases", type=int, default=4, help="cases of each unseen data set")
    parser.add_argument(
        "--shares", nargs="*", type=float, help="of the way to the adapter; all, or one with --split test"
    )
    parser.add_argument("--workers", type=int, default=1, help="jobs at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    given = parser.parse_args()
    if given.split == "test" and len(given.shares or ()) != 1:
        parser.error("on test, one road with one share is reported: give --shares with the one that was chosen")
    if not given.table:
        if any(ROADS.get(road, {}).get("data.path") == "regions" for road in given.roads):
            regions.write(given.data, given.out / "regions", cache=given.out / "embeddings")
        # Averages come last: they need what the others train.
        trained = [road for road in given.roads if road in ROADS]
        for roads in (["", *trained], [road for road in given.roads if road in AVERAGES]):
            with worker_pool(given.workers) as pool:
                futures = [
                    pool.submit(
                        do,
                        Job(road, name),
                        given.data,
                        given.out,
                        split=given.split,
                        cases=given.cases,
                        shares=given.shares or SHARES,
                    )
                    for road in roads
                    for name in given.rounds
                ]
                for future in futures:
                    print("done:", future.result(), flush=True)
    write_by_dataset(given.out, given.split)
    print(table(given.out, given.split))


if __name__ == "__main__":
    main()
