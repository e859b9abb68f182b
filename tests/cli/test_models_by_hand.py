"""Models whose files a person downloads: what `palpate models` says, from the first question to the first refusal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image as Picture

from command_line import Run
from palpate.models import catalogue
from palpate.models.catalogue import ModelCard, card, stored
from palpate.models.promptable import WeightsSource

FILES = {
    "sam-vit-b": "sam_vit_b_01ec64.pth (375 MB)",
    "sam-vit-l": "sam_vit_l_0b3195.pth (1250 MB)",
    "sam-vit-h": "sam_vit_h_4b8939.pth (2565 MB)",
    "medsam": "medsam_vit_b.pth (375 MB)",
    "mobile-sam": "mobile_sam.pt (41 MB)",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def grey_picture(name: str) -> None:
    Picture.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)).save(name)


@pytest.mark.parametrize("name", FILES)
def test_get_says_where_the_file_is_and_how_to_add_it(palpate: Run, home: Path, name: str) -> None:
    answer = palpate("models", "get", name)
    assert answer.status == 1
    assert answer.err.count("\n") == 1
    assert f"download {FILES[name]} from https://" in answer.err
    assert f"`palpate models add {name} PATH`" in answer.err
    assert not home.exists()


def test_without_weights_a_prediction_says_the_same(palpate: Run) -> None:
    grey_picture("p.png")
    answer = palpate("predict", "p.png", "--box", 2, 3, 10, 12, "--model", "medsam", "-o", "mask.png")
    assert answer.status == 1
    assert "the weights of medsam are not on this machine; download medsam_vit_b.pth" in answer.err
    assert not Path("mask.png").exists()


def checkpoint(path: Path, *, width: int = 768, stem: int | None = None) -> Path:
    """What palpate looks at to tell models apart, and no more."""
    state = {"mask_decoder.iou_token.weight": torch.zeros(1, 256)}
    if stem is None:
        state["image_encoder.patch_embed.proj.weight"] = torch.zeros(width, 3, 16, 16)
    else:
        state["image_encoder.patch_embed.seq.0.c.weight"] = torch.zeros(32, 3, stem, stem)
    torch.save(state, path)
    return path


def test_a_file_of_another_model_is_called_by_its_name(palpate: Run, tmp_path: Path, home: Path) -> None:
    for name, file, words in (
        ("sam-vit-l", checkpoint(tmp_path / "b.pth"), "looks like a SAM ViT-B checkpoint (SAM or MedSAM)"),
        ("sam-vit-b", checkpoint(tmp_path / "h.pth", width=1280), "looks like a SAM ViT-H checkpoint"),
        ("mobile-sam", checkpoint(tmp_path / "lite.pth", stem=1), "looks like a LiteMedSAM checkpoint"),
        ("lite-medsam", checkpoint(tmp_path / "mobile.pth", stem=3), "looks like a MobileSAM checkpoint"),
    ):
        answer = palpate("models", "add", name, file)
        assert (answer.status, words in answer.err) == (1, True), answer.err
        assert f"`palpate models get {name}`" in answer.err
    assert not home.exists()


def test_a_file_with_parts_missing_is_refused(palpate: Run, tmp_path: Path, home: Path) -> None:
    grey_picture("p.png")
    for name, file in (
        ("medsam", checkpoint(tmp_path / "b.pth")),
        ("mobile-sam", checkpoint(tmp_path / "m.pth", stem=3)),
    ):
        answer = palpate("models", "add", name, file)
        assert (answer.status, " missing (" in answer.err) == (1, True), answer.err
        asked = ("predict", "p.png", "--box", 2, 3, 10, 12, "--model", name, "--weights", file, "-o", "mask.png")
        predicted = palpate(*asked)
        assert (predicted.status, "nothing was loaded" in predicted.err) == (1, True), predicted.err
    assert not home.exists()


def test_a_file_that_cannot_be_checked_is_kept_and_that_is_said(
    palpate: Run, tiny: ModelCard, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALPATE_HOME", str(home))
    source = WeightsSource(None, None, file="tiny.pt", address="https://example.org/tiny.pt")
    unknown = replace(tiny, name="unknown", weights=source, content_sha256=None, unused=("image_encoder.head.bias",))
    monkeypatch.setattr(catalogue, "CARDS", (*catalogue.CARDS, unknown))
    asked = palpate("models", "get", "unknown")
    assert (asked.status, "download tiny.pt from https://example.org/tiny.pt" in asked.err) == (1, True)
    state = safetensors.torch.load_file(stored("tiny"))
    torch.save({"model": {**state, "image_encoder.head.bias": torch.zeros(2)}}, tmp_path / "mine.pt")
    answer = palpate("models", "add", "unknown", tmp_path / "mine.pt")
    assert answer.status == 0, answer.err
    said = " ".join(answer.out.split())
    assert "could not be checked; take the file from https://example.org/tiny.pt only" in said
    numbers = sum(tensor.numel() for tensor in state.values()) + 2
    share = f"note: 2 of its {numbers:,} numbers are left out"
    assert f"{share}, because nothing in unknown reads them: image_encoder.head.bias" in said
    assert "weights were added before" in palpate("models", "get", "unknown").out
    here = {entry["name"]: entry["weights"] for entry in palpate("models", "--json").json["models"]}
    assert here["unknown"] == str(stored("unknown"))
    assert here["medsam"] is None
    grey_picture("p.png")
    assert palpate("predict", "p.png", "--box", 2, 3, 10, 12, "--model", "unknown", "-o", "m.png").status == 0


def test_the_cards_of_one_layout_are_told_apart_by_their_hashes() -> None:
    layouts = {name: card(name).layout for name in FILES}
    assert layouts["medsam"] == layouts["sam-vit-b"]
    hashes = [card(name).weights.sha256 for name in FILES]
    assert len(set(hashes)) == len(FILES)
