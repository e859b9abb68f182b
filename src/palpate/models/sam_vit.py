"""SAM and MedSAM: a vision transformer in front of SAM's prompt encoder and mask decoder.

Kirillov et al., "Segment Anything", ICCV 2023, arXiv 2304.02643, in three sizes; MedSAM (Ma et al., "Segment anything
in medical images", Nature Communications 15:654, 2024, arXiv 2304.12306) is the small one, trained on medical images
with boxes. The encoder is a plain ViT as in ViTDet (Li et al., ECCV 2022, arXiv 2203.16527). For ViT-B and a canvas
of 1024 x 1024:

    canvas                                                              3 x 1024 x 1024
    patch_embed   one token for 16 x 16 pixels, plus its position     768 x   64 x   64
    layers        12 blocks: attention in windows of 14 x 14 tokens,
                  in four of them among all tokens                    768 x   64 x   64
    neck          two convolutions                                    256 x   64 x   64

Blocks and neck are those of `transformers`, and parameters inside the encoder are named as there. The tables below
translate the names of segment-anything's files, and those of whole models saved by transformers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers.models.sam.configuration_sam import SamVisionConfig
from transformers.models.sam.modeling_sam import SamPatchEmbeddings, SamVisionLayer, SamVisionNeck

from palpate.models import sam
from palpate.models.frame import Frame
from palpate.models.promptable import Array, ImageEmbedding, MaskPrediction, PromptBatch
from palpate.models.sam import SamPromptDecoder, renamed

Size = Literal["vit-b", "vit-l", "vit-h"]


@dataclass(frozen=True)
class VitSize:
    """The numbers in which one vision transformer differs from another.

    Blocks are counted from 0; those in `global_blocks` attend to the whole image, the others inside windows.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


SIZES: dict[Size, VitSize] = {
    "vit-b": VitSize(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit-l": VitSize(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit-h": VitSize(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
}
"""The three that were released."""


class VisionTransformer(nn.Module):
    """SAM's image encoder for one size of canvas: its positions are learned for each cell of the grid.

    The grid has one cell for `stride` x `stride` pixels; `window` is the side of a window, in cells.
    """

    def __init__(self, *, canvas_size: int, size: VitSize, channels: int = 256, window: int = 14, stride: int = 16):
        super().__init__()
        self.channels = channels
        self.stride = stride
        config = SamVisionConfig(
            hidden_size=size.width,
            output_channels=channels,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            image_size=canvas_size,
            patch_size=stride,
            window_size=window,
            mlp_dim=4 * size.width,
            global_attn_indexes=list(size.global_blocks),
        )
        config._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
        self.patch_embed = SamPatchEmbeddings(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, canvas_size // stride, canvas_size // stride, size.width))
        self.layers = nn.ModuleList(
            SamVisionLayer(config, window_size=0 if number in size.global_blocks else window)
            for number in range(size.depth)
        )
        self.neck = SamVisionNeck(config)

    def forward(self, canvas: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image channel row column"]:
        """Features of each canvas, on a grid of (height / stride, width / stride)."""
        return self.neck(self.blocks(canvas)[-1])

    def blocks(
        self, canvas: Float[Tensor, "image 3 height width"]
    ) -> tuple[Float[Tensor, "image row column inner"], Float[Tensor, "image row column inner"]]:
        """What the last block but one and the last one give."""
        x = before = self.patch_embed(canvas) + self.pos_embed
        for layer in self.layers:
            before, x = x, layer(x)
        return before, x


class SAM(nn.Module):
    """A `PromptableModel`: a vision transformer encodes, SAM's prompt encoder and mask decoder decode.

    SAM was trained with boxes and points, and with masks that were its own earlier answers; MedSAM with boxes.
    With `keep_levels` embeddings also hold the outputs of the encoder's last two blocks; `decode` does without them.
    """

    def __init__(self, frame: Frame, *, image_encoder: VisionTransformer, prompt_decoder: SamPromptDecoder):
        super().__init__()
        self.frame = frame
        self.image_encoder = image_encoder
        self.prompt_decoder = prompt_decoder
        self.keep_levels = False

    @classmethod
    def untrained(cls, frame: Frame, *, size: Size = "vit-b") -> "SAM":
        """The released architecture with random weights, for the canvas of `frame`."""
        encoder = VisionTransformer(canvas_size=frame.size, size=SIZES[size])
        decoder = SamPromptDecoder(canvas_size=frame.size, grid_stride=encoder.stride)
        return cls(frame, image_encoder=encoder, prompt_decoder=decoder)

    def encode(self, canvas: Array) -> ImageEmbedding:
        """Embed canvases of shape (image, 3, height, width), as `frame.canvas` makes them.

        The embedding's features have shape (image, 256, height / 16, width / 16), its levels as many rows and columns.

        Raises `ImageError` for any other shape: positions are known for one grid only.
        """
        before, last = self.image_encoder.blocks(self.prompt_decoder.checked_canvas(canvas))
        levels = tuple(block.permute(0, 3, 1, 2) for block in (before, last)) if self.keep_levels else ()
        return ImageEmbedding(self.image_encoder.neck(last), levels)

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Predict one mask an object, or three; see `SamPromptDecoder.decode`."""
        return self.prompt_decoder.decode(embedding, prompts, multimask_output=multimask_output)

    def resized(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this architecture that were trained on a canvas of another size, made to fit this one's.

        What belongs to places of the grid is interpolated: `pos_embed` bilinearly, and of the blocks that attend to
        the whole image the relative positions, along the distance. Windows are as large as before, and so
        are their positions. `state` is named as in this model (`ModelCard.rename`); weights that fit stay as they are.
        """
        grid = self.prompt_decoder.grid_size
        result = dict(state)
        name = "image_encoder.pos_embed"
        if name in state and state[name].shape[1:3] != (grid, grid):
            positions = state[name].permute(0, 3, 1, 2).float()
            larger = interpolate(positions, size=(grid, grid), mode="bilinear", align_corners=False)
            result[name] = larger.permute(0, 2, 3, 1).to(state[name].dtype)
        for number, layer in enumerate(self.image_encoder.layers):
            if cast("SamVisionLayer", layer).window_size:
                continue
            for axis in ("rel_pos_h", "rel_pos_w"):
                name = f"image_encoder.layers.{number}.attn.{axis}"
                if name in state and len(state[name]) != 2 * grid - 1:
                    along = state[name].T[None].float()
                    spread = interpolate(along, size=2 * grid - 1, mode="linear", align_corners=False)
                    result[name] = spread[0].T.to(state[name].dtype)
        return result


# --- Names ------------------------------------------------------------------------------------------------------------

NAMES = (
    # segment-anything                                  transformers                              (* is one number)
    ("image_encoder.patch_embed.proj.", "image_encoder.patch_embed.projection."),
    ("image_encoder.blocks.*.norm*.", "image_encoder.layers.*.layer_norm*."),
    ("image_encoder.blocks.*.", "image_encoder.layers.*."),
    ("image_encoder.neck.0.", "image_encoder.neck.conv1."),
    ("image_encoder.neck.1.", "image_encoder.neck.layer_norm1."),
    ("image_encoder.neck.2.", "image_encoder.neck.conv2."),
    ("image_encoder.neck.3.", "image_encoder.neck.layer_norm2."),
)
"""Beginnings of the encoder's names that differ; those of the other half are in `palpate.models.sam`."""


def from_segment_anything(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights named as in segment-anything's files, renamed for `SAM`."""
    return {renamed(name, NAMES): tensor for name, tensor in sam.from_segment_anything(state).items()}


def to_segment_anything(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the state of a `SAM` under the names that segment-anything's own tools read."""
    backwards = tuple((theirs, ours) for ours, theirs in NAMES)
    return {renamed(name, backwards): tensor for name, tensor in sam.to_segment_anything(state).items()}


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights named as transformers saves a whole SAM, under the names of segment-anything's files.

    transformers holds the random directions of positions twice, and some of its files only once; one is enough. A
    name that is not its own passes through, to be reported by whoever loads it.
    """
    directions, copy = "prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding."
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(copy):
            ours.setdefault(f"prompt_decoder.{directions}", tensor)
        else:
            place = "prompt_decoder." if re.match(r"(prompt_encoder|mask_decoder)\.", name) else ""
            ours[place + re.sub(r"^vision_encoder\.", "image_encoder.", name)] = tensor
    return to_segment_anything(ours)
