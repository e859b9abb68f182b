"""Does a mask that changes with its prompt have an error? The rank correlation of agreement with Dice.

    python benchmarks/agreement.py DATA --split val -o docs/results/agreement-lite-medsam.md

DATA is a folder with a manifest.csv (dataset, modality, subject, split, image, label). Every label value is one object
(at most `--objects` of an image, drawn by the seed), in volumes on its middle slice. What a person draws is stood for
by its tight box with each side moved by U[-10 %, 10 %] of its length. Of the mask, these are known:

- its agreement with the masks of further boxes, moved from the drawn one (`palpate.inference.agreement`);
- the model's predicted IoU, and the product of the two;
- its Dice with the reference, which nobody knows in use.

Spearman's rank correlation of the others with the Dice is over all objects, and (`within`) the mean over data sets
of at least ten objects: between data sets, one that is hard as a whole is easily told from one that is easy. `worst
fifth` is the share of the fifth of the objects with the lowest Dice that is found in the fifth with the lowest value
(by chance: 0.20). With several draws and amounts there is a line for each; the draws of one amount begin alike.
The same command gives the same table on the same machine.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy.stats import rankdata

import palpate
from palpate import Box, Session, Target
from palpate.datasets import Case, open_dataset
from palpate.images.slices import slice_first
from palpate.inference.agreement import AMOUNT, DRAWS, agreement
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.metrics import dice
from palpate.prompts.perturbation import jittered

DRAWN = 0.1
"""How far the sides of the drawn box are from those of the tight one."""

LEAST = 10
"""Data sets of fewer objects have no correlation of their own; objects of fewer pixels are no objects."""


@dataclass(frozen=True)
class Row:
    """What is known of one mask: `values` by what they are called."""

    dataset: str
    dice: float
    values: dict[str, float]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="writes the table to this file as well")
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, help="this many images a data set, drawn by the seed")
    parser.add_argument("--objects", type=int, default=4, help="this many objects an image")
    parser.add_argument("--draws", type=int, nargs="+", default=[DRAWS])
    parser.add_argument("--amount", type=float, nargs="+", default=[AMOUNT])
    parser.add_argument("--cache", type=Path, help="a folder of embeddings")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    cache = None if options.cache is None else EmbeddingCache(options.cache)
    session = palpate.load(options.model, runtime="torch", cache=cache)
    cases = _cases(options)
    rows: list[Row] = []
    seconds: list[float] = []
    for number, case in enumerate(track(cases, description="segmenting")):
        rows += _measured(session, case, options, np.random.default_rng([options.seed, number]), seconds)
    report = _report(session, rows, seconds, options)
    print(report)
    if options.output is not None:
        options.output.write_text(report, encoding="utf-8")


def _cases(options: argparse.Namespace) -> list[Case]:
    by_dataset: dict[str, list[Case]] = defaultdict(list)
    for case in open_dataset(options.data, split=options.split):
        by_dataset[case.dataset].append(case)
    chosen: list[Case] = []
    for number, cases in enumerate(by_dataset.values()):
        order = np.random.default_rng([options.seed, 1, number]).permutation(len(cases)).tolist()
        chosen += [cases[i] for i in sorted(order[: options.limit])]
    return chosen


def _measured(
    session: Session, case: Case, options: argparse.Namespace, rng: np.random.Generator, seconds: list[float]
) -> list[Row]:
    read = case.read()
    session.set_image(read.image)
    labels = read.labels if session.axis is None else slice_first(read.labels, session.axis)
    values = rng.permutation([int(value) for value in np.unique(read.labels) if value > 0])[: options.objects]
    rows: list[Row] = []
    for value in values.tolist():
        z, body = _slice_of(labels == value)
        if body.sum() < LEAST:
            continue
        box = jittered(Box.around(body, z=z), fraction=DRAWN, shape=body.shape, rng=rng)
        found = session.predict(box)
        mask = found.mask if session.axis is None else slice_first(found.mask, session.axis)[z or 0]
        known = {"predicted IoU": found.predicted_iou}
        for amount in options.amount:
            most = max(options.draws)
            started = time.perf_counter()
            agreed = agreement(session, Target((box,)), draws=most, amount=amount, rng=np.random.default_rng(0))
            seconds.append((time.perf_counter() - started) / (most + 1))
            assert np.array_equal(agreed.mask, mask)
            for draws in options.draws:
                mean = float(np.mean(agreed.dice[:draws]))
                known[f"agreement, {draws} draws of {amount:g}"] = mean
                known[f"agreement, {draws} draws of {amount:g}, times predicted IoU"] = mean * found.predicted_iou
        rows.append(Row(case.dataset, dice(mask, body), known))
    return rows


def _slice_of(mask: np.ndarray) -> tuple[int | None, np.ndarray]:
    """A picture's mask, or the slice that shows the object next to its middle."""
    if mask.ndim == 2:
        return None, mask
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    middle = int(slices[np.argmin(np.abs(slices - (int(slices[0]) + int(slices[-1])) // 2))])
    return middle, mask[middle]


def _report(session: Session, rows: list[Row], seconds: list[float], options: argparse.Namespace) -> str:
    datasets = sorted({row.dataset for row in rows})
    scores = np.array([row.dice for row in rows])
    limit = f" --limit {options.limit}" if options.limit else ""
    draws, amounts = (" ".join(map(str, each)) for each in (options.draws, options.amount))
    command = (
        f"python benchmarks/agreement.py DATA --model {options.model} --split {options.split}{limit} "
        f"--objects {options.objects} --draws {draws} --amount {amounts} --seed {options.seed}"
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("palpate", "torch", "numpy"))
    lines = [
        f"# Agreement and error: {session.runtime.model} on the {options.split} split",
        "",
        f"Command: `{command}`",
        f"Weights: content SHA-256 `{session.runtime.weights_hash}`",
        f"Versions: Python {platform.python_version()}, {versions}",
        "",
        f"{len(rows)} objects of {len(datasets)} data sets, mean Dice {scores.mean():.3f}, "
        f"median {np.median(scores):.3f}, lowest tenth below {np.quantile(scores, 0.1):.3f}; "
        f"{1000 * float(np.median(seconds)):.0f} ms a draw.",
        "",
        "| what is known | Spearman | within | worst fifth |",
        "|---|---|---|---|",
    ]
    for name in rows[0].values:
        known = np.array([row.values[name] for row in rows])
        parts = [np.array([row.dataset == dataset for row in rows]) for dataset in datasets]
        own = [_spearman(known[part], scores[part]) for part in parts if part.sum() >= LEAST]
        within = float(np.nanmean(own)) if own else math.nan
        cells = (_spearman(known, scores), within, _caught(known, scores))
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _spearman(known: np.ndarray, scores: np.ndarray) -> float:
    if np.ptp(known) == 0 or np.ptp(scores) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(known), rankdata(scores))[0, 1])


def _caught(known: np.ndarray, scores: np.ndarray) -> float:
    """How much of the worst fifth is in the fifth that looks worst."""
    count = max(1, len(scores) // 5)
    worst, suspected = (set(np.argsort(values, kind="stable")[:count].tolist()) for values in (scores, known))
    return len(worst & suspected) / count


if __name__ == "__main__":
    main()
