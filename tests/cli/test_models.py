"""`palpate models show` and `merge`: what an adapter is, and how it becomes a whole checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from command_line import Run
from palpate.models import adapters, cards, weights
from palpate.models.cards import Trained
from palpate.models.catalogue import ModelCard, stored
from palpate.models.promptable import PromptKind

ADAPTER = "run/adapter.safetensors"


@pytest.mark.usefixtures("trained")
def test_a_merged_checkpoint_is_the_adapter_put_on_at_run_time(palpate: Run, pictures: Path) -> None:
    answer = palpate("models", "merge", ADAPTER, "-o", "merged.safetensors", "--json")
    assert answer.status == 0, answer.err
    at_run_time = weights.load("tiny", adapter=Path(ADAPTER))
    merged = weights.load("tiny", weights=Path("merged.safetensors"))
    assert answer.json["weights_hash"] == at_run_time.weights_hash == merged.weights_hash
    assert weights.content_hash(safetensors.torch.load_file("merged.safetensors")) == at_run_time.weights_hash
    # Other tools read the names of the release.
    assert (
        safetensors.torch.load_file("merged.safetensors").keys() == safetensors.torch.load_file(stored("tiny")).keys()
    )

    asked = ("predict", pictures / "images/p0.png", "--box", 7, 9, 25, 27, "--model", "tiny", "-o")
    assert palpate(*asked, "a.npz", "--adapter", ADAPTER).status == 0
    assert palpate(*asked, "b.npz", "--weights", "merged.safetensors").status == 0
    assert np.array_equal(np.load("a.npz")["segs"], np.load("b.npz")["segs"])


def test_a_share_lies_between_the_base_model_and_the_adapter(palpate: Run, trained: Path, tiny: ModelCard) -> None:
    for share in (0, 0.25, 1):
        assert palpate("models", "merge", ADAPTER, "-o", f"{share}.safetensors", "--share", share).status == 0
    base, quarter, whole = (safetensors.torch.load_file(f"{share}.safetensors") for share in (0, 0.25, 1))
    assert weights.content_hash(base) == tiny.content_sha256
    moved = [name for name in base if not torch.equal(base[name], whole[name])]
    assert moved
    assert all(name.startswith("mask_decoder.") for name in moved)
    for name in moved:
        torch.testing.assert_close(quarter[name], base[name] + 0.25 * (whole[name] - base[name]))


@pytest.mark.usefixtures("trained")
def test_a_checkpoint_that_is_there_is_replaced_only_when_asked(palpate: Run) -> None:
    Path("out.safetensors").write_text("mine", encoding="utf-8")
    refused = palpate("models", "merge", ADAPTER, "-o", "out.safetensors")
    assert (refused.status, "--overwrite" in refused.err) == (2, True)
    assert Path("out.safetensors").read_text(encoding="utf-8") == "mine"
    answer = palpate("models", "merge", ADAPTER, "-o", "out.safetensors", "--overwrite")
    assert answer.status == 0
    assert "not trained with points; for these, give the adapter with --adapter" in " ".join(answer.out.split())


def test_bottlenecks_cannot_be_merged_and_the_message_says_what_can(
    palpate: Run, tiny: ModelCard, tmp_path: Path
) -> None:
    network = tiny.build()
    assert isinstance(network, nn.Module)
    kinds = Trained(parts=("adapter",), width=4)
    adapters.trainable(network, kinds)
    card = cards.AdapterCard("narrow", "tiny", tiny.content_sha256, kinds, ("box",))
    adapters.save(adapters.extracted(network, card), tmp_path / "narrow.safetensors")
    answer = palpate("models", "merge", "narrow.safetensors", "-o", "out.safetensors")
    assert answer.status == 2
    assert "use it as it is with --adapter" in answer.err
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((ADAPTER, "-o", "out.safetensors", "--share", 1.5), 2, "0 (the base model) to 1"),
        ((ADAPTER, "-o", "out.pth"), 2, ".safetensors"),
        ((ADAPTER, "-o", "nowhere/out.safetensors"), 2, "does not exist"),
        ((ADAPTER, "-o", "out.safetensors", "--weights", "other.safetensors"), 1, "other weights"),
        (("whole.safetensors", "-o", "out.safetensors"), 1, "is no adapter of palpate"),
        (("none.safetensors", "-o", "out.safetensors"), 1, "there is no file none.safetensors"),
    ],
)
@pytest.mark.usefixtures("trained")
def test_what_cannot_be_merged_is_one_sentence(
    palpate: Run, arguments: tuple[object, ...], status: int, words: str
) -> None:
    answer = palpate("models", "merge", *arguments)
    assert answer.status == status
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert words in answer.err
    assert not list(Path.cwd().glob("**/out.*"))


@pytest.mark.usefixtures("trained")
def test_an_adapter_shows_its_card(palpate: Run) -> None:
    made = adapters.read(Path(ADAPTER))
    metrics = {"val_dice": {"mean": 0.9, "shrink@0.1": 0.8}, "val_dice_before": {"mean": 0.7}}
    card = replace(made.card, licence="CC0-1.0", data="3 images", metrics=metrics, command="palpate finetune")
    adapters.save(replace(made, card=card), Path("told.safetensors"))
    answer = palpate("models", "show", "told.safetensors")
    assert answer.status == 0
    said = {" ".join(line.split()) for line in answer.out.splitlines()}
    assert {
        f"base tiny (weights {card.base_sha256[:12]})",
        "prompts box, points",
        "licence CC0-1.0",
        "Dice on val, mean 0.9000 (0.7000 before)",
        "Dice on val, shrink@0.1 0.8000",
        "command palpate finetune",
    } <= said
    shown = palpate("models", "show", "told.safetensors", "--json").json
    assert shown["base_sha256"] == card.base_sha256
    assert shown["trained"]["parts"] == ["decoder"]
    wrong = palpate("models", "show", "text.safetensors", "--json")
    assert (wrong.status, wrong.json["error"]["type"]) == (1, "WeightsError")


# --- Averages ---------------------------------------------------------------------------------------------------------


def other_adapter(
    tiny: ModelCard, path: Path, kinds: Trained, *, by: float, prompts: tuple[PromptKind, ...] = ("box",)
) -> Path:
    """An adapter whose weights are the base model's and `by` (for LoRA: whose matrices are `by`)."""
    network = weights.load(tiny).model
    assert isinstance(network, nn.Module)
    torch.manual_seed(0)
    moving = adapters.trainable(network, kinds)
    with torch.no_grad():
        for name, parameter in moving.items():
            parameter.copy_(torch.full_like(parameter, by) if "lora_" in name else parameter + by)
    card = cards.AdapterCard(path.stem, "tiny", tiny.content_sha256, kinds, prompts, data=path.stem, licence="CC0-1.0")
    adapters.save(adapters.extracted(network, card), path)
    return path


def test_an_average_lies_in_the_middle_and_a_share_on_the_way_there(
    palpate: Run, tiny: ModelCard, tmp_path: Path
) -> None:
    kinds = Trained(parts=("decoder",))
    a = other_adapter(tiny, tmp_path / "a.safetensors", kinds, by=0.5, prompts=("box", "points"))
    b = other_adapter(tiny, tmp_path / "b.safetensors", kinds, by=-0.25)
    answer = palpate("models", "average", a, b, "-o", "out.safetensors", "--share", 0.5, "--json")
    assert answer.status == 0, answer.err
    start = safetensors.torch.load_file(stored("tiny"))
    loaded = weights.load("tiny", adapter=Path("out.safetensors"))
    assert loaded.weights_hash == answer.json["weights_hash"]
    weights.merge(Path("out.safetensors"), Path("merged.safetensors"))
    for name, tensor in safetensors.torch.load_file("merged.safetensors").items():
        by = 0.0625 if name.startswith("mask_decoder.") else 0
        torch.testing.assert_close(tensor, start[name] + by)
    card = cards.adapter_card(Path("out.safetensors"))
    assert (card.name, card.prompts, card.data, card.licence) == ("out", ("box",), "a; b", "CC0-1.0")
    assert (card.metrics, card.recipe["share"], card.recipe["data"]) == ({}, 0.5, {"intensity": None})
    assert [each["name"] for each in card.recipe["averaged"]] == ["a", "b"]
    assert card.command.startswith("palpate models average")
    told = [" ".join(line.split()) for line in palpate("models", "show", "out.safetensors").out.splitlines()]
    assert "average a (seed 0), b (seed 0); share 0.5" in told
    assert not any(line.startswith("seed") for line in told)


def test_lora_is_folded_in_before_it_is_averaged(palpate: Run, tiny: ModelCard, tmp_path: Path) -> None:
    kinds = Trained(parts=("lora",), rank=2, alpha=4)
    files = [other_adapter(tiny, tmp_path / f"{by}.safetensors", kinds, by=by) for by in (0.5, 0.25)]
    assert palpate("models", "average", *files, "-o", "out.safetensors").status == 0
    made = adapters.read(Path("out.safetensors"))
    network = weights.load("tiny").model
    assert isinstance(network, nn.Module)
    start = network.state_dict()
    assert made.tensors
    for key, tensor in made.tensors.items():
        role, _, name = key.partition(":")
        assert role == "replaced"
        # alpha / rank times B A of two rows of `by` each; the mean of both.
        torch.testing.assert_close(tensor, start[name] + 2 * (2 * 0.5**2 + 2 * 0.25**2) / 2)


def test_the_average_of_one_by_half_is_a_small_file(palpate: Run, tiny: ModelCard, tmp_path: Path) -> None:
    one = other_adapter(tiny, tmp_path / "one.safetensors", Trained(parts=("decoder",)), by=0.5)
    asked = ("models", "average", one, "-o", "small.safetensors")
    assert palpate(*asked, "--half", "--name", "mine", "--summary", "forgives").status == 0
    made = adapters.read(Path("small.safetensors"))
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.float16}
    assert (made.card.name, made.card.summary) == ("mine", "forgives")
    refused = palpate(*asked)
    assert (refused.status, "--overwrite" in refused.err) == (2, True)


def test_what_has_no_average_is_one_sentence(palpate: Run, tiny: ModelCard, tmp_path: Path) -> None:
    decoder = other_adapter(tiny, tmp_path / "a.safetensors", Trained(parts=("decoder",)), by=0.5)
    lora = other_adapter(tiny, tmp_path / "b.safetensors", Trained(parts=("lora",)), by=0.5)
    narrow = other_adapter(tiny, tmp_path / "c.safetensors", Trained(parts=("adapter",), width=4), by=0.5)
    elsewhere = tmp_path / "d.safetensors"
    made = adapters.read(decoder)
    adapters.save(replace(made, card=replace(made.card, base_sha256="0" * 64)), elsewhere)
    windowed = tmp_path / "e.safetensors"
    seen = replace(made.card, recipe={"data": {"intensity": "lung"}})
    adapters.save(replace(made, card=seen), windowed)
    for files, status, words in (
        ((decoder, windowed), 2, "through another window"),
        ((decoder, lora), 2, "did not train the same parts"),
        ((decoder, narrow), 2, "have no average"),
        ((decoder, elsewhere), 1, "from other weights"),
        ((elsewhere,), 1, "give the checkpoint that it was trained from"),
        ((decoder, "--share", 1.5), 2, "0 (the base model) to 1 (their mean)"),
        ((tmp_path / "none.safetensors",), 1, "there is no file"),
    ):
        answer = palpate("models", "average", *files, "-o", "out.safetensors")
        assert (answer.status, answer.err.count("\n")) == (status, 1), answer.err
        assert words in answer.err
        assert not Path("out.safetensors").exists()
