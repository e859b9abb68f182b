"""A run that is stopped anywhere and started again is the same run, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import tiny_training

from palpate.models import adapters
from palpate.training import checkpoint, finetune, validation
from palpate.training.finetune import Event
from palpate.training.interrupts import Interrupts
from palpate.training.moving_weights import MovingWeights
from palpate.training.recipe import recipe_from

Result = tuple[dict[str, bytes], str, dict[str, Any]]
Whole = Callable[[dict[str, Any]], Result]

RECIPES: dict[str, dict[str, Any]] = {
    "decoder": {},
    "lora": {"trained": ["lora"], "optimiser": {"schedule": "cosine", "warmup": 2}},
    "full": {"trained": ["full"], "batch": 2},
    "everything": {
        "trained": ["prompt-encoder", "lora"],
        "loss": {"preset": "lite-medsam", "teacher": 0.5, "consistency": 0.5, "anchor": 0.01},
        "accumulate": 2,
        "batch": 2,
        "optimiser": {"ema": 0.5, "clip": 1.0, "plateau_patience": 0, "factor": 0.5},
        "data": {"flips": ["x"]},
    },
}
SMALL_VALIDATION: dict[str, Any] = {"prompts": [{"strategy": "standard"}], "objects": 1}


def run(recipe: dict[str, Any], folder: Path, listener: Callable[[Event], None] | None = None, **more: Any) -> Result:
    """What must not depend on interruptions: the weights at the end and the best ones, the log, the measured values."""
    original, weights = adapters.extracted, {}

    def watched(network: Any, card: Any, **named: Any) -> Any:
        moving = {name: one for name, one in network.named_parameters() if one.requires_grad}
        weights.update({f"last {name}": one.detach().numpy().tobytes() for name, one in moving.items()})
        return original(network, card, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(adapters, "extracted", watched)
        finetune.finetune(recipe_from(recipe), folder, device="cpu", threads=1, listener=listener, **more)
    best = safetensors.numpy.load_file(folder / "adapter.safetensors")
    weights.update({name: one.tobytes() for name, one in best.items()})
    record = json.loads((folder / "run.json").read_text())
    return weights, (folder / "log.csv").read_text(), record["metrics"]


def at_event(number: int, act: Callable[[], None]) -> Callable[[Event], None]:
    """Acts at one step or validation, counted from 1."""
    seen = 0

    def listener(event: Event) -> None:
        nonlocal seen
        if event.kind in ("step", "validation"):
            seen += 1
            if seen == number:
                act()

    return listener


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def stopped_at_each(recipe: dict[str, Any], folder: Path, number: int) -> tuple[int, Result]:
    """Stop at that event of each attempt until the run is finished; how often it was stopped, and what came of it."""
    for stops in range(100):
        try:
            return stops, run(recipe, folder, at_event(number, press_ctrl_c))
        except KeyboardInterrupt:
            continue
    raise AssertionError("the run does not get on")


_whole: dict[str, Result] = {}


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The result of a recipe that nothing interrupts; each is run once for all tests."""

    def made(recipe: dict[str, Any]) -> Result:
        key = json.dumps(recipe)
        if key not in _whole:
            _whole[key] = run(recipe, tmp_path_factory.mktemp("whole") / "run")
        return _whole[key]

    return made


class TestStoppedAnywhere:
    def test_at_every_step_and_validation(
        self, tmp_path: Path, recipe_of: Callable[..., dict[str, Any]], whole: Whole
    ) -> None:
        recipe = recipe_of(**RECIPES["everything"], validation=SMALL_VALIDATION)
        # Three validations and four steps; the last one's interrupt comes when there is nothing left to stop.
        assert stopped_at_each(recipe, tmp_path / "run", 1) == (6, whole(recipe))
        assert not checkpoint.exist(tmp_path / "run" / "checkpoints")

    @pytest.mark.parametrize("name", ["decoder", "lora", "full"])
    def test_whatever_is_trained(
        self, name: str, tmp_path: Path, recipe_of: Callable[..., dict[str, Any]], whole: Whole
    ) -> None:
        recipe = recipe_of(**RECIPES[name], validation=SMALL_VALIDATION)
        assert stopped_at_each(recipe, tmp_path / "run", 3) == (2, whole(recipe))

    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (MovingWeights, "follow"),  # the optimiser has moved the weights, and nothing else knows
            (MovingWeights, "_put"),  # the average takes the place of the weights
            (validation, "dice"),  # the average is in their place
            (finetune, "draw_samples"),  # the best weights are known, the row is written
            (checkpoint, "_flush"),  # a checkpoint is half done
        ],
    )
    def test_where_something_is_half_done(
        self,
        owner: Any,
        name: str,
        tmp_path: Path,
        recipe_of: Callable[..., dict[str, Any]],
        whole: Whole,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        recipe = recipe_of(**RECIPES["everything"], validation={**SMALL_VALIDATION, "overlays": 1})
        asked_for = whole(recipe)
        original, calls = getattr(owner, name), []

        def interrupted(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) == 2:
                press_ctrl_c()
            return original(*arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(recipe, tmp_path / "run", checkpoint_seconds=0.0)
        assert run(recipe, tmp_path / "run") == asked_for

    def test_a_second_ctrl_c_is_raised_at_once_and_saves_nothing(
        self, tmp_path: Path, recipe_of: Callable[..., dict[str, Any]], whole: Whole
    ) -> None:
        recipe = recipe_of(validation=SMALL_VALIDATION)

        def press_twice() -> None:
            press_ctrl_c()
            press_ctrl_c()

        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run", at_event(3, press_twice))
        assert not checkpoint.exist(tmp_path / "run" / "checkpoints")
        assert run(recipe, tmp_path / "run") == whole(recipe)

    @pytest.mark.slow
    def test_by_kill_9(
        self, home: Path, tmp_path: Path, recipe_of: Callable[..., dict[str, Any]], whole: Whole
    ) -> None:
        recipe = recipe_of(**RECIPES["everything"], validation=SMALL_VALIDATION)
        command = [sys.executable, "-W", "ignore", tiny_training.__file__, json.dumps(recipe), str(tmp_path / "run")]
        # A validation, two steps, a validation: two steps are done, and one of them is saved.
        died = subprocess.run(
            [*command, "1", f"{int(signal.SIGKILL)}@4"], capture_output=True, text=True, env=os.environ, check=False
        )
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert checkpoint.exist(tmp_path / "run" / "checkpoints")
        assert not (tmp_path / "run" / "adapter.safetensors").exists()
        events: list[Event] = []
        assert run(recipe, tmp_path / "run", events.append) == whole(recipe)
        assert any(event.kind == "resumed" for event in events)


class TestDamagedCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path: Path, recipe_of: Callable[..., dict[str, Any]]) -> Path:
        """Of a run that was stopped after its third step, with a checkpoint after each."""
        recipe = recipe_of(validation=SMALL_VALIDATION)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run", at_event(5, press_ctrl_c), checkpoint_seconds=0.0)
        assert len(list((tmp_path / "run" / "checkpoints").glob("*.pt"))) == 2
        return tmp_path / "run"

    def damage(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def test_the_one_before_the_newest_serves(
        self, folder: Path, recipe_of: Callable[..., dict[str, Any]], whole: Whole
    ) -> None:
        recipe = recipe_of(validation=SMALL_VALIDATION)
        self.damage(max((folder / "checkpoints").glob("*.pt")))
        said: list[str] = []
        assert run(recipe, folder, lambda event: said.append(event.text)) == whole(recipe)
        assert "going on after step 2 of 4" in said

    def test_without_a_sound_one_the_run_begins_anew_and_says_so(
        self, folder: Path, recipe_of: Callable[..., dict[str, Any]], whole: Whole
    ) -> None:
        recipe = recipe_of(validation=SMALL_VALIDATION)
        for path in (folder / "checkpoints").glob("*.pt"):
            self.damage(path)
        said: list[str] = []
        assert run(recipe, folder, lambda event: said.append(event.text)) == whole(recipe)
        assert "no checkpoint can be read any more, so the run begins anew" in said


class TestInterrupts:
    def test_it_is_remembered_until_it_is_heeded(self) -> None:
        with Interrupts() as interrupts:
            interrupts.heed()
            press_ctrl_c()
            with pytest.raises(KeyboardInterrupt):
                interrupts.heed()
        assert not interrupts.at_once

    def test_outside_the_block_ctrl_c_is_what_it_was(self) -> None:
        with Interrupts():
            pass
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()

    def test_where_ctrl_c_is_ignored_it_stays_ignored(self) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with Interrupts() as interrupts:
                press_ctrl_c()
            assert not interrupts.came
        finally:
            signal.signal(signal.SIGINT, before)
