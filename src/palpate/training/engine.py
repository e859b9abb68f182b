"""The engine of training: a task says what is learned from what, and this carries it through, whatever happens.

    RUN/run.json            the settings, what they were run on, and what came of it
    RUN/log.csv             the loss of every step and the Dice of every validation
    RUN/tensorboard/        the same for TensorBoard
    RUN/overlays/           sample masks after every validation
    RUN/checkpoints/        the state, for going on after an interruption; removed at the end

The loop is a pure function of settings and data: what a step is shown follows from its number and the seed, so does
what is drawn within it (dropout), and the state is saved whole. So a run that was killed and started again ends with
the same weights, bit for bit, as one that was not, on the same machine and number of threads.

Ctrl-C is heeded where nothing is half done (between two batches, within a validation where the task says so), saves
the state and is raised then; a second one is raised at once, and costs what was done since the last checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from palpate.errors import OutputError, SettingError
from palpate.inference.environment import environment
from palpate.training import checkpoint
from palpate.training.estimate import estimated
from palpate.training.interrupts import Interrupts
from palpate.training.log import Log
from palpate.training.optimisation import Optimisation
from palpate.training.scenes import rng_for
from palpate.training.task import Batch, Done, Event, EventKind, Listener, Task, Verdict

CHECKPOINT_SECONDS = 60.0
"""How much work a power cut may cost."""

CHECKPOINT_FORMAT = 3
"""Grows when the checkpoints of an older palpate can no longer be read."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Terms:
    """How a run is carried out; it can be pickled."""

    command: str
    overwrite: bool
    threads: int
    checkpoint_seconds: float


def train(
    make: Callable[[Any], Task[Result]],
    *,
    returns: type[Result],
    precision: str,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    threads: int | None = None,
    command: str = "",
    overwrite: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    listener: Listener | None = None,
) -> Result:
    """Carry out the task that `make` gives for a Fabric, in each process that shares the work; what came of it.

    A folder with an unfinished run of the same settings and data is taken up where it stopped; with a finished one,
    nothing is left to do. With several processes `make` and `listener` must be picklable, and what came of it comes
    back as JSON: `returns` is its class, of plain values, paths and dataclasses of them. `threads` is PyTorch's number
    of CPU threads.

    Raises:
        SettingError: what cannot be trained, or a device that does not exist.
        OutputError: the folder holds another run, or cannot be written.
        PalpateError: what the task raises.
    """
    from palpate.training.devices import launched

    terms = _Terms(command, overwrite, threads or torch.get_num_threads(), checkpoint_seconds)
    return launched(
        partial(_run, make=make, terms=terms, listener=listener),
        returns=returns,
        device=device,
        devices=devices,
        nodes=nodes,
        precision=precision,
    )


def _run(fabric: Any, *, make: Callable[[Any], Task[Result]], terms: _Terms, listener: Listener | None) -> Result:
    before = torch.get_num_threads()
    torch.set_num_threads(terms.threads)
    try:
        return _Engine(fabric, make(fabric), terms, listener).go()
    finally:
        torch.set_num_threads(before)


@dataclass
class _State:
    """What changes during a run, but for weights.

    `step` counts steps that are done and `validated` is that of the last validation. `best` is the best score; `first`
    and `best_dice` are the Dice values before training and of the best weights, as they are logged, and so are the
    errors, where a task measures one; `log_bytes` is how much of the log belongs to this state. `stand_ins` counts
    tight boxes in the place of prompts that do not exist for an object; `loss_sum` and `loss_count` are of the steps
    since the rate was last looked at.
    """

    step: int = 0
    validated: int = -1
    best: float = -math.inf
    best_step: int = -1
    since_best: int = 0
    seconds: float = 0.0
    first: dict[str, float] = field(default_factory=dict)
    best_dice: dict[str, float] = field(default_factory=dict)
    first_error: float | None = None
    best_error: float | None = None
    log_bytes: int = 0
    stand_ins: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0


class _Engine(Generic[Result]):
    """One run in one process; several processes run alike and add up their gradients."""

    def __init__(self, fabric: Any, task: Task[Result], terms: _Terms, listener: Listener | None) -> None:
        self.fabric, self.task, self.terms = fabric, task, terms
        self.leads = fabric.global_rank == 0
        self.listener = listener if self.leads else None
        self.folder, self.weights = task.folder, task.weights
        self.optimisation = Optimisation(task.optimiser, task.weights, fabric)
        self.state = _State()
        self.best_weights: dict[str, Tensor] = {}
        self.log: Log | None = None
        self.interrupts = Interrupts()

    # --- The whole ----------------------------------------------------------------------------------------------------

    def go(self) -> Result:
        known = {
            **self.task.settings,
            "processes": self.fabric.world_size,
            "threads": self.terms.threads,
            "device": self.fabric.device.type,
            "versions": dict(environment()),
        }
        self.folder.check(known, overwrite=self.terms.overwrite)  # before hours of encoding
        self.plan = self.task.gather(self._tell)
        settings = {**known, "data_sha256": self.plan.data_sha256}
        self.folder.check(settings, overwrite=self.terms.overwrite)
        finished = self.folder.finished(settings)
        if finished is not None:
            self._say("finished", f"this run is finished; its {self.plan.makes} is {self.folder.result}")
            return self.task.read(finished)
        self.fabric.barrier()  # nobody writes before everybody has looked
        try:
            if self.leads:
                self.folder.prepare(settings, command=self.terms.command)
            self.fabric.barrier()
            self._resume()
            if self.leads:
                columns = ["dice", *(f"dice {name}" for name in self.plan.validated)] if self.plan.validated else []
                columns += ["val error"] if columns and self.plan.measures_error else []
                self.log = Log(self.folder.path, [*columns, "loss", "rate"], length=self.state.log_bytes)
            if self.state.validated < 0:
                self._estimate()
            self._loop()
            return self._finish(settings)
        finally:
            if self.log is not None:
                self.log.close()
            self.folder.release()

    def _loop(self) -> None:
        with self.interrupts, ThreadPoolExecutor(1) as ahead:
            try:
                self._train(ahead)
            except KeyboardInterrupt:
                if not self.interrupts.at_once:
                    self._save()
                raise

    def _train(self, ahead: ThreadPoolExecutor) -> None:
        """Step after step. Whatever is raised by Ctrl-C is raised where the state is whole."""
        state, total, prepare = self.state, self.plan.total, self.task.prepare
        started, before, first_step = time.monotonic(), state.seconds, state.step
        last_saved = started
        prepared = ahead.submit(prepare, state.step) if state.step < total else None
        while True:
            if self._validation_is_due():
                self._validate()
            if self._is_done():
                break
            if time.monotonic() - last_saved >= self.terms.checkpoint_seconds:
                self._save()
                last_saved = time.monotonic()
            assert prepared is not None
            batches = prepared.result()
            if state.step + 1 < total:
                prepared = ahead.submit(prepare, state.step + 1)
            loss, stop = self._step(batches)
            now = time.monotonic()
            state.step += 1
            state.seconds = before + now - started
            state.stand_ins += sum(batch.stand_ins for batch in batches)
            state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
            self._note(loss=loss, rate=self.optimisation.rate)
            left = (now - started) / (state.step - first_step) * (total - state.step)
            self._say("step", f"loss {loss:.4f}", state.step, total, values={"loss": loss, "seconds_left": left})
            if stop:
                raise KeyboardInterrupt
        self._save()

    def _is_done(self) -> bool:
        patience = self.plan.patience
        return self.state.step >= self.plan.total or (patience is not None and self.state.since_best >= patience)

    # --- A step -------------------------------------------------------------------------------------------------------

    def _step(self, batches: Sequence[Batch]) -> tuple[float, bool]:
        """The loss, and whether any of the processes was asked to stop. Weights move at the end, all or none."""
        self.optimisation.set_rate(self.state.step, total=self.plan.total)
        self.optimisation.forget_gradients()
        # What is drawn within a step follows from its number, in every process and on every device: dropout.
        rng = rng_for(self.plan.seed, "step", self.state.step, self.fabric.global_rank)
        torch.manual_seed(int(rng.integers(2**62)))
        total = 0.0
        for batch in batches:
            if self.fabric.world_size == 1:
                self.interrupts.heed()
            total += self._backward(batch)
        self.optimisation.step(self.state.step)
        return self._agreed(total)

    def _backward(self, batch: Batch) -> float:
        if not batch.items:
            return 0.0
        each = self.task.losses(batch.items)
        if not bool(torch.isfinite(each).all()):
            raise SettingError(
                f"the loss is no finite number any more (at {', '.join(batch.names)}); lower the rate "
                "(optimiser.rate), or clip the gradients (optimiser.clip = 1)"
            )
        self.fabric.backward(each.sum() / self.plan.per_step)
        return float(each.detach().sum()) / self.plan.per_step

    def _agreed(self, loss: float) -> tuple[float, bool]:
        """The loss of all processes, and whether one of them was interrupted: they stop after the same step."""
        if self.fabric.world_size == 1:
            return loss, False
        told = torch.tensor([loss, float(self.interrupts.came)], dtype=torch.float64, device=self.fabric.device)
        torch.distributed.all_reduce(told)
        return float(told[0]), bool(told[1] > 0)

    # --- Validation ---------------------------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        """After every so many epochs, before the first and after the last; what a checkpoint remembers is not due."""
        every = self.plan.steps_an_epoch * self.plan.validate_every
        due = self.state.step % every == 0 or self.state.step >= self.plan.total
        return due and self.state.validated < self.state.step

    def _validate(self) -> None:
        """Measure, keep the weights if they are the best so far, and draw samples."""
        state = self.state
        with self.weights.as_result():
            found = self.task.measure(self.interrupts.heed if self.fabric.world_size == 1 else lambda: None)
        state.validated = state.step
        mean_loss = state.loss_sum / max(1, state.loss_count)
        state.loss_sum, state.loss_count = 0.0, 0
        row = {} if found is None else {"dice": found.dice, **{f"dice {name}": v for name, v in found.by_name.items()}}
        error = None if found is None else found.error
        if found is not None and found.score > state.best:
            state.best, state.best_step, state.since_best, state.best_dice = found.score, state.step, 0, row
            state.best_error = error
            self.best_weights = self.weights.result()
        elif found is not None:
            state.since_best += 1
        if state.step == 0:
            state.first, state.first_error = row, error
        else:
            self.optimisation.hear(score=None if found is None else found.score, loss=mean_loss)
        if found is not None:
            self._note(**row, **({} if error is None else {"val error": error}))
            self._tell_of(found)

    def _tell_of(self, found: Verdict) -> None:
        found.draw(self.folder.overlays / f"step-{self.state.step:06d}.png")
        shown = {**found.by_name, **({} if found.error is None else {"error of the embedding": found.error})}
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        is_best = ", the best so far" if self.state.since_best == 0 else ""
        self._say(
            "validation",
            f"epoch {self.state.step // self.plan.steps_an_epoch}: Dice {found.dice:.4f} on val ({numbers}{is_best})",
            self.state.step,
            self.plan.total,
            values={"dice": found.dice, **found.by_name},
        )

    # --- Before the first step ----------------------------------------------------------------------------------------

    def _estimate(self) -> None:
        """Try one batch and say what the run will take; no weight moves."""
        batch = self.task.prepare(0)[0]
        started = time.monotonic()
        self._backward(batch)
        self.optimisation.forget_gradients()
        seconds = time.monotonic() - started
        precision = self.fabric.strategy.precision.precision
        self._tell(
            estimated(
                self.plan, items=len(batch.items), seconds=seconds, device=self.fabric.device, precision=precision
            )
        )

    # --- What stays ---------------------------------------------------------------------------------------------------

    def _note(self, **values: float) -> None:
        if self.log is not None:
            self.log.write(values, step=self.state.step)

    def _save(self) -> None:
        """Write a checkpoint; the processes that do not lead have nothing to write."""
        if self.log is None:
            return
        self.state.log_bytes = self.log.saved()
        checkpoint.save(
            self.folder.checkpoints,
            self.state.step,
            {
                "format": CHECKPOINT_FORMAT,
                "state": json.dumps(vars(self.state)),
                "best": self.best_weights,
                **self.weights.state(),
                **self.optimisation.state(),
            },
        )

    def _resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        kept = checkpoint.latest(self.folder.checkpoints)
        if kept is None:
            if checkpoint.exist(self.folder.checkpoints):
                text = "no checkpoint can be read any more, so the run begins anew"
                self._say("resumed", text, 0, self.plan.total)
            return
        if kept.get("format") != CHECKPOINT_FORMAT:
            raise OutputError(
                f"{self.folder.path} holds a run that another version of palpate began; let that one end it, or choose "
                "another folder"
            )
        self.state = _State(**json.loads(kept["state"]))
        self.best_weights = dict(kept["best"])
        self.weights.restore(kept)
        self.optimisation.restore(kept)
        step, total = self.state.step, self.plan.total
        self._say("resumed", f"going on after step {step} of {total}", step, total)

    def _finish(self, settings: Mapping[str, Any]) -> Result:
        state = self.state
        metrics = {
            "val_dice": _by_prompt(state.best_dice),
            "val_dice_before": _by_prompt(state.first),
            "best_step": state.best_step,
            "steps": state.step,
        }
        if state.first_error is not None:
            metrics |= {"val_error": state.best_error, "val_error_before": state.first_error}
        # Without validation data the last weights are the result.
        chosen = (self.best_weights or self.weights.result()) if self.leads else None
        result = self.task.finish(Done(settings, metrics, state.step, self.terms.command, chosen))
        if self.leads:
            self.folder.record(
                {
                    "command": self.terms.command,
                    "settings": settings,
                    "finished": True,
                    "steps": state.step,
                    "seconds": round(state.seconds, 1),
                    "metrics": metrics,
                    "tight_boxes_instead": state.stand_ins,
                    "data": self.plan.data,
                    "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
                }
            )
            checkpoint.clear(self.folder.checkpoints)
        self.fabric.barrier()
        stopped = "no better one came, so it stopped early; " if state.step < self.plan.total else ""
        best = ""
        if self.best_weights:
            by_error = state.best_error is not None and state.best == -state.best_error
            chosen_by = f"smallest error on val {-state.best:.4f}" if by_error else f"best Dice on val {state.best:.4f}"
            best = f"; {chosen_by}, at step {state.best_step}"
        instead = f"; {state.stand_ins} prompts did not exist for their object: tight boxes instead"
        text = f"{stopped}{state.step} steps{best}{instead if state.stand_ins else ''}"
        self._say("finished", text, state.step, self.plan.total)
        return result

    def _say(
        self, kind: EventKind, text: str, done: int = 0, total: int = 0, *, values: Mapping[str, float] | None = None
    ) -> None:
        self._tell(Event(kind, text, done, total, values or {}))

    def _tell(self, event: Event) -> None:
        if self.listener is not None:
            self.listener(event)


def _by_prompt(row: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("dice").strip() or "mean": value for name, value in row.items()}
