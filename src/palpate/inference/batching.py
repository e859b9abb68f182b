"""Prompts of many objects as batches that a decoder takes at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from palpate.models.frame import CanvasPrompt
from palpate.models.promptable import PromptBatch


def alike(prompts: Sequence[CanvasPrompt]) -> list[list[int]]:
    """Indices of prompts that can share a batch: the same parts, and as many points."""
    groups: dict[tuple[bool, int, bool], list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        points = 0 if prompt.points is None else len(prompt.points)
        groups[prompt.box is not None, points, prompt.mask is not None].append(i)
    return list(groups.values())


def batch_of(prompts: Sequence[CanvasPrompt], *, image_index: Sequence[int] | None = None) -> PromptBatch:
    """Prompts that are `alike` as one batch; all lie on image 0 unless `image_index` says where each lies."""

    def stacked(name: str) -> np.ndarray | None:
        parts = [getattr(prompt, name) for prompt in prompts]
        return None if parts[0] is None else np.stack(parts)

    where = [0] * len(prompts) if image_index is None else image_index
    return PromptBatch(
        image_index=np.array(where, dtype=np.int64),
        boxes=stacked("box"),
        points=stacked("points"),
        point_labels=stacked("point_labels"),
        masks=stacked("mask"),
    )
