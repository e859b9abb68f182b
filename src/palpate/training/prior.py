"""Fitting a `CellPrior`: from labelled embeddings, in closed form and in seconds, where each class is likely to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from palpate.models.prompt_predictor import CellPrior, Items

RIDGE = 0.01
"""How strongly weights are pulled to zero, of standardised features."""

OFFSETS = tuple(step / 20 for step in range(-16, 17))
"""The borders that are tried; that with the best Dice on the labelled cells is taken."""

LOOKED_AT = 48
"""How many scenes that show a class choose its border."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """An embedded scene: `features` (channel, row, column), the share of each cell that a class covers, as
    (class, row, column), and which cells lie on the image and not beside it."""

    features: Float[Tensor, "channel row column"]
    shares: Float[Tensor, "a_class row column"]
    on_image: Bool[Tensor, "row column"]


def fit(prior: CellPrior, scenes: Sequence[Callable[[], Labelled]], *, heed: Callable[[], None]) -> None:
    """Fit the prior to these scenes, each of which is asked for three times and need not stay in memory.

    In every scene all cells together weigh as much as those on the class, so that a small class counts.
    """
    classes, size = prior.weight.shape
    count, total, squares = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for cells, _ in _cells(prior, scenes, heed):
        count += len(cells)
        total += cells.double().sum(0)
        squares += cells.double().square().sum(0)
    mean = total / max(1, count)
    scale = (squares / max(1, count) - mean.square()).clamp(min=1e-12).sqrt()

    everywhere = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    sums = torch.zeros(size + 1, dtype=torch.float64)
    products = [torch.zeros(size + 1, size + 1, dtype=torch.float64) for _ in range(classes)]
    wanted = torch.zeros(classes, size + 1, dtype=torch.float64)
    for cells, shares in _cells(prior, scenes, heed):
        x = torch.cat([(cells - mean.float()) / scale.float(), torch.ones(len(cells), 1)], dim=1)
        everywhere += (x.T @ x).double() / (2 * len(x))
        sums += x.double().sum(0) / (2 * len(x))
        for i in range(classes):
            on = shares[:, i] > 0.5
            if not bool(on.any()):
                continue
            inside = x[on]
            # Half of the weight lies on all cells; what those of the class get on top makes up the other half.
            products[i] += (inside.T @ inside).double() / (2 * len(inside))
            wanted[i] += inside.double().sum(0) / (2 * len(inside)) + inside.double().sum(0) / len(x)
    pull = RIDGE * max(1, len(scenes)) * torch.eye(size + 1, dtype=torch.float64)
    for i in range(classes):
        solved = torch.linalg.solve(everywhere + products[i] + pull, wanted[i] - sums)
        prior.weight[i] = solved[:-1].float()
        prior.offset[i] = solved[-1].float()
    prior.mean.copy_(mean)
    prior.scale.copy_(scale)
    _place_borders(prior, scenes, heed)


def _cells(
    prior: CellPrior, scenes: Iterable[Callable[[], Labelled]], heed: Callable[[], None]
) -> Iterable[tuple[Float[Tensor, "cell feature"], Float[Tensor, "cell a_class"]]]:
    for ask in scenes:
        heed()
        scene = ask()
        described = prior.described(scene.features[None])[0]
        on_image = scene.on_image.flatten()
        yield described.flatten(1).T[on_image], scene.shares.flatten(1).T[on_image]


def _place_borders(prior: CellPrior, scenes: Sequence[Callable[[], Labelled]], heed: Callable[[], None]) -> None:
    """Move 0 to where the mean Dice is best over scenes that show the class; one that is nowhere stays as it is."""
    classes = len(prior.weight)
    every = Items.every(1, classes)
    dice = np.zeros((classes, len(OFFSETS)))
    seen = np.zeros(classes, dtype=int)
    # From scenes all over the list, until every class has been on enough of them.
    for number in np.random.default_rng(0).permutation(len(scenes)).tolist():
        heed()
        scene = scenes[number]()
        on = scene.shares[:, scene.on_image] > 0.5
        shown = [i for i in np.flatnonzero(on.any(dim=1).numpy()).tolist() if seen[i] < LOOKED_AT]
        if not shown:
            continue
        maps = prior(scene.features[None], every)[:, 0][:, scene.on_image]
        for i in shown:
            seen[i] += 1
            for j, border in enumerate(OFFSETS):
                found = maps[i] > border
                dice[i, j] += 2 * float((found & on[i]).sum()) / float(found.sum() + on[i].sum())
    for i in np.flatnonzero(seen).tolist():
        best = np.flatnonzero(dice[i] == dice[i].max())
        prior.offset[i] -= OFFSETS[int(best[len(best) // 2])]
