"""How well are clicks, scribbles and first guesses answered, next to the tight box?

    python benchmarks/other_prompts.py DATA -o docs/results/other-prompts-lite-medsam

Pictures of one split of DATA (a folder with a manifest.csv). Of each picture up to `--objects` objects are drawn; an
object is the largest connected part of a label. Prompts are simulated from the reference mask, except for the
scribbles, which people drew. `--raw` gives every prompt to the network as it is, without the search for a box.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy import ndimage

import palpate
from palpate import Box, MaskPrompt, Points, Scribble, Session
from palpate.metrics import dice
from palpate.models.promptable import PromptSupport
from palpate.prompts.file import read_mark, scribble_from

Scores = dict[str, list[float]]


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="writes OUTPUT.md")
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--split", default="test")
    parser.add_argument("--objects", type=int, default=2, help="objects a picture")
    parser.add_argument("--pictures", type=int, help="pictures a dataset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raw", action="store_true")
    options = parser.parse_args()

    session = palpate.load(options.model, runtime="torch")
    if options.raw:
        every = PromptSupport(trained=("box",), accepted=("points", "scribble", "mask"))
        session = Session(replace(session.runtime, prompts=every))
    rng = np.random.default_rng(options.seed)
    scores: Scores = defaultdict(list)
    for case in track(_cases(options.data, options.split, options.pictures), description="prompting"):
        image = palpate.images.read(options.data / case["image"])
        labels = palpate.images.read(options.data / case["label"]).array
        session.set_image(image)
        for mask in _objects(labels, options.objects, rng):
            _prompt(session, mask, scores, rng)
        for name in filter(None, case["scribbles"].split(";")):
            _scribble(session, read_mark(options.data / name), labels > 0, scores)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".md").write_text(_report(session, scores, options))


def _cases(data: Path, split: str, pictures: int | None) -> list[dict[str, str]]:
    by_dataset: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (data / "manifest.csv").open(newline="") as file:
        for case in csv.DictReader(file):
            # Vessels fill the whole picture; no click or box points at them.
            if case["split"] == split and not case["image"].endswith(".nii.gz") and case["dataset"] != "drive_vessels":
                by_dataset[case["dataset"]].append(case)
    return [case for cases in by_dataset.values() for case in cases[:pictures]]


def _objects(labels: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    values = [value for value in np.unique(labels) if value > 0]
    drawn = rng.choice(values, size=min(count, len(values)), replace=False)
    largest: list[np.ndarray] = []
    for value in drawn:
        parts, _ = ndimage.label(labels == value)
        largest.append(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
    return [mask for mask in largest if mask.sum() >= 40]


def _prompt(session: Session, mask: np.ndarray, scores: Scores, rng: np.random.Generator) -> None:
    def measure(name: str, *prompts: palpate.prompts.Prompt) -> np.ndarray:
        found = session.predict(*prompts).mask
        scores[name].append(dice(found, mask))
        return found

    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    box, radius = Box.around(mask), max(1, int(depth.max() / 4))
    measure("box, tight", box)
    measure("click at the deepest place", Points([_deepest(mask)]))
    inside = np.argwhere(mask)
    measure("click anywhere on the object", Points([rng.choice(inside)[::-1].tolist()]))
    measure("three clicks on the object", Points(rng.choice(inside, 3)[:, ::-1].tolist()))
    measure("guess, a quarter of the radius too small", MaskPrompt(ndimage.binary_erosion(mask, iterations=radius)))
    measure("guess, a quarter of the radius too large", MaskPrompt(ndimage.binary_dilation(mask, iterations=radius)))
    for name, share in (("tight", 0.0), ("8 % too tight", -0.08), ("15 % too loose", 0.15)):
        given = _resized(box, share, (mask.shape[0], mask.shape[1]))
        if name != "tight":
            found = measure(f"box, {name}", given)
        else:
            found = session.predict(given).mask
        wrong = found != mask
        if wrong.any():
            x, y = _deepest(wrong)
            measure(f"box, {name}, and a click on its largest mistake", given, Points([(x, y)], [int(mask[y, x])]))
        else:
            scores[f"box, {name}, and a click on its largest mistake"].append(1.0)


def _scribble(session: Session, mark: np.ndarray, mask: np.ndarray, scores: Scores) -> None:
    if not ((mark != 0) & (mark != 2)).any():
        return
    scribble: Scribble = scribble_from(mark)
    scores["people's scribble"].append(dice(session.predict(scribble).mask, mask))
    scores["tight box, on the pictures with scribbles"].append(dice(session.predict(Box.around(mask)).mask, mask))


def _deepest(mask: np.ndarray) -> tuple[int, int]:
    """The place (x, y) farthest from the mask's edge."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return int(x), int(y)


def _resized(box: Box, share: float, shape: tuple[int, int]) -> Box:
    x, y = (box.x_max - box.x_min) * share, (box.y_max - box.y_min) * share
    return Box(box.x_min - x, box.y_min - y, box.x_max + x, box.y_max + y).inside(shape)


def _report(session: Session, scores: Scores, options: argparse.Namespace) -> str:
    flags = f"--split {options.split} --objects {options.objects} --seed {options.seed}"
    flags += f" --pictures {options.pictures}" if options.pictures else ""
    flags += " --raw" if options.raw else ""
    versions = ", ".join(f"{name} {version(name)}" for name in ("palpate", "torch", "transformers", "numpy", "scipy"))
    lines = [
        f"Command: `python benchmarks/other_prompts.py DATA -o {options.output} --model {options.model} {flags}`",
        f"Weights: content SHA-256 `{session.runtime.weights_hash}`",
        f"Versions: Python {platform.python_version()}, {versions}",
        "",
        "| prompt | objects | mean Dice | median Dice |",
        "|---|---|---|---|",
    ]
    for name, values in scores.items():
        lines.append(f"| {name} | {len(values)} | {100 * np.mean(values):.1f} | {100 * np.median(values):.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
