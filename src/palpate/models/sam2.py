"""SAM 2 for single images: Hiera tiny to large, SAM 2.0 and 2.1, and MedSAM2.

Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024, arXiv 2408.00714; the encoder is Hiera, Ryali et al.,
ICML 2023, arXiv 2306.00989, with the absolute windowed positions of arXiv 2311.05613. MedSAM2 (Ma et al. 2025, arXiv
2504.03600) is SAM 2.1 tiny, trained on canvases of 512. The networks are those of `transformers`; what remembers
earlier frames of a video is left out.

For SAM 2 tiny and a canvas of 1024 x 1024:

    canvas                                                              3 x 1024 x 1024
    trunk    patches of 4 x 4, then four stages of 1, 2, 7, 2 blocks   96 x 256 x 256 ... 768 x 32 x 32
    neck     256 channels; the two coarsest stages are added          256 x 256 x 256 ... 256 x 64 x 64
    features stride 16, plus "no memory of earlier frames"            256 x  64 x  64
    levels   s1, stride 8: conv_s1 of the neck                         64 x 128 x 128
             s0, stride 4: conv_s0 of the neck                         32 x 256 x 256

`conv_s0` and `conv_s1` are the mask decoder's in the released files. Here they belong to the image encoder: what they
make is part of the embedding, so they must stay as they are for as long as embeddings are kept, and whoever trains the
decoder alone must not move them.

A prompt becomes tokens as in SAM 2's own image predictor, where a box is two more points:

    box                3 tokens: upper left corner, lower right corner, "not a point"
    n points           n + 1 tokens: the points, then "not a point"
    n points and box   n + 3 tokens: the points, the two corners, "not a point"
    mask               no token; added to the image embedding

(The predictor puts corners before points. Tokens carry no number, so their order changes nothing.)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers.models.sam2.configuration_sam2 import (
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
)
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel, Sam2MaskDecoder, Sam2PromptEncoder

from palpate.errors import ImageError, WeightsError
from palpate.models.catalogue import VIDEO_MEMORY
from palpate.models.frame import Frame
from palpate.models.prompt_tensors import prompt_tensors
from palpate.models.promptable import Array, ImageEmbedding, MaskPrediction, PromptBatch
from palpate.models.sam import renamed

OBJECTS_AT_ONCE = 8
"""How many objects an accelerator decodes together."""

OBJECTS_AT_ONCE_ON_CPU = 1
"""One object keeps all cores busy."""

GRID_STRIDE = 16
"""Pixels of the canvas to a cell of the image embedding, in each direction."""

PATCH = 4
"""Pixels of the canvas to a patch, the first thing that the image encoder makes of it, in each direction."""

STABILITY_DELTA, STABILITY_THRESHOLD = 0.05, 0.98
"""A mask is stable if its area at logits above +delta is at least this share of that above -delta."""

Size = Literal["tiny", "small", "base-plus", "large"]


@dataclass(frozen=True)
class Hiera:
    """The shape of an image encoder.

    `channels` and `heads` are the first stage's; both double from stage to stage. `depths` are blocks in each
    stage, `windows` their attention windows in tokens, `global_blocks` the numbers of the blocks that see everything
    instead. `background` is the side of the position map that is stretched over the whole canvas.
    """

    channels: int
    heads: int
    depths: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int]
    background: int

    @property
    def stages(self) -> tuple[int, int, int, int]:
        """Channels of the four stages, fine to coarse."""
        return self.channels, 2 * self.channels, 4 * self.channels, 8 * self.channels


HIERA: Mapping[Size, Hiera] = {
    "tiny": Hiera(96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), 7),
    "small": Hiera(96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), 7),
    "base-plus": Hiera(112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 14),
    "large": Hiera(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 7),
}
"""The released encoders; SAM 2.0 and 2.1 share them."""


class HieraEncoder(nn.Module):
    """The image encoder: Hiera's trunk, the neck, and the two convolutions for the decoder's fine levels."""

    def __init__(self, hiera: Hiera, *, channels: int = 256):
        super().__init__()
        self.trunk = Sam2HieraDetModel(
            Sam2HieraDetConfig(
                hidden_size=hiera.channels,
                num_attention_heads=hiera.heads,
                blocks_per_stage=list(hiera.depths),
                embed_dim_per_stage=list(hiera.stages),
                num_attention_heads_per_stage=[hiera.heads * 2**stage for stage in range(4)],
                window_size_per_stage=list(hiera.windows),
                global_attention_blocks=list(hiera.global_blocks),
                window_positional_embedding_background_size=[hiera.background] * 2,
            )
        )
        # Coarse to fine, as in the released files.
        self.neck = nn.ModuleList(nn.Conv2d(stage, channels, 1) for stage in reversed(hiera.stages))
        self.conv_s0 = nn.Conv2d(channels, channels // 8, 1)
        self.conv_s1 = nn.Conv2d(channels, channels // 4, 1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, channels))

    @property
    def layers(self) -> nn.Module:
        """The trunk's blocks, by the name that `palpate.models.adapters` looks for."""
        return self.trunk.blocks

    def forward(
        self, canvas: Float[Tensor, "image 3 height width"]
    ) -> tuple[
        Float[Tensor, "image channel row column"],
        Float[Tensor, "image channel1 row1 column1"],
        Float[Tensor, "image channel0 row0 column0"],
    ]:
        """Features with stride 16, and the levels s1 with stride 8 and s0 with stride 4."""
        stages = self.trunk(canvas).intermediate_hidden_states
        # transformers' own neck does the same sums, and computes position codes of every level that nobody reads.
        coarse, middle, fine, finest = (
            conv(stage.permute(0, 3, 1, 2)) for conv, stage in zip(self.neck, reversed(stages), strict=True)
        )
        features = middle + interpolate(coarse.float(), scale_factor=2.0, mode="nearest").to(middle)
        features = features + self.no_mem_embed[0, 0, :, None, None]
        return features, self.conv_s1(fine), self.conv_s0(finest)


class Sam2PromptDecoder(nn.Module):
    """SAM 2's prompt encoder and mask decoder as one module, working object by object.

    The canvas is square, `canvas_size` pixels wide, a multiple of 32. Masks come out with four times as many rows and
    columns as the image embedding, a quarter of the canvas.

    With `dynamic_multimask`, as in SAM 2's own predictor, an object's single mask gives way to the best of
    the three candidates (by predicted IoU) where it is not stable: where logits of +-0.05 as a threshold would change
    its area by more than 2 %. It is never done where gradients flow, as SAM 2 does not do it in training.
    """

    levels_read = 2
    """How many of an embedding's levels masks are made from."""

    def __init__(
        self,
        *,
        canvas_size: int,
        channels: int = 256,
        heads: int = 8,
        mlp_channels: int = 2048,
        dynamic_multimask: bool = True,
    ):
        super().__init__()
        self.canvas_size = canvas_size
        self.heads, self.mlp_channels = heads, mlp_channels  # so that learned prompts can have blocks of the same size
        self.grid_size = canvas_size // GRID_STRIDE
        self.objects_at_once: int | None = None  # training sets it: with gradients, batches pay on a CPU as well
        self.dynamic_multimask = dynamic_multimask
        self.prompt_encoder = Sam2PromptEncoder(
            Sam2PromptEncoderConfig(hidden_size=channels, image_size=canvas_size, patch_size=GRID_STRIDE)
        )
        config = Sam2MaskDecoderConfig(
            hidden_size=channels, num_attention_heads=heads, mlp_dim=mlp_channels, iou_head_hidden_dim=channels
        )
        # As Sam2Model sets it; left alone, transformers falls back to a slower attention.
        config._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
        self.mask_decoder = Sam2MaskDecoder(config)
        # These two are the image encoder's here; see the top of the file.
        del self.mask_decoder.conv_s0, self.mask_decoder.conv_s1

        # The random directions that positions are projected on are drawn once and never trained: a buffer, in whatever
        # way transformers keeps them.
        positions = self.prompt_encoder.shared_embedding
        directions = torch.randn(2, channels // 2)
        del positions.positional_embedding
        positions.register_buffer("positional_embedding", directions)

    @property
    def no_mask(self) -> Tensor:
        """The embedding that stands for "no mask given" (1, channel); also tells the module's device and dtype."""
        return self.prompt_encoder.no_mask_embed.weight

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Predict one mask an object, or the three candidates if `multimask_output`, and whether it is there at all.

        Logits have shape (object, 1 or 3, 4 * row, 4 * column) for an embedding of (row, column) cells. Objects
        do not see one another: many together give what each would give alone. No objects give no masks.

        Raises:
            PromptError: the batch holds no prompt at all, or its parts do not fit together.
            ImageError: the embedding lacks its two fine levels: another model made it.
        """
        features, *levels = (torch.as_tensor(part).to(self.no_mask) for part in (embedding.features, *embedding.levels))
        if len(levels) != self.levels_read:
            raise ImageError(f"SAM 2 reads an embedding with two fine levels, got {len(levels)}; encode it with SAM 2")
        asked = prompt_tensors(prompts, images=len(embedding), mask_size=4 * self.grid_size, device=features.device)

        # Each chunk is a forward pass of its own; gradients flow through all of them.
        usual = OBJECTS_AT_ONCE_ON_CPU if features.device.type == "cpu" else OBJECTS_AT_ONCE
        at_once = self.objects_at_once or usual
        chunks: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(prompts), at_once):
            some = slice(start, start + at_once)
            index = asked.image_index[some]
            chunks.append(
                self(
                    features[index],
                    levels=(levels[0][index], levels[1][index]),
                    **asked.at(some),
                    multimask_output=multimask_output,
                )
            )
        if not chunks:
            count, size = (3 if multimask_output else 1), 4 * self.grid_size
            empty = features.new_empty
            return MaskPrediction(empty((0, count, size, size)), empty((0, count)), empty((0,)))
        logits, ious, object_logits = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return MaskPrediction(logits, ious, object_logits)

    def forward(
        self,
        features: Float[Tensor, "object channel row column"],
        *,
        levels: tuple[Float[Tensor, "object channel1 row1 column1"], Float[Tensor, "object channel0 row0 column0"]],
        boxes: Float[Tensor, "object 4"] | None = None,
        points: Float[Tensor, "object point 2"] | None = None,
        point_labels: Int[Tensor, "object point"] | None = None,
        masks: Float[Tensor, "object 1 mask_row mask_column"] | None = None,
        multimask_output: bool = False,
    ) -> tuple[
        Float[Tensor, "object mask mask_row mask_column"], Float[Tensor, "object mask"], Float[Tensor, " object"]
    ]:
        """Logits, predicted IoU and object logit of each object, given the embedding of the image it lies on.

        The plain computation, for export: nothing is checked and everything is computed at once. Use `decode`.
        """
        sparse, dense = self.prompt_embeddings(boxes=boxes, points=points, point_labels=point_labels, masks=masks)
        return self.answer(features, sparse, dense, levels=levels, multimask_output=multimask_output)

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
        # transformers wants (batch, prompts of that batch entry, ...); with one prompt an entry, each object keeps a
        # mask of its own. Positions stay in full precision: bfloat16 has four pixels between 512 and 1024.
        with torch.autocast(self.no_mask.device.type, enabled=False):
            sparse, dense = self.prompt_encoder(
                input_points=None if points is None else points[:, None],
                input_labels=None if point_labels is None else point_labels[:, None],
                input_boxes=None if boxes is None else boxes[:, None],
                input_masks=masks,
            )
        return (None if sparse is None else sparse[:, 0]), dense if masks is not None else dense[:1]

    def answer(
        self,
        features: Float[Tensor, "object channel row column"],
        sparse: Float[Tensor, "object prompt_token channel"] | None,
        dense: Float[Tensor, "any_object channel row column"],
        *,
        levels: tuple[Float[Tensor, "object channel1 row1 column1"], Float[Tensor, "object channel0 row0 column0"]],
        multimask_output: bool = False,
        every_mask: bool = False,
        object_head: Callable[[Tensor], Float[Tensor, " object"]] | None = None,
    ) -> tuple[
        Float[Tensor, "object mask mask_row mask_column"], Float[Tensor, "object mask"], Float[Tensor, " object"]
    ]:
        """Logits, predicted IoU and object logits from embedded prompts, a person's or learned ones.

        With `every_mask` the answer is the one mask (the best of the three in its place where it is not stable) and the
        three candidates after it. `object_head` makes object logits of the object tokens in the place of the decoder's
        own.
        """
        decoder = self.mask_decoder
        own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
        objects = features.shape[0]  # and not len(), which a traced graph would take for a constant
        tokens = own[None].expand(objects, -1, -1)
        if sparse is not None:  # a mask prompt alone is no token
            tokens = torch.cat([tokens, sparse.to(own.dtype)], dim=1)
        with torch.autocast(features.device.type, enabled=False):
            positions = self.grid_positions()
        tokens, cells = decoder.transformer(
            point_embeddings=tokens[:, None],
            image_embeddings=features + dense,
            image_positional_embeddings=positions.expand(objects, -1, -1, -1),
            attention_similarity=None,
        )
        tokens, cells = tokens[:, 0], cells[:, 0].transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        fall_back = self.dynamic_multimask and not tokens.requires_grad and not multimask_output
        wanted = slice(None) if every_mask or fall_back else slice(1, None) if multimask_output else slice(0, 1)
        logits = self._masks(cells, levels, tokens[:, 2 : 2 + decoder.num_mask_tokens][:, wanted], wanted)
        ious = decoder.iou_prediction_head(tokens[:, 1])[:, wanted]
        if fall_back:
            first, first_iou = _first_or_best(logits, ious)
            logits = torch.cat([first, logits[:, 1:]], dim=1) if every_mask else first
            ious = torch.cat([first_iou, ious[:, 1:]], dim=1) if every_mask else first_iou
        if object_head is not None:
            return logits, ious, object_head(tokens[:, 0])
        return logits, ious, decoder.pred_obj_score_head(tokens[:, 0])[:, 0]

    def _masks(
        self,
        cells: Float[Tensor, "object channel row column"],
        levels: tuple[Float[Tensor, "object channel1 row1 column1"], Float[Tensor, "object channel0 row0 column0"]],
        tokens: Float[Tensor, "object mask channel"],
        wanted: slice,
    ) -> Float[Tensor, "object mask mask_row mask_column"]:
        """Logits of the wanted masks: the cells enlarged twice, each time with a fine level added."""
        decoder = self.mask_decoder
        s1, s0 = levels
        parts = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(cells) + s1))
        parts = decoder.activation(decoder.upscale_conv2(parts) + s0)
        networks = list(decoder.output_hypernetworks_mlps)[wanted]
        weights = torch.stack([network(tokens[:, i]) for i, network in enumerate(networks)], dim=1)
        return (weights.to(parts.dtype) @ parts.flatten(2)).unflatten(2, parts.shape[2:])

    def grid_positions(self) -> Float[Tensor, "1 channel row column"]:
        """The position code of each cell of the image embedding, taken at the cell's centre."""
        cells = torch.arange(self.grid_size, device=self.no_mask.device, dtype=torch.float32)
        centres = (cells + 0.5) / self.grid_size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.prompt_encoder.shared_embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]


def _first_or_best(
    logits: Float[Tensor, "object 4 row column"], ious: Float[Tensor, "object 4"]
) -> tuple[Float[Tensor, "object 1 row column"], Float[Tensor, "object 1"]]:
    """The single mask where it is stable, elsewhere the best of the three others by predicted IoU."""
    single = logits[:, 0].flatten(1)
    inner = (single > STABILITY_DELTA).sum(1).float()
    outer = (single > -STABILITY_DELTA).sum(1).float()
    stable = torch.where(outer > 0, inner / outer, 1.0) >= STABILITY_THRESHOLD  # an empty mask is stable
    chosen = torch.where(stable, 0, ious[:, 1:].argmax(1) + 1)
    mask = chosen[:, None, None, None].expand(-1, 1, *logits.shape[2:])
    return logits.gather(1, mask), ious.gather(1, chosen[:, None])


class SAM2(nn.Module):
    """A `PromptableModel`: Hiera encodes, SAM 2's prompt encoder and mask decoder decode.

    Trained with boxes and points; it takes a mask as a first guess.
    """

    def __init__(self, frame: Frame, *, image_encoder: HieraEncoder, prompt_decoder: Sam2PromptDecoder):
        super().__init__()
        self.frame = frame
        self.image_encoder = image_encoder
        self.prompt_decoder = prompt_decoder

    @classmethod
    def untrained(cls, frame: Frame, size: Size) -> "SAM2":
        """A released architecture on the canvas of `frame`, with random weights."""
        return cls(
            frame,
            image_encoder=HieraEncoder(HIERA[size]),
            prompt_decoder=Sam2PromptDecoder(canvas_size=frame.size),
        )

    def encode(self, canvas: Array) -> ImageEmbedding:
        """Embed canvases of shape (image, 3, height, width), as `frame.canvas` makes them.

        For a canvas of S x S pixels the features have shape (image, 256, S / 16, S / 16), "no memory of earlier frames"
        already added. The levels are s1 (image, 64, S / 8, S / 8) and s0 (image, 32, S / 4, S / 4).

        Raises:
            ImageError: any other shape; the decoder knows the positions of one grid only.
        """
        # As a tensor only where it is none: in a graph that is traced it would become a constant.
        canvas = canvas if isinstance(canvas, Tensor) else torch.as_tensor(canvas)
        canvas = canvas.to(self.prompt_decoder.no_mask)
        size = self.prompt_decoder.canvas_size
        if canvas.ndim != 4 or canvas.shape[1:] != (3, size, size):
            raise ImageError(
                f"this model sees canvases of shape (image, 3, {size}, {size}), got {tuple(canvas.shape)}; "
                "make them with the model's frame.canvas"
            )
        features, s1, s0 = self.image_encoder(canvas)
        return ImageEmbedding(features, levels=(s1, s0))

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Predict one mask an object, or three, and its object logit; see `Sam2PromptDecoder.decode`."""
        return self.prompt_decoder.decode(embedding, prompts, multimask_output=multimask_output)


# --- Names ----------------------------------------------------------------------------------------------------

NAMES = (
    # SAM 2's own files                                 palpate                          (* is one number)
    ("image_encoder.trunk.patch_embed.proj.", "image_encoder.trunk.patch_embed.projection."),
    ("image_encoder.trunk.blocks.*.norm*.", "image_encoder.trunk.blocks.*.layer_norm*."),
    ("image_encoder.trunk.blocks.*.mlp.layers.0.", "image_encoder.trunk.blocks.*.mlp.proj_in."),
    ("image_encoder.trunk.blocks.*.mlp.layers.1.", "image_encoder.trunk.blocks.*.mlp.proj_out."),
    ("image_encoder.trunk.", "image_encoder.trunk."),
    ("image_encoder.neck.convs.*.conv.", "image_encoder.neck.*."),
    ("sam_mask_decoder.conv_s*.", "image_encoder.conv_s*."),
    ("no_mem_embed", "image_encoder.no_mem_embed"),
    (
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_decoder.prompt_encoder.shared_embedding.positional_embedding",
    ),
    ("sam_prompt_encoder.mask_downscaling.0.", "prompt_decoder.prompt_encoder.mask_embed.conv1."),
    ("sam_prompt_encoder.mask_downscaling.1.", "prompt_decoder.prompt_encoder.mask_embed.layer_norm1."),
    ("sam_prompt_encoder.mask_downscaling.3.", "prompt_decoder.prompt_encoder.mask_embed.conv2."),
    ("sam_prompt_encoder.mask_downscaling.4.", "prompt_decoder.prompt_encoder.mask_embed.layer_norm2."),
    ("sam_prompt_encoder.mask_downscaling.6.", "prompt_decoder.prompt_encoder.mask_embed.conv3."),
    ("sam_prompt_encoder.", "prompt_decoder.prompt_encoder."),
    (
        "sam_mask_decoder.transformer.layers.*.self_attn.out_proj.",
        "prompt_decoder.mask_decoder.transformer.layers.*.self_attn.o_proj.",
    ),
    (
        "sam_mask_decoder.transformer.layers.*.cross_attn_token_to_image.out_proj.",
        "prompt_decoder.mask_decoder.transformer.layers.*.cross_attn_token_to_image.o_proj.",
    ),
    (
        "sam_mask_decoder.transformer.layers.*.cross_attn_image_to_token.out_proj.",
        "prompt_decoder.mask_decoder.transformer.layers.*.cross_attn_image_to_token.o_proj.",
    ),
    (
        "sam_mask_decoder.transformer.layers.*.mlp.layers.0.",
        "prompt_decoder.mask_decoder.transformer.layers.*.mlp.proj_in.",
    ),
    (
        "sam_mask_decoder.transformer.layers.*.mlp.layers.1.",
        "prompt_decoder.mask_decoder.transformer.layers.*.mlp.proj_out.",
    ),
    ("sam_mask_decoder.transformer.layers.*.norm*.", "prompt_decoder.mask_decoder.transformer.layers.*.layer_norm*."),
    (
        "sam_mask_decoder.transformer.final_attn_token_to_image.out_proj.",
        "prompt_decoder.mask_decoder.transformer.final_attn_token_to_image.o_proj.",
    ),
    (
        "sam_mask_decoder.transformer.norm_final_attn.",
        "prompt_decoder.mask_decoder.transformer.layer_norm_final_attn.",
    ),
    ("sam_mask_decoder.output_upscaling.0.", "prompt_decoder.mask_decoder.upscale_conv1."),
    ("sam_mask_decoder.output_upscaling.1.", "prompt_decoder.mask_decoder.upscale_layer_norm."),
    ("sam_mask_decoder.output_upscaling.3.", "prompt_decoder.mask_decoder.upscale_conv2."),
    (
        "sam_mask_decoder.output_hypernetworks_mlps.*.layers.0.",
        "prompt_decoder.mask_decoder.output_hypernetworks_mlps.*.proj_in.",
    ),
    (
        "sam_mask_decoder.output_hypernetworks_mlps.*.layers.1.",
        "prompt_decoder.mask_decoder.output_hypernetworks_mlps.*.layers.0.",
    ),
    (
        "sam_mask_decoder.output_hypernetworks_mlps.*.layers.2.",
        "prompt_decoder.mask_decoder.output_hypernetworks_mlps.*.proj_out.",
    ),
    ("sam_mask_decoder.iou_prediction_head.layers.0.", "prompt_decoder.mask_decoder.iou_prediction_head.proj_in."),
    ("sam_mask_decoder.iou_prediction_head.layers.1.", "prompt_decoder.mask_decoder.iou_prediction_head.layers.0."),
    ("sam_mask_decoder.iou_prediction_head.layers.2.", "prompt_decoder.mask_decoder.iou_prediction_head.proj_out."),
    ("sam_mask_decoder.pred_obj_score_head.layers.0.", "prompt_decoder.mask_decoder.pred_obj_score_head.proj_in."),
    ("sam_mask_decoder.pred_obj_score_head.layers.1.", "prompt_decoder.mask_decoder.pred_obj_score_head.layers.0."),
    ("sam_mask_decoder.pred_obj_score_head.layers.2.", "prompt_decoder.mask_decoder.pred_obj_score_head.proj_out."),
    ("sam_mask_decoder.", "prompt_decoder.mask_decoder."),
)
"""Beginnings of names, the first that fits counts."""

TRANSFORMERS_NAMES = (
    # transformers (Sam2Model, Sam2VideoModel)          palpate
    ("vision_encoder.backbone.", "image_encoder.trunk."),
    ("vision_encoder.neck.convs.*.", "image_encoder.neck.*."),
    ("mask_decoder.conv_s*.", "image_encoder.conv_s*."),
    ("no_memory_embedding", "image_encoder.no_mem_embed"),
    ("prompt_encoder.", "prompt_decoder.prompt_encoder."),
    ("mask_decoder.", "prompt_decoder.mask_decoder."),
    # of the memory only what tells SAM 2.1 from 2.0, and either from a file without it, as SAM 2's own files call it
    ("memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    ("occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    ("temporal_positional_encoding_projection_layer.", "obj_ptr_tpos_proj."),
)
"""The same for files in the format of transformers."""

_TRANSFORMERS_MEMORY = (
    "mask_downsample.",
    "memory_attention.",
    "memory_encoder.",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "object_pointer_proj.",
)

_TRANSFORMERS_POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
_CORNERS = "sam_prompt_encoder.point_embeddings."
_STACKED = "prompt_decoder.prompt_encoder.point_embed.weight"


def of_image(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a file of SAM 2 that single images need, under the file's own names."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(VIDEO_MEMORY)}


def from_sam2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image part of SAM 2's own files, renamed for a `SAM2`.

    What belongs to the memory of videos is left out (`of_image`). Any other name that is in no table passes through and
    is reported as unexpected by whoever loads it.

    Raises:
        WeightsError: the embeddings of points and corners are not four rows of the same length.
    """
    image = of_image(state)
    # Four tensors in the file, one here: beside the object, on it, upper left corner, lower right corner.
    rows = [image.pop(name) for name in (f"{_CORNERS}{i}.weight" for i in range(4)) if name in image]
    named = {renamed(name, NAMES): tensor for name, tensor in image.items()}
    if rows:
        if len(rows) != 4 or any(row.shape != (1, rows[0].shape[-1]) for row in rows):
            raise WeightsError(f"{_CORNERS}0 to 3 must be four rows of the same length; the file is damaged")
        named[_STACKED] = torch.cat(rows)
    return named


def to_sam2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: a `SAM2`'s state under the names of SAM 2's own files.

    Only the part for single images: what remembers a video's frames was never read.
    """
    backwards = tuple((theirs, ours) for ours, theirs in NAMES)
    named = {renamed(name, backwards): tensor for name, tensor in state.items() if name != _STACKED}
    if _STACKED in state:
        named |= {f"{_CORNERS}{i}.weight": row[None] for i, row in enumerate(state[_STACKED])}
    return named


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A SAM 2 that transformers saved, for images or for videos, under the names of SAM 2's own files.

    Of what remembers a video's frames only the tensors that tell SAM 2.1 from 2.0 are kept.

    Raises:
        WeightsError: the two copies of the position directions differ.
    """
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_TRANSFORMERS_MEMORY)}
    image, prompts = "shared_image_embedding.positional_embedding", _TRANSFORMERS_POSITIONS
    if image in kept:
        directions = kept.pop(image)
        if not torch.equal(kept.setdefault(prompts, directions), directions):
            raise WeightsError(f"{image} and {prompts} must be the same; the file is damaged")
    return to_sam2({renamed(name, TRANSFORMERS_NAMES): tensor for name, tensor in kept.items()})
