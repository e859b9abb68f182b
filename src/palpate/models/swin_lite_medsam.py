"""Swin-LiteMedSAM: windows that shift, skip connections into the mask decoder, and prompts made from the box.

Gao, Lyu, Staring, "Swin-LiteMedSAM: a lightweight box-based segment anything model for large-scale medical image
datasets" (CVPR 2024 challenge "Segment Anything in Medical Images on Laptop", fourth place). The decoder is SAM's
(`palpate.models.sam`) up to its two-way transformer; its upscaling is wider and sees what the encoder saw.

    canvas                                                        3 x 256 x 256
    patch_embed   two convolutions                               64 x 256 x 256
    stage1        merge 2 x 2; 2 blocks of 2 heads              128 x 128 x 128  fine, which the decoder sees as it is
    stage2        merge 2 x 2; 2 blocks of 4 heads              160 x  64 x  64  \\
    stage3        widen; 6 blocks of 5 heads                    320 x  64 x  64   > skip_neck: 256 x 64 x 64
    stage4        mix; 2 blocks of 10 heads                     320 x  64 x  64  /
    neck          two convolutions                              256 x  64 x  64

    the transformer's cells, then skip                          512 x  64 x  64
    upscaling1    a convolution, then twice as fine             128 x 128 x 128
    with fine                                                   256 x 128 x 128
    upscaling2    a convolution, then twice as fine              32 x 256 x 256, of which each mask is a weighted sum

LiteMedSAM's TinyViT has maps of the same sizes after its four stages, so it can stand in the encoder's place.

What of this depends on the image alone is computed once an image, so `skip_neck`, which the authors keep in the
decoder, belongs to the encoder here; and many boxes on one image are answered by one call. Of the authors' 36,767,846
stored numbers 21,129,002 belong to two "prompt generation blocks" that nothing calls, and 49,152 are masks that follow
from the size of a window: neither is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, layer_norm, linear, scaled_dot_product_attention
from transformers.models.sam.modeling_sam import SamLayerNorm

from palpate.models.derived import FromBox
from palpate.models.frame import Frame
from palpate.models.lite_medsam import HEAD_CHANNELS, ConvNorm, Maps, Mlp, PatchEmbed, TinyViT
from palpate.models.prompt_tensors import PromptTensors, prompt_tensors
from palpate.models.promptable import Array, ImageEmbedding, MaskPrediction, PromptBatch
from palpate.models.sam import SamPromptDecoder, from_segment_anything, in_four, renamed, to_segment_anything

EncoderName = Literal["swin", "tinyvit", "half", "quarter", "small", "mini"]
"""Which encoder stands in front of the decoder: the authors', LiteMedSAM's, the same at a half or a quarter of its
size, or one of palpate's two small ones."""

WINDOW = 8
"""Rows and columns of a window; shifted ones are moved by half of it."""


# --- The encoder ------------------------------------------------------------------------------------------------------


class ShiftedWindowAttention(nn.Module):
    """Self-attention within windows of 8 x 8 tokens, 32 channels a head, moved by four tokens if `shifted`.

    The bias of two tokens goes by how many rows and columns lie between them and is the same for all heads. Shifted
    windows wrap around the edge of the map; what the edge parts does not see each other.
    """

    distances: Tensor
    parted: Tensor

    def __init__(self, channels: int, heads: int, *, shifted: bool) -> None:
        super().__init__()
        inner = heads * HEAD_CHANNELS  # as wide as the map in the last stage only
        self.heads, self.shift = heads, WINDOW // 2 if shifted else 0
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.out = nn.Linear(inner, channels)
        self.positions = nn.Parameter(torch.randn(2 * WINDOW - 1, 2 * WINDOW - 1))
        self.register_buffer("distances", _distances(), persistent=False)
        self.register_buffer("parted", _parted(self.shift), persistent=False)

    def forward(self, x: Float[Tensor, "image row column channel"]) -> Float[Tensor, "image row column channel"]:
        """What each token gathers from its window; the caller adds it to the input."""
        images, rows, columns, _ = x.shape
        down, across = int(rows) // WINDOW, int(columns) // WINDOW  # while a graph is traced they are tensors
        y = self.norm(x)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), dims=(1, 2))
        y = y.unflatten(2, (across, WINDOW)).unflatten(1, (down, WINDOW)).transpose(2, 3).flatten(3, 4)
        query, key, value = (
            part.unflatten(-1, (self.heads, HEAD_CHANNELS)).transpose(-2, -3) for part in self.qkv(y).chunk(3, dim=-1)
        )
        bias = self.positions.flatten()[self.distances].to(query.dtype)
        if self.shift:
            bias = bias.masked_fill(self._unseen(down, across), -math.inf)[:, :, None]
        y = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        y = self.out(y.transpose(-2, -3).flatten(-2))
        y = y.unflatten(3, (WINDOW, WINDOW)).transpose(2, 3).reshape(images, rows, columns, -1)
        return y.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else y

    def _unseen(self, down: int, across: int) -> Bool[Tensor, "down across token token"]:
        """Which pairs of a window's tokens lie on different sides of the image: in the last row and column of them."""
        last_row, last_column = (
            torch.arange(count, device=self.parted.device) == count - 1 for count in (down, across)
        )
        rows, columns = last_row[:, None, None, None], last_column[:, None, None]
        return (rows & self.parted[0]) | (columns & self.parted[1])


def _distances() -> Tensor:
    """For each query and key the place in the table of (key's row - query's row, key's column - query's column)."""
    row, column = (each.flatten() for each in torch.meshgrid(2 * [torch.arange(WINDOW)], indexing="ij"))
    rows, columns = (at[None, :] - at[:, None] + WINDOW - 1 for at in (row, column))
    return rows * (2 * WINDOW - 1) + columns


def _parted(shift: int) -> Bool[Tensor, "2 token token"]:
    """Pairs of tokens of which one wrapped around the lower edge, and those of which one wrapped around the right."""
    row, column = (each.flatten() for each in torch.meshgrid(2 * [torch.arange(WINDOW)], indexing="ij"))
    wrapped = torch.stack([row, column]) >= WINDOW - shift
    return wrapped[:, :, None] != wrapped[:, None, :]


class SwinBlock(nn.Module):
    """Attention within windows, a depthwise convolution across them, then the MLP; channels last."""

    def __init__(self, channels: int, heads: int, *, shifted: bool) -> None:
        super().__init__()
        self.attn = ShiftedWindowAttention(channels, heads, shifted=shifted)
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Float[Tensor, "image row column channel"]) -> Float[Tensor, "image row column channel"]:
        """Refined features of the same shape."""
        x = x + self.attn(x)
        # As in TinyViT, neither a residual nor an activation around this convolution.
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)


class SwinStage(nn.Module):
    """Merge `merged` x `merged` tokens into one, then pairs of a block and a shifted block; channels last."""

    def __init__(self, inputs: int, channels: int, *, merged: int, heads: int, pairs: int) -> None:
        super().__init__()
        self.merged = merged
        self.downsample = nn.Linear(inputs * merged**2, channels)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(*(SwinBlock(channels, heads, shifted=shifted) for shifted in (False, True)))
                for _ in range(pairs)
            )
        )

    def forward(self, x: Float[Tensor, "image row column inputs"]) -> Float[Tensor, "image row2 column2 channel"]:
        """The stage's map."""
        if (size := self.merged) != 1:
            images, rows, columns, inputs = x.shape
            x = x.view(images, rows // size, size, columns // size, size, inputs)
            # Channel by channel, and row by row within each.
            x = x.permute(0, 1, 3, 5, 2, 4).reshape(images, rows // size, columns // size, inputs * size**2)
        return self.blocks(self.downsample(x))


class SwinEncoder(nn.Module):
    """The image encoder of Swin-LiteMedSAM: a grid of one cell for 4 x 4 pixels.

    `widths` are the channels of the stem and of the four stages; of the stages, `heads` the heads of attention and
    `pairs` how many pairs of blocks. A canvas must have a height and width that are multiples of 32, so that windows
    fill the grid.

    With `coarse` the last two stages work on a grid of 8 x 8 pixels a cell, where a token costs a quarter as much in
    all; the second stage's map, which is finer, is added to theirs before the neck (a feature pyramid, Lin et al.
    2017). Such a canvas must have a height and width that are multiples of 64.
    """

    stride = 4

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 160, 320, 320),
        heads: Sequence[int] = (2, 4, 5, 10),
        pairs: Sequence[int] = (1, 1, 3, 1),
        channels: int = 256,
        coarse: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.widths = channels, tuple(widths[1:])
        self.patch_embed = PatchEmbed(widths[0], "pointwise")
        stages = [
            SwinStage(inputs, outputs, merged=merged, heads=of_stage, pairs=some)
            for inputs, outputs, merged, of_stage, some in zip(
                widths[:-1], widths[1:], (2, 2, 2 if coarse else 1, 1), heads, pairs, strict=True
            )
        ]
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.lateral = nn.Conv2d(widths[2], widths[-1], 1) if coarse else None
        self.neck = _neck(widths[-1], channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if "bias" in dict(module.named_parameters()):
                    nn.init.zeros_(module.bias)

    def forward(self, canvas: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image channel row column"]:
        """Features of each canvas, on a grid of (height / 4, width / 4)."""
        return self.neck(self.maps(canvas).late)

    def maps(self, canvas: Float[Tensor, "image 3 height width"]) -> Maps:
        """The maps of the four stages; coarse ones are brought to the grid of the features."""
        x = self.patch_embed(canvas.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        found: list[Tensor] = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
            found.append(x.permute(0, 3, 1, 2))
        if self.lateral is not None:
            early = found[1]
            found[2:] = [interpolate(each, early.shape[-2:], mode="bilinear") for each in found[2:]]
            found[3] = found[3] + self.lateral(early)
        return Maps(*found)


_ENCODERS: dict[EncoderName, Callable[[], SwinEncoder | TinyViT]] = {
    "swin": SwinEncoder,
    "tinyvit": TinyViT,
    "half": partial(TinyViT, shrunk=2),
    "quarter": partial(TinyViT, shrunk=4),
    # of the authors' blocks, palpate's own sizes
    "small": partial(SwinEncoder, widths=(32, 64, 128, 256, 256), heads=(1, 2, 4, 8), coarse=True),
    "mini": partial(SwinEncoder, widths=(16, 32, 64, 128, 128), heads=(1, 2, 4, 4), pairs=(1, 1, 1, 1), coarse=True),
}


def _neck(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 1, bias=False),
        SamLayerNorm(channels, data_format="channels_first"),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        SamLayerNorm(channels, data_format="channels_first"),
    )


# --- The decoder ------------------------------------------------------------------------------------------------------


class SkipPromptDecoder(SamPromptDecoder):
    """SAM's prompt encoder and mask decoder, but masks are made from what the encoder saw as well.

    `fine_channels` are those of the encoder's first map. An embedding's first two levels must be that map and the
    skip connection, of which there are as many channels as features.
    """

    levels_read = 2

    def __init__(
        self, *, canvas_size: int, grid_stride: int, fine_channels: int = 128, channels: int = 256, **sam: int
    ) -> None:
        super().__init__(canvas_size=canvas_size, grid_stride=grid_stride, channels=channels, **sam)
        self.channels = channels
        decoder = self.mask_decoder
        del decoder.upscale_conv1, decoder.upscale_layer_norm, decoder.upscale_conv2
        decoder.upscaling1 = _upscaling(2 * channels, channels, channels // 2)
        decoder.upscaling2 = _upscaling(channels // 2 + fine_channels, channels // 4, channels // 8)

    def _masks(
        self,
        cells: Float[Tensor, "object cell channel"],
        tokens: Float[Tensor, "object mask channel"],
        wanted: slice,
        levels: Sequence[Tensor],
    ) -> Float[Tensor, "object mask mask_row mask_column"]:
        """Logits of the wanted masks, channels last and part by part as SAM's (`SamPromptDecoder._masks`).

        A convolution of what two maps say side by side is the sum of a linear layer of each, so they are not copied
        into one.
        """
        decoder, side = self.mask_decoder, self.grid_size
        fine, skip = levels[: self.levels_read]
        # channel, (row, half row), (column, half column) -> cell, one of four parts, channel
        placed = fine.unflatten(3, (side, 2)).unflatten(2, (side, 2)).permute(0, 2, 4, 3, 5, 1)
        first, second = (decoder.get_submodule(name) for name in ("upscaling1", "upscaling2"))
        parts = _upscaled(cells, skip.flatten(2).transpose(1, 2), first, inputs=self.channels)
        parts = _upscaled(parts, placed.flatten(3, 4).flatten(1, 2), second, inputs=self.channels // 2)
        return self._weighted(parts, tokens, wanted)


def _upscaled(
    parts: Float[Tensor, "object *place inputs"],
    seen: Float[Tensor, "any_object *place seen_channel"],
    block: nn.Module,
    *,
    inputs: int,
) -> Float[Tensor, "object *place 4 outputs"]:
    """What `_upscaling` makes of two maps, parts (of `inputs` channels) first, each of its four parts a place."""
    mixed, norm, _, up, _ = cast(
        "tuple[nn.Conv2d, SamLayerNorm, nn.GELU, nn.ConvTranspose2d, nn.GELU]", tuple(block.children())
    )
    # Of sizes as the modules say them, not the tensors: an exported graph would take the latter for something that
    # changes from call to call. The order of the two is part of what the weights were trained with.
    weight = mixed.weight.flatten(1)
    x = linear(parts, weight[:, :inputs]) + linear(seen, weight[:, inputs:], mixed.bias)
    return gelu(in_four(gelu(layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)), up))


def _upscaling(inputs: int, between: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, between, 1),
        SamLayerNorm(between, data_format="channels_first"),
        nn.GELU(),
        nn.ConvTranspose2d(between, outputs, 2, stride=2),
        nn.GELU(),
    )


# --- The model --------------------------------------------------------------------------------------------------------


class SwinLiteMedSAM(nn.Module):
    """A `PromptableModel`: a Swin (or a TinyViT) encodes, and a decoder with skip connections answers.

    It was trained with boxes that come with four points and a scribble. Where a person gives a box alone, they are made
    from the box and from where the canvas is not black; points or a scribble that a person gives take the place of
    those made. A mask prompt is a picture here, 1 on the scribble and 0 elsewhere.

    The encoder's maps `early`, `middle` and `late` go through `skip_neck`. With a plain `SamPromptDecoder` there are no
    skip connections (the paper's table 5 without them).

    With `keep_maps` embeddings hold these maps as they are, and `decode` sends them through `skip_neck`: its weights
    can then be trained on embeddings that were made once. They are half as large again, and answers take longer.
    """

    always_holds = "foreground"
    """What an embedding has beside LiteMedSAM's features; see `palpate.models.weights.encoder_hash`."""

    def __init__(
        self,
        frame: Frame,
        *,
        image_encoder: SwinEncoder | TinyViT,
        prompt_decoder: SamPromptDecoder,
        from_box: FromBox | None = None,
    ) -> None:
        super().__init__()
        self.frame = frame
        self.image_encoder = image_encoder
        self.prompt_decoder = prompt_decoder
        self.from_box = from_box or FromBox()
        self.keep_maps = False
        self.skip_neck = None
        if isinstance(prompt_decoder, SkipPromptDecoder):
            self.skip_neck = _neck(sum(image_encoder.widths[1:]), image_encoder.channels)

    @classmethod
    def untrained(
        cls,
        frame: Frame,
        *,
        encoder: EncoderName = "swin",
        skip: bool = True,
        from_box: FromBox | None = None,
    ) -> SwinLiteMedSAM:
        """The released architecture with random weights; or with another encoder, or with parts of it left out, as in
        the paper's table 5."""
        image_encoder = _ENCODERS[encoder]()
        sizes = {"canvas_size": frame.size, "grid_stride": image_encoder.stride}
        fine = image_encoder.widths[0]
        decoder = SkipPromptDecoder(**sizes, fine_channels=fine) if skip else SamPromptDecoder(**sizes)
        return cls(frame, image_encoder=image_encoder, prompt_decoder=decoder, from_box=from_box)

    def encode(self, canvas: Array) -> ImageEmbedding:
        """Embed canvases of shape (image, 3, height, width), values 0 to 1, as `frame.canvas` makes them.

        Features have shape (image, 256, height / 4, width / 4). Levels are the fine map (image, 128, height / 2,
        width / 2) and the skip connection (as features), if the decoder reads them, and where the canvas is not black
        (image, 1, height, width).

        Raises `ImageError` for any other shape.
        """
        canvas = self.prompt_decoder.checked_canvas(canvas)
        maps = self.image_encoder.maps(canvas)
        levels = [(canvas.mean(dim=1, keepdim=True) > 0).to(canvas)]
        if self.skip_neck is not None:
            several = torch.cat(maps[1:], dim=1)
            levels = [maps.fine, several if self.keep_maps else self.skip_neck(several), *levels]
        return ImageEmbedding(self.image_encoder.neck(maps.late), tuple(levels))

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Predict one mask an object, or three candidates; logits have shape (object, 1 or 3, height, width).

        Raises `PromptError` if the batch holds no prompt at all, or if its parts do not fit together.
        """
        asked = prompt_tensors(
            prompts,
            images=len(embedding),
            mask_size=4 * self.prompt_decoder.grid_size,
            device=self.prompt_decoder.no_mask.device,
        )
        completed = self._completed(embedding, asked)
        if self.skip_neck is not None and self.keep_maps:
            fine, several, *others = (torch.as_tensor(level) for level in embedding.levels)
            embedding = ImageEmbedding(embedding.features, (fine, self.skip_neck(several), *others))
        return self.prompt_decoder.decode(embedding, completed, multimask_output=multimask_output)

    def _completed(self, embedding: ImageEmbedding, asked: PromptTensors) -> PromptBatch:
        """The prompts with those that are made from boxes."""
        inside = (torch.as_tensor(embedding.levels[-1]) > 0)[:, 0].cpu().numpy()
        parts = (None if part is None else part.cpu().numpy() for part in asked)
        return self.from_box.completed(PromptBatch(*parts), inside)


# --- Names ------------------------------------------------------------------------------------------------------------

_BLOCK = "image_encoder.stage*.blocks.*.*."

NAMES = (
    # the authors'                                        palpate's                                 (* is one number)
    ("image_encoder.stage*.downsample.linear.", "image_encoder.stage*.downsample."),
    (f"{_BLOCK}attention_block.fn.norm.", f"{_BLOCK}attn.norm."),
    (f"{_BLOCK}attention_block.fn.fn.to_qkv.", f"{_BLOCK}attn.qkv."),
    (f"{_BLOCK}attention_block.fn.fn.to_out.", f"{_BLOCK}attn.out."),
    (f"{_BLOCK}attention_block.fn.fn.pos_embedding", f"{_BLOCK}attn.positions"),
    (f"{_BLOCK}mlp_block.fn.norm.", f"{_BLOCK}mlp.norm."),
    (f"{_BLOCK}mlp_block.fn.fn.net.0.", f"{_BLOCK}mlp.fc1."),
    (f"{_BLOCK}mlp_block.fn.fn.net.2.", f"{_BLOCK}mlp.fc2."),
    ("mask_decoder.neck.", "skip_neck."),
    ("mask_decoder.output_upscaling1.", "mask_decoder.upscaling1."),
    ("mask_decoder.output_upscaling2.", "mask_decoder.upscaling2."),
)
"""Beginnings of names that differ between the two; whatever is not listed is called the same in both, or as in SAM."""


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights named as in the authors' files, renamed for a `SwinLiteMedSAM`; see `from_segment_anything`."""
    return from_segment_anything({renamed(name, NAMES): tensor for name, tensor in state.items()})


def to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back."""
    backwards = tuple((theirs, ours) for ours, theirs in NAMES)
    return {renamed(name, backwards): tensor for name, tensor in to_segment_anything(state).items()}
