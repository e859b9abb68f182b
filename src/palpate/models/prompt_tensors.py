"""A `PromptBatch` as tensors beside a decoder, looked over before anything is computed; SAM and SAM 2 read it alike."""

from typing import NamedTuple

import torch
from torch import Tensor

from palpate.errors import PromptError
from palpate.models.promptable import PromptBatch


class PromptTensors(NamedTuple):
    """The parts of a `PromptBatch`; coordinates and masks are float32, which half precision would move by pixels."""

    image_index: Tensor
    boxes: Tensor | None
    points: Tensor | None
    point_labels: Tensor | None
    masks: Tensor | None

    def at(self, some: slice) -> dict[str, Tensor | None]:
        """The prompts of some objects, by the names that decoders take them by."""
        parts = {name: getattr(self, name) for name in ("boxes", "points", "point_labels", "masks")}
        return {name: None if part is None else part[some] for name, part in parts.items()}


def prompt_tensors(prompts: PromptBatch, *, images: int, mask_size: int, device: torch.device) -> PromptTensors:
    """The batch on a device, for an embedding of so many images and masks of `mask_size` pixels a side.

    Raises:
        PromptError: it holds no prompt at all, or its parts do not fit together.
    """

    def floats(values: object) -> Tensor | None:
        return None if values is None else torch.as_tensor(values).to(device, torch.float32)

    image_index = torch.as_tensor(prompts.image_index).to(device, torch.long)
    boxes, points, masks = (floats(part) for part in (prompts.boxes, prompts.points, prompts.masks))
    labels = prompts.point_labels
    labels = None if labels is None else torch.as_tensor(labels).to(device, torch.long)
    if points is not None and points.ndim == 3 and points.shape[1] == 0:
        points, labels = None, None  # no points are no prompt: one lone "not a point" was never trained
    if boxes is None and points is None and masks is None:
        raise PromptError("a batch without box, points or mask says nothing; give each object at least one")
    if (points is None) != (labels is None):
        raise PromptError("points and point_labels go together; label 1 is on the object, 0 beside it")
    objects = image_index.shape[0]
    if objects and (int(image_index.min()) < 0 or int(image_index.max()) >= images):
        raise PromptError(f"image_index must lie in 0..{images - 1}, got {image_index.tolist()}")
    count = 0 if points is None or points.ndim < 2 else points.shape[1]
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("boxes", boxes, (objects, 4)),
        ("points", points, (objects, count, 2)),
        ("point_labels", labels, (objects, count)),
        ("masks", masks, (objects, 1, mask_size, mask_size)),
    ]
    for name, values, shape in expected:
        if values is not None and tuple(values.shape) != shape:
            raise PromptError(f"{name} of {objects} objects must have shape {shape}, got {tuple(values.shape)}")
        if values is not None and not bool(torch.isfinite(values).all()):
            raise PromptError(f"{name} must be finite numbers")
    if labels is not None and not bool(((labels == 0) | (labels == 1)).all()):
        raise PromptError(f"point_labels are 1 (on the object) or 0 (beside it), got {labels.unique().tolist()}")
    return PromptTensors(image_index, boxes, points, labels, masks)
