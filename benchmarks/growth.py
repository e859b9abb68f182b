"""How does the time grow with slices, objects, boxes and the size of the image?

    python benchmarks/growth.py -o docs/results/speed-growth [--runtime openvino]

Each question changes one number and keeps the others: slices of a volume with one object, objects on ten slices, boxes
on one picture that is encoded already, and the side of a square picture from pixels to mask. Numbers are taken in turn,
round by round; what is written are medians, as OUTPUT.csv and OUTPUT.png. Images are made up: how long a network
computes does not depend on what it sees.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conditions import conditions

import palpate
from palpate import Box, Session, Target

SLICES, OBJECTS, BOXES, SIDES = (1, 2, 4, 8, 16), (1, 2, 4, 8), (1, 2, 4, 8, 16, 32), (64, 128, 256, 512, 1024, 2048)


def main() -> None:
    """Measure, and write the table and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="writes OUTPUT.csv and OUTPUT.png")
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    session = palpate.load(options.model, device="cpu", runtime=options.runtime)
    said = conditions(options.runtime, model=options.model, weights=session.runtime.weights_hash)
    print(f"{said}; medians of {options.rounds} rounds")
    rng = np.random.default_rng(0)
    questions: dict[str, tuple[tuple[int, ...], Callable[[int], float]]] = {
        "slices": (SLICES, lambda count: of_volume(session, rng, slices=count, objects=1)),
        "objects on ten slices": (OBJECTS, lambda count: of_volume(session, rng, slices=10, objects=count)),
        "boxes on an encoded picture": (BOXES, lambda count: of_boxes(session, rng, count)),
        "side of a picture, pixels": (SIDES, lambda side: of_picture(session, rng, side)),
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    for number in range(options.rounds + 1):
        for question, (values, measure) in questions.items():
            for value in values:
                taken = measure(value)
                if number:  # the first round warms up
                    seconds.setdefault((question, value), []).append(taken)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "number", "seconds"])
        for (question, value), own in seconds.items():
            table.writerow([question, value, f"{statistics.median(own):.4f}"])
    _plot(seconds, {question: values for question, (values, _) in questions.items()}, options)


def of_volume(session: Session, rng: np.random.Generator, *, slices: int, objects: int) -> float:
    """Seconds for objects that go through all slices of a new volume of 256 x 256."""
    volume = rng.integers(0, 256, (slices, 256, 256), dtype=np.uint8)
    boxes = (Box(10 + 5 * i, 20, 120 + 5 * i, 180, z=slices // 2) for i in range(objects))
    targets = [Target((box,), label=i, z_range=(0, slices - 1)) for i, box in enumerate(boxes, start=1)]
    start = time.perf_counter()
    session.set_image(palpate.Image(volume), axis="z")
    session.predict_all(targets)
    return time.perf_counter() - start


def of_boxes(session: Session, rng: np.random.Generator, count: int) -> float:
    """Seconds for boxes on a picture that is encoded."""
    session.set_image(palpate.Image(rng.integers(0, 256, (256, 256), dtype=np.uint8)))
    targets = [Target((Box(10 + 3 * i, 20, 90 + 3 * i, 180),), label=i + 1) for i in range(count)]
    start = time.perf_counter()
    session.predict_all(targets)
    return time.perf_counter() - start


def of_picture(session: Session, rng: np.random.Generator, side: int) -> float:
    """Seconds from a new picture to the mask of one box."""
    image = palpate.Image(rng.integers(0, 256, (side, side), dtype=np.uint8))
    start = time.perf_counter()
    session.set_image(image)
    session.predict(Box(side // 8, side // 8, side // 2, side // 2))
    return time.perf_counter() - start


def _plot(
    seconds: dict[tuple[str, int], list[float]], questions: dict[str, tuple[int, ...]], options: argparse.Namespace
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(questions), figsize=(15, 3.4), layout="constrained")
    for axis, (question, values) in zip(axes, questions.items(), strict=True):
        medians = [statistics.median(seconds[question, value]) for value in values]
        axis.plot(values, medians, marker="o")
        if "side" in question:
            axis.set_xscale("log", base=2)
            axis.set_xticks(values, [str(value) for value in values])
        axis.set_xlabel(question)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    figure.suptitle(f"{options.model} on {options.runtime}")
    figure.savefig(options.output.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
