"""Fine-tuning: a promptable model learns from labelled images, and from prompts as people really draw them.

    RUN/adapter.safetensors the result: what was learned, with its card

Beside it lies what the engine of training leaves in a run's folder (`palpate.training.engine`). Which scene, which
object and which prompt come when follows from the seed (`palpate.training.items`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from palpate.datasets.case import Case
from palpate.errors import DatasetError
from palpate.inference.embedding_cache import EmbeddingCache, bound_of, default_folder
from palpate.inference.environment import environment
from palpate.models import adapters, catalogue
from palpate.models.cards import AdapterCard, adapter_card
from palpate.models.promptable import PromptKind
from palpate.prompts.types import Box, MaskPrompt, Points, Scribble
from palpate.training.data import cases_for, described
from palpate.training.embedding import embed
from palpate.training.engine import CHECKPOINT_SECONDS, train
from palpate.training.items import (
    NOTHING_THERE,
    Item,
    in_an_epoch,
    judged_places,
    named,
    order_of,
    training_items,
    validation_items,
)
from palpate.training.overlays import draw_samples
from palpate.training.recipe import Recipe
from palpate.training.run_folder import RunFolder
from palpate.training.scenes import Scene, Views
from palpate.training.student import Student, student
from palpate.training.task import Batch, Done, Event, Listener, Plan, Verdict
from palpate.training.validation import Measured, measure

LOOKED_AT = 200
"""How many scenes are tried to see what a strategy gives."""


@dataclass(frozen=True)
class Finetuned:
    """What came of a run."""

    folder: Path
    adapter: Path
    card: AdapterCard
    steps: int


@dataclass(frozen=True)
class _Order:
    """All that a process needs to know of what is learned; it can be pickled."""

    recipe: Recipe
    folder: Path
    cases: tuple[Sequence[Case], Sequence[Case]] | None
    cache: Path
    cache_bytes: int


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
    order = _Order(
        recipe=recipe,
        folder=Path(folder),
        cases=cases,
        cache=cache or default_folder(),
        cache_bytes=cache_bytes or bound_of(cache or default_folder()),
    )
    return train(
        partial(_FineTuning, order=order),
        returns=Finetuned,
        precision=recipe.precision,
        device=device,
        devices=devices,
        nodes=nodes,
        threads=threads,
        command=command,
        overwrite=overwrite,
        checkpoint_seconds=checkpoint_seconds,
        listener=listener,
    )


class _FineTuning:
    """The task (see `palpate.training.task`): adapters of a network, by losses of single objects."""

    def __init__(self, fabric: Any, *, order: _Order) -> None:
        self.fabric, self.order, self.recipe = fabric, order, order.recipe
        self.student = student(self.recipe, EmbeddingCache(order.cache, max_bytes=order.cache_bytes), fabric.device)
        self.folder = RunFolder(order.folder)
        self.weights = self.student.weights
        self.optimiser = self.recipe.optimiser
        self.settings: Mapping[str, Any] = self._settings()
        self._cases = order.cases or cases_for(self.recipe.data, seed=self.recipe.seed)
        self._ordered: tuple[int, list[int]] = (-1, [])

    def _settings(self) -> dict[str, Any]:
        # Where files lie decides nothing and is nobody's business once the card is given on. Their hashes are compared.
        recipe = self.recipe.described()
        recipe = {**recipe, "weights": None, "data": {**recipe["data"], "path": "", "labels": None}}
        return {"recipe": recipe, "weights_hash": self.student.runtime.weights_hash}

    # --- The data -----------------------------------------------------------------------------------------------------

    def gather(self, tell: Listener) -> Plan:
        recipe, (train_cases, val_cases) = self.recipe, self._cases
        self.scenes = self._embedded(train_cases, recipe.data.views(recipe.seed), tell)
        val_scenes = self._embedded(val_cases, Views(), tell)  # people's images, as they are
        if not self.scenes:
            raise DatasetError("no image of the training data has an object that is large enough to be asked for")
        self.validation = validation_items(
            val_scenes,
            recipe.validation.prompts,
            frame=self.student.frame,
            seed=recipe.seed,
            objects=recipe.validation.objects,
            pixels=self.student.pixels,
        )
        shown = {(scene.case.dataset, scene.case.name) for scene in self.scenes}
        empty = sum((case.dataset, case.name) not in shown for case in train_cases)
        few = f" ({empty} of {len(train_cases)} images show no object that is large enough)" if empty else ""
        self.data = described(train_cases, val_cases)
        asked = in_an_epoch(self.scenes, balance=recipe.data.balance)
        self.plan = Plan(
            epochs=recipe.epochs,
            steps_an_epoch=recipe.steps or math.ceil(asked / (recipe.batch * recipe.accumulate)),
            batch=recipe.batch,
            accumulate=recipe.accumulate,
            patience=recipe.patience,
            seed=recipe.seed,
            validate_every=recipe.validation.every,
            validated=tuple(name for name, items in self.validation.items() if items),
            asked=sum(map(len, self.validation.values())),
            data_sha256=_data_hash([*self.scenes, *val_scenes]),
            data=self.data,
            size=f"{len(self.scenes)} scenes{few}",
            unit="objects",
            makes="adapter",
            warning=self._too_many(),
        )
        return self.plan

    def _embedded(self, cases: Sequence[Case], views: Views, tell: Listener) -> list[Scene]:
        """The scenes of these cases; with a frozen encoder, every process encodes its part of what is missing."""
        data, pupil = self.recipe.data, self.student
        if pupil.moves_encoder and not self.recipe.loss.teacher:
            return [sight.scene for case in cases for sight in pupil.sights(case, views)]

        def told(done: int, total: int) -> None:
            tell(Event("embedding", "encoding images that were never encoded", done, total))

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

    def _too_many(self) -> str:
        """A warning, where the cache cannot hold what each epoch reads: every image would be encoded in every epoch."""
        if self.student.moves_encoder:
            return ""
        one = self.student.embedding(self.scenes[0])
        size = sum(array.nbytes for array in (one.features, *one.levels))
        scenes = [*self.scenes, *(item.scene for items in self.validation.values() for item in items)]
        needed = len({scene.key for scene in scenes}) * size
        if needed <= self.order.cache_bytes:
            return ""
        room = f"the embeddings take {needed / 1e9:.1f} GB and the cache may hold {self.order.cache_bytes / 1e9:.1f} GB"
        return f"; {room}, so images will be encoded again and again: allow it more"

    # --- A step -------------------------------------------------------------------------------------------------------

    def prepare(self, step: int) -> list[Batch]:
        epoch, within = divmod(step, self.plan.steps_an_epoch)
        order = self._order(epoch)
        batches: list[Batch] = []
        for number in range(self.recipe.accumulate):
            start = within * self.plan.per_step + number * self.recipe.batch
            places = [(place, order[place]) for place in range(start, start + self.recipe.batch)]
            items = training_items(
                self.scenes,
                places[self.fabric.global_rank :: self.fabric.world_size],
                self.recipe.prompts,
                frame=self.student.frame,
                epoch=epoch,
                seed=self.recipe.seed,
                pixels=self.student.pixels,
            )
            batches.append(Batch(items, [item.scene.name for item in items], sum(item.stands_in for item in items)))
        return batches

    def _order(self, epoch: int) -> list[int]:
        if self._ordered[0] != epoch:
            count = self.plan.steps_an_epoch * self.plan.per_step
            order = order_of(
                self.scenes, epoch=epoch, seed=self.recipe.seed, count=count, balance=self.recipe.data.balance
            )
            self._ordered = (epoch, order)
        return self._ordered[1]

    def losses(self, items: Sequence[Item]) -> Float[Tensor, " item"]:
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
        judged = judged_places([item.judged for item in items], target.shape[1:], self.fabric.device)
        if judged is not None:
            # Neither right nor wrong: surely nothing there, as the target says, and no gradient.
            logits = torch.where(judged, logits.float(), NOTHING_THERE)
            target, teacher, own = (None if one is None else one * judged for one in (target, teacher, own))
            assert target is not None
        return loss.of(logits, iou, target, teacher=teacher, own=own)

    # --- Validation ---------------------------------------------------------------------------------------------------

    def measure(self, heed: Callable[[], None]) -> Verdict | None:
        samples = self.recipe.validation.overlays if self.fabric.global_rank == 0 else 0
        found = measure(self.student, self.validation, fabric=self.fabric, samples=samples, heed=heed)
        if not found.dice:
            return None
        overall = float(np.mean([found.dice[named(prompt)] for prompt in self.recipe.validation.prompts]))
        return Verdict(overall, found.dice, partial(self._draw, found))

    def _draw(self, found: Measured, path: Path) -> None:
        if found.samples:
            draw_samples([(item, self.student.pixels(item.scene), mask) for item, mask in found.samples], path)

    # --- What comes of it ---------------------------------------------------------------------------------------------

    def finish(self, done: Done) -> Finetuned:
        card = AdapterCard(
            name=self.recipe.name or self.folder.path.name,
            base=self.recipe.model,
            base_sha256=self.student.runtime.weights_hash,
            trained=self.recipe.trained,
            prompts=_kinds_of(self.recipe, self.scenes, self.student),
            summary=self.recipe.summary,
            data=self.data,
            licence=self.recipe.licence,
            seed=self.recipe.seed,
            recipe=done.settings["recipe"],
            metrics=done.metrics,
            versions=dict(environment()),
            command=done.command,
        )
        if done.weights is not None:
            made = adapters.extracted(self.student.network, card, weights=done.weights)
            adapters.save(made, self.folder.result, half=self.recipe.half)
        return Finetuned(self.folder.path, self.folder.result, card, done.steps)

    def read(self, record: Mapping[str, Any]) -> Finetuned:
        adapter = self.folder.result
        return Finetuned(self.folder.path, adapter, adapter_card(adapter), int(record.get("steps", 0)))


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


__all__ = ["Event", "Finetuned", "Listener", "finetune"]
