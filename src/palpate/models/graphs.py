"""A model's two verbs as plain graphs of tensors, for programs that know no PyTorch.

Prompts go in as SAM's own exporter has them (segment-anything, `utils/onnx.py`): points with labels, of which a box is
two.

    label  1   a point on the object         2   upper left corner of a box
           0   a point beside it             3   lower right corner
          -1   no point at all, which SAM was trained to see after points that come without a box,
               and SAM 2 after everything

A box is the tokens 2 and 3; n points are n tokens and one of -1; n points and a box are the n points, then 2 and 3. For
SAM 2 a box, too, is followed by one of -1. The third verb, of learned prompts, is in `palpate.models.finder_graph`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palpate.errors import SettingError
from palpate.models.promptable import PromptableModel
from palpate.models.sam import SamPromptDecoder
from palpate.models.sam2 import PATCH, HieraEncoder, Sam2PromptDecoder


class EncoderGraph(nn.Module):
    """Canvases (image, 3, height, width) in, features and levels out; see the model's `encode`."""

    positions: Tensor

    def __init__(self, network: PromptableModel) -> None:
        super().__init__()
        self.network = cast("nn.Module", network)
        self.trunk = None
        encoder = getattr(network, "image_encoder", None)
        if isinstance(encoder, HieraEncoder):
            # Position codes depend on weights alone. As part of the graph they would cost OpenVINO three minutes.
            self.trunk, patches = encoder.trunk, network.frame.size // PATCH
            with torch.no_grad():
                self.register_buffer("positions", self.trunk._get_pos_embed((patches, patches)))  # pyright: ignore[reportPrivateUsage]

    def forward(self, canvas: Float[Tensor, "image 3 height width"]) -> tuple[Tensor, ...]:
        """All that the decoder needs to know of the images."""
        with self._known_positions():
            embedding = cast("PromptableModel", self.network).encode(canvas)
        return embedding.features, *embedding.levels

    @contextmanager
    def _known_positions(self) -> Generator[None]:
        if self.trunk is None:
            yield
            return
        self.trunk._get_pos_embed = lambda hw: self.positions  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        try:
            yield
        finally:
            del self.trunk._get_pos_embed  # pyright: ignore[reportPrivateUsage]


class DecoderGraph(nn.Module):
    """What is known of one image, and prompts for any number of objects on it, in; masks out.

    Masks are logits on the canvas: the first of the four is the single mask, the others are the three candidates.
    """

    def __init__(self, network: PromptableModel) -> None:
        super().__init__()
        decoder = getattr(network, "prompt_decoder", None)
        if not isinstance(decoder, SamPromptDecoder):
            raise SettingError(
                "this model's decoder cannot be exported; those of SAM, MedSAM, MobileSAM, LiteMedSAM, "
                "Swin-LiteMedSAM and SAM 2 can"
            )
        self.decoder = decoder

    def forward(
        self,
        coordinates: Float[Tensor, "object token 2"],
        labels: Float[Tensor, "object token"],
        mask: Float[Tensor, "object 1 mask_row mask_column"],
        has_mask: Float[Tensor, " object"],
        features: Float[Tensor, "1 channel row column"],
        *levels: Tensor,
    ) -> tuple[Float[Tensor, "object 4 mask_row mask_column"], Float[Tensor, "object 4"]]:
        """Logits and predicted IoU of each object's four masks; coordinates are (x, y) in pixels of the canvas."""
        prompts, size = self.decoder.prompt_encoder, self.decoder.canvas_size
        # Corners and points mark pixels, whose centres are half a pixel further.
        places = prompts.shared_embedding((coordinates + 0.5)[:, None], (size, size))[:, 0]
        kinds = (cast("nn.Embedding", kind).weight for kind in prompts.point_embed)
        tokens = marked(places, labels, kinds, nothing=prompts.not_a_point_embed.weight)
        none = self.decoder.no_mask.reshape(1, -1, 1, 1)
        dense = torch.where(has_mask.reshape(-1, 1, 1, 1) > 0, prompts.mask_embed(mask), none)
        # Not len(), which a traced graph would take for a constant.
        several = [x.expand(coordinates.shape[0], -1, -1, -1) for x in (features, *levels[: self.decoder.levels_read])]
        logits, ious, _ = self.decoder.answer(several[0], tokens, dense, levels=several[1:], every_mask=True)
        return logits, ious


class Sam2DecoderGraph(nn.Module):
    """The same for SAM 2, which also tells whether each object is there at all.

    The first mask is what the model answers where it is asked for one: where that is not stable, the best of the three
    candidates.
    """

    def __init__(self, network: PromptableModel) -> None:
        super().__init__()
        decoder = getattr(network, "prompt_decoder", None)
        if not isinstance(decoder, Sam2PromptDecoder):
            raise SettingError("this model's decoder is not that of SAM 2")
        self.decoder = decoder

    def forward(
        self,
        coordinates: Float[Tensor, "object token 2"],
        labels: Float[Tensor, "object token"],
        mask: Float[Tensor, "object 1 mask_row mask_column"],
        has_mask: Float[Tensor, " object"],
        features: Float[Tensor, "1 channel row column"],
        *levels: Tensor,
    ) -> tuple[Float[Tensor, "object 4 mask_row mask_column"], Float[Tensor, "object 4"], Float[Tensor, " object"]]:
        """Logits and predicted IoU of each object's four masks, and its object logit: above 0 where it is there."""
        prompts = self.decoder.prompt_encoder
        # Corners and points mark pixels, whose centres are half a pixel further.
        places = prompts.shared_embedding((coordinates + 0.5)[:, None] / self.decoder.canvas_size)[:, 0]
        tokens = marked(places, labels, prompts.point_embed.weight, nothing=prompts.not_a_point_embed.weight)
        none = self.decoder.no_mask.reshape(1, -1, 1, 1)
        dense = torch.where(has_mask.reshape(-1, 1, 1, 1) > 0, prompts.mask_embed(mask), none)
        # Not len(), which a traced graph would take for a constant.
        cells, s1, s0 = (x.expand(coordinates.shape[0], -1, -1, -1) for x in (features, *levels))
        return self.decoder.answer(cells, tokens, dense, levels=(s1, s0), every_mask=True)


def decoder_graph(network: PromptableModel) -> DecoderGraph | Sam2DecoderGraph:
    """The decoder of a model as a graph.

    Raises:
        SettingError: a model whose decoder is of another kind.
    """
    if isinstance(getattr(network, "prompt_decoder", None), Sam2PromptDecoder):
        return Sam2DecoderGraph(network)
    return DecoderGraph(network)


def marked(
    places: Float[Tensor, "object token channel"],
    labels: Float[Tensor, "object token"],
    kinds: Iterable[Tensor],
    *,
    nothing: Float[Tensor, "1 channel"],
) -> Float[Tensor, "object token channel"]:
    """Tokens of their places, and of what is there: labels 0, 1, ... add the kinds', and -1 is `nothing` at all."""
    marks = labels[..., None]
    tokens = torch.where(marks == -1, nothing, places)
    for kind, embedding in enumerate(kinds):
        tokens = torch.where(marks == kind, tokens + embedding, tokens)
    return tokens


__all__ = ["DecoderGraph", "EncoderGraph", "Sam2DecoderGraph", "decoder_graph"]
