"""Learning prompts: from a few labelled images, a file that finds the same thing in all others.

The image encoder stays as it is, so every view of every image is encoded once and what is trained is small: a prompt
predictor, and beside it the decoder, LoRA on it, or nothing. Wahd et al. 2024 (Sam2Rad, arXiv 2409.06821).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import logit
from torch import Tensor, nn

from palpate.datasets.case import Case, Region
from palpate.errors import DatasetError
from palpate.inference.batching import alike, batch_of
from palpate.inference.embedding_cache import EmbeddingCache, bound_of, default_folder
from palpate.inference.environment import environment
from palpate.inference.runtimes.torch import TorchRuntime
from palpate.metrics import dice
from palpate.models import adapters, catalogue, weights
from palpate.models.cards import LearnedCard, learned_card
from palpate.models.frame import CanvasPrompt, Frame
from palpate.models.learned import Found, finder_for, save, tensors_of
from palpate.models.localiser import Localiser
from palpate.models.prompt_predictor import Items, LearnedPrompts
from palpate.models.promptable import ImageEmbedding
from palpate.training.embedding import embed
from palpate.training.engine import CHECKPOINT_SECONDS, train
from palpate.training.items import NOTHING_THERE, judged_places, order_of
from palpate.training.learn_data import asking, classes_of, described, few, one_modality, shown
from palpate.training.learn_items import LearningItem, LearningItems, Sought
from palpate.training.learn_recipe import LearnRecipe, usual_steps
from palpate.training.moving_weights import MovingWeights
from palpate.training.overlays import draw_found
from palpate.training.run_folder import RunFolder
from palpate.training.scenes import Scene, Views, rng_for
from palpate.training.task import Batch, Done, Event, Listener, Plan, Verdict

MICRO_BATCH = 8
"""Items that are decoded together; more only take more memory."""

SPOKEN_RATE = 0.125
"""The rate of a localiser's tokens and marks and of the object score, as a multiple of that of its convolutions."""

_SPOKEN = ("finder.predictor.class_tokens", "finder.predictor.marks")

KEPT_BYTES = 2 * 10**9
"""How much memory embeddings may take that are read again in every epoch."""


@dataclass(frozen=True)
class LearnedFrom:
    """What came of learning: the file, its card, and how many steps were taken."""

    path: Path
    card: LearnedCard
    steps: int


def learn(
    recipe: LearnRecipe,
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
) -> LearnedFrom:
    """Learn the prompts of one or several classes as the recipe says, and write them into the file `output`.

    The record of the run lies in `folder` (beside the output, its name with `.run` at the end, unless given). A run
    that was stopped is taken up where it was; one that is finished is not repeated. The other arguments are those of
    `palpate.training.finetune.finetune`.

    Raises:
        SettingError: what cannot be learned, or a device that does not exist.
        DatasetError: no cases, or cases that cannot be read, or a class that is in none of them.
        OutputError: the folder holds another run, or cannot be written.
        WeightsError: the base model's weights are missing.
    """
    output = Path(output)
    order = _Order(
        recipe=recipe,
        output=output,
        folder=Path(folder) if folder is not None else output.with_suffix(".run"),
        cases=cases,
        cache=cache or default_folder(),
        cache_bytes=cache_bytes or bound_of(cache or default_folder()),
    )
    return train(
        partial(_Learning, order=order),
        returns=LearnedFrom,
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


@dataclass(frozen=True)
class _Order:
    """All that a process needs to know of what is learned; it can be pickled."""

    recipe: LearnRecipe
    output: Path
    folder: Path
    cases: tuple[Sequence[Case], Sequence[Case]] | None
    cache: Path
    cache_bytes: int


class _Learning:
    """The task; see `palpate.training.task`."""

    def __init__(self, fabric: Any, *, order: _Order) -> None:
        self.fabric, self.order = fabric, order
        self.folder = RunFolder(order.folder, result=order.output)
        train_cases, val_cases = order.cases or few(order.recipe.data, seed=order.recipe.seed)
        self.steps = order.recipe.steps or usual_steps(len(train_cases))
        self.recipe = recipe = order.recipe.model_copy(update={"steps": self.steps})
        self.classes = classes_of(recipe.data.targets, train_cases)
        self._cases = tuple(asking(cases, self.classes) for cases in (train_cases, val_cases))

        card = catalogue.card(recipe.model)
        loaded = weights.load(card, weights=None if recipe.weights is None else Path(recipe.weights))
        self.network = cast("nn.Module", loaded.model)
        if recipe.variant == "high-res" and hasattr(self.network, "keep_levels"):
            self.network.keep_levels = True  # pyright: ignore[reportArgumentType]
        torch.manual_seed(recipe.seed)
        self.card = LearnedCard(
            name=recipe.name or order.output.stem,
            base=recipe.model,
            base_sha256=loaded.weights_hash,
            classes=self.classes,
            variant=recipe.variant,
            tokens=recipe.tokens,
            trained=recipe.trained,
            images=len(train_cases),
            intensity=recipe.data.intensity or "",
            modality=one_modality(train_cases),
            summary=recipe.summary,
            licence=recipe.licence,
            seed=recipe.seed,
        )
        self.finder = finder_for(self.network, self.card)
        self.network.eval().requires_grad_(requires_grad=False)
        moved = {} if recipe.trained is None else adapters.trainable(self.network, recipe.trained)
        rates = {f"network.{name}": float(recipe.decoder_rate) for name in moved}
        # The finder's come first: theirs is the rate that the log tells.
        moving = {f"finder.{name}": parameter for name, parameter in self.finder.named_parameters()}
        moving |= {f"network.{name}": parameter for name, parameter in moved.items()}
        if isinstance(self.finder.predictor, Localiser):
            # Beside its convolutions, what speaks to the decoder: nothing is gained by shouting.
            spoken = [name for name in moving if name.startswith(("finder.object", *_SPOKEN))]
            rates |= dict.fromkeys(spoken, SPOKEN_RATE)
        self.network.to(fabric.device)
        self.finder.to(fabric.device)
        self.finder.decoder.objects_at_once = MICRO_BATCH
        self.weights = MovingWeights(moving, ema=recipe.optimiser.ema, rates=rates)
        self.optimiser = recipe.optimiser
        encoder_hash = weights.encoder_hash(self.network)  # once more: another one, where levels are kept
        self.runtime = TorchRuntime(
            cast("Any", self.network), card.name, loaded.weights_hash, encoder_hash, card.prompts, fabric.device
        )
        self.sought = Sought(self.classes, self.frame)
        self.cache = EmbeddingCache(order.cache, max_bytes=order.cache_bytes)
        self.settings: Mapping[str, Any] = self._settings()
        self._ordered: tuple[int, list[int]] = (-1, [])
        self._kept: dict[str, ImageEmbedding] = {}

    @property
    def frame(self) -> Frame:
        return self.runtime.frame

    def _settings(self) -> dict[str, Any]:
        # Where files lie decides nothing and is nobody's business once the card is given on. Their hashes are compared.
        recipe = self.recipe.described()
        recipe = {**recipe, "weights": None, "data": {**recipe["data"], "path": "", "labels": None}}
        classes = [[one.name, one.value] for one in self.classes]
        images = [f"{case.dataset}/{case.name}" for case in self._cases[0]]
        return {
            "recipe": recipe,
            "classes": classes,
            "images": images,
            "output": self.order.output.name,  # a run belongs to its file
            "weights_hash": self.runtime.weights_hash,
        }

    # --- The data -----------------------------------------------------------------------------------------------------

    def gather(self, tell: Listener) -> Plan:
        recipe, (train_cases, val_cases) = self.recipe, self._cases
        scenes = self._embedded(train_cases, tell, moved=True)
        # A part that is too small to be asked for is neither present nor absent; views of nothing else ask nothing.
        self.scenes = [scene for scene in scenes if scene.regions or self.sought.absent(scene)]
        val_scenes = self._embedded(val_cases, tell, moved=False)
        if not any(scene.regions for scene in self.scenes):
            raise DatasetError("no image shows any of the classes, or only parts that are too small; check --target")
        self._standardise()
        if any(scene.regions and self.sought.absent(scene) for scene in self.scenes):
            # Where either could have been asked for, that is how often it was there.
            self.finder.presumed.fill_(float(logit(np.clip(recipe.present, 0.01, 0.99))))
        beside = recipe.beside if isinstance(self.finder.predictor, Localiser) else 0
        self.items = LearningItems(self.scenes, self.sought, recipe, beside=beside)
        pairs = [(scene, i) for scene in val_scenes for i, _ in self.sought.there(scene)]
        chosen = rng_for(recipe.seed, "validation").permutation(len(pairs))[: recipe.validated].tolist()
        self.validation = [pairs[i] for i in sorted(chosen)]
        self.data = described(train_cases, val_cases)
        self.steps_an_epoch = min(recipe.validate_every, self.steps)
        names = [f"{one.name}" for i, one in enumerate(self.classes) if any(c == i for _, c in self.validation)]
        self.plan = Plan(
            epochs=-(-self.steps // self.steps_an_epoch),
            steps_an_epoch=self.steps_an_epoch,
            batch=recipe.batch,
            accumulate=1,
            patience=None,
            seed=recipe.seed,
            validate_every=1,
            validated=tuple(names),
            asked=len(self.validation),
            data_sha256=_data_hash([*self.scenes, *val_scenes]),
            data=self.data,
            size=f"{len(self.scenes)} views of {shown(train_cases)}",
            unit="items",
            makes="learned prompts",
            steps=self.steps,
        )
        return self.plan

    def _embedded(self, cases: Sequence[Case], tell: Listener, *, moved: bool) -> list[Scene]:
        """The scenes of these cases; every process encodes its part of what is missing."""
        data, count = self.recipe.data, len(self.classes)

        def told(done: int, total: int) -> None:
            tell(Event("embedding", "encoding images that were never encoded", done, total))

        def part(some: Sequence[Case], listener: Callable[[int, int], None] | None) -> list[Scene]:
            return list(
                embed(
                    some,
                    self.runtime,
                    self.cache,
                    views=data.views(self.recipe.seed, of_volume=False, classes=count) if moved else Views(),
                    views_of_volumes=data.views(self.recipe.seed, of_volume=True, classes=count) if moved else Views(),
                    slices_per_volume=data.slices_per_volume,
                    min_pixels=data.min_pixels,
                    intensity=data.intensity,
                    absent=data.absent_slices,
                    progress=listener,
                ).scenes
            )

        if self.fabric.world_size > 1:
            part(cases[self.fabric.global_rank :: self.fabric.world_size], None)
            self.fabric.barrier()
        return part(cases, told)

    def _standardise(self) -> None:
        """A localiser's mean and scale, and where its maps begin: with the share of the cells that each class covers.

        Where views are mirrored, where something lies says nothing about what it is.
        By all processes alike, and again when a run is taken up, where the weights then follow from the checkpoint.
        """
        predictor = self.finder.predictor
        if not isinstance(predictor, Localiser):
            return
        count, total, squares = 0, np.zeros(predictor.channels), np.zeros(predictor.channels)
        for scene in self.scenes:
            cells = np.asarray(self._embedding(scene).features[0], dtype=np.float64)
            count += cells[0].size
            total, squares = total + cells.sum(axis=(1, 2)), squares + np.square(cells).sum(axis=(1, 2))
        mean = total / count
        with torch.no_grad():
            covered, cells = torch.zeros(len(self.classes)), torch.zeros(len(self.classes))
            for scene in self.scenes:
                shares, counted = self.sought.shares(scene, self.finder.decoder.grid_size)
                covered, cells = covered + (shares * counted).sum(dim=(1, 2)), cells + counted.sum(dim=(1, 2))
            assert predictor.out.bias is not None
            predictor.out.bias.copy_((covered / cells.clamp(min=1)).clamp(1e-4, 0.5).logit())
        views = self.recipe.data.views(self.recipe.seed, of_volume=False, classes=len(self.classes))
        predictor.placed.fill_(0.0 if views.mirrored else 1.0)
        predictor.mean.copy_(torch.from_numpy(mean))
        predictor.scale.copy_(torch.from_numpy(np.sqrt((squares / count - mean**2).clip(min=1e-12))))

    def _features(self, scenes: Sequence[Scene]) -> tuple[Tensor, tuple[Tensor, ...]]:
        found = [self._embedding(scene) for scene in scenes]
        held = ImageEmbedding(
            np.concatenate([one.features for one in found]),
            tuple(np.concatenate([one.levels[i] for one in found]) for i in range(len(found[0].levels))),
        )
        return self.finder.held(held)

    def _embedding(self, scene: Scene) -> ImageEmbedding:
        if scene.key not in self._kept:
            found = self.cache.get(scene.key)
            if found is None:  # another run has pruned it
                raise DatasetError(
                    f"the embedding of {scene.name} is gone from the cache, which is too small for what is learned "
                    "from; allow it more (--max-size)"
                )
            one = sum(array.nbytes for array in (found.features, *found.levels))
            if (len(self._kept) + 1) * one > KEPT_BYTES:
                return found
            self._kept[scene.key] = found
        return self._kept[scene.key]

    # --- A step -------------------------------------------------------------------------------------------------------

    def prepare(self, step: int) -> list[Batch]:
        epoch, within = divmod(step, self.steps_an_epoch)
        count = self.steps_an_epoch * self.recipe.batch
        if self._ordered[0] != epoch:
            order = order_of(self.scenes, epoch=epoch, seed=self.recipe.seed, count=count, balance="images")
            self._ordered = (epoch, order)
        first = within * self.recipe.batch
        places = range(first + self.fabric.global_rank, first + self.recipe.batch, self.fabric.world_size)
        items = [self.items.draw(self.scenes[self._ordered[1][place]], epoch, place) for place in places]
        return [Batch(items, [item.scene.name for item in items])]

    def losses(self, items: Sequence[LearningItem]) -> Float[Tensor, " item"]:
        self.finder.train()
        device = self.fabric.device
        target = torch.from_numpy(np.stack([item.target for item in items])).to(device)
        features, levels = self._features([item.scene for item in items])
        with self.fabric.autocast():
            found, said, maps = self._asked(features, levels, items)
        logits, coarse = found.logits.float(), None if maps is not None else said.mask_logits[:, 0].float()
        judged = judged_places([item.judged for item in items], target.shape[1:], device)
        if judged is not None:
            # Neither right nor wrong: surely nothing there, as the target says, and no gradient.
            logits = torch.where(judged, logits, NOTHING_THERE)
            coarse = None if coarse is None else torch.where(judged, coarse, NOTHING_THERE)
            target = target * judged
        losses = self.recipe.loss.of(
            logits=logits,
            predicted_iou=found.predicted_iou,
            object_logits=found.object_logits,
            target=target,
            present=_flags([item.present for item in items], device),
            learned=_flags([item.learned for item in items], device),
            coarse_logits=coarse,
            corners=said.corners(),
            box=torch.from_numpy(np.stack([item.box for item in items])).to(device),
        )
        if maps is None:
            return losses
        beside = [scene for item in items for scene in item.beside]
        if beside:
            with self.fabric.autocast():
                maps = torch.cat([maps, cast("Localiser", self.finder.predictor).maps(self._features(beside)[0])])
        size = self.finder.decoder.grid_size
        cells = [self.sought.shares(scene, size) for scene in (*(item.scene for item in items), *beside)]
        shares, counted = (torch.stack(each).to(device) for each in zip(*cells, strict=True))
        of_maps = self.recipe.loss.of_maps(maps, shares, counted)
        # For each item the mean over its own view and those beside it, which have the same number for all.
        count = len(items)
        of_items = torch.cat([of_maps[:count, None], of_maps[count:].reshape(count, -1)], dim=1)
        return losses + of_items.mean(dim=1)

    def _asked(
        self, features: Tensor, levels: Sequence[Tensor], items: Sequence[LearningItem]
    ) -> tuple[Found, LearnedPrompts, Tensor | None]:
        """Item i lies on image i. Those that are asked in the same way go through the decoder together.

        The last are the maps of a localiser. What it says of images that it is trained on is too good to train the
        decoder with, so the box that each item has drawn stands in its place.
        """
        places = torch.arange(len(items), device=features.device)
        classes = torch.tensor([item.class_index for item in items], device=features.device)
        where = Items(places, classes)
        maps = None
        if isinstance(self.finder.predictor, Localiser):
            maps = self.finder.predictor.maps(features)
            guesses = torch.from_numpy(np.stack([item.guess for item in items])).to(features)
            said = self.finder.predictor.prompts(maps, where, boxes=guesses)
        else:
            said = self.finder.learned(features, levels, where)
        ways: dict[tuple[bool, bool], list[int]] = {}
        for i, item in enumerate(items):
            ways.setdefault((item.learned, item.drawn is None), []).append(i)
        parts: list[tuple[list[int], Found]] = []
        for (uses_learned, nothing), members in ways.items():
            drawn = [items[i].drawn or CanvasPrompt() for i in members]
            for group in alike(drawn):
                own = [members[i] for i in group]
                found = self.finder.answered(
                    features,
                    levels,
                    where.at(own),
                    learned=said.at(own) if uses_learned else None,
                    drawn=None if nothing else batch_of([drawn[i] for i in group]),
                )
                parts.append((own, found))
        order = torch.tensor([i for own, _ in parts for i in own], device=features.device).argsort()
        return (
            Found(
                torch.cat([found.logits for _, found in parts])[order],
                torch.cat([found.predicted_iou for _, found in parts])[order],
                torch.cat([found.object_logits for _, found in parts])[order],
            ),
            said,
            maps,
        )

    # --- Validation ---------------------------------------------------------------------------------------------------

    def measure(self, heed: Callable[[], None]) -> Verdict | None:
        if not self.validation:
            return None
        self.finder.eval()
        mine: list[tuple[int, float]] = []
        samples: list[tuple[Scene, Region, np.ndarray]] = []
        count = min(self.recipe.overlays, len(self.validation))
        wanted = set(np.linspace(0, len(self.validation) - 1, count).round().astype(int).tolist())
        with torch.inference_mode():
            for i in range(self.fabric.global_rank, len(self.validation), self.fabric.world_size):
                heed()
                scene, index = self.validation[i]
                region = dict(self.sought.there(scene))[index]
                found = self._found(scene, index)
                judged = scene.judged
                mine.append((i, dice(found if judged is None else found & judged, scene.mask(region))))
                if i in wanted:
                    samples.append((scene, region, found))
        gathered = [mine]
        if self.fabric.world_size > 1:
            gathered = [[] for _ in range(self.fabric.world_size)]
            torch.distributed.all_gather_object(gathered, mine)
        values = sorted(pair for part in gathered for pair in part)
        by_class: dict[str, list[float]] = {}
        for i, value in values:
            by_class.setdefault(self.classes[self.validation[i][1]].name, []).append(value)
        means = {name: float(np.mean(of_class)) for name, of_class in by_class.items()}
        return Verdict(float(np.mean(list(means.values()))), means, partial(self._draw, samples))

    def _found(self, scene: Scene, index: int) -> Bool[np.ndarray, "row column"]:
        features, levels = self._features([scene])
        items = Items(torch.tensor([0], device=features.device), torch.tensor([index], device=features.device))
        with self.fabric.autocast():
            learned = self.finder.learned(features, levels, items)
            found = self.finder.answered(features, levels, items, learned=learned)
        if float(found.object_logits[0]) < 0:  # as when it is used: what it does not believe in, nobody sees
            return np.zeros(scene.shape, dtype=bool)
        return self.frame.image(found.logits[0].float().cpu().numpy(), scene.shape) > 0

    def _draw(self, samples: Sequence[tuple[Scene, Region, np.ndarray]], path: Path) -> None:
        if samples and self.fabric.global_rank == 0:
            draw_found([(scene, region, self._pixels(scene), found) for scene, region, found in samples], path)

    def _pixels(self, scene: Scene) -> np.ndarray:
        from palpate.training.scenes import sights_of

        data = self.recipe.data
        sights = sights_of(
            scene.case,
            frame=self.frame,
            encoder_hash=self.runtime.encoder_hash,
            slices_per_volume=data.slices_per_volume,
            min_pixels=data.min_pixels,
            intensity=data.intensity,
            absent=data.absent_slices,
        )
        return next(sight.pixels for sight in sights if sight.scene.identity == scene.identity)

    # --- What comes of it ---------------------------------------------------------------------------------------------

    def finish(self, done: Done) -> LearnedFrom:
        card = replace(
            self.card,
            data=self.data,
            recipe=done.settings["recipe"],
            metrics=done.metrics,
            versions=dict(environment()),
            command=done.command,
        )
        if done.weights is not None:
            save(tensors_of(self.finder, self.network, card, done.weights), self.folder.result)
        return LearnedFrom(self.folder.result, card, done.steps)

    def read(self, record: Mapping[str, Any]) -> LearnedFrom:
        return LearnedFrom(self.folder.result, learned_card(self.folder.result), int(record.get("steps", 0)))


def _flags(values: Sequence[bool], device: torch.device) -> Bool[Tensor, " item"]:
    return torch.tensor(list(values), dtype=torch.bool, device=device)


def _data_hash(scenes: Sequence[Scene]) -> str:
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(f"{scene.name} {scene.key} {[region.name for region in scene.regions]}\n".encode())
        digest.update(np.ascontiguousarray(scene.labels).data)
    return digest.hexdigest()


__all__ = ["LearnedFrom", "learn"]
