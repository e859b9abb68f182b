"""Two decoders on one encoder: one that answers the box as it is, and one that says how far the object goes beyond it.

Fine-tuning a decoder on boxes that cut objects off teaches it to go beyond the box; it pays for that where the box was
right. So both are kept. The taught decoder answers the drawn box u_0; what it finds beyond is taken in, u_(k+1) is the
box around u_k and its answer to u_k; and so on, `looks` times. The mask is the mean of all logits:

    (released(u_0) + taught(u_0) + taught(u_1) + ... + taught(u_(looks - 1))) / (1 + looks)

Where the box was right the answers agree, and nothing grows; where it cut the object off, later looks see all of it and
outvote the first. This is our own method; `docs/results/lite-medsam-robust.md` measures it. Boxes that no hand
drew (`PromptBatch.exact`) and other prompts are answered by the released decoder alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palpate.errors import SettingError, WeightsError
from palpate.models import adapters
from palpate.models.adapters import Adapter
from palpate.models.frame import Frame
from palpate.models.promptable import Array, ImageEmbedding, MaskPrediction, PromptableModel, PromptBatch


class Forgiving(nn.Module):
    """A `PromptableModel`: `base` as it was released, and `taught`, which shares its encoder and forgives boxes.

    >>> model = palpate.models.weights.load("lite-medsam-robust").model          # doctest: +SKIP
    """

    def __init__(self, base: nn.Module, taught: nn.Module, *, looks: int) -> None:
        super().__init__()
        self.base, self.taught, self.looks = base, taught, looks

    @property
    def frame(self) -> Frame:
        """How the model sees an image."""
        return cast("PromptableModel", self.base).frame

    def encode(self, canvas: Array) -> ImageEmbedding:
        """As the base model does."""
        return cast("PromptableModel", self.base).encode(canvas)

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Predict one mask an object, or three; only one mask for a drawn box alone is a matter of several looks.

        The predicted IoU is the mean over the answers, like the logits.
        """
        base = cast("PromptableModel", self.base)
        first = base.decode(embedding, prompts, multimask_output=multimask_output)
        alone = prompts.points is None and prompts.masks is None
        if prompts.boxes is None or not alone or prompts.exact or multimask_output or not len(prompts):
            return first
        boxes = torch.as_tensor(prompts.boxes).to(first.logits).clone()
        where = torch.as_tensor(prompts.image_index).to(boxes.device)
        logits, ious = first.logits.clone(), first.predicted_iou.clone()
        answers: tuple[Tensor, Tensor] = (torch.zeros_like(logits), torch.zeros_like(ious))
        grown = torch.ones(len(prompts), dtype=torch.bool, device=boxes.device)
        for _ in range(self.looks):
            if bool(grown.any()):  # an answer to the same box would be the same
                asked = PromptBatch(where[grown], boxes=boxes[grown])
                found = cast("PromptableModel", self.taught).decode(embedding, asked)
                answers[0][grown], answers[1][grown] = found.logits, found.predicted_iou
            logits, ious = logits + answers[0], ious + answers[1]
            wider = united(boxes, answers[0][:, 0], canvas=self.frame.size)
            grown, boxes = (wider != boxes).any(dim=1), wider
        count = 1 + self.looks
        return MaskPrediction(logits / count, ious / count, first.object_logits)

    def added(self) -> dict[str, Tensor]:
        """What it has beside its base model, for the hash of the weights."""
        taught = self.taught.get_submodule("prompt_decoder").state_dict()
        return {f"taught.{name}": tensor for name, tensor in taught.items()} | {"looks": torch.tensor(self.looks)}


def beside(base: nn.Module, adapter: Adapter) -> Forgiving:
    """A base model and, beside it, what an adapter makes of its decoder.

    Raises:
        WeightsError: the adapter does not fit this network, is damaged, or changes the encoder, which both share.
    """
    if adapter.card.trained.moves_encoder:
        raise WeightsError(
            f"the adapter {adapter.card.name} changes the image encoder, so it cannot answer beside its base model; "
            "make it anew without --looks"
        )
    encoder = base.get_submodule("image_encoder")
    taught = copy.deepcopy(base, {id(encoder): encoder})
    adapters.applied(taught, adapter)
    return Forgiving(base, taught, looks=adapter.card.looks).eval()


def put_on(network: nn.Module, adapter: Adapter) -> nn.Module:
    """A freshly loaded base model with an adapter: in place of its own weights, or with `looks` beside them.

    Raises:
        WeightsError: the adapter does not fit this network, or is damaged.
    """
    if adapter.card.looks:
        return beside(network, adapter)
    adapters.applied(network, adapter)
    return network


def united(
    boxes: Float[Tensor, "object 4"], logits: Float[Tensor, "object row column"], *, canvas: int
) -> Float[Tensor, "object 4"]:
    """Each box grown to hold its mask: x_min, y_min, x_max, y_max in canvas pixels, first and last pixel inside.

    A pixel of a mask that is coarser than the canvas stands for all canvas pixels that it covers.
    """
    inside = logits > 0
    scale = canvas / logits.shape[-1]
    ends: dict[str, Tensor] = {}
    for name, seen in (("x", inside.any(dim=1)), ("y", inside.any(dim=2))):
        places = torch.arange(seen.shape[1], device=seen.device).expand_as(seen)
        # Of an empty mask the first pixel lies beyond the last one, so that it changes no box.
        ends[f"{name}0"] = torch.where(seen, places, seen.shape[1]).amin(dim=1) * scale
        ends[f"{name}1"] = (torch.where(seen, places, -1).amax(dim=1) + 1) * scale - 1
    low = torch.stack([ends["x0"], ends["y0"]], dim=1).to(boxes)
    high = torch.stack([ends["x1"], ends["y1"]], dim=1).to(boxes)
    return torch.cat([torch.minimum(boxes[:, :2], low), torch.maximum(boxes[:, 2:], high)], dim=1)


def base_of(network: nn.Module) -> nn.Module:
    """The network itself, or of a `Forgiving` one the base model."""
    return network.base if isinstance(network, Forgiving) else network


def added_by(network: nn.Module) -> Mapping[str, Tensor]:
    """What a `Forgiving` network has beside its base model; nothing of any other."""
    return network.added() if isinstance(network, Forgiving) else {}


def require_one_decoder(network: nn.Module, name: str) -> None:
    """Refuse what has two decoders where one is to be trained.

    Raises:
        SettingError: it has.
    """
    if isinstance(network, Forgiving):
        raise SettingError(
            f"{name} answers with two decoders, so that none is there to train; train the model it was made from "
            "(`palpate models`), and add looks to the result with `palpate models average --looks`"
        )
