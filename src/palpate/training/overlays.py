"""Pictures of what a model in training finds, a row of samples a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from palpate.errors import OutputError
from palpate.images.formats import replacing
from palpate.inference.preview import LegendLine, Tile, draw
from palpate.metrics import dice
from palpate.prompts.types import Target
from palpate.training.items import Item

FOUND, REFERENCE = 1, 2


def draw_samples(samples: Sequence[tuple[Item, np.ndarray, np.ndarray]], path: Path) -> None:
    """Write a PNG of samples (item, its pixels, the mask that was found), with the reference and the prompt drawn too.

    Raises:
        OutputError: the file cannot be written.
    """
    tiles: list[Tile] = []
    for item, pixels, found in samples:
        truth = item.scene.mask(item.region)
        # The labels of one picture exclude each other; the reference shows where the two differ.
        labels = np.where(found, FOUND, np.where(truth, REFERENCE, 0)).astype(np.uint16)
        title = f"Dice {dice(found, truth):.2f}  {item.scene.name}"
        tiles.append(Tile(pixels, labels, [Target(item.prompts)], title=title, pixel_size=(1.0, 1.0), letters=None))
    legend = [LegendLine(FOUND, "found"), LegendLine(REFERENCE, "missed")]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path.parent}: {error.strerror or error}") from error
    with replacing(path, overwrite=True) as temporary:
        draw(tiles, legend, caption="samples of the validation data").save(temporary, format="PNG")
