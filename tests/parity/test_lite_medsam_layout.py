"""Our parameters carry the names and shapes of the released files, so those files will load; no weights needed."""

from pathlib import Path

import torch
from torch import nn

from palpate.models.frame import LITE_MEDSAM_FRAME
from palpate.models.lite_medsam import LiteMedSAM, TinyViT
from palpate.models.sam import to_segment_anything

Layout = dict[str, tuple[int, ...]]


def released() -> Layout:
    """Names and shapes in lite_medsam.pth, as it was published."""
    lines = (Path(__file__).parent / "lite_medsam_keys.txt").read_text().splitlines()
    layout: Layout = {}
    for line in lines:
        name, shape = line.split()
        layout[name] = () if shape == "scalar" else tuple(int(extent) for extent in shape.split("x"))
    return layout


def layout_of(module: nn.Module) -> Layout:
    return {name: tuple(tensor.shape) for name, tensor in to_segment_anything(module.state_dict()).items()}


def test_lite_medsam_has_the_names_and_shapes_of_the_released_weights() -> None:
    with torch.device("meta"):
        model = LiteMedSAM.untrained(LITE_MEDSAM_FRAME)
    assert layout_of(model) == released()


def test_lite_medsam_has_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        model = LiteMedSAM.untrained(LITE_MEDSAM_FRAME)

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(model.image_encoder) == 5_726_740
    assert count(model.prompt_decoder.prompt_encoder) == 6_220
    assert count(model.prompt_decoder.mask_decoder) == 4_058_340


def test_mobile_sams_encoder_differs_in_the_stem_only() -> None:
    with torch.device("meta"):
        encoder = TinyViT(stem="strided")
    prefix = "image_encoder."
    expected = {name.removeprefix(prefix): shape for name, shape in released().items() if name.startswith(prefix)}
    expected["patch_embed.seq.0.c.weight"] = (32, 3, 3, 3)
    expected["patch_embed.seq.2.c.weight"] = (64, 32, 3, 3)
    assert len(expected) == 302 - 4  # MobileSAM's file also holds the four tensors of two unused heads
    assert layout_of(encoder) == expected
