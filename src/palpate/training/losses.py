"""Losses of promptable segmentation; every one takes logits and targets of the same shape and gives one number an item.

Li, Yuan and Tan (2025), arXiv 2503.19700, train with the sum of equations (9) and (10), which is (11); equation (12)
adds the weight decay, which the optimiser applies. SAM trains with focal and Dice (Kirillov et al. 2023, appendix A),
and LiteMedSAM adds the squared error of the predicted IoU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from palpate.errors import SettingError

SMOOTHING = 1e-5
"""Added to both halves of Dice's fraction, as MONAI has it, so that empty against empty is 0."""


def binary_cross_entropy(
    logits: Float[Tensor, "item row column"], target: Float[Tensor, "item row column"]
) -> Float[Tensor, " item"]:
    """Equation (9): the mean over pixels of -[g log s + (1 - g) log(1 - s)]."""
    return binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(1, 2))


def dice_loss(
    logits: Float[Tensor, "item row column"], target: Float[Tensor, "item row column"], *, squared: bool = True
) -> Float[Tensor, " item"]:
    """Equation (10): 1 - 2 sum(g s) / (sum(g^2) + sum(s^2)); without `squared`, the sums of g and s stand below."""
    s = logits.sigmoid()
    power = 2 if squared else 1
    both = (s * target).sum(dim=(1, 2))
    each = (s**power).sum(dim=(1, 2)) + (target**power).sum(dim=(1, 2))
    return 1 - (2 * both + SMOOTHING) / (each + SMOOTHING)


def focal_loss(
    logits: Float[Tensor, "item row column"],
    target: Float[Tensor, "item row column"],
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Float[Tensor, " item"]:
    """Cross-entropy weighted by (1 - p)^gamma, p the probability given to the truth; alpha on the object, 1 - alpha
    beside it; the mean over pixels. Lin et al. 2017, arXiv 1708.02002, equation (5)."""
    # (1 - s)^gamma as exp(gamma log(1 - s)): for gamma below 1 the power itself has an infinite slope at 0.
    on, beside = -logsigmoid(logits), -logsigmoid(-logits)
    missed, alarmed = (-gamma * beside).exp(), (-gamma * on).exp()
    loss = alpha * target * missed * on + (1 - alpha) * (1 - target) * alarmed * beside
    return loss.mean(dim=(1, 2))


def iou_error(
    predicted_iou: Float[Tensor, " item"],
    logits: Float[Tensor, "item row column"],
    target: Float[Tensor, "item row column"],
) -> Float[Tensor, " item"]:
    """The squared error of the model's own estimate of its IoU; the IoU is that of the thresholded mask, 1 for empty
    against empty. No gradient flows through the mask."""
    with torch.no_grad():
        found, truth = logits > 0, target > 0.5
        both = (found & truth).sum(dim=(1, 2)).float()
        either = (found | truth).sum(dim=(1, 2)).float()
        actual = torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))
    return (predicted_iou - actual) ** 2


@dataclass(frozen=True)
class Loss:
    """How much each loss weighs; 0 leaves it out.

    - `bce` and `dice` are equations (9) and (10), `focal` and `soft_dice` (not squared) SAM's, `iou` the estimate's.
    - `teacher` is the cross-entropy towards the base model's own probabilities for the tight box: it keeps what the
      base model knows.
    - `consistency` is the same towards the trained model's own answer to the tight box, without gradient.
    - `anchor` is the squared distance of the trained weights from where they started, per weight (L2-SP, Li et al.
      2018, arXiv 1802.01483).

    Raises:
        SettingError: a negative or infinite weight, or no loss at all.
    """

    bce: float | int = 1.0
    dice: float | int = 1.0
    focal: float | int = 0.0
    soft_dice: float | int = 0.0
    iou: float | int = 0.0
    teacher: float | int = 0.0
    consistency: float | int = 0.0
    anchor: float | int = 0.0
    focal_gamma: float | int = 2.0
    focal_alpha: float | int = 0.25

    def __post_init__(self) -> None:
        for one in fields(self):
            value = float(getattr(self, one.name))
            if not math.isfinite(value) or value < 0:
                raise SettingError(f"the loss weight {one.name} must be 0 or more, got {value:g}")
        if not any((self.bce, self.dice, self.focal, self.soft_dice, self.teacher)):
            raise SettingError("no loss moves the mask; give bce, dice, focal, soft_dice or teacher a weight")

    def of(
        self,
        logits: Float[Tensor, "item row column"],
        predicted_iou: Float[Tensor, " item"],
        target: Float[Tensor, "item row column"],
        *,
        teacher: Float[Tensor, "item row column"] | None = None,
        own: Float[Tensor, "item row column"] | None = None,
    ) -> Float[Tensor, " item"]:
        """The weighted sum for each item, but for `anchor`, which is of no item. `teacher` and `own` are
        probabilities, the base model's and the trained one's."""
        logits, predicted_iou = logits.float(), predicted_iou.float()
        total = logits.new_zeros(len(logits))
        if self.bce:
            total = total + self.bce * binary_cross_entropy(logits, target)
        if self.dice:
            total = total + self.dice * dice_loss(logits, target)
        if self.soft_dice:
            total = total + self.soft_dice * dice_loss(logits, target, squared=False)
        if self.focal:
            total = total + self.focal * focal_loss(
                logits, target, gamma=float(self.focal_gamma), alpha=float(self.focal_alpha)
            )
        if self.iou:
            total = total + self.iou * iou_error(predicted_iou, logits, target)
        if self.teacher and teacher is not None:
            total = total + self.teacher * binary_cross_entropy(logits, teacher)
        if self.consistency and own is not None:
            total = total + self.consistency * binary_cross_entropy(logits, own)
        return total


LOSSES: dict[str, Loss] = {
    "bce+dice": Loss(),
    "dice+focal": Loss(bce=0.0, dice=0.0, soft_dice=1.0, focal=20.0),
    "lite-medsam": Loss(iou=1.0),
}
"""By name: equations (9) to (12); SAM's, with its weights of 20 to 1; LiteMedSAM's, with the predicted IoU."""
