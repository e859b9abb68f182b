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
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from palpate.datasets.case import Case
from palpate.errors import DatasetError, OutputError, SettingError
from palpate.images.formats import replacing
from palpate.inference.batching import alike, batch_of
from palpate.inference.embedding_cache import EmbeddingCache, default_folder
from palpate.inference.runtimes.torch import TorchRuntime
from palpate.metrics import dice
from palpate.models import adapters, catalogue, weights
from palpate.models.adapters import AdapterCard
from palpate.models.frame import CanvasPrompt, Frame
from palpate.models.promptable import ImageEmbedding, PromptableModel, PromptKind
from palpate.prompts.types import Box, MaskPrompt, Points, Scribble
from palpate.training import checkpoint
from palpate.training.data import cases_for, described
from palpate.training.embedding import embed
from palpate.training.items import Item, named, order_of, training_items, validation_items
from palpate.training.overlays import draw_samples
from palpate.training.recipe import Recipe
from palpate.training.scenes import Scene, sights_of

CHECKPOINT_SECONDS = 60.0
"""How much work a power cut may cost."""

MICRO_BATCH = 8
"""Objects whose gradients are computed together; more only take more memory."""

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
    from palpate.inference.embedding_cache import DEFAULT_MAX_BYTES
    from palpate.training.devices import launched

    job = _Job(
        recipe=recipe,
        folder=Path(folder),
        cases=cases,
        cache=cache or default_folder(),
        cache_bytes=cache_bytes or DEFAULT_MAX_BYTES,
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
    """What changes during a run, but for weights."""

    step: int = 0
    best: float = -math.inf
    best_step: int = -1
    since_best: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)


class _Run:
    """One run in one process; several processes run alike and add up their gradients."""

    def __init__(self, fabric: Any, job: _Job, listener: Listener | None) -> None:
        self.fabric, self.job, self.recipe = fabric, job, job.recipe
        self.leads = fabric.global_rank == 0
        self.listener = listener if self.leads else None
        self.folder = job.folder
        self.state = _State()

        self.catalogue_card = catalogue.card(self.recipe.model)
        loaded = weights.load(self.catalogue_card, device=fabric.device)
        self.weights_hash, self.encoder_hash = loaded.weights_hash, loaded.encoder_hash
        self.network = cast("nn.Module", loaded.model)
        self.frame: Frame = loaded.model.frame
        # The base model stays beside the one that is trained: it encodes, and it may teach.
        self.base = cast("PromptableModel", copy.deepcopy(self.network))
        self.runtime = TorchRuntime(
            self.base,
            self.catalogue_card.name,
            loaded.weights_hash,
            loaded.encoder_hash,
            self.catalogue_card.prompts,
            fabric.device,
        )
        self.cache = EmbeddingCache(job.cache, max_bytes=job.cache_bytes)
        torch.manual_seed(self.recipe.seed)  # for weights that are added
        self.parameters = adapters.trainable(self.network, self.recipe.trained)
        self.network.get_submodule("prompt_decoder").objects_at_once = MICRO_BATCH  # pyright: ignore[reportAttributeAccessIssue]
        self.start = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.best_weights: dict[str, Tensor] = {}
        self.taught: dict[tuple[str, str], Tensor] = {}
        self._pictures: dict[str, np.ndarray] = {}

        wanted = self.recipe.optimiser
        kind = torch.optim.AdamW if wanted.name == "adamw" else torch.optim.Adam
        self.plain_optimiser = kind(
            list(self.parameters.values()), lr=wanted.rate, weight_decay=wanted.weight_decay, betas=wanted.betas
        )
        self.optimiser = fabric.setup_optimizers(self.plain_optimiser)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.plain_optimiser, mode="max", factor=wanted.factor, patience=wanted.plateau_patience
        )

    # --- The whole ----------------------------------------------------------------------------------------------------

    def go(self) -> Finetuned:
        train, val = self.job.cases or cases_for(self.recipe.data, seed=self.recipe.seed)
        self._check_folder()
        scenes = self._embedded(train)
        val_scenes = self._embedded(val)
        if not scenes:
            raise DatasetError("no image of the training data has an object that is large enough to be asked for")
        self.scenes = scenes
        validation = self.recipe.validation
        self.validation = validation_items(
            val_scenes, validation.prompts, frame=self.frame, seed=self.recipe.seed, objects=validation.objects
        )
        self.per_step = self.recipe.batch * self.recipe.accumulate
        self.steps_an_epoch = self.recipe.steps or math.ceil(len(scenes) / self.per_step)
        self.total = self.recipe.epochs * self.steps_an_epoch
        settings = self._settings(scenes, val_scenes)
        finished = self._prepare(settings)
        if finished is not None:
            return finished
        self._resume()
        if self.state.step == 0:
            self._estimate()
            self._validate()
        self._loop()
        return self._finish(settings, described(train, val))

    def _loop(self) -> None:
        started, before = time.monotonic(), self.state.seconds
        last_saved = time.monotonic()
        first_step = self.state.step
        with ThreadPoolExecutor(1) as ahead:
            prepared = ahead.submit(self._items, self.state.step) if self.state.step < self.total else None
            try:
                while self.state.step < self.total and not self._has_stopped():
                    assert prepared is not None
                    items = prepared.result()
                    if self.state.step + 1 < self.total:
                        prepared = ahead.submit(self._items, self.state.step + 1)
                    loss = self._step(items)
                    self.state.step += 1
                    self.state.seconds = before + time.monotonic() - started
                    self._note(loss=loss, rate=self._rate())
                    pace = (time.monotonic() - started) / (self.state.step - first_step)
                    left = pace * (self.total - self.state.step)
                    self._say(
                        "step",
                        f"loss {loss:.4f}",
                        self.state.step,
                        self.total,
                        values={"loss": loss, "seconds_left": left},
                    )
                    if self.state.step % (self.steps_an_epoch * self.recipe.validation.every) == 0:
                        self._validate()
                        self._adjust_rate()
                    if self._save_is_due(time.monotonic() - last_saved):
                        self._save()
                        last_saved = time.monotonic()
            except KeyboardInterrupt:
                if self.fabric.world_size == 1:
                    self._save()  # between two steps, or within one whose gradients are thrown away
                raise

    def _save_is_due(self, seconds: float) -> bool:
        if self.state.step == self.total or self._has_stopped():
            return True
        return seconds >= self.job.checkpoint_seconds and self.leads

    def _has_stopped(self) -> bool:
        patience = self.recipe.patience
        return patience is not None and self.state.since_best >= patience

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
                    self.scenes, mine, self.recipe.prompts, frame=self.frame, epoch=epoch, seed=self.recipe.seed
                )
            )
        return batches

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_ordered", (None, []))[0] != epoch:
            count = self.steps_an_epoch * self.per_step
            order = order_of(
                self.scenes, epoch=epoch, seed=self.recipe.seed, count=count, balance=self.recipe.data.balance
            )
            self._ordered = (epoch, order)
        return self._ordered[1]

    def _step(self, batches: Sequence[Sequence[Item]]) -> float:
        self._warm_up()
        total = 0.0
        self.optimiser.zero_grad(set_to_none=True)
        for items in batches:
            total += self._backward(items)
        self._share_gradients()
        self._pull_to_start()
        clip = self.recipe.optimiser.clip
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), clip)
        self.optimiser.step()
        decay = self.recipe.optimiser.ema
        if decay:
            # Young averages forget their random start sooner: after n steps at least 1 / (n + 10) is new.
            share = max(1 - decay, 1 / (self.state.step + 10))
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    self.average[name].lerp_(parameter, share)
        return self._summed(total)

    def _backward(self, items: Sequence[Item]) -> float:
        if not items:
            return 0.0
        device = self.fabric.device
        target = torch.from_numpy(np.stack([item.target for item in items])).to(device)
        loss = self.recipe.loss
        with self.fabric.autocast():
            features = self._features(items)
            logits, iou = self._answers(self.network, features, [item.canvas for item in items])
            own = None
            if loss.consistency:
                with torch.no_grad():
                    own = self._answers(self.network, features, [item.tight for item in items])[0].float().sigmoid()
        teacher = self._taught(items) if loss.teacher else None
        each = loss.of(logits, iou, target, teacher=teacher, own=own)
        if not bool(torch.isfinite(each).all()):
            names = ", ".join(item.scene.name for item in items)
            raise SettingError(
                f"the loss is no finite number any more (at {names}); lower the rate (optimiser.rate), or clip the "
                "gradients (optimiser.clip = 1)"
            )
        self.fabric.backward(each.sum() / self.per_step)
        return float(each.detach().sum()) / self.per_step

    def _features(self, items: Sequence[Item]) -> ImageEmbedding:
        """The embeddings of the items' scenes, one for each item."""
        if not self.recipe.trained.moves_encoder:
            return self._kept([item.scene for item in items])
        canvases = np.stack([self.frame.canvas(self._pixels(item.scene)) for item in items])
        return cast("PromptableModel", self.network).encode(torch.from_numpy(canvases).to(self.fabric.device))

    def _kept(self, scenes: Sequence[Scene]) -> ImageEmbedding:
        found = [self._embedding(scene) for scene in scenes]
        device = self.fabric.device
        features = torch.from_numpy(np.concatenate([one.features for one in found])).to(device)
        levels = tuple(
            torch.from_numpy(np.concatenate([one.levels[i] for one in found])).to(device)
            for i in range(len(found[0].levels))
        )
        return ImageEmbedding(features, levels)

    def _embedding(self, scene: Scene) -> ImageEmbedding:
        found = self.cache.get(scene.key)
        if found is None:  # pruned by another run; encoded again
            found = self.runtime.encode(self.frame.canvas(self._pixels(scene))[None])
            self.cache.put(scene.key, found)
        return found

    def _pixels(self, scene: Scene) -> np.ndarray:
        """The scene's image; the last few stay in memory."""
        if scene.key not in self._pictures:
            for sight in self._sights(scene.case):
                self._pictures[sight.scene.key] = sight.pixels
            while len(self._pictures) > 2000:
                self._pictures.pop(next(iter(self._pictures)))
        return self._pictures[scene.key]

    def _sights(self, case: Case) -> Iterable[Any]:
        data = self.recipe.data
        return sights_of(
            case,
            frame=self.frame,
            encoder_hash=self.encoder_hash,
            views=data.views(self.recipe.seed),
            slices_per_volume=data.slices_per_volume,
            min_pixels=data.min_pixels,
            intensity=data.intensity,
        )

    def _answers(
        self, network: nn.Module, features: ImageEmbedding, prompts: Sequence[CanvasPrompt]
    ) -> tuple[Tensor, Tensor]:
        """Logits (item, row, column) and predicted IoU of each item; prompt i lies on image i."""
        logits: dict[int, Tensor] = {}
        ious: dict[int, Tensor] = {}
        for members in alike(prompts):
            batch = batch_of([prompts[i] for i in members], image_index=members)
            prediction = cast("PromptableModel", network).decode(features, batch)
            for place, i in enumerate(members):
                logits[i], ious[i] = prediction.logits[place, 0], prediction.predicted_iou[place, 0]
        order = range(len(prompts))
        return torch.stack([logits[i] for i in order]), torch.stack([ious[i] for i in order])

    def _taught(self, items: Sequence[Item]) -> Tensor:
        """What the base model answers to the tight boxes, as probabilities; each is asked once."""
        unknown = list({item.name: item for item in items if item.name not in self.taught}.values())
        if unknown:
            if len(self.taught) > 4000:
                self.taught.clear()
            with torch.no_grad():
                features = self._kept([item.scene for item in unknown])
                logits, _ = self._answers(cast("nn.Module", self.base), features, [item.tight for item in unknown])
            for item, answer in zip(unknown, logits, strict=True):
                self.taught[item.name] = answer.sigmoid().half().cpu()
        return torch.stack([self.taught[item.name] for item in items]).float().to(self.fabric.device)

    def _share_gradients(self) -> None:
        """Add up the gradients of all processes; a weight that none of them used keeps no gradient."""
        if self.fabric.world_size == 1:
            return
        parameters = list(self.parameters.values())
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self.fabric.device)
        torch.distributed.all_reduce(used)
        shared = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def _pull_to_start(self) -> None:
        strength = float(self.recipe.loss.anchor)
        if strength:
            for name, parameter in self.parameters.items():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - self.start[name], alpha=2 * strength)

    def _summed(self, value: float) -> float:
        if self.fabric.world_size == 1:
            return value
        total = torch.tensor(value, device=self.fabric.device)
        torch.distributed.all_reduce(total)
        return float(total)

    # --- Rates --------------------------------------------------------------------------------------------------------

    def _rate(self) -> float:
        return float(self.plain_optimiser.param_groups[0]["lr"])

    def _warm_up(self) -> None:
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

    def _adjust_rate(self) -> None:
        if self.recipe.optimiser.schedule == "plateau" and self.state.rows and "dice" in self.state.rows[-1]:
            self.plateau.step(self.state.rows[-1]["dice"])

    # --- Validation ---------------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Measure, keep the weights if they are the best so far, and draw samples."""
        measured = self._measured()
        if not measured:
            self.best_weights = self._current()
            return
        scores = [measured[named(prompt)] for prompt in self.recipe.validation.prompts]
        overall = float(np.mean(scores))
        self._note(dice=overall, **{f"dice {name}": value for name, value in measured.items()})
        if overall > self.state.best:
            self.state.best, self.state.best_step, self.state.since_best = overall, self.state.step, 0
            self.best_weights = self._current()
        else:
            self.state.since_best += 1
        epoch = self.state.step // self.steps_an_epoch
        self._say(
            "validation",
            f"epoch {epoch}: Dice {overall:.4f} on val ("
            + ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
            + (", the best so far)" if self.state.since_best == 0 else ")"),
            self.state.step,
            self.total,
            values={"dice": overall, **measured},
        )

    def _current(self) -> dict[str, Tensor]:
        chosen = self.average if self.recipe.optimiser.ema else self.parameters
        return {name: tensor.detach().cpu().clone() for name, tensor in chosen.items()}

    def _measured(self) -> dict[str, float]:
        """The Dice of every validation prompt: the mean over data sets of the mean over objects."""
        swapped = self._swap_in_average()
        try:
            mine: dict[str, list[tuple[int, float]]] = {}
            shown: list[tuple[Item, np.ndarray]] = []
            with torch.inference_mode():
                for label, items in self.validation.items():
                    mine[label] = []
                    for i in range(self.fabric.global_rank, len(items), self.fabric.world_size):
                        found = self._mask_of(items[i])
                        mine[label].append((i, dice(found, items[i].scene.mask(items[i].region))))
                        if i < self.recipe.validation.overlays and self.leads:
                            shown.append((items[i], found))
        finally:
            self._swap_out_average(swapped)
        gathered: list[dict[str, list[tuple[int, float]]]] = [mine]
        if self.fabric.world_size > 1:
            gathered = [{} for _ in range(self.fabric.world_size)]
            torch.distributed.all_gather_object(gathered, mine)
        if shown:
            pictures = [(item, self._pixels(item.scene), found) for item, found in shown]
            draw_samples(pictures, self.folder / "overlays" / f"step-{self.state.step:06d}.png")
        result: dict[str, float] = {}
        for label, items in self.validation.items():
            if not items:
                continue
            by_dataset: dict[str, list[float]] = {}
            for i, value in sorted(pair for part in gathered for pair in part[label]):
                by_dataset.setdefault(items[i].scene.case.dataset, []).append(value)
            result[label] = float(np.mean([np.mean(values) for values in by_dataset.values()]))
        return result

    def _mask_of(self, item: Item) -> np.ndarray:
        features = self._features([item])
        with self.fabric.autocast():
            logits, _ = self._answers(self.network, features, [item.canvas])
        return self.frame.image(logits[0].float().cpu().numpy(), item.scene.shape) > 0

    def _swap_in_average(self) -> dict[str, Tensor]:
        if not self.recipe.optimiser.ema:
            return {}
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.average[name])
        return kept

    def _swap_out_average(self, kept: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in kept.items():
                self.parameters[name].copy_(tensor)

    # --- Before the first step ----------------------------------------------------------------------------------------

    def _embedded(self, cases: Sequence[Case]) -> list[Scene]:
        """The scenes of these cases; with a frozen encoder, every process encodes its part of what is missing."""
        data = self.recipe.data
        if self.recipe.trained.moves_encoder and not self.recipe.loss.teacher:
            return [sight.scene for case in cases for sight in self._sights(case)]

        def told(done: int, total: int) -> None:
            self._say("embedding", "encoding images that were never encoded", done, total)

        def part(some: Sequence[Case], listener: Callable[[int, int], None] | None) -> tuple[Scene, ...]:
            return embed(
                some,
                self.runtime,
                self.cache,
                views=data.views(self.recipe.seed),
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
            f"{len(self.scenes)} scenes, {self.total} steps of {self.per_step} objects: about {_in_words(seconds)} on "
            f"{self.fabric.device} and {memory / 1e9:.1f} GB of memory",
            values={"seconds": seconds, "bytes": memory},
        )

    # --- The folder ---------------------------------------------------------------------------------------------------

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{self.folder} is a file; give a folder for the run")

    def _settings(self, scenes: Sequence[Scene], val: Sequence[Scene]) -> dict[str, Any]:
        """Everything that decides the weights."""
        digest = hashlib.sha256()
        for scene in (*scenes, *val):
            digest.update(f"{scene.name} {scene.key} {[region.name for region in scene.regions]}\n".encode())
            digest.update(np.ascontiguousarray(scene.labels).data)
        return {
            "recipe": {**self.recipe.described(), "data": {**self.recipe.data.model_dump(mode="json"), "path": ""}},
            "weights_hash": self.weights_hash,
            "data_sha256": digest.hexdigest(),
            "processes": self.fabric.world_size,
            "threads": self.job.threads,
            "versions": _versions(),
        }

    def _prepare(self, settings: dict[str, Any]) -> Finetuned | None:
        """Make the folder ready; a finished run of the same settings is the answer at once."""
        record = _read_json(self.folder / "run.json")
        before = record.get("settings")
        adapter = self.folder / "adapter.safetensors"
        if before is None and self.folder.is_dir() and any(self.folder.iterdir()):
            raise OutputError(f"{self.folder} is not empty and holds no run; choose an empty or a new folder")
        if before is not None and before != settings:
            if not self.job.overwrite:
                differing = [name for name in settings if before.get(name) != settings[name]]
                raise OutputError(
                    f"{self.folder} holds a run with another {', another '.join(differing)}; choose another folder, or "
                    "pass --overwrite to replace it"
                )
            if self.leads:
                checkpoint.clear(self.folder / "checkpoints")
                adapter.unlink(missing_ok=True)
                (self.folder / "log.csv").unlink(missing_ok=True)
        elif before is not None and record.get("finished") and adapter.is_file():
            self._say("finished", f"this run is finished; its adapter is {adapter}")
            return Finetuned(self.folder, adapter, adapters.read_card(adapter), int(record.get("steps", 0)))
        self.fabric.barrier()
        if self.leads:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot write in {self.folder}: {error.strerror or error}") from error
            self._record({"command": self.job.command, "settings": settings, "finished": False})
        return None

    def _record(self, content: Mapping[str, Any]) -> None:
        with replacing(self.folder / "run.json", overwrite=True) as temporary:
            temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")

    def _save(self) -> None:
        if not self.leads:
            return
        checkpoint.save(
            self.folder / "checkpoints",
            self.state.step,
            {
                "state": json.dumps(vars(self.state)),
                "weights": {name: parameter.detach().cpu() for name, parameter in self.parameters.items()},
                "average": {name: tensor.cpu() for name, tensor in self.average.items()},
                "best": self.best_weights,
                "optimiser": self.plain_optimiser.state_dict(),
                "plateau": json.dumps(self.plateau.state_dict()),
                "precision": self.fabric.strategy.precision.state_dict(),
                "rng": torch.get_rng_state(),
            },
        )
        self._write_log()

    def _resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        self.fabric.barrier()
        kept = checkpoint.latest(self.folder / "checkpoints")
        if kept is None:
            return
        self.state = _State(**json.loads(kept["state"]))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(kept["weights"][name])
                self.average[name].copy_(kept["average"][name])
        self.best_weights = dict(kept["best"])
        self.plain_optimiser.load_state_dict(kept["optimiser"])
        self.plateau.load_state_dict(json.loads(kept["plateau"]))
        self.fabric.strategy.precision.load_state_dict(kept["precision"])
        torch.set_rng_state(kept["rng"])
        self._say("resumed", f"going on after step {self.state.step} of {self.total}", self.state.step, self.total)

    def _note(self, **values: float) -> None:
        self.state.rows.append({"step": float(self.state.step), **values})

    def _write_log(self) -> None:
        """The table and TensorBoard's file, from the rows of the state: what was undone by a crash is in neither."""
        names = list(dict.fromkeys(name for row in self.state.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.6g}" for name, value in row.items()} | {"step": int(row["step"])}
            for row in self.state.rows
        )
        with replacing(self.folder / "log.csv", overwrite=True) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
        _write_tensorboard(self.folder / "tensorboard", self.state.rows)

    def _finish(self, settings: dict[str, Any], data: str) -> Finetuned:
        path = self.folder / "adapter.safetensors"
        best = next((row for row in self.state.rows if row["step"] == self.state.best_step and "dice" in row), {})
        before = next((row for row in self.state.rows if row["step"] == 0 and "dice" in row), {})
        metrics = {
            "val_dice": {name.removeprefix("dice").strip() or "mean": v for name, v in best.items() if "dice" in name},
            "val_dice_before": {
                name.removeprefix("dice").strip() or "mean": v for name, v in before.items() if "dice" in name
            },
            "best_step": self.state.best_step,
            "steps": self.state.step,
        }
        card = AdapterCard(
            name=self.recipe.name or self.folder.name,
            base=self.recipe.model,
            base_sha256=self.weights_hash,
            trained=self.recipe.trained,
            prompts=_kinds_of(self.recipe, self.scenes, self.frame),
            summary=self.recipe.summary,
            data=data,
            licence=self.recipe.licence,
            seed=self.recipe.seed,
            recipe=settings["recipe"],
            metrics=metrics,
            versions=_versions(),
            command=self.job.command,
        )
        if self.leads:
            chosen = self.best_weights or self._current()
            adapters.save(adapters.extracted(self.network, card, weights=chosen), path, half=self.recipe.half)
            self._write_log()
            self._record(
                {
                    "command": self.job.command,
                    "settings": settings,
                    "finished": True,
                    "steps": self.state.step,
                    "seconds": round(self.state.seconds, 1),
                    "metrics": metrics,
                    "data": data,
                    "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
                }
            )
            checkpoint.clear(self.folder / "checkpoints")
        self.fabric.barrier()
        stopped = "no better one came, so it stopped early; " if self.state.step < self.total else ""
        best_text = f"; best Dice on val {self.state.best:.4f}, at step {self.state.best_step}" if best else ""
        self._say("finished", f"{stopped}{self.state.step} steps{best_text}", self.state.step, self.total)
        return Finetuned(self.folder, path, card, self.state.step)

    def _say(
        self, kind: EventKind, text: str, done: int = 0, total: int = 0, *, values: Mapping[str, float] | None = None
    ) -> None:
        if self.listener is not None:
            self.listener(Event(kind, text, done, total, values or {}))


def _kinds_of(recipe: Recipe, scenes: Sequence[Scene], frame: Frame) -> tuple[PromptKind, ...]:
    """Which kinds of prompts the mix holds, seen by drawing each of them once; and what the base was trained with."""
    kinds: dict[PromptKind, None] = dict.fromkeys(catalogue.card(recipe.model).prompts.trained)
    names: dict[type, PromptKind] = {Box: "box", Points: "points", Scribble: "scribble", MaskPrompt: "mask"}
    for prompt in recipe.prompts:
        if prompt.share:
            item = training_items([scenes[0]], [(0, 0)], [prompt], frame=frame, epoch=0, seed=0)[0]
            kinds |= dict.fromkeys(names[type(one)] for one in item.prompts)
    return tuple(kinds)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("palpate", "torch", "transformers", "peft", "lightning-fabric", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_tensorboard(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    from torch.utils.tensorboard.writer import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink(missing_ok=True)
    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    tag = name if not name.startswith("dice") else f"val/{name}"
                    writer.add_scalar(tag, value, int(row["step"]))


__all__ = ["Event", "Finetuned", "Listener", "finetune"]
