"""How much faster is training on kept embeddings than encoding in every step, and what does it cost in memory?

    python benchmarks/training.py

Each way of training is a process of its own, so that its peak of memory is its own. All are started, then take turns, a
few steps each, so that what else the machine does falls on all of them alike. A step is `palpate.training.finetune`'s:
a batch of objects decoded, the gradients of what is trained, the optimiser. The images are phantoms drawn from a seed.

- `decoder, kept`: the encoder is frozen, and embeddings come from the cache on disk.
- `decoder, encoded`: the same training, but each step encodes its images anew, as a training loop without a cache does.
- `lora`: LoRA in decoder and encoder, so that embeddings cannot be kept. `full`: every weight.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

WAYS = ("decoder, kept", "decoder, encoded", "lora", "full")
SIDE = 256


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="phantoms")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="steps of one turn of the ways with a frozen encoder")
    parser.add_argument("--heavy-steps", type=int, default=1, help="steps of one turn of lora and full")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        draw_phantoms(Path(folder), options.images)
        seconds, peaks = measure(Path(folder), options)
    print(report(seconds, peaks, options))


def draw_phantoms(folder: Path, count: int) -> None:
    """Pictures of one bright ellipse each on noise, their labels, and a manifest."""
    lines = ["image,label,subject,split"]
    for number in range(count):
        rng = np.random.default_rng(number)
        y, x = np.indices((SIDE, SIDE))
        centre, radii = rng.uniform(90, SIDE - 90, 2), rng.uniform(15, 60, 2)
        mask = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
        pixels = np.where(mask, 150, 60) + rng.normal(0, 20, mask.shape)
        PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        PILImage.fromarray(mask.astype(np.uint8)).save(folder / f"{number}-label.png")
        lines.append(f"{number}.png,{number}-label.png,{number},{'train' if number else 'val'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def measure(folder: Path, options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds a step of each way, turn by turn, and its peak of memory in GB."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    workers: list[multiprocessing.process.BaseProcess] = []
    for way in WAYS:
        here, there = context.Pipe()
        worker = context.Process(target=work, args=(way, folder, options, there), daemon=True)
        worker.start()
        there.close()
        here.recv()  # it has loaded the model and, where they are kept, the embeddings
        pipes[way] = here
        workers.append(worker)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.turns):
        for way, pipe in pipes.items():
            pipe.send("go")
            seconds[way].append(pipe.recv())
    peaks: dict[str, float] = {}
    for way, pipe in pipes.items():
        pipe.send("stop")
        peaks[way] = pipe.recv()
    for worker in workers:
        worker.join()
    return seconds, peaks


def work(way: str, folder: Path, options: argparse.Namespace, pipe: Connection) -> None:
    """Train in one way; before each turn, wait to be called."""
    from palpate.training.finetune import Event, finetune
    from palpate.training.recipe import recipe_from

    steps = options.steps if way.startswith("decoder") else options.heavy_steps
    trained: dict[str, object] = {
        "decoder, kept": {"parts": ["decoder"]},
        "decoder, encoded": {"parts": ["decoder"]},
        "lora": {"parts": ["lora"], "where": ["decoder", "encoder"]},
        "full": {"parts": ["full"]},
    }
    recipe = recipe_from(
        {
            "data": {"path": str(folder)},
            "trained": trained[way],
            "batch": options.batch,
            "steps": steps,
            "epochs": options.turns + 1,  # the first turn warms up
            "validation": {"objects": 1, "prompts": [{"strategy": "standard"}], "overlays": 0, "every": 10**6},
        }
    )
    started = 0.0

    def listener(event: Event) -> None:
        nonlocal started
        if event.kind != "step" or event.done % steps:
            return
        if event.done == steps:
            pipe.send("ready")
        else:
            pipe.send((time.perf_counter() - started) / steps)
        if pipe.recv() == "stop":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            pipe.send(peak / (1e9 if sys.platform == "darwin" else 1e6))
            os._exit(0)
        started = time.perf_counter()

    finetune(
        recipe,
        folder / way.replace(", ", "-"),
        cache=folder / f"embeddings of {way}",
        cache_bytes=1 if way == "decoder, encoded" else None,  # a cache that holds nothing: every step encodes
        device=options.device,
        threads=options.threads,
        checkpoint_seconds=1e9,
        listener=listener,
    )


def report(seconds: dict[str, list[float]], peaks: dict[str, float], options: argparse.Namespace) -> str:
    """The table: medians over turns, and each way's pace as a share of the first one's."""
    pace = {way: 60 / statistics.median(times) for way, times in seconds.items()}
    # Ratios of the same turn are steadier than the ratio of two medians.
    ratio = {
        way: statistics.median(b / a for a, b in zip(times, seconds["decoder, encoded"], strict=True))
        for way, times in seconds.items()
    }
    lines = [
        f"batch {options.batch}, {options.threads} threads, {options.device}, {platform.machine()}; medians of "
        f"{options.turns} turns; palpate {version('palpate')}, torch {version('torch')}",
        "",
        "| trained | steps a minute | times the pace of encoding each step | peak memory, GB |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| {way} | {pace[way]:.1f} | {ratio[way]:.2f} | {peaks[way]:.2f} |" for way in WAYS]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
