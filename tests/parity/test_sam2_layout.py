"""The released files of SAM 2 fit: names and shapes of all four sizes, written down from their architecture.

Nothing large is made: tensors are on torch's `meta` device, which has shapes and no numbers.
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig

from palpate.errors import WeightsError
from palpate.models import weights
from palpate.models.catalogue import card
from palpate.models.frame import MEDSAM2_FRAME, SAM2_FRAME
from palpate.models.sam2 import HIERA, SAM2, Size, from_sam2, from_transformers, of_image, to_sam2

Shapes = dict[str, tuple[int, ...]]

# first channels, blocks of each stage, first window, background
SIZES: dict[Size, tuple[int, tuple[int, ...], int, int]] = {
    "tiny": (96, (1, 2, 7, 2), 8, 7),
    "small": (96, (1, 2, 11, 2), 8, 7),
    "base-plus": (112, (2, 3, 16, 3), 8, 14),
    "large": (144, (2, 6, 36, 4), 8, 7),
}
every = pytest.mark.parametrize("size", SIZES)


def layer(name: str, *weight: int) -> Shapes:
    """A weight and its bias."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def norm(name: str, channels: int) -> Shapes:
    return layer(name, channels)


def mlp(name: str, *widths: int) -> Shapes:
    made: Shapes = {}
    for i, (before, after) in enumerate(pairwise(widths)):
        made |= layer(f"{name}.layers.{i}", after, before)
    return made


def encoder(size: Size) -> Shapes:
    channels, depths, window, background = SIZES[size]
    trunk = "image_encoder.trunk"
    made: Shapes = {
        f"{trunk}.pos_embed": (1, channels, background, background),
        f"{trunk}.pos_embed_window": (1, channels, window, window),
        **layer(f"{trunk}.patch_embed.proj", channels, 3, 7, 7),
    }
    number = 0
    for stage, depth in enumerate(depths):
        after = channels * 2**stage
        for i in range(depth):
            before = after // 2 if stage and not i else after
            block = f"{trunk}.blocks.{number}"
            made |= norm(f"{block}.norm1", before)
            made |= layer(f"{block}.attn.qkv", 3 * after, before) | layer(f"{block}.attn.proj", after, after)
            made |= norm(f"{block}.norm2", after) | mlp(f"{block}.mlp", after, 4 * after, after)
            if before != after:
                made |= layer(f"{block}.proj", after, before)
            number += 1
    for i in range(4):
        made |= layer(f"image_encoder.neck.convs.{i}.conv", 256, channels * 2 ** (3 - i), 1, 1)
    return made


def prompt_encoder() -> Shapes:
    name = "sam_prompt_encoder"
    return {
        f"{name}.pe_layer.positional_encoding_gaussian_matrix": (2, 128),
        **{f"{name}.point_embeddings.{i}.weight": (1, 256) for i in range(4)},
        f"{name}.not_a_point_embed.weight": (1, 256),
        f"{name}.no_mask_embed.weight": (1, 256),
        **layer(f"{name}.mask_downscaling.0", 4, 1, 2, 2),
        **norm(f"{name}.mask_downscaling.1", 4),
        **layer(f"{name}.mask_downscaling.3", 16, 4, 2, 2),
        **norm(f"{name}.mask_downscaling.4", 16),
        **layer(f"{name}.mask_downscaling.6", 256, 16, 1, 1),
    }


def attention(name: str, inner: int) -> Shapes:
    made: Shapes = {}
    for projection in ("q_proj", "k_proj", "v_proj"):
        made |= layer(f"{name}.{projection}", inner, 256)
    return made | layer(f"{name}.out_proj", 256, inner)


def mask_decoder() -> Shapes:
    name = "sam_mask_decoder"
    made: Shapes = {
        f"{name}.obj_score_token.weight": (1, 256),
        f"{name}.iou_token.weight": (1, 256),
        f"{name}.mask_tokens.weight": (4, 256),
    }
    for i in range(2):
        block = f"{name}.transformer.layers.{i}"
        made |= attention(f"{block}.self_attn", 256)
        made |= attention(f"{block}.cross_attn_token_to_image", 128)
        made |= attention(f"{block}.cross_attn_image_to_token", 128)
        made |= mlp(f"{block}.mlp", 256, 2048, 256)
        for j in range(1, 5):
            made |= norm(f"{block}.norm{j}", 256)
    made |= attention(f"{name}.transformer.final_attn_token_to_image", 128)
    made |= norm(f"{name}.transformer.norm_final_attn", 256)
    # Transposed convolutions have their inputs first.
    made |= {f"{name}.output_upscaling.0.weight": (256, 64, 2, 2), f"{name}.output_upscaling.0.bias": (64,)}
    made |= norm(f"{name}.output_upscaling.1", 64)
    made |= {f"{name}.output_upscaling.3.weight": (64, 32, 2, 2), f"{name}.output_upscaling.3.bias": (32,)}
    made |= layer(f"{name}.conv_s0", 32, 256, 1, 1) | layer(f"{name}.conv_s1", 64, 256, 1, 1)
    for i in range(4):
        made |= mlp(f"{name}.output_hypernetworks_mlps.{i}", 256, 256, 256, 32)
    made |= mlp(f"{name}.iou_prediction_head", 256, 256, 256, 4)
    return made | mlp(f"{name}.pred_obj_score_head", 256, 256, 256, 1)


def memory(*, newer: bool) -> Shapes:
    """Some of what remembers a video's frames, of each module."""
    made: Shapes = {
        "maskmem_tpos_enc": (7, 1, 1, 64),
        "no_mem_pos_enc": (1, 1, 256),
        "no_obj_ptr": (1, 256),
        **layer("mask_downsample", 1, 1, 4, 4),
        **layer("memory_attention.layers.0.linear1", 2048, 256),
        **layer("memory_encoder.pix_feat_proj", 256, 256, 1, 1),
        **mlp("obj_ptr_proj", 256, 256, 256, 256),
    }
    if newer:
        made |= {"no_obj_embed_spatial": (1, 64), **layer("obj_ptr_tpos_proj", 64, 256)}
    return made


def released(size: Size, *, newer: bool = True) -> dict[str, Tensor]:
    """The tensors of a released file, as far as an image needs them, and some more."""
    shapes = encoder(size) | prompt_encoder() | mask_decoder() | {"no_mem_embed": (1, 1, 256)} | memory(newer=newer)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def numbers(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def shapes_of(state: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("size", "tensors", "millions"),
    [("tiny", 162, 27.22), ("small", 210, 34.32), ("base-plus", 306, 69.11), ("large", 594, 212.70)],
)
def test_encoders_have_as_many_tensors_and_parameters_as_published(size: Size, tensors: int, millions: float) -> None:
    assert len(encoder(size)) == tensors
    assert round(numbers(encoder(size)) / 1e6, 2) == millions


def test_the_decoder_has_as_many_tensors_and_parameters_as_published() -> None:
    assert numbers(prompt_encoder()) - 2 * 128 == 6_220  # the directions of positions are no parameters
    assert len(mask_decoder()) == 131
    assert numbers(mask_decoder()) == 4_215_109


@every
@pytest.mark.parametrize("newer", [False, True], ids=["2.0", "2.1"])
def test_a_released_file_is_recognised_and_fits_its_card(size: Size, newer: bool) -> None:
    state, model = released(size, newer=newer), card(f"sam2{'.1' * newer}-{size}")
    found = weights.recognise(state)
    assert found is not None
    assert (found.name, found.also) == (model.layout, ())
    with torch.device("meta"):
        network = model.build()
    weights.load_into(network, model.rename(state))  # nothing is missing or unexpected
    used = {name: tensor for name, tensor in state.items() if not name.startswith(model.unused)}
    assert shapes_of(model.restore(network.state_dict())) == shapes_of(used)


@every
def test_without_what_remembers_videos_a_file_may_be_either_version(size: Size) -> None:
    found = weights.recognise(of_image(released(size)))
    assert found is not None
    assert {found.name, *found.also} == {f"sam2.1-{size}", f"sam2-{size}"}


def test_medsam2_has_the_weights_of_sam2_tiny_on_a_canvas_of_half_the_size() -> None:
    with torch.device("meta"):
        model = card("medsam2").build()
        embedding = model.encode(torch.empty(1, 3, 512, 512))
    assert model.frame == MEDSAM2_FRAME
    weights.load_into(model, from_sam2(released("tiny")))
    assert embedding.features.shape == (1, 256, 32, 32)
    assert [tuple(level.shape) for level in embedding.levels] == [(1, 64, 64, 64), (1, 32, 128, 128)]


def test_the_canvas_of_1024_becomes_an_embedding_with_its_two_levels() -> None:
    with torch.device("meta"):
        embedding = SAM2.untrained(SAM2_FRAME, "tiny").encode(torch.empty(1, 3, 1024, 1024))
    assert embedding.features.shape == (1, 256, 64, 64)
    assert [tuple(level.shape) for level in embedding.levels] == [(1, 64, 128, 128), (1, 32, 256, 256)]


@pytest.mark.parametrize("newer", [False, True], ids=["2.0", "2.1"])
def test_what_remembers_videos_is_left_out_and_nothing_else(newer: bool) -> None:
    state = released("tiny", newer=newer)
    assert state.keys() - of_image(state).keys() == memory(newer=newer).keys()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sam_mask_decoder.iou_token.weight": None}, r"1 missing \(prompt_decoder.mask_decoder.iou_token.weight\)"),
        ({"image_encoder.trunk.head.weight": (1,)}, r"1 unexpected \(image_encoder.trunk.head.weight\)"),
        ({"memory_bank.weight": (1,)}, r"1 unexpected \(memory_bank.weight\)"),
        ({"no_mem_embed": (1, 1, 128)}, r"1 of another shape \(image_encoder.no_mem_embed 1x1x128 for 1x1x256\)"),
        ({"sam_prompt_encoder.point_embeddings.2.weight": None}, "must be four rows"),
        ({"sam_prompt_encoder.point_embeddings.2.weight": (1, 128)}, "must be four rows"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(change: dict[str, tuple[int, ...] | None], complaint: str) -> None:
    state = released("tiny")
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.empty(shape, device="meta")
    with torch.device("meta"):
        model = SAM2.untrained(SAM2_FRAME, "tiny")
    with pytest.raises(WeightsError, match=complaint):
        weights.load_into(model, from_sam2(state))


def test_names_go_to_sam2_and_come_back_with_their_numbers() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {name: torch.randn(tensor.shape) for name, tensor in of_image(released("tiny")).items()}
    back = to_sam2(from_sam2(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("size", ["tiny", "large"])
@pytest.mark.parametrize("newer", [False, True], ids=["2.0", "2.1"])
def test_a_video_model_that_transformers_saved_becomes_the_released_image_part(size: Size, newer: bool) -> None:
    hiera = HIERA[size]
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(
            hidden_size=hiera.channels,
            blocks_per_stage=list(hiera.depths),
            embed_dim_per_stage=list(hiera.stages),
            window_size_per_stage=list(hiera.windows),
            global_attention_blocks=list(hiera.global_blocks),
            window_positional_embedding_background_size=[hiera.background] * 2,
        ),
        backbone_channel_list=list(reversed(hiera.stages)),
    )
    settings = {
        "enable_occlusion_spatial_embedding": newer,
        "enable_temporal_pos_encoding_for_object_pointers": newer,
    }
    with torch.device("meta"):
        theirs = Sam2VideoModel(Sam2VideoConfig(vision_config=vision, **settings)).state_dict()
    found = from_transformers({name: torch.zeros(1).expand(tensor.shape) for name, tensor in theirs.items()})
    marks: Shapes = {"maskmem_tpos_enc": (7, 1, 1, 64)}
    if newer:
        marks |= {"no_obj_embed_spatial": (1, 64), **layer("obj_ptr_tpos_proj", 64, 256)}
    assert shapes_of(found) == shapes_of(of_image(released(size))) | marks


def test_position_directions_are_read_from_either_copy_and_two_that_differ_are_refused() -> None:
    image = {"shared_image_embedding.positional_embedding": torch.zeros(2, 128)}
    prompts = {"prompt_encoder.shared_embedding.positional_embedding": torch.zeros(2, 128)}
    names = [list(from_transformers(copies)) for copies in (image, prompts, image | prompts)]
    assert names == [["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]] * 3
    different = {name: tensor + 1 for name, tensor in prompts.items()}
    with pytest.raises(WeightsError, match="must be the same"):
        from_transformers(image | different)
