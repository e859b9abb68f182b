"""Swin-LiteMedSAM with switches: names, files, and what each makes of a box alone."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from palpate.errors import UnknownModel, WeightsError
from palpate.models.catalogue import CARDS, VARIANTS, ModelCard, card
from palpate.models.promptable import PromptBatch
from palpate.models.swin_lite_medsam import SkipPromptDecoder, SwinLiteMedSAM
from palpate.models.weights import load, load_into, load_state, recognise, write_checkpoint

BOX = np.array([[60, 50, 190, 200]], dtype=np.float32)


def built(each: ModelCard) -> Any:
    with torch.device("meta"):
        return each.build()


def test_there_is_one_for_each_choice_and_none_is_called_like_another() -> None:
    names = [each.name for each in (*CARDS, *VARIANTS)]
    assert len(set(names)) == len(names)
    assert len(VARIANTS) == 4 * 2**3 - 1


@pytest.mark.parametrize("each", VARIANTS, ids=lambda each: each.name)
def test_a_name_says_what_is_there(each: ModelCard) -> None:
    model = built(each)
    assert card(each.name) is each
    assert sum(parameter.numel() for parameter in model.parameters()) == each.parameters
    assert isinstance(model.prompt_decoder, SkipPromptDecoder) != ("-no-skip" in each.name)
    assert model.from_box.points != ("-no-points" in each.name)
    assert model.from_box.scribble != ("-no-scribble" in each.name)
    without = {part for part in ("points", "scribble") if f"-no-{part}" in each.name}
    assert {*each.prompts.beside_box} == {"points", "scribble"} - without
    for part in ("skip", "points", "scribble"):
        assert (part in each.summary) == (f"-no-{part}" in each.name)


@pytest.mark.parametrize("each", [v for v in VARIANTS if v.name.endswith(("-small", "-mini", "-tinyvit", "-no-skip"))])
def test_a_checkpoint_is_known_by_its_names_and_goes_back_unchanged(each: ModelCard) -> None:
    model = built(each)
    state = model.state_dict()
    theirs = each.restore(dict(state))
    found = recognise(theirs)
    assert found is not None
    assert found.name == each.layout
    load_into(model, each.rename(theirs))  # every name, and no other


@pytest.mark.parametrize("name", ["swin-lite-medsam-mini", "swin-lite-medsam-mini-no-skip"])
def test_one_that_was_trained_is_loaded_and_answers_a_box(name: str, tmp_path: Path) -> None:
    chosen = card(name)
    torch.manual_seed(0)
    network = cast("nn.Module", chosen.build())
    path = tmp_path / "mine.safetensors"
    write_checkpoint(chosen.restore(dict(network.state_dict())), path, about={"layout": chosen.layout})
    model = load(name, weights=path).model
    assert isinstance(model, SwinLiteMedSAM)
    with torch.inference_mode():
        embedding = model.encode(torch.rand(1, 3, 256, 256))
        mask = model.decode(embedding, PromptBatch(np.array([0]), boxes=BOX))
    assert embedding.features.shape == (1, 256, 64, 64)
    assert mask.logits.shape == (1, 1, 256, 256)
    other = "swin-lite-medsam-mini" if name.endswith("-no-skip") else "swin-lite-medsam-small"
    with pytest.raises(WeightsError, match=rf"another make \({name}\); {other} needs its own"):
        load_state(path, card(other))


def test_what_a_small_encoder_sees_at_one_place_reaches_the_features_there() -> None:
    """The coarse map and the fine one lie on one another: a spot moves the features around it most."""
    torch.manual_seed(1)
    model = cast("Any", card("swin-lite-medsam-mini").build()).eval()
    canvas = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    spotted = canvas.clone()
    spotted[..., 88:96, 168:176] += 1
    with torch.inference_mode():
        moved = (model.image_encoder(spotted) - model.image_encoder(canvas)).abs().mean(dim=1)[0]
    row, column = divmod(int(moved.argmax()), 64)
    assert abs(row - 22.5) <= 2.5
    assert abs(column - 42.5) <= 2.5


def test_without_weights_it_is_said_how_to_come_by_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="`palpate distill --student swin-lite-medsam-small-no-skip` trains them"):
        load("swin-lite-medsam-small-no-skip")
    with pytest.raises(UnknownModel, match="did you mean 'swin-lite-medsam-small'"):
        card("swin-lite-medsam_small")
