"""Distilling, then training the whole model: one recipe, one command, one checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import tiny_training
import torch
from torch import nn

from palpate.errors import OutputError, SettingError
from palpate.models.weights import load
from palpate.training.distill import read_about
from palpate.training.distill_recipe import DistillRecipe, distill_recipe_from
from palpate.training.finetune import Event
from palpate.training.two_stages import train_in_two_stages


@pytest.fixture(scope="module", autouse=True)
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALPATE_HOME", str(tmp_path_factory.mktemp("home")))
        tiny_training.register()
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.phantoms(tmp_path_factory.mktemp("data"))


def recipe(path: Path, /, **then: Any) -> DistillRecipe:
    return distill_recipe_from(
        {
            "student": tiny_training.SWIN,
            "teacher": tiny_training.NAME,
            "data": {"path": str(path), "flips": ["x"]},
            "validation": {"objects": 2, "overlays": 0},
            "epochs": 1,
            "steps": 2,
            "batch": 2,
            "calibrated": 4,
            "then": {"epochs": 1, "steps": 2, "batch": 2, "validation": {"objects": 2, "overlays": 0}, **then},
        }
    )


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(cast("nn.Module", load(tiny_training.SWIN, weights=path).model).state_dict())


def test_the_second_stage_is_the_papers_but_for_what_is_said(data: Path) -> None:
    second = recipe(data, optimiser={"rate": 1e-3}, data={"slices_per_volume": "all"}).second_stage("first.safetensors")
    assert (second.model, second.weights) == (tiny_training.SWIN, "first.safetensors")
    assert second.trained.parts == ("full",)
    assert second.prompts[0].strategy == "swin-training"
    assert (second.loss.bce, second.loss.iou) == (1, 1)
    assert (second.optimiser.rate, second.optimiser.weight_decay, second.optimiser.factor) == (1e-3, 0.001, 0.8)
    assert (second.data.balance, second.data.slices_per_volume, second.data.flips) == ("cases", None, ("x",))
    assert (second.epochs, recipe(data).epochs) == (1, 1)


def test_everything_moves_in_the_second_stage_and_the_checkpoint_is_whole(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.safetensors"
    made = train_in_two_stages(recipe(data), output, device="cpu", cache=tmp_path / "cache")
    assert (made.ready, made.steps) == (True, 4)
    first, whole = weights_of(tmp_path / "small.run" / "stage1.safetensors"), weights_of(output)
    for part in ("image_encoder.patch_embed", "skip_neck", "prompt_decoder.mask_decoder.upscaling2"):
        assert any(not torch.equal(first[name], whole[name]) for name in whole if name.startswith(part)), part
    about = read_about(output)
    assert about["left_random"] == []
    assert about["recipe"]["then"]["steps"] == 2
    assert {"val_dice", "val_dice_before"} <= set(about["metrics"])
    assert {"val_dice", "val_dice_before"} <= set(about["metrics_of_stage_1"])
    assert str(data) not in str(about)
    assert (about["name"], about["data_of_stage_2"]) == ("small", about["data"])


def test_what_the_second_stage_says_of_itself_is_kept_and_where_its_data_lie_is_not(data: Path, tmp_path: Path) -> None:
    own = {"name": "Mine", "licence": "CC-BY-NC-4.0", "data": {"path": str(data)}, "trained": ["decoder"]}
    made = train_in_two_stages(recipe(data, **own), tmp_path / "s.safetensors", device="cpu", cache=tmp_path / "cache")
    about = read_about(made.path)
    assert (about["name"], about["licence"]) == ("Mine", "CC-BY-NC-4.0")
    assert str(data) not in str(about)
    assert made.ready  # all that stage 1 left random is trained with the decoder


def test_what_no_stage_trains_is_told(data: Path, tmp_path: Path) -> None:
    asked = recipe(data, trained=["prompt-encoder"])
    made = train_in_two_stages(asked, tmp_path / "s.safetensors", device="cpu", cache=tmp_path / "cache")
    assert not made.ready
    assert any("upscaling1" in name for name in read_about(made.path)["left_random"])


def test_stopped_in_the_second_stage_the_same_call_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    seen: list[str] = []

    def stopping(event: Event) -> None:
        seen.append(event.kind)
        if event.kind == "step" and seen.count("finished"):  # the first stage is done
            raise Stop

    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    train_in_two_stages(recipe(data), whole, device="cpu", cache=tmp_path / "cache")
    with pytest.raises(Stop):
        train_in_two_stages(recipe(data), broken, device="cpu", cache=tmp_path / "cache", listener=stopping)
    assert not broken.exists()
    train_in_two_stages(recipe(data), broken, device="cpu", cache=tmp_path / "cache")
    one, other = weights_of(whole), weights_of(broken)
    assert all(torch.equal(one[name], other[name]) for name in one)
    train_in_two_stages(recipe(data), broken, device="cpu", cache=tmp_path / "cache")  # nothing is left to do


def test_another_file_is_not_replaced_unasked(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine.safetensors"
    output.write_bytes(b"precious")
    with pytest.raises(OutputError, match="--overwrite"):
        train_in_two_stages(recipe(data), output, device="cpu", cache=tmp_path / "cache")
    assert output.read_bytes() == b"precious"
    assert not (tmp_path / "mine.run").exists()


def test_a_finished_one_of_the_same_recipe_but_another_run_is_another_file(data: Path, tmp_path: Path) -> None:
    output, cache = tmp_path / "mine.safetensors", tmp_path / "cache"
    train_in_two_stages(recipe(data), output, folder=tmp_path / "one", device="cpu", cache=cache)
    before = output.read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        train_in_two_stages(recipe(data), output, folder=tmp_path / "other", device="cpu", cache=cache)
    assert output.read_bytes() == before
    again = recipe(data).model_copy(update={"start": str(output)})
    with pytest.raises(OutputError, match="would replace what is learned from"):
        train_in_two_stages(again, output, device="cpu", cache=cache, overwrite=True)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("then", "says"),
    [
        ({"optimiser": "adam"}, r"then\.optimiser is a section"),
        ({"trained": ["adapter"]}, "no checkpoint has room"),
        ({"model": "lite-medsam"}, "leave model out"),
        ({"weights": "x", "model": "y"}, "leave model and weights out"),
        ({"epoch": 3}, "epoch is not known"),
        ({"prompts": [{"strategy": "none such"}]}, "none such"),
    ],
)
def test_a_second_stage_that_cannot_be_is_told_before_the_first(data: Path, then: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        recipe(data, **then)
