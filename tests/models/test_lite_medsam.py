import numpy as np
import pytest
import torch
from torch import nn

from palpate.errors import ImageError
from palpate.models.lite_medsam import AttentionBlock, LiteMedSAM, TinyViT, WindowAttention
from palpate.models.promptable import PromptBatch


def canvases(count: int, size: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def test_an_embedding_has_a_quarter_of_the_canvas_rows_and_columns(tiny_model: LiteMedSAM) -> None:
    assert tiny_model.encode(canvases(2)).features.shape == (2, 32, 16, 16)


def test_numpy_canvases_are_as_good_as_tensors(tiny_model: LiteMedSAM) -> None:
    canvas = canvases(1)
    with torch.inference_mode():
        torch.testing.assert_close(
            tiny_model.encode(canvas.numpy()).features, tiny_model.encode(canvas).features, rtol=0, atol=0
        )


def test_three_images_together_are_three_images_one_by_one(tiny_model: LiteMedSAM) -> None:
    images = canvases(3)
    with torch.inference_mode():
        together = tiny_model.encode(images).features
        one_by_one = torch.cat([tiny_model.encode(image[None]).features for image in images])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 32, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_a_canvas_of_another_shape_is_refused(tiny_model: LiteMedSAM, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"\(image, 3, 64, 64\)"):
        tiny_model.encode(torch.zeros(shape))


@pytest.mark.parametrize(("stem", "stride"), [("pointwise", 4), ("strided", 16)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (112, 64), (32, 96)])
def test_the_encoder_takes_any_canvas_made_of_whole_cells(stem: str, stride: int, height: int, width: int) -> None:
    encoder = TinyViT(stem=stem, widths=(8, 32, 32, 32), depths=(1, 1, 1, 1), channels=16).eval()
    assert encoder.stride == stride
    with torch.inference_mode():
        features = encoder(torch.zeros(1, 3, height, width))
    assert features.shape == (1, 16, height // stride, width // stride)


def test_mobile_sam_sees_the_grid_of_lite_medsam_on_a_canvas_four_times_as_wide() -> None:
    with torch.device("meta"):
        lite, mobile = TinyViT(stem="pointwise"), TinyViT(stem="strided")
        assert lite(torch.empty(1, 3, 256, 256)).shape == mobile(torch.empty(1, 3, 1024, 1024)).shape


def test_attention_bias_depends_on_the_distance_alone() -> None:
    attention = WindowAttention(32, window=3)
    index = attention.bias_index
    # In a window of 3 x 3, token 0 is the upper left corner, token 4 the middle, token 5 the one to its right.
    assert index[4, 4] == 0
    assert index[4, 5] == index[5, 4] == index[0, 1] == 1  # one column apart
    assert index[4, 1] == index[0, 3] == 3  # one row apart
    assert index[0, 8] == index[2, 6] == 8  # opposite corners
    assert index.unique().numel() == 9


def test_weights_loaded_in_eval_mode_take_effect_at_once() -> None:
    attention = WindowAttention(32, window=3).eval()
    x = torch.rand(1, 9, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = attention(x)
    state = attention.state_dict()
    # Each token is to look at itself only.
    state["attention_biases"] = torch.tensor([[0.0] + 8 * [-1e4]])
    attention.load_state_dict(state)
    with torch.inference_mode():
        alone = attention.proj(attention.qkv(attention.norm(x))[..., 64:])
        torch.testing.assert_close(attention(x), alone)
        assert not torch.allclose(before, alone)


def test_a_window_attends_to_its_zero_filling_as_the_reference_does() -> None:
    block = AttentionBlock(32, window=4).eval()
    x = torch.rand(1, 3, 3, 32, generator=torch.Generator().manual_seed(0))
    nn.init.constant_(block.attn.norm.bias, 0.5)
    filled = torch.zeros(1, 4, 4, 32)
    filled[:, :3, :3] = x
    with torch.inference_mode():
        by_hand = block.attn(filled.view(1, 16, 32)).view(1, 4, 4, 32)[:, :3, :3]
        torch.testing.assert_close(block._attend(x), by_hand)


def test_windows_do_not_see_one_another() -> None:
    block = AttentionBlock(32, window=4).eval()
    x = torch.rand(1, 8, 8, 32, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 4:, 4:] = 0
    with torch.inference_mode():
        same = (block._attend(x) == block._attend(changed)).all(dim=-1)[0]
    assert same[:4].all()
    assert same[:, :4].all()
    assert not same[4:, 4:].any()


def test_a_box_gives_a_mask_on_the_canvas_and_gradients_reach_the_encoder(tiny_model: LiteMedSAM) -> None:
    prediction = tiny_model.decode(
        tiny_model.encode(canvases(2)),
        PromptBatch(image_index=np.array([1, 0, 1]), boxes=np.array([[3, 4, 40, 50]] * 3)),
    )
    assert prediction.logits.shape == (3, 1, 64, 64)
    assert prediction.predicted_iou.shape == (3, 1)
    prediction.logits.sum().backward()
    gradient = tiny_model.image_encoder.patch_embed.seq[0].c.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
