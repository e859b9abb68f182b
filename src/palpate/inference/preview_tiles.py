"""A segmentation as a preview: which of its slices are shown, and what the legend says of each object."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Picture

from palpate.images.image import Image
from palpate.images.slices import slice_first, slice_letters, slice_name
from palpate.inference.preview import LegendLine, Tile, draw
from palpate.inference.segmentation import Segmentation, SegmentedObject

_TILES = 6


def preview_of(segmentation: Segmentation, image: Image, slices: UInt8[np.ndarray, "..."]) -> Picture.Image:
    """A picture of the image, the prompts and the outlines: the prompted slice, or six slices of a range.

    `image` is what was segmented, and `slices` are what the model saw of it, as `Session.slices` gives them.
    """
    made = segmentation.provenance
    labels = segmentation.labels[None] if made.axis is None else slice_first(segmentation.labels, made.axis)
    tiles = [_tile(z, segmentation, image, slices[z], labels[z]) for z in _shown_slices(segmentation)]
    legend = [
        LegendLine(item.label, f"{item.name or f'label {item.label}'}: {_sureness(item)}")
        for item in segmentation.objects
    ]
    modality = "modality unknown" if made.modality == "unknown" else made.modality
    return draw(tiles, legend, caption=f"{modality}, {made.intensity}; {made.model}")


def _shown_slices(segmentation: Segmentation) -> list[int]:
    """The prompted slices, and where objects were carried through slices, as many of those as there is room for."""
    prompted = sorted({target.z or 0 for item in segmentation.objects for target in item.targets})
    if len(prompted) > _TILES:
        prompted = [prompted[i] for i in np.linspace(0, len(prompted) - 1, _TILES).round().astype(int)]
    carried = [
        item.slices
        for item in segmentation.objects
        if item.slices
        and (
            segmentation.provenance.until_end
            or segmentation.provenance.mode != "manual"
            or any(target.z_range for target in item.targets)
        )
    ]
    if not carried:
        axis = segmentation.provenance.axis
        return prompted or [0 if axis is None else segmentation.labels.shape[axis] // 2]
    first = min([low for low, _ in carried] + prompted)
    last = max([high for _, high in carried] + prompted)
    spread = np.linspace(first, last, min(_TILES, last - first + 1)).round().astype(int).tolist()
    # The prompted slices are the ones to look at first; they take the place of their nearest neighbours.
    for z in prompted:
        if z not in spread:
            spread[int(np.argmin([abs(z - other) if other not in prompted else np.inf for other in spread]))] = z
    return sorted(spread)


def _tile(
    z: int, segmentation: Segmentation, image: Image, pixels: UInt8[np.ndarray, "..."], labels: np.ndarray
) -> Tile:
    axis = segmentation.provenance.axis
    plane = axis or 0  # a picture lies in the plane of the first two voxel axes
    sizes = list(image.geometry.spacing[::-1])
    del sizes[plane]
    return Tile(
        pixels,
        labels,
        [target for item in segmentation.objects for target in item.targets if (target.z or 0) == z],
        title="" if axis is None else f"{slice_name(image, plane)} {z}",
        pixel_size=(sizes[0], sizes[1]),
        letters=slice_letters(image, plane) if image.knows_place else None,
    )


def _sureness(item: SegmentedObject) -> str:
    """What a legend says of an object."""
    if item.object_probability is None:
        return f"predicted IoU {item.predicted_iou:.2f}"
    if not item.voxels:
        return f"not there (object probability {item.object_probability:.2f})"
    return f"predicted IoU {item.predicted_iou:.2f}, object probability {item.object_probability:.2f}"
