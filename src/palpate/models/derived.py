"""Prompts that a model makes of a box that comes alone, in NumPy: every runtime has to show it the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32

from palpate.models.promptable import PromptBatch


@dataclass(frozen=True)
class FromBox:
    """What is made from a box that comes alone: four points, a scribble, or both; see `palpate.prompts.from_box`.

    They are drawn at random, from `seed` and the box: the same box on the same image gives the same mask, whatever
    else is asked.
    """

    points: bool = True
    scribble: bool = True
    seed: int = 0

    def completed(self, prompts: PromptBatch, inside: Bool[np.ndarray, "image row column"]) -> PromptBatch:
        """The prompts, in NumPy arrays, with those that are made from boxes; `inside` is what is not black."""
        points, labels, masks = prompts.points, prompts.point_labels, prompts.masks
        wants_points, wants_scribble = points is None and self.points, masks is None and self.scribble
        if prompts.boxes is not None and len(prompts.boxes) and (wants_points or wants_scribble):
            made = [self._made(inside[i], box) for i, box in zip(prompts.image_index, prompts.boxes, strict=True)]
            if wants_points:
                points = np.stack([each for each, _ in made])
                labels = np.ones(points.shape[:2], dtype=np.float32)
            if wants_scribble:
                masks = np.stack([each for _, each in made])[:, None].astype(np.float32)
        elif prompts.boxes is None and masks is None and points is not None and self.scribble:
            # In training no scribble was a black picture, which the network does not take for none.
            masks = np.zeros((len(points), 1, *inside.shape[1:]), dtype=np.float32)
        return replace(prompts, points=points, point_labels=labels, masks=masks)

    def _made(
        self, inside: Bool[np.ndarray, "row column"], box: Float32[np.ndarray, "4"]
    ) -> tuple[Float32[np.ndarray, "4 2"], Bool[np.ndarray, "row column"]]:
        # It imports SciPy, for which no other model need wait.
        from palpate.prompts.from_box import derived_prompts

        box = box + np.float32(0)  # of a corner at 0 the sign must not count
        rng = np.random.default_rng([self.seed, *box.view(np.uint32).tolist()])
        return derived_prompts(inside, box, rng=rng)


__all__ = ["FromBox"]
