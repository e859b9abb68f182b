"""A small model in two stages, as Gao et al. 2024 (Swin-LiteMedSAM, arXiv 2409.07172, section 2.3) train theirs.

First its encoder learns the embeddings of a teacher (`palpate.training.distill`), then the whole of it learns to answer
prompts (`palpate.training.finetune` with everything moving), and what comes of it is one checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from torch import nn

from palpate.errors import OutputError
from palpate.models import catalogue, weights
from palpate.models.adapters import AdapterCard
from palpate.training.distill import ABOUT, Distilled, distill, read_about
from palpate.training.distill_recipe import WORDS, DistillRecipe
from palpate.training.finetune import Finetuned, finetune


def train_in_two_stages(recipe: DistillRecipe, output: str | Path, **how: Any) -> Distilled:
    """Distil, then train the whole model as the recipe's `then` says, and write it into the checkpoint `output`.

    `how` are the other arguments of `palpate.training.distill.distill`. The folder of the run holds both stages: the
    checkpoint of the first, `stage1.safetensors`, and the run of the second, `stage2`. Stopped at any moment, the same
    call goes on where it was.

    Raises:
        What `distill` and `finetune` raise. OutputError: there is another file at `output`.
    """
    output = Path(output)
    folder = Path(how.pop("folder", None) or output.with_suffix(".run"))
    overwrite = bool(how.get("overwrite"))
    first = folder / "stage1.safetensors"
    second = recipe.second_stage(str(first))
    if output.exists() and not overwrite and read_about(output).get("recipe") != _plain(recipe):
        raise OutputError(f"{output} exists and is not what this recipe makes; --overwrite replaces it")
    one = distill(recipe.without_second_stage(), first, **how)
    two = finetune(second, folder / "stage2", **how)
    about = _about(recipe, one, two.card)
    _write(recipe.student, first, two, output, about)
    return Distilled(output, recipe.student, about, one.steps + two.steps, ready=True)


def _about(recipe: DistillRecipe, one: Distilled, two: AdapterCard) -> dict[str, Any]:
    """How it was made: that of the first stage, with the whole recipe, and the second's numbers."""
    return {
        **one.about,
        "name": recipe.name or one.about["name"],
        "recipe": _plain(recipe),
        "left_random": [],
        "metrics": dict(two.metrics),
        "metrics_of_stage_1": one.about["metrics"],
    }


def _plain(recipe: DistillRecipe) -> dict[str, Any]:
    """The recipe without where files lie, which is nobody's business once the checkpoint is given on."""
    found = recipe.described()
    own = {"start": found["start"] if found["start"] in WORDS else "", "teacher_weights": None}
    return {**found, **own, "data": {**found["data"], "path": "", "labels": None}}


def _write(student: str, first: Path, two: Finetuned, output: Path, about: dict[str, Any]) -> None:
    card = catalogue.card(student)
    network = cast("nn.Module", weights.load(card, weights=first, adapter=two.adapter).model)
    named = {"layout": card.layout, "licence": str(about["licence"])}
    state = card.restore(dict(network.state_dict()))
    weights.write_checkpoint(state, output, about={**named, ABOUT: json.dumps(about, default=str)})


__all__ = ["train_in_two_stages"]
