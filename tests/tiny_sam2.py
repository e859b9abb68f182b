"""A SAM 2 of some 100 thousand random weights, its transformers counterpart, and its card."""

import torch
from torch import nn
from transformers import Sam2Config, Sam2MaskDecoderConfig, Sam2Model, Sam2PromptEncoderConfig, Sam2VisionConfig
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig

from palpate.models.catalogue import VIDEO_MEMORY, ModelCard
from palpate.models.frame import SAM2_FRAME, Frame
from palpate.models.promptable import PromptSupport, WeightsSource
from palpate.models.sam2 import SAM2, Hiera, HieraEncoder, Sam2PromptDecoder, from_sam2, from_transformers, to_sam2
from palpate.models.weights import content_hash, load_into

NAME = "tiny-sam2"
SIDE, CHANNELS, HEADS, MLP = 128, 32, 2, 32
HIERA = Hiera(channels=8, heads=1, depths=(1, 2, 2, 1), global_blocks=(4,), windows=(8, 4, 6, 3), background=7)


def frame(side: int = SIDE) -> Frame:
    """SAM 2's frame on a smaller canvas."""
    return Frame(**{**SAM2_FRAME.__dict__, "size": side, "mask_size": side // 4})


def tiny_sam2(side: int = SIDE) -> SAM2:
    """The same random weights each time, also where untrained ones would be zero."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = SAM2(
        frame(side),
        image_encoder=HieraEncoder(HIERA, channels=CHANNELS),
        prompt_decoder=Sam2PromptDecoder(canvas_size=side, channels=CHANNELS, heads=HEADS, mlp_channels=MLP),
    )
    _shake(model)
    torch.random.set_rng_state(generator_state)
    return model.eval()


def reference(model: SAM2, *, shaken: bool = True) -> Sam2Model:
    """transformers' own SAM 2 with the same weights as `model`; with `shaken`, both get new ones."""
    side = model.frame.size
    backbone = Sam2HieraDetConfig(
        hidden_size=HIERA.channels,
        num_attention_heads=HIERA.heads,
        image_size=[side, side],
        blocks_per_stage=list(HIERA.depths),
        embed_dim_per_stage=list(HIERA.stages),
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=list(HIERA.windows),
        global_attention_blocks=list(HIERA.global_blocks),
        window_positional_embedding_background_size=[HIERA.background] * 2,
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=list(reversed(HIERA.stages)),
        backbone_feature_sizes=[[side // stride] * 2 for stride in (4, 8, 16)],
        fpn_hidden_size=CHANNELS,
    )
    theirs = Sam2Model(
        Sam2Config(
            vision_config=vision,
            prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=CHANNELS, image_size=side),
            mask_decoder_config=Sam2MaskDecoderConfig(
                hidden_size=CHANNELS, num_attention_heads=HEADS, mlp_dim=MLP, iou_head_hidden_dim=CHANNELS
            ),
        )
    ).eval()
    if not shaken:
        theirs.load_state_dict(_in_transformers_names(model))
        return theirs
    torch.manual_seed(1)
    _shake(theirs)
    theirs.prompt_encoder.shared_embedding.load_state_dict(theirs.shared_image_embedding.state_dict())
    load_into(model, from_sam2(from_transformers(theirs.state_dict())))
    return theirs


def _in_transformers_names(model: SAM2) -> dict[str, torch.Tensor]:
    places = {
        "image_encoder.trunk.": "vision_encoder.backbone.",
        "image_encoder.neck.": "vision_encoder.neck.convs.",
        "image_encoder.conv_s": "mask_decoder.conv_s",
        "image_encoder.no_mem_embed": "no_memory_embedding",
        "prompt_decoder.": "",
    }
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        ours = next(place for place in places if name.startswith(place))
        state[places[ours] + name.removeprefix(ours)] = tensor
    directions = "shared_embedding.positional_embedding"
    return state | {"shared_image_embedding.positional_embedding": state[f"prompt_encoder.{directions}"]}


def card() -> ModelCard:
    """A card for the catalogue; its weights are those of `tiny_sam2()`."""
    return ModelCard(
        name=NAME,
        summary="random weights",
        parameters=1,
        build=tiny_sam2,
        frame=frame(),
        prompts=PromptSupport(trained=("box", "points"), accepted=("mask",)),
        layout="sam2",  # as files of a size that was never released are called
        rename=from_sam2,
        restore=to_sam2,
        weights=WeightsSource(sha256=None, size_bytes=None, file="tiny.pt", address="https://example.org"),
        content_sha256=content_hash(to_sam2(tiny_sam2().state_dict())),
        licence="",
        paper="",
        arxiv="",
        unused=VIDEO_MEMORY,
    )


def _shake(model: nn.Module) -> None:
    """Untrained, whole tensors are zero and whatever reads them wrongly goes unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
