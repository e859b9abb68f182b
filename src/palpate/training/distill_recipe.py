"""A recipe for distillation: which encoder learns the embeddings of which, from which images, and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from palpate.errors import SettingError
from palpate.models import DEFAULT
from palpate.training.recipe import (
    DataRecipe,
    OptimiserRecipe,
    PromptRecipe,
    Section,
    ValidationRecipe,
    said,
    toml_beside,
    with_changes,
)

RANDOM, RELEASED = "random", "released"


class DistillRecipe(Section):
    """A whole recipe; what it does not say is what Swin-LiteMedSAM's paper says.

    - `student` and `teacher` are models of the catalogue whose embeddings have the same shape. The teacher has its
      released weights, or those of the checkpoint `teacher_weights`; the student starts from `random` weights, from its
      `released` ones, or from a checkpoint (`start`).
    - `error` is the mean absolute (`l1`) or squared (`mse`) difference of the two embeddings.
    - `batch_norm`: with `batch`, normalisation follows each batch, and before anything is measured or kept its
      statistics are taken anew over `calibrated` views of the training data, in batches of the same size, with the
      weights as they then are; so they follow from the weights, and not from the last few steps. With `kept` they
      stay what they were (for a student that starts from trained weights). By itself it is `batch` for a random start.
    - `epochs` of `steps` each; without `steps`, an epoch shows every view once. A step averages the gradients of
      `accumulate` batches of `batch` views.
    - `validation` asks the teacher's decoder for masks, with the student's embeddings in the place of the teacher's.
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
    optimiser: OptimiserRecipe = Field(default_factory=lambda: OptimiserRecipe(rate=2e-4, weight_decay=0.01))
    validation: ValidationRecipe = Field(
        default_factory=lambda: ValidationRecipe(prompts=(PromptRecipe(strategy="standard"),))
    )
    epochs: Annotated[int, Field(ge=1)] = 10
    steps: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 8
    accumulate: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def follows_batches(self) -> bool:
        """Whether normalisation follows each batch."""
        return self.batch_norm == "batch" or (self.batch_norm is None and self.start == RANDOM)

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
        if isinstance(given, str) and name not in changes and given not in (RANDOM, RELEASED):
            content[name] = str(path.parent / given)
    return distill_recipe_from(with_changes(content, changes))
