"""Items: which object of which scene is asked for, and with what prompt. All of it follows from the seed.

No state is carried from one item to the next: any item of any epoch can be drawn by itself, by any process, in any
order. That is what makes a resumed run, and one on several machines, the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from palpate.datasets.case import Region
from palpate.errors import PromptError, SettingError
from palpate.models.frame import CanvasPrompt, Frame
from palpate.prompts.strategies import strategy
from palpate.prompts.types import Box, Prompt
from palpate.training.recipe import PromptRecipe
from palpate.training.scenes import Scene, rng_for

NOTHING_THERE = -30.0
"""A logit whose probability is zero to the last bit of a loss."""

Pixels = Callable[[Scene], np.ndarray]
"""Where the image of a scene can be had; asked only for prompts that look at it."""


@dataclass(frozen=True, eq=False)
class Item:
    """One object to be segmented.

    `prompts` are in pixels of the view, `canvas` is the same on the model's canvas, and `tight` the tight box there.
    `target` is the reference on the decoder's grid (`Frame.target`), and `judged` where it counts there; None is
    everywhere. `stands_in` says that the prompt that was wanted does not exist for this object.
    """

    scene: Scene
    region: Region
    prompts: tuple[Prompt, ...]
    canvas: CanvasPrompt
    target: Float32[np.ndarray, "row column"]
    judged: Bool[np.ndarray, "row column"] | None
    tight: CanvasPrompt
    stands_in: bool = False

    @property
    def name(self) -> tuple[object, ...]:
        """What object this is, whatever the prompt."""
        return *self.scene.identity, self.region.name


def in_an_epoch(scenes: Sequence[Scene], *, balance: str) -> int:
    """How many scenes an epoch asks about that is told no number: one of each case, or all of them."""
    return len({_group(scene, balance) for scene in scenes}) if balance == "cases" else len(scenes)


def _group(scene: Scene, balance: str) -> tuple[str, ...]:
    names = scene.case.dataset, scene.case.name
    return {"datasets": names[:1], "cases": names}.get(balance, ())


def order_of(scenes: Sequence[Scene], *, epoch: int, seed: int, count: int, balance: str) -> list[int]:
    """Which scenes an epoch asks about, as indices: each as often as the others, or each data set, or each case.

    Within a data set or a case, too, no scene comes again before all have come.
    """
    rng = rng_for(seed, "order", epoch)
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, scene in enumerate(scenes):
        groups.setdefault(_group(scene, balance), []).append(index)
    names = sorted(groups)
    queues: dict[tuple[str, ...], list[int]] = {name: [] for name in names}
    order: list[int] = []
    turn: list[tuple[str, ...]] = []
    while len(order) < count:
        if not turn:
            turn = [names[i] for i in rng.permutation(len(names)).tolist()]
        name = turn.pop()
        if not queues[name]:
            queues[name] = rng.permutation(groups[name]).tolist()
        order.append(queues[name].pop())
    return order


def draw(
    scene: Scene,
    mix: Sequence[PromptRecipe],
    *,
    frame: Frame,
    rng: np.random.Generator,
    region: Region | None = None,
    pixels: Pixels | None = None,
) -> Item:
    """One item of a scene: an object, unless one is given, a prompt of the mix, and what the decoder is to answer.

    Where a prompt does not exist for an object (points beside one that fills the image), its tight box is taken.

    Raises:
        SettingError: a prompt of the mix looks at the image, and there are no `pixels`.
    """
    chosen = region or scene.regions[int(rng.integers(len(scene.regions)))]
    mask = scene.mask(chosen)
    shares = np.array([item.share for item in mix], dtype=float)
    wanted = mix[int(rng.choice(len(mix), p=shares / shares.sum()))]
    severity = wanted.severity
    if isinstance(severity, tuple):
        severity = float(rng.uniform(min(severity), max(severity)))
    tight = Box.around(mask)
    way = strategy(wanted.strategy)
    if way.needs_pixels and pixels is None:
        raise SettingError(f"{way.name} looks at the image; say where `pixels` are, or choose another strategy")
    seen = pixels(scene) if way.needs_pixels and pixels is not None else None
    try:
        prompts = way.draw(mask, severity=severity, rng=rng, pixels=seen)
        stands_in = False
    except PromptError:
        prompts, stands_in = (tight,), True
    judged = scene.judged
    prompts = tuple(prompt.inside(scene.shape) for prompt in prompts)
    return Item(
        scene=scene,
        region=chosen,
        prompts=prompts,
        canvas=frame.prompts(prompts, scene.shape),
        target=frame.target(mask),
        judged=None if judged is None else frame.target(~judged) < 0.5,
        tight=frame.prompts((tight,), scene.shape),
        stands_in=stands_in,
    )


def training_items(
    scenes: Sequence[Scene],
    indices: Sequence[tuple[int, int]],
    mix: Sequence[PromptRecipe],
    *,
    frame: Frame,
    epoch: int,
    seed: int,
    pixels: Pixels | None = None,
) -> list[Item]:
    """Items by (place in the epoch, index of the scene)."""
    return [
        draw(
            scenes[index], mix, frame=frame, rng=rng_for(seed, "item", epoch, place, scenes[index].name), pixels=pixels
        )
        for place, index in indices
    ]


def validation_items(
    scenes: Sequence[Scene],
    prompts: Sequence[PromptRecipe],
    *,
    frame: Frame,
    seed: int,
    objects: int,
    pixels: Pixels | None = None,
) -> Mapping[str, list[Item]]:
    """For every validation prompt, the same objects: at most `objects` of each data set, spread over its scenes.

    An object for which one of the prompts does not exist is left out of all.
    """
    by_dataset: dict[str, list[Scene]] = {}
    for scene in scenes:
        by_dataset.setdefault(scene.case.dataset, []).append(scene)
    chosen: list[tuple[Scene, Region]] = []
    for name in sorted(by_dataset):
        pairs: list[tuple[Scene, Region]] = []
        depth = max(len(scene.regions) for scene in by_dataset[name])
        order = rng_for(seed, "validation", name).permutation(len(by_dataset[name])).tolist()
        # One object of every scene, then the second of each, ...: many scenes rather than many objects of few.
        for level in range(depth):
            for i in order:
                scene = by_dataset[name][i]
                if level < len(scene.regions):
                    shuffled = rng_for(seed, "objects", scene.name).permutation(len(scene.regions)).tolist()
                    pairs.append((scene, scene.regions[shuffled[level]]))
        chosen += pairs[:objects]
    found: dict[str, list[Item]] = {}
    for prompt in prompts:
        label = named(prompt)
        found[label] = [
            draw(
                scene,
                [prompt],
                frame=frame,
                rng=rng_for(seed, label, scene.name, region.name),
                region=region,
                pixels=pixels,
            )
            for scene, region in chosen
        ]
    kept = [i for i in range(len(chosen)) if not any(items[i].stands_in for items in found.values())]
    return {label: [items[i] for i in kept] for label, items in found.items()}


def named(prompt: PromptRecipe) -> str:
    """A name for a column: `shrink@0.1`, `jitter@0-0.25`, `standard`."""
    severity = prompt.severity
    if isinstance(severity, tuple):
        return f"{prompt.strategy}@{severity[0]:g}-{severity[1]:g}"
    return f"{prompt.strategy}@{severity:g}" if severity else prompt.strategy


def judged_places(
    judged: Sequence[Bool[np.ndarray, "row column"] | None], shape: Sequence[int], device: torch.device
) -> Bool[Tensor, "item row column"] | None:
    """Where the items' answers count; None if that is everywhere."""
    if all(one is None for one in judged):
        return None
    grids = [np.ones(tuple(shape), dtype=bool) if one is None else one for one in judged]
    return torch.from_numpy(np.stack(grids)).to(device)
