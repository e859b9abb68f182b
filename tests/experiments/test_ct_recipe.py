"""The CT recipe of the adaptive perturbation's paper does what the paper says, on a folder as nnU-Net has it."""

import json
from pathlib import Path

import numpy as np
import pytest

import trees
from palpate.cli import main
from palpate.images.intensity import Window, parse_intensity
from palpate.training.recipe import read_recipe

RECIPE = Path(__file__).parents[2] / "experiments" / "adaptive_perturbation" / "ct_recipe.toml"


@pytest.fixture
def abdomens(tmp_path: Path) -> Path:
    """Four CT scans of four slices; a liver of 100 pixels on two of them, a kidney of 36 on one."""
    names = ("a", "b", "c", "d")
    root = trees.nnunet(tmp_path, names, labels={"background": 0, "liver": 1, "kidney": 2})
    for number, name in enumerate(names):
        labels = np.zeros((4, 40, 48), np.uint8)
        labels[1:3, 8:18, 6:16] = 1
        labels[2, 24:30, 30:36] = 2
        image = np.choose(labels, (-100, 60 + number, 200)).astype(np.int16)
        image[:, :2] = -1000
        trees.nifti(root / "imagesTr" / f"{name}_0000.nii.gz", image)
        trees.nifti(root / "labelsTr" / f"{name}.nii.gz", labels)
    return root


def test_the_numbers_are_the_papers() -> None:
    recipe = read_recipe(RECIPE)
    assert recipe.data.intensity is not None
    window = parse_intensity(recipe.data.intensity)
    assert isinstance(window, Window)
    assert (window.level - window.width / 2, window.level + window.width / 2) == (-360, 440)
    lung = parse_intensity("lung-wide")
    assert isinstance(lung, Window)
    assert (lung.level - lung.width / 2, lung.level + lung.width / 2) == (-1000, 400)
    assert (recipe.epochs, recipe.steps, recipe.batch) == (20, None, 1)
    assert (recipe.optimiser.name, recipe.optimiser.rate, recipe.optimiser.schedule) == ("adamw", 1e-4, "plateau")
    assert (recipe.loss.bce, recipe.loss.dice, recipe.loss.focal) == (1, 1, 0)
    assert recipe.data.slices_per_volume is None


def test_it_runs_as_its_first_lines_say(
    abdomens: Path, small_model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _palpate("data", "split", abdomens, "-o", "ct.csv", "--train", 0.5, "--val", 0.25, "--test", 0.25)
    _palpate("finetune", RECIPE, "--data", "ct.csv", "--epochs", 1, "--steps", 2, "--threads", 1, "-o", "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["finished"], record["steps"]) == (True, 2)
    assert "2 images to train on" in record["data"]
    assert "1 to validate with" in record["data"]
    assert (tmp_path / "run" / "adapter.safetensors").is_file()


def _palpate(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code in (0, None)
