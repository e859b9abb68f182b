"""Fine-tuning: a promptable model learns from labelled images, and from prompts as people really draw them.

    RUN/run.json            the recipe, what it was run on, and what came of it
    RUN/log.csv             the loss of every step and the Dice of every validation
    RUN/tensorboard/        the same for TensorBoard
    RUN/overlays/           sample masks after every validation
    RUN/checkpoints/        the state, for going on after an interruption; removed at the end
    RUN/adapter.safetensors the result: what was learned, with its card

The loop is a pure function of the recipe and the data: which scene, which object and which prompt come when
follows from the seed (`palpate.training.items`), and the state is saved whole. So a run that was killed and started
again ends with the same weights, bit for bit, as one that was not, on the same machine and number of threads.

Ctrl-C is heeded where nothing is half done (between two batches, before an object of the validation), saves the state
and is raised then; a second one is raised at once, and costs what was done since the last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from palpate.datasets.case import Case
from palpate.errors import DatasetError, OutputError, SettingError
from palpate.inference.embedding_cache import EmbeddingCache, default_folder
from palpate.inference.environment import environment
from palpate.models import adapters, catalogue
from palpate.models.adapters import AdapterCard
from palpate.models.promptable import PromptKind
from palpate.prompts.types import Box, MaskPrompt, Points, Scribble
from palpate.training import checkpoint
from palpate.training.data import cases_for, described
from palpate.training.embedding import embed
from palpate.training.interrupts import Interrupts
from palpate.training.items import Item, named, order_of, training_items, validation_items
from palpate.training.log import Log
from palpate.training.overlays import draw_samples
from palpate.training.recipe import Recipe
from palpate.training.run_folder import RunFolder
from palpate.training.scenes import Scene, Views
from palpate.training.student import Student, student
from palpate.training.validation import Measured, measure

CHECKPOINT_SECONDS = 60.0
"""How much work a power cut may cost."""

NOTHING_THERE = -30.0
"""A logit whose probability is zero to the last bit of a loss."""

LOOKED_AT = 200
"""How many scenes are tried to see what a strategy gives."""

CHECKPOINT_FORMAT = 3
"""Grows when a checkpoint can no longer be read by an older palpate, or an older one by this."""

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
class Finetuned:
    """What came of a run."""

    folder: Path
    adapter: Path
    card: AdapterCard
    steps: int


@dataclass(frozen=True)
class _Job:
    """All that a process needs to know; it can be pickled."""

    recipe: Recipe
    folder: Path
    cases: tuple[Sequence[Case], Sequence[Case]] | None
    cache: Path
    cache_bytes: int
    device: str
    command: str
    overwrite: bool
    threads: int
    checkpoint_seconds: float


def finetune(
    recipe: Recipe,
    folder: str | Path,
    *,
    cases: tuple[Sequence[Case], Sequence[Case]] | None = None,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    threads: int | None = None,
    command: str = "",
    overwrite: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    listener: Listener | None = None,
) -> Finetuned:
    """Fine-tune a model as the recipe says, and write the adapter and the record of the run into a folder.

    A folder with an unfinished run of the same recipe and data is taken up where it stopped; with a finished one,
    nothing is left to do. `cases`, to train on and to validate with, take the place of those that the recipe's data
    names, where they need something done to them first (labels merged into one region, say). `cache` is the folder of
    embeddings (the user's, unless given), `devices` and `nodes` share the work through Lightning Fabric (with torchrun,
    the processes are those that it started); then `listener` must be picklable. `threads` is PyTorch's number of CPU
    threads.

    Raises:
        SettingError: what cannot be trained, or a device that does not exist.
        DatasetError: no cases, or cases that cannot be read.
        OutputError: the folder holds another run, or cannot be written.
        WeightsError: the base model's weights are missing.
    """
    from palpate.inference.embedding_cache import bound_of
    from palpate.training.devices import launched

    job = _Job(
        recipe=recipe,
        folder=Path(folder),
        cases=cases,
        cache=cache or default_folder(),
        cache_bytes=cache_bytes or bound_of(cache or default_folder()),
        device=device,
        command=command,
        overwrite=overwrite,
        threads=threads or torch.get_num_threads(),
        checkpoint_seconds=checkpoint_seconds,
    )
    return launched(
        partial(_run, job=job, listener=listener),
        device=device,
        devices=devices,
        nodes=nodes,
        precision=recipe.precision,
    )


def _run(fabric: Any, *, job: _Job, listener: Listener | None) -> Finetuned:
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        return _Run(fabric, job, listener).go()
    finally:
        torch.set_num_threads(before)


@dataclass
class _State:
    """What changes during a run, but for weights.

    `step` counts steps that are done and `validated` is that of the last validation. `first` and `best_dice` are the
    Dice values before training and of the best weights, as they are logged; `log_bytes` is how much of the log belongs
    to this state. `stand_ins` counts tight boxes in the place of prompts that do not exist for an object; `loss_sum`
    and `loss_count` are of the steps since the rate was last looked at.
    """

    step: int = 0
    validated: int = -1
    best: float = -math.inf
    best_step: int = -1
    since_best: int = 0
    seconds: float = 0.0
    first: dict[str, float] = field(default_factory=dict)
    best_dice: dict[str, float] = field(default_factory=dict)
    log_bytes: int = 0
    stand_ins: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0


class _Run:
    """One run in one process; several processes run alike and add up their gradients."""

    def __init__(self, fabric: Any, job: _Job, listener: Listener | None) -> None:
        self.fabric, self.job, self.recipe = fabric, job, job.recipe
        self.leads = fabric.global_rank == 0
        self.listener = listener if self.leads else None
        self.folder = RunFolder(job.folder)
        self.state = _State()
        self.best_weights: dict[str, Tensor] = {}
        self.log: Log | None = None
        self.interrupts = Interrupts()
        self._ordered: tuple[int, list[int]] = (-1, [])
        self._empty = ""

        cache = EmbeddingCache(job.cache, max_bytes=job.cache_bytes)
        self.student = student(self.recipe, cache, fabric.device)
        wanted = self.recipe.optimiser
        kind = torch.optim.AdamW if wanted.name == "adamw" else torch.optim.Adam
        self.plain_optimiser = kind(
            list(self.student.parameters.values()), lr=wanted.rate, weight_decay=wanted.weight_decay, betas=wanted.betas
        )
        self.optimiser = fabric.setup_optimizers(self.plain_optimiser)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.plain_optimiser, mode="max", factor=wanted.factor, patience=wanted.plateau_patience
        )

    # --- The whole ----------------------------------------------------------------------------------------------------

    def go(self) -> Finetuned:
        train, val = self.job.cases or cases_for(self.recipe.data, seed=self.recipe.seed)
        known = self._settings()
        self.folder.check(known, overwrite=self.job.overwrite)  # before hours of encoding
        views = self.recipe.data.views(self.recipe.seed)
        scenes, val_scenes = self._embedded(train, views), self._embedded(val, Views())  # people's images, as they are
        if not scenes:
            raise DatasetError("no image of the training data has an object that is large enough to be asked for")
        self.scenes = scenes
        shown = {(scene.case.dataset, scene.case.name) for scene in scenes}
        empty = sum((case.dataset, case.name) not in shown for case in train)
        self._empty = f" ({empty} of {len(train)} images show no object that is large enough)" if empty else ""
        validation = self.recipe.validation
        self.validation = validation_items(
            val_scenes,
            validation.prompts,
            frame=self.student.frame,
            seed=self.recipe.seed,
            objects=validation.objects,
            pixels=self.student.pixels,
        )
        self.per_step = self.recipe.batch * self.recipe.accumulate
        self.steps_an_epoch = self.recipe.steps or math.ceil(len(scenes) / self.per_step)
        self.total = self.recipe.epochs * self.steps_an_epoch
        settings = {**known, "data_sha256": _data_hash([*scenes, *val_scenes])}
        self.folder.check(settings, overwrite=self.job.overwrite)
        finished = self.folder.finished(settings)
        if finished is not None:
            return self._read(finished)
        self.fabric.barrier()  # nobody writes before everybody has looked
        try:
            if self.leads:
                self.folder.prepare(settings, command=self.job.command)
            self.fabric.barrier()
            self._resume()
            if self.leads:
                self.log = Log(self.folder.path, self._columns(), length=self.state.log_bytes)
            if self.state.validated < 0:
                self._estimate()
            self._loop()
            return self._finish(settings, described(train, val))
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
        started, before, first_step = time.monotonic(), self.state.seconds, self.state.step
        last_saved = started
        prepared = ahead.submit(self._items, self.state.step) if self.state.step < self.total else None
        while True:
            if self._validation_is_due():
                self._validate()
            if self._is_done():
                break
            if time.monotonic() - last_saved >= self.job.checkpoint_seconds:
                self._save()
                last_saved = time.monotonic()
            assert prepared is not None
            items = prepared.result()
            if self.state.step + 1 < self.total:
                prepared = ahead.submit(self._items, self.state.step + 1)
            loss, stop = self._step(items)
            now = time.monotonic()
            self.state.step += 1
            self.state.seconds = before + now - started
            self.state.stand_ins += sum(item.stands_in for batch in items for item in batch)
            self.state.loss_sum, self.state.loss_count = self.state.loss_sum + loss, self.state.loss_count + 1
            self._note(loss=loss, rate=self._rate())
            left = (now - started) / (self.state.step - first_step) * (self.total - self.state.step)
            values = {"loss": loss, "seconds_left": left}
            self._say("step", f"loss {loss:.4f}", self.state.step, self.total, values=values)
            if stop:
                raise KeyboardInterrupt
        self._save()

    def _is_done(self) -> bool:
        patience = self.recipe.patience
        return self.state.step >= self.total or (patience is not None and self.state.since_best >= patience)

    # --- A step -------------------------------------------------------------------------------------------------------

    def _items(self, step: int) -> list[list[Item]]:
        """This process's part of each batch of a step."""
        epoch, within = divmod(step, self.steps_an_epoch)
        order = self._order(epoch)
        first = within * self.per_step
        batches: list[list[Item]] = []
        for number in range(self.recipe.accumulate):
            start = first + number * self.recipe.batch
            places = [(place, order[place]) for place in range(start, start + self.recipe.batch)]
            mine = places[self.fabric.global_rank :: self.fabric.world_size]
            batches.append(
                training_items(
                    self.scenes,
                    mine,
                    self.recipe.prompts,
                    frame=self.student.frame,
                    epoch=epoch,
                    seed=self.recipe.seed,
                    pixels=self.student.pixels,
                )
            )
        return batches

    def _order(self, epoch: int) -> list[int]:
        if self._ordered[0] != epoch:
            count = self.steps_an_epoch * self.per_step
            order = order_of(
                self.scenes, epoch=epoch, seed=self.recipe.seed, count=count, balance=self.recipe.data.balance
            )
            self._ordered = (epoch, order)
        return self._ordered[1]

    def _step(self, batches: Sequence[Sequence[Item]]) -> tuple[float, bool]:
        """The loss, and whether any of the processes was asked to stop. Weights move at the end, all or none."""
        self._set_rate()
        total = 0.0
        self.optimiser.zero_grad(set_to_none=True)
        for items in batches:
            if self.fabric.world_size == 1:
                self.interrupts.heed()
            total += self._backward(items)
        self._share_gradients()
        # In half precision gradients come multiplied by a large number, which the two below must not see.
        self.fabric.strategy.precision.unscale_gradients(self.plain_optimiser)
        self.student.pull_to_start()
        clip = self.recipe.optimiser.clip
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.student.parameters.values()), clip)
        self.optimiser.step()
        self.student.follow(self.state.step)
        return self._agreed(total)

    def _backward(self, items: Sequence[Item]) -> float:
        if not items:
            return 0.0
        target = torch.from_numpy(np.stack([item.target for item in items])).to(self.fabric.device)
        loss = self.recipe.loss
        # Kept embeddings are float32 whatever the precision of training: other runs read them.
        kept = None if self.student.moves_encoder else self.student.features(items)
        with self.fabric.autocast():
            features = kept or self.student.features(items)
            logits, iou = self.student.answers(features, [item.canvas for item in items])
            own = None
            if loss.consistency:
                with torch.no_grad():
                    own = self.student.answers(features, [item.tight for item in items])[0].float().sigmoid()
        teacher = self.student.taught(items) if loss.teacher else None
        judged = _judged(items, self.fabric.device)
        if judged is not None:
            # Neither right nor wrong: surely nothing there, as the target says, and no gradient.
            logits = torch.where(judged, logits.float(), NOTHING_THERE)
            target, teacher, own = (None if one is None else one * judged for one in (target, teacher, own))
            assert target is not None
        each = loss.of(logits, iou, target, teacher=teacher, own=own)
        if not bool(torch.isfinite(each).all()):
            names = ", ".join(item.scene.name for item in items)
            raise SettingError(
                f"the loss is no finite number any more (at {names}); lower the rate (optimiser.rate), or clip the "
                "gradients (optimiser.clip = 1)"
            )
        self.fabric.backward(each.sum() / self.per_step)
        return float(each.detach().sum()) / self.per_step

    def _share_gradients(self) -> None:
        """Add up the gradients of all processes; a weight that none of them used keeps no gradient."""
        if self.fabric.world_size == 1:
            return
        parameters = list(self.student.parameters.values())
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self.fabric.device)
        torch.distributed.all_reduce(used)
        shared = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def _agreed(self, loss: float) -> tuple[float, bool]:
        """The loss of all processes, and whether one of them was interrupted: they stop after the same step."""
        if self.fabric.world_size == 1:
            return loss, False
        told = torch.tensor([loss, float(self.interrupts.came)], dtype=torch.float64, device=self.fabric.device)
        torch.distributed.all_reduce(told)
        return float(told[0]), bool(told[1] > 0)

    # --- Rates --------------------------------------------------------------------------------------------------------

    def _rate(self) -> float:
        return float(self.plain_optimiser.param_groups[0]["lr"])

    def _set_rate(self) -> None:
        """The rate of this step, where it follows from the step's number."""
        wanted, step = self.recipe.optimiser, self.state.step
        if wanted.schedule == "cosine":
            done = min(1.0, max(0.0, (step - wanted.warmup) / max(1, self.total - wanted.warmup)))
            rate = wanted.rate * 0.5 * (1 + math.cos(math.pi * done))
        elif step <= wanted.warmup and wanted.warmup:
            rate = wanted.rate
        else:
            return
        if step < wanted.warmup:
            rate = wanted.rate * (step + 1) / wanted.warmup
        for group in self.plain_optimiser.param_groups:
            group["lr"] = rate

    # --- Validation ---------------------------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        """After every so many epochs, before the first and after the last; what a checkpoint remembers is not due."""
        every = self.steps_an_epoch * self.recipe.validation.every
        due = self.state.step % every == 0 or self.state.step >= self.total
        return due and self.state.validated < self.state.step

    def _validate(self) -> None:
        """Measure, keep the weights if they are the best so far, and draw samples."""
        measured = measure(
            self.student,
            self.validation,
            fabric=self.fabric,
            samples=self.recipe.validation.overlays if self.leads else 0,
            heed=self.interrupts.heed if self.fabric.world_size == 1 else lambda: None,
        )
        self.state.validated = self.state.step
        mean_loss = self.state.loss_sum / max(1, self.state.loss_count)
        self.state.loss_sum, self.state.loss_count = 0.0, 0
        if not measured.dice:
            if self.state.step and self.recipe.optimiser.schedule == "plateau":
                self.plateau.step(-mean_loss)  # there is nothing else to go by
            return
        overall = float(np.mean([measured.dice[named(prompt)] for prompt in self.recipe.validation.prompts]))
        row = {"dice": overall, **{f"dice {name}": value for name, value in measured.dice.items()}}
        if overall > self.state.best:
            self.state.best, self.state.best_step, self.state.since_best = overall, self.state.step, 0
            self.state.best_dice = row
            self.best_weights = self.student.result()
        else:
            self.state.since_best += 1
        if self.state.step == 0:
            self.state.first = row
        elif self.recipe.optimiser.schedule == "plateau":
            self.plateau.step(overall)
        self._note(**row)
        self._draw(measured)
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in measured.dice.items())
        is_best = ", the best so far" if self.state.since_best == 0 else ""
        self._say(
            "validation",
            f"epoch {self.state.step // self.steps_an_epoch}: Dice {overall:.4f} on val ({numbers}{is_best})",
            self.state.step,
            self.total,
            values={"dice": overall, **measured.dice},
        )

    def _draw(self, measured: Measured) -> None:
        if measured.samples:
            pictures = [(item, self.student.pixels(item.scene), found) for item, found in measured.samples]
            draw_samples(pictures, self.folder.overlays / f"step-{self.state.step:06d}.png")

    # --- Before the first step ----------------------------------------------------------------------------------------

    def _embedded(self, cases: Sequence[Case], views: Views) -> list[Scene]:
        """The scenes of these cases; with a frozen encoder, every process encodes its part of what is missing."""
        data, pupil = self.recipe.data, self.student
        if pupil.moves_encoder and not self.recipe.loss.teacher:
            return [sight.scene for case in cases for sight in pupil.sights(case, views)]

        def told(done: int, total: int) -> None:
            self._say("embedding", "encoding images that were never encoded", done, total)

        def part(some: Sequence[Case], listener: Callable[[int, int], None] | None) -> tuple[Scene, ...]:
            return embed(
                some,
                pupil.runtime,
                pupil.cache,
                views=views,
                slices_per_volume=data.slices_per_volume,
                min_pixels=data.min_pixels,
                intensity=data.intensity,
                progress=listener,
            ).scenes

        if self.fabric.world_size > 1:
            part(cases[self.fabric.global_rank :: self.fabric.world_size], None)
            self.fabric.barrier()
        return list(part(cases, told))

    def _estimate(self) -> None:
        """Try one batch and say what the run will take; no weight moves."""
        items = self._items(0)[0]
        started = time.monotonic()
        self._backward(items)
        self.optimiser.zero_grad(set_to_none=True)
        batch = time.monotonic() - started
        asked = sum(map(len, self.validation.values()))
        validations = 1 + self.recipe.epochs // self.recipe.validation.every
        a_mask = batch / max(1, len(items)) / 3  # decoding is a third of decoding and going back
        seconds = batch * self.recipe.accumulate * self.total + validations * asked * a_mask
        memory = _peak_memory(self.fabric.device)
        self._say(
            "estimate",
            f"{len(self.scenes)} scenes{self._empty}, {self.total} steps of {self.per_step} objects: "
            f"about {_in_words(seconds)} on {self.fabric.device}"
            + (f" and {memory / 1e9:.1f} GB of memory" if memory else "")
            + self._too_many(),
            values={"seconds": seconds, "bytes": memory},
        )

    def _too_many(self) -> str:
        """A warning, where the cache cannot hold what each epoch reads: every image would be encoded in every epoch."""
        if self.student.moves_encoder:
            return ""
        one = self.student.embedding(self.scenes[0])
        size = sum(array.nbytes for array in (one.features, *one.levels))
        scenes = [*self.scenes, *(item.scene for items in self.validation.values() for item in items)]
        needed = len({scene.key for scene in scenes}) * size
        if needed <= self.job.cache_bytes:
            return ""
        return (
            f"; the embeddings take {needed / 1e9:.1f} GB and the cache may hold {self.job.cache_bytes / 1e9:.1f} GB, "
            "so images will be encoded again and again: allow it more"
        )

    # --- What stays ---------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """Everything that decides the weights, but for the data."""
        # Where files lie decides nothing and is nobody's business once the card is given on. Their hashes are compared.
        recipe = self.recipe.described()
        recipe = {**recipe, "weights": None, "data": {**recipe["data"], "path": "", "labels": None}}
        return {
            "recipe": recipe,
            "weights_hash": self.student.runtime.weights_hash,
            "processes": self.fabric.world_size,
            "threads": self.job.threads,
            "device": self.fabric.device.type,
            "versions": dict(environment()),
        }

    def _columns(self) -> list[str]:
        names = [name for name, items in self.validation.items() if items]
        return [*(["dice", *(f"dice {name}" for name in names)] if names else []), "loss", "rate"]

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
                "weights": {name: parameter.detach().cpu() for name, parameter in self.student.parameters.items()},
                "average": {name: tensor.cpu() for name, tensor in self.student.average.items()},
                "best": self.best_weights,
                "optimiser": self.plain_optimiser.state_dict(),
                "plateau": json.dumps(self.plateau.state_dict()),
                "precision": self.fabric.strategy.precision.state_dict(),
                "rng": torch.get_rng_state(),
            },
        )

    def _resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        kept = checkpoint.latest(self.folder.checkpoints)
        if kept is None:
            if checkpoint.exist(self.folder.checkpoints):
                self._say("resumed", "no checkpoint can be read any more, so the run begins anew", 0, self.total)
            return
        if kept.get("format") != CHECKPOINT_FORMAT:
            raise OutputError(
                f"{self.folder.path} holds a run that another version of palpate began; let that one end it, or choose "
                "another folder"
            )
        self.state = _State(**json.loads(kept["state"]))
        with torch.no_grad():
            for name, parameter in self.student.parameters.items():
                parameter.copy_(kept["weights"][name])
            for name, tensor in self.student.average.items():
                tensor.copy_(kept["average"][name])
        self.best_weights = dict(kept["best"])
        self.plain_optimiser.load_state_dict(kept["optimiser"])
        self.plateau.load_state_dict(json.loads(kept["plateau"]))
        self.fabric.strategy.precision.load_state_dict(kept["precision"])
        torch.set_rng_state(kept["rng"])
        self._say("resumed", f"going on after step {self.state.step} of {self.total}", self.state.step, self.total)

    def _read(self, record: Mapping[str, Any]) -> Finetuned:
        """What came of a run that is finished; nothing is written."""
        adapter = self.folder.adapter
        self._say("finished", f"this run is finished; its adapter is {adapter}")
        return Finetuned(self.folder.path, adapter, adapters.read_card(adapter), int(record.get("steps", 0)))

    def _finish(self, settings: dict[str, Any], data: str) -> Finetuned:
        metrics = {
            "val_dice": _by_prompt(self.state.best_dice),
            "val_dice_before": _by_prompt(self.state.first),
            "best_step": self.state.best_step,
            "steps": self.state.step,
        }
        card = AdapterCard(
            name=self.recipe.name or self.folder.path.name,
            base=self.recipe.model,
            base_sha256=self.student.runtime.weights_hash,
            trained=self.recipe.trained,
            prompts=_kinds_of(self.recipe, self.scenes, self.student),
            summary=self.recipe.summary,
            data=data,
            licence=self.recipe.licence,
            seed=self.recipe.seed,
            recipe=settings["recipe"],
            metrics=metrics,
            versions=dict(environment()),
            command=self.job.command,
        )
        if self.leads:
            # Without validation data the last weights are the result.
            chosen = self.best_weights or self.student.result()
            made = adapters.extracted(self.student.network, card, weights=chosen)
            adapters.save(made, self.folder.adapter, half=self.recipe.half)
            self.folder.record(
                {
                    "command": self.job.command,
                    "settings": settings,
                    "finished": True,
                    "steps": self.state.step,
                    "seconds": round(self.state.seconds, 1),
                    "metrics": metrics,
                    "tight_boxes_instead": self.state.stand_ins,
                    "data": data,
                    "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
                }
            )
            checkpoint.clear(self.folder.checkpoints)
        self.fabric.barrier()
        stopped = "no better one came, so it stopped early; " if self.state.step < self.total else ""
        best = f"; best Dice on val {self.state.best:.4f}, at step {self.state.best_step}" if self.best_weights else ""
        instead = f"; {self.state.stand_ins} prompts did not exist for their object: tight boxes instead"
        text = f"{stopped}{self.state.step} steps{best}{instead if self.state.stand_ins else ''}"
        self._say("finished", text, self.state.step, self.total)
        return Finetuned(self.folder.path, self.folder.adapter, card, self.state.step)

    def _say(
        self, kind: EventKind, text: str, done: int = 0, total: int = 0, *, values: Mapping[str, float] | None = None
    ) -> None:
        if self.listener is not None:
            self.listener(Event(kind, text, done, total, values or {}))


def _judged(items: Sequence[Item], device: torch.device) -> Tensor | None:
    """Where the items' answers count, as (item, row, column); None if that is everywhere."""
    if all(item.judged is None for item in items):
        return None
    grids = [np.ones_like(item.target, dtype=bool) if item.judged is None else item.judged for item in items]
    return torch.from_numpy(np.stack(grids)).to(device)


def _by_prompt(row: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("dice").strip() or "mean": value for name, value in row.items()}


def _data_hash(scenes: Sequence[Scene]) -> str:
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(f"{scene.name} {scene.key} {[region.name for region in scene.regions]}\n".encode())
        digest.update(np.ascontiguousarray(scene.labels).data)
    return digest.hexdigest()


def _kinds_of(recipe: Recipe, scenes: Sequence[Scene], student: Student) -> tuple[PromptKind, ...]:
    """Which kinds of prompts the mix holds, and what the base was trained with.

    Seen by drawing each strategy for one scene after the other until it gives what it promises: not every prompt exists
    for every object.
    """
    kinds: dict[PromptKind, None] = dict.fromkeys(catalogue.card(recipe.model).prompts.trained)
    names: dict[type, PromptKind] = {Box: "box", Points: "points", Scribble: "scribble", MaskPrompt: "mask"}
    for prompt in recipe.prompts:
        for place, scene in enumerate(scenes[:LOOKED_AT] if prompt.share else ()):
            (item,) = training_items(
                [scene], [(place, 0)], [prompt], frame=student.frame, epoch=0, seed=0, pixels=student.pixels
            )
            if not item.stands_in:
                for one in item.prompts:
                    kinds[names[type(one)]] = None
                break
    return tuple(kinds)


def _peak_memory(device: torch.device) -> int:
    """In bytes; 0 where it cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


__all__ = ["Event", "Finetuned", "Listener", "finetune"]
