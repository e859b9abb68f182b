"""Distillation: an image encoder learns to give the embeddings of another one.

The teacher sees each view once, and its embeddings are kept with all others. Labels are looked at for validation, and
to choose slices of volumes.
Gao et al. 2024 (Swin-LiteMedSAM, arXiv 2409.07172) call this stage 1, and train the whole model with prompts and labels
after it, which is `palpate.training.two_stages`; MobileSAM and LiteMedSAM came about in the same way.

Both see an image in the same place on the canvas: a teacher that stretches images to its canvas (MedSAM) is shown them
with the student's padding instead, so that cell i of the one is about the same pixels as cell i of the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from palpate.datasets.case import Case
from palpate.errors import DatasetError, OutputError, SettingError
from palpate.inference.batching import batch_of
from palpate.inference.embedding_cache import EmbeddingCache, bound_of, default_folder
from palpate.inference.environment import environment
from palpate.inference.runtimes.torch import TorchRuntime
from palpate.models import catalogue, weights
from palpate.models.catalogue import ModelCard
from palpate.models.promptable import ImageEmbedding
from palpate.training.data import cases_for, described
from palpate.training.distill_recipe import RANDOM, RELEASED, TEACHER, WORDS, DistillRecipe
from palpate.training.embedding import embed
from palpate.training.engine import CHECKPOINT_SECONDS, train
from palpate.training.items import Item, in_an_epoch, order_of, validation_items
from palpate.training.moving_weights import MovingWeights
from palpate.training.overlays import draw_samples
from palpate.training.pictures import Pictures
from palpate.training.run_folder import RunFolder
from palpate.training.scenes import Scene, Sight, Views, rng_for, sights_of
from palpate.training.task import Batch, Done, Event, Listener, Plan, Verdict
from palpate.training.validation import Measured, measure

ABOUT = "palpate_distilled"
"""The name in the file's metadata under which JSON says how it was made."""


@dataclass(frozen=True)
class Distilled:
    """What came of it: a checkpoint of the student for `--weights`, how it was made, and whether it is ready for use.

    `ready` is false where the student's decoder has parts that the teacher's does not have; they are random still.
    """

    path: Path
    student: str
    about: dict[str, Any]
    steps: int
    ready: bool


def distill(
    recipe: DistillRecipe,
    output: str | Path,
    *,
    folder: str | Path | None = None,
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
) -> Distilled:
    """Teach an encoder as the recipe says, and write the whole student into the checkpoint `output`.

    Beside the encoder it holds the student's own decoder or, where the student starts from random weights, the
    teacher's, as far as the student's has the same parts; such a student also starts with the teacher's neck, the last
    layers of the encoder, as far as its own is like it. The record of the run lies in `folder` (beside the output,
    its name with `.run` at the end, unless given). A run that was stopped is taken up where it was. The other arguments
    are those of `palpate.training.finetune.finetune`.

    Raises:
        SettingError: what cannot be taught, or a device that does not exist.
        DatasetError: no cases, or cases that cannot be read.
        OutputError: the folder holds another run, or cannot be written.
        WeightsError: the teacher's weights are missing, or those the student starts from.
    """
    output = Path(output)
    would_not_replace(recipe, output)
    order = _Order(
        recipe=recipe,
        output=output,
        folder=Path(folder) if folder is not None else output.with_suffix(".run"),
        cases=cases,
        cache=cache or default_folder(),
        cache_bytes=cache_bytes or bound_of(cache or default_folder()),
    )
    return train(
        partial(_Distillation, order=order),
        returns=Distilled,
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


def would_not_replace(recipe: DistillRecipe, output: Path) -> None:
    """Raises `OutputError` if the result would take the place of a checkpoint that is learned from."""
    for own in (recipe.start, recipe.teacher_weights):
        if own is not None and Path(own).resolve() == output.resolve():
            raise OutputError(f"{output} would replace what is learned from; choose another name for the result")


@dataclass(frozen=True)
class _Order:
    """All that a process needs to know of what is learned; it can be pickled."""

    recipe: DistillRecipe
    output: Path
    folder: Path
    cases: tuple[Sequence[Case], Sequence[Case]] | None
    cache: Path
    cache_bytes: int


@dataclass(frozen=True, eq=False)
class _Lesson:
    """A view as the student sees it, and what the teacher made of it."""

    scene: Scene
    canvas: Float32[np.ndarray, "3 height width"]
    wanted: Float[np.ndarray, "channel row column"] | None


class _Distillation:
    """The task; see `palpate.training.task`."""

    def __init__(self, fabric: Any, *, order: _Order) -> None:
        self.fabric, self.order, self.recipe = fabric, order, order.recipe
        recipe = order.recipe
        self.folder = RunFolder(order.folder, result=order.output)
        self._cases = order.cases or cases_for(recipe.data, seed=recipe.seed)
        self.card = catalogue.card(recipe.student)
        self.network, started_from = _student(self.card, recipe)
        self.network.to(fabric.device)
        self.runtime = _teacher(recipe, padded_as=self.card, device=fabric.device)
        self.cache = EmbeddingCache(order.cache, max_bytes=order.cache_bytes)
        self.pictures = Pictures(self._sights)
        self.left_random: list[str] = []
        if recipe.start in (RANDOM, TEACHER):
            teacher = cast("nn.Module", self.runtime.network)
            self.left_random = _take_over(teacher, self.network)
            if recipe.start == TEACHER:
                _copy_encoder(teacher, self.network, recipe)
            else:
                _copy_neck(teacher, self.network)
        self.network.eval().requires_grad_(requires_grad=False)
        self.encoder = self.network.get_submodule("image_encoder").requires_grad_(requires_grad=True)
        moving = {f"image_encoder.{name}": parameter for name, parameter in self.encoder.named_parameters()}
        self.weights = MovingWeights(moving, ema=recipe.optimiser.ema)
        self.optimiser = recipe.optimiser
        self.settings: Mapping[str, Any] = self._settings(started_from)
        self._ordered: tuple[int, list[int]] = (-1, [])

    def _settings(self, started_from: str) -> dict[str, Any]:
        # Where files lie decides nothing and is nobody's business once the file is given on. Their hashes are compared.
        recipe = self.recipe.described()
        start = recipe["start"] if recipe["start"] in WORDS else ""
        data = {**recipe["data"], "path": "", "labels": None}
        return {
            "recipe": {**recipe, "start": start, "teacher_weights": None, "data": data},
            "started_from": started_from,
            "teacher": self.runtime.weights_hash,
            "output": self.order.output.name,  # a run belongs to its file
        }

    def _sights(self, case: Case) -> Generator[Sight]:
        data = self.recipe.data
        yield from sights_of(
            case,
            frame=self.runtime.frame,
            encoder_hash=self.runtime.encoder_hash,
            views=data.views(self.recipe.seed),
            slices_per_volume=data.slices_per_volume,
            min_pixels=data.min_pixels,
            intensity=data.intensity,
            absent=0,
        )

    # --- The data -----------------------------------------------------------------------------------------------------

    def gather(self, tell: Listener) -> Plan:
        recipe, (train_cases, val_cases) = self.recipe, self._cases
        self._check_shapes()
        # What shows no object is seen as well; it only cannot be asked for.
        self.scenes = self._embedded(train_cases, recipe.data.views(recipe.seed), tell, absent=0)
        val_scenes = self._embedded(val_cases, Views(), tell, absent=None)
        if not self.scenes:
            raise DatasetError("there is nothing to see: of volumes, slices count on which something is labelled")
        self.validation = validation_items(
            val_scenes,
            recipe.validation.prompts,
            frame=self.runtime.frame,
            seed=recipe.seed,
            objects=recipe.validation.objects,
            pixels=self.pictures,
        )
        self.data = described(train_cases, val_cases)
        shown = in_an_epoch(self.scenes, balance=recipe.data.balance)
        self.plan = Plan(
            epochs=recipe.epochs,
            steps_an_epoch=recipe.steps or math.ceil(shown / (recipe.batch * recipe.accumulate)),
            batch=recipe.batch,
            accumulate=recipe.accumulate,
            patience=recipe.patience,
            seed=recipe.seed,
            validate_every=recipe.validation.every,
            validated=tuple(name for name, items in self.validation.items() if items),
            asked=sum(map(len, self.validation.values())),
            data_sha256=_data_hash([*self.scenes, *val_scenes]),
            data=self.data,
            size=f"{len(self.scenes)} views",
            unit="views",
            makes="checkpoint",
            warning=self._too_many(),
            measures_error=True,
        )
        return self.plan

    def _embedded(self, cases: Sequence[Case], views: Views, tell: Listener, *, absent: int | None) -> list[Scene]:
        """The scenes of these cases; every process lets the teacher encode its part of what is missing."""
        data = self.recipe.data

        def told(done: int, total: int) -> None:
            tell(Event("embedding", "the teacher encodes images that it never encoded", done, total))

        def part(some: Sequence[Case], listener: Callable[[int, int], None] | None) -> tuple[Scene, ...]:
            return embed(
                some,
                self.runtime,
                self.cache,
                views=views,
                slices_per_volume=data.slices_per_volume,
                min_pixels=data.min_pixels,
                intensity=data.intensity,
                absent=absent,
                progress=listener,
            ).scenes

        if self.fabric.world_size > 1:
            part(cases[self.fabric.global_rank :: self.fabric.world_size], None)
            self.fabric.barrier()
        return list(part(cases, told))

    def _check_shapes(self) -> None:
        """Before hours of encoding: one cell of the student must be one of the teacher."""
        nothing = np.zeros((8, 8), dtype=np.uint8)
        wanted = self.runtime.encode(self.runtime.frame.canvas(nothing)[None]).features.shape[1:]
        with torch.no_grad():
            found = self.encoder.eval()(self._tensor([self.card.frame.canvas(nothing)]))
        student = self.recipe.student
        if not isinstance(found, Tensor):
            raise SettingError(f"the encoder of {student} gives several maps, and one alone cannot be taught to it")
        if tuple(found.shape[1:]) != tuple(wanted):
            raise SettingError(
                f"{student} gives embeddings of {tuple(found.shape[1:])}, and {self.recipe.teacher} of "
                f"{tuple(wanted)}; choose two whose embeddings have the same shape"
            )

    def _too_many(self) -> str:
        """A warning, where the cache cannot hold what each epoch reads: views would be encoded in every epoch."""
        one = self.taught(self.scenes[0])
        size = sum(array.nbytes for array in (one.features, *one.levels))
        needed = len({scene.key for scene in self.scenes}) * size
        if needed <= self.order.cache_bytes:
            return ""
        room = f"the embeddings take {needed / 1e9:.1f} GB and the cache may hold {self.order.cache_bytes / 1e9:.1f} GB"
        return f"; {room}, so views will be encoded again and again: allow it more (--max-size)"

    # --- A step -------------------------------------------------------------------------------------------------------

    def prepare(self, step: int) -> list[Batch]:
        epoch, within = divmod(step, self.plan.steps_an_epoch)
        if self._ordered[0] != epoch:
            count, data = self.plan.steps_an_epoch * self.plan.per_step, self.recipe.data
            order = order_of(self.scenes, epoch=epoch, seed=self.recipe.seed, count=count, balance=data.balance)
            self._ordered = (epoch, order)
        batches: list[Batch] = []
        for number in range(self.recipe.accumulate):
            start = within * self.plan.per_step + number * self.recipe.batch
            places = range(start + self.fabric.global_rank, start + self.recipe.batch, self.fabric.world_size)
            scenes = [self.scenes[self._ordered[1][place]] for place in places]
            batches.append(Batch([self._lesson(scene) for scene in scenes], [scene.name for scene in scenes]))
        return batches

    def _lesson(self, scene: Scene) -> _Lesson:
        """Without what was pruned from the cache: another thread may ask, and encoding belongs to the main one."""
        found = self.cache.get(scene.key)
        wanted = None if found is None else np.asarray(found.features[0])
        return _Lesson(scene, self.card.frame.canvas(self.pictures(scene)), wanted)

    def taught(self, scene: Scene) -> ImageEmbedding:
        """The teacher's embedding of a view, from the cache; encoded anew where another run has pruned it."""
        found = self.cache.get(scene.key)
        if found is None:
            found = self.runtime.encode(self.runtime.frame.canvas(self.pictures(scene))[None])
            self.cache.put(scene.key, found)
        return found

    def given(self, scene: Scene) -> ImageEmbedding:
        """The teacher's embedding with the student's features in it."""
        canvas = self._tensor([self.card.frame.canvas(self.pictures(scene))])
        with self.fabric.autocast():
            features = self.encoder(canvas)
        return ImageEmbedding(features, self.taught(scene).levels)

    def _tensor(self, arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.fabric.device)

    def losses(self, items: Sequence[_Lesson]) -> Float[Tensor, " item"]:
        self.encoder.train(self.recipe.follows_batches)
        with self.fabric.autocast():
            found = self.encoder(self._tensor([item.canvas for item in items]))
        wanted = [
            np.asarray(self.taught(item.scene).features[0]) if item.wanted is None else item.wanted for item in items
        ]
        return self.error(found, self._tensor(wanted))

    def error(
        self,
        found: Float[Tensor, "view channel row column"],
        wanted: Float[Tensor, "view channel row column"],
    ) -> Float[Tensor, " view"]:
        """How far embeddings are from the teacher's."""
        difference = found.float() - wanted.float()
        return (difference.abs() if self.recipe.error == "l1" else difference.square()).mean(dim=(1, 2, 3))

    # --- Validation ---------------------------------------------------------------------------------------------------

    def measure(self, heed: Callable[[], None]) -> Verdict | None:
        if not any(self.validation.values()):
            return None
        self._calibrate(heed)
        samples = self.recipe.validation.overlays if self.fabric.global_rank == 0 else 0
        asked = _Asked(self)
        found = measure(asked, self.validation, fabric=self.fabric, samples=samples, heed=heed)
        return Verdict(
            float(np.mean(list(found.dice.values()))),
            found.dice,
            partial(self._draw, found),
            error=self._over_processes(asked.errors),
            by_error=self.recipe.chooses_by_error,
        )

    def _over_processes(self, errors: dict[str, float]) -> float:
        """The mean over views; several processes have some each."""
        gathered = [errors]
        if self.fabric.world_size > 1:
            gathered = [{} for _ in range(self.fabric.world_size)]
            torch.distributed.all_gather_object(gathered, errors)
        of_all = {key: error for part in gathered for key, error in part.items()}
        return float(np.mean([of_all[key] for key in sorted(of_all)]))

    def _calibrate(self, heed: Callable[[], None] = lambda: None) -> None:
        """Take the statistics of batch normalisation anew, with the weights as they are now (Wu and Johnson 2021,
        arXiv 2105.07576, who call it precise batch normalisation).

        They are the same whatever the steps before left behind, in every process and after an interruption.
        """
        self.encoder.eval()
        if not self.recipe.follows_batches:
            return
        chosen = rng_for(self.recipe.seed, "calibration").permutation(len(self.scenes))[: self.recipe.calibrated]
        at_once = max(1, self.recipe.batch // self.fabric.world_size)  # as many as training normalises by
        with torch.inference_mode(), _averaging(self.encoder):
            for start in range(0, len(chosen), at_once):
                heed()
                lessons = [self._lesson(self.scenes[i]) for i in chosen[start : start + at_once].tolist()]
                self.encoder(self._tensor([lesson.canvas for lesson in lessons]))

    def _draw(self, found: Measured, path: Path) -> None:
        if found.samples:
            draw_samples([(item, self.pictures(item.scene), mask) for item, mask in found.samples], path)

    # --- What comes of it ---------------------------------------------------------------------------------------------

    def finish(self, done: Done) -> Distilled:
        about = {
            "name": self.recipe.name or self.order.output.stem,
            "student": self.recipe.student,
            "teacher": self.recipe.teacher,
            "teacher_sha256": self.runtime.weights_hash,
            "left_random": self.left_random,
            "data": self.data,
            "licence": self.recipe.licence,
            "summary": self.recipe.summary,
            "recipe": done.settings["recipe"],
            "metrics": dict(done.metrics),
            "seed": self.recipe.seed,
            "versions": dict(environment()),
            "command": done.command,
        }
        if done.weights is not None:
            parameters = dict(self.network.named_parameters())
            with torch.no_grad():
                for name, tensor in done.weights.items():
                    parameters[name].copy_(tensor)
            self._calibrate()
            state = self.card.restore(dict(self.network.state_dict()))
            named = {"layout": self.card.layout, "licence": self.recipe.licence}
            weights.write_checkpoint(state, self.folder.result, about={**named, ABOUT: json.dumps(about, default=str)})
        return Distilled(self.folder.result, self.recipe.student, about, done.steps, not self.left_random)

    def read(self, record: Mapping[str, Any]) -> Distilled:
        about = read_about(self.folder.result)
        steps = int(record.get("steps", 0))
        return Distilled(self.folder.result, self.recipe.student, about, steps, not about.get("left_random"))


class _Asked:
    """The teacher's decoder with the student's embeddings, as `measure` asks a `Student`.

    `errors` are those of the embeddings that were asked for, by the scene's key.
    """

    def __init__(self, task: _Distillation) -> None:
        self._task = task
        self._decoder = task.runtime.network
        self.errors: dict[str, float] = {}

    def features(self, items: Sequence[Item]) -> ImageEmbedding:
        (item,) = items
        found = self._task.given(item.scene)
        features = cast("Tensor", found.features)
        wanted = torch.as_tensor(self._task.taught(item.scene).features, device=features.device)
        self.errors[item.scene.key] = float(self._task.error(features, wanted)[0])
        return found

    def mask(
        self, features: ImageEmbedding, item: Item, autocast: AbstractContextManager[Any]
    ) -> Bool[np.ndarray, "row column"]:
        with autocast:
            found = self._decoder.decode(features, batch_of([item.canvas]))
        return self._task.runtime.frame.image(found.logits[0, 0].float().cpu().numpy(), item.scene.shape) > 0


def read_about(path: Path) -> dict[str, Any]:
    """How a distilled checkpoint was made, from its metadata; empty for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            found = json.loads((opened.metadata() or {}).get(ABOUT, "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _student(card: ModelCard, recipe: DistillRecipe) -> tuple[nn.Module, str]:
    """The network that learns, and the hash of what it starts from (empty: random, from the seed, or the teacher)."""
    if recipe.start in (RANDOM, TEACHER):
        state = torch.random.get_rng_state()
        torch.manual_seed(recipe.seed)
        network = cast("nn.Module", card.build())
        torch.random.set_rng_state(state)
        return network, ""
    own = None if recipe.start == RELEASED else Path(recipe.start)
    loaded = weights.load(card, weights=own)
    return cast("nn.Module", loaded.model), loaded.weights_hash


def _teacher(recipe: DistillRecipe, *, padded_as: ModelCard, device: torch.device) -> TorchRuntime:
    """The teacher, shown images where the student is shown them."""
    card = catalogue.card(recipe.teacher)
    own = None if recipe.teacher_weights is None else Path(recipe.teacher_weights)
    loaded = weights.load(card, weights=own, device=device)
    loaded.model.frame = replace(loaded.model.frame, fit=padded_as.frame.fit)
    network = cast("nn.Module", loaded.model)
    network.requires_grad_(requires_grad=False)
    return TorchRuntime(loaded.model, card.name, loaded.weights_hash, loaded.encoder_hash, card.prompts, device)


def _take_over(teacher: nn.Module, student: nn.Module) -> list[str]:
    """Give the student the teacher's decoder, where it has the same parts; what it has of its own, by name."""
    given = teacher.get_submodule("prompt_decoder").state_dict()
    own = {n: t for n, t in student.state_dict(keep_vars=True).items() if not n.startswith("image_encoder.")}
    left: list[str] = []
    with torch.no_grad():
        for name, tensor in own.items():
            wanted = given.get(name.removeprefix("prompt_decoder."))
            if wanted is None or wanted.shape != tensor.shape:
                left.append(name)
            else:
                tensor.copy_(wanted)
    return left


def _copy_encoder(teacher: nn.Module, student: nn.Module, recipe: DistillRecipe) -> None:
    """Start from the teacher's encoder, where the student's has the same layers."""
    given = teacher.get_submodule("image_encoder").state_dict()
    own = student.get_submodule("image_encoder").state_dict(keep_vars=True)
    shared = [name for name, tensor in own.items() if name in given and given[name].shape == tensor.shape]
    if 2 * len(shared) < len(own):
        raise SettingError(
            f"{recipe.student} cannot start from {recipe.teacher}: of the {len(own)} tensors of its encoder "
            f"{len(shared)} are like the teacher's; start at random"
        )
    with torch.no_grad():
        for name in shared:
            own[name].copy_(given[name])


def _copy_neck(teacher: nn.Module, student: nn.Module) -> None:
    """Give the student's encoder the teacher's last layers, where it has the same ones in the same order.

    They end in a layer normalisation whose weights say how large embeddings are. At random that is 1; LiteMedSAM's are
    0.14 on average, and an optimiser that moves a weight by at most the learning rate in a step, 1e-3, takes almost a
    thousand steps to get there. Until then the student is further off than a constant would be.
    """
    necks = [
        list(network.get_submodule("image_encoder.neck").state_dict(keep_vars=True).values())
        for network in (teacher, student)
        if hasattr(network.get_submodule("image_encoder"), "neck")
    ]
    if len(necks) < 2 or len(necks[0]) != len(necks[1]):
        return
    with torch.no_grad():
        for given, own in zip(*necks, strict=True):
            if given.shape == own.shape:
                own.copy_(given)


@contextmanager
def _averaging(network: nn.Module) -> Generator[None]:
    """Batch normalisation forgets its statistics, and takes the mean over all batches while the block lasts."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()


def _data_hash(scenes: Sequence[Scene]) -> str:
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(f"{scene.name} {scene.key}\n".encode())
    return digest.hexdigest()


__all__ = ["Distilled", "distill", "read_about"]
