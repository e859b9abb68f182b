"""The files of SAM, MedSAM and MobileSAM will load: their names and shapes, written down here by hand, are ours.

The half behind the encoder is that of LiteMedSAM's file, tensor by tensor.
"""

import pytest
import torch
from test_lite_medsam_layout import Layout, released
from torch import Tensor, nn

from palpate.errors import WeightsError
from palpate.models.catalogue import ModelCard, card
from palpate.models.weights import load_into, recognise

SIZES = {
    # width, blocks, channels of a head, global blocks; entries and parameters of the encoder as counted in the files
    "sam-vit-b": (768, 12, 64, (2, 5, 8, 11), 177, 89_670_912),
    "medsam": (768, 12, 64, (2, 5, 8, 11), 177, 89_670_912),
    "sam-vit-l": (1024, 24, 64, (5, 11, 17, 23), 345, 308_278_272),
    "sam-vit-h": (1280, 32, 80, (7, 15, 23, 31), 457, 637_026_048),
}


def vit_file(name: str) -> Layout:
    """Names and shapes in the file of a SAM, as it was published."""
    width, blocks, head, global_blocks, *_ = SIZES[name]
    layout: Layout = {name: shape for name, shape in released().items() if not name.startswith("image_encoder.")}
    encoder: Layout = {
        "pos_embed": (1, 64, 64, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "neck.0.weight": (256, width, 1, 1),
        "neck.1.weight": (256,),
        "neck.1.bias": (256,),
        "neck.2.weight": (256, 256, 3, 3),
        "neck.3.weight": (256,),
        "neck.3.bias": (256,),
    }
    for number in range(blocks):
        distances = 127 if number in global_blocks else 27
        block: Layout = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.rel_pos_h": (distances, head),
            "attn.rel_pos_w": (distances, head),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.lin1.weight": (4 * width, width),
            "mlp.lin1.bias": (4 * width,),
            "mlp.lin2.weight": (width, 4 * width),
            "mlp.lin2.bias": (width,),
        }
        encoder |= {f"blocks.{number}.{part}": shape for part, shape in block.items()}
    return layout | {f"image_encoder.{part}": shape for part, shape in encoder.items()}


def mobile_sam_file() -> Layout:
    """Names and shapes in mobile_sam.pt: LiteMedSAM's with another stem, and a classifier that nothing uses."""
    return released() | {
        "image_encoder.patch_embed.seq.0.c.weight": (32, 3, 3, 3),
        "image_encoder.patch_embed.seq.2.c.weight": (64, 32, 3, 3),
        "image_encoder.norm_head.weight": (320,),
        "image_encoder.norm_head.bias": (320,),
        "image_encoder.head.weight": (1000, 320),
        "image_encoder.head.bias": (1000,),
    }


def as_tensors(layout: Layout) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


def built(model: ModelCard) -> nn.Module:
    with torch.device("meta"):
        network = model.build()
    assert isinstance(network, nn.Module)
    return network


@pytest.mark.parametrize("name", SIZES)
def test_a_file_of_sam_has_our_names_and_shapes(name: str) -> None:
    state, model = as_tensors(vit_file(name)), card(name)
    found = recognise(state)
    assert found is not None
    assert found.name == model.layout
    network = built(model)
    load_into(network, model.rename(state))
    assert {n: tuple(t.shape) for n, t in model.restore(dict(network.state_dict())).items()} == vit_file(name)


@pytest.mark.parametrize("name", SIZES)
def test_the_encoders_have_as_many_entries_and_parameters_as_published(name: str) -> None:
    network = built(card(name))
    *_, entries, parameters = SIZES[name]
    encoder = network.get_submodule("image_encoder")
    assert sum(part.startswith("image_encoder.") for part in vit_file(name)) == len(encoder.state_dict()) == entries
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    others = sum(parameter.numel() for parameter in network.parameters()) - parameters
    assert others == 6_220 + 4_058_340
    if entries == 177:
        assert parameters + others == 93_735_472


def test_a_file_of_mobile_sam_has_our_names_and_shapes_and_a_classifier() -> None:
    layout, model = mobile_sam_file(), card("mobile-sam")
    assert sum(name.startswith("image_encoder.") for name in layout) == 302
    state = as_tensors(layout)
    found = recognise(state)
    assert found is not None
    assert found.name == model.layout
    network = built(model)
    with pytest.raises(WeightsError, match="4 unexpected"):
        load_into(network, model.rename(state))
    used = {name: tensor for name, tensor in state.items() if name not in model.unused}
    load_into(network, model.rename(used))
    assert model.restore(dict(network.state_dict())).keys() == used.keys()


def test_a_name_too_many_or_too_few_is_noticed() -> None:
    model = card("sam-vit-b")
    state = as_tensors(vit_file("sam-vit-b"))
    state["image_encoder.blocks.12.norm1.weight"] = state.pop("image_encoder.blocks.11.norm1.weight")
    with pytest.raises(WeightsError, match=r"1 missing .*; 1 unexpected"):
        load_into(built(model), model.rename(state))


def test_another_sizes_weights_do_not_fit() -> None:
    model = card("sam-vit-b")
    with pytest.raises(WeightsError, match=r"168 unexpected .* of another shape"):
        load_into(built(model), model.rename(as_tensors(vit_file("sam-vit-l"))))
