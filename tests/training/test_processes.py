"""Two processes that share the work do what one does, to the rounding of another order of sums."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tiny_training

from palpate.errors import DatasetError
from palpate.models import cards
from palpate.training.finetune import Finetuned, finetune
from palpate.training.log import rows_of
from palpate.training.recipe import recipe_from

RecipeOf = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.slow


def shared_recipe(recipe_of: RecipeOf) -> dict[str, Any]:
    """Of three objects a step one process takes two; validated with an odd number of them."""
    return recipe_of(
        loss={"preset": "lite-medsam", "teacher": 0.5, "anchor": 0.01},
        validation={"prompts": [{"strategy": "standard"}], "objects": 2},
        optimiser={"rate": 1e-3, "clip": 1.0, "ema": 0.5},
        steps=3,
        prompts=[{"strategy": "standard"}],
        accumulate=2,
    )


@pytest.fixture
def alone(tmp_path: Path, recipe_of: RecipeOf) -> Path:
    finetune(recipe_from(shared_recipe(recipe_of)), tmp_path / "alone", device="cpu", threads=1)
    return tmp_path / "alone"


def assert_alike(folder: Path, other: Path) -> None:
    one, two = (safetensors.numpy.load_file(each / "adapter.safetensors") for each in (folder, other))
    assert one.keys() == two.keys()
    assert all(np.allclose(one[name], two[name], atol=1e-5) for name in one)
    rows, others = (rows_of(each / "log.csv") for each in (folder, other))
    assert len(rows) == len(others) == 6 + 3
    for row, other_row in zip(rows, others, strict=True):
        for name, text in row.items():
            assert (not text and not other_row[name]) or abs(float(text) - float(other_row[name])) <= 1e-5


def test_started_by_us(alone: Path, tmp_path: Path, recipe_of: RecipeOf) -> None:
    listener = tiny_training.Listener()
    done = finetune(
        recipe_from(shared_recipe(recipe_of)),
        tmp_path / "two",
        device="cpu",
        devices=2,
        threads=1,
        listener=listener,
    )
    folder = tmp_path / "two"
    adapter = folder / "adapter.safetensors"
    assert done == Finetuned(folder, adapter, cards.adapter_card(adapter), steps=6)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["settings"]["processes"] == 2
    assert_alike(tmp_path / "two", alone)


def test_started_by_torchrun(alone: Path, home: Path, tmp_path: Path, recipe_of: RecipeOf) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [tiny_training.__file__, json.dumps(shared_recipe(recipe_of)), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "two", alone)


def test_an_error_of_theirs_is_the_same_sentence(tmp_path: Path, recipe_of: RecipeOf) -> None:
    recipe = recipe_of(data={"leave_out": ["discs", "squares"]})
    with pytest.raises(DatasetError, match="is left to train on"):
        finetune(
            recipe_from(recipe),
            tmp_path / "run",
            device="cpu",
            devices=2,
            threads=1,
            listener=tiny_training.Listener(),
        )
