"""Losses of learned prompts, worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from palpate.errors import SettingError
from palpate.training.learning_losses import LEARNING_LOSSES, LearningLoss, box_l1, giou_loss, weighted_focal_loss
from palpate.training.losses import focal_loss


def boxes(*corners: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32)


class TestBoxes:
    def test_the_same_box_costs_nothing(self) -> None:
        same = boxes((0.1, 0.2, 0.5, 0.6))
        assert giou_loss(same, same).item() == pytest.approx(0, abs=1e-5)
        assert box_l1(same, same).item() == 0

    def test_overlapping_boxes(self) -> None:
        # Two unit squares, one shifted by half a side: 0.5 in common, 1.5 in either, 1.5 around both.
        found = giou_loss(boxes((0, 0, 1, 1)), boxes((0.5, 0, 1.5, 1)))
        assert found.item() == pytest.approx(1 - 0.5 / 1.5, abs=1e-5)
        # Shifted along both: 0.25 in common, 1.75 in either, 2.25 around.
        found = giou_loss(boxes((0, 0, 1, 1)), boxes((0.5, 0.5, 1.5, 1.5)))
        assert found.item() == pytest.approx(1 - 0.25 / 1.75 + 0.5 / 2.25, abs=1e-5)

    def test_boxes_apart_still_have_a_slope(self) -> None:
        found = boxes((0, 0, 0.1, 0.1)).requires_grad_()
        giou_loss(found, boxes((0.5, 0.5, 0.6, 0.6))).sum().backward()
        assert found.grad is not None
        assert bool((found.grad[:, 2:] < 0).all())  # it grows towards the other

    def test_l1_is_the_sum_of_four(self) -> None:
        assert box_l1(boxes((0, 0, 1, 1)), boxes((0.1, 0, 0.8, 1.3))).item() == pytest.approx(0.6)


class TestFocal:
    def test_it_is_that_of_sam_where_the_weights_are_alpha_and_the_rest(self) -> None:
        logits, target = torch.randn(3, 4, 5), (torch.rand(3, 4, 5) > 0.5).float()
        mine = weighted_focal_loss(logits, target, gamma=3.0, on=0.7, beside=0.3)
        assert torch.allclose(mine, focal_loss(logits, target, gamma=3.0, alpha=0.7), atol=1e-6)

    def test_the_papers_weighs_the_object_by_one(self) -> None:
        # One pixel of either kind, both given probability 0.5 of the truth: (0.5^3 ln 2)(1 + 0.7) / 2.
        found = weighted_focal_loss(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]]), gamma=3.0, on=1.0, beside=0.7)
        assert found.item() == pytest.approx(0.125 * math.log(2) * 1.7 / 2, rel=1e-5)


def of(loss: LearningLoss, *, present: list[bool], learned: list[bool] | None = None) -> Tensor:
    items = len(present)
    torch.manual_seed(0)
    there = torch.tensor(present)
    target = (torch.rand(items, 8, 8) > 0.5).float() * there[:, None, None]
    return loss.of(
        logits=torch.randn(items, 8, 8, requires_grad=True),
        predicted_iou=torch.rand(items),
        object_logits=torch.randn(items),
        target=target,
        present=there,
        learned=torch.tensor(learned or [True] * items),
        coarse_logits=torch.randn(items, 8, 8),
        corners=torch.rand(items, 4),
        box=torch.rand(items, 4) * there[:, None],
    )


class TestTheWhole:
    @pytest.mark.parametrize("name", sorted(LEARNING_LOSSES))
    def test_all_classes_absent_is_a_number_and_so_is_its_gradient(self, name: str) -> None:
        logits = torch.randn(2, 8, 8, requires_grad=True)
        nothing = torch.zeros(2, dtype=torch.bool)
        corners = torch.zeros(2, 4, requires_grad=True)
        found = LEARNING_LOSSES[name].of(
            logits=logits,
            predicted_iou=torch.zeros(2),
            object_logits=torch.zeros(2, requires_grad=True),
            target=torch.zeros(2, 8, 8),
            present=nothing,
            learned=~nothing,
            coarse_logits=torch.randn(2, 8, 8),
            corners=corners,
            box=torch.zeros(2, 4),
        )
        found.sum().backward()
        assert bool(torch.isfinite(found).all())
        assert logits.grad is not None
        assert not bool(logits.grad.any())
        assert corners.grad is not None
        assert bool(torch.isfinite(corners.grad).all())

    def test_an_absent_class_counts_by_its_object_score_alone(self) -> None:
        loss = LearningLoss(dice=1.0, box_l1=1.0, coarse_bce=1.0, objectness=0.0)
        assert of(loss, present=[True, False])[0] > 0
        assert of(loss, present=[True, False])[1] == 0

    def test_the_learned_box_and_mask_count_where_they_were_asked_for(self) -> None:
        loss = LearningLoss(dice=1.0, box_l1=1.0, coarse_bce=1.0, objectness=0.0)
        asked, not_asked = of(loss, present=[True]), of(loss, present=[True], learned=[False])
        only_mask = of(LearningLoss(dice=1.0, objectness=0.0), present=[True])
        assert asked > not_asked
        assert torch.equal(not_asked, only_mask)

    def test_smoothed_targets(self) -> None:
        # The least loss for a target of 0.95 lies at a logit of ln 19, and there is the entropy of 0.95.
        def at(logit: float) -> float:
            return (
                LearningLoss(dice=1.0, smoothing=0.1)
                .of(
                    logits=torch.full((1, 2, 2), 50.0),
                    predicted_iou=torch.ones(1),
                    object_logits=torch.tensor([logit]),
                    target=torch.ones(1, 2, 2),
                    present=torch.tensor([True]),
                    learned=torch.tensor([True]),
                    coarse_logits=torch.zeros(1, 2, 2),
                    corners=torch.zeros(1, 4),
                    box=torch.zeros(1, 4),
                )
                .item()
            )

        assert at(math.log(19)) == pytest.approx(-0.95 * math.log(0.95) - 0.05 * math.log(0.05), abs=1e-5)
        assert at(10.0) == at(50.0) > at(math.log(19))  # cut at 10

    @pytest.mark.parametrize("changes", [{"dice": -1.0}, {"bce": math.inf}, {"dice": 0.0, "coarse_bce": 1.0}])
    def test_what_makes_no_sense_is_refused(self, changes: dict[str, float]) -> None:
        with pytest.raises(SettingError):
            LearningLoss(**changes)


class TestMaps:
    """The losses of a localiser's maps: two classes, 2 x 2 cells."""

    def test_worked_by_hand(self) -> None:
        maps = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]], [[-50.0, -50.0], [-50.0, -50.0]]]])
        shares = torch.zeros(1, 2, 2, 2)
        shares[0, 0, 0] = 1  # the upper half; of the second class nothing is there, and the map says so
        everything = torch.ones(1, 2, 2, 2, dtype=torch.bool)
        found = LearningLoss(dice=1.0, coarse_dice=1.0, coarse_bce=1.0).of_maps(maps, shares, everything)
        # Probability one half everywhere: a cross-entropy of ln 2, nothing for the second class; Dice 2 * 1 / (2 + 2).
        assert found.tolist() == pytest.approx([math.log(2) + 0.5], abs=1e-3)

    def test_what_is_unknown_is_neither_right_nor_wrong(self) -> None:
        loss = LearningLoss(dice=1.0, coarse_dice=1.0, coarse_bce=1.0, coarse_focal=1.0)
        shares = torch.zeros(1, 2, 2, 2)
        shares[0, :, 0] = 1
        counted = torch.ones(1, 2, 2, 2, dtype=torch.bool)
        counted[0, 1] = False  # nobody can tell whether the second class is there
        counted[0, 0, 1, 1] = False
        maps = torch.zeros(1, 2, 2, 2, requires_grad=True)
        loss.of_maps(maps, shares, counted).sum().backward()
        assert maps.grad is not None
        assert bool(((maps.grad != 0) == counted).all())

    def test_a_class_that_is_absent_costs_where_it_is_claimed(self) -> None:
        loss = LearningLoss(dice=1.0, coarse_dice=1.0, coarse_bce=1.0)
        nothing, everything = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)
        claimed, silent = (loss.of_maps(torch.full((1, 1, 2, 2), x), nothing, everything) for x in (5.0, -5.0))
        assert claimed.item() == pytest.approx(5, abs=0.01)
        assert silent.item() == pytest.approx(0, abs=0.01)
