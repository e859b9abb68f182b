"""Losses for learning prompts: the mask, the coarse mask and the box that prompt for it, and whether there is anything.

Wahd et al. 2024 (Sam2Rad, arXiv 2409.06821) write one loss in the paper, and their code has another; both are here by
name, and a third one of our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from palpate.errors import SettingError
from palpate.training.items import NOTHING_THERE
from palpate.training.losses import binary_cross_entropy, dice_loss, iou_error


def weighted_focal_loss(
    logits: Float[Tensor, "item row column"],
    target: Float[Tensor, "item row column"],
    *,
    gamma: float,
    on: float,
    beside: float,
) -> Float[Tensor, " item"]:
    """Cross-entropy weighted by (1 - p)^gamma, p the probability given to the truth, and by `on` the object and
    `beside` it; the mean over pixels. Lin et al. 2017, arXiv 1708.02002."""
    missed, alarmed = -logsigmoid(logits), -logsigmoid(-logits)
    loss = on * target * (-gamma * alarmed).exp() * missed + beside * (1 - target) * (-gamma * missed).exp() * alarmed
    return loss.mean(dim=(1, 2))


def box_l1(corners: Float[Tensor, "item 4"], wanted: Float[Tensor, "item 4"]) -> Float[Tensor, " item"]:
    """The sum of the four distances, in shares of the canvas's side."""
    return (corners - wanted).abs().sum(dim=1)


def giou_loss(corners: Float[Tensor, "item 4"], wanted: Float[Tensor, "item 4"]) -> Float[Tensor, " item"]:
    """1 - GIoU of boxes x_min, y_min, x_max, y_max (Rezatofighi et al. 2019, arXiv 1902.09630); 0 to 2."""
    low, high = torch.maximum(corners[:, :2], wanted[:, :2]), torch.minimum(corners[:, 2:], wanted[:, 2:])
    both = (high - low).clamp(min=0).prod(dim=1)
    areas = (corners[:, 2:] - corners[:, :2]).prod(dim=1) + (wanted[:, 2:] - wanted[:, :2]).prod(dim=1)
    either = areas - both
    low, high = torch.minimum(corners[:, :2], wanted[:, :2]), torch.maximum(corners[:, 2:], wanted[:, 2:])
    around = (high - low).prod(dim=1)
    return 1 - both / (either + 1e-7) + (around - either) / (around + 1e-7)


@dataclass(frozen=True)
class LearningLoss:
    """How much each loss weighs; 0 leaves it out.

    - `dice` (not squared), `bce` and `focal` are of the final mask; `coarse_dice`, `coarse_bce` and `coarse_focal` of
      the predictor's own. Focal losses weigh pixels on the object by `focal_on`, beside it by `focal_beside` (those of
      the coarse mask by `coarse_on` and `coarse_beside`), and use `gamma`.
    - `box_l1` and `box_giou` are of the learned box, in shares of the canvas.
    - `objectness` is the cross-entropy of "is it there at all", whose targets are `smoothing` / 2 and 1 minus that, and
      whose logits are cut to +-`clip`.
    - `iou` is the squared error of the predicted IoU.

    Where a class is absent only `objectness` counts.

    Raises:
        SettingError: a negative or infinite weight, or nothing that moves a mask.
    """

    dice: float | int = 0.0
    bce: float | int = 0.0
    focal: float | int = 0.0
    coarse_dice: float | int = 0.0
    coarse_bce: float | int = 0.0
    coarse_focal: float | int = 0.0
    box_l1: float | int = 0.0
    box_giou: float | int = 0.0
    objectness: float | int = 1.0
    iou: float | int = 0.0
    gamma: float | int = 3.0
    focal_on: float | int = 0.7
    focal_beside: float | int = 0.3
    coarse_on: float | int = 0.7
    coarse_beside: float | int = 0.3
    smoothing: float | int = 0.0
    clip: float | int = 10.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = float(getattr(self, one.name))
            if not math.isfinite(value) or value < 0:
                raise SettingError(f"the loss weight {one.name} must be 0 or more, got {value:g}")
        if not any((self.dice, self.bce, self.focal)):
            raise SettingError("no loss moves the mask; give dice, bce or focal a weight")

    def of(
        self,
        *,
        logits: Float[Tensor, "item row column"],
        predicted_iou: Float[Tensor, " item"],
        object_logits: Float[Tensor, " item"],
        target: Float[Tensor, "item row column"],
        present: Bool[Tensor, " item"],
        learned: Bool[Tensor, " item"],
        coarse_logits: Float[Tensor, "item row column"] | None,
        corners: Float[Tensor, "item 4"],
        box: Float[Tensor, "item 4"],
    ) -> Float[Tensor, " item"]:
        """The weighted sum for each item. `box` is the tight one, in shares of the canvas like `corners`; the coarse
        mask and the box count for items that were asked by `learned` prompts, and not at all without a coarse mask:
        then they come from maps, which have a loss of their own (`of_maps`)."""
        logits, corners = logits.float(), corners.float()
        mask = logits.new_zeros(len(logits))
        if self.dice:
            mask = mask + self.dice * dice_loss(logits, target, squared=False)
        if self.bce:
            mask = mask + self.bce * binary_cross_entropy(logits, target)
        if self.focal:
            mask = mask + self.focal * weighted_focal_loss(
                logits, target, gamma=float(self.gamma), on=float(self.focal_on), beside=float(self.focal_beside)
            )
        if self.iou:
            mask = mask + self.iou * iou_error(predicted_iou.float(), logits, target)
        prompt = mask.new_zeros(len(mask))
        if coarse_logits is not None:
            prompt = self._of_prompts(coarse_logits.float(), corners, target, box)
        # A class that is absent has no mask and no box; multiplying by zero would keep what is not a number.
        zero = torch.zeros_like(mask)
        total = torch.where(present, mask, zero) + torch.where(present & learned, prompt, zero)
        if self.objectness:
            wanted = present.float() * (1 - self.smoothing) + self.smoothing / 2
            held = object_logits.float().clamp(-self.clip, self.clip)
            total = total + self.objectness * binary_cross_entropy_with_logits(held, wanted, reduction="none")
        return total

    def of_maps(
        self,
        maps: Float[Tensor, "image a_class row column"],
        shares: Float[Tensor, "image a_class row column"],
        counted: Bool[Tensor, "image a_class row column"],
    ) -> Float[Tensor, " image"]:
        """The losses of the coarse masks for the maps of all classes.

        `shares` is how much of each cell a class covers. What is not `counted` is neither right nor wrong. Dice is the
        mean over the classes that are there: all of nothing cannot be missed. The others are sums over classes: each
        cell is of one class at the most, so with many classes a mean would hardly feel it.
        """
        maps = torch.where(counted, maps.float(), NOTHING_THERE).flatten(0, 1)
        shares = (shares * counted).flatten(0, 1)
        total = maps.new_zeros(len(maps))
        there = (shares.flatten(1).amax(dim=1) > 0).unflatten(0, counted.shape[:2])
        if self.coarse_bce:
            total = total + self.coarse_bce * binary_cross_entropy(maps, shares)
        if self.coarse_focal:
            total = total + self.coarse_focal * weighted_focal_loss(
                maps, shares, gamma=float(self.gamma), on=float(self.coarse_on), beside=float(self.coarse_beside)
            )
        found = total.unflatten(0, counted.shape[:2]).sum(dim=1)
        if self.coarse_dice:
            missed = dice_loss(maps, shares, squared=False).unflatten(0, counted.shape[:2])
            found = found + self.coarse_dice * (missed * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        return found

    def _of_prompts(self, coarse: Tensor, corners: Tensor, target: Tensor, box: Tensor) -> Float[Tensor, " item"]:
        total = coarse.new_zeros(len(coarse))
        if self.coarse_dice:
            total = total + self.coarse_dice * dice_loss(coarse, target, squared=False)
        if self.coarse_bce:
            total = total + self.coarse_bce * binary_cross_entropy(coarse, target)
        if self.coarse_focal:
            total = total + self.coarse_focal * weighted_focal_loss(
                coarse, target, gamma=float(self.gamma), on=float(self.coarse_on), beside=float(self.coarse_beside)
            )
        if self.box_l1:
            total = total + self.box_l1 * box_l1(corners, box)
        if self.box_giou:
            total = total + self.box_giou * giou_loss(corners, box)
        return total


LEARNING_LOSSES: dict[str, LearningLoss] = {
    "dice+bce": LearningLoss(dice=1.0, bce=1.0, coarse_dice=1.0, coarse_bce=1.0, box_l1=1.0, box_giou=1.0, iou=1.0),
    "paper": LearningLoss(
        focal=10.0,
        coarse_focal=10.0,
        box_l1=1.0,
        box_giou=1.0,
        focal_on=1.0,
        focal_beside=0.7,
        coarse_on=1.0,
        coarse_beside=0.7,
    ),
    "code": LearningLoss(
        dice=0.5, focal=5.0, coarse_focal=100.0, box_giou=1.0, coarse_on=0.6, coarse_beside=0.4, smoothing=0.1
    ),
}
"""By name. `paper`: 10 times the masks' focal losses (gamma 3; 1 on the object, 0.7 beside it), the box's L1 and GIoU,
and objectness. `code`: (Dice + 10 focal) / 2 of the mask, 100 times the focal loss of the coarse one, GIoU, and
objectness with smoothed targets. `dice+bce` is ours."""
