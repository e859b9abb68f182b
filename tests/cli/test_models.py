"""`palpate models show` and `merge`: what an adapter is, and how it becomes a whole checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from command_line import Run
from palpate.models import adapters, weights
from palpate.models.adapters import Trained
from palpate.models.catalogue import ModelCard, stored

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
    Path("out.safetensors").write_text("mine")
    refused = palpate("models", "merge", ADAPTER, "-o", "out.safetensors")
    assert (refused.status, "--overwrite" in refused.err) == (2, True)
    assert Path("out.safetensors").read_text() == "mine"
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
    card = adapters.AdapterCard("narrow", "tiny", tiny.content_sha256, kinds, ("box",))
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
