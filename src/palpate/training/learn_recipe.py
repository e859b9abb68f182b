"""A recipe for learning prompts: what to look for, in how many images, and how it is learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, model_validator

from palpate.errors import SettingError
from palpate.images.intensity import parse_intensity
from palpate.models import DEFAULT
from palpate.models.cards import Trained, Variant
from palpate.training.learning_losses import LEARNING_LOSSES, LearningLoss
from palpate.training.recipe import CountOrAll, OptimiserRecipe, Section, said, toml_beside, with_changes
from palpate.training.scenes import Views

Chance = Annotated[float, Field(ge=0, le=1)]


USUAL: dict[Variant, dict[str, Any]] = {
    "localiser": {
        "tokens": 4,
        "optimiser": OptimiserRecipe(rate=4e-3, weight_decay=0.05, schedule="cosine", warmup=20),
        "decoder_rate": 0.025,
        "batch": 2,
    },
    "linear": {
        "tokens": 10,
        "optimiser": OptimiserRecipe(rate=5e-4, weight_decay=0.1, schedule="cosine", warmup=10),
        "decoder_rate": 1.0,
        "batch": 4,
    },
}
USUAL["high-res"] = USUAL["linear"]
"""What a predictor is learned with where a recipe says nothing. The localiser is a small network of convolutions, which
takes a high rate; the decoder beside it begins as what it was trained to be."""


class LearnDataRecipe(Section):
    """Which images, and which views of them.

    - `targets` are the classes: names of the data set's regions, or NAME=VALUE with a label value; empty: every label
      that the training images hold.
    - `shots` images (cases: a volume is one) are drawn from the training images by the seed, of as many subjects as
      possible; none: all.
    - `train` and `val` are names of splits. Without images in `val`, a share `held_out` of the subjects that were drawn
      is validated with; 0: nothing is held out, and the last weights are the result.
    - `slices_per_volume` slices of each volume are taken, spread evenly, and `absent_slices` without any class.
    - `moves`, `strong_moves`, `variants` are further fixed views of each slice, encoded once; see
      `palpate.training.scenes`. `moves_of_slices` is how many moves a slice of a volume has, of which there are many.
      Moves are `mirrored`, unless it says otherwise, where there is one class; several lie as they do, and then the
      localiser also looks at where in the image a cell is.
    - `intensity` overrides how values become grey levels.
    """

    path: str
    labels: str | None = None
    dataset: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    shots: Annotated[int, Field(ge=1)] | None = None
    train: str = "train"
    val: str = ""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    channel: int = 0
    intensity: str | None = None
    slices_per_volume: CountOrAll = 6
    absent_slices: Annotated[int, Field(ge=0)] = 1
    min_pixels: Annotated[int, Field(ge=1)] = 10
    moves: Annotated[int, Field(ge=0)] = 8
    moves_of_slices: Annotated[int, Field(ge=0)] = 1
    mirrored: bool | None = None
    strong_moves: Annotated[int, Field(ge=0)] = 0
    variants: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _window_exists(self) -> LearnDataRecipe:
        if self.intensity is not None:
            parse_intensity(self.intensity)  # told before anything is read
        return self

    def views(self, seed: int, *, of_volume: bool, classes: int) -> Views:
        """The views of each slice, where so many classes are learned."""
        return Views(
            variants=self.variants,
            moves=self.moves_of_slices if of_volume else self.moves,
            strong_moves=self.strong_moves,
            seed=seed,
            mirrored=classes == 1 if self.mirrored is None else self.mirrored,
        )


class MixRecipe(Section):
    """How likely each kind of prompt is drawn for an item, each for itself; if none is drawn, it is `learned`.

    The authors of Sam2Rad train with 0.9, 0, 0.5 and 0.1, one draw a batch. Boxes are moved at random: each side
    by up to `jitter` of the box's length. `guess` is the same for boxes that stand for those of a localiser: on images
    that it was not trained on it errs more than on those that it knows.
    """

    learned: Chance = 0.9
    points: Chance = 0.1
    box: Chance = 0.4
    mask: Chance = 0.1
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    guess: Annotated[float, Field(ge=0, le=0.5)] = 0.2


class LearnRecipe(Section):
    """A whole recipe.

    - `variant` and `tokens` are the predictor's; see `palpate.models.localiser` (ours) and
      `palpate.models.prompt_predictor` (the papers').
    - `trained` is what moves of the base model beside it; none: nothing, as in the paper's table 3. Its rate is
      `decoder_rate` times that of the predictor. `tokens`, `optimiser`,
      `decoder_rate` and `batch` go by the variant (`USUAL`).
    - An item is a class on an image; `present` is how likely one is asked for that is there, where there is a choice.
    - `beside` each item a localiser learns from so many further views, which the decoder does not see.
    - `steps` of `batch` items, without a number as many as `usual_steps` says; a validation comes after every
      `validate_every` steps.
    """

    model: str = DEFAULT
    weights: str | None = None
    name: str = ""
    summary: str = ""
    licence: str = ""
    data: LearnDataRecipe
    variant: Variant = "localiser"
    tokens: Annotated[int, Field(ge=2)] = 4
    trained: Trained | None = Field(default_factory=Trained)
    decoder_rate: Annotated[float, Field(gt=0)] = 0.025
    mix: MixRecipe = Field(default_factory=MixRecipe)
    present: Chance = 0.85
    loss: LearningLoss = Field(default_factory=lambda: LEARNING_LOSSES["dice+bce"])
    optimiser: OptimiserRecipe = USUAL["localiser"]["optimiser"]
    steps: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 2
    beside: Annotated[int, Field(ge=0)] = 3
    validate_every: Annotated[int, Field(ge=1)] = 50
    validated: Annotated[int, Field(ge=1)] = 32
    overlays: Annotated[int, Field(ge=0)] = 4
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _usual_of_its_variant(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        variant = content.get("variant", "localiser")
        usual = USUAL.get(cast("Variant", variant), {}) if isinstance(variant, str) else {}
        content = {**usual, **content}
        if isinstance(given := content.get("optimiser"), Mapping) and usual:
            content["optimiser"] = {**usual["optimiser"].model_dump(), **given}
        return content

    @model_validator(mode="after")
    def _keeps_the_encoder(self) -> LearnRecipe:
        if self.trained is not None and self.trained.moves_encoder:
            raise SettingError(
                "learning prompts keeps the image encoder as it is, so that every image is encoded once; train parts "
                "of the decoder, or fine-tune the encoder first (palpate finetune) and learn prompts on the result"
            )
        return self

    def described(self) -> dict[str, Any]:
        """The recipe as plain values, for records."""
        return self.model_dump(mode="json")


def usual_steps(images: int) -> int:
    """How many steps it takes to learn from so many images: 25 for each, but 250 at least and 2000 at most.

    With 250 for thirty images of the spine each view is seen too seldom: its prompts were worse than those from ten.

    >>> usual_steps(5), usual_steps(30), usual_steps(1000)
    (250, 750, 2000)
    """
    return min(max(25 * images, 250), 2000)


def parse_class(text: str) -> tuple[str, int | None]:
    """`NAME=VALUE` or `NAME`, as the name and the label value; a name that is a number is its own value.

    >>> parse_class("liver=3"), parse_class("liver"), parse_class("2")
    (('liver', 3), ('liver', None), ('2', 2))

    Raises:
        SettingError: anything else.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not name or (equals and not (value.isascii() and value.isdecimal() and int(value))):
        raise SettingError(f"cannot read the target {text!r}; write --target NAME, or NAME=VALUE with a label value")
    if equals:
        return name, int(value)
    return name, int(name) if name.isascii() and name.isdecimal() and int(name) else None


PEFT: dict[str, Trained | None] = {
    "none": None,
    "decoder": Trained(("decoder",)),
    "lora": Trained(("lora", "mask-head"), rank=32, alpha=32),
    "adapter": Trained(("adapter",)),
}
"""What of the base model moves, by name. `none` is the paper's table 3, and `lora` its table 4: there, too, what makes
the mask moves beside it, the rank for SAM is 32 and nothing scales the change (alpha is as large as the rank)."""


def learn_recipe_from(content: Mapping[str, Any]) -> LearnRecipe:
    """A recipe of plain values, as a TOML file holds them.

    `loss` may be a name (`learning_losses.LEARNING_LOSSES`) or a table of weights, and `trained` a name
    (`PEFT`) or a table.

    Raises:
        SettingError: a key that does not exist, or a value that does not fit; the message says where.
    """
    content = dict(content)
    for name, known in (("loss", LEARNING_LOSSES), ("trained", PEFT)):
        given = content.get(name)
        if isinstance(given, str):
            if given not in known:
                raise SettingError(f"there is no {name} {given!r}; choose {', '.join(known)}")
            content[name] = known[given]
    try:
        return LearnRecipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(said(problem) for problem in error.errors()[:5])
        raise SettingError(f"this recipe does not hold together: {problems}") from None


def read_learn_recipe(path: Path, *, changes: Mapping[str, Any] | None = None) -> LearnRecipe:
    """A recipe from a TOML file, with some values changed: {"optimiser.rate": 2e-4}.

    Relative paths of the data, its labels and the weights are looked up beside the file.

    Raises:
        SettingError: the file is missing, is no TOML, or holds no recipe.
    """
    return learn_recipe_from(with_changes(toml_beside(path, changes or {}), changes or {}))
