"""The promptable half of SAM: prompts and an image embedding give masks.

Kirillov et al., "Segment Anything", ICCV 2023, arXiv 2304.02643. SAM, MedSAM, MobileSAM and LiteMedSAM differ in their
image encoders and share this half, so it lives here once. The networks are those of `transformers`; this
file adds what they leave to their caller (one object per batch entry, the grid of positions, bounded memory),
corrects one constant, and translates the names of weights saved by the original segment-anything code.

SAM reads a prompt as tokens, and the number of tokens is part of what it was trained on:

    box                2 tokens: upper left corner, lower right corner
    n points           n + 1 tokens: the points, then one that says "not a point"
    n points and box   n + 2 tokens: the points, then the two corners
    mask               no token; added to the image embedding
"""

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear
from transformers.models.sam.configuration_sam import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder, SamTwoWayAttentionBlock

from palpate.errors import ImageError
from palpate.models.folded import attended
from palpate.models.prompt_tensors import prompt_tensors
from palpate.models.promptable import Array, ImageEmbedding, MaskPrediction, PromptBatch

OBJECTS_AT_ONCE = 8
"""How many objects an accelerator decodes together; memory grows by some 60 MB with each, more with gradients."""

OBJECTS_AT_ONCE_ON_CPU = 1
"""One object keeps all cores busy, and a larger batch only touches more memory.

Measured on two cores: 37 ms an object one by one, 57 ms in a batch of eight.
"""


class SamPromptDecoder(nn.Module):
    """SAM's prompt encoder and mask decoder as one module, working object by object.

    The canvas is square, `canvas_size` pixels wide; the image embedding has one cell for `grid_stride` x `grid_stride`
    of them. Masks come out with four times as many rows and columns as the embedding.
    """

    levels_read = 0
    """How many of an embedding's levels masks are made from."""

    def __init__(
        self,
        *,
        canvas_size: int,
        grid_stride: int,
        channels: int = 256,
        heads: int = 8,
        mlp_channels: int = 2048,
    ):
        super().__init__()
        self.canvas_size = canvas_size
        self.heads, self.mlp_channels = heads, mlp_channels  # so that learned prompts can have blocks of the same size
        self.objects_at_once: int | None = None  # training sets it: with gradients, batches pay on a CPU as well
        self.grid_size = canvas_size // grid_stride
        prompt_config = SamPromptEncoderConfig(hidden_size=channels, image_size=canvas_size, patch_size=grid_stride)
        mask_config = SamMaskDecoderConfig(
            hidden_size=channels, num_attention_heads=heads, mlp_dim=mlp_channels, iou_head_hidden_dim=channels
        )
        # Only the number of position features is read from the vision part; there is no vision encoder here.
        vision_config = SamVisionConfig(num_pos_feats=channels // 2)
        config = SamConfig(
            vision_config=vision_config, prompt_encoder_config=prompt_config, mask_decoder_config=mask_config
        )
        # As SamModel sets it; left alone, transformers logs a warning and falls back to a slower attention.
        # It must come after SamConfig, which resets it in its parts.
        mask_config._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
        self.prompt_encoder = SamPromptEncoder(config)
        self.mask_decoder = SamMaskDecoder(mask_config)

        # SAM's two-way blocks were trained with PyTorch's default epsilon, 1e-5. transformers builds them with 1e-6,
        # which moves LiteMedSAM's logits by up to 0.005. The channel norms elsewhere do have 1e-6.
        for block in self.mask_decoder.transformer.layers:
            assert isinstance(block, SamTwoWayAttentionBlock)
            for norm in (block.layer_norm1, block.layer_norm2, block.layer_norm3, block.layer_norm4):
                norm.eps = 1e-5

        # The random directions that positions are projected on are drawn once and never trained. transformers keeps
        # them as a parameter, which an optimiser would move; here they are a buffer, as in the original.
        positions = self.prompt_encoder.shared_embedding
        directions = torch.randn(2, channels // 2)
        del positions.positional_embedding
        positions.register_buffer("positional_embedding", directions)

    @property
    def no_mask(self) -> Tensor:
        """The embedding that stands for "no mask given" (1, channel); also tells the module's device and dtype."""
        return self.prompt_encoder.no_mask_embed.weight

    def checked_canvas(self, canvas: Array) -> Tensor:
        """Canvases of shape (image, 3, height, width) as a tensor where this module is, of its type.

        Raises `ImageError` for any other shape: the positions of one grid only are known.
        """
        # As a tensor only where it is none: in a graph that is traced it would become a constant.
        canvas = canvas if isinstance(canvas, Tensor) else torch.as_tensor(canvas)
        canvas, size = canvas.to(self.no_mask), self.canvas_size
        if canvas.ndim != 4 or canvas.shape[1:] != (3, size, size):
            raise ImageError(
                f"this model sees canvases of shape (image, 3, {size}, {size}), got {tuple(canvas.shape)}; "
                "make them with the model's frame.canvas"
            )
        return canvas

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Predict one mask an object, or SAM's three candidates if `multimask_output`.

        Logits have shape (object, 1 or 3, 4 * row, 4 * column) for an embedding of (row, column) cells. Objects
        do not see one another: many together give what each would give alone. No objects give no masks.

        Raises `PromptError` if the batch holds no prompt at all, or if its parts do not fit together.
        """
        features, *levels = (
            torch.as_tensor(x).to(self.no_mask) for x in (embedding.features, *embedding.levels[: self.levels_read])
        )
        asked = prompt_tensors(prompts, images=len(embedding), mask_size=4 * self.grid_size, device=features.device)

        # Each chunk is a forward pass of its own; gradients flow through all of them.
        logits: list[Tensor] = []
        ious: list[Tensor] = []
        usual = OBJECTS_AT_ONCE_ON_CPU if features.device.type == "cpu" else OBJECTS_AT_ONCE
        at_once = self.objects_at_once or usual
        for start in range(0, len(prompts), at_once):
            some = slice(start, start + at_once)
            places = asked.image_index[some]
            chunk_logits, chunk_ious = self(
                features[places],
                levels=[level[places] for level in levels],
                **asked.at(some),
                multimask_output=multimask_output,
            )
            logits.append(chunk_logits)
            ious.append(chunk_ious)
        if not logits:
            count, size = (3 if multimask_output else 1), 4 * self.grid_size
            return MaskPrediction(features.new_empty((0, count, size, size)), features.new_empty((0, count)))
        return MaskPrediction(logits=torch.cat(logits), predicted_iou=torch.cat(ious))

    def forward(
        self,
        features: Float[Tensor, "object channel row column"],
        *,
        levels: Sequence[Tensor] = (),
        boxes: Float[Tensor, "object 4"] | None = None,
        points: Float[Tensor, "object point 2"] | None = None,
        point_labels: Int[Tensor, "object point"] | None = None,
        masks: Float[Tensor, "object 1 mask_row mask_column"] | None = None,
        multimask_output: bool = False,
    ) -> tuple[Float[Tensor, "object mask mask_row mask_column"], Float[Tensor, "object mask"]]:
        """Logits and predicted IoU of each object, given the features (and levels) of the image it lies on.

        The plain computation, for export: nothing is checked and everything is computed at once. Use `decode`.
        """
        sparse, dense = self.prompt_embeddings(boxes=boxes, points=points, point_labels=point_labels, masks=masks)
        logits, ious, _ = self.answer(features, sparse, dense, levels=levels, multimask_output=multimask_output)
        return logits, ious

    def prompt_embeddings(
        self,
        *,
        boxes: Float[Tensor, "object 4"] | None = None,
        points: Float[Tensor, "object point 2"] | None = None,
        point_labels: Int[Tensor, "object point"] | None = None,
        masks: Float[Tensor, "object 1 mask_row mask_column"] | None = None,
    ) -> tuple[Float[Tensor, "object prompt_token channel"] | None, Float[Tensor, "any_object channel row column"]]:
        """Prompts as tokens (None without box and points) and as what is added to the image embedding.

        The latter is that of the masks, or the same for all objects (`any_object` is 1 then) where there are none.
        """
        # transformers wants (batch, prompts of that batch entry, ...). Its dense embedding has no second axis, so with
        # several prompts an entry they would share one mask; with one prompt an entry, each object keeps its own.
        # Positions stay in full precision: in bfloat16 a coordinate would be off by half a pixel of a 256 canvas.
        with torch.autocast(self.no_mask.device.type, enabled=False):
            sparse, dense = self.prompt_encoder(
                input_points=None if points is None else points[:, None],
                input_labels=None if point_labels is None else point_labels[:, None],
                input_boxes=None if boxes is None else boxes[:, None],
                input_masks=None if masks is None else masks.to(self.no_mask),
            )
        return (None if sparse is None else sparse[:, 0]), dense

    def answer(
        self,
        features: Float[Tensor, "any_image channel row column"],
        sparse: Float[Tensor, "object prompt_token channel"] | None,
        dense: Float[Tensor, "any_object channel row column"],
        *,
        levels: Sequence[Tensor] = (),
        multimask_output: bool = False,
        first: Float[Tensor, "1 channel"] | None = None,
        every_mask: bool = False,
        tokens_first: bool = False,
    ) -> tuple[
        Float[Tensor, "object mask mask_row mask_column"],
        Float[Tensor, "object mask"],
        Float[Tensor, "object channel"] | None,
    ]:
        """Logits and predicted IoU from embedded prompts, and what became of the token `first`, if there is one.

        That token stands before all others and asks for something of its own (whether there is an object at all, as
        in SAM 2). With `every_mask` the answer is the single mask and the three candidates after it. With
        `tokens_first` sums are taken in a cheaper order (`palpate.models.folded`), and `features`, `dense` and `levels`
        may be given once for all objects.
        """
        with torch.autocast(features.device.type, enabled=False):
            positions = self.grid_positions()
        if tokens_first and sparse is not None:
            together = torch.cat([self._own_tokens(first).expand(sparse.shape[0], -1, -1), sparse], dim=1)
            placed = positions.flatten(2).transpose(1, 2)
            cells = (features + dense).flatten(2).transpose(1, 2)
            tokens, cells = attended(self.mask_decoder.transformer, together, cells, placed)
        else:
            tokens, cells = self._attended(features + dense, sparse, positions, first)
        own, tokens = (None, tokens) if first is None else (tokens[:, 0], tokens[:, 1:])
        wanted = slice(None) if every_mask else slice(1, None) if multimask_output else slice(0, 1)
        logits = self._masks(cells, tokens[:, 1 : 1 + self.mask_decoder.num_mask_tokens][:, wanted], wanted, levels)
        return logits, self.mask_decoder.iou_prediction_head(tokens[:, 0])[:, wanted], own

    def _attended(
        self,
        features: Float[Tensor, "object channel row column"],
        sparse: Float[Tensor, "object prompt_token channel"] | None,
        positions: Float[Tensor, "1 channel row column"],
        first: Float[Tensor, "1 channel"] | None,
    ) -> tuple[Float[Tensor, "object token channel"], Float[Tensor, "object cell channel"]]:
        """What the two-way transformer makes of the tokens (IoU, masks, prompts) and of the image's cells."""
        objects = features.shape[0]  # and not len(), which a traced graph would take for a constant
        tokens = self._own_tokens(first).expand(objects, -1, -1)
        if sparse is not None:  # a mask prompt alone is no token
            tokens = torch.cat([tokens, sparse.to(tokens.dtype)], dim=1)
        tokens, cells = self.mask_decoder.transformer(
            point_embeddings=tokens[:, None],
            image_embeddings=features,
            image_positional_embeddings=positions.expand(objects, -1, -1, -1),
            attention_similarity=None,
            target_embedding=None,
        )
        return tokens[:, 0], cells[:, 0]

    def _own_tokens(self, first: Float[Tensor, "1 channel"] | None) -> Float[Tensor, "1 token channel"]:
        """The model's own tokens, which stand before those of the prompts."""
        decoder = self.mask_decoder
        own = [decoder.iou_token.weight, decoder.mask_tokens.weight]
        return torch.cat(own if first is None else [first, *own])[None]

    def _masks(
        self,
        cells: Float[Tensor, "object cell channel"],
        tokens: Float[Tensor, "object mask channel"],
        wanted: slice,
        levels: Sequence[Tensor],
    ) -> Float[Tensor, "object mask mask_row mask_column"]:
        """Logits of the wanted masks. (SAM makes them from what the transformer gives alone, without `levels`.)

        A transposed convolution of 2 x 2 with stride 2 is a linear layer that gives each cell four parts, and all that
        follows up to the logits works place by place. So the channels stay last and the parts stay where they
        are until the logits, one number each, are put in order. Same weights and same sums, without moving 32 maps of
        the mask's size about, forward and back.
        """
        decoder = self.mask_decoder
        norm = decoder.upscale_layer_norm
        parts = in_four(cells, decoder.upscale_conv1)
        parts = gelu(layer_norm(parts, (parts.shape[-1],), norm.weight, norm.bias, norm.eps))
        return self._weighted(gelu(in_four(parts, decoder.upscale_conv2)), tokens, wanted)

    def _weighted(
        self,
        parts: Float[Tensor, "object cell 4 4 part_channel"],
        tokens: Float[Tensor, "object mask channel"],
        wanted: slice,
    ) -> Float[Tensor, "object mask mask_row mask_column"]:
        """Sums of the parts' channels, weighted by what the tokens ask for, each where it lies in the mask."""
        side = self.grid_size
        networks = list(self.mask_decoder.output_hypernetworks_mlps)[wanted]
        weights = torch.stack([network(tokens[:, i]) for i, network in enumerate(networks)], dim=-1)
        logits = parts.flatten(1, -2) @ weights.to(parts.dtype)
        logits = logits.view(-1, side, side, 2, 2, 2, 2, len(networks))
        # object, row, column, half row, half column, quarter row, quarter column, mask
        return logits.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(-1, len(networks), 4 * side, 4 * side)

    def grid_positions(self) -> Float[Tensor, "1 channel row column"]:
        """The position code of each cell of the image embedding, taken at the cell's centre."""
        cells = torch.arange(self.grid_size, device=self.no_mask.device, dtype=torch.float32)
        centres = (cells + 0.5) / self.grid_size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.prompt_encoder.shared_embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]


def in_four(parts: Float[Tensor, "*place inputs"], up: nn.ConvTranspose2d) -> Float[Tensor, "*place 4 outputs"]:
    """A transposed convolution of 2 x 2 with stride 2, its four results side by side instead of in the plane."""
    weight = up.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (inputs, outputs, 2, 2) -> (2 * 2 * outputs, inputs)
    bias = None if up.bias is None else up.bias.repeat(4)
    return linear(parts, weight, bias).unflatten(-1, (4, up.out_channels))


# --- Names ----------------------------------------------------------------------------------------------------

NAMES = (
    # segment-anything                                  transformers                              (* is one number)
    (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.shared_embedding.positional_embedding",
    ),
    ("prompt_encoder.point_embeddings.*.", "prompt_encoder.point_embed.*."),
    ("prompt_encoder.mask_downscaling.0.", "prompt_encoder.mask_embed.conv1."),
    ("prompt_encoder.mask_downscaling.1.", "prompt_encoder.mask_embed.layer_norm1."),
    ("prompt_encoder.mask_downscaling.3.", "prompt_encoder.mask_embed.conv2."),
    ("prompt_encoder.mask_downscaling.4.", "prompt_encoder.mask_embed.layer_norm2."),
    ("prompt_encoder.mask_downscaling.6.", "prompt_encoder.mask_embed.conv3."),
    ("mask_decoder.transformer.layers.*.norm*.", "mask_decoder.transformer.layers.*.layer_norm*."),
    ("mask_decoder.transformer.norm_final_attn.", "mask_decoder.transformer.layer_norm_final_attn."),
    ("mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
    (
        "mask_decoder.output_hypernetworks_mlps.*.layers.0.",
        "mask_decoder.output_hypernetworks_mlps.*.proj_in.",
    ),
    (
        "mask_decoder.output_hypernetworks_mlps.*.layers.1.",
        "mask_decoder.output_hypernetworks_mlps.*.layers.0.",
    ),
    (
        "mask_decoder.output_hypernetworks_mlps.*.layers.2.",
        "mask_decoder.output_hypernetworks_mlps.*.proj_out.",
    ),
    ("mask_decoder.iou_prediction_head.layers.0.", "mask_decoder.iou_prediction_head.proj_in."),
    ("mask_decoder.iou_prediction_head.layers.1.", "mask_decoder.iou_prediction_head.layers.0."),
    ("mask_decoder.iou_prediction_head.layers.2.", "mask_decoder.iou_prediction_head.proj_out."),
)
"""Beginnings of names that differ between the two; whatever is not listed is called the same in both."""

_HALVES = ("prompt_encoder.", "mask_decoder.")


def from_segment_anything(state: Mapping[str, Tensor], *, inside: str = "prompt_decoder.") -> dict[str, Tensor]:
    """Weights named as in segment-anything's files, renamed for a model that keeps its `SamPromptDecoder` at `inside`.

    The image encoder's names are left alone. A name that is in no table passes through and is reported as
    unexpected by whoever loads it.
    """
    return {
        inside + renamed(name, NAMES) if name.startswith(_HALVES) else name: tensor for name, tensor in state.items()
    }


def to_segment_anything(state: Mapping[str, Tensor], *, inside: str = "prompt_decoder.") -> dict[str, Tensor]:
    """The way back: a model's state under the names that segment-anything's own tools read."""
    backwards = tuple((theirs, ours) for ours, theirs in NAMES)
    return {
        renamed(name.removeprefix(inside), backwards) if name.startswith(inside) else name: tensor
        for name, tensor in state.items()
    }


def renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """A name whose beginning stands in a table like `NAMES`, with the other beginning; any other name as it is."""
    for old, new in table:
        match = re.match(re.escape(old).replace(r"\*", r"(\d+)"), name)
        if match:
            for number in match.groups():
                new = new.replace("*", number, 1)
            return new + name[match.end() :]
    return name
