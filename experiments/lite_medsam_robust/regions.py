"""More objects to learn from: regions of training images that nobody labelled, and that two ways of looking agree on.

    python experiments/lite_medsam_robust/regions.py DATA OUT

A region is first a blob brighter or darker than a grey value, whatever it shows. The released model is then asked for
what lies in its tight box. Where both agree (Dice at least `AGREEMENT`), the model's mask becomes a label. That is no
anatomy, but it has an edge that the image shows, and a box that is certainly tight.

OUT gets 8-bit pictures, labels and a manifest.csv: the rows of DATA, and beside each data set X one called regions_X.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image as Picture
from scipy import ndimage

import palpate
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.models import catalogue, weights
from palpate.prompts.types import Box
from palpate.training.data import cases_for
from palpate.training.recipe import DataRecipe
from palpate.training.scenes import sights_of

AGREEMENT = 0.85
AREAS = (0.002, 0.2)
"""The smallest and the largest region, as shares of the image."""
LEVELS = np.linspace(0.1, 0.9, 9)
"""Where blobs are looked for: at these quantiles of the grey values, and at these shares of their range."""
CANDIDATES = 16
"""How many blobs of an image the model is asked about: those with the strongest edge."""
SMALLEST_IMAGE = 96
"""Images with a shorter side show too little to find anything in."""


def blobs(pixels: np.ndarray, taken: np.ndarray) -> list[np.ndarray]:
    """Blobs of an image, the ones with the strongest edges first, each unlike the others and outside of `taken`."""
    whole = pixels.astype(float).mean(axis=-1) if pixels.ndim == 3 else pixels.astype(float)
    step = max(1, round(max(whole.shape) / 256))  # the model sees no more
    grey, taken = _coarse(whole, step), _coarse(taken.astype(float), step) >= 0.5
    smooth, slope = ndimage.gaussian_filter(grey, 1.3), ndimage.gaussian_gradient_magnitude(grey, 1.3)
    found: list[tuple[float, np.ndarray]] = []
    evenly = smooth.min() + LEVELS * np.ptp(smooth)
    for level in np.unique([*np.quantile(smooth, LEVELS), *evenly]):
        for side in (smooth > level, smooth < level):
            labels, count = cast("tuple[np.ndarray, int]", ndimage.label(ndimage.binary_opening(side, iterations=2)))
            sizes = ndimage.sum_labels(side, labels, np.arange(1, count + 1))
            for number in 1 + np.flatnonzero((sizes >= AREAS[0] * grey.size) & (sizes <= AREAS[1] * grey.size)):
                blob = _rounded(labels == number)
                if not blob.any() or _touches_border(blob) or (blob & taken).sum() > 0.2 * blob.sum():
                    continue
                box = ndimage.find_objects(blob.astype(np.uint8))[0]
                if blob.sum() < 0.45 * np.prod([part.stop - part.start for part in box]):
                    continue
                edge = np.logical_and(ndimage.binary_dilation(blob), np.logical_not(ndimage.binary_erosion(blob)))
                found.append((float(slope[edge].mean() / (slope.mean() + 1e-6)), blob))
    kept: list[np.ndarray] = []
    for _, blob in sorted(found, key=lambda each: -each[0]):
        if all((blob & other).sum() < 0.1 * min(blob.sum(), other.sum()) for other in kept):
            kept.append(blob)
        if len(kept) == CANDIDATES:
            break
    rows, columns = (np.arange(extent) // step for extent in whole.shape)
    return [blob[np.ix_(rows, columns)] for blob in kept]


def agreed(session: palpate.Session, pixels: np.ndarray, candidates: Sequence[np.ndarray]) -> np.ndarray:
    """A label map of what the model makes of the blobs' tight boxes, where it agrees with the blob."""
    labels = np.zeros(pixels.shape[:2], dtype=np.uint8)
    if not candidates:
        return labels
    session.set_image(palpate.Image(pixels, colour=pixels.ndim == 3))
    number = 0
    for blob in candidates:
        mask = session.predict(Box.around(blob)).mask
        dice = 2 * (mask & blob).sum() / (mask.sum() + blob.sum())
        if dice >= AGREEMENT and not (mask & (labels > 0)).any():
            number += 1
            labels[mask] = number
    return labels


def write(data: Path, out: Path, *, cache: Path | None = None) -> int | None:
    """Fill OUT; how many regions were found. A finished OUT stays as it is, and the answer is None."""
    manifest = out / "manifest.csv"
    if manifest.is_file():
        return None
    for name in ("images", "labels"):
        (out / name).mkdir(parents=True, exist_ok=True)
    with (data / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["scribbles"] = ""
        for column in ("image", "label"):
            row[column] = str((data / row[column]).resolve())
    found = 0
    session = palpate.load(
        "lite-medsam", device="cpu", runtime="torch", cache=None if cache is None else EmbeddingCache(cache)
    )
    encoder = weights.load("lite-medsam").encoder_hash
    recipe = DataRecipe(
        path=str(data), only={"redistributable_weights": "yes"}, slices_per_volume=3, cases_per_dataset=30
    )
    cases, _ = cases_for(recipe, seed=0)
    frame = catalogue.card("lite-medsam").frame
    for case in cases:
        for sight in sights_of(case, frame=frame, encoder_hash=encoder, slices_per_volume=3, min_pixels=10):
            if min(sight.pixels.shape[:2]) < SMALLEST_IMAGE:
                continue
            labels = agreed(session, sight.pixels, blobs(sight.pixels, sight.scene.labels > 0))
            if not labels.any():
                continue
            found += int(labels.max())
            name = f"{case.dataset}-{case.name}-{sight.scene.z}.png".replace("/", "-")
            Picture.fromarray(sight.pixels).save(out / "images" / name)
            Picture.fromarray(labels).save(out / "labels" / name)
            rows.append(
                {
                    "dataset": f"regions_{case.dataset}",
                    "modality": case.modality,
                    "subject": case.subject,
                    "split": "train",
                    "image": f"images/{name}",
                    "label": f"labels/{name}",
                    "scribbles": "",
                    "licence": "as " + case.dataset,
                    "redistributable_weights": "yes",
                }
            )
    half = out / "manifest.part"
    with half.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    half.replace(manifest)
    return found


def _coarse(pixels: np.ndarray, step: int) -> np.ndarray:
    """The means of blocks of `step` by `step` pixels; at the end the last row and column are repeated."""
    short = [(0, -extent % step) for extent in pixels.shape]
    padded = np.pad(pixels, short, mode="edge")
    return padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).mean(axis=(1, 3))


def _rounded(blob: np.ndarray) -> np.ndarray:
    """Without holes; worked on in its own box, because an image has hundreds of blobs."""
    box = ndimage.find_objects(blob.astype(np.uint8))[0]
    filled = np.zeros_like(blob)
    filled[box] = ndimage.binary_fill_holes(blob[box])
    return filled


def _touches_border(blob: np.ndarray) -> bool:
    return bool(blob[0].any() or blob[-1].any() or blob[:, 0].any() or blob[:, -1].any())


def main() -> None:
    """Find them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with a manifest.csv")
    parser.add_argument("out", type=Path, help="the folder to fill")
    parser.add_argument("--cache", type=Path, help="the folder of kept embeddings")
    given = parser.parse_args()
    found = write(given.data, given.out, cache=given.cache)
    print("there already:" if found is None else f"{found} regions:", given.out / "manifest.csv")


if __name__ == "__main__":
    main()
