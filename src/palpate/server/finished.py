"""A case that is ready to leave: its image, its label map, what the labels are called, and how they came about."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palpate.errors import InputError, OutputError
from palpate.images.formats import Mask
from palpate.images.image import Image

_NAME = re.compile(r"[A-Za-z0-9._-]{1,120}")


@dataclass(frozen=True, eq=False)
class Finished:
    """One case: `labels` on the image's grid in array order, 0 is background; colours are red, green, blue of 0 to 255.

    `record` says how the labels were made and is kept as it is given.

    Raises:
        InputError: a name that is no file name, or labels that are not on the image's grid.
    """

    case: str
    image: Image
    labels: np.ndarray
    names: Mapping[int, str]
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict[int, tuple[int, int, int]])
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.case) or not self.case.strip("."):
            raise InputError(
                f"a case cannot be exported as {self.case[:120]!r}; up to 120 letters, digits, dots, - and _ are a name"
            )
        labels, shape = self.labels, self.image.shape
        if labels.shape != shape or labels.dtype.kind not in "bui" or int(labels.min()) < 0:
            raise InputError(
                f"the labels of {self.case} are {labels.dtype} of shape {labels.shape}; whole numbers from 0 on "
                f"of shape {shape} are needed, as of its image"
            )

    @property
    def used(self) -> list[int]:
        """The labels that were drawn, in rising order."""
        drawn = {int(value) for part in np.atleast_2d(self.labels) for value in np.unique(part)}
        return sorted(drawn - {0})

    def name(self, label: int) -> str:
        """What a label is called."""
        return self.names.get(label, f"label {label}")

    @property
    def mask(self) -> Mask:
        """The labels on their way to a file, with the names of those that were drawn; of all if none was."""
        used = self.used
        names = {value: self.name(value) for value in used} or dict(self.names)
        colours = {value: colour for value, colour in self.colours.items() if value in names}
        maker = [str(self.record[key]) for key in ("palpate", "model") if key in self.record]
        return Mask(self.labels, self.image.geometry, names, " ".join(["palpate", *maker]), colours)

    def write_record(self, path: Path) -> None:
        """Write the record as JSON."""
        path.write_text(json.dumps(dict(self.record), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def classes_of(finished: Sequence[Finished], *, reserved: Sequence[str] = ()) -> dict[int, str]:
    """The labels drawn in any of the cases, with names that differ from each other, in rising order.

    Names that two labels share, or that are reserved, get the label's value behind them.

    Raises:
        OutputError: one label is called differently in two cases, or nothing is drawn in any.
    """
    names: dict[int, str] = {}
    first: dict[int, str] = {}
    for one in finished:
        for value in one.used:
            if names.setdefault(value, one.name(value)) != one.name(value):
                raise OutputError(
                    f"label {value} is {names[value]!r} in {first[value]} and {one.name(value)!r} in {one.case}; "
                    "give it one name, or export the cases apart"
                )
            first.setdefault(value, one.case)
    if not names:
        raise OutputError(
            "nothing is drawn in any of these cases, so there is no class to export; draw something first"
        )
    taken = Counter([name.casefold() for name in names.values()] + 2 * [name.casefold() for name in reserved])
    valued = {value: f"{names[value]} {value}" for value in sorted(names)}
    told = {value: names[value] if taken[names[value].casefold()] == 1 else valued[value] for value in sorted(names)}
    # One may be called as another one is with its value (`liver 2`); with the value behind each, no two are alike.
    return told if len({name.casefold() for name in told.values()}) == len(told) else valued
