"""LiteMedSAM: a small TinyViT encoder in front of SAM's prompt encoder and mask decoder.

LiteMedSAM is the baseline of the CVPR 2024 challenge "MedSAM on Laptop", distilled from MedSAM (Ma et al.,
"Segment anything in medical images", Nature Communications 15:654, 2024, arXiv 2304.12306). Its encoder is the
5 M TinyViT (Wu et al., ECCV 2022, arXiv 2207.10666) as MobileSAM uses it (Zhang et al., arXiv 2306.14289),
with one change: it sees 256 x 256 pixels, and its stem does not shrink them.

Read from top to bottom, the file follows the image. For LiteMedSAM and a canvas of 256 x 256:

    canvas                                                       3 x 256 x 256
    patch_embed   two convolutions                              64 x 256 x 256
    layers.0      2 inverted bottlenecks, then halve           128 x 128 x 128
    layers.1      2 blocks, windows of 7 x 7, then halve       160 x  64 x  64
    layers.2      6 blocks, windows of 14 x 14, then widen     320 x  64 x  64
    layers.3      2 blocks, windows of 7 x 7                   320 x  64 x  64
    neck          two convolutions                             256 x  64 x  64

Parameters are named as in the released checkpoints, so the encoder's weights load without renaming.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu, interpolate, linear, pad, scaled_dot_product_attention
from transformers.models.sam.modeling_sam import SamLayerNorm

from palpate.models.frame import Frame
from palpate.models.promptable import Array, ImageEmbedding, MaskPrediction, PromptBatch
from palpate.models.sam import SamPromptDecoder

Stem = Literal["pointwise", "strided"]

HEAD_CHANNELS = 32
"""Channels of one attention head, in every TinyViT and in every stage."""


class ConvNorm(nn.Module):
    """A convolution without bias, then batch normalisation.

    In training mode the normalisation follows the batch; at the batch sizes of fine-tuning (one, two) keep it in
    eval mode.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1):
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Float[Tensor, "image inputs row column"]) -> Float[Tensor, "image outputs row2 column2"]:
        """Convolve, then normalise each channel."""
        return self.bn(self.c(x))


class PatchEmbed(nn.Module):
    """The stem: pixels to `channels` features, at full size ("pointwise") or a quarter of it ("strided")."""

    def __init__(self, channels: int, stem: Stem):
        super().__init__()
        kernel, stride = (1, 1) if stem == "pointwise" else (3, 2)
        self.seq = nn.Sequential(
            ConvNorm(3, channels // 2, kernel, stride=stride),
            nn.GELU(),
            ConvNorm(channels // 2, channels, kernel, stride=stride),
        )

    def forward(self, canvas: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image channel row column"]:
        """Features of each pixel, or of each block of 4 x 4."""
        return self.seq(canvas)


class InvertedBottleneck(nn.Module):
    """MobileNet's block: widen four times, look at the neighbours channel by channel, narrow, add the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ConvNorm(channels, 4 * channels)
        self.conv2 = ConvNorm(4 * channels, 4 * channels, 3, groups=4 * channels)
        self.conv3 = ConvNorm(4 * channels, channels)
        nn.init.zeros_(self.conv3.bn.weight)  # an untrained block passes its input on

    def forward(self, x: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image channel row column"]:
        """Refined features of the same shape."""
        y = gelu(self.conv1(x))
        y = gelu(self.conv2(y))
        return gelu(x + self.conv3(y))  # the activation comes after the sum


class Downsample(nn.Module):
    """Change the number of channels and, with `stride=2`, halve rows and columns ("patch merging")."""

    def __init__(self, inputs: int, outputs: int, *, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride=stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: Float[Tensor, "image inputs row column"]) -> Float[Tensor, "image outputs row2 column2"]:
        """The same maps with `outputs` channels, on the same grid or one half as fine."""
        x = gelu(self.conv1(x))
        x = gelu(self.conv2(x))
        return self.conv3(x)


class ConvStage(nn.Module):
    """The first stage, on the finest grid: inverted bottlenecks only."""

    def __init__(self, channels: int, outputs: int, *, depth: int, stride: int):
        super().__init__()
        self.blocks = nn.Sequential(*(InvertedBottleneck(channels) for _ in range(depth)))
        self.downsample = Downsample(channels, outputs, stride=stride)

    def forward(self, x: Float[Tensor, "image inputs row column"]) -> Float[Tensor, "image outputs row2 column2"]:
        """Refine on the given grid, then move to the next stage's."""
        return self.downsample(self.blocks(x))


class WindowAttention(nn.Module):
    """Self-attention among the tokens of one window, with a learned bias for each distance between two of them."""

    bias_index: Tensor

    def __init__(self, channels: int, window: int):
        super().__init__()
        if channels % HEAD_CHANNELS:
            raise ValueError(f"attention needs a multiple of {HEAD_CHANNELS} channels, got {channels}")
        self.heads = channels // HEAD_CHANNELS
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, window * window))
        # Entry (i, j) says which bias belongs to tokens i and j. The bias is gathered anew in each forward pass, which
        # costs microseconds; a copy kept for eval mode would go stale when weights are loaded into a model.
        self.register_buffer("bias_index", _distance_index(window), persistent=False)

    def forward(self, x: Float[Tensor, "window token channel"]) -> Float[Tensor, "window token channel"]:
        """What each token gathers from its window; the caller adds it to the input."""
        windows, tokens, channels = x.shape
        # The projection is ordered by head: query, key and value of head 0, then those of head 1, ...
        if torch.onnx.is_in_onnx_export():
            query, key, value = self._apart(self.norm(x))
        else:
            qkv = self.qkv(self.norm(x)).view(windows, tokens, self.heads, 3 * HEAD_CHANNELS)
            query, key, value = qkv.transpose(1, 2).split(HEAD_CHANNELS, dim=-1)
        bias = self.attention_biases[:, self.bias_index].to(query.dtype)
        y = scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        return self.proj(y.transpose(1, 2).reshape(windows, tokens, channels))

    def _apart(self, x: Float[Tensor, "window token channel"]) -> list[Float[Tensor, "window head token head_channel"]]:
        """Query, key and value as three projections, which runtimes need not cut and move; the same sums."""
        weight = self.qkv.weight.unflatten(0, (self.heads, 3, HEAD_CHANNELS))
        bias = self.qkv.bias.unflatten(0, (self.heads, 3, HEAD_CHANNELS))
        several = (linear(x, weight[:, i].flatten(0, 1), bias[:, i].flatten()) for i in range(3))
        return [each.view(*x.shape[:2], self.heads, HEAD_CHANNELS).transpose(1, 2) for each in several]


def _distance_index(window: int) -> Tensor:
    """For each pair of a window's tokens (row by row): |row distance| * window + |column distance|."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    row, column = row.flatten(), column.flatten()
    return (row[:, None] - row).abs() * window + (column[:, None] - column).abs()


class Mlp(nn.Module):
    """Normalise, widen four times, narrow: each token on its own."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Float[Tensor, "*place channel"]) -> Float[Tensor, "*place channel"]:
        """The change of each token; the caller adds it to the input."""
        return self.fc2(gelu(self.fc1(self.norm(x))))


class AttentionBlock(nn.Module):
    """TinyViT's block: attention inside windows, a depthwise convolution across them, then the MLP.

    Maps have their channels last here: attention and MLP work on tokens, and the convolution takes the transposed
    view as it is.
    """

    def __init__(self, channels: int, window: int):
        super().__init__()
        self.window = window
        self.attn = WindowAttention(channels, window)
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Float[Tensor, "image row column channel"]) -> Float[Tensor, "image row column channel"]:
        """Refined features of the same shape."""
        if torch.onnx.is_in_onnx_export():
            return self._on_rows(x)
        x = x + self._attend(x)
        # Neither a residual nor an activation around this convolution.
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)

    def _on_rows(self, x: Float[Tensor, "image row column channel"]) -> Float[Tensor, "image row column channel"]:
        """The same, with sums of rows of tokens: runtimes that choose how a map lies in memory move it about less."""
        images, rows, columns, channels = x.shape
        x = x.flatten(1, 2) + self._attend(x).flatten(1, 2)
        x = self.local_conv(x.transpose(1, 2).reshape(images, channels, rows, columns)).flatten(2).transpose(1, 2)
        return (x + self.mlp(x)).reshape(images, rows, columns, channels)

    def _attend(self, x: Float[Tensor, "image row column channel"]) -> Float[Tensor, "image row column channel"]:
        images, rows, columns, channels = x.shape
        size = self.window
        # Windows that hang over the lower or right edge are filled up with zeros *before* the normalisation and
        # without a mask: the filling becomes the normalisation's bias and is attended to. The weights were trained so.
        x = pad(x, (0, 0, 0, -columns % size, 0, -rows % size))
        down, across = x.shape[1] // size, x.shape[2] // size
        x = x.view(images, down, size, across, size, channels).transpose(2, 3)
        x = self.attn(x.reshape(-1, size * size, channels))
        x = x.view(images, down, across, size, size, channels).transpose(2, 3)
        return x.reshape(images, down * size, across * size, channels)[:, :rows, :columns]


class AttentionStage(nn.Module):
    """Attention blocks, then a downsampling unless it is the last stage."""

    def __init__(self, channels: int, *, depth: int, window: int, downsample: Downsample | None):
        super().__init__()
        self.blocks = nn.Sequential(*(AttentionBlock(channels, window) for _ in range(depth)))
        self.downsample = downsample

    def forward(self, x: Float[Tensor, "image inputs row column"]) -> Float[Tensor, "image outputs row2 column2"]:
        """Refine on the given grid, then move to the next stage's, if there is one."""
        x = self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x if self.downsample is None else self.downsample(x)


class Maps(NamedTuple):
    """What an encoder gives after each of its four stages; `fine` is twice as fine as the others."""

    fine: Float[Tensor, "image first fine_row fine_column"]
    early: Float[Tensor, "image second row column"]
    middle: Float[Tensor, "image third row column"]
    late: Float[Tensor, "image fourth row column"]


class TinyViT(nn.Module):
    """The image encoder of LiteMedSAM (`stem="pointwise"`) and of MobileSAM (`stem="strided"`).

    The grid has one cell for `stride` x `stride` pixels: 4 with the pointwise stem, 16 with the strided one.
    A canvas may have any height and width that are multiples of `stride`.

    `widths` are the channels of the four stages; from the second on they must be multiples of 32, the size of an
    attention head. `windows` belong to the last three stages, those with attention.

    With `shrunk` the network sees the canvas at a half or a quarter of its size, so that all stages work on a quarter
    or a sixteenth of the cells. Their maps are enlarged, and a layer that starts at zero adds to the last one what is
    finer and lies on the features' grid: the first stage's map at half size, the stem's at a quarter. All other layers
    are those of the whole network, so that its weights are a start for the smaller one. The canvas must be `shrunk`
    times a multiple of `stride`.
    """

    def __init__(
        self,
        *,
        stem: Stem = "pointwise",
        widths: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        windows: Sequence[int] = (7, 14, 7),
        channels: int = 256,
        shrunk: Literal[1, 2, 4] = 1,
    ):
        super().__init__()
        self.channels = channels
        self.shrunk = shrunk
        self.stride = 4 if stem == "pointwise" else 16
        first, second, third, fourth = widths
        self.widths = (second, third, fourth, fourth)  # of the maps
        self.patch_embed = PatchEmbed(first, stem)
        self.layers = nn.Sequential(
            ConvStage(first, second, depth=depths[0], stride=2),
            AttentionStage(second, depth=depths[1], window=windows[0], downsample=Downsample(second, third, stride=2)),
            # The last step widens without halving, so that the decoder gets a grid of 64 x 64.
            AttentionStage(third, depth=depths[2], window=windows[1], downsample=Downsample(third, fourth, stride=1)),
            AttentionStage(fourth, depth=depths[3], window=windows[2], downsample=None),
        )
        self.neck = nn.Sequential(
            nn.Conv2d(fourth, channels, 1, bias=False),
            SamLayerNorm(channels, data_format="channels_first"),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            SamLayerNorm(channels, data_format="channels_first"),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.lateral = None
        if shrunk > 1:
            self.lateral = nn.Conv2d(second if shrunk == 2 else first, fourth, 1)
            nn.init.zeros_(self.lateral.weight)
            nn.init.zeros_(cast("Tensor", self.lateral.bias))

    def forward(self, canvas: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image channel row column"]:
        """Features of each canvas, on a grid of (height / stride, width / stride)."""
        return self.neck(self.maps(canvas).late)

    def maps(self, canvas: Float[Tensor, "image 3 height width"]) -> Maps:
        """What the four stages give; the last three are on the grid of the features, the first is twice as fine."""
        # Stored with the channels last, the convolutions run faster on a CPU and the attention stages need no copies.
        x = canvas.contiguous(memory_format=torch.channels_last)
        x = stem = self.patch_embed(x if self.shrunk == 1 else avg_pool2d(x, self.shrunk))
        found: list[Tensor] = []
        for stage in self.layers:
            x = stage(x)
            found.append(x)
        if self.lateral is not None:
            fine = found[0] if self.shrunk == 2 else stem
            found = [interpolate(each, scale_factor=float(self.shrunk), mode="bilinear") for each in found]
            found[3] = found[3] + self.lateral(fine)
        return Maps(*found)


class LiteMedSAM(nn.Module):
    """A `PromptableModel`: TinyViT encodes, SAM's prompt encoder and mask decoder decode.

    LiteMedSAM was trained with boxes only. Points and masks are taken, because the decoder can read them, but
    expect less of them.

    With `keep_levels` embeddings also hold the outputs of the encoder's last two stages; `decode` does without them.
    """

    def __init__(self, frame: Frame, *, image_encoder: TinyViT, prompt_decoder: SamPromptDecoder):
        super().__init__()
        self.frame = frame
        self.image_encoder = image_encoder
        self.prompt_decoder = prompt_decoder
        self.keep_levels = False

    @classmethod
    def untrained(cls, frame: Frame, *, shrunk: Literal[1, 2, 4] = 1) -> "LiteMedSAM":
        """The released architecture, with random weights: 9.8 million parameters, a canvas of 256 x 256; or with its
        encoder at a half or a quarter of its size (see `TinyViT`)."""
        encoder = TinyViT(shrunk=shrunk)
        return cls(
            frame,
            image_encoder=encoder,
            prompt_decoder=SamPromptDecoder(canvas_size=256, grid_stride=encoder.stride),
        )

    def encode(self, canvas: Array) -> ImageEmbedding:
        """Embed canvases of shape (image, 3, height, width), values 0 to 1, as `frame.canvas` makes them.

        The embedding's features have shape (image, 256, height / 4, width / 4).

        Raises `ImageError` for any other shape: the decoder knows the positions of one grid only.
        """
        maps = self.image_encoder.maps(self.prompt_decoder.checked_canvas(canvas))
        return ImageEmbedding(self.image_encoder.neck(maps.late), maps[2:] if self.keep_levels else ())

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Predict one mask an object, or three; see `SamPromptDecoder.decode`."""
        return self.prompt_decoder.decode(embedding, prompts, multimask_output=multimask_output)
