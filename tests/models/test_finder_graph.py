"""The box around a map's heaviest part as a graph of tensors, beside the one by SciPy."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from palpate.models.finder_graph import HeaviestBox
from palpate.models.localiser import peak_boxes


def test_a_spiral_is_one_part() -> None:
    """Its ends are far from one another; beside it lies a lighter dot, one cell away."""
    spiral = [
        "#########.",
        "........#.",
        "######..#.",
        "#....#..#.",
        "#.##.#..#.",
        "#.#..#..#.",
        "#.####..#.",
        "#.......#.",
        "#########.",
        "..........",
        "...#......",
    ]
    logits = torch.tensor([[4.0 if cell == "#" else -9.0 for cell in row] for row in spiral])[None, None]
    box = HeaviestBox()(logits)
    torch.testing.assert_close(box, torch.tensor([[0, 0, 8 / 10, 8 / 11]]))
    torch.testing.assert_close(box, peak_boxes(logits))


@pytest.mark.parametrize("level", [-60.0, -8.0, 0.0, 8.0])
def test_the_box_is_the_one_by_scipy(level: float) -> None:
    """On smooth maps, most of several parts, from those that find nothing anywhere to those sure of everything."""
    rng = np.random.default_rng(int(level) % 7)
    coarse = torch.from_numpy(rng.normal(level, 4, (40, 1, 7, 6)).astype(np.float32))
    maps = interpolate(coarse, size=(28, 36), mode="bilinear")
    torch.testing.assert_close(HeaviestBox()(maps), peak_boxes(maps))


def test_of_parts_that_weigh_the_same_it_is_the_first() -> None:
    logits = torch.full((1, 1, 5, 7), -9.0)
    logits[0, 0, 1, 4:6] = logits[0, 0, 3, 1:3] = 2.0
    expected = torch.tensor([[4 / 7, 1 / 5, 1 / 7, 0]])
    torch.testing.assert_close(HeaviestBox()(logits), expected)
    torch.testing.assert_close(peak_boxes(logits), expected)
