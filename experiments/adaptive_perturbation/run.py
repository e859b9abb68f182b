"""The four arms of the adaptive box perturbation, trained and measured; run with --help for what can be chosen.

    python experiments/adaptive_perturbation/run.py DATA OUT [--workers 2]

Each arm and seed is a fine-tuning run and an evaluation of its own, and each can be interrupted: the same command goes
on where it stopped. Only public names of palpate are used.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from palpate.datasets import open_dataset
from palpate.evaluation.measure import Plan
from palpate.evaluation.protocols import protocol
from palpate.evaluation.run import ModelChoice, evaluate
from palpate.inference.processes import worker_pool
from palpate.training.finetune import Event, finetune
from palpate.training.recipe import read_recipe

HERE = Path(__file__).parent
ARMS = ("medsam", "bidirectional", "adaptive", "adaptive-bidirectional")
PLAN = Plan(
    protocols=(
        protocol("standard"),
        protocol("expansion", [0.1, 0.25]),
        protocol("shrink", [0.1, 0.15, 0.25]),
    ),
    objects=3,
    volumes="one-slice",
    score="slice",
    in_pixels=("acdc_cardiac_mr",),  # its headers' spacing is nominal
)


@dataclass(frozen=True)
class Job:
    """An arm with a seed, or the released model (no arm)."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The folder of its results."""
        return f"{self.arm}-{self.seed}" if self.arm else "released"


def do(job: Job, data: Path, out: Path, *, train: bool, test: bool) -> str:
    """Train one arm with one seed on `train`, chosen on `val`; measure it on `test`."""
    cache = out / "embeddings"
    adapter = None
    if job.arm:
        changes = {
            "data.path": str(data),
            "seed": job.seed,
            "name": job.name,
            "prompts": [{"strategy": f"arm-{job.arm}"}],
        }
        recipe = read_recipe(HERE / "recipe.toml", changes=changes)
        if train:
            finetune(recipe, out / "runs" / job.name, cache=cache, device="cpu", threads=1, listener=_say(job.name))
        adapter = out / "runs" / job.name / "adapter.safetensors"
    if test:
        cases = open_dataset(data, split="test")
        choice = ModelChoice(device="cpu", adapter=adapter, cache=cache)
        evaluate(cases, PLAN, out / "test" / job.name, model=choice, data=str(data), workers=1)
    return job.name


def _say(name: str):
    def say(event: Event) -> None:
        if event.kind in ("estimate", "resumed", "validation", "finished"):
            print(f"{name}: {event.text}", flush=True)

    return say


def main() -> None:
    """Do all jobs, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", type=Path, help="a data set that `palpate evaluate` opens, with the splits train, val, test"
    )
    parser.add_argument("out", type=Path, help="the folder for everything that is made")
    parser.add_argument("--arms", nargs="*", default=[*ARMS, ""], help="which arms; an empty one is the released model")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--only", choices=["train", "test"], help="only this half of the work")
    parser.add_argument("--workers", type=int, default=1, help="jobs at a time, one thread each")
    given = parser.parse_args()
    jobs = [Job(arm, seed) for seed in given.seeds for arm in given.arms if arm or seed == given.seeds[0]]
    train, test = given.only != "test", given.only != "train"
    with worker_pool(given.workers) as pool:
        for future in [pool.submit(do, job, given.data, given.out, train=train, test=test) for job in jobs]:
            print("done:", future.result(), flush=True)


if __name__ == "__main__":
    main()
