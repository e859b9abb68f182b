"""How good are masks from tight boxes? Dice per dataset on the test split, pictures and volumes.

    python benchmarks/segment.py DATA -o docs/results/segment-lite-medsam

DATA is a folder with a manifest.csv (dataset, modality, subject, split, image, label). Every label value is one object.
Its prompt is the tight box of its reference mask: the kindest prompt there is, so these numbers are an upper
bound, not what a person's boxes give. Volumes are segmented three ways:

- slice-wise: a tight box on every slice of the object;
- propagated: one tight box, on the slice in the middle of the object, carried to both ends;
- 3D box: the tight box of the whole object in x, y and z, as in the CVPR 2024 challenge, started on the middle slice.

Dice is counted per object: over the picture, or over the volume. The same command gives the same table.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.progress import track

import palpate
from palpate import Box, Session, Target
from palpate.images.slices import slice_first, slicing_axis
from palpate.metrics import dice

PROTOCOLS = ("picture", "slice-wise", "propagated", "3D box")
COLUMNS = ("dataset", "subject", "image", "label", "protocol", "pixels", "predicted_iou", "dice")


def main() -> None:
    """Measure, and write the rows and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="writes OUTPUT.csv and OUTPUT.md")
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--split", default="test")
    parser.add_argument("--only", nargs="*", help="these datasets only")
    parser.add_argument("--limit", type=int, help="this many images a dataset, to try it out")
    parser.add_argument("--overlays", type=Path, help="a folder for previews of the best, median and worst image")
    options = parser.parse_args()

    session = palpate.load(options.model, runtime="torch")
    cases = list(_cases(options.data, options.split, options.only, options.limit))
    rows: list[dict[str, object]] = []
    for case in track(cases, description="segmenting"):
        rows += _measure(session, options.data, case)
    _write_csv(options.output.with_suffix(".csv"), rows)
    options.output.with_suffix(".md").write_text(_report(session, rows, options))
    if options.overlays is not None:
        _draw_overlays(session, options.data, cases, rows, options.overlays)


def _cases(data: Path, split: str, only: list[str] | None, limit: int | None) -> Iterator[dict[str, str]]:
    counts: dict[str, int] = defaultdict(int)
    with (data / "manifest.csv").open(newline="") as file:
        for case in csv.DictReader(file):
            if case["split"] != split or (only and case["dataset"] not in only):
                continue
            counts[case["dataset"]] += 1
            if limit is None or counts[case["dataset"]] <= limit:
                yield case


def _measure(session: Session, data: Path, case: dict[str, str]) -> list[dict[str, object]]:
    labels = _open(session, data, case)
    values = [int(value) for value in np.unique(labels) if value > 0]
    if labels.ndim == 2:
        targets = [Target((Box.around(labels == value),), label=value) for value in values]
        return _rows(session, case, labels, "picture", targets)
    return [
        row
        for protocol in ("slice-wise", "propagated", "3D box")
        for row in _rows(
            session,
            case,
            labels,
            protocol,
            [t for value in values for t in volume_targets(labels == value, value, protocol)],
        )
    ]


def _open(session: Session, data: Path, case: dict[str, str]) -> np.ndarray:
    """Set the case's image and return its labels, slices first."""
    image = palpate.images.read(data / case["image"])
    modality = case["modality"] if image.is_volume and case["modality"] in ("CT", "MR", "US", "PET") else None
    session.set_image(image, modality=modality)
    labels = palpate.images.read(data / case["label"]).array
    return slice_first(labels, slicing_axis(image)) if image.is_volume else labels


def volume_targets(mask: np.ndarray, label: int, protocol: str) -> list[Target]:
    """What a protocol asks for one object of a volume."""
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if protocol == "slice-wise":
        return [Target((Box.around(mask[z], z=int(z)),), label=label) for z in slices]
    first, last = int(slices[0]), int(slices[-1])
    # An object may be missing on the exact middle slice; a person would draw on the nearest one that shows it.
    middle = int(slices[np.argmin(np.abs(slices - (first + last) // 2))])
    drawn = mask[middle] if protocol == "propagated" else mask.any(axis=0)
    return [Target((Box.around(drawn, z=middle),), label=label, z_range=(first, last))]


def _rows(
    session: Session, case: dict[str, str], labels: np.ndarray, protocol: str, targets: list[Target]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    parts: dict[int, list[Target]] = defaultdict(list)
    for target in targets:
        parts[target.label].append(target)
    # Objects are scored one by one: in one label map, overlapping masks would hide each other.
    for value, asked in parts.items():
        result = session.predict_all(asked)
        found = result.mask if labels.ndim == 2 else slice_first(result.mask, result.provenance.axis or 0)
        reference = labels == value
        rows.append(
            {
                "dataset": case["dataset"],
                "subject": case["subject"],
                "image": case["image"],
                "label": value,
                "protocol": protocol,
                "pixels": int(reference.sum()),
                "predicted_iou": round(result.predicted_iou, 4),
                "dice": round(dice(found, reference), 5),
            }
        )
    return rows


def _write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _report(session: Session, rows: list[dict[str, object]], options: argparse.Namespace) -> str:
    made = session.runtime
    only = f" --only {' '.join(options.only)}" if options.only else ""
    limit = f" --limit {options.limit}" if options.limit else ""
    command = f"python benchmarks/segment.py DATA -o {options.output} --model {options.model} --split {options.split}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("palpate", "torch", "transformers", "numpy"))
    lines = [
        f"# Tight boxes: {made.model} on the {options.split} split",
        "",
        f"Command: `{command}{only}{limit}` (no randomness)",
        f"Weights: content SHA-256 `{made.weights_hash}`",
        f"Versions: Python {platform.python_version()}, {versions}",
        "",
        "Dice in percent: the mean over images of the mean over an image's objects; in brackets the median object.",
        "The box is the tight box of the reference mask, so this is the kindest prompt there is.",
        "",
        "| dataset | images | objects | " + " | ".join(PROTOCOLS) + " |",
        "|---|---|---|" + "---|" * len(PROTOCOLS),
    ]
    for dataset in sorted({str(row["dataset"]) for row in rows}):
        own = [row for row in rows if row["dataset"] == dataset]
        images = {row["image"] for row in own}
        objects = {(row["image"], row["label"]) for row in own}
        cells = [_cell([row for row in own if row["protocol"] == protocol]) for protocol in PROTOCOLS]
        lines.append(f"| {dataset} | {len(images)} | {len(objects)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict[str, object]]) -> str:
    if not rows:
        return ""
    by_image: dict[object, list[float]] = defaultdict(list)
    for row in rows:
        by_image[row["image"]].append(float(str(row["dice"])))
    mean = np.mean([np.mean(values) for values in by_image.values()])
    median = np.median([value for values in by_image.values() for value in values])
    return f"{100 * mean:.1f} ({100 * median:.1f})"


def _draw_overlays(
    session: Session, data: Path, cases: list[dict[str, str]], rows: list[dict[str, object]], folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for dataset in sorted({case["dataset"] for case in cases}):
        scores: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            if row["dataset"] == dataset and row["protocol"] in ("picture", "propagated"):
                scores[str(row["image"])].append(float(str(row["dice"])))
        ranked = sorted(scores, key=lambda image: float(np.mean(scores[image])))
        chosen = {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}
        for word, name in chosen.items():
            case = next(case for case in cases if case["image"] == name)
            labels = _open(session, data, case)
            values = [int(value) for value in np.unique(labels) if value > 0][:12]
            if labels.ndim == 2:
                targets = [Target((Box.around(labels == value),), label=value) for value in values]
            else:
                targets = [t for value in values for t in volume_targets(labels == value, value, "propagated")]
            picture = session.preview(session.predict_all(targets))
            picture.save(folder / f"{dataset}-{word}-{100 * np.mean(scores[name]):.0f}.png")


if __name__ == "__main__":
    main()
