"""A tiny model in the catalogue of a home of its own, and phantoms to train it on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch

from palpate.models import catalogue

RecipeOf = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms; weights and embeddings come here when they are first needed, once for all tests."""
    home = tmp_path_factory.mktemp("home")
    tiny_training.phantoms(home / "phantoms")
    return home


@pytest.fixture
def home(made_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("PALPATE_HOME", str(made_home))
    monkeypatch.setattr(catalogue, "CARDS", catalogue.CARDS)
    tiny_training.register()
    yield made_home
    torch.set_num_threads(threads)


@pytest.fixture
def recipe_of(home: Path) -> RecipeOf:
    """The plain values of a recipe of four steps in two epochs, with changes: `recipe_of(epochs=4)`."""

    def made(**changes: Any) -> dict[str, Any]:
        data = {"path": str(home / "phantoms" / "manifest.csv"), **changes.pop("data", {})}
        validation = {"objects": 2, "overlays": 0, **changes.pop("validation", {})}
        optimiser = {"rate": 1e-2, **changes.pop("optimiser", {})}
        return {
            "model": tiny_training.NAME,
            "epochs": 2,
            "steps": 2,
            "batch": 3,
            **changes,
            "data": data,
            "validation": validation,
            "optimiser": optimiser,
        }

    return made
