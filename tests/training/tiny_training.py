"""A model of 40 thousand parameters and ten phantoms: a whole fine-tuning run in a second or two.

Other processes need the model as well. It is put into the catalogue by `register`, which a `Listener` from here does
wherever it is unpickled, and which this file does when it is run: `python tiny_training.py RECIPE RUN ...`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from palpate.models import catalogue
from palpate.models.catalogue import ModelCard
from palpate.models.frame import Frame
from palpate.models.lite_medsam import LiteMedSAM, TinyViT
from palpate.models.promptable import PromptSupport, WeightsSource
from palpate.models.sam import SamPromptDecoder, from_segment_anything, to_segment_anything
from palpate.models.swin_lite_medsam import SkipPromptDecoder, SwinEncoder, SwinLiteMedSAM

NAME = "tiny"
SWIN = "tiny-swin"
SIDE = 32


def build() -> LiteMedSAM:
    """The same random weights each time."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = LiteMedSAM(
        Frame(size=SIDE, mask_size=SIDE),
        image_encoder=TinyViT(widths=(8, 32, 32, 32), depths=(1, 1, 1, 1), windows=(7, 5, 7), channels=32),
        prompt_decoder=SamPromptDecoder(canvas_size=SIDE, grid_stride=4, channels=32, heads=2, mlp_channels=32),
    )
    torch.random.set_rng_state(state)
    return model.eval()


def card() -> ModelCard:
    from palpate.models.weights import content_hash

    return ModelCard(
        name=NAME,
        summary="random weights",
        parameters=1,
        build=build,
        frame=Frame(size=SIDE, mask_size=SIDE),
        prompts=PromptSupport(trained=("box",), through_boxes=("points", "scribble", "mask")),
        layout="lite-medsam",
        rename=from_segment_anything,
        restore=to_segment_anything,
        weights=WeightsSource(sha256="", size_bytes=0, package="", member=""),
        content_sha256=content_hash(to_segment_anything(dict(build().state_dict()))),
        licence="",
        paper="",
        arxiv="",
    )


def build_swin() -> SwinLiteMedSAM:
    """As many channels and cells as the tiny model has; other weights each time."""
    return SwinLiteMedSAM(
        Frame(size=SIDE, mask_size=SIDE, mask_prompt="picture"),
        image_encoder=SwinEncoder(widths=(8, 16, 16, 32, 32), heads=(1, 1, 1, 1), pairs=(1, 1, 1, 1), channels=32),
        prompt_decoder=SkipPromptDecoder(
            canvas_size=SIDE, grid_stride=4, fine_channels=16, channels=32, heads=2, mlp_channels=32
        ),
    ).eval()


def swin_card() -> ModelCard:
    return replace(
        catalogue.SWIN_LITE_MEDSAM,
        name=SWIN,
        build=build_swin,
        frame=Frame(size=SIDE, mask_size=SIDE, mask_prompt="picture"),
    )


def register() -> None:
    """Put the models into the catalogue, and the weights of the first where PALPATE_HOME says."""
    import safetensors.torch

    if not any(one.name == NAME for one in catalogue.CARDS):
        catalogue.CARDS = (*catalogue.CARDS, card(), swin_card())
    path = catalogue.stored(NAME)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        state = to_segment_anything(dict(build().state_dict()))
        safetensors.torch.save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)


def phantoms(folder: Path, *, train: int = 6, val: int = 3, shape: tuple[int, int] = (28, 36)) -> Path:
    """Bright discs and grey squares on noise, a picture a subject, and their manifest."""
    rng = np.random.default_rng(0)
    lines = ["image,label,subject,split,dataset"]
    y, x = np.indices(shape)
    for number in range(train + val):
        labels = np.zeros(shape, dtype=np.uint8)
        labels[(x - rng.integers(8, 13)) ** 2 + (y - rng.integers(9, 19)) ** 2 <= rng.integers(4, 7) ** 2] = 1
        top, left = rng.integers(3, 14), rng.integers(20, 25)
        labels[top : top + 9, left : left + 7] = 2
        pixels = np.choose(labels, (30, 220, 140)) + rng.integers(0, 30, shape)
        (folder / "i").mkdir(parents=True, exist_ok=True)
        (folder / "l").mkdir(exist_ok=True)
        PILImage.fromarray(pixels.astype(np.uint8)).save(folder / "i" / f"{number}.png")
        PILImage.fromarray(labels).save(folder / "l" / f"{number}.png")
        split = "train" if number < train else "val"
        lines.append(f"i/{number}.png,l/{number}.png,s{number},{split},{'discs' if number % 2 else 'squares'}")
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


class Listener:
    """Keeps what it is told; wherever it is unpickled, the tiny model is known."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __call__(self, event: Any) -> None:
        self.events.append(event)

    def __setstate__(self, state: dict[str, Any]) -> None:
        register()
        self.__dict__.update(state)


def main() -> None:
    """RECIPE RUN [devices [SIGNAL@NUMBER]]: 9@7 kills the process at the seventh step or validation."""
    from palpate.training.finetune import Event, finetune
    from palpate.training.recipe import recipe_from

    register()
    recipe, folder, *more = sys.argv[1:]
    signal_number, at = (int(part) for part in more[1].split("@")) if len(more) > 1 else (0, -1)
    seen = 0

    def listener(event: Event) -> None:
        nonlocal seen
        seen += event.kind in ("step", "validation")
        if seen == at:
            os.kill(os.getpid(), signal_number)

    finetune(
        recipe_from(json.loads(recipe)),
        folder,
        devices=int(more[0]) if more else 1,
        device="cpu",
        threads=1,
        checkpoint_seconds=0.0,
        listener=listener,
    )


if __name__ == "__main__":
    main()
