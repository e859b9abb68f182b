"""Models that nobody released: Swin-LiteMedSAM with switches, and encoders at half size; their names and files."""

import copy
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from palpate.errors import UnknownModel, WeightsError
from palpate.models.catalogue import CARDS, VARIANTS, ModelCard, card
from palpate.models.lite_medsam import TinyViT
from palpate.models.promptable import PromptBatch
from palpate.models.swin_lite_medsam import SkipPromptDecoder, SwinLiteMedSAM
from palpate.models.weights import encoder_hash, load, load_into, load_state, recognise, write_checkpoint

SWIN = [each for each in VARIANTS if each.name.startswith("swin-")]

BOX = np.array([[60, 50, 190, 200]], dtype=np.float32)


def built(each: ModelCard) -> Any:
    with torch.device("meta"):
        return each.build()


def test_there_is_one_for_each_choice_and_none_is_called_like_another() -> None:
    names = [each.name for each in (*CARDS, *VARIANTS)]
    assert len(set(names)) == len(names)
    assert len(SWIN) == 6 * 2**3 - 1
    assert len(VARIANTS) == len(SWIN) + 2


@pytest.mark.parametrize("each", SWIN, ids=lambda each: each.name)
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


@pytest.mark.parametrize(
    "each",
    [each for each in VARIANTS if each.name.endswith(("-half", "-quarter", "-small", "-mini", "-tinyvit", "-no-skip"))],
    ids=lambda each: each.name,
)
def test_a_checkpoint_is_known_by_its_names_and_goes_back_unchanged(each: ModelCard) -> None:
    model = each.build()
    assert isinstance(model, nn.Module)
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


@pytest.mark.parametrize("shrunk", [2, 4])
def test_a_shrunk_encoder_is_the_whole_one_on_a_smaller_canvas(shrunk: Literal[2, 4]) -> None:
    """Started from the whole one's weights, and but for the steps between the grids."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"widths": (8, 32, 32, 32), "depths": (1, 1, 1, 1), "windows": (7, 5, 7), "channels": 32}
    whole, less = TinyViT(**sizes).eval(), TinyViT(**sizes, shrunk=shrunk).eval()
    less.load_state_dict(whole.state_dict(), strict=False)
    canvas = torch.rand(2, 3, 64, 64)
    small = avg_pool2d(canvas, shrunk)
    with torch.inference_mode():
        found, wanted = less.maps(canvas), whole.maps(small)
        assert less(canvas).shape == whole(canvas).shape == (2, 32, 16, 16)
    assert [each.shape[-1] for each in found] == [32, 16, 16, 16]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, interpolate(other, scale_factor=float(shrunk), mode="bilinear"))


@pytest.mark.parametrize(("size", "words"), [("half", "half size"), ("quarter", "a quarter of its size")])
def test_a_shrunk_one_is_not_taken_for_another(tmp_path: Path, size: str, words: str) -> None:
    less = card(f"lite-medsam-{size}")
    path = tmp_path / "less.safetensors"
    network = cast("nn.Module", less.build())
    write_checkpoint(less.restore(dict(network.state_dict())), path, about={"layout": less.layout})
    load(less, weights=path)
    another = "quarter" if size == "half" else "half"
    for other in ("lite-medsam", f"lite-medsam-{another}", f"swin-lite-medsam-{size}"):
        with pytest.raises(WeightsError, match=f"LiteMedSAM at {words}"):
            load(other, weights=path)


@pytest.mark.parametrize("shrunk", [2, 4])
def test_what_is_finer_is_added_where_it_was_seen(shrunk: Literal[2, 4]) -> None:
    """A spot moves the features at its place most when only the added layer can see it."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"widths": (8, 32, 32, 32), "depths": (1, 1, 1, 1), "windows": (7, 5, 7), "channels": 32}
    network = TinyViT(**sizes, shrunk=shrunk).eval()
    assert network.lateral is not None
    canvas = torch.rand(1, 3, 128, 128)
    spotted = canvas.clone()
    spotted[..., 40:44, 80:84] += 1  # the cell 10, 20
    with torch.inference_mode():
        without = network.maps(spotted).late - network.maps(canvas).late
        torch.nn.init.normal_(network.lateral.weight)
        moved = (network.maps(spotted).late - network.maps(canvas).late - without).abs().mean(dim=1)[0]
    row, column = divmod(int(moved.argmax()), 32)
    assert max(abs(row - 10), abs(column - 20)) <= 1


def test_the_same_encoder_in_two_models_has_embeddings_of_two_kinds() -> None:
    """Of a cache that both use, neither may be given what the other remembers of an image."""
    plain, swin = (card(name).build() for name in ("lite-medsam", "swin-lite-medsam-tinyvit-no-skip"))
    assert isinstance(plain, nn.Module)
    assert isinstance(swin, nn.Module)
    swin.load_state_dict(plain.state_dict())
    before = encoder_hash(swin)
    assert before != encoder_hash(plain)
    assert before == encoder_hash(cast("nn.Module", copy.deepcopy(swin)))
    whole = cast("Any", card("swin-lite-medsam-mini").build())
    usual = encoder_hash(whole)
    whole.keep_maps = True
    kept = encoder_hash(whole)
    with torch.no_grad():
        whole.skip_neck[0].weight += 1
    assert encoder_hash(whole) == kept != usual
    whole.keep_maps = False
    assert encoder_hash(whole) != usual


def test_without_weights_it_is_said_how_to_come_by_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="`palpate distill --student swin-lite-medsam-small-no-skip` trains them"):
        load("swin-lite-medsam-small-no-skip")
    with pytest.raises(UnknownModel, match="did you mean 'swin-lite-medsam-small'"):
        card("swin-lite-medsam_small")
