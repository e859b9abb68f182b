"""The page on recipes tells the truth: every key there is, none that is not, and the defaults."""

import json
import re
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import pytest

from palpate.models.cards import Part, Trained, Where
from palpate.training.distill_recipe import DistillRecipe, distill_recipe_from
from palpate.training.learn_recipe import (
    PEFT,
    USUAL,
    LearnDataRecipe,
    LearnRecipe,
    MixRecipe,
    learn_recipe_from,
)
from palpate.training.learning_losses import LEARNING_LOSSES, LearningLoss
from palpate.training.losses import LOSSES, Loss
from palpate.training.recipe import (
    DataRecipe,
    OptimiserRecipe,
    PromptRecipe,
    Recipe,
    ValidationRecipe,
    recipe_from,
)

PAGE = (Path(__file__).parents[2] / "docs/reference/recipes.md").read_text(encoding="utf-8")


def _table(heading: str) -> dict[str, str]:
    """Keys and their defaults as the page has them."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, flags=re.MULTILINE))


def _shown(text: str) -> Any:
    """The value of a default on the page."""
    return None if text == "none" else tomllib.loads(f"value = {text.strip('`')}")["value"]


@pytest.mark.parametrize(
    ("heading", "wanted"),
    [
        ("[data]", DataRecipe(path="p").model_dump(mode="json")),
        ("[[prompts]]", PromptRecipe(strategy="standard").model_dump(mode="json")),
        ("[optimiser]", OptimiserRecipe().model_dump(mode="json")),
        ("[validation]", ValidationRecipe().model_dump(mode="json")),
        ("[trained]", json.loads(json.dumps(asdict(Trained())))),
        ("[loss]", asdict(Loss())),
        ("The file itself", recipe_from({"data": {"path": "p"}}).described()),
        ("Recipes of palpate learn", learn_recipe_from({"data": {"path": "p"}}).described()),
        ("Recipes of palpate distill", distill_recipe_from({"data": {"path": "p"}}).described()),
        ("[data] of palpate learn", LearnDataRecipe(path="p").model_dump(mode="json")),
        ("[mix] of palpate learn", MixRecipe().model_dump(mode="json")),
        ("[loss] of palpate learn", {one.name: one.default for one in fields(LearningLoss)}),
    ],
)
def test_every_key_and_default_is_on_the_page(heading: str, wanted: dict[str, Any]) -> None:
    table = _table(heading)
    assert table.keys() == wanted.keys()
    for key, text in table.items():
        if text in ("required", "section"):
            continue
        shown = _shown(text)
        if key == "prompts":  # what is left out there has its own default
            shown = [PromptRecipe.model_validate(one).model_dump(mode="json") for one in shown]
        assert shown == wanted[key], key


def test_required_is_what_cannot_be_left_out() -> None:
    sections = {
        "[data]": DataRecipe,
        "[[prompts]]": PromptRecipe,
        "The file itself": Recipe,
        "Recipes of palpate learn": LearnRecipe,
        "[data] of palpate learn": LearnDataRecipe,
        "Recipes of palpate distill": DistillRecipe,
    }
    for heading, model in sections.items():
        required = {name for name, field in model.model_fields.items() if field.is_required()}
        assert {key for key, text in _table(heading).items() if text == "required"} == required


def test_the_recipes_on_the_page_hold_together() -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(examples) == 5
    longer = [recipe_from(tomllib.loads(text)) for text in examples[:2]][1]
    assert longer.prompts[0].severity == (0.0, 0.25)
    assert (longer.loss.iou, longer.loss.teacher) == (1.0, 0.5)
    learnt = learn_recipe_from(tomllib.loads(examples[2]))
    assert (learnt.data.shots, learnt.mix.box, learnt.trained) == (10, 0.6, PEFT["lora"])
    assert distill_recipe_from(tomllib.loads(examples[3])).data.flips == ("x", "y")
    both = distill_recipe_from(tomllib.loads(examples[4]))
    second = both.second_stage("first.safetensors")
    assert (second.epochs, second.batch, second.data.slices_per_volume) == (10, 8, None)
    assert (both.data.flips, second.data.flips) == (("x",), ("x", "y", "xy"))


def test_the_second_stages_defaults_are_those_of_the_page() -> None:
    first = distill_recipe_from({"data": {"path": "p"}, "then": {}})
    second, table = first.second_stage(""), _table("[then] of palpate distill")
    assert [prompt.strategy for prompt in second.prompts] == ["swin-training"]
    assert str(_shown(table["prompts"])[0]["strategy"]) == "swin-training"
    assert _shown(table["trained"]) == list(second.trained.parts) == ["full"]
    assert table["loss"].startswith('`"lite-medsam"`')
    assert second.loss == LOSSES["lite-medsam"]
    shown = dict(re.findall(r"`(\w+) = ([^`]+)`", table["optimiser"]))
    assert {key: _shown(value) for key, value in shown.items()} == {
        key: second.optimiser.model_dump()[key] for key in ("rate", "weight_decay", "schedule", "factor")
    }
    assert (second.data.balance, second.seed, second.precision) == ("cases", first.seed, first.precision)


def test_the_optimiser_of_learning_has_the_defaults_of_the_page() -> None:
    usual, others = USUAL["localiser"]["optimiser"].model_dump(mode="json"), OptimiserRecipe().model_dump(mode="json")
    shown = {key: _shown(text) for key, text in _table("[optimiser] of palpate learn").items()}
    assert shown == {key: value for key, value in usual.items() if value != others[key]}


def test_every_named_loss_and_part_is_on_the_page() -> None:
    assert all(f'`"{name}"`' in PAGE for name in (*LOSSES, *LEARNING_LOSSES, *PEFT))
    assert all(f"`{name}`" in PAGE for name in (*get_args(Part), *get_args(Where)))
