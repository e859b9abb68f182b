import copy
import dataclasses
import json
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from palpate.errors import OutputError, SettingError, WeightsError
from palpate.models import adapters, cards
from palpate.models.adapters import Adapter, Bottleneck
from palpate.models.cards import AdapterCard, Trained
from palpate.models.lite_medsam import LiteMedSAM
from palpate.models.promptable import PromptBatch
from palpate.models.weights import content_hash, encoder_hash
from tiny_networks import tiny_lite_medsam

ENCODER, DECODER = "image_encoder", "prompt_decoder.mask_decoder"
PROMPTS = "prompt_decoder.prompt_encoder"
BLOCKS = [f"{ENCODER}.layers.{stage}.blocks.0" for stage in (1, 2, 3)]
ATTENTIONS = [
    *(
        f"{DECODER}.transformer.layers.{i}.{name}"
        for i in (0, 1)
        for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    ),
    f"{DECODER}.transformer.final_attn_token_to_image",
]
DECODER_MLPS = [f"{DECODER}.transformer.layers.{i}.mlp" for i in (0, 1)]
HEADS = [
    f"{DECODER}.{name}.{layer}"
    for name in (*(f"output_hypernetworks_mlps.{i}" for i in range(4)), "iou_prediction_head")
    for layer in ("proj_in", "proj_out", "layers.0")
]
DECODER_LINEAR = [
    *(f"{attention}.{name}" for attention in ATTENTIONS for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(f"{mlp}.{name}" for mlp in DECODER_MLPS for name in ("lin1", "lin2")),
    *HEADS,
]
BATCH_NORMS = [
    *(f"{ENCODER}.patch_embed.seq.{i}.bn" for i in (0, 2)),
    *(f"{ENCODER}.layers.0.blocks.0.conv{i}.bn" for i in (1, 2, 3)),
    *(f"{ENCODER}.layers.{stage}.downsample.conv{i}.bn" for stage in (0, 1, 2) for i in (1, 2, 3)),
    *(f"{block}.local_conv.bn" for block in BLOCKS),
]
ENCODER_BIAS_NORM = [
    *(f"{norm}.{kind}" for norm in BATCH_NORMS for kind in ("weight", "bias")),
    *(
        f"{block}.{norm}.{kind}"
        for block in BLOCKS
        for norm in ("attn.norm", "mlp.norm")
        for kind in ("weight", "bias")
    ),
    *(f"{block}.{layer}.bias" for block in BLOCKS for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    *(f"{ENCODER}.neck.{i}.{kind}" for i in (1, 3) for kind in ("weight", "bias")),
]
DECODER_BIAS_NORM = [
    *(f"{layer}.bias" for layer in DECODER_LINEAR),
    *(
        f"{DECODER}.transformer.layers.{i}.layer_norm{n}.{k}"
        for i in (0, 1)
        for n in (1, 2, 3, 4)
        for k in ("weight", "bias")
    ),
    *(
        f"{DECODER}.{name}.{k}"
        for name in ("transformer.layer_norm_final_attn", "upscale_layer_norm")
        for k in ("weight", "bias")
    ),
    *(f"{DECODER}.upscale_conv{i}.bias" for i in (1, 2)),
]


def lora(*layers: str) -> list[str]:
    return [f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"]


def bottleneck(*mlps: str) -> list[str]:
    return [f"{mlp}.{layer}.{kind}" for mlp in mlps for layer in ("down", "up") for kind in ("weight", "bias")]


QV = [f"{attention}.{name}" for attention in ATTENTIONS for name in ("q_proj", "v_proj")]
QKV = [f"{block}.attn.qkv" for block in BLOCKS]
ENCODER_LINEAR = [f"{block}.{name}" for block in BLOCKS for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
ENCODER_MLPS = [f"{block}.mlp" for block in BLOCKS]
LAST = [f"{BLOCKS[2]}.*", f"{ENCODER}.neck.*"]

BOTH = ("decoder", "encoder")
# What is trained, and what then moves: names of weights, * standing for anything.
CHOICES: dict[str, tuple[Trained, list[str]]] = {
    "decoder": (Trained(("decoder",)), [f"{DECODER}.*"]),
    "prompt-encoder": (Trained(("prompt-encoder",)), [f"{PROMPTS}.*"]),
    "decoder, prompt-encoder": (Trained(("decoder", "prompt-encoder")), [f"{DECODER}.*", f"{PROMPTS}.*"]),
    "bias-norm": (Trained(("bias-norm",)), DECODER_BIAS_NORM),
    "bias-norm, encoder": (Trained(("bias-norm",), ("encoder",)), ENCODER_BIAS_NORM),
    "bias-norm, both": (Trained(("bias-norm",), BOTH), DECODER_BIAS_NORM + ENCODER_BIAS_NORM),
    "lora": (Trained(("lora",), rank=2, alpha=6), lora(*QV)),
    "lora, encoder": (Trained(("lora",), ("encoder",), rank=3, alpha=4), lora(*QKV)),
    "lora, both": (Trained(("lora",), BOTH), lora(*QV, *QKV)),
    "lora, linear": (Trained(("lora",), targets="linear"), lora(*DECODER_LINEAR)),
    "lora, linear, encoder": (Trained(("lora",), ("encoder",), targets="linear"), lora(*ENCODER_LINEAR)),
    "adapter": (Trained(("adapter",), width=5), bottleneck(*DECODER_MLPS)),
    "adapter, encoder": (Trained(("adapter",), ("encoder",)), bottleneck(*ENCODER_MLPS)),
    "adapter, both": (Trained(("adapter",), BOTH), bottleneck(*DECODER_MLPS, *ENCODER_MLPS)),
    "last-blocks": (Trained(("last-blocks",)), LAST),
    "last-blocks, 2": (Trained(("last-blocks",), blocks=2), [*LAST, f"{BLOCKS[1]}.*"]),
    "last-blocks, 4": (
        Trained(("last-blocks",), blocks=4),
        [*LAST, *(f"{b}.*" for b in BLOCKS[:2]), f"{ENCODER}.layers.0.blocks.0.*"],
    ),
    "full": (Trained(("full",)), ["*"]),
    "decoder, lora on the encoder": (Trained(("decoder", "lora"), ("encoder",)), [f"{DECODER}.*", *lora(*QKV)]),
    # The decoder moves as it is: LoRA beside it would be a second way to the same weights.
    "decoder, lora on both": (Trained(("lora", "decoder"), BOTH), [f"{DECODER}.*", *lora(*QKV)]),
    "last-blocks, lora on the encoder": (Trained(("last-blocks", "lora"), ("encoder",)), [*LAST, *lora(*QKV[:2])]),
    "decoder, adapter": (Trained(("decoder", "adapter")), [f"{DECODER}.*"]),
    # Biases move into the wrapped layers.
    "lora, bias-norm, on both": (
        Trained(("lora", "bias-norm"), BOTH),
        lora(*QV, *QKV)
        + [
            f"{name.removesuffix('.bias')}.base_layer.bias" if name.removesuffix(".bias") in QV + QKV else name
            for name in DECODER_BIAS_NORM + ENCODER_BIAS_NORM
        ],
    ),
    "adapter, lora, on every linear layer of both": (
        Trained(("adapter", "lora"), BOTH, targets="linear"),
        bottleneck(*DECODER_MLPS, *ENCODER_MLPS)
        + lora(*(name.replace(".mlp.", ".mlp.inner.") for name in DECODER_LINEAR + ENCODER_LINEAR)),
    ),
    "all that is added, and biases": (
        Trained(("bias-norm", "adapter", "lora", "prompt-encoder"), BOTH),
        [
            *lora(*QV, *QKV),
            *bottleneck(*DECODER_MLPS, *ENCODER_MLPS),
            f"{PROMPTS}.*",
            *(
                f"{name.removesuffix('.bias')}.base_layer.bias"
                if name.removesuffix(".bias") in QV + QKV
                else name.replace(".mlp.", ".mlp.inner.")
                for name in DECODER_BIAS_NORM + ENCODER_BIAS_NORM
            ),
        ],
    ),
}
every = pytest.mark.parametrize("choice", CHOICES)


def answers(network: LiteMedSAM) -> Tensor:
    """All that the network says to a box, two points and a mask on two random canvases."""
    dice = torch.Generator().manual_seed(1)
    batch = PromptBatch(
        image_index=torch.tensor([0, 1]),
        boxes=torch.tensor([[4.0, 5.0, 40.0, 50.0], [20.0, 8.0, 60.0, 33.0]]),
        points=torch.rand(2, 2, 2, generator=dice) * 63,
        point_labels=torch.tensor([[1, 0], [1, 1]]),
        masks=torch.randn(2, 1, 64, 64, generator=dice),
    )
    found = network.decode(network.encode(torch.rand(2, 3, 64, 64, generator=dice)), batch)
    return torch.cat([found.logits.flatten(), found.predicted_iou.flatten()])


@cache  # what is given out is only looked at
def trained_network(choice: Trained) -> LiteMedSAM:
    """The tiny network after two steps of gradient descent towards louder answers."""
    network = tiny_lite_medsam()
    torch.manual_seed(3)
    moving = adapters.trainable(network, choice)
    optimiser = torch.optim.SGD(moving.values(), lr=0.02)
    for _ in range(2):
        optimiser.zero_grad()
        (-answers(network).abs().mean()).backward()
        # Each tensor as far as the others, however deep it lies: what does not move proves nothing.
        for parameter in moving.values():
            if parameter.grad is not None and parameter.grad.norm() > 0:
                parameter.grad /= parameter.grad.norm()
        optimiser.step()
    return network


def card(choice: Trained | None = None, **changes: Any) -> AdapterCard:
    known = {
        "name": "mine",
        "base": "tiny",
        "base_sha256": "0" * 64,
        "trained": choice or Trained(),
        "prompts": ("box",),
    }
    return AdapterCard(**known | changes)


def adapter_of(choice: Trained) -> Adapter:
    return adapters.extracted(trained_network(choice), card(choice))


def hash_of(network: nn.Module) -> str:
    return content_hash(network.state_dict())


BASE = tiny_lite_medsam()
UNTOUCHED, ENCODER_UNTOUCHED, UNTRAINED = hash_of(BASE), encoder_hash(BASE), answers(BASE).detach()


# --- Before and during training ---------------------------------------------------------------------------------------


@every
def test_exactly_what_was_chosen_moves(choice: str) -> None:
    trained, moving = CHOICES[choice]
    network = tiny_lite_medsam()
    found = adapters.trainable(network, trained)
    everything = dict(network.named_parameters())
    assert set(found) == {name for name in everything if any(fnmatch(name, pattern) for pattern in moving)}
    assert all(everything[name] is parameter for name, parameter in found.items())
    assert {name for name, parameter in everything.items() if parameter.requires_grad} == set(found)
    # No pattern is there for nothing.
    assert all(any(fnmatch(name, pattern) for name in found) for pattern in moving)
    # Known beforehand.
    assert trained.moves_encoder == any(name.startswith(ENCODER) for name in found)


@every
def test_training_changes_nothing_else_and_no_statistics_of_a_batch(choice: str) -> None:
    trained, _ = CHOICES[choice]
    before = tiny_lite_medsam()
    torch.manual_seed(3)
    names = set(adapters.trainable(before, trained))
    after = trained_network(trained)
    assert not any(module.training for module in after.modules())
    then, now = before.state_dict(), after.state_dict()
    changed = {name for name, tensor in now.items() if not torch.equal(tensor, then[name])}
    assert changed <= names
    assert len(changed) > len(names) / 2


@pytest.mark.parametrize("choice", ["lora, both", "adapter, both", "all that is added, and biases"])
def test_what_is_added_changes_nothing_before_the_first_step(choice: str) -> None:
    network = tiny_lite_medsam()
    with torch.inference_mode():
        before = answers(network)
        adapters.trainable(network, CHOICES[choice][0])
        torch.testing.assert_close(answers(network), before, rtol=0, atol=0)


def test_new_weights_follow_the_seed_and_the_type_of_the_network() -> None:
    drawn: list[dict[str, Tensor]] = []
    for seed in (5, 5, 6):
        network = tiny_lite_medsam().double()
        torch.manual_seed(seed)
        parameters = adapters.trainable(network, Trained(("adapter", "lora")))
        assert {parameter.dtype for parameter in parameters.values()} == {torch.float64}
        drawn.append({name: parameter.detach() for name, parameter in parameters.items()})
    first, again, other = map(content_hash, drawn)
    assert first == again != other


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"parts": ()}, "nothing is to be trained"),
        ({"parts": ("head",)}, "'head' cannot be trained"),
        ({"where": ("neck",)}, "'neck' cannot be trained"),
        ({"where": ()}, "`where` is empty"),
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"alpha": 0}, "alpha must be"),
        ({"alpha": 2.5}, r"alpha must be a whole number of at least 1, got 2\.5"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"width": -1}, "width must be"),
        ({"blocks": True}, "blocks must be"),
        ({"parts": ("full", "adapter")}, "full trains every weight there is; leave out adapter, or full"),
        ({"parts": ("lora", "decoder")}, "give where = encoder"),
    ],
)
def test_what_cannot_be_trained_is_said(settings: dict[str, Any], complaint: str) -> None:
    # Built as outside of the tests, where no annotation is checked.
    made = object.__new__(Trained)
    for each in dataclasses.fields(Trained):
        object.__setattr__(made, each.name, settings.get(each.name, each.default))
    with pytest.raises(SettingError, match=complaint):
        made.__post_init__()


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(SettingError, match="the encoder has 4 blocks, not 5"):
        adapters.trainable(tiny_lite_medsam(), Trained(("last-blocks",), blocks=5))


# --- Out of one network and into another ------------------------------------------------------------------------------


@every
def test_a_fresh_network_with_the_adapter_answers_as_the_trained_one(choice: str, tmp_path: Path) -> None:
    trained, _ = CHOICES[choice]
    network, fresh = trained_network(trained), tiny_lite_medsam()
    path = tmp_path / "adapter.safetensors"
    adapters.save(adapters.extracted(network, card(trained)), path)
    read = adapters.read(path)
    adapters.applied(fresh, read)
    with torch.inference_mode():
        wanted, found = answers(network), answers(fresh)
    assert (wanted - UNTRAINED).abs().max() > 1e-3
    # peft computes W x + s B (A x), the folded layer (W + s B A) x; everything else is the same computation.
    tolerance = 1e-5 * float(wanted.abs().max()) if "lora" in trained.parts else 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    # Embeddings that were kept are of use as long as the encoder stays as it was.
    assert (encoder_hash(fresh) != ENCODER_UNTOUCHED) == trained.moves_encoder
    assert adapters.can_be_merged(read) == ("adapter" not in trained.parts)
    assert any(isinstance(module, Bottleneck) for module in fresh.modules()) == ("adapter" in trained.parts)


def test_other_weights_may_take_the_place_of_the_trained_ones() -> None:
    network = trained_network(Trained())
    average = {name: torch.full_like(p, 0.25) for name, p in network.named_parameters() if p.requires_grad}
    found = adapters.extracted(network, card(), weights=average)
    assert len(found.tensors) == len(average)
    assert all(bool((tensor == 0.25).all()) for tensor in found.tensors.values())


def test_lora_is_the_product_of_its_matrices_scaled_by_alpha_and_rank() -> None:
    network = tiny_lite_medsam()
    layer = QV[0]
    before = network.get_parameter(f"{layer}.weight").detach().clone()
    dice = torch.Generator().manual_seed(0)
    thin, wide = torch.randn(2, 32, generator=dice), torch.randn(32, 2, generator=dice)
    made = Adapter(card(Trained(("lora",), rank=2, alpha=6)), {f"lora_A:{layer}": thin, f"lora_B:{layer}": wide})
    adapters.applied(network, made)
    torch.testing.assert_close(network.get_parameter(f"{layer}.weight"), before + 3 * wide @ thin)


def test_lora_comes_on_top_of_a_replaced_weight_in_whatever_order_they_are_written() -> None:
    layer = QV[0]
    tensors = {f"lora_A:{layer}": torch.ones(1, 32), f"lora_B:{layer}": torch.ones(32, 1)}
    tensors[f"replaced:{layer}.weight"] = torch.full((32, 32), 5.0)
    found: list[Tensor] = []
    for order in (list(tensors), list(reversed(tensors))):
        network = tiny_lite_medsam()
        made = Adapter(card(Trained(("lora",), rank=1, alpha=2)), {key: tensors[key] for key in order})
        adapters.applied(network, made)
        found.append(network.get_parameter(f"{layer}.weight").detach())
    assert [float(each.min()) for each in found] == [float(each.max()) for each in found] == [7, 7]


@pytest.mark.parametrize("choice", ["decoder", "full", "lora, both", "decoder, lora on the encoder"])
def test_half_of_an_adapter_lies_in_the_middle(choice: str) -> None:
    made = adapter_of(CHOICES[choice][0])
    states: dict[float, dict[str, Tensor]] = {}
    for share in (0.0, 0.5, 1.0):
        network = tiny_lite_medsam()
        adapters.applied(network, made, share=share)
        states[share] = network.state_dict()
    assert content_hash(states[0.0]) == UNTOUCHED
    for name, middle in states[0.5].items():
        torch.testing.assert_close(middle, ((states[0.0][name] + states[1.0][name]) / 2).to(middle.dtype))


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_nothing_and_all(share: float) -> None:
    network = tiny_lite_medsam()
    with pytest.raises(SettingError, match="between 0"):
        adapters.applied(network, adapter_of(Trained()), share=share)
    assert hash_of(network) == UNTOUCHED


def test_a_bottleneck_has_no_middle() -> None:
    network = tiny_lite_medsam()
    with pytest.raises(SettingError, match="cannot be taken by a share"):
        adapters.applied(network, adapter_of(Trained(("adapter", "bias-norm"))), share=0.5)
    assert hash_of(network) == UNTOUCHED


def test_to_put_an_adapter_in_rolls_no_dice() -> None:
    made = adapter_of(CHOICES["all that is added, and biases"][0])
    before = torch.get_rng_state()
    adapters.applied(tiny_lite_medsam(), made)
    assert torch.equal(torch.get_rng_state(), before)


# --- The file ---------------------------------------------------------------------------------------------------------


def test_the_card_comes_back_as_it_was(tmp_path: Path) -> None:
    written = card(
        Trained(("lora", "bias-norm"), BOTH, rank=3, alpha=5, targets="linear", width=7, blocks=2),
        prompts=("box", "mask"),
        summary="says",
        data="12 images",
        licence="Apache-2.0",
        seed=9,
        recipe={"epochs": 2, "prompts": [{"strategy": "jitter", "severity": [0, 0.2]}]},
        metrics={"val_dice": {"mean": 0.5}},
        versions={"torch": "2"},
        command="palpate finetune",
    )
    path = tmp_path / "new folder" / "adapter.safetensors"
    adapters.save(Adapter(written, {"replaced:x": torch.zeros(1)}), path)
    assert cards.adapter_card(path) == adapters.read(path).card == written
    assert cards.is_adapter(path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_in_half_precision_the_file_is_half_as_long_and_the_values_are_rounded(tmp_path: Path) -> None:
    made = adapter_of(Trained())
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    adapters.save(made, whole)
    adapters.save(made, half, half=True)
    tensors = sum(4 * tensor.numel() for tensor in made.tensors.values())
    assert whole.stat().st_size - half.stat().st_size == pytest.approx(tensors / 2, abs=100 + 2 * len(made.tensors))
    network = tiny_lite_medsam()
    adapters.applied(network, adapters.read(half))
    for key, tensor in made.tensors.items():
        assert torch.equal(network.get_parameter(key.removeprefix("replaced:")), tensor.half().float())


def test_a_file_is_replaced_only_if_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    adapters.save(Adapter(card(), {"replaced:x": torch.zeros(1)}), path, overwrite=False)
    with pytest.raises(OutputError, match="--overwrite"):
        adapters.save(Adapter(card(), {"replaced:x": torch.ones(1)}), path, overwrite=False)
    assert adapters.read(path).tensors["replaced:x"] == 0
    adapters.save(Adapter(card(), {"replaced:x": torch.ones(1)}), path)
    assert adapters.read(path).tensors["replaced:x"] == 1


@pytest.mark.parametrize(
    ("value", "half", "way_out"), [(float("nan"), False, "lower its rate"), (1e5, True, "full prec")]
)
def test_numbers_that_a_file_cannot_hold_are_not_written(
    tmp_path: Path, value: float, half: bool, way_out: str
) -> None:
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(OutputError, match=way_out):
        adapters.save(Adapter(card(), {"replaced:x": torch.tensor([value])}), path, half=half)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another place"):
        adapters.save(Adapter(card(), {"replaced:x": torch.zeros(1)}), tmp_path / "file" / "adapter.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, -1, -40])
def test_a_file_cut_short_is_noticed(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "adapter.safetensors"
    adapters.save(adapter_of(Trained(("prompt-encoder",))), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert not cards.is_adapter(path)
    with pytest.raises(WeightsError, match="cut short"):
        adapters.read(path)


def test_other_files_are_no_adapters(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, checkpoint)
    for path, complaint in ((checkpoint, "no adapter"), (tmp_path / "nothing", "no file"), (tmp_path, "is a folder")):
        assert not cards.is_adapter(path)
        with pytest.raises(WeightsError, match=complaint):
            adapters.read(path)


def test_a_run_that_is_not_finished_is_told_from_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match=r"no file .*; the run is not finished, the same `palpate finetune` goes on"):
        adapters.read(tmp_path / "adapter.safetensors")


def with_card(path: Path, content: object) -> Path:
    """An adapter file with whatever for a card."""
    text = content if isinstance(content, str) else json.dumps(content)
    safetensors.torch.save_file({"replaced:x": torch.zeros(1)}, path, metadata={"palpate_adapter": text})
    return path


def good_content() -> dict[str, Any]:
    return {"format": cards.FORMAT, **dataclasses.asdict(card())}


def test_a_newer_format_is_left_to_a_newer_palpate(tmp_path: Path) -> None:
    path = with_card(tmp_path / "adapter.safetensors", {"format": cards.FORMAT + 1, "title": "all is different"})
    with pytest.raises(WeightsError, match="a newer palpate; update"):
        adapters.read(path)


def test_what_a_newer_palpate_adds_to_the_card_does_not_matter(tmp_path: Path) -> None:
    path = with_card(tmp_path / "adapter.safetensors", good_content() | {"mood": "good"})
    assert adapters.read(path).card == card()


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"base": None},
        {"base_sha256": ["0"]},
        {"prompts": ["smell"]},
        {"prompts": "box"},
        {"metrics": [1]},
        {"seed": "seven"},
        {"format": "1"},
        {"format": None},
        {"trained": []},
        {"trained": {"parts": ["decoder"], "rank": "much"}},
        {"trained": {"parts": ["decoder"], "alpha": 1.5}},
        {"trained": {"parts": ["decoder"], "alpha": float("nan")}},
        {"trained": {"parts": ["decoder"], "rank": -1}},
        {"trained": {"parts": ["everything"]}},
        {"trained": {"parts": "decoder"}},
        {"trained": {"parts": []}},
    ],
    ids=str,
)
def test_a_card_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = with_card(tmp_path / "adapter.safetensors", good_content() | change)
    with pytest.raises(WeightsError, match=r"the card inside .* is damaged"):
        cards.adapter_card(path)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", '"card"', "{}", "[" * 100_000], ids=lambda text: text[:4])
def test_text_that_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    path = with_card(tmp_path / "adapter.safetensors", text)
    with pytest.raises(WeightsError, match=r"the card inside .* is damaged"):
        cards.adapter_card(path)


# --- Adapters that do not fit -----------------------------------------------------------------------------------------

Tensors = dict[str, Tensor]
WEIGHT, LAYER, MLP = f"replaced:{QV[0]}.weight", QV[0], DECODER_MLPS[0]
RANK_1, WIDTH_5 = Trained(("lora",), rank=1), Trained(("adapter",), width=5)


def lora_on(layer: str, rows: int = 32, columns: int = 32) -> Tensors:
    return {f"lora_A:{layer}": torch.ones(1, columns), f"lora_B:{layer}": torch.ones(rows, 1)}


def bottleneck_on(mlp: str, channels: int = 32) -> Tensors:
    return {
        f"down:{mlp}.weight": torch.ones(5, channels),
        f"down:{mlp}.bias": torch.ones(5),
        f"up:{mlp}.weight": torch.ones(channels, 5),
        f"up:{mlp}.bias": torch.ones(channels),
    }


def without(tensors: Tensors, key: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != key}


SPOILT: Mapping[str, tuple[Trained, Tensors]] = {
    "nothing": (Trained(), {}),
    "unknown weight": (Trained(), {"replaced:image_encoder.nose": torch.ones(1)}),
    "no name": (Trained(), {"replaced:": torch.ones(1)}),
    "unknown role": (Trained(), {f"added:{LAYER}.weight": torch.ones(32, 32)}),
    "no role": (Trained(), {f"{LAYER}.weight": torch.ones(32, 32)}),
    "another shape": (Trained(), {WEIGHT: torch.ones(32, 31)}),
    "whole numbers": (Trained(), {WEIGHT: torch.ones(32, 32, dtype=torch.int32)}),
    "complex numbers": (Trained(), {WEIGHT: torch.ones(32, 32, dtype=torch.complex64)}),
    "NaN": (Trained(), {WEIGHT: torch.full((32, 32), float("nan"))}),
    "a count": (Trained(), {f"replaced:{BATCH_NORMS[0]}.num_batches_tracked": torch.tensor(3.0)}),
    "A alone": (RANK_1, without(lora_on(LAYER), f"lora_B:{LAYER}")),
    "B alone": (RANK_1, without(lora_on(LAYER), f"lora_A:{LAYER}")),
    "lora beside nothing": (RANK_1, lora_on("image_encoder.nose")),
    "lora that fits no weight": (RANK_1, lora_on(LAYER, rows=31)),
    "lora larger than memory": (RANK_1, lora_on(LAYER, rows=3_000_000, columns=3_000_000)),
    "lora of vectors": (RANK_1, {f"lora_A:{LAYER}": torch.ones(1), f"lora_B:{LAYER}": torch.ones(1)}),
    "lora of two ranks": (RANK_1, lora_on(LAYER) | {f"lora_B:{LAYER}": torch.ones(32, 2)}),
    "another rank than its card": (Trained(("lora",), rank=10**9), lora_on(LAYER)),
    "lora that overflows": (RANK_1, {name: tensor * 1e30 for name, tensor in lora_on(LAYER).items()}),
    "down alone": (WIDTH_5, {f"down:{MLP}.weight": torch.ones(5, 32), f"down:{MLP}.bias": torch.ones(5)}),
    "up alone": (WIDTH_5, {f"up:{MLP}.weight": torch.ones(32, 5), f"up:{MLP}.bias": torch.ones(32)}),
    "no bias": (WIDTH_5, without(bottleneck_on(MLP), f"up:{MLP}.bias")),
    "a tensor too many": (WIDTH_5, bottleneck_on(MLP) | {f"up:{MLP}.scale": torch.ones(1)}),
    "another width than its card": (Trained(("adapter",), width=10**9), bottleneck_on(MLP)),
    "other channels": (WIDTH_5, bottleneck_on(MLP, channels=31)),
    "beside no MLP": (WIDTH_5, bottleneck_on(LAYER)),
    "beside the whole network": (WIDTH_5, bottleneck_on("")),
    "beside the encoder": (WIDTH_5, bottleneck_on(ENCODER)),
    "a bottleneck of NaN": (WIDTH_5, bottleneck_on(MLP) | {f"up:{MLP}.bias": torch.full((32,), float("inf"))}),
    "one good, one not": (Trained(), {WEIGHT: torch.ones(32, 32), "replaced:image_encoder.nose": torch.ones(1)}),
    "one good, one bottleneck not": (WIDTH_5, {WEIGHT: torch.ones(32, 32)} | bottleneck_on(LAYER)),
}


@pytest.mark.parametrize("how", SPOILT)
def test_an_adapter_that_does_not_fit_changes_nothing(how: str) -> None:
    trained, tensors = SPOILT[how]
    with pytest.raises(WeightsError, match=r"does not fit the model|is damaged"):
        adapters.applied(BASE, Adapter(card(trained), tensors))
    assert hash_of(BASE) == UNTOUCHED


@pytest.mark.parametrize("layer", [LAYER, f"{ENCODER}.layers.1.blocks.0.attn.qkv"])
def test_what_the_spoilt_ones_are_made_from_fits(layer: str) -> None:
    for trained, tensors in (
        (Trained(), {WEIGHT: torch.ones(32, 32)}),
        (RANK_1, lora_on(layer, rows=96 if layer.endswith("qkv") else 32)),
        (WIDTH_5, bottleneck_on(MLP)),
    ):
        network = tiny_lite_medsam()
        adapters.applied(network, Adapter(card(trained), tensors))
        assert hash_of(network) != UNTOUCHED


def test_a_second_bottleneck_at_the_same_place_is_refused() -> None:
    network = tiny_lite_medsam()
    adapters.applied(network, Adapter(card(WIDTH_5), bottleneck_on(MLP)))
    before = hash_of(network)
    with pytest.raises(WeightsError, match="no MLP of the model's own"):
        adapters.applied(network, Adapter(card(WIDTH_5), bottleneck_on(MLP)))
    assert hash_of(network) == before


def test_layers_that_are_called_up_and_down_are_not_taken_for_bottlenecks() -> None:
    network = tiny_lite_medsam()
    neck = network.get_submodule(f"{ENCODER}.neck")
    renamed = nn.Sequential()
    for name, layer in zip(("down", "inner", "up", "base_layer"), neck.children(), strict=True):
        renamed.add_module(name, layer)
    network.image_encoder.neck = renamed
    fresh = copy.deepcopy(network)
    names = adapters.trainable(network, Trained(("lora",)))
    assert set(names) == set(lora(*QV))
    adapters.trainable(network := copy.deepcopy(fresh), Trained(("last-blocks",)))
    made = adapters.extracted(network, card(Trained(("last-blocks",))))
    assert {key for key in made.tensors if ".neck." in key} == {
        f"replaced:{ENCODER}.neck.{name}"
        for name in ("down.weight", "inner.weight", "inner.bias", "up.weight", "base_layer.weight", "base_layer.bias")
    }
    adapters.applied(fresh, made)
    assert not any(isinstance(module, Bottleneck) for module in fresh.modules())
