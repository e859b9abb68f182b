"""The network in training: what it sees of each scene, what it answers, and which of its weights move."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from palpate.datasets.case import Case
from palpate.errors import SettingError
from palpate.inference.batching import alike, batch_of
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.inference.runtimes.torch import TorchRuntime
from palpate.models import adapters, catalogue, weights
from palpate.models.frame import CanvasPrompt, Frame
from palpate.models.promptable import ImageEmbedding, PromptableModel
from palpate.training.items import Item
from palpate.training.moving_weights import MovingWeights
from palpate.training.pictures import Pictures
from palpate.training.recipe import Recipe
from palpate.training.scenes import Scene, Sight, Views, sights_of

MICRO_BATCH = 8
"""Objects whose gradients are computed together; more only take more memory."""

TAUGHT_OBJECTS = 4000
"""How many answers of the teacher stay in memory: half a gigabyte at 256 x 256."""


@dataclass
class Student:
    """A network some of whose `weights` move, and the base model as it was beside it, which encodes and may teach."""

    network: nn.Module
    base: PromptableModel
    runtime: TorchRuntime
    cache: EmbeddingCache
    recipe: Recipe
    device: torch.device
    weights: MovingWeights
    _taught: dict[tuple[object, ...], Tensor]

    def __post_init__(self) -> None:
        self.pixels = Pictures(self.sights)

    @property
    def frame(self) -> Frame:
        """How the network sees an image."""
        return self.base.frame

    @property
    def moves_encoder(self) -> bool:
        """Whether embeddings change from step to step."""
        return self.recipe.trained.moves_encoder

    # --- What it sees -------------------------------------------------------------------------------------------------

    def features(self, items: Sequence[Item]) -> ImageEmbedding:
        """The embeddings of the items' scenes, one for each item; with gradients, where the encoder moves."""
        if not self.moves_encoder:
            return self._kept([item.scene for item in items])
        canvases = np.stack([self.frame.canvas(self.pixels(item.scene)) for item in items])
        return cast("PromptableModel", self.network).encode(torch.from_numpy(canvases).to(self.device))

    def embedding(self, scene: Scene) -> ImageEmbedding:
        """The base model's embedding of a scene, from the cache; encoded anew where another run has pruned it."""
        found = self.cache.get(scene.key)
        if found is None:
            found = self.runtime.encode(self.frame.canvas(self.pixels(scene))[None])
            self.cache.put(scene.key, found)
        return found

    def sights(self, case: Case, views: Views | None = None) -> Iterable[Sight]:
        """The scenes of a case as the recipe wants them, with their pixels; `views` other than the recipe's."""
        data = self.recipe.data
        return sights_of(
            case,
            frame=self.frame,
            encoder_hash=self.runtime.encoder_hash,
            views=views or data.views(self.recipe.seed),
            slices_per_volume=data.slices_per_volume,
            min_pixels=data.min_pixels,
            intensity=data.intensity,
        )

    def _kept(self, scenes: Sequence[Scene]) -> ImageEmbedding:
        found = [self.embedding(scene) for scene in scenes]
        features = torch.from_numpy(np.concatenate([one.features for one in found])).to(self.device)
        levels = tuple(
            torch.from_numpy(np.concatenate([one.levels[i] for one in found])).to(self.device)
            for i in range(len(found[0].levels))
        )
        return ImageEmbedding(features, levels)

    # --- What it answers ----------------------------------------------------------------------------------------------

    def answers(
        self, features: ImageEmbedding, prompts: Sequence[CanvasPrompt]
    ) -> tuple[Float[Tensor, "item row column"], Float[Tensor, " item"]]:
        """Logits and predicted IoU of each item; prompt i lies on image i."""
        return _answers(cast("PromptableModel", self.network), features, prompts)

    def mask(
        self, features: ImageEmbedding, item: Item, autocast: AbstractContextManager[Any]
    ) -> Bool[np.ndarray, "row column"]:
        """What it finds for one item, in image pixels, as a session would; `features` are of this item alone."""
        with autocast:
            logits, _ = self.answers(features, [item.canvas])
        return self.frame.image(logits[0].float().cpu().numpy(), item.scene.shape) > 0

    def taught(self, items: Sequence[Item]) -> Float[Tensor, "item row column"]:
        """What the base model answers to the tight boxes, as probabilities; each is asked once.

        One by one: what is computed together with others differs in its last bits, and then a run that was taken up
        again would not be the same run.
        """
        if len(self._taught) > TAUGHT_OBJECTS:
            self._taught.clear()
        for item in items:
            if item.name not in self._taught:
                with torch.no_grad():
                    logits, _ = _answers(self.base, self._kept([item.scene]), [item.tight])
                self._taught[item.name] = logits[0].sigmoid().half().cpu()
        return torch.stack([self._taught[item.name] for item in items]).float().to(self.device)


def student(recipe: Recipe, cache: EmbeddingCache, device: torch.device) -> Student:
    """The network that a recipe trains, ready for the first step. Seeds torch, for weights that are added.

    Raises:
        WeightsError: the base model's weights are missing, or are not those of the model.
        SettingError: what cannot be trained.
    """
    if recipe.model.endswith(".safetensors"):
        raise SettingError(
            f"training starts from a whole model; fold the adapter in (palpate models merge {recipe.model} -o "
            "mine.safetensors), and give --model with its base and --weights mine.safetensors"
        )
    card = catalogue.card(recipe.model)
    own = None if recipe.weights is None else Path(recipe.weights)
    loaded = weights.load(card, weights=own, device=device)
    network = cast("nn.Module", loaded.model)
    # An encoder that does not move is shared with the base model.
    shared = {} if recipe.trained.moves_encoder else {id(e): e for e in [network.get_submodule("image_encoder")]}
    skips = getattr(network, "skip_neck", None) is not None
    keeps_maps = skips and not recipe.trained.moves_encoder and "decoder" in recipe.trained.parts
    if keeps_maps:
        network.keep_maps = True  # pyright: ignore[reportArgumentType]
    encoder_hash = weights.encoder_hash(network) if keeps_maps else loaded.encoder_hash
    base = cast("PromptableModel", copy.deepcopy(network, shared))
    torch.manual_seed(recipe.seed)
    parameters = adapters.trainable(network, recipe.trained)
    network.get_submodule("prompt_decoder").objects_at_once = MICRO_BATCH  # pyright: ignore[reportArgumentType]
    return Student(
        network=network,
        base=base,
        runtime=TorchRuntime(base, card.name, loaded.weights_hash, encoder_hash, card.prompts, device),
        cache=cache,
        recipe=recipe,
        device=device,
        weights=MovingWeights(parameters, ema=recipe.optimiser.ema, anchor=recipe.loss.anchor, half=recipe.half),
        _taught={},
    )


def _answers(
    network: PromptableModel, features: ImageEmbedding, prompts: Sequence[CanvasPrompt]
) -> tuple[Float[Tensor, "item row column"], Float[Tensor, " item"]]:
    logits: dict[int, Tensor] = {}
    ious: dict[int, Tensor] = {}
    for members in alike(prompts):
        batch = batch_of([prompts[i] for i in members], image_index=members)
        prediction = network.decode(features, batch)
        for place, i in enumerate(members):
            logits[i], ious[i] = prediction.logits[place, 0], prediction.predicted_iou[place, 0]
    order = range(len(prompts))
    return torch.stack([logits[i] for i in order]), torch.stack([ious[i] for i in order])
