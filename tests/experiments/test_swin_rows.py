"""The Swin-LiteMedSAM experiment goes from pictures to tables."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import trees
from palpate.models import weights
from palpate.models.catalogue import card
from palpate.prompts.strategies import strategy
from phantoms import picture, two_organs

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "swin_litemedsam"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(EXPERIMENT))
    for name in ("run", "tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module("run"), import_module("tables")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pictures of four people, with two organs each."""
    rows: list[dict[str, str]] = []
    for number, split in enumerate(("train", "val", "test", "test")):
        labels = np.kron(two_organs(), np.ones((4, 4), np.uint8))
        trees.png(tmp_path / f"{number}.png", picture((labels == 1, 200), (labels == 2, 120 + number), background=10))
        trees.png(tmp_path / f"{number}_labels.png", labels)
        rows.append(
            {
                **{"image": f"{number}.png", "label": f"{number}_labels.png", "dataset": "phantoms"},
                **{"modality": "CT", "subject": f"s{number}", "split": split},
            }
        )
    trees.manifest(tmp_path, rows)
    return tmp_path


@pytest.mark.slow
def test_a_row_starts_from_a_trained_encoder_and_learns(
    scripts: tuple[ModuleType, ModuleType], data: Path, small_model: None, tmp_path: Path
) -> None:
    """A step of the real network; what is like LiteMedSAM's starts as LiteMedSAM's."""
    run, _ = scripts
    out, small = tmp_path / "out", {"epochs": 1, "steps": 1, "batch": 1}
    assert run.train("points", 0, "tinyvit", data, out, small).startswith("points-0: ")
    assert (out / "stage2" / "points-0" / "adapter.safetensors").is_file()
    name = "swin-lite-medsam-tinyvit-no-scribble"
    start = weights.load_state(run.started(name, out, "tinyvit", 0), card(name))
    given = weights.load_state(weights.stored("lite-medsam"), card("lite-medsam"))
    alike = [key for key, value in given.items() if key in start and start[key].shape == value.shape]
    assert any(key.startswith("image_encoder.") for key in alike)
    assert all(torch.equal(start[key], given[key]) for key in alike)


def test_what_was_trained_is_tested_beside_the_released_model_and_shown(
    scripts: tuple[ModuleType, ModuleType],
    data: Path,
    small_model: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, tables = scripts
    out = tmp_path / "out"
    run.same_time(0, 4, data, out, {})
    for job in ("released", "stage2/lite-medsam-0"):
        run.test(job, data, out)
    monkeypatch.setattr(sys, "argv", ["tables.py", str(out)])
    capsys.readouterr()
    tables.main()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"| {tables.NAMES['lite-medsam']} |") for line in lines) == 2  # table 5, and all boxes
    assert sum(line.startswith(f"| {tables.NAMES['released']} |") for line in lines) == 2
    head = next(line for line in lines if "mean of seven" in line)
    assert head.count("%") == 6
    assert any(line.startswith("| CT | 2 |") for line in lines)
    assert any(
        line.startswith("4 objects of 2 subjects; seeds of training: lite-medsam 1, released 1.") for line in lines
    )

    kept = tmp_path / "kept"
    monkeypatch.setattr(sys, "argv", ["run.py", str(data), str(out), "keep", "--to", str(kept)])
    run.main()
    assert "kept: 2 tests" in capsys.readouterr().out
    assert not any(str(tmp_path) in path.read_text() for path in kept.rglob("*") if path.is_file())
    monkeypatch.setattr(sys, "argv", ["tables.py", str(kept)])
    tables.main()
    assert capsys.readouterr().out.splitlines() == lines


def test_every_row_is_a_model_and_a_strategy_of_ours(scripts: tuple[ModuleType, ModuleType]) -> None:
    run, tables = scripts
    for name, (without, prompts) in run.ROWS.items():
        assert name in tables.NAMES
        assert strategy(prompts).name == prompts
        assert card(f"{run.family('tinyvit')}{without}").name == f"swin-lite-medsam-tinyvit{without}"
    for student, _ in run.STUDENTS.values():
        assert card(student).name == student
