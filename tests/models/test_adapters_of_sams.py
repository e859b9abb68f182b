"""What can be trained of LiteMedSAM can be trained of SAM, MobileSAM and Swin-LiteMedSAM, and comes back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from palpate.models import adapters
from palpate.models.cards import AdapterCard, Trained
from palpate.models.mobile_sam import MobileSAM
from palpate.models.promptable import PromptBatch
from palpate.models.sam_vit import SAM
from palpate.models.swin_lite_medsam import SwinLiteMedSAM
from palpate.models.weights import encoder_hash
from tiny_networks import tiny_mobile_sam, tiny_sam, tiny_swin_lite_medsam

BOTH = ("decoder", "encoder")
CHOICES = {
    "decoder": Trained(("decoder",)),
    "prompt-encoder": Trained(("prompt-encoder",)),
    "bias-norm": Trained(("bias-norm",), BOTH),
    "lora on the decoder": Trained(("lora",), rank=2),
    "lora on the encoder": Trained(("lora",), ("encoder",), rank=2),
    "decoder, lora on every linear layer of the encoder": Trained(
        ("decoder", "lora"), ("encoder",), rank=2, targets="linear"
    ),
    "adapter": Trained(("adapter",), BOTH, width=4),
    "last-blocks": Trained(("last-blocks",), blocks=2),
    "full": Trained(("full",)),
}


def answers(network: SAM | MobileSAM | SwinLiteMedSAM) -> Tensor:
    dice = torch.Generator().manual_seed(1)
    side = network.frame.mask_size
    batch = PromptBatch(
        image_index=torch.tensor([0, 1]),
        boxes=torch.tensor([[4.0, 5.0, 40.0, 50.0], [20.0, 8.0, 60.0, 33.0]]),
        points=torch.rand(2, 2, 2, generator=dice) * 63,
        point_labels=torch.tensor([[1, 0], [1, 1]]),
        masks=torch.randn(2, 1, side, side, generator=dice),
    )
    found = network.decode(network.encode(torch.rand(2, 3, 64, 64, generator=dice)), batch)
    return torch.cat([found.logits.flatten(), found.predicted_iou.flatten()])


@pytest.mark.parametrize("build", [tiny_sam, tiny_mobile_sam, tiny_swin_lite_medsam])
@pytest.mark.parametrize("choice", CHOICES)
def test_what_was_trained_comes_back_out_of_the_file(
    build: Callable[[], SAM | MobileSAM | SwinLiteMedSAM], choice: str, tmp_path: Path
) -> None:
    trained, network = CHOICES[choice], build()
    untrained, encoder_before = answers(network).detach(), encoder_hash(network)
    torch.manual_seed(3)
    moving = adapters.trainable(network, trained)
    assert trained.moves_encoder == any(name.startswith("image_encoder.") for name in moving)
    optimiser = torch.optim.SGD(moving.values(), lr=0.02)
    for _ in range(2):  # LoRA's first matrix moves from the second step on
        optimiser.zero_grad()
        (-answers(network).abs().mean()).backward()
        reached = [each for each in moving.values() if each.grad is not None and each.grad.norm() > 0]
        for parameter in reached:
            assert parameter.grad is not None
            parameter.grad /= parameter.grad.norm()
        optimiser.step()
    assert len(reached) > len(moving) / 2

    card = AdapterCard("mine", "tiny", "0" * 64, trained, ("box",))
    adapters.save(adapters.extracted(network, card), tmp_path / "adapter.safetensors")
    fresh = build()
    adapters.applied(fresh, adapters.read(tmp_path / "adapter.safetensors"))
    with torch.inference_mode():
        wanted, found = answers(network), answers(fresh)
    assert (wanted - untrained).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    # What makes skip connections is trained with the decoder, and is a part of what an embedding holds.
    skips = getattr(network, "skip_neck", None) is not None and "decoder" in trained.parts
    assert (encoder_hash(fresh) != encoder_before) == (trained.moves_encoder or skips)


def test_beside_a_vit_lora_stands_where_queries_and_values_are_made() -> None:
    network = tiny_sam()
    found = adapters.trainable(network, Trained(("lora",), ("encoder",)))
    layers = [f"image_encoder.layers.{number}.attn.qkv" for number in range(3)]
    assert set(found) == {f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"}


def test_the_last_blocks_of_a_vit_are_its_last_layers_and_the_neck() -> None:
    found = adapters.trainable(tiny_sam(), Trained(("last-blocks",), blocks=2))
    assert {name.split(".")[1] + "." + name.split(".")[2] for name in found} == {
        "layers.1",
        "layers.2",
        "neck.conv1",
        "neck.conv2",
        "neck.layer_norm1",
        "neck.layer_norm2",
    }


def test_bottlenecks_stand_beside_the_mlp_of_each_block_of_a_vit() -> None:
    found = adapters.trainable(tiny_sam(), Trained(("adapter",), ("encoder",), width=4))
    mlps = [f"image_encoder.layers.{number}.mlp" for number in range(3)]
    assert set(found) == {
        f"{m}.{layer}.{kind}" for m in mlps for layer in ("down", "up") for kind in ("weight", "bias")
    }


def test_the_last_blocks_of_a_swin_are_counted_through_its_pairs() -> None:
    found = adapters.trainable(tiny_swin_lite_medsam(), Trained(("last-blocks",), blocks=3))
    assert {".".join(name.split(".")[1:5]) for name in found if ".stage" in name} == {
        "stage3.blocks.1.1",
        "stage4.blocks.0.0",
        "stage4.blocks.0.1",
    }


def test_the_mask_head_of_a_swin_lite_medsam_is_its_own() -> None:
    found = adapters.trainable(tiny_swin_lite_medsam(), Trained(("mask-head",)))
    heads = {name.split(".")[2] for name in found}
    assert heads == {"mask_tokens", "upscaling1", "upscaling2", "output_hypernetworks_mlps"}
