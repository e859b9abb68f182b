from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from palpate.errors import ImageError
from palpate.models.frame import SAM_FRAME
from palpate.models.lite_medsam import LiteMedSAM
from palpate.models.mobile_sam import MobileSAM
from palpate.models.promptable import PromptBatch
from palpate.models.sam import SamPromptDecoder
from palpate.models.sam_vit import SAM, VisionTransformer, VitSize
from tiny_networks import tiny_lite_medsam, tiny_mobile_sam, tiny_sam

SMALL = VitSize(width=8, depth=3, heads=2, global_blocks=(1,))


def canvases(count: int) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    ("model", "grid", "width"),
    [(tiny_sam(), 8, 16), (tiny_mobile_sam(), 4, 32), (tiny_lite_medsam(), 16, 32)],
    ids=["SAM", "MobileSAM", "LiteMedSAM"],
)
def test_an_embedding_holds_the_encoders_last_two_maps_when_asked(
    model: SAM | MobileSAM | LiteMedSAM, grid: int, width: int
) -> None:
    box = PromptBatch(image_index=torch.tensor([1]), boxes=torch.tensor([[3.0, 4, 40, 50]]))
    with torch.inference_mode():
        plain = model.encode(canvases(2))
        assert plain.levels == ()
        model.keep_levels = True
        rich = model.encode(canvases(2))
        model.keep_levels = False
        assert [tuple(level.shape) for level in rich.levels] == [(2, width, grid, grid)] * 2
        assert plain.features.shape == (2, 32, grid, grid)
        assert torch.equal(rich.features, plain.features)
        # The neck reads the second; the first is another map.
        assert not torch.allclose(rich.levels[0], rich.levels[1])
        assert torch.equal(model.decode(rich, box).logits, model.decode(plain, box).logits)


def test_the_released_models_have_levels_on_the_decoders_grid() -> None:
    with torch.device("meta"):
        for model, width in (
            (SAM.untrained(SAM_FRAME, size="vit-b"), 768),
            (MobileSAM.untrained(SAM_FRAME), 320),
        ):
            model.keep_levels = True
            embedding = model.encode(torch.empty(1, 3, 1024, 1024))
            assert tuple(embedding.features.shape) == (1, 256, 64, 64)
            assert [tuple(level.shape) for level in embedding.levels] == [(1, width, 64, 64)] * 2


def test_the_levels_of_a_vit_are_what_its_last_two_blocks_give() -> None:
    model = tiny_sam()
    model.keep_levels = True
    seen: list[Tensor] = []
    for layer in list(model.image_encoder.layers)[-2:]:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.inference_mode():
        levels = model.encode(canvases(1)).levels
    for level, output in zip(levels, seen, strict=True):
        assert torch.equal(level, output.permute(0, 3, 1, 2))


def test_images_together_are_images_one_by_one() -> None:
    model = tiny_sam()
    with torch.inference_mode():
        together = model.encode(canvases(3)).features
        alone = torch.cat([model.encode(image[None]).features for image in canvases(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", [tiny_sam(), tiny_mobile_sam()], ids=["SAM", "MobileSAM"])
@pytest.mark.parametrize("shape", [(1, 3, 32, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_a_canvas_of_another_shape_is_refused(model: SAM | MobileSAM, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"\(image, 3, 64, 64\)"):
        model.encode(torch.zeros(shape))


# --- Canvases of another size -----------------------------------------------------------------------------------------


def sam_on(size: int) -> SAM:
    """A SAM with windows and strides as released, 8 channels wide."""
    torch.manual_seed(0)
    model = SAM(
        replace(SAM_FRAME, size=size, mask_size=size // 4),
        image_encoder=VisionTransformer(canvas_size=size, size=SMALL, channels=8),
        prompt_decoder=SamPromptDecoder(canvas_size=size, grid_stride=16, channels=8, heads=2, mlp_channels=8),
    )
    for name, parameter in model.image_encoder.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("size", [256, 512])
def test_weights_of_the_large_canvas_fit_a_smaller_one_once_they_are_resized(size: int) -> None:
    large, small = sam_on(1024), sam_on(size)
    state = dict(large.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        small.load_state_dict(state)
    fitted = small.resized(state)
    small.load_state_dict(fitted)
    changed = {name.removeprefix("image_encoder.") for name in state if fitted[name] is not state[name]}
    assert changed == {"pos_embed", "layers.1.attn.rel_pos_h", "layers.1.attn.rel_pos_w"}
    grid = size // 16
    assert fitted["image_encoder.pos_embed"].shape == (1, grid, grid, 8)
    assert fitted["image_encoder.layers.1.attn.rel_pos_h"].shape == (2 * grid - 1, 4)
    assert fitted["image_encoder.layers.0.attn.rel_pos_h"].shape == (27, 4)
    untouched = large.resized(state)
    assert all(untouched[name] is tensor for name, tensor in state.items())


def test_positions_that_rise_evenly_still_do() -> None:
    large, small = sam_on(1024), sam_on(256)
    state = dict(large.state_dict())
    centres = (torch.arange(64) + 0.5) / 64  # of cells, in shares of the canvas
    positions = torch.zeros(1, 64, 64, 8)
    positions[0, :, :, 0], positions[0, :, :, 1] = centres[:, None], centres
    distances = torch.linspace(-1, 1, 127)[:, None].expand(-1, 4)
    state |= {"image_encoder.pos_embed": positions, "image_encoder.layers.1.attn.rel_pos_h": distances}
    fitted = small.resized(state)
    found = fitted["image_encoder.pos_embed"][0]
    expected = (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(found[:, 3, 0], expected)
    torch.testing.assert_close(found[5, :, 1], expected)
    along = fitted["image_encoder.layers.1.attn.rel_pos_h"][:, 0]
    assert along[15].abs() < 1e-6  # no distance stays no distance
    steps = along.diff()
    torch.testing.assert_close(steps, steps.mean().expand(30), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [256, 512])
def test_relative_positions_are_resized_as_transformers_does_in_passing(size: int) -> None:
    large, small, lazy = sam_on(1024), sam_on(size), sam_on(size)
    state = dict(large.state_dict())
    small.load_state_dict(small.resized(state))
    lazy.load_state_dict(lazy.resized(state))
    # transformers' attention interpolates relative positions of another length each time it is called.
    attention = lazy.image_encoder.layers[1].attn
    for axis in ("rel_pos_h", "rel_pos_w"):
        setattr(attention, axis, torch.nn.Parameter(state[f"image_encoder.layers.1.attn.{axis}"]))
    by_hand = interpolate(
        state["image_encoder.pos_embed"].permute(0, 3, 1, 2), size=(size // 16, size // 16), mode="bilinear"
    )
    torch.testing.assert_close(small.image_encoder.pos_embed.detach(), by_hand.permute(0, 2, 3, 1))
    canvas = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(small.encode(canvas).features, lazy.encode(canvas).features, rtol=0, atol=1e-5)
