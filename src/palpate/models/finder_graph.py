"""The third verb, of learned prompts: classes are found on an image where nobody has drawn anything.

The predictors of the papers are plain networks. A localiser's box goes around the heaviest connected part of its map,
which a graph of tensors has to find without SciPy: every cell of the map gets a number, and hands it on to its
neighbours for as long as one of them has a lower one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import cast, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from palpate.models.learned import Finder
from palpate.models.localiser import AS_LIKELY, Localiser
from palpate.models.prompt_predictor import Items, LearnedPrompts, PromptPredictor


class FinderGraph(nn.Module):
    """Classes by their numbers, and what is known of one image, in; a mask of each class out."""

    def __init__(self, finder: Finder) -> None:
        super().__init__()
        self.finder = finder
        self.decoder = finder.decoder  # the finder does not own it, and whoever traces this has to see its weights
        looks_at = isinstance(finder.predictor, PromptPredictor) and len(finder.predictor.blocks) - 1
        self.levels_read = max(int(looks_at), self.decoder.levels_read)
        self.heaviest = HeaviestBox()

    def forward(
        self, classes: Int[Tensor, " item"], features: Float[Tensor, "1 channel row column"], *levels: Tensor
    ) -> tuple[Float[Tensor, "item 1 mask_row mask_column"], Float[Tensor, "item 1"], Float[Tensor, " item"]]:
        """Logits, predicted IoU, and object logits: above 0 where the class is there."""
        items = Items(torch.zeros_like(classes), classes)
        learned = self._learned(features, levels[: self.levels_read], items)
        # Not expanded: OpenVINO adds what it thinks is of one item, and fails for several.
        cells, *several = (x[items.image_index] for x in (features, *levels[: self.decoder.levels_read]))
        logits, ious, objects = self.finder(cells, several, learned=learned)
        return logits[:, None], ious[:, None], objects

    def _learned(self, features: Tensor, levels: tuple[Tensor, ...], items: Items) -> LearnedPrompts:
        localiser = self.finder.predictor
        if not isinstance(localiser, Localiser):
            return self.finder.learned(features, levels, items)
        maps = localiser.maps(features)
        return localiser.prompts(maps, items, boxes=self.heaviest(localiser.coarse_masks(maps, items)))


class HeaviestBox(nn.Module):
    """`palpate.models.localiser.peak_boxes` for maps of finite numbers, without points, as a graph of tensors."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # Deprecated; but ONNX gets a loop from here, and without further packages from nowhere else.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.joined = cast("Callable[[Tensor], Tensor]", torch.jit.script(_joined))

    def forward(self, maps: Float[Tensor, "item 1 row column"]) -> Float[Tensor, "item 4"]:
        """Corner and size in shares of the canvas."""
        rows, columns = (int(extent) for extent in maps.shape[-2:])
        highest = maps.amax(dim=(1, 2, 3), keepdim=True)
        # The logarithm of the least probability, and what is above its logit; see there.
        least = math.log(AS_LIKELY) - relu(-highest) - torch.log1p(torch.exp(-highest.abs()))
        heights = relu(maps - (least - torch.log1p(-torch.exp(least))))
        # A part is called by its first cell, row by row, as its cells that come later have lower numbers.
        numbers = torch.arange(rows * columns, 0, -1, dtype=maps.dtype, device=maps.device).reshape(1, 1, rows, columns)
        first = rows * columns - self.joined(numbers * (heights > 0)).long()
        weights = torch.zeros_like(heights.flatten(1)[:, :1]).expand(-1, rows * columns + 1)
        weights = weights.scatter_add(1, first.flatten(1), heights.flatten(1))
        on_it = (first == weights.argmax(dim=1)[:, None, None, None]).float()[:, 0]
        left, width = _extent(on_it.amax(dim=1))
        top, height = _extent(on_it.amax(dim=2))
        return torch.stack([left, top, width, height], dim=1)


def _extent(covered: Float[Tensor, "item place"]) -> tuple[Float[Tensor, " item"], Float[Tensor, " item"]]:
    """Where the places of 1 begin, and how much further the last one is, in shares of all."""
    count = int(covered.shape[1])
    places = torch.arange(count, dtype=covered.dtype, device=covered.device)
    first = torch.where(covered > 0, places, float(count)).amin(dim=1)
    last = (places * covered).amax(dim=1)
    return first / count, (last - first) / count


@no_type_check  # it is compiled, and what would check its types cannot be
def _joined(numbers: Tensor) -> Tensor:
    """Numbers (item, 1, row, column), 0 outside: each cell has the highest of those that it is connected with."""
    inside = (numbers > 0).to(numbers.dtype)
    before = torch.zeros_like(numbers)
    while bool((before != numbers).any()):
        before = numbers
        across = max_pool2d(numbers, [1, 3], [1, 1], [0, 1])
        along = max_pool2d(numbers, [3, 1], [1, 1], [1, 0])
        numbers = torch.maximum(across, along) * inside
    return numbers


__all__ = ["FinderGraph", "HeaviestBox"]
