"""Swin-LiteMedSAM in two stages on few images; run with --help for what can be chosen.

    python experiments/swin_litemedsam/run.py DATA OUT distill --encoders half
    python experiments/swin_litemedsam/run.py DATA OUT rows --encoder tinyvit [--workers 2]
    python experiments/swin_litemedsam/run.py DATA OUT same-time --steps 560
    python experiments/swin_litemedsam/run.py DATA OUT test [--workers 2]
    python experiments/swin_litemedsam/run.py DATA OUT keep --to KEPT
    python experiments/swin_litemedsam/tables.py OUT

`keep` copies what was measured, case by case, to a folder of which tables.py makes the same tables as of OUT; rows that
are trained elsewhere can be added to it. Every job can be interrupted: the same command goes on where it stopped. Only
public names of palpate are used.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from unseen import UNSEEN

from palpate.datasets import open_dataset
from palpate.evaluation.measure import Plan
from palpate.evaluation.protocols import protocol
from palpate.evaluation.run import ModelChoice, evaluate
from palpate.images.formats import replacing
from palpate.inference.processes import worker_pool
from palpate.models import weights
from palpate.models.catalogue import card
from palpate.training.distill import distill
from palpate.training.distill_recipe import read_distill_recipe
from palpate.training.finetune import Event, finetune
from palpate.training.recipe import read_recipe

HERE = Path(__file__).parent
ROWS = {
    # of the paper's table 5: what the model is without, and what it is trained with
    "encoder": ("-no-skip-no-points-no-scribble", "swin-training-box"),
    "skip": ("-no-points-no-scribble", "swin-training-box"),
    "points": ("-no-scribble", "swin-training-points"),
    "scribble": ("", "swin-training"),
    # of no paper: the last row, with boxes that go in or out in proportion to their size
    "adaptive": ("", "swin-training-adaptive"),
}
PLAN = Plan(
    protocols=(
        protocol("standard"),
        protocol("expansion", [0.08, 0.15, 0.25]),
        protocol("shrink", [0.08, 0.15, 0.25]),
    ),
    objects=2,
    volumes="one-slice",
    score="slice",
    in_pixels=("acdc_cardiac_mr",),  # its headers' spacing is nominal
)


STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    # whose encoder learns in stage 1, and what of the recipe is its own
    "swin": ("swin-lite-medsam-no-skip-no-points-no-scribble", {"start": "random", "optimiser.rate": 1e-3}),
    "small": ("swin-lite-medsam-small-no-skip-no-points-no-scribble", {"start": "random", "optimiser.rate": 1e-3}),
    "mini": ("swin-lite-medsam-mini-no-skip-no-points-no-scribble", {"start": "random", "optimiser.rate": 1e-3}),
    "half": ("lite-medsam-half", {"start": "teacher"}),
    "quarter": ("lite-medsam-quarter", {"start": "teacher"}),
    # controls of `half`: the teacher itself, taught alike; and with nothing but its batch statistics taken anew
    "whole": ("lite-medsam", {"start": "released"}),
    "statistics": ("lite-medsam", {"start": "released", "epochs": 1, "steps": 1, "optimiser.rate": 1e-12}),
    # and `half` on data sets that it never saw
    "half-unseen": ("lite-medsam-half", {"start": "teacher", "data.leave_out": [*UNSEEN]}),
}


def family(encoder: str) -> str:
    """The name of Swin-LiteMedSAM with one of these encoders."""
    return "swin-lite-medsam" if encoder == "swin" else f"swin-lite-medsam-{encoder}"


def taught(out: Path, encoder: str) -> Path:
    """Where the result of stage 1 lies: an encoder with the teacher's decoder, which answers at once."""
    return out / "stage1" / f"{encoder}.safetensors"


def learn(encoder: str, data: Path, out: Path, changes: dict[str, Any]) -> str:
    """Stage 1 for one encoder."""
    student, own = STUDENTS[encoder]
    changes = {"data.path": str(data), "student": student, "name": encoder, **changes, **own}
    recipe = read_distill_recipe(HERE / "distill.toml", changes=changes)
    done = distill(recipe, taught(out, encoder), cache=out / "embeddings", threads=1, listener=_say(encoder))
    return f"{encoder}: {done.steps} steps"


def started(name: str, out: Path, encoder: str, seed: int) -> Path:
    """The checkpoint that stage 2 starts from: what stage 1 made, and random weights where the row has its own parts.

    For LiteMedSAM's encoder stage 1 is what its authors did.
    """
    path = out / "start" / f"{name}-{seed}.safetensors"
    given = card("lite-medsam" if encoder == "tinyvit" else STUDENTS[encoder][0])
    found = weights.stored(given.name) if encoder == "tinyvit" else taught(out, encoder)
    wanted = card(name)
    torch.manual_seed(seed)
    network = cast("nn.Module", wanted.build())
    state = network.state_dict()
    for tensor, value in given.rename(weights.load_state(found, given)).items():
        if tensor in state and state[tensor].shape == value.shape:
            state[tensor] = value
    weights.write_checkpoint(wanted.restore(dict(state)), path, about={"layout": wanted.layout})
    return path


def train(row: str, seed: int, encoder: str, data: Path, out: Path, changes: dict[str, Any]) -> str:
    """Stage 2 for one row and one seed."""
    without, prompts = ROWS[row]
    name, job = f"{family(encoder)}{without}", f"{row}-{seed}"
    if encoder != "tinyvit":
        job = f"{encoder}-{job}"
    changes = {
        "data.path": str(data),
        "model": name,
        "weights": str(started(name, out, encoder, seed)),
        "prompts": [{"strategy": prompts}],
        "validation.prompts": [{"strategy": "standard"}],
        "seed": seed,
        "name": job,
        **changes,
    }
    recipe = read_recipe(HERE / "stage2.toml", changes=changes)
    before = time.monotonic()
    finetune(recipe, out / "stage2" / job, cache=out / "embeddings", device="cpu", threads=1, listener=_say(job))
    return f"{job}: {time.monotonic() - before:.0f} s"


def same_time(seed: int, steps: int, data: Path, out: Path, own: dict[str, Any]) -> str:
    """LiteMedSAM's decoder fine-tuned on the same images and boxes with the same loss, for so many steps."""
    changes = {
        "data.path": str(data),
        "model": "lite-medsam",
        "trained": ["decoder"],
        "prompts": [{"strategy": "swin-training-box"}],
        "validation.prompts": [{"strategy": "standard"}],
        "epochs": 4,
        "steps": -(-steps // 4),
        "seed": seed,
        "name": f"lite-medsam-{seed}",
        **own,
    }
    recipe = read_recipe(HERE / "stage2.toml", changes=changes)
    job = f"lite-medsam-{seed}"
    before = time.monotonic()
    finetune(recipe, out / "stage2" / job, cache=out / "embeddings", device="cpu", threads=1, listener=_say(job))
    return f"{job}: {time.monotonic() - before:.0f} s"


def test(job: str, data: Path, out: Path) -> str:
    """One model on the images of the split `test`: `stage1/ENCODER`, `stage2/JOB`, or `released`."""
    kind, _, name = job.partition("/")
    cache = out / "embeddings"
    if kind == "released":
        choice = ModelChoice(device="cpu", cache=cache)
    elif kind == "stage1":
        choice = ModelChoice(STUDENTS[name][0], taught(out, name), "cpu")
    else:
        adapter = out / "stage2" / name / "adapter.safetensors"
        recipe = json.loads((out / "stage2" / name / "run.json").read_text())["settings"]["recipe"]
        own = recipe["model"] != "lite-medsam"
        start = out / "start" / f"{recipe['model']}-{recipe['seed']}.safetensors"
        choice = ModelChoice(
            name=recipe["model"],
            device="cpu",
            weights=start if own else None,
            adapter=adapter,
            cache=cache,
        )
    evaluate(open_dataset(data, split="test"), PLAN, out / "test" / job, model=choice, data=str(data), workers=1)
    return job


def keep(out: Path, to: Path) -> str:
    """Copy the finished tests; of files on this machine the names stay, and not where they lie."""
    found = sorted((out / "test").glob("**/results.csv"))
    for results in found:
        target = to / results.parent.relative_to(out)
        target.mkdir(parents=True, exist_ok=True)
        for name in ("results.csv", "cases.csv"):
            with replacing(target / name, overwrite=True) as temporary:
                shutil.copyfile(results.with_name(name), temporary)
        record = json.loads(results.with_name("run.json").read_text(), object_hook=_without_folders)
        with replacing(target / "run.json", overwrite=True) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
    return f"{len(found)} tests"


def _without_folders(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in values.items()
    }


def _say(name: str) -> Callable[[Event], None]:
    def say(event: Event) -> None:
        if event.kind in ("estimate", "resumed", "validation", "finished"):
            print(f"{name}: {event.text}", flush=True)

    return say


def main() -> None:
    """Do the jobs of one verb, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set with the splits train, val and test")
    parser.add_argument("out", type=Path, help="the folder for everything that is made")
    parser.add_argument("verb", choices=["distill", "rows", "same-time", "test", "keep"])
    parser.add_argument("--encoders", nargs="*", default=["half"], choices=[*STUDENTS], help="whose stage 1")
    parser.add_argument("--encoder", default="tinyvit", help="with which encoder the rows are trained")
    parser.add_argument("--rows", nargs="*", default=[*ROWS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="another number of epochs than the recipe's")
    parser.add_argument("--steps", type=int, default=560, help="how many steps same-time may take")
    parser.add_argument(
        "--jobs", nargs="*", help="what is tested: stage1/small, stage2/skip-0, released (default: all)"
    )
    parser.add_argument(
        "--precision", choices=["32-true", "bf16-mixed"], help="another one than the recipe's, for all rows"
    )
    parser.add_argument("--to", type=Path, help="where `keep` copies what was measured")
    parser.add_argument("--workers", type=int, default=1, help="jobs at a time, one thread each")
    given = parser.parse_args()
    data, out = given.data, given.out
    precision = {} if given.precision is None else {"precision": given.precision}
    changes = precision if given.epochs is None else {**precision, "epochs": given.epochs}
    if given.verb == "keep":
        if given.to is None:
            parser.error("keep needs --to, the folder that is to have the results")
        print("kept:", keep(out, given.to))
        return
    with worker_pool(given.workers) as pool:
        if given.verb == "distill":
            jobs = [pool.submit(learn, encoder, data, out, changes) for encoder in given.encoders]
        elif given.verb == "rows":
            jobs = [
                pool.submit(train, row, seed, given.encoder, data, out, changes)
                for seed in given.seeds
                for row in given.rows
            ]
        elif given.verb == "same-time":
            jobs = [pool.submit(same_time, seed, given.steps, data, out, precision) for seed in given.seeds]
        else:
            found = [
                "released",
                *(f"stage1/{path.stem}" for path in sorted((out / "stage1").glob("*.safetensors"))),
                *(f"stage2/{path.parent.name}" for path in sorted((out / "stage2").glob("*/adapter.safetensors"))),
            ]
            jobs = [pool.submit(test, job, data, out) for job in given.jobs or found]
        for job in jobs:
            print("done:", job.result(), flush=True)


if __name__ == "__main__":
    main()
