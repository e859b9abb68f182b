"""The result: a mask that never loses its place, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped

from palpate.errors import OutputError
from palpate.images.formats import Mask, suffix_of, write_mask
from palpate.images.geometry import Geometry
from palpate.images.slices import slice_first
from palpate.prompts.types import Target

IntensityOrigin = Literal["given", "card", "image"]


@dataclass(frozen=True, eq=False)
class SegmentedObject:
    """One object of a segmentation.

    `predicted_iou` is the model's own estimate of its overlap with the truth, averaged over the slices it was found
    on; `voxels` counts those it got in the label map; `slices` are the first and last slice with any of them.
    `targets` are what was drawn for it, none where the model found it by itself; then `object_probability` is the
    model's own estimate (of a volume: on the slice where it is highest) that there is such an object at all.
    """

    label: int
    name: str
    predicted_iou: float
    voxels: int
    volume_ml: float | None
    slices: tuple[int, int] | None
    targets: tuple[Target, ...]
    object_probability: float | None = None

    @property
    def score(self) -> float:
        """How sure the model is of this mask: object probability x predicted IoU; 0 for an object without a pixel."""
        return (
            self.predicted_iou * (1.0 if self.object_probability is None else self.object_probability)
            if self.voxels
            else 0.0
        )


@dataclass(frozen=True)
class Provenance:
    """What made a segmentation: enough to make it again.

    `overlap` says who gets a pixel that several objects claim: a policy of `predict_all`, or of what was found by
    learned prompts, `logits` (the highest) or `none` (a map of one class). `mode` is one of `Session.find`.
    `intensity_origin` says whose the rule is: `given` by a person, by the `card` of an adapter or of learned prompts,
    or the `image`'s own by its modality.
    """

    model: str
    weights_hash: str
    runtime: str
    modality: str
    modality_origin: str
    intensity: str
    intensity_origin: IntensityOrigin
    axis: int | None
    overlap: str
    until_end: bool
    palpate_version: str
    mode: str = "manual"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map on the grid of its image.

    `labels` has the image's spatial shape, (y, x) or (z, y, x); 0 is background. It is uint8, or uint16 where there
    are more than 255 labels. `notes` say what a careful reader should know (a box that was cut at the border, a
    prompt the model was not trained with).
    """

    labels: Shaped[np.ndarray, "..."]
    objects: tuple[SegmentedObject, ...]
    geometry: Geometry
    provenance: Provenance
    notes: tuple[str, ...] = ()

    @property
    def mask(self) -> Bool[np.ndarray, "..."]:
        """All objects together."""
        return self.labels > 0

    @property
    def predicted_iou(self) -> float:
        """The model's own estimate of the overlap with the truth, the mean over objects."""
        return float(np.mean([item.predicted_iou for item in self.objects]))

    @property
    def names(self) -> Mapping[int, str]:
        """The names of the labels that have one."""
        return {item.label: item.name for item in self.objects if item.name}

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the label map; the suffix decides the format (NIfTI, NRRD, PNG, npz, DICOM SEG or RTSTRUCT).

        Raises:
            OutputError: see `palpate.images.write_mask`.
        """
        path = Path(path)
        labels, geometry = self.labels, self.geometry
        if suffix_of(path) == ".png" and labels.ndim == 3:
            labels = self._only_slice()
            geometry = Geometry(labels.shape, geometry.affine, geometry.source)
        made_by = f"palpate {self.provenance.palpate_version} {self.provenance.model}"
        write_mask(path, Mask(labels, geometry, self.names, made_by), overwrite=overwrite)

    def record(self) -> dict[str, Any]:
        """Everything but the pixels, ready for JSON. `objects` can be given to `--prompts` to make the mask again."""
        from palpate.prompts.file import target_to_json  # slow to import: it needs pydantic

        source = self.geometry.source
        return {
            "version": 1,
            "image": str(source.path) if source else None,
            "shape": list(self.geometry.shape),
            "spacing_mm": [round(value, 6) for value in self.geometry.spacing],
            "orientation": self.geometry.orientation,
            **{key: value for key, value in vars(self.provenance).items() if key != "axis"},
            "axis": None if self.provenance.axis is None else "zyx"[self.provenance.axis],
            "results": [
                {
                    "label": item.label,
                    "name": item.name,
                    "predicted_iou": round(item.predicted_iou, 4),
                    "voxels": item.voxels,
                    "volume_ml": None if item.volume_ml is None else round(item.volume_ml, 4),
                    "slices": list(item.slices) if item.slices else None,
                    **_sureness(item),
                }
                for item in self.objects
            ],
            "objects": [target_to_json(target) for item in self.objects for target in item.targets],
            "notes": list(self.notes),
        }

    def _only_slice(self) -> np.ndarray:
        axis = self.provenance.axis or 0
        touched = {target.z or 0 for item in self.objects for target in item.targets}
        for item in self.objects:
            touched |= {number for target in item.targets for number in target.z_range or ()} | {*(item.slices or ())}
        if len(touched) > 1 or (not touched and self.labels.shape[axis] > 1):
            raise OutputError(
                "a PNG holds one slice, and this segmentation covers several; write .nii.gz, .nrrd or .npz instead"
            )
        return np.ascontiguousarray(slice_first(self.labels, axis)[touched.pop() if touched else 0])


def _sureness(item: SegmentedObject) -> dict[str, float]:
    if item.object_probability is None:
        return {}
    return {"object_probability": round(item.object_probability, 4), "score": round(item.score, 4)}
