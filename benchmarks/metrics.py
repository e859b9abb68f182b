"""How long do NSD and HD95 take, next to surface-distance and MONAI?

    python benchmarks/metrics.py

A volume of 100 x 512 x 512 voxels of 2.5 x 0.8 x 0.8 mm with two bumpy organs and a perturbed prediction of both. Each
round measures all candidates after one another, and the ratio is the median of the rounds' ratios, so that what else
the machine does slows both sides. Making the masks is not counted. All candidates run in one thread.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from statistics import median

import numpy as np
from scipy import ndimage

from palpate.metrics import surface_distances

Scores = tuple[float, float]
Measure = Callable[[np.ndarray, np.ndarray], Scores]

SPACING = (2.5, 0.8, 0.8)
TOLERANCE = 2.0


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shrink", type=int, default=1, help="every side of the volume by this factor, for a quick look"
    )
    options = parser.parse_args()

    candidates = {
        "palpate, surfel": _palpate("surfel"),
        "surface-distance": _surface_distance(),
        "MONAI, subvoxels": _monai(subvoxels=True),
        "palpate, voxel": _palpate("voxel"),
        "MONAI, voxels": _monai(subvoxels=False),
    }
    organs = _organs(tuple(side // options.shrink for side in (100, 512, 512)), np.random.default_rng(options.seed))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    scores: dict[str, list[Scores]] = {}
    for _ in range(options.rounds):
        for name, measure in candidates.items():
            start = time.perf_counter()
            scores[name] = [measure(prediction, reference) for prediction, reference in organs]
            seconds[name].append(time.perf_counter() - start)

    ours = seconds["palpate, surfel"]
    print("| | seconds, median (range) | times palpate's | large organ: NSD, HD95 | small organ: NSD, HD95 |")
    print("|---|---|---|---|---|")
    for name, taken in seconds.items():
        values = " | ".join(f"{nsd:.7f}, {hd95:.6f} mm" for nsd, hd95 in scores[name])
        ratio = median(their / our for their, our in zip(taken, ours, strict=True))
        spread = f"{median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})"
        print(f"| {name} | {spread} | {ratio:.1f} | {values} |")
    packages = ("palpate", "numpy", "scipy", "surface-distance", "monai", "torch")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"\n{options.rounds} rounds, seed {options.seed}. Python {platform.python_version()}, {versions}.")


def _organs(shape: tuple[int, ...], rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prediction and reference of a liver-sized and a kidney-sized body."""
    size = np.array(shape) * SPACING
    return [
        _pair(shape, centre=size * (0.50, 0.44, 0.37), radii=size * (0.32, 0.27, 0.22), rng=rng),
        _pair(shape, centre=size * (0.52, 0.63, 0.73), radii=size * (0.24, 0.085, 0.073), rng=rng),
    ]


def _pair(
    shape: tuple[int, ...], *, centre: np.ndarray, radii: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    axes = np.ogrid[tuple(slice(side) for side in shape)]
    square = sum(
        ((axis * mm - middle) / radius) ** 2
        for axis, mm, middle, radius in zip(axes, SPACING, centre, radii, strict=True)
    )
    bumps = ndimage.zoom(rng.normal(scale=0.08, size=(6, 9, 9)), np.array(shape) / (6, 9, 9), order=1)
    mistakes = ndimage.zoom(rng.normal(scale=0.04, size=(6, 9, 9)), np.array(shape) / (6, 9, 9), order=1)
    return square + bumps + mistakes < 1, square + bumps < 1


def _palpate(surface: str) -> Measure:
    def measure(prediction: np.ndarray, reference: np.ndarray) -> Scores:
        distances = surface_distances(prediction, reference, spacing_mm=SPACING, surface=surface)
        return distances.nsd(TOLERANCE), distances.hausdorff95()

    return measure


def _surface_distance() -> Measure:
    from surface_distance import metrics

    def measure(prediction: np.ndarray, reference: np.ndarray) -> Scores:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            distances = metrics.compute_surface_distances(reference, prediction, SPACING)
        return (
            metrics.compute_surface_dice_at_tolerance(distances, TOLERANCE),
            metrics.compute_robust_hausdorff(distances, 95),
        )

    return measure


def _monai(*, subvoxels: bool) -> Measure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    torch.set_num_threads(1)

    def measure(prediction: np.ndarray, reference: np.ndarray) -> Scores:
        pair = torch.from_numpy(prediction)[None, None], torch.from_numpy(reference)[None, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nsd = compute_surface_dice(
                *pair, class_thresholds=[TOLERANCE], include_background=True, spacing=SPACING, use_subvoxels=subvoxels
            )
            hd95 = compute_hausdorff_distance(*pair, percentile=95, include_background=True, spacing=SPACING).item()
        return nsd.item(), hd95

    return measure


if __name__ == "__main__":
    main()
