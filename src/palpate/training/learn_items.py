"""What learning prompts asks for: which class on which view, and which prompts a person is pretended to have drawn.

What comes when follows from the seed. Each item draws for itself; if neither learned nor drawn prompts come up, it is
learned ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from palpate.datasets.case import Region
from palpate.models.frame import CanvasPrompt, Frame
from palpate.models.promptable import LearnedClass
from palpate.prompts.sampling import foreground_points
from palpate.prompts.strategies import strategy
from palpate.prompts.types import Box, Prompt
from palpate.training.learn_recipe import LearnRecipe, MixRecipe
from palpate.training.scenes import Scene, rng_for


@dataclass(frozen=True, eq=False)
class LearningItem:
    """A class on a view, and how it is asked for.

    `target` is the reference on the decoder's grid and `box` the tight box in shares of the canvas, both zero where the
    class is absent; `judged` is where the target counts, None everywhere. `drawn` is what a person is pretended to have
    drawn, None if nothing; `learned` says whether the predictor is asked as well, and `guess` the box (corner and size
    in shares of the canvas) that stands for what a localiser will say. `beside` are further views, of which a localiser
    learns and the decoder does not: it is cheap, and has more to learn.
    """

    scene: Scene
    class_index: int
    present: bool
    target: Float32[np.ndarray, "row column"]
    box: Float32[np.ndarray, "4"]
    guess: Float32[np.ndarray, "4"]
    learned: bool
    drawn: CanvasPrompt | None
    beside: tuple[Scene, ...] = ()
    judged: Bool[np.ndarray, "row column"] | None = None


class Sought:
    """The classes that are looked for, as they are on views of a frame's canvas."""

    def __init__(self, classes: Sequence[LearnedClass], frame: Frame) -> None:
        self.classes, self.frame = classes, frame
        self._shares: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def there(self, scene: Scene) -> list[tuple[int, Region]]:
        """The classes on a view that are large enough to be asked for, as (class, region)."""
        places = {one.name: i for i, one in enumerate(self.classes)}
        return [(places[region.name], region) for region in scene.regions]

    def absent(self, scene: Scene) -> list[int]:
        """The classes of which nothing is on a view; none where some of it is not labelled, for there it may be."""
        if scene.judged is not None:
            return []
        labels = scene.labels
        regions = enumerate(self._regions(scene))
        return [i for i, region in regions if region is not None and not region.mask(labels).any()]

    def shares(
        self, scene: Scene, size: int
    ) -> tuple[Float[Tensor, "a_class row column"], Bool[Tensor, "a_class row column"]]:
        """The share of each cell that each class covers, of `size` x `size` cells, and whether that is known."""
        known_as = (*scene.identity, size)  # not by the embedding: one image may come with several sets of labels
        if known_as not in self._shares:
            side = self.frame.mask_size
            labels, regions = scene.labels, self._regions(scene)
            nothing = np.zeros((side, side), dtype=np.float32)
            grids = [nothing if one is None else self.frame.target(one.mask(labels)) for one in regions]
            shares = adaptive_avg_pool2d(torch.from_numpy(np.stack(grids)), (size, size))
            counted = torch.tensor([one is not None for one in regions])[:, None, None].expand_as(shares).clone()
            if scene.judged is not None:
                unknown = torch.from_numpy(self.frame.target(~scene.judged))
                counted &= adaptive_avg_pool2d(unknown[None], (size, size)) < 0.5
            self._shares[known_as] = shares, counted
        return self._shares[known_as]

    def _regions(self, scene: Scene) -> list[Region | None]:
        """The classes as regions, in their order; None where the case cannot tell (see `asking`)."""
        regions = {region.name: region for region in scene.case.regions}
        return [regions.get(one.name) for one in self.classes]


class LearningItems:
    """Draws items on these scenes as a recipe says, each with so many views `beside` it."""

    def __init__(self, scenes: Sequence[Scene], sought: Sought, recipe: LearnRecipe, *, beside: int) -> None:
        self.scenes, self.sought, self.recipe, self.beside = scenes, sought, recipe, beside
        self.frame = sought.frame
        self._boxes = [_tight(scene.mask(region), self.frame) for scene in scenes for _, region in sought.there(scene)]

    def draw(self, scene: Scene, epoch: int, place: int) -> LearningItem:
        """The item at this place of an epoch."""
        recipe, mix = self.recipe, self.recipe.mix
        rng = rng_for(recipe.seed, "item", epoch, place, scene.name)
        there, absent = self.sought.there(scene), self.sought.absent(scene)
        beside = tuple(self.scenes[int(i)] for i in rng.integers(len(self.scenes), size=self.beside))
        is_there = bool(there) and (not absent or float(rng.random()) < recipe.present)
        side = self.frame.mask_size
        if not is_there:
            chosen = absent[int(rng.integers(len(absent)))]
            nothing = np.zeros((side, side), dtype=np.float32), np.zeros(4, dtype=np.float32)
            # A box as others have: it is not to be told by its box that nothing is there.
            some = self._boxes[int(rng.integers(len(self._boxes)))]
            guess = _moved(some, mix.guess, rng=rng)
            return LearningItem(scene, chosen, False, *nothing, guess, learned=True, drawn=None, beside=beside)
        index, region = there[int(rng.integers(len(there)))]
        mask = scene.mask(region)
        drawn = _drawn(mask, mix, rng=rng)
        tight = _tight(mask, self.frame)
        return LearningItem(
            scene=scene,
            class_index=index,
            present=True,
            target=self.frame.target(mask),
            box=tight,
            guess=_moved(tight, mix.guess, rng=rng),
            learned=bool(rng.random() < mix.learned) or not drawn,
            drawn=self.frame.prompts(drawn, scene.shape) if drawn else None,
            beside=beside,
            judged=None if scene.judged is None else self.frame.target(~scene.judged) < 0.5,
        )


def _drawn(mask: Bool[np.ndarray, "row column"], mix: MixRecipe, *, rng: np.random.Generator) -> list[Prompt]:
    """What a person is pretended to have drawn. Every draw is made, whatever comes of the others."""
    box, points, rough = (rng.random(3) < (mix.box, mix.points, mix.mask)).tolist()
    count = int(rng.integers(1, 4))
    drawn: list[Prompt] = []
    if box:
        drawn += strategy("jitter").draw(mask, severity=mix.jitter, rng=rng)
    if points:
        drawn.append(foreground_points(mask, count=count, rng=rng))
    if rough:
        drawn += strategy("mask-rough").draw(mask, severity=0.0, rng=rng)
    return [prompt.inside((mask.shape[0], mask.shape[1])) for prompt in drawn]


def _tight(mask: Bool[np.ndarray, "row column"], frame: Frame) -> Float32[np.ndarray, "4"]:
    box = frame.prompts((Box.around(mask),), (mask.shape[0], mask.shape[1])).box
    assert box is not None
    return box / np.float32(frame.size)


def _moved(box: Float32[np.ndarray, "4"], by: float, *, rng: np.random.Generator) -> Float32[np.ndarray, "4"]:
    """A box of corners as corner and size, each side moved by up to `by` of the box's length, within the canvas."""
    size = np.tile(box[2:] - box[:2], 2)
    corners = (box + size * rng.uniform(-by, by, 4)).clip(0, 1)
    return np.concatenate([corners[:2], corners[2:] - corners[:2]]).astype(np.float32)
