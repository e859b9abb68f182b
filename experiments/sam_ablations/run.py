"""The prompt ablation of Ranem et al. (2023): every strategy trained, and tested with the same strategy.

    python experiments/sam_ablations/run.py DATA OUT [--workers 2] [--full]

Each target and strategy is a fine-tuning run and an evaluation of its own, and each can be interrupted: the same
command goes on where it stopped. At the end OUT holds results.csv, tables.md and the figures. Only public names of
palpate are used.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from tables import expected, write_tables

import palpate
from palpate import Session
from palpate.datasets import Case, Region, open_dataset
from palpate.evaluation.measure import Plan
from palpate.evaluation.protocols import protocol
from palpate.evaluation.run import ModelChoice, evaluate
from palpate.evaluation.table import read_run
from palpate.images.formats import replacing
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.models.promptable import PromptSupport
from palpate.training.finetune import Event, finetune
from palpate.training.recipe import read_recipe

if TYPE_CHECKING:
    from palpate.inference.runtimes.torch import TorchRuntime

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Target:
    """What is segmented: images of a data set, the paper's domain that they stand for, and the one region that all
    labels become; without a region each label is an object, of which `objects` an image are tested."""

    dataset: str
    domain: str
    region: str = ""
    objects: int | None = None


TARGETS = {
    "tumour": Target("brats2023_brain_mr", "radiology", region="tumour"),
    "all-nuclei": Target("he_nuclei_tcga_gbm", "pathology", region="nuclei"),
    "one-nucleus": Target("he_nuclei_tcga_gbm", "pathology", objects=8),
}


@dataclass(frozen=True)
class Settings:
    """What holds for all jobs."""

    data: Path
    out: Path
    cache: Path
    epochs: int
    steps: int
    seeds: int
    seed: int


@dataclass(frozen=True)
class Job:
    """One strategy trained for one target and tested; without a strategy, the released model tested with all."""

    target: str
    strategy: str = ""

    @property
    def name(self) -> str:
        """The folder of its results."""
        return f"{self.target}-{self.strategy or 'released'}"


def strategies_of(domain: str) -> list[str]:
    """The strategies of the paper's tables 3 to 5 in one domain."""
    return [row.strategy for row in expected() if row.domain == domain]


def cases_of(target: Target, data: Path) -> list[Case]:
    """The cases, with all labels of an image made one region if the target wants that."""
    cases = open_dataset(data, dataset=[target.dataset])
    return [_merged(case, target.region) for case in cases] if target.region else cases


def _merged(case: Case, name: str) -> Case:
    labels = np.unique(case.read().labels)
    return replace(case, regions=(Region(name, tuple(labels[labels > 0].tolist())),))


def do(job: Job, given: Settings) -> str:
    """Train one strategy on all that is not for testing, and measure it on the split `test`."""
    target = TARGETS[job.target]
    cases = cases_of(target, given.data)
    test = [case for case in cases if case.split == "test"]
    folder = given.out / "test" / job.name
    names = [job.strategy] if job.strategy else strategies_of(target.domain)
    plan = Plan(tuple(protocol(name) for name in names), seeds=given.seeds, objects=target.objects)
    if not job.strategy:
        evaluate(test, plan, folder, model=_released(given.cache), data=str(given.data))
        return job.name
    changes = {
        "data.path": str(given.data),
        "epochs": given.epochs,
        "steps": given.steps,
        "seed": given.seed,
        "name": job.name,
        "prompts": [{"strategy": job.strategy}],
    }
    trained = finetune(
        read_recipe(HERE / "recipe.toml", changes=changes),
        given.out / "runs" / job.name,
        cases=([case for case in cases if case.split != "test"], []),
        cache=given.cache,
        device="cpu",
        threads=1,
        listener=_say(job.name),
    )
    choice = ModelChoice(device="cpu", adapter=trained.adapter, cache=given.cache)
    evaluate(test, plan, folder, model=choice, data=str(given.data))
    return job.name


def _released(cache: Path) -> Session:
    """The released network with every prompt given to it as it is, without palpate's search for a box."""
    session = palpate.load("lite-medsam", device="cpu", runtime="torch", cache=EmbeddingCache(cache))
    raw = PromptSupport(trained=("box",), accepted=("points",))
    return Session(replace(cast("TorchRuntime", session.runtime), prompts=raw), cache=EmbeddingCache(cache))


def _say(name: str):
    def say(event: Event) -> None:
        if event.kind in ("estimate", "resumed", "finished"):
            print(f"{name}: {event.text}", flush=True)

    return say


def write_results(out: Path) -> None:
    """All rows of all finished jobs of OUT as one table: a row an image, or an object where every label is one."""
    with (
        replacing(out / "results.csv", overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["target", "strategy", "model", "subject", "case", "object", "seed", "dice", "iou"])
        for job in _jobs(list(TARGETS), None):
            folder = out / "test" / job.name
            if not (folder / "results.csv").is_file():
                continue
            for row in read_run(folder).rows:
                model = "trained" if job.strategy else "released"
                scores = f"{row.dice:.6f}", f"{row.iou:.6f}"
                writer.writerow([job.target, row.protocol, model, row.subject, row.case, row.object, row.seed, *scores])


def _jobs(targets: Sequence[str], strategies: Sequence[str] | None) -> list[Job]:
    """For each target the released model, then each strategy of its tables, or those that were asked for."""
    jobs: list[Job] = []
    for name in targets:
        wanted = [s for s in strategies_of(TARGETS[name].domain) if not strategies or s in strategies]
        jobs += [Job(name), *(Job(name, strategy) for strategy in wanted)]
    return jobs


def main() -> None:
    """Do all jobs, several at a time, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with both data sets and the splits train, val and test")
    parser.add_argument("out", type=Path, help="the folder for everything that is made")
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--strategies", nargs="*", help="only these; else all of tables 3 to 5")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=75, help="steps an epoch")
    parser.add_argument("--full", action="store_true", help="the paper's schedule: 75 epochs of 75 steps")
    parser.add_argument("--seeds", type=int, default=1, help="draws of each prompt that has dice, in the test")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--cache", type=Path, help="the folder of embeddings; else in OUT")
    parser.add_argument("--workers", type=int, default=1, help="jobs at a time, one thread each")
    asked = parser.parse_args()
    epochs, steps = (75, 75) if asked.full else (asked.epochs, asked.steps)
    cache = asked.cache or asked.out / "embeddings"
    given = Settings(asked.data, asked.out, cache, epochs, steps, asked.seeds, asked.seed)
    jobs = _jobs(asked.targets, asked.strategies)
    with ProcessPoolExecutor(asked.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(do, job, given) for job in jobs]:
            print("done:", future.result(), flush=True)
    write_results(asked.out)
    write_tables(asked.out)


if __name__ == "__main__":
    main()
