"""Prompts that a network learns: it looks at the image's embedding and says where its classes are.

Wahd et al., "Sam2Rad: a segmentation model for medical images with learnable prompts", 2024, arXiv 2409.06821. Each
class has a row of query tokens. Two-way attention between them and the image's cells turns the first two into a box and
leaves the others free; the image's cells become a coarse mask. Box, free tokens and mask then prompt a SAM-type
decoder as if a person had drawn them, and what a person does draw goes in beside them.

    queries                     class x token x 256
    blocks                      queries <-> cells of the embedding (`linear`: once; `high-res`: three levels)
    box head                    2 tokens -> upper left corner and size, in shares of the canvas
    mask head                   cells -> logits of a coarse mask
    decoder                     [box corners, free tokens, a person's tokens] and the mask added to the embedding

Both variants of the authors' code: `linear` is the paper's figure 3, `high-res` their default since November 2024. A
third one, `localiser`, is ours and lives in `palpate.models.localiser`.
Trainable parameters, without the queries: 1,896,389 for `linear`; for `high-res` 5,080,517 (SAM 2), 5,449,157 (ViT-B),
5,580,229 (ViT-L), 5,711,301 (ViT-H), 5,219,781 (TinyViT: MobileSAM, LiteMedSAM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayAttentionBlock

from palpate.errors import SettingError
from palpate.models.cards import Variant

BOX_TOKENS = 2
"""The first two tokens of a class become its box."""


@dataclass(frozen=True, eq=False)
class Items:
    """What is looked for where: item i is class `class_index[i]` on image `image_index[i]`."""

    image_index: Int[Tensor, " item"]
    class_index: Int[Tensor, " item"]

    @classmethod
    def every(cls, images: int, classes: int, device: torch.device | None = None) -> Items:
        """Every class of image 0, every class of image 1, ..."""
        image_index = torch.arange(images, device=device).repeat_interleave(classes)
        return cls(image_index, torch.arange(classes, device=device).repeat(images))

    def __len__(self) -> int:
        """How many there are."""
        return len(self.image_index)

    def at(self, chosen: slice | Sequence[int]) -> Items:
        """Some of them."""
        picked = chosen if isinstance(chosen, slice) else list(chosen)
        return Items(self.image_index[picked], self.class_index[picked])


@dataclass(frozen=True, eq=False)
class LearnedPrompts:
    """What the predictor says of each item.

    - `boxes` (item, 4): x and y of the upper left corner, width and height, each 0 to 1, in shares of the canvas.
    - `tokens` (item, token, channel): the free tokens, without the two of the box.
    - `mask_logits` (item, 1, mask row, mask column): a coarse mask on the grid of mask prompts.
    - `marks` (item, 2, channel) are added to the tokens of the box's corners; None: they are as a person's.
    """

    boxes: Float[Tensor, "item 4"]
    tokens: Float[Tensor, "item token channel"]
    mask_logits: Float[Tensor, "item 1 mask_row mask_column"]
    marks: Float[Tensor, "item 2 channel"] | None = None

    def corners(self) -> Float[Tensor, "item 4"]:
        """The boxes as x_min, y_min, x_max, y_max, in shares of the canvas's side.

        The right and lower edge may lie beyond the canvas, up to 2, as in the authors' code.
        """
        return torch.cat([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], dim=1)

    def at(self, chosen: Sequence[int]) -> LearnedPrompts:
        """Those of some items."""
        picked = list(chosen)
        marks = None if self.marks is None else self.marks[picked]
        return LearnedPrompts(self.boxes[picked], self.tokens[picked], self.mask_logits[picked], marks)


class BoxHead(nn.Module):
    """Two tokens to a box."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(BOX_TOKENS * channels, channels)
        self.last = nn.Linear(channels, 4)

    def forward(self, tokens: Float[Tensor, "item 2 channel"]) -> Float[Tensor, "item 4"]:
        """Upper left corner, width and height, whose sigmoids are shares of the canvas."""
        return self.last(relu(self.first(tokens.flatten(1))))


class MaskHead(nn.Module):
    """Cells to the logits of a coarse mask, `scale` times as many rows and columns."""

    def __init__(self, channels: int, *, scale: int, hidden: int = 64) -> None:
        super().__init__()
        self.scale = scale
        wide, narrow = nn.Conv2d(channels, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 3, padding=1)
        self.layers = nn.ModuleList([wide, narrow])
        self.dropout = nn.Dropout2d(0.1)
        self.final = nn.Conv2d(hidden, 1, 1)
        for layer in (wide, narrow, self.final):
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, cells: Float[Tensor, "item channel row column"]) -> Float[Tensor, "item 1 mask_row mask_column"]:
        """Logits, without a sigmoid: they go to the prompt encoder as a mask prompt does."""
        for layer in self.layers:
            cells = self.dropout(relu(layer(cells)))
        logits = self.final(cells)
        if self.scale == 1:
            return logits
        return interpolate(logits, scale_factor=self.scale, mode="bilinear", align_corners=False)


class PromptPredictor(nn.Module):
    """Learned queries for each class, and the network that turns them into prompts.

    - `variant` is `linear` (one block on the embedding) or `high-res` (one block for each of three levels, coarse
      to fine; the embedding, then the two `levels` of the model's `ImageEmbedding`).
    - `level_channels` are the channels of those levels; empty for `linear`.
    - `mask_scale` is the side of the mask prompts' grid over that of the last level's.
    - `tokens` counts those of a class, the two of its box among them (10 in the paper's code).

    Raises:
        SettingError: fewer than two tokens, no class, or levels that do not go with the variant.
    """

    def __init__(
        self,
        *,
        classes: int,
        variant: Variant = "linear",
        level_channels: Sequence[int] = (),
        mask_scale: int = 4,
        tokens: int = 10,
        channels: int = 256,
        heads: int = 8,
        mlp_channels: int = 2048,
    ) -> None:
        super().__init__()
        if classes < 1:
            raise SettingError("a prompt predictor needs at least one class to look for")
        if tokens < BOX_TOKENS:
            raise SettingError(f"a class needs at least {BOX_TOKENS} tokens, for its box; got {tokens}")
        if (variant == "high-res") != (len(level_channels) == 2):
            raise SettingError("high-res needs two levels beside the embedding, and linear none")
        self.variant: Variant = variant
        self.queries = nn.Parameter(torch.randn(classes, tokens, channels) / math.sqrt(channels))
        inputs = (channels, *level_channels)
        # None where a level has the right number of channels already, as in the authors' code.
        self.channel_adapters = nn.ModuleDict(
            {str(i): nn.Conv2d(count, channels, 1) for i, count in enumerate(inputs) if count != channels}
        )
        config = SamMaskDecoderConfig(hidden_size=channels, num_attention_heads=heads, mlp_dim=mlp_channels)
        config._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
        # Only the first of three blocks attends without positions and without a residual; a lone block has both.
        self.blocks = nn.ModuleList(
            [
                SamTwoWayAttentionBlock(config, skip_first_layer_pe=len(inputs) > 1 and i == 0)
                for i in range(len(inputs))
            ]
        )
        for block in self.blocks:
            for norm in (block.layer_norm1, block.layer_norm2, block.layer_norm3, block.layer_norm4):
                norm.eps = 1e-5  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        self.box_head = BoxHead(channels)
        self.mask_head = MaskHead(channels, scale=mask_scale)

    @property
    def classes(self) -> int:
        """How many classes it looks for."""
        return len(self.queries)

    def forward(
        self,
        features: Float[Tensor, "image channel row column"],
        levels: Sequence[Float[Tensor, "image _ _ _"]] = (),
        *,
        items: Items,
        dense: Float[Tensor, "1 channel"],
    ) -> LearnedPrompts:
        """Prompts for each item. `dense` stands for "no mask given" in the model's prompt encoder.

        `linear` does not look at the levels.
        """
        channels = int(features.shape[1])  # in a graph that is traced extents are tensors; these stay as they are
        tokens = self.queries[items.class_index]
        positions = sine_1d(int(tokens.shape[1]), channels).to(tokens)[None].expand_as(tokens)
        # The dense tokens start as the embedding of "no mask" and carry what a level has found to the next, finer one.
        wide = (features, *levels) if self.variant == "high-res" else (features,)
        if len(wide) != len(self.blocks):
            raise SettingError(f"{self.variant} looks at {len(self.blocks) - 1} levels, got {len(wide) - 1}")
        count = tokens.shape[0]  # and not len(), which a traced graph would take for a constant
        cells = dense.reshape(1, channels, 1, 1).expand(count, -1, *features.shape[-2:])
        for i, (block, level) in enumerate(zip(self.blocks, wide, strict=True)):
            adapted = self.channel_adapters[str(i)](level) if str(i) in self.channel_adapters else level
            rows, columns = (int(extent) for extent in adapted.shape[-2:])
            here = adapted[items.image_index]
            if self.variant == "high-res":
                here = here + interpolate(cells, (rows, columns), mode="nearest")
            grid = sine_2d(rows, columns, channels).to(tokens)
            tokens, flat = _attended(block, tokens, here.flatten(2).transpose(1, 2), positions, grid)
            cells = flat.transpose(1, 2).unflatten(2, (rows, columns))
        boxes, mask_logits = self.box_head(tokens[:, :BOX_TOKENS]).float(), self.mask_head(cells)
        return LearnedPrompts(boxes=boxes.sigmoid(), tokens=tokens[:, BOX_TOKENS:], mask_logits=mask_logits)


def _attended(
    block: nn.Module,
    tokens: Float[Tensor, "item token channel"],
    cells: Float[Tensor, "item cell channel"],
    token_positions: Float[Tensor, "item token channel"],
    cell_positions: Float[Tensor, "cell channel"],
) -> tuple[Float[Tensor, "item token channel"], Float[Tensor, "item cell channel"]]:
    """One two-way block; transformers has a second axis for several prompts of one image."""
    places = cell_positions[None].expand_as(cells)
    tokens, cells, *_ = block(tokens[:, None], cells[:, None], token_positions[:, None], places[:, None], None)
    return tokens[:, 0], cells[:, 0]


def sine_1d(count: int, channels: int) -> Float[Tensor, "count channels"]:
    """Positions 0, 1, ... in interleaved sines and cosines (Vaswani et al. 2017, section 3.5)."""
    frequencies = 10000 ** (-torch.arange(0, channels, 2, dtype=torch.float32) / channels)
    angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def sine_2d(rows: int, columns: int, channels: int) -> Float[Tensor, "cell channels"]:
    """Positions of cells row by row, the first half of the channels from y, the other from x; as in DETR (Carion et
    al. 2020, arXiv 2005.12872), positions from 1, scaled to end at two pi."""
    half = channels // 2

    def along(extent: int) -> Float[Tensor, "extent half"]:
        position = torch.arange(1, extent + 1, dtype=torch.float32) / (extent + 1e-6) * 2 * math.pi
        exponent = 2 * (torch.arange(half) // 2) / half
        angles = position[:, None] / 10000**exponent
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)

    y = along(rows)[:, None].expand(-1, columns, -1)
    x = along(columns)[None].expand(rows, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)
