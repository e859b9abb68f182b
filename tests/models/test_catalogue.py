import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from palpate.errors import UnknownModel
from palpate.models.cards import adapter_card
from palpate.models.catalogue import CARDS, RELEASED, ModelCard, card, home, stored


def test_looking_at_the_cards_imports_no_torch_and_touches_no_disk(tmp_path: Path) -> None:
    look = """
import sys
from palpate.models import catalogue
catalogue.stored("lite-medsam")
sys.exit(bool({"torch", "transformers"} & set(sys.modules)))
"""
    nowhere = tmp_path / "home"
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PALPATE_HOME": str(nowhere), "PYTHONPATH": paths}
    assert subprocess.run([sys.executable, "-c", look], env=environment, check=False).returncode == 0
    assert not nowhere.exists()


def test_each_name_is_used_once() -> None:
    names = [each.name for each in CARDS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("each", CARDS, ids=lambda each: each.name)
def test_a_card_tells_the_truth_about_its_model(each: ModelCard) -> None:
    with torch.device("meta"):
        model = each.build()
    assert isinstance(model, nn.Module)
    assert sum(parameter.numel() for parameter in model.parameters()) == each.parameters
    assert model.frame == each.frame
    assert all(len(known) == 64 for known in (*each.weights.known_sha256, each.content_sha256 or "?" * 64))
    if each.weights.package:
        assert "==" in each.weights.package
        assert each.weights.member
        assert each.weights.size_bytes
        assert each.weights.sha256
    else:
        assert each.weights.file
        assert each.weights.address
        assert "/blob/" not in each.weights.address  # a page about the file, not the file
    assert each.licence
    assert each.paper
    if each.made_from is not None:
        assert each.made_from.adapter == RELEASED / f"{each.name}.safetensors"
        assert each.made_from.adapter.stat().st_size <= 9_000_000
        assert adapter_card(each.made_from.adapter).base_sha256 == each.made_from.base.content_sha256


def test_lite_medsams_decoder_fits_its_frame() -> None:
    with torch.device("meta"):
        model = card("lite-medsam").build()
    assert model.prompt_decoder.canvas_size == model.frame.size
    assert 4 * model.prompt_decoder.grid_size == model.frame.mask_size


@pytest.mark.parametrize("wrong", ["LiteMedSAM", "lite_medsam", "litemedsam", "lite medsam"])
def test_a_name_nearly_right_gets_a_suggestion(wrong: str) -> None:
    with pytest.raises(UnknownModel, match="did you mean 'lite-medsam'"):
        card(wrong)


def test_a_name_quite_wrong_gets_the_list() -> None:
    with pytest.raises(UnknownModel, match=r"no model is called 'xyz'; palpate has: lite-medsam"):
        card("xyz")


def test_home_is_where_the_user_says_or_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path))
    assert home() == tmp_path
    assert stored("lite-medsam") == tmp_path / "weights" / "lite-medsam.safetensors"
    monkeypatch.delenv("PALPATE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "palpate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".cache" / "palpate"
