"""The Swin encoder against the sheet it was described by, written down step by step under the authors' names.

Nothing here is shared with the model but `load_state_dict` and the numbers: windows are visited one by one, patches
merged by `unfold`, and shift masks built as the released file stores them.
"""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from palpate.models.swin_lite_medsam import SwinEncoder, to_authors
from tiny_networks import tiny_swin_lite_medsam

WINDOW, SHIFT, HEAD = 8, 4, 32


def encoded(state: dict[str, Tensor], canvas: Tensor) -> list[Tensor]:
    """The maps of all stages and the features, channels first."""
    at = "image_encoder.patch_embed.seq."
    x = conv_norm(state, f"{at}0.", canvas)
    x = conv_norm(state, f"{at}2.", functional.gelu(x))
    found: list[Tensor] = []
    for stage, factor in ((1, 2), (2, 2), (3, 1), (4, 1)):
        at = f"image_encoder.stage{stage}."
        images, _, rows, columns = x.shape
        patches = functional.unfold(x, factor, stride=factor).transpose(1, 2)
        x = patches @ state[f"{at}downsample.linear.weight"].T + state[f"{at}downsample.linear.bias"]
        x = x.view(images, rows // factor, columns // factor, -1)
        pair = 0
        while f"{at}blocks.{pair}.0.attention_block.fn.norm.weight" in state:
            x = block(state, f"{at}blocks.{pair}.0.", x, shifted=False)
            x = block(state, f"{at}blocks.{pair}.1.", x, shifted=True)
            pair += 1
        x = x.permute(0, 3, 1, 2)
        found.append(x)
    at = "image_encoder.neck."
    x = functional.conv2d(x, state[f"{at}0.weight"])
    x = over_channels(x, state, f"{at}1.", 1e-6)
    x = functional.conv2d(x, state[f"{at}2.weight"], padding=1)
    return [*found, over_channels(x, state, f"{at}3.", 1e-6)]


def conv_norm(state: dict[str, Tensor], at: str, x: Tensor, *, padding: int = 0, groups: int = 1) -> Tensor:
    x = functional.conv2d(x, state[f"{at}c.weight"], padding=padding, groups=groups)
    mean, variance, weight, bias = (state[f"{at}bn.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(x, mean, variance, weight, bias)


def over_channels(x: Tensor, state: dict[str, Tensor], at: str, eps: float) -> Tensor:
    last = x.permute(0, 2, 3, 1)
    return functional.layer_norm(last, last.shape[-1:], state[f"{at}weight"], state[f"{at}bias"], eps).permute(
        0, 3, 1, 2
    )


def block(state: dict[str, Tensor], at: str, x: Tensor, *, shifted: bool) -> Tensor:
    channels = x.shape[-1:]
    inside = f"{at}attention_block.fn."
    normed = functional.layer_norm(x, channels, state[f"{inside}norm.weight"], state[f"{inside}norm.bias"], 1e-5)
    x = x + attention(state, f"{inside}fn.", normed, shifted=shifted)
    x = conv_norm(state, f"{at}local_conv.", x.permute(0, 3, 1, 2), padding=1, groups=channels[0]).permute(0, 2, 3, 1)
    inside = f"{at}mlp_block.fn."
    y = functional.layer_norm(x, channels, state[f"{inside}norm.weight"], state[f"{inside}norm.bias"], 1e-5)
    y = functional.gelu(y @ state[f"{inside}fn.net.0.weight"].T + state[f"{inside}fn.net.0.bias"])
    return x + y @ state[f"{inside}fn.net.2.weight"].T + state[f"{inside}fn.net.2.bias"]


def attention(
    state: dict[str, Tensor], at: str, x: Float[Tensor, "image row column channel"], *, shifted: bool
) -> Tensor:
    if shifted:
        x = torch.roll(x, (-SHIFT, -SHIFT), (1, 2))
    query, key, value = (x @ state[f"{at}to_qkv.weight"].T).chunk(3, dim=-1)
    images, rows, columns, inner = query.shape
    out = torch.zeros(images, rows, columns, inner)
    for image in range(images):
        for top in range(0, rows, WINDOW):
            for left in range(0, columns, WINDOW):
                here = (image, slice(top, top + WINDOW), slice(left, left + WINDOW))
                bias = positions(state[f"{at}pos_embedding"])
                if shifted and top == rows - WINDOW:
                    bias = bias + upper_lower_mask()
                if shifted and left == columns - WINDOW:
                    bias = bias + left_right_mask()
                for head in range(inner // HEAD):
                    part = slice(head * HEAD, (head + 1) * HEAD)
                    q, k, v = (each[here].reshape(WINDOW**2, inner)[:, part] for each in (query, key, value))
                    answer = (q @ k.T * HEAD**-0.5 + bias).softmax(dim=-1) @ v
                    out[here][..., part] = answer.view(WINDOW, WINDOW, HEAD)
    out = out @ state[f"{at}to_out.weight"].T + state[f"{at}to_out.bias"]
    return torch.roll(out, (SHIFT, SHIFT), (1, 2)) if shifted else out


def positions(table: Tensor) -> Tensor:
    bias = torch.zeros(WINDOW**2, WINDOW**2)
    for query in range(WINDOW**2):
        for key in range(WINDOW**2):
            down = key // WINDOW - query // WINDOW
            across = key % WINDOW - query % WINDOW
            bias[query, key] = table[down + 7, across + 7]
    return bias


def upper_lower_mask() -> Tensor:
    mask = torch.zeros(WINDOW**2, WINDOW**2)
    mask[-SHIFT * WINDOW :, : -SHIFT * WINDOW] = -torch.inf
    mask[: -SHIFT * WINDOW, -SHIFT * WINDOW :] = -torch.inf
    return mask


def left_right_mask() -> Tensor:
    mask = torch.zeros(WINDOW, WINDOW, WINDOW, WINDOW)
    mask[:, -SHIFT:, :, :-SHIFT] = -torch.inf
    mask[:, :-SHIFT, :, -SHIFT:] = -torch.inf
    return mask.view(WINDOW**2, WINDOW**2)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64)])
def test_every_map_of_the_encoder_is_what_the_sheet_says(height: int, width: int) -> None:
    network = tiny_swin_lite_medsam()
    encoder = network.image_encoder
    assert isinstance(encoder, SwinEncoder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *(b for n, b in encoder.named_buffers() if "running" in n)):
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.5 + 0.1)
        canvas = torch.rand(1, 3, height, width, generator=generator)
        wanted = encoded(to_authors(network.state_dict()), canvas)
        got = [*encoder.maps(canvas), encoder(canvas)]
    for ours, theirs in zip(got, wanted, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-5)
