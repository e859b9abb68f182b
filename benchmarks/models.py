"""How long does each model encode and decode, and what does it take in memory? All of them in one run.

    python benchmarks/models.py [--models lite-medsam swin-lite-medsam ...]

Each model is a process of its own, so that its peak of memory is its own. All are started, then take turns, so that
what else the machine does falls on all of them alike; a ratio is the median of the ratios of single turns. A turn
encodes one canvas, decodes one box on it, and decodes ten. How long a network computes does not depend on its weights,
so they are random, and none need be on this machine. Without `--models` it is every architecture of the catalogue once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from palpate.models.catalogue import CARDS, card

SAME = ("lite-medsam-robust", "sam2-tiny", "sam2-small", "sam2-base-plus", "sam2-large")
"""Models that compute just what another one does, with other weights."""


class Turn(NamedTuple):
    """Seconds of encoding a canvas, of decoding one box, and of decoding ten."""

    encode: float
    one_box: float
    ten_boxes: float


class Size(NamedTuple):
    """Millions of parameters, what the embedding of an image takes in MiB, and the process's peak in GB."""

    parameters: float
    embedding: float
    peak: float


def main() -> None:
    """Measure, and print the table."""
    usual = [each.name for each in CARDS if each.name not in SAME]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=usual, help="the first is what the others are compared with")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    turns, sizes = measure(options)
    print(report(turns, sizes, options))


def measure(options: argparse.Namespace) -> tuple[dict[str, list[Turn]], dict[str, Size]]:
    """Every model's turns, and its size."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    workers: list[multiprocessing.process.BaseProcess] = []
    for name in dict.fromkeys(options.models):
        here, there = context.Pipe()
        worker = context.Process(target=work, args=(name, options.threads, options.device, there), daemon=True)
        worker.start()
        there.close()
        here.recv()  # it is built, and has warmed up
        pipes[name] = here
        workers.append(worker)
    turns: dict[str, list[Turn]] = {name: [] for name in pipes}
    for _ in range(options.turns):
        for name, pipe in pipes.items():
            pipe.send("go")
            turns[name].append(Turn(*pipe.recv()))
    sizes: dict[str, Size] = {}
    for name, pipe in pipes.items():
        pipe.send("stop")
        sizes[name] = Size(*pipe.recv())
    for worker in workers:
        worker.join()
    return turns, sizes


def work(name: str, threads: int, device: str, pipe: Connection) -> None:
    """Build a model, and take a turn whenever told to."""
    import torch

    from palpate.models.promptable import PromptBatch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = card(name).build()
    network = model.eval().to(device)  # pyright: ignore[reportAttributeAccessIssue]
    size = model.frame.size
    rng = np.random.default_rng(0)
    canvas = torch.from_numpy(rng.random((1, 3, size, size), dtype=np.float32)).to(device)
    corners = np.sort(rng.uniform(0, size, (10, 2, 2)), axis=1).reshape(10, 4).astype(np.float32)

    def finished() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def turn() -> tuple[Turn, float]:
        with torch.inference_mode():
            times = [finished()]
            embedding = model.encode(canvas)
            times.append(finished())
            for count in (1, 10):
                model.decode(embedding, PromptBatch(np.zeros(count, dtype=np.int64), boxes=corners[:count]))
                times.append(finished())
        held = sum(part.nbytes for part in (embedding.features, *embedding.levels)) / 2**20
        return Turn(*np.diff(times).tolist()), held

    _, held = turn()
    pipe.send("ready")
    while pipe.recv() == "go":
        pipe.send(turn()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    pipe.send(Size(sum(parameter.numel() for parameter in network.parameters()) / 1e6, held, peak))


def report(turns: dict[str, list[Turn]], sizes: dict[str, Size], options: argparse.Namespace) -> str:
    """The table: medians over turns; ratios to the first model, turn by turn."""
    first = turns[next(iter(turns))]
    lines = [
        f"{options.threads} threads, {options.device}, {platform.machine()}; medians of {options.turns} turns; palpate "
        f"{version('palpate')}, torch {version('torch')}",
        "",
        "| model | parameters, M | encode, s | times the first | one box, s | times the first | ten boxes, s "
        "| embedding, MiB | peak memory, GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, own in turns.items():
        medians = [statistics.median(column) for column in zip(*own, strict=True)]
        encode, one = (statistics.median(a[i] / b[i] for a, b in zip(own, first, strict=True)) for i in range(2))
        size = sizes[name]
        lines.append(
            f"| `{name}` | {size.parameters:.1f} | {medians[0]:.2f} | {encode:.2f} | {medians[1]:.3f} | {one:.2f} "
            f"| {medians[2]:.2f} | {size.embedding:.2f} | {size.peak:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
