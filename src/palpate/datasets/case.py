"""A case: one image, its reference labels, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer

from palpate.datasets import loading
from palpate.datasets.files import files_of
from palpate.images.image import Image

ScribbleConvention = Literal["", "strokes", "classes"]
"""What the numbers in people's strokes mean.

- `strokes`: 1 on the object, 2 beside it, 0 where nothing was drawn.
- `classes`: an object's own value on it, other values that were drawn beside it, and one value where nothing was drawn.
- empty: nobody says, and who reads them decides.
"""


@dataclass(frozen=True)
class Region:
    """An object by name: all voxels whose label is one of `values` (one value mostly; nnU-Net allows several)."""

    name: str
    values: tuple[int, ...]

    def mask(self, labels: Integer[np.ndarray, "*grid"]) -> Bool[np.ndarray, "*grid"]:
        """Where it is."""
        return labels == self.values[0] if len(self.values) == 1 else np.isin(labels, self.values)


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image and its reference: `labels` has the image's spatial shape, 0 is background."""

    image: Image
    labels: Integer[np.ndarray, "..."]


@dataclass(frozen=True)
class Case:
    """Where one labelled image lies, and what is known of it. Nothing is opened before `read`.

    - `name` is unique in its dataset and says which image (a stem, or the path inside the dataset's folder).
    - `subject` is whose image it is: cases of one subject are not independent, and never lie in two splits.
    - `modality` is CT, MR, US, PET, XR, photo, or empty where the layout does not say.
    - `regions` are the objects to be found; empty means that every label value above zero is an object of its own.
    - `ignore` is the label of voxels that nobody labelled (nnU-Net's `ignore`): neither object nor background.
    - `scribbles` are files of people's strokes on this image, and `scribble_convention` says what their numbers mean.
    - `extra` is what else the layout says, as (name, value): further columns of a manifest.
    - `load` reads the case; each layout brings its own.

    A case can be pickled, so that it can be measured by another process.
    """

    dataset: str
    subject: str
    name: str
    image: Path
    label: Path
    load: Callable[[Case], LabelledImage] = field(repr=False)
    modality: str = ""
    split: str = ""
    scribbles: tuple[Path, ...] = ()
    regions: tuple[Region, ...] = ()
    ignore: int | None = None
    extra: tuple[tuple[str, str], ...] = ()
    scribble_convention: ScribbleConvention = ""

    @property
    def kind(self) -> str:
        """What the layout calls this kind of image: `modality`, or a word that decides no intensities (fundus)."""
        return self.modality or dict(self.extra).get("modality", "")

    def read(self) -> LabelledImage:
        """The image and its labels.

        Raises:
            FormatError, GeometryError, ImageError: the files cannot be read; see `palpate.images.read`.
            DatasetError: the labels do not lie on the image's grid, or are no whole numbers.
        """
        return self.load(self)

    def files(self) -> tuple[Path, ...]:
        """Every file that reading the case depends on, in a stable order, each once.

        These are the image, the label, the scribbles, paths among the options of `load`, and what lies beside them:
        data files of detached headers, spacings of TIFFs, all files of a DICOM folder. Only headers are opened.
        A file that is missing is listed like the others, and `read` says what is wrong.
        """
        labels = (self.label, *self.scribbles)
        named = [*files_of(self.image, numbered=True), *(file for path in labels for file in files_of(path))]
        options = [file for path in loading.paths_in(self.load) for file in files_of(path)]
        return tuple(dict.fromkeys([*named, *options]))

    def identity(self) -> str:
        """Everything but the contents of `files` that decides what is read and measured, as one line of JSON.

        Equal cases have equal texts in every process and on every machine. Of paths only the last parts count, so
        that a dataset can move. The split and `extra` decide nothing.

        Raises:
            DatasetError: `load` carries something that has no name and no value.
        """
        return json.dumps(
            {
                "case": 1,  # grows when the meaning of what follows changes
                "dataset": self.dataset,
                "subject": self.subject,
                "name": self.name,
                "modality": self.modality,
                "image": self.image.name,
                "label": self.label.name,
                "scribbles": [path.name for path in self.scribbles],
                "scribble_convention": self.scribble_convention,
                "regions": [[region.name, list(region.values)] for region in self.regions],
                "ignore": self.ignore,
                "load": loading.told(self.load),
            },
            sort_keys=True,
        )

    def resolved(self) -> Case:
        """The same case with absolute paths, also among the options of `load`, for a process that starts elsewhere.

        Links stay links, because a format may look for files beside them.
        """
        return replace(
            self,
            image=self.image.absolute(),
            label=self.label.absolute(),
            scribbles=tuple(path.absolute() for path in self.scribbles),
            load=loading.with_absolute_paths(self.load),
        )

    def objects(self, labels: Integer[np.ndarray, "*grid"]) -> list[Region]:
        """The objects that are present in these labels, in the order of their values."""
        present = set(np.unique(labels).tolist()) - {0, self.ignore}
        if not self.regions:
            return [Region(str(value), (value,)) for value in sorted(present) if value > 0]
        return [region for region in self.regions if present & set(region.values)]
