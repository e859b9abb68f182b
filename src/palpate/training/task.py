"""What the engine of training asks of a task, and what the two hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from palpate.training.moving_weights import MovingWeights
from palpate.training.recipe import OptimiserRecipe
from palpate.training.run_folder import RunFolder

EventKind = Literal["embedding", "estimate", "resumed", "step", "validation", "stopped", "finished"]


@dataclass(frozen=True)
class Event:
    """Something to tell the user: `done` of `total`, in words, and numbers by name."""

    kind: EventKind
    text: str
    done: int = 0
    total: int = 0
    values: Mapping[str, float] = field(default_factory=dict)


Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Plan:
    """What is to be done, once the data is known.

    - `epochs` of `steps_an_epoch`; a step averages the gradients of `accumulate` batches of `batch` items, of all
      processes together. `patience` stops after that many validations without a better one; None: never.
    - A validation comes after every `validate_every` epochs. It measures a Dice for each of the names in `validated`
      (empty: there is no validation data), and for that makes `asked` masks. With `measures_error`, a `Verdict` has an
      error as well.
    - `data_sha256` is of all that is learned from and measured with; `data` describes it for the record.
    - For the estimate, in words: the `size` of the data ("6 scenes"), the `unit` that a batch counts ("objects"), and
      a `warning` that follows on what was said; `makes` is what the result is called ("adapter").
    - `steps` cuts the last epoch short, where the steps are no whole number of epochs.
    """

    epochs: int
    steps_an_epoch: int
    batch: int
    accumulate: int
    patience: int | None
    seed: int
    validate_every: int
    validated: tuple[str, ...]
    asked: int
    data_sha256: str
    data: str
    size: str
    unit: str
    makes: str
    warning: str = ""
    steps: int | None = None
    measures_error: bool = False

    @property
    def per_step(self) -> int:
        """How many items a step is shown."""
        return self.batch * self.accumulate

    @property
    def total(self) -> int:
        """How many steps there are."""
        return self.steps or self.epochs * self.steps_an_epoch


@dataclass(frozen=True, eq=False)
class Batch:
    """Items whose gradients are computed together, and what they are called where something is wrong with them.

    `stand_ins` counts those whose prompt does not exist, and that have a tight box instead.
    """

    items: Sequence[Any]
    names: Sequence[str]
    stand_ins: int = 0


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a validation found: the Dice that decides which weights are the best, and those it is made of, by name.

    `draw` makes a picture of samples in a file, or nothing where there is nothing to be shown. `error` is what else was
    measured, the less the better; with `by_error` it decides instead.
    """

    dice: float
    by_name: Mapping[str, float]
    draw: Callable[[Path], None]
    error: float | None = None
    by_error: bool = False

    @property
    def score(self) -> float:
        """What decides, the more the better."""
        return -self.error if self.by_error and self.error is not None else self.dice


@dataclass(frozen=True, eq=False)
class Done:
    """What came of a run. `weights` are those to be kept, by name; None in a process that has nothing to write."""

    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    steps: int
    command: str
    weights: Mapping[str, Tensor] | None


Result = TypeVar("Result", covariant=True)


@runtime_checkable
class Task(Protocol[Result]):
    """Something that is learned. Each process has its own, made for the Fabric of that process.

    - `folder` is where the run is kept, and where its result goes.
    - `weights` are what moves, and `optimiser` says how.
    - `settings` are all that decides the result, but for the data and the machine: plain values, as JSON holds them. A
      run is taken up only with the same ones.
    """

    folder: RunFolder
    weights: MovingWeights
    optimiser: OptimiserRecipe
    settings: Mapping[str, Any]

    def gather(self, tell: Listener) -> Plan:
        """Read and encode the data; called once, and before all that follows."""
        ...

    def prepare(self, step: int) -> Sequence[Batch]:
        """This process's part of each batch of a step (the first is 0); another thread may ask, ahead.

        It follows from the step's number alone. A process may have no part in a batch; its items are empty then.
        """
        ...

    def losses(self, items: Sequence[Any]) -> Float[Tensor, " part"]:
        """The loss of each item, with gradients; at least one is given. A step's loss is their mean."""
        ...

    def measure(self, heed: Callable[[], None]) -> Verdict | None:
        """Validate; None without validation data. The network has the weights that would be the result.

        Several processes share the work, and all of them get the same Dice. `heed` is called wherever the task may be
        interrupted; it may raise KeyboardInterrupt.
        """
        ...

    def finish(self, done: Done) -> Result:
        """Write the result, where there are weights to be kept, and say what came of the run."""
        ...

    def read(self, record: Mapping[str, Any]) -> Result:
        """What came of a run that is finished, from its run.json and its result; nothing is written."""
        ...
