"""The table of a folder of images: a row for each class of each image, and for each image that failed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from palpate.images.formats import replacing

SCORES = "scores.csv"


@dataclass(frozen=True)
class Row:
    """One class in one image, or an image that failed and why.

    `present` says whether the mask has any pixel of the class; `pixels` counts them, voxels of a volume. `score` is
    object probability x predicted IoU, 0 where it is not present. `output` is the mask's name in the output folder; it
    is empty where a DICOM SEG would be, which cannot hold an empty mask.
    """

    image: str
    class_name: str = ""
    label: int | None = None
    present: bool = False
    object_probability: float | None = None
    predicted_iou: float | None = None
    score: float | None = None
    pixels: int | None = None
    ml: float | None = None
    output: str = ""
    error: str = ""

    def place(self) -> tuple[bool, float, float, str, int]:
        """Where it stands in the table: what failed, then by score; of what is absent, the least surely so first."""
        return not self.error, self.score or 0.0, -(self.object_probability or 0.0), self.image, self.label or 0

    def cells(self) -> dict[str, str]:
        """It as a line of the table."""
        numbers = {"object_probability": 4, "predicted_iou": 4, "score": 4, "ml": 3}
        cells = {
            name: "" if value is None else f"{value:.{numbers[name]}f}" if name in numbers else str(value)
            for name, value in asdict(self).items()
        }
        cells["class"] = cells.pop("class_name")
        cells["present"] = "" if self.error else "yes" if self.present else "no"
        return {name: cells[name] for name in COLUMNS}


COLUMNS = tuple("class" if one.name == "class_name" else one.name for one in fields(Row))
"""Of scores.csv."""


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """The rows as they come, in place of an older table.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path, overwrite=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(row.cells() for row in rows)
