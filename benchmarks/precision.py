"""What does lower precision do to masks of real images?

    python benchmarks/precision.py DATA [--split val] [--model lite-medsam]

Of each picture, and of the fullest slice of each volume, up to two objects (the largest connected parts of labels) are
segmented from their tight boxes, in float32 by PyTorch and by each of the `--ways`. Agreement is the Dice of the two
masks; Dice with the reference says whether it matters. On a small picture each pixel counts for more.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from conditions import conditions
from rich.progress import track
from scipy import ndimage

import palpate
from palpate import Box
from palpate.datasets import Case, open_dataset
from palpate.metrics import dice

WAYS = {
    "torch, bfloat16": ("torch", "bfloat16"),
    "onnxruntime, float32": ("onnxruntime", "float32"),
    "openvino, float32": ("openvino", "float32"),
    "openvino, float16": ("openvino", "float16"),
    "openvino, bfloat16": ("openvino", "bfloat16"),
}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--cases", type=int, help="so many, evenly spread over the split")
    options = parser.parse_args()
    settings = {"torch, float32": ("torch", "float32"), **{way: WAYS[way] for way in options.ways}}
    sessions = {
        way: palpate.load(options.model, device="cpu", runtime=runtime, precision=precision)
        for way, (runtime, precision) in settings.items()
    }
    exact = "torch, float32"
    cases = list(open_dataset(options.data, split=options.split))
    cases = spread(cases, options.cases) if options.cases else cases
    agreement: dict[str, list[float]] = {way: [] for way in options.ways}
    truth: dict[str, list[float]] = {way: [] for way in settings}
    for case in track(cases, description="segmenting"):
        given = case.read()
        image, labels, z = given.image, given.labels, None
        if image.is_volume:
            z = int(np.argmax((labels > 0).sum(axis=(1, 2))))
            labels = labels[z]
        parts = objects(labels)
        masks: dict[str, list[np.ndarray]] = {}
        for way, session in sessions.items():
            session.set_image(image, axis=None if z is None else "z")
            found = [session.predict(replace(Box.around(mask), z=z)).mask for mask in parts]
            masks[way] = [mask if z is None else mask[z] for mask in found]
        for way in settings:
            truth[way] += [dice(mask, known) for mask, known in zip(masks[way], parts, strict=True)]
            if way in agreement:
                agreement[way] += [dice(mask, other) for mask, other in zip(masks[way], masks[exact], strict=True)]
    weights = sessions[exact].runtime.weights_hash
    said = conditions("torch", "openvino", "onnxruntime", model=options.model, weights=weights)
    print(f"{said}; {len(truth[exact])} objects of {len(cases)} cases of {options.split}\n")
    print("| way | mean agreement | least | below 0.95 | mean Dice with the reference |\n|---|---:|---:|---:|---:|")
    print(f"| {exact} | 1 | 1 | 0 | {100 * np.mean(truth[exact]):.2f} |")
    for way, own in agreement.items():
        few = sum(one < 0.95 for one in own)
        print(f"| {way} | {np.mean(own):.4f} | {min(own):.4f} | {few} | {100 * np.mean(truth[way]):.2f} |")


def spread(cases: list[Case], count: int) -> list[Case]:
    """So many of them, evenly spread."""
    return [cases[i] for i in np.linspace(0, len(cases) - 1, min(count, len(cases))).astype(int)]


def objects(labels: np.ndarray) -> list[np.ndarray]:
    """The largest connected parts of the two largest labels."""
    values = sorted((value for value in np.unique(labels) if value > 0), key=lambda v: -(labels == v).sum())
    found: list[np.ndarray] = []
    for value in values[:2]:
        parts, _ = ndimage.label(labels == value)
        largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        if largest.sum() >= 40:
            found.append(largest)
    return found


if __name__ == "__main__":
    main()
