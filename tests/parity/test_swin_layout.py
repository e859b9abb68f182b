"""The file of Swin-LiteMedSAM will load: its names and shapes, written down here by hand, are ours but for dead ones.

The prompt encoder and SAM's part of the decoder are those of LiteMedSAM's file, tensor by tensor.
"""

from math import prod
from pathlib import Path

import pytest
import torch
from test_lite_medsam_layout import Layout, released
from torch import Tensor

from palpate.errors import WeightsError
from palpate.models.catalogue import SWIN_LITE_MEDSAM
from palpate.models.swin_lite_medsam import SwinLiteMedSAM
from palpate.models.weights import load_into, load_state, recognise

STAGES = {1: (64, 128, 2, 2, 1), 2: (128, 160, 2, 4, 1), 3: (160, 320, 1, 5, 3), 4: (320, 320, 1, 10, 1)}
"""Channels before and after, merged rows and columns, heads, pairs of blocks."""

NECK: Layout = {
    "1.weight": (256,),
    "1.bias": (256,),
    "2.weight": (256, 256, 3, 3),
    "3.weight": (256,),
    "3.bias": (256,),
}


def norm(at: str, channels: int) -> Layout:
    return {f"{at}weight": (channels,), f"{at}bias": (channels,)}


def conv_norm(at: str, shape: tuple[int, ...]) -> Layout:
    statistics: Layout = {f"{at}bn.{name}": (shape[0],) for name in ("running_mean", "running_var")}
    return {f"{at}c.weight": shape, **norm(f"{at}bn.", shape[0]), **statistics, f"{at}bn.num_batches_tracked": ()}


def stage(number: int) -> Layout:
    before, channels, merged, heads, pairs = STAGES[number]
    layout: Layout = {
        "downsample.linear.weight": (channels, before * merged**2),
        "downsample.linear.bias": (channels,),
    }
    for pair in range(pairs):
        for shifted in (0, 1):
            at = f"blocks.{pair}.{shifted}."
            inside = f"{at}attention_block.fn.fn."
            layout |= norm(f"{at}attention_block.fn.norm.", channels)
            layout |= {
                f"{inside}to_qkv.weight": (3 * 32 * heads, channels),
                f"{inside}to_out.weight": (channels, 32 * heads),
                f"{inside}to_out.bias": (channels,),
                f"{inside}pos_embedding": (15, 15),
            }
            if shifted:
                layout |= {f"{inside}{side}_mask": (64, 64) for side in ("upper_lower", "left_right")}
            layout |= conv_norm(f"{at}local_conv.", (channels, 1, 3, 3))
            layout |= norm(f"{at}mlp_block.fn.norm.", channels)
            layout |= {
                f"{at}mlp_block.fn.fn.net.0.weight": (4 * channels, channels),
                f"{at}mlp_block.fn.fn.net.0.bias": (4 * channels,),
                f"{at}mlp_block.fn.fn.net.2.weight": (channels, 4 * channels),
                f"{at}mlp_block.fn.fn.net.2.bias": (channels,),
            }
    return {f"stage{number}.{name}": shape for name, shape in layout.items()}


def encoder() -> Layout:
    layout = conv_norm("patch_embed.seq.0.", (32, 3, 1, 1)) | conv_norm("patch_embed.seq.2.", (64, 32, 1, 1))
    for number in STAGES:
        layout |= stage(number)
    layout |= {"neck.0.weight": (256, 320, 1, 1)} | {f"neck.{name}": shape for name, shape in NECK.items()}
    return {f"image_encoder.{name}": shape for name, shape in layout.items()}


def decoder() -> Layout:
    lite = {name: shape for name, shape in released().items() if name.startswith("mask_decoder.")}
    layout = {name: shape for name, shape in lite.items() if ".output_upscaling." not in name}
    own: Layout = {"neck.0.weight": (256, 800, 1, 1)} | {f"neck.{name}": shape for name, shape in NECK.items()}
    own |= {"output_upscaling1.0.weight": (256, 512, 1, 1), "output_upscaling1.0.bias": (256,)}
    own |= norm("output_upscaling1.1.", 256)
    own |= {"output_upscaling1.3.weight": (256, 128, 2, 2), "output_upscaling1.3.bias": (128,)}
    own |= {"output_upscaling2.0.weight": (64, 256, 1, 1), "output_upscaling2.0.bias": (64,)}
    own |= norm("output_upscaling2.1.", 64)
    own |= {"output_upscaling2.3.weight": (64, 32, 2, 2), "output_upscaling2.3.bias": (32,)}
    return layout | {f"mask_decoder.{name}": shape for name, shape in own.items()}


def prompt_encoder() -> Layout:
    return {name: shape for name, shape in released().items() if name.startswith("prompt_encoder.")}


def file() -> dict[str, Tensor]:
    """A file of the published names and shapes. The dead blocks are some tensors under their names."""
    layout = encoder() | prompt_encoder() | decoder()
    state = {name: torch.zeros(shape) for name, shape in layout.items()}
    return state | {f"mask_decoder.prompt{number}.{part}": torch.zeros(2) for number in (1, 2) for part in ("a", "b.c")}


def parameters(layout: Layout, *, but: str = "running_ num_batches positional_encoding") -> int:
    return sum(prod(shape) for name, shape in layout.items() if not any(part in name for part in but.split()))


def test_the_sheet_has_as_many_entries_and_parameters_as_were_counted_in_the_authors_code() -> None:
    assert (len(encoder()), len(prompt_encoder())) == (254, 17)
    assert parameters(encoder()) == 10_564_748
    assert parameters(prompt_encoder()) == 6_220
    assert parameters(decoder()) == 26_196_878 - 10_633_861 - 10_495_141


def test_our_model_lacks_the_masks_of_windows_and_nothing_else() -> None:
    with torch.device("meta"):
        model = SwinLiteMedSAM.untrained(SWIN_LITE_MEDSAM.frame)
    ours = {name: tuple(tensor.shape) for name, tensor in SWIN_LITE_MEDSAM.restore(model.state_dict()).items()}
    masks = {name: shape for name, shape in encoder().items() if name.endswith("_mask")}
    assert parameters(masks) == 49_152
    stored = encoder() | prompt_encoder() | decoder()
    assert ours == {name: shape for name, shape in stored.items() if name not in masks}
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == SWIN_LITE_MEDSAM.parameters == 15_638_844 - 49_152


@pytest.mark.parametrize("wrapper", [None, "model"])
def test_a_file_loads_without_a_missing_or_unexpected_name(wrapper: str | None, tmp_path: Path) -> None:
    content = file()
    torch.save(content if wrapper is None else {wrapper: content}, tmp_path / "Swin_LiteMedSAM.pth")
    state = load_state(tmp_path / "Swin_LiteMedSAM.pth", SWIN_LITE_MEDSAM)
    network = SWIN_LITE_MEDSAM.build()
    load_into(network, SWIN_LITE_MEDSAM.rename(state))  # pyright: ignore[reportArgumentType]
    assert not any(parameter.any() for parameter in network.parameters())  # pyright: ignore[reportAttributeAccessIssue]


def test_a_file_is_recognised_by_its_stages() -> None:
    found = recognise(file())
    assert found is not None
    assert found.name == SWIN_LITE_MEDSAM.layout


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    content = file()
    del content["mask_decoder.neck.2.weight"]
    torch.save(content, tmp_path / "cut.pth")
    state = load_state(tmp_path / "cut.pth", SWIN_LITE_MEDSAM)
    with pytest.raises(WeightsError, match="skip_neck"):
        load_into(SWIN_LITE_MEDSAM.build(), SWIN_LITE_MEDSAM.rename(state))  # pyright: ignore[reportArgumentType]
