"""The engine with a task as small as can be: two weights, of which one learns slowly, and dropout in between."""

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from palpate.errors import OutputError
from palpate.training import checkpoint
from palpate.training.engine import train
from palpate.training.moving_weights import MovingWeights
from palpate.training.recipe import OptimiserRecipe
from palpate.training.run_folder import RunFolder
from palpate.training.task import Batch, Done, Event, Listener, Plan, Verdict

RATE = 0.01


class Line:
    """Learn 30 x from x: the weights are the factors of two parts of it, and some of each part drops out."""

    def __init__(self, fabric: Any, *, run: Path, result: Path | None = None, **optimiser: Any) -> None:
        self.fabric = fabric
        self.folder = RunFolder(run, result=result)
        parameters = {name: nn.Parameter(torch.ones(8)) for name in ("quick", "slow")}
        self.weights = MovingWeights(parameters, rates={"slow": 0.1})
        self.optimiser = OptimiserRecipe(rate=RATE, weight_decay=0.0, **optimiser)
        self.settings: Mapping[str, Any] = {"recipe": {"task": "line", "optimiser": optimiser}}

    def gather(self, tell: Listener) -> Plan:
        return Plan(
            epochs=2,
            steps_an_epoch=2,
            batch=4,
            accumulate=1,
            patience=None,
            seed=0,
            validate_every=1,
            validated=("line",),
            asked=1,
            data_sha256="",
            data="numbers",
            size="4 numbers",
            unit="numbers",
            makes="line",
        )

    def prepare(self, step: int) -> list[Batch]:
        numbers = [1.0 + step, 2.0, 3.0, 4.0]
        return [Batch(numbers, [str(number) for number in numbers])]

    def losses(self, items: Sequence[Any]) -> Float[Tensor, " item"]:
        x = torch.tensor(items)[:, None]
        found = sum(nn.functional.dropout(x * weight) for weight in self.weights.parameters.values())
        return ((found - 30 * x) ** 2).mean(dim=1)

    def measure(self, heed: Callable[[], None]) -> Verdict | None:
        heed()
        dice = float(sum(weight.detach().mean() for weight in self.weights.parameters.values()))  # the more, the better
        return Verdict(dice, {"line": dice}, lambda path: None)

    def finish(self, done: Done) -> dict[str, list[float]]:
        assert done.weights is not None
        self.folder.result.write_text(json.dumps({name: tensor.tolist() for name, tensor in done.weights.items()}))
        return self.read({})

    def read(self, record: Mapping[str, Any]) -> dict[str, list[float]]:
        return json.loads(self.folder.result.read_text())


def learned(run: Path, listener: Listener | None = None, **more: Any) -> dict[str, list[float]]:
    return train(
        partial(Line, run=run, **more), returns=dict, precision="32-true", device="cpu", threads=1, listener=listener,
        checkpoint_seconds=0.0,
    )  # fmt: skip


def pressed_at(kind: str, done: int = 0) -> Listener:
    """Ctrl-C is pressed when this event comes."""

    def listener(event: Event) -> None:
        if event.kind == kind and event.done == done:
            signal.raise_signal(signal.SIGINT)

    return listener


class TestRates:
    def test_every_weight_moves_at_its_own(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            learned(tmp_path / "run", pressed_at("step", 1))
        kept = checkpoint.latest(tmp_path / "run" / "checkpoints")
        assert kept is not None
        # Adam's first step is as long as the rate, for all that did not drop out.
        for name, rate in (("quick", RATE), ("slow", 0.1 * RATE)):
            assert float(kept["weights"][name].max()) == pytest.approx(1 + rate, rel=1e-6)

    def test_all_follow_the_schedule(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            learned(tmp_path / "run", pressed_at("step", 1), schedule="constant", warmup=4)
        kept = checkpoint.latest(tmp_path / "run" / "checkpoints")
        assert kept is not None
        for name, rate in (("quick", RATE), ("slow", 0.1 * RATE)):
            assert float(kept["weights"][name].max()) == pytest.approx(1 + rate / 4, rel=1e-6)


class TestDropout:
    @pytest.mark.parametrize(("kind", "done"), [("estimate", 0), ("validation", 0), ("step", 1), ("step", 3)])
    def test_what_drops_out_does_not_depend_on_interruptions(self, kind: str, done: int, tmp_path: Path) -> None:
        whole = learned(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            learned(tmp_path / "halves", pressed_at(kind, done))
        torch.rand(3)  # the generator is anywhere when a run is taken up
        assert learned(tmp_path / "halves") == whole
        assert (tmp_path / "halves" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()

    def test_something_does_drop_out_and_differs_from_step_to_step(self, tmp_path: Path) -> None:
        found = learned(tmp_path / "run")
        assert len(set(found["quick"])) > 1


class TestTheResult:
    def test_it_may_lie_elsewhere(self, tmp_path: Path) -> None:
        found = learned(tmp_path / "run", result=tmp_path / "line.json")
        assert json.loads((tmp_path / "line.json").read_text()) == found
        said: list[str] = []
        assert learned(tmp_path / "run", lambda event: said.append(event.text), result=tmp_path / "line.json") == found
        assert said == [f"this run is finished; its line is {tmp_path / 'line.json'}"]

    def test_one_of_something_else_is_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "line.json").write_text("{}")
        with pytest.raises(OutputError, match=r"line.json is there already; choose another name"):
            learned(tmp_path / "run", result=tmp_path / "line.json")
        assert (tmp_path / "line.json").read_text() == "{}"
