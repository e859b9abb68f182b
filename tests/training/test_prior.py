"""Where things are likely to be, fitted in closed form."""

import numpy as np
import torch

from palpate.models.prompt_predictor import CellPrior, Items, PromptPredictor, peak_boxes
from palpate.training.prior import Labelled, fit


def scene(seed: int, *, with_object: bool = True) -> Labelled:
    """Noise, and a square of 4 x 4 cells on which the first of eight features is higher; the right half is no image."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(8, 16, 16)).astype(np.float32))
    shares = torch.zeros(1, 16, 16)
    if with_object:
        top, left = rng.integers(0, 12), rng.integers(0, 8)
        shares[0, top : top + 4, left : left + 4] = 1
        features[0] += 4 * shares[0]
    on_image = torch.zeros(16, 16, dtype=torch.bool)
    on_image[:, :12] = True
    return Labelled(features, shares, on_image)


def fitted(*scenes: Labelled) -> CellPrior:
    prior = CellPrior(classes=1, channels=8, window=3)
    fit(prior, [lambda one=one: one for one in scenes], heed=lambda: None)
    return prior


def test_it_finds_in_a_new_image_what_it_was_shown() -> None:
    prior, new = fitted(*(scene(i) for i in range(6)), scene(6, with_object=False)), scene(99)
    found = prior(new.features[None], Items.every(1, 1))[0, 0] > 0
    truth = new.shares[0] > 0
    assert 2 * float((found & truth).sum()) / float(found.sum() + truth.sum()) > 0.8


def test_it_is_the_ridge_regression_of_weighted_cells() -> None:
    """Solved again by least squares over all cells, each with its weight."""
    scenes = [scene(0), scene(1)]
    prior = fitted(*scenes)
    rows, wanted, weights = [], [], []
    for one in scenes:
        x = prior.described(one.features[None])[0][:, one.on_image].T
        y = one.shares[0][one.on_image] > 0.5
        rows.append(x), wanted.append(2.0 * y - 1), weights.append(0.5 / len(x) + 0.5 / y.sum() * y)
    x, y, w = torch.cat(rows).double(), torch.cat(wanted).double(), torch.cat(weights).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    solved = torch.linalg.solve(
        (x * w[:, None]).T @ x + 0.01 * 2 * torch.eye(17, dtype=torch.float64), (x * w[:, None]).T @ y
    )
    assert torch.allclose(prior.weight[0].double(), solved[:-1], atol=1e-4)
    offset = float(solved[-1]) - float(prior.offset[0])  # the border was moved by one of the steps that are tried
    assert abs(offset * 20 - round(offset * 20)) < 1e-3


def test_it_is_the_same_each_time() -> None:
    scenes = [scene(i) for i in range(3)]
    assert torch.equal(fitted(*scenes).weight, fitted(*scenes).weight)


def test_a_class_that_nobody_labelled_is_found_nowhere() -> None:
    prior = fitted(scene(0, with_object=False))
    assert not bool((prior(scene(1).features[None], Items.every(1, 1)) > 0).any())


def test_the_heaviest_part_gives_the_box() -> None:
    maps = torch.full((2, 1, 8, 8), -1.0)
    maps[0, 0, 1:3, 2:6] = 0.5  # 8 cells of 0.5
    maps[0, 0, 6, 6] = 3.0  # one of 3
    assert peak_boxes(maps).tolist() == [[0.25, 0.125, 0.5, 0.25], [0.25, 0.25, 0.5, 0.5]]


def test_before_training_a_predictor_says_what_its_prior_says() -> None:
    torch.manual_seed(0)
    predictor = PromptPredictor(classes=1, prior=True, tokens=4, channels=8, heads=2, mlp_channels=8).eval()
    prior = predictor.prior
    assert prior is not None
    prior.window = 3
    prior.load_state_dict(fitted(*(scene(i) for i in range(6))).state_dict())
    new = scene(99)
    items = Items.every(1, 1)
    said = predictor(new.features[None], items=items, dense=torch.zeros(1, 8))
    map_of = prior(new.features[None], items)
    assert torch.allclose(said.boxes, peak_boxes(map_of).clamp(0.004, 0.996), atol=1e-5)
    assert torch.allclose(said.mask_logits[0, 0, ::4, ::4].mean(), 5 * map_of.mean(), atol=0.3)
