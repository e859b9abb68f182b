"""A recipe for distillation: which encoder learns the embeddings of which, from which images, and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, model_validator

from palpate.errors import SettingError
from palpate.models import DEFAULT
from palpate.training.recipe import (
    DataRecipe,
    OptimiserRecipe,
    Recipe,
    Section,
    ValidationRecipe,
    recipe_from,
    said,
    toml_beside,
    with_changes,
)

RANDOM, RELEASED, TEACHER = "random", "released", "teacher"
WORDS = RANDOM, RELEASED, TEACHER
"""What a student may start from; anything else is a checkpoint's path."""

STAGE_1: dict[str, dict[str, Any]] = {
    "optimiser": {"rate": 2e-4, "weight_decay": 0.01},
    "validation": {"prompts": ({"strategy": "standard"},)},
}
"""What sections of the first stage have otherwise than in fine-tuning."""

STAGE_2: dict[str, Any] = {
    "trained": ["full"],
    "loss": "lite-medsam",
    "prompts": [{"strategy": "swin-training"}],
    "optimiser": {"rate": 2e-4, "weight_decay": 0.001, "schedule": "plateau", "factor": 0.8},
    "epochs": 25,
    "batch": 16,
}
"""The second stage of Swin-LiteMedSAM: Dice, BCE and the squared error of the predicted IoU, alike; rate, batch and
epochs of the paper, weight decay and schedule of its code. One random slice and object of each case, flips as given."""


class DistillRecipe(Section):
    """A whole recipe; what it does not say is what Swin-LiteMedSAM's paper says.

    - `student` and `teacher` are models of the catalogue whose embeddings have the same shape. The teacher has its
      released weights, or those of the checkpoint `teacher_weights`; the student starts from `random` weights, from its
      `released` ones, from the `teacher`'s as far as it has the same layers, or from a checkpoint (`start`).
    - `error` is the mean absolute (`l1`) or squared (`mse`) difference of the two embeddings.
    - `batch_norm`: with `batch`, normalisation follows each batch, and before anything is measured or kept its
      statistics are taken anew over `calibrated` views of the training data, in batches of the same size, with the
      weights as they then are; so they follow from the weights, and not from the last few steps. With `kept` they
      stay what they were. By itself it is `kept` for a student that starts from its own trained weights.
    - `epochs` of `steps` each; without `steps`, an epoch shows every view once (or one of each case, see
      `data.balance`). A step averages the gradients of
      `accumulate` batches of `batch` views.
    - `validation` asks the teacher's decoder for masks, with the student's embeddings in the place of the teacher's.
      `best_by` says which weights are kept: those whose masks have the highest `dice`, or whose embeddings have the
      smallest `error`, on the same images. By itself it is `error` for a start at random, where the decoder can make
      nothing of the embeddings for long, and `dice` otherwise.
    - `then` is a second stage, in which the whole model learns to answer prompts: any keys of a recipe of
      `palpate finetune` but `model` and `weights`. What it leaves out is what the paper and its code say (`STAGE_2`);
      its data are those of the first stage, but for what its own `data` changes.
    """

    student: str = "swin-lite-medsam"
    start: str = RANDOM
    teacher: str = DEFAULT
    teacher_weights: str | None = None
    name: str = ""
    summary: str = ""
    licence: str = ""
    data: DataRecipe
    error: Literal["l1", "mse"] = "l1"
    batch_norm: Literal["batch", "kept"] | None = None
    calibrated: Annotated[int, Field(ge=1)] = 64
    best_by: Literal["dice", "error"] | None = None
    optimiser: OptimiserRecipe = Field(default_factory=lambda: OptimiserRecipe(**STAGE_1["optimiser"]))
    validation: ValidationRecipe = Field(default_factory=lambda: ValidationRecipe(**STAGE_1["validation"]))
    epochs: Annotated[int, Field(ge=1)] = 10
    steps: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 8
    accumulate: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    seed: Annotated[int, Field(ge=0)] = 0
    then: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _sections_keep_their_defaults(cls, content: Any) -> Any:
        """A section that says something leaves the rest of itself as it is here, not as it is in fine-tuning."""
        if not isinstance(content, Mapping):
            return content
        given = cast("Mapping[str, Any]", content)
        own = {name: {**STAGE_1[name], **given[name]} for name in STAGE_1 if isinstance(given.get(name), Mapping)}
        return {**given, **own}

    @model_validator(mode="after")
    def _second_stage_holds_together(self) -> DistillRecipe:
        if self.then is not None:
            if not_there := {"model", "weights"} & set(self.then):
                raise SettingError(
                    "the second stage trains what the first one made: leave "
                    f"{' and '.join(sorted(not_there))} out of [then]"
                )
            for name in ("data", "optimiser"):
                if not isinstance(self.then.get(name, {}), dict):
                    raise SettingError(f"then.{name} is a section, [then.{name}], not {self.then[name]!r}")
            # Told before the first stage has taken its hours.
            if "adapter" in self.second_stage("").trained.parts:
                raise SettingError(
                    "no checkpoint has room for the layers of adapter: train lora, decoder or full in [then]"
                )
        return self

    def second_stage(self, weights: str, *, name: str = "") -> Recipe:
        """The recipe of the second stage, from the checkpoint `weights` of the first; `name` where nobody gives one."""
        given = {**STAGE_2, **(self.then or {})}
        data = {**self.data.model_dump(), "balance": "cases", **given.pop("data", {})}
        optimiser = {**STAGE_2["optimiser"], **given.pop("optimiser", {})}
        own = {
            **{"model": self.student, "weights": weights, "name": self.name or name, "summary": self.summary},
            **{"licence": self.licence, "seed": self.seed, "precision": self.precision},
        }
        return recipe_from({**own, **given, "data": data, "optimiser": optimiser})

    def without_second_stage(self) -> DistillRecipe:
        """The first stage alone."""
        return self.model_copy(update={"then": None})

    @property
    def follows_batches(self) -> bool:
        """Whether normalisation follows each batch."""
        return self.batch_norm == "batch" or (self.batch_norm is None and self.start in (RANDOM, TEACHER))

    @property
    def chooses_by_error(self) -> bool:
        """Whether the error of the embeddings says which weights are the best, and not the Dice."""
        return self.best_by == "error" or (self.best_by is None and self.start == RANDOM)

    def described(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return self.model_dump(mode="json")


def distill_recipe_from(content: Mapping[str, Any]) -> DistillRecipe:
    """A recipe of plain values, as a TOML file holds them.

    Raises:
        SettingError: a key that does not exist, or a value that does not fit; the message says where.
    """
    try:
        return DistillRecipe.model_validate(dict(content))
    except ValidationError as error:
        problems = "; ".join(said(problem) for problem in error.errors()[:5])
        raise SettingError(f"this recipe does not hold together: {problems}") from None


def read_distill_recipe(path: Path, *, changes: Mapping[str, Any] | None = None) -> DistillRecipe:
    """A recipe from a TOML file, with some values changed: {"optimiser.rate": 1e-4}.

    Relative paths of the data, its labels and of weights are looked up beside the file.

    Raises:
        SettingError: the file is missing, is no TOML, or holds no recipe.
    """
    changes = changes or {}
    content = toml_beside(path, changes)
    for name in ("start", "teacher_weights"):
        given = content.get(name)
        if isinstance(given, str) and name not in changes and given not in WORDS:
            content[name] = str(path.parent / given)
    own = content.get("then")
    if isinstance(own, dict) and isinstance(own.get("data"), dict):
        for name in ("path", "labels"):
            if isinstance(own["data"].get(name), str):
                own["data"][name] = str(path.parent / own["data"][name])
    return distill_recipe_from(with_changes(content, changes))
