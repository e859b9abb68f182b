"""Adapters as a user meets them: `palpate.load` with one, by file or by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import palpate
from palpate.errors import SettingError, UnknownModel, WeightsError
from palpate.models import adapters, catalogue
from palpate.models.cards import AdapterCard, Trained
from palpate.models.catalogue import ModelCard, adapted, card, stored
from palpate.models.sam import to_segment_anything
from palpate.models.weights import content_hash
from phantoms import disk, picture
from tiny_networks import tiny_lite_medsam

BOX = palpate.Box(10, 12, 41, 44)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """A catalogue of one tiny model, whose weights are here."""
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "home"))
    state = {n: t.contiguous() for n, t in to_segment_anything(tiny_lite_medsam().state_dict()).items()}
    frame = tiny_lite_medsam().frame
    known = replace(
        card("lite-medsam"), name="tiny", build=tiny_lite_medsam, frame=frame, content_sha256=content_hash(state)
    )
    monkeypatch.setattr(catalogue, "CARDS", (known,))
    stored("tiny").parent.mkdir(parents=True)
    safetensors.torch.save_file(state, stored("tiny"))
    return known


@pytest.fixture
def made(tiny: ModelCard, tmp_path: Path) -> Callable[..., Path]:
    """Makes an adapter that turns every answer round: what was inside is outside."""

    def make(name: str, base: ModelCard = tiny) -> Path:
        network = palpate.load(base.name, device="cpu").runtime.network
        assert isinstance(network, nn.Module)
        adapters.trainable(network, Trained())
        with torch.no_grad():
            network.get_parameter("prompt_decoder.mask_decoder.output_hypernetworks_mlps.0.proj_out.weight").neg_()
            network.get_parameter("prompt_decoder.mask_decoder.output_hypernetworks_mlps.0.proj_out.bias").neg_()
        about = AdapterCard(name, base.name, base.content_sha256, Trained(), ("box", "points"))
        path = tmp_path / f"{name}.safetensors"
        adapters.save(adapters.extracted(network, about), path)
        return path

    return make


def mask(session: palpate.Session) -> np.ndarray:
    session.set_image(palpate.Image(picture((disk((64, 64), centre=(25, 28), radius=15), 200), background=40)))
    return session.predict(BOX).mask


def test_a_file_is_enough_and_so_is_the_model_with_an_adapter(tiny: ModelCard, made: Callable[..., Path]) -> None:
    path = made("turned")
    plain, by_file, by_both = (
        palpate.load(tiny.name, device="cpu"),
        palpate.load(str(path), device="cpu"),
        palpate.load(tiny.name, adapter=path, device="cpu"),
    )
    assert by_file.runtime.model == by_both.runtime.model == "tiny + turned"
    assert by_file.runtime.weights_hash == by_both.runtime.weights_hash != plain.runtime.weights_hash
    assert by_file.runtime.encoder_hash == plain.runtime.encoder_hash
    assert by_file.runtime.prompts.trained == ("box", "points")
    before, after = mask(plain), mask(by_file)
    assert 0 < before.sum() < before.size
    assert np.array_equal(after, ~before)
    assert np.array_equal(mask(by_both), after)


def test_two_adapters_are_one_too_many(tiny: ModelCard, made: Callable[..., Path]) -> None:
    path = made("turned")
    with pytest.raises(SettingError, match="give one of them"):
        palpate.load(str(path), adapter=path, device="cpu")


def test_an_adapter_of_a_model_that_nobody_knows_says_which(made: Callable[..., Path], tmp_path: Path) -> None:
    known = adapters.read(made("turned"))
    adapters.save(replace(known, card=replace(known.card, base="huge")), tmp_path / "foreign.safetensors")
    with pytest.raises(UnknownModel, match="no model is called 'huge'"):
        palpate.load(str(tmp_path / "foreign.safetensors"), device="cpu")


def test_a_released_model_made_of_an_adapter_has_a_name_of_its_own_and_can_be_trained_further(
    tiny: ModelCard, made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made("turned")
    found = palpate.load(str(path), device="cpu").runtime.weights_hash
    robust = adapted(tiny, path, name="tiny-robust", summary="", content_sha256=found)
    monkeypatch.setattr(catalogue, "CARDS", (tiny, robust))
    session = palpate.load("tiny-robust", device="cpu")
    assert session.runtime.model == "tiny-robust"
    assert session.runtime.weights_hash == robust.content_sha256
    # Turned round a second time, it is the base model again, though by another way.
    twice = palpate.load(str(made("again", robust)), device="cpu")
    assert twice.runtime.model == "tiny-robust + again"
    assert twice.runtime.weights_hash == tiny.content_sha256
    assert np.array_equal(mask(twice), ~mask(session))
    with pytest.raises(WeightsError, match="give --model tiny-robust"):
        palpate.load("tiny", adapter=made("again", robust), device="cpu")
