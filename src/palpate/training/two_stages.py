"""A small model in two stages, as Gao et al. 2024 (Swin-LiteMedSAM, arXiv 2409.07172, section 2.3) train theirs.

First its encoder learns the embeddings of a teacher (`palpate.training.distill`), then the whole of it learns to answer
prompts (`palpate.training.finetune` with everything moving), and what comes of it is one checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from palpate.datasets.case import Case
from palpate.errors import OutputError, WeightsError
from palpate.inference.processes import leads
from palpate.models import catalogue, weights
from palpate.training.distill import ABOUT, Distilled, distill, would_not_replace
from palpate.training.distill_recipe import DistillRecipe
from palpate.training.engine import CHECKPOINT_SECONDS
from palpate.training.finetune import Finetuned, finetune
from palpate.training.task import Listener

MADE = "made.json"
"""In the run's folder: the content hash of the checkpoint that came of it, so that no other file is taken for it."""


def train_in_two_stages(
    recipe: DistillRecipe,
    output: str | Path,
    *,
    folder: str | Path | None = None,
    cases: tuple[Sequence[Case], Sequence[Case]] | None = None,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    threads: int | None = None,
    command: str = "",
    overwrite: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    listener: Listener | None = None,
) -> Distilled:
    """Distil, then train the whole model as the recipe's `then` says, and write it into the checkpoint `output`.

    The folder of the run holds both stages: the checkpoint of the first, `stage1.safetensors`, and the run of the
    second, `stage2`. Stopped at any moment, the same call goes on where it was. The arguments are those of
    `palpate.training.distill.distill`.

    Raises:
        What `distill` and `finetune` raise. OutputError: there is a file at `output` that this run did not make.
    """
    output = Path(output)
    folder = Path(folder) if folder is not None else output.with_suffix(".run")
    would_not_replace(recipe, output)
    if output.exists() and not overwrite and not _is_of(folder, output, recipe.student):
        raise OutputError(f"{output} exists and is not what the run in {folder} made; --overwrite replaces it")
    first = folder / "stage1.safetensors"
    second = recipe.second_stage(str(first), name=output.stem)
    how: dict[str, Any] = {
        **{"cases": cases, "cache": cache, "cache_bytes": cache_bytes, "device": device, "devices": devices},
        **{"nodes": nodes, "threads": threads, "command": command, "overwrite": overwrite, "listener": listener},
        "checkpoint_seconds": checkpoint_seconds,
    }
    one = distill(recipe.without_second_stage(), first, **how)
    two = finetune(second, folder / "stage2", **how)
    # What the teacher's decoder lacks lies in the decoder and in the skip connections, which are trained with it.
    left = [] if {"full", "decoder"} & set(second.trained.parts) else list(one.about["left_random"])
    about = _about(recipe, one, two, left)
    if leads():
        _write(recipe.student, first, two, output, about, folder)
    return Distilled(output, recipe.student, about, one.steps + two.steps, ready=not left)


def _is_of(folder: Path, output: Path, student: str) -> bool:
    """Whether the run in this folder made this file."""
    try:
        made = json.loads((folder / MADE).read_text(encoding="utf-8"))
        state = weights.load_state(output, catalogue.card(student))
    except (OSError, ValueError, WeightsError):
        return False
    return isinstance(made, dict) and made.get("content_sha256") == weights.content_hash(state)


def _about(recipe: DistillRecipe, one: Distilled, two: Finetuned, left: list[str]) -> dict[str, Any]:
    """How it was made: that of the first stage, with the whole recipe, and the second's own."""
    return {
        **one.about,
        "name": two.card.name,
        "summary": two.card.summary or one.about["summary"],
        "licence": two.card.licence,
        "recipe": {**one.about["recipe"], "then": _without_places(recipe.then or {})},
        "left_random": left,
        "data_of_stage_2": two.card.data,
        "metrics": dict(two.card.metrics),
        "metrics_of_stage_1": one.about["metrics"],
    }


def _without_places(then: dict[str, Any]) -> dict[str, Any]:
    """The section without where files lie, which is nobody's business once the checkpoint is given on."""
    data = then.get("data")
    return {**then, "data": {**data, "path": "", "labels": None}} if isinstance(data, dict) else dict(then)


def _write(student: str, first: Path, two: Finetuned, output: Path, about: dict[str, Any], folder: Path) -> None:
    card = catalogue.card(student)
    network = cast("nn.Module", weights.load(card, weights=first, adapter=two.adapter).model)
    named = {"layout": card.layout, "licence": str(about["licence"])}
    state = card.restore(dict(network.state_dict()))
    (folder / MADE).write_text(json.dumps({"content_sha256": weights.content_hash(state)}) + "\n", encoding="utf-8")
    weights.write_checkpoint(state, output, about={**named, ABOUT: json.dumps(about, default=str)})


__all__ = ["train_in_two_stages"]
