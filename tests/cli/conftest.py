from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from phantoms import disk, picture

if TYPE_CHECKING:
    from palpate.models.catalogue import ModelCard


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "ModelCard":
    """A model called `tiny` in the catalogue, with 40 thousand random weights that are on this machine."""
    import safetensors.torch

    from palpate.models import catalogue
    from palpate.models.catalogue import ModelCard
    from palpate.models.promptable import PromptSupport, WeightsSource
    from palpate.models.sam import from_segment_anything, to_segment_anything
    from palpate.models.weights import content_hash
    from tiny_networks import tiny_lite_medsam

    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "home"))
    network = tiny_lite_medsam()
    state = to_segment_anything(dict(network.state_dict()))
    card = ModelCard(
        name="tiny",
        summary="random weights",
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        build=tiny_lite_medsam,
        frame=network.frame,
        prompts=PromptSupport(trained=("box",), through_boxes=("points", "scribble", "mask")),
        layout="lite-medsam",
        rename=from_segment_anything,
        restore=to_segment_anything,
        weights=WeightsSource(sha256="0" * 64, size_bytes=1, package="none", member="none"),
        content_sha256=content_hash(state),
        licence="Apache-2.0",
        paper="none",
        arxiv="none",
    )
    # Tests of training have another model of this name, and leave it to the process.
    others = [each for each in catalogue.CARDS if each.name != card.name]
    monkeypatch.setattr(catalogue, "CARDS", (*others, card))
    path = catalogue.stored("tiny")
    path.parent.mkdir(parents=True)
    safetensors.torch.save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return card


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def trained(tiny: "ModelCard", tmp_path: Path) -> Path:
    """A folder with an adapter of `tiny` in run/, its weights in whole.safetensors, other ones in other.safetensors."""
    import safetensors.torch
    from torch import nn

    from palpate.models import adapters
    from palpate.models.cards import AdapterCard, Trained
    from palpate.models.catalogue import stored

    network = tiny.build()
    assert isinstance(network, nn.Module)
    kinds = Trained(parts=("decoder",))
    with torch.no_grad():
        for parameter in adapters.trainable(network, kinds).values():
            parameter.add_(0.01)
    about = AdapterCard("run", "tiny", tiny.content_sha256, kinds, ("box", "points"))
    adapters.save(adapters.extracted(network, about), tmp_path / "run/adapter.safetensors")
    whole = safetensors.torch.load_file(stored("tiny"))
    safetensors.torch.save_file(whole, tmp_path / "whole.safetensors")
    whole["mask_decoder.iou_token.weight"] += 1
    safetensors.torch.save_file(whole, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    return tmp_path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with images/ and labels/: six pictures of a bright disk, and of a smaller grey one beside it."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "pictures"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(6):
        large = disk((40, 56), centre=(16 + 2 * number, 18), radius=9)
        small = disk((40, 56), centre=(46, 30), radius=5)
        image = picture((large, 190), (small, 150), background=40) + rng.integers(0, 25, (40, 56)).astype(np.uint8)
        Picture.fromarray(image).save(folder / f"images/p{number}.png")
        Picture.fromarray(large.astype(np.uint8) + 2 * small.astype(np.uint8)).save(folder / f"labels/p{number}.png")
    return folder
