"""The losses against their formulas written out in NumPy, and against MONAI where the two define the same."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palpate.errors import SettingError
from palpate.training.losses import (
    LOSSES,
    SMOOTHING,
    Loss,
    binary_cross_entropy,
    dice_loss,
    focal_loss,
    iou_error,
)


def drawn(seed: int, *, soft: bool = False, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets of three items of 5 x 7 pixels; the second target is empty."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(3, 5, 7))
    target = rng.uniform(size=logits.shape) if soft else (rng.uniform(size=logits.shape) < 0.3).astype(float)
    target[1] = 0
    return logits, target


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


class TestFormulas:
    @given(st.integers(0, 999), st.booleans())
    def test_equation_9(self, seed: int, soft: bool) -> None:
        x, g = drawn(seed, soft=soft)
        s = sigmoid(x)
        wanted = -(g * np.log(s) + (1 - g) * np.log(1 - s)).mean(axis=(1, 2))
        assert np.allclose(binary_cross_entropy(tensor(x), tensor(g)).numpy(), wanted, rtol=1e-4)

    @given(st.integers(0, 999), st.booleans())
    def test_equation_10(self, seed: int, soft: bool) -> None:
        x, g = drawn(seed, soft=soft)
        s = sigmoid(x)
        below = (g**2).sum(axis=(1, 2)) + (s**2).sum(axis=(1, 2))
        wanted = 1 - 2 * (g * s).sum(axis=(1, 2)) / below
        assert np.allclose(dice_loss(tensor(x), tensor(g)).numpy(), wanted, atol=1e-4)

    @given(st.integers(0, 999))
    def test_equation_11_is_the_default(self, seed: int) -> None:
        x, g = drawn(seed)
        found = Loss().of(tensor(x), torch.zeros(3), tensor(g))
        wanted = binary_cross_entropy(tensor(x), tensor(g)) + dice_loss(tensor(x), tensor(g))
        assert torch.equal(found, wanted)

    @given(st.integers(0, 999), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), st.sampled_from([0.25, 0.5, 1.0]))
    def test_focal_loss(self, seed: int, gamma: float, alpha: float) -> None:
        x, g = drawn(seed)
        p = np.where(g == 1, sigmoid(x), 1 - sigmoid(x))
        wanted = np.where(g == 1, alpha, 1 - alpha) * (1 - p) ** gamma * -np.log(p)
        found = focal_loss(tensor(x), tensor(g), gamma=gamma, alpha=alpha)
        assert np.allclose(found.numpy(), wanted.mean(axis=(1, 2)), rtol=1e-3, atol=1e-6)

    def test_the_iou_of_the_thresholded_mask_is_what_the_estimate_should_be(self) -> None:
        # Two pixels found, two true, one of them the same: 1 / 3. Nothing against nothing: 1.
        logits = torch.tensor([[[1.0, 1.0, -1.0]], [[-1.0, -1.0, -1.0]]])
        target = torch.tensor([[[0.0, 0.9, 0.6]], [[0.0, 0.4, 0.0]]])
        found = iou_error(torch.tensor([0.5, 0.75]), logits, target)
        assert np.allclose(found.numpy(), [(0.5 - 1 / 3) ** 2, 0.25**2])

    def test_the_estimate_alone_learns_from_its_error(self) -> None:
        logits, estimate = torch.zeros((1, 2, 2), requires_grad=True), torch.zeros(1, requires_grad=True)
        iou_error(estimate, logits, torch.ones((1, 2, 2))).sum().backward()
        assert logits.grad is None
        assert estimate.grad is not None

    def test_empty_against_empty_costs_nothing(self) -> None:
        logits, target = torch.full((1, 4, 4), -100.0), torch.zeros((1, 4, 4))
        assert float(dice_loss(logits, target)) == 0
        assert float(binary_cross_entropy(logits, target)) < 1e-30

    def test_each_weight_multiplies_its_own(self) -> None:
        x, g = (tensor(array) for array in drawn(0))
        iou, other = torch.full((3,), 0.5), tensor(drawn(1, soft=True)[1])
        parts = {
            "bce": binary_cross_entropy(x, g),
            "dice": dice_loss(x, g),
            "soft_dice": dice_loss(x, g, squared=False),
            "focal": focal_loss(x, g),
            "iou": iou_error(iou, x, g),
            "teacher": binary_cross_entropy(x, other),
            "consistency": binary_cross_entropy(x, 1 - other),
        }
        weights = {name: 0.5 + number for number, name in enumerate(parts)}
        found = Loss(**weights).of(x, iou, g, teacher=other, own=1 - other)
        wanted = sum(weight * parts[name] for name, weight in weights.items())
        assert torch.allclose(found, wanted)

    def test_sams_weights(self) -> None:
        x, g = (tensor(array) for array in drawn(0))
        found = LOSSES["dice+focal"].of(x, torch.zeros(3), g)
        assert torch.allclose(found, 20 * focal_loss(x, g) + dice_loss(x, g, squared=False))


@pytest.mark.slow
class TestAgainstMonai:
    """One item at a time: MONAI takes the mean over items."""

    @given(st.integers(0, 999), st.booleans(), st.booleans())
    def test_dice(self, seed: int, soft: bool, squared: bool) -> None:
        from monai.losses.dice import DiceLoss

        x, g = (tensor(array) for array in drawn(seed, soft=soft))
        theirs = DiceLoss(sigmoid=True, squared_pred=squared, smooth_nr=SMOOTHING, smooth_dr=SMOOTHING)
        wanted = [float(theirs(a[None, None], b[None, None])) for a, b in zip(x, g, strict=True)]
        assert np.allclose(dice_loss(x, g, squared=squared).numpy(), wanted, atol=1e-6)

    @given(st.integers(0, 999), st.sampled_from([0.5, 1.0, 2.0]))
    def test_focal(self, seed: int, gamma: float) -> None:
        from monai.losses.focal_loss import FocalLoss

        x, g = (tensor(array) for array in drawn(seed))
        theirs = FocalLoss(gamma=gamma, alpha=0.25)
        wanted = [float(theirs(a[None, None], b[None, None])) for a, b in zip(x, g, strict=True)]
        assert np.allclose(focal_loss(x, g, gamma=gamma).numpy(), wanted, rtol=1e-5, atol=1e-7)


class TestFarLogits:
    @pytest.mark.parametrize("logit", [-100.0, 0.0, 100.0])
    @pytest.mark.parametrize("truth", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    def test_loss_and_gradient_are_finite(self, logit: float, truth: float, gamma: float) -> None:
        logits = torch.full((1, 3, 3), logit, requires_grad=True)
        iou = torch.zeros(1, requires_grad=True)
        target = torch.full((1, 3, 3), truth)
        loss = Loss(focal=1, soft_dice=1, iou=1, teacher=1, consistency=1, focal_gamma=gamma)
        found = loss.of(logits, iou, target, teacher=1 - target, own=target)
        found.sum().backward()
        assert bool(torch.isfinite(found).all())
        assert logits.grad is not None
        assert bool(torch.isfinite(logits.grad).all())

    def test_a_far_wrong_logit_is_still_pulled_back(self) -> None:
        logits = torch.full((1, 3, 3), 100.0, requires_grad=True)
        Loss().of(logits, torch.zeros(1), torch.zeros((1, 3, 3))).sum().backward()
        assert logits.grad is not None
        assert (logits.grad > 0.1).all()  # 1 / 9 a pixel

    def test_half_precision_logits_are_summed_in_full(self) -> None:
        logits = torch.full((1, 300, 300), 8.0, dtype=torch.float16)  # 90,000 pixels: more than float16 can count
        found = Loss().of(logits, torch.zeros(1, dtype=torch.float16), torch.ones((1, 300, 300)))
        assert bool(torch.isfinite(found).all())
        assert float(found) < 0.01


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Loss(dice=-1), "dice must be 0 or more, got -1"),
        (lambda: Loss(bce=math.nan), "bce must be 0 or more"),
        (lambda: Loss(bce=0, dice=0, iou=1), "no loss moves the mask"),
    ],
)
def test_what_is_no_loss_is_told(make: Callable[[], Loss], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        make()
