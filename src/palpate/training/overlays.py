"""Pictures of what a model in training finds, a row of samples a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from palpate.datasets.case import Region
from palpate.errors import OutputError
from palpate.images.formats import replacing
from palpate.inference.preview import LegendLine, Tile, draw
from palpate.metrics import dice
from palpate.prompts.types import Target
from palpate.training.items import Item
from palpate.training.scenes import Scene

FOUND, REFERENCE = 1, 2


def draw_samples(samples: Sequence[tuple[Item, np.ndarray, np.ndarray]], path: Path) -> None:
    """Write a PNG of samples (item, its pixels, the mask that was found), with the reference and the prompt drawn too.

    Raises:
        OutputError: the file cannot be written.
    """
    _write([_tile(i.scene, i.region, pixels, found, [Target(i.prompts)]) for i, pixels, found in samples], path)


def draw_found(samples: Sequence[tuple[Scene, Region, np.ndarray, np.ndarray]], path: Path) -> None:
    """The same of what was found without a prompt: (scene, what was to be found, pixels, the mask that was found).

    Raises:
        OutputError: the file cannot be written.
    """
    _write([_tile(scene, region, pixels, found, []) for scene, region, pixels, found in samples], path)


def _tile(scene: Scene, region: Region, pixels: np.ndarray, found: np.ndarray, targets: list[Target]) -> Tile:
    truth = scene.mask(region)
    # The labels of one picture exclude each other; the reference shows where the two differ.
    labels = np.where(found, FOUND, np.where(truth, REFERENCE, 0)).astype(np.uint16)
    title = f"Dice {dice(found, truth):.2f}  {scene.name}"
    return Tile(pixels, labels, targets, title=title, pixel_size=(1.0, 1.0), letters=None)


def _write(tiles: Sequence[Tile], path: Path) -> None:
    legend = [LegendLine(FOUND, "found"), LegendLine(REFERENCE, "missed")]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path.parent}: {error.strerror or error}") from error
    with replacing(path, overwrite=True) as temporary:
        draw(tiles, legend, caption="samples of the validation data").save(temporary, format="PNG")
