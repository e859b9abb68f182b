import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from palpate.models import catalogue
from tiny_networks import tiny_lite_medsam

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny network under LiteMedSAM's name, so that experiments run as they are written, in seconds."""
    import safetensors.torch

    from palpate.models.sam import to_segment_anything
    from palpate.models.weights import content_hash

    network = tiny_lite_medsam()
    state = {name: tensor.contiguous() for name, tensor in to_segment_anything(dict(network.state_dict())).items()}
    card = replace(
        catalogue.card("lite-medsam"),
        build=tiny_lite_medsam,
        frame=network.frame,
        content_sha256=content_hash(state),
    )
    monkeypatch.setattr(catalogue, "CARDS", (card,))
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "home"))
    path = catalogue.stored("lite-medsam")
    path.parent.mkdir(parents=True)
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in state.items()}, path)


@pytest.fixture
def sam_ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of the prompt ablation."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "sam_ablations"))
    for name in ("run", "tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module("run")
