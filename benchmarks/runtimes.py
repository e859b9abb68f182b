"""How much quicker do the runtimes encode and decode than plain PyTorch? All of them in one run.

    python benchmarks/runtimes.py [--model lite-medsam] [--runtimes torch openvino ...]

Each runtime is a process of its own, started as anybody would start it. All are made ready, then take turns, so that
what else the machine does falls on all of them alike; a ratio is the median of the ratios of single turns. A turn
encodes a canvas, decodes one box on it, sixteen boxes one by one, and sixteen in one call. The model's weights must be
here (`palpate models get`). Agreement is that of the masks of the sixteen boxes with PyTorch's, on a made-up picture.

`torch` is the reference: the network in eager mode and nothing else. `torch, quick memory` is what the command line
gives with `--runtime torch`: freed memory is kept (`palpate.inference.processes.be_quick`). `torch.compile`, with or
without that, takes minutes to start.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
from conditions import conditions

CANDIDATES = {
    "torch": ("torch", "float32"),
    "torch, quick memory": ("torch", "float32"),
    "torch, bfloat16": ("torch", "bfloat16"),
    "torch.compile": ("torch", "float32"),
    "torch.compile, quick memory": ("torch", "float32"),
    "onnxruntime": ("onnxruntime", "float32"),
    "openvino": ("openvino", "float32"),
    "openvino, float16": ("openvino", "float16"),
    "openvino, bfloat16": ("openvino", "bfloat16"),
}
BOXES = 16


class Turn(NamedTuple):
    """Seconds of encoding, of one box, and of sixteen boxes, one by one and in one call."""

    encode: float
    one: float
    one_by_one: float
    at_once: float


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lite-medsam")
    usual = [name for name in CANDIDATES if not name.startswith("torch.compile")]
    parser.add_argument(
        "--runtimes", nargs="+", choices=[*CANDIDATES], default=usual, help="the first is the reference"
    )
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    weights = ""
    for name in options.runtimes:
        here, there = context.Pipe()
        settings = (options.model, name, options.threads, there)
        context.Process(target=work, args=settings, daemon=True).start()
        there.close()
        weights = here.recv()  # it is ready, and has warmed up
        pipes[name] = here
    turns: dict[str, list[Turn]] = {name: [] for name in pipes}
    for _ in range(options.turns):
        for name, pipe in pipes.items():
            pipe.send("go")
            turns[name].append(Turn(*pipe.recv()))
    sizes: dict[str, float] = {}
    masks: dict[str, np.ndarray] = {}
    for name, pipe in pipes.items():
        pipe.send("stop")
        sizes[name], masks[name] = pipe.recv()
    said = conditions("torch", "openvino", "onnxruntime", model=options.model, weights=weights, threads=options.threads)
    print(f"{said}; medians of {options.turns} turns\n")
    print(report(turns, sizes, masks))


def work(model: str, name: str, threads: int, pipe: Connection) -> None:
    """Load a model on a runtime, and take a turn whenever told to."""
    runtime, precision = CANDIDATES[name]
    import palpate

    if name.endswith("quick memory"):
        from palpate.inference.processes import be_quick

        be_quick()
    ready = palpate.load(model, device="cpu", runtime=runtime, precision=precision, threads=threads).runtime
    if runtime == "torch":
        import torch

        torch.set_num_threads(threads)
        if name.startswith("torch.compile"):
            network = ready.network  # pyright: ignore[reportAttributeAccessIssue]
            network.encode = torch.compile(network.encode)
            network.prompt_decoder.forward = torch.compile(network.prompt_decoder.forward)
    size = ready.frame.size
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    blobs = [np.hypot(columns - x, rows - y) < r for x, y, r in rng.uniform(0.1, 0.3, (BOXES, 3)) * (3, 3, 0.4)]
    grey = (np.sum(blobs, axis=0) / 4 + rng.normal(0, 0.05, (size, size))).clip(0, 1)
    canvas = np.repeat(grey[None, None], 3, axis=1).astype(np.float32)
    boxes = np.array(
        [
            [*(places.min() for places in np.nonzero(blob)[::-1]), *(p.max() for p in np.nonzero(blob)[::-1])]
            for blob in blobs
        ],
        dtype=np.float32,
    )
    masks = np.zeros(0)

    def timed(job: Callable[[], object]) -> float:
        start = time.perf_counter()
        job()
        return time.perf_counter() - start

    def batch(some: slice) -> object:
        from palpate.models.promptable import PromptBatch

        asked = PromptBatch(np.zeros(len(boxes[some]), dtype=np.int64), boxes=boxes[some])
        return ready.decode(embedding, asked).logits

    def turn() -> Turn:
        nonlocal embedding, masks
        start = time.perf_counter()
        embedding = ready.encode(canvas)
        encode = time.perf_counter() - start
        one = timed(lambda: batch(slice(0, 1)))
        one_by_one = timed(lambda: [batch(slice(i, i + 1)) for i in range(BOXES)])
        start = time.perf_counter()
        masks = np.asarray(batch(slice(None))) > 0
        return Turn(encode, one, one_by_one, time.perf_counter() - start)

    embedding = ready.encode(canvas)
    turn()
    pipe.send(ready.weights_hash)
    while pipe.recv() == "go":
        pipe.send(turn())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    pipe.send((peak, masks))


def report(turns: dict[str, list[Turn]], sizes: dict[str, float], masks: dict[str, np.ndarray]) -> str:
    """The table: medians over turns; ratios turn by turn."""
    names = [*turns]
    lines = [
        "| runtime | encode, ms | times quicker | one box, ms | times quicker | 16 boxes one by one, ms a box "
        "| 16 in one call, ms a box | one by one / one call | mean Dice with the first (least) | peak memory, GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = turns[names[0]]
    for name, own in turns.items():
        encode, one, one_by_one, at_once = (1e3 * statistics.median(column) for column in zip(*own, strict=True))
        quicker = [statistics.median(a[i] / b[i] for a, b in zip(first, own, strict=True)) for i in range(2)]
        shared = statistics.median(turn.one_by_one / turn.at_once for turn in own)
        both = (masks[name] & masks[names[0]]).sum(axis=(1, 2, 3))
        all_of_both = masks[name].sum(axis=(1, 2, 3)) + masks[names[0]].sum(axis=(1, 2, 3))
        dice = 2 * both / np.maximum(all_of_both, 1)
        lines.append(
            f"| {name} | {encode:.0f} | {quicker[0]:.2f} | {one:.0f} | {quicker[1]:.2f} | {one_by_one / BOXES:.0f} "
            f"| {at_once / BOXES:.0f} | {shared:.2f} | {dice.mean():.4f} ({dice.min():.4f}) | {sizes[name]:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
