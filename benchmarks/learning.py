"""From ten labelled images to a usable file: how long it takes, and where the time goes.

    python benchmarks/learning.py DATA [--dataset NAME] [--target NAME ...] [--shots 10] [--steps N]

Begins with an empty embedding cache in a temporary folder. Times are of this machine and of nothing else that runs on
it; the last line says which machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

from palpate.inference.processes import be_quick
from palpate.training.learn_prompts import learn
from palpate.training.learn_recipe import learn_recipe_from
from palpate.training.task import Event


def main() -> None:
    """Learn once, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--steps", type=int)
    given = parser.parse_args()

    content = {
        "data": {
            "path": str(given.data),
            "dataset": given.dataset,
            "targets": given.target,
            "shots": given.shots,
        }
    }
    if given.steps is not None:
        content["steps"] = given.steps
    recipe = learn_recipe_from(content)
    be_quick()  # as the command line does
    started = time.perf_counter()
    first: dict[str, float] = {}
    last: dict[str, float] = {}

    def listen(event: Event) -> None:
        now = time.perf_counter() - started
        first.setdefault(event.kind, now)
        last[event.kind] = now

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "embeddings"
        made = learn(recipe, Path(folder) / "found.safetensors", cache=cache, device="cpu", listener=listen)
        size = made.path.stat().st_size
        encoded = sum(1 for _ in cache.glob("*/*.safetensors"))
    whole = time.perf_counter() - started
    rows = [
        ("reading the images, loading the model", first["embedding"]),
        (f"encoding {encoded} views", last["embedding"] - first["embedding"]),
        ("means of the embeddings, and the first trial step", first["step"] - last["embedding"]),
        (f"{made.steps} steps of {recipe.batch} items", last["step"] - first["step"]),
        ("writing the file", whole - last["step"]),
        ("in all", whole),
    ]
    print(f"| {made.card.images} images of {', '.join(given.dataset) or given.data.name} | seconds |")
    print("|---|---:|")
    for name, seconds in rows:
        print(f"| {name} | {seconds:.0f} |")
    print(
        f"\n{size / 1e6:.0f} MB; torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, "
        f"{platform.machine()}, load {os.getloadavg()[0]:.1f} at the end"
    )


if __name__ == "__main__":
    main()
