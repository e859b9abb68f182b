"""Where each class is, on a map of the embedding's cells: the first guess, from which a box for the decoder follows.

A small convolutional network (ours; the papers' predictors are in `palpate.models.prompt_predictor`):

    cells of the embedding        standardised channel by channel; with their x and y 258 -> 64 by a 1 x 1 convolution
    where in the image            a quarter of the rows and columns; residual 3 x 3 convolutions, dilated 1, 2, 4 times
    what is around                half of them; the same, with what was found at a quarter
    where it ends                 all of them; the same once, with what was found at half; a logit for each class

The box of a class is the one around the heaviest connected part of its map, as far as cells are not much less likely
than the likeliest. Two things tell the decoder what is asked of it: tokens of each class, which do not depend on the
image ("a ring, and not what is in it"), and marks on the box's corners ("a guess; nobody drew this").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu, interpolate

from palpate.errors import SettingError
from palpate.models.prompt_predictor import BOX_TOKENS, Items, LearnedPrompts

DILATIONS = ((1,), (1, 2, 4), (1, 2, 4))
"""Of the convolutions at full, half and quarter resolution; the last see 15 x 15 of 16 x 16 cells."""

AS_LIKELY = 0.15
"""How likely a cell must be, as a share of the likeliest, to belong to the box. Where several classes look alike none
is likely, and a fixed bound would leave a crumb of each; and a box too large does less harm than one too small."""


class Localiser(nn.Module):
    """A map for each class; `mask_scale` times as fine as the cells when it is handed on as prompts.

    `tokens` counts those of a class, the two of its box among them, as for a `PromptPredictor`. `placed` says
    whether it goes by where in the image a cell lies (1 or 0), as it was trained.

    Raises:
        SettingError: no class, or fewer than two tokens.
    """

    mean: Tensor
    scale: Tensor
    placed: Tensor

    def __init__(
        self,
        *,
        classes: int,
        tokens: int = 4,
        channels: int = 256,
        mask_scale: int = 4,
        hidden: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if classes < 1:
            raise SettingError("a localiser needs at least one class to look for")
        if tokens < BOX_TOKENS:
            raise SettingError(f"a class needs at least {BOX_TOKENS} tokens, for its box; got {tokens}")
        self.channels, self.classes, self.mask_scale = channels, classes, mask_scale
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("placed", torch.ones(()))
        self.dropout = nn.Dropout2d(dropout)
        self.into = nn.Conv2d(channels + 2, hidden, 1)
        self.scales = nn.ModuleList(
            [nn.Sequential(*(_Residual(hidden, dilation) for dilation in some)) for some in DILATIONS]
        )
        self.out = nn.Conv2d(hidden, classes, 1)
        # Nothing is anywhere, until training says so; and what tells classes apart begins small, not to disturb.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast("Tensor", self.out.bias))
        self.class_tokens = nn.Parameter(0.02 * torch.randn(classes, tokens - BOX_TOKENS, channels))
        self.marks = nn.Parameter(torch.zeros(classes, BOX_TOKENS, channels))

    def maps(self, features: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image a_class row column"]:
        """A logit for each class and cell of each image."""
        standard = (features - self.mean[:, None, None]) / self.scale[:, None, None]
        rows, columns = (torch.linspace(-1, 1, extent).to(standard) for extent in standard.shape[-2:])
        places = torch.stack([rows[:, None].expand(-1, len(columns)), columns.expand(len(rows), -1)])
        places = self.placed * places.expand(len(standard), -1, -1, -1)
        cells = self.into(torch.cat([self.dropout(standard), places], dim=1))
        scales = [cells]
        for _ in DILATIONS[1:]:
            scales.append(avg_pool2d(scales[-1], 2, ceil_mode=True))
        found: Tensor | None = None
        for layers, seen in zip(reversed(self.scales), reversed(scales), strict=True):
            if found is not None:
                seen = seen + interpolate(found, seen.shape[-2:], mode="bilinear", align_corners=False)
            found = layers(seen)
        assert found is not None
        return self.out(gelu(found))

    def forward(
        self,
        features: Float[Tensor, "image channel row column"],
        levels: Sequence[Tensor] = (),
        *,
        items: Items,
        dense: Tensor | None = None,
    ) -> LearnedPrompts:
        """Prompts for each item. `levels` and `dense` are what a `PromptPredictor` gets, and not looked at."""
        return self.prompts(self.maps(features.float()), items)

    def prompts(
        self,
        maps: Float[Tensor, "image a_class row column"],
        items: Items,
        *,
        boxes: Float[Tensor, "item 4"] | None = None,
    ) -> LearnedPrompts:
        """What maps say of each item: the box (unless others are given), the class's tokens, and the map as a coarse
        mask."""
        own = self.coarse_masks(maps, items)
        return LearnedPrompts(
            boxes=peak_boxes(own) if boxes is None else boxes,
            tokens=self.class_tokens[items.class_index],
            mask_logits=own,
            marks=self.marks[items.class_index],
        )

    def coarse_masks(
        self, maps: Float[Tensor, "image a_class row column"], items: Items
    ) -> Float[Tensor, "item 1 mask_row mask_column"]:
        """Each item's own map, as fine as mask prompts are."""
        own = maps[items.image_index, items.class_index][:, None]
        if self.mask_scale == 1:
            return own
        return interpolate(own, scale_factor=self.mask_scale, mode="bilinear", align_corners=False)


class _Residual(nn.Module):
    """A 3 x 3 convolution of what was normalised, added to its input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)

    def forward(self, cells: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image channel row column"]:
        """As many cells as before."""
        return cells + self.convolution(gelu(self.norm(cells)))


def peak_boxes(
    maps: Float[Tensor, "item 1 row column"], points: Sequence[Float[Tensor, "_ 2"]] | None = None
) -> Float[Tensor, "item 4"]:
    """The box around one connected part of each map: corner and size in shares of the canvas.

    Parts are where the probability is at least `AS_LIKELY` times the highest. It is the part on which most of an item's
    `points` lie (x, y in shares of the canvas), and else the heaviest, by how much its logits are above that. A map of
    numbers that are not finite has the whole canvas: training tells by its loss what went wrong.
    """
    found: list[list[float]] = []
    for i, plane in enumerate(maps[:, 0].detach().cpu().double().numpy()):
        if not np.isfinite(plane).all():
            found.append([0.0, 0.0, 1.0, 1.0])
            continue
        least = np.log(AS_LIKELY) - np.logaddexp(0, -plane.max())  # the logarithm, so that nothing vanishes
        plane = plane - (least - np.log1p(-np.exp(least)))
        labels, count = cast("tuple[np.ndarray, int]", ndimage.label(plane > 0))
        rows, columns = plane.shape
        weights = np.asarray(ndimage.sum_labels(plane, labels, range(1, count + 1)))
        if points is not None and len(points[i]):
            xs, ys = (points[i].detach().cpu().numpy() * (columns, rows)).astype(int).T
            on = labels[ys.clip(0, rows - 1), xs.clip(0, columns - 1)]
            hits = np.bincount(on, minlength=count + 1)[1:]
            if hits.any():
                weights = np.where(hits == hits.max(), weights, -np.inf)
        ys, xs = ndimage.find_objects(labels)[int(np.argmax(weights))]
        # As boxes are drawn: up to the last pixel inside.
        width, height = (xs.stop - 1 - xs.start) / columns, (ys.stop - 1 - ys.start) / rows
        found.append([xs.start / columns, ys.start / rows, width, height])
    return torch.tensor(found, dtype=torch.float32, device=maps.device)
