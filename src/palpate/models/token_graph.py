"""The decoder of the SAM family as a graph for prompts that are points and boxes alone: what palpate itself runs."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from palpate.errors import SettingError
from palpate.models.graphs import marked
from palpate.models.promptable import PromptableModel
from palpate.models.sam import SamPromptDecoder


class TokenDecoderGraph(nn.Module):
    """`DecoderGraph` without mask prompts, which lets objects share what depends on the image alone.

    What it computes in another order is in `palpate.models.folded`.
    """

    def __init__(self, network: PromptableModel) -> None:
        super().__init__()
        decoder = getattr(network, "prompt_decoder", None)
        if not isinstance(decoder, SamPromptDecoder):
            raise SettingError("this model's decoder is not that of SAM")
        self.decoder = decoder

    def forward(
        self,
        coordinates: Float[Tensor, "object token 2"],
        labels: Float[Tensor, "object token"],
        features: Float[Tensor, "1 channel row column"],
        *levels: Tensor,
    ) -> tuple[Float[Tensor, "object 4 mask_row mask_column"], Float[Tensor, "object 4"]]:
        """Logits and predicted IoU of each object's four masks, as `DecoderGraph` gives them without a mask."""
        prompts, size = self.decoder.prompt_encoder, self.decoder.canvas_size
        # Corners and points mark pixels, whose centres are half a pixel further.
        places = prompts.shared_embedding((coordinates + 0.5)[:, None], (size, size))[:, 0]
        kinds = (cast("nn.Embedding", kind).weight for kind in prompts.point_embed)
        tokens = marked(places, labels, kinds, nothing=prompts.not_a_point_embed.weight)
        none = self.decoder.no_mask.reshape(1, -1, 1, 1).expand(-1, -1, *features.shape[-2:])
        # Skip connections meet the objects' own cells, so there is one copy for each.
        several = [x.expand(coordinates.shape[0], -1, -1, -1) for x in levels[: self.decoder.levels_read]]
        logits, ious, _ = self.decoder.answer(
            features, tokens, none, levels=several, every_mask=True, tokens_first=True
        )
        return logits, ious


__all__ = ["TokenDecoderGraph"]
