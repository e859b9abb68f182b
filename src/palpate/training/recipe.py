"""A recipe: everything that decides what a fine-tuning run learns. A TOML file is one, and so is a Python object.

    model = "lite-medsam"

    [data]
    path = "liver/manifest.csv"

    [[prompts]]
    strategy = "arm-adaptive-bidirectional"

Whatever is left out has the default written below. What is misspelt is refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from palpate.errors import SettingError
from palpate.images.intensity import parse_intensity
from palpate.models import DEFAULT
from palpate.models.cards import Part, Targets, Trained, Where
from palpate.models.catalogue import card
from palpate.prompts.strategies import strategy
from palpate.training.losses import LOSSES, Loss
from palpate.training.scenes import Views

Share = Annotated[float, Field(ge=0)]
Severity = Annotated[float, Field(ge=-1, le=1)]
CountOrAll = Annotated[
    Annotated[int, Field(ge=1)] | None, BeforeValidator(lambda given: None if given == "all" else given)
]
"""A number, or all, which is None in Python; TOML has no word for that."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class DataRecipe(Section):
    """Which images, and which views of them.

    - `train` and `val` are names of splits; without a `val`, a share `held_out` of the subjects of `train` becomes it.
      Where the data has no splits, or with an empty `train`, everything is taken, whatever split it is in.
    - `dataset` chooses among the data sets of a manifest, `leave_out` names those that training and validation must
      not see, and `only` asks for values of a manifest's columns: {redistributable_weights = "yes"}.
    - `balance`: every epoch sees each slice alike ("images"), or draws data sets alike ("datasets"), or one slice of
      each case ("cases"; with all slices of volumes it is what Swin-LiteMedSAM was trained with).
    - `cases_per_dataset` bounds how many cases of each data set are trained on, drawn from the seed; none: all.
    - `slices_per_volume` slices are taken of each volume, spread evenly; "all" takes every labelled one. Objects
      smaller than `min_pixels` are not asked for.
    - `flips` (x, y, xy), `crops` and `variants` add fixed views of each slice; see `palpate.training.scenes`.
    - `intensity` overrides how values become grey levels, by a name of `palpate.images.intensity`.
    """

    path: str
    labels: str | None = None
    dataset: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    only: dict[str, str] = Field(default_factory=dict)
    train: str = "train"
    val: str = "val"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    channel: int = 0
    intensity: str | None = None
    cases_per_dataset: Annotated[int, Field(ge=1)] | None = None
    slices_per_volume: CountOrAll = 3
    min_pixels: Annotated[int, Field(ge=1)] = 10
    flips: tuple[Literal["x", "y", "xy"], ...] = ()
    crops: Annotated[int, Field(ge=0)] = 0
    variants: Annotated[int, Field(ge=0)] = 0
    balance: Literal["images", "datasets", "cases"] = "images"

    @model_validator(mode="after")
    def _window_exists(self) -> DataRecipe:
        if self.intensity is not None:
            parse_intensity(self.intensity)  # told before anything is read
        return self

    def views(self, seed: int) -> Views:
        """The views of each slice."""
        return Views(flips=self.flips, crops=self.crops, variants=self.variants, seed=seed)


class PromptRecipe(Section):
    """One ingredient of the prompt mix: a strategy (`palpate evaluate --list` shows them), how wrong it is, and its
    share. A severity of two numbers is drawn between them for every item."""

    strategy: str
    severity: Severity | tuple[Severity, Severity] = 0.0
    share: Share = 1.0

    @field_validator("severity", mode="before")
    @classmethod
    def _is_a_share(cls, value: Any) -> Any:
        ends = value if isinstance(value, list | tuple) else [value]
        for end in ends:
            if isinstance(end, int | float) and end > 1:
                raise SettingError(
                    f"a severity is a share of the box's side, at most 1: for {end:g} % write {end / 100:g}"
                )
        return value

    @model_validator(mode="after")
    def _exists(self) -> PromptRecipe:
        known = strategy(self.strategy)
        ends = self.severity if isinstance(self.severity, tuple) else (self.severity, self.severity)
        if any(ends) and not known.uses_severity:
            raise SettingError(
                f"{self.strategy} knows no severity; leave {self.severity} out, or take another strategy"
            )
        if min(ends) < 0 <= min(known.default_severities):
            raise SettingError(f"the severity of {self.strategy} is a share from 0 to 1, got {min(ends):g}")
        return self


class OptimiserRecipe(Section):
    """How weights move.

    - `schedule`: `plateau` multiplies the rate by `factor` when the validation Dice has not risen for
      `plateau_patience` validations (without validation data, when the loss has not fallen); `cosine` ends near 0;
      `constant` stays. All rise linearly over `warmup` steps first.
    - `clip` bounds the gradient's norm; `ema` is the decay of a running average of the weights, which then is the
      result (0: none).
    """

    name: Literal["adamw", "adam"] = "adamw"
    rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.9
    plateau_patience: Annotated[int, Field(ge=0)] = 5
    warmup: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ValidationRecipe(Section):
    """What is measured after each epoch: the Dice on image pixels, for each of these prompts, drawn once and for all.

    The mean over prompts of the mean over data sets decides which epoch is kept. At most `objects` objects of a data
    set are asked for.
    """

    prompts: tuple[PromptRecipe, ...] = (
        PromptRecipe(strategy="standard"),
        PromptRecipe(strategy="jitter", severity=0.1),
    )
    objects: Annotated[int, Field(ge=1)] = 32
    every: Annotated[int, Field(ge=1)] = 1
    overlays: Annotated[int, Field(ge=0)] = 4


class Recipe(Section):
    """A whole recipe.

    - `weights` is a checkpoint of the model to start from instead of the released one.
    - `epochs` of `steps` each; without `steps`, an epoch asks about every scene once (or one of each case). A step
      averages the gradients of `accumulate` batches of `batch` objects.
    - `precision` is Lightning Fabric's: 32-true, bf16-mixed, 16-mixed.
    - `patience` stops after that many validations without a better one; none: never.
    - `half` keeps the adapter in float16.
    """

    model: str = DEFAULT
    weights: str | None = None
    name: str = ""
    summary: str = ""
    licence: str = ""
    data: DataRecipe
    trained: Trained = Field(default_factory=Trained)
    prompts: tuple[PromptRecipe, ...] = (PromptRecipe(strategy="arm-adaptive-bidirectional"),)
    loss: Loss = Field(default_factory=Loss)
    optimiser: OptimiserRecipe = Field(default_factory=OptimiserRecipe)
    validation: ValidationRecipe = Field(default_factory=ValidationRecipe)
    epochs: Annotated[int, Field(ge=1)] = 20
    steps: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 8
    accumulate: Annotated[int, Field(ge=1)] = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    patience: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    half: bool = False

    @model_validator(mode="after")
    def _draws_something(self) -> Recipe:
        if not sum(item.share for item in self.prompts):
            raise ValueError("every prompt has a share of 0; give one of them more")
        return self

    def described(self) -> dict[str, Any]:
        """The recipe as plain values, for records."""
        return self.model_dump(mode="json")


def recipe_from(content: Mapping[str, Any]) -> Recipe:
    """A recipe of plain values, as a TOML file holds them.

    `loss` may be a name (`palpate.training.losses.LOSSES`) or a table of weights; weights that are not in the table are
    those of the table's `preset`, or 0 without one. `trained` may be a list of parts, or a table.

    Raises:
        SettingError: a key that does not exist, or a value that does not fit; the message says where.
    """
    content = dict(content)
    if content.get("weights") is not None and "model" not in content:
        content["model"] = card(DEFAULT).origin.name  # whose checkpoint it may be
    try:
        content["loss"] = _loss(content.get("loss", "bce+dice"))
        content["trained"] = _trained(content.get("trained", {}))
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(said(problem) for problem in error.errors()[:5])
        raise SettingError(f"this recipe does not hold together: {problems}") from None


def read_recipe(path: Path, *, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a TOML file, with some values changed: {"optimiser.rate": 2e-4}.

    Relative paths of the data, its labels and the weights are looked up beside the file.

    Raises:
        SettingError: the file is missing, is no TOML, or holds no recipe.
    """
    return recipe_from(with_changes(toml_beside(path, changes or {}), changes or {}))


def toml_beside(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a recipe's file, its relative paths made absolute or relative to here, but for those changed.

    Raises:
        SettingError: the file is missing, or is no TOML.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is no TOML file: {error}") from None
    data = content.get("data")
    for name in ("path", "labels"):
        if isinstance(data, dict) and isinstance(data.get(name), str) and f"data.{name}" not in changes:
            data[name] = str(path.parent / data[name])
    if isinstance(content.get("weights"), str) and "weights" not in changes:
        content["weights"] = str(path.parent / content["weights"])
    return content


def with_changes(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with some of them changed; `a.b` is b in the section a."""
    result: dict[str, Any] = {name: dict(v) if isinstance(v, Mapping) else v for name, v in content.items()}
    for path, value in changes.items():
        section, _, name = path.rpartition(".")
        if section and not isinstance(result.get(section), dict):
            # `trained = ["lora"]` and `loss = "bce+dice"` are short forms of tables.
            short = result.get(section)
            result[section] = {} if short is None else {"preset": short} if section == "loss" else {"parts": short}
        (result[section] if section else result)[name] = value
    return result


def _loss(given: Any) -> Loss | dict[str, Any]:
    if isinstance(given, Loss):
        return given
    if not isinstance(given, Mapping):
        return _preset(given)
    table = dict(given)
    preset = table.pop("preset", None)
    _check_names("loss", table, ["preset", *Loss.__dataclass_fields__])
    return {**({"bce": 0.0, "dice": 0.0} if preset is None else vars(_preset(preset))), **table}


def _preset(name: object) -> Loss:
    if name not in LOSSES:
        raise SettingError(f"there is no loss {name!r}; choose {', '.join(LOSSES)}, or give a table of weights")
    return LOSSES[str(name)]


def _trained(given: Any) -> Trained | dict[str, Any]:
    if isinstance(given, Trained):
        return given
    table = dict(given) if isinstance(given, Mapping) else {"parts": given}
    _check_names("trained", table, Trained.__dataclass_fields__)
    for name in ("parts", "where"):
        if isinstance(table.get(name), str):
            table[name] = [table[name]]
    parts = table.get("parts", Trained.__dataclass_fields__["parts"].default)
    for name, users in _USERS.items():
        if name in table and isinstance(parts, Sequence) and not set(users) & set(parts):
            raise SettingError(
                f"{name} is of {' and '.join(users)}, and only {', '.join(parts)} is trained; train {users[0]} as well "
                f"(--trained, or parts in [trained]), or leave {name} out"
            )
    return table


_USERS: dict[str, tuple[str, ...]] = {
    "where": ("bias-norm", "lora", "adapter"),
    "rank": ("lora",),
    "alpha": ("lora",),
    "targets": ("lora",),
    "width": ("adapter",),
    "blocks": ("last-blocks",),
}
"""Which parts a setting is for: one that would do nothing was meant otherwise."""


def _check_names(section: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    names = list(known)
    if unknown := [name for name in table if name not in names]:
        raise SettingError(f"[{section}] of the recipe has no {unknown[0]!r}; choose from {', '.join(names)}")


def said(problem: Mapping[str, Any]) -> str:
    """One of pydantic's problems, for people."""
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    given = problem.get("input")
    if problem["type"] == "extra_forbidden":
        return f"{where} is not known"
    if problem["type"] == "missing":
        return f"{where} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" + (f", got {given!r}" if isinstance(given, str | int | float) else "")


__all__ = [
    "DataRecipe",
    "OptimiserRecipe",
    "Part",
    "PromptRecipe",
    "Recipe",
    "Targets",
    "Trained",
    "ValidationRecipe",
    "Where",
    "read_recipe",
    "recipe_from",
    "with_changes",
]
