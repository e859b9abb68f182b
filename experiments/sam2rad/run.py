"""Learned prompts on six tasks: learned from a few images, measured on test beside the tight box.

    python experiments/sam2rad/run.py DATA OUT [--shots 10] [--draws 0 1 2] [--peft decoder] [--workers 2]

Each task, number of images, draw and way of training is a run and an evaluation of its own, and each can be
interrupted: the same command goes on where it stopped. Then `tables.py OUT` prints the tables. Only public names of
palpate are used.
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
from palpate.training.learn_prompts import learn
from palpate.training.learn_recipe import read_learn_recipe
from palpate.training.task import Event

HERE = Path(__file__).parent
TASKS = {
    "carotid": ("ccaus_carotid_us", ("1",)),
    "breast": ("busi_breast_us", ("1",)),
    "heart": ("acdc_cardiac_mr", ("1", "2", "3")),
    "hippocampus": ("msd_hippocampus_mr", ("1", "2")),
    "spine": ("spider_lumbar_mr_2d", ()),
    "polyp": ("kvasir_seg_polyp", ("1",)),
}
WAYS = ("decoder", "none", "lora")
"""What moves beside the predictor: the whole decoder, nothing (the paper's table 3), LoRA on it (table 4)."""


@dataclass(frozen=True)
class Job:
    """A task, learned from so many images (0: all of train) of one draw, in one way; without a way, the released model.

    `variant` is the predictor's: palpate's localiser or one of the papers'.
    """

    task: str
    shots: int
    draw: int
    way: str
    variant: str = "localiser"
    strong: bool = False

    @property
    def name(self) -> str:
        """The folder of its results."""
        if not self.way:
            return f"{self.task}-released"
        parts = [self.task, str(self.shots or "all"), str(self.draw), self.way, self.variant]
        return "-".join([*parts, *(("strong",) if self.strong else ())])


def do(job: Job, data: Path, out: Path, *, split: str, steps: int | None) -> str:
    """Learn on `train`, measure on `split`."""
    dataset, targets = TASKS[job.task]
    learned = None
    cache = out / "embeddings"
    if job.way:
        there = sum(case.split == "train" for case in open_dataset(data, dataset=[dataset]))
        changes = {
            "data.path": str(data),
            "data.dataset": [dataset],
            "data.targets": list(targets),
            "data.shots": min(job.shots, there) if job.shots else None,
            "trained": job.way,
            "variant": job.variant,
            "seed": job.draw,
            "name": job.name,
        }
        if steps is not None:
            changes["steps"] = steps
        if job.strong:
            changes |= {"data.strong_moves": 8, "data.moves": 0}
        recipe = read_learn_recipe(
            HERE / "recipe.toml", changes={key: value for key, value in changes.items() if value is not None}
        )
        learned = out / "learned" / f"{job.name}.safetensors"
        learn(recipe, learned, cache=cache, device="cpu", threads=1, listener=_say(job.name))
    protocols = ("learned", "box+learned", "standard") if job.way else ("standard",)
    plan = Plan(
        protocols=tuple(protocol(name) for name in protocols),
        objects=20,
        volumes="every-slice",
        score="slice",
        in_pixels=("acdc_cardiac_mr",),  # its headers' spacing is nominal
    )
    choice = ModelChoice("lite-medsam" if not job.way else None, device="cpu", auto=learned, cache=cache)
    cases = open_dataset(data, dataset=[dataset], split=split)
    evaluate(cases, plan, out / split / job.name, model=choice, data=str(data), workers=1)
    return job.name


def _say(name: str):
    def say(event: Event) -> None:
        if event.kind in ("estimate", "resumed", "finished"):
            print(f"{name}: {event.text}", flush=True)

    return say


def main() -> None:
    """Do all jobs, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set that `palpate evaluate` opens, with train, val and test")
    parser.add_argument("out", type=Path, help="the folder for everything that is made")
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--shots", nargs="*", type=int, default=[10], help="how many images; 0 is all of train")
    parser.add_argument("--draws", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--peft", nargs="*", choices=WAYS, default=["decoder"])
    parser.add_argument("--variant", choices=["localiser", "linear", "high-res"], default="localiser")
    parser.add_argument("--strong", action="store_true", help="the paper's strong augmentations")
    parser.add_argument("--steps", type=int, help="other than the recipe's")
    parser.add_argument("--split", default="test", help="where it is measured; choose on val")
    parser.add_argument("--workers", type=int, default=1, help="jobs at a time, one thread each")
    given = parser.parse_args()
    jobs = [Job(task, 0, 0, "") for task in given.tasks]
    jobs += [
        Job(task, shots, draw, way, given.variant, given.strong)
        for draw in given.draws
        for shots in given.shots
        for way in given.peft
        for task in given.tasks
    ]
    with worker_pool(given.workers) as pool:
        waiting = [pool.submit(do, job, given.data, given.out, split=given.split, steps=given.steps) for job in jobs]
        for future in waiting:
            print("done:", future.result(), flush=True)


if __name__ == "__main__":
    main()
