"""A model's two verbs as plain graphs of tensors, for programs that know no PyTorch.

Prompts go in as SAM's own exporter has them (segment-anything, `utils/onnx.py`): points with labels, of which a box is
two.

    label  1   a point on the object         2   upper left corner of a box
           0   a point beside it             3   lower right corner
          -1   no point at all, which SAM was trained to see after points that come without a box

A box is the tokens 2 and 3; n points are n tokens and one of -1; n points and a box are the n points, then 2 and 3.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palpate.errors import SettingError
from palpate.models.promptable import PromptableModel
from palpate.models.sam import SamPromptDecoder


class EncoderGraph(nn.Module):
    """Canvases (image, 3, height, width) in, features and levels out; see the model's `encode`."""

    def __init__(self, network: PromptableModel) -> None:
        super().__init__()
        self.network = cast("nn.Module", network)

    def forward(self, canvas: Float[Tensor, "image 3 height width"]) -> tuple[Tensor, ...]:
        """All that the decoder needs to know of the images."""
        embedding = cast("PromptableModel", self.network).encode(canvas)
        return embedding.features, *embedding.levels


class DecoderGraph(nn.Module):
    """What is known of one image, and prompts for any number of objects on it, in; masks out.

    Masks are logits on the canvas: the first of the four is the single mask, the others are the three candidates.
    """

    def __init__(self, network: PromptableModel) -> None:
        super().__init__()
        decoder = getattr(network, "prompt_decoder", None)
        if not isinstance(decoder, SamPromptDecoder):
            raise SettingError(
                "this model's decoder cannot be exported; those of SAM, MedSAM, MobileSAM, LiteMedSAM and "
                "Swin-LiteMedSAM can"
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
        kinds = labels[..., None]
        tokens = torch.where(kinds == -1, prompts.not_a_point_embed.weight, places)
        for kind, embedding in enumerate(prompts.point_embed):
            tokens = torch.where(kinds == kind, tokens + cast("nn.Embedding", embedding).weight, tokens)
        none = self.decoder.no_mask.reshape(1, -1, 1, 1)
        dense = torch.where(has_mask.reshape(-1, 1, 1, 1) > 0, prompts.mask_embed(mask), none)
        # Not len(), which a traced graph would take for a constant.
        several = [x.expand(coordinates.shape[0], -1, -1, -1) for x in (features, *levels[: self.decoder.levels_read])]
        logits, ious, _ = self.decoder.answer(several[0], tokens, dense, levels=several[1:], every_mask=True)
        return logits, ious


__all__ = ["DecoderGraph", "EncoderGraph"]
