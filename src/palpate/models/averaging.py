"""The average of several adapters, and a share of the way to it: what forgives as well and forgets less.

Fine-tunings of one model that differ in their seed or recipe may be averaged weight by weight; the average is
often better than each of them on images unlike those of the training (model soups; Wortsman et al. 2022, arXiv
2203.05482), and so is a point between the released model and the fine-tuned one (WiSE-FT; Wortsman et al. 2021,
arXiv 2109.01903). Unlike an ensemble's, the cost of the answer is that of one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from palpate.errors import SettingError, WeightsError
from palpate.models import adapters, weights
from palpate.models.adapters import Adapter
from palpate.models.cards import AdapterCard
from palpate.models.catalogue import card


def average(
    files: Sequence[Path],
    output: Path,
    *,
    share: float = 1.0,
    base_weights: Path | None = None,
    half: bool = False,
    name: str = "",
    summary: str = "",
    command: str = "",
    versions: Mapping[str, str] | None = None,
) -> str:
    """Write the average of adapters of one model as an adapter, and give the `content_hash` of the model with it.

    The result holds replaced weights only: LoRA is folded in before. It lies on the line from the base model (`share`
    0) to the plain mean of the adapters (1). `base_weights` is the base model's checkpoint, where it is not the
    released one. `half` rounds to float16. The card keeps the recipes and metrics of all; it claims no metrics for
    the average, which nobody has measured, and only the kinds of prompts that all were trained with. A file at
    `output` is replaced.

    Raises:
        SettingError: no adapter is given, a share outside 0 to 1, a bottleneck, which has no middle, or adapters that
            trained different parts, or through different windows.
        WeightsError: an adapter or the base model is missing or damaged, or they do not belong together.
        OutputError: the file cannot be written.
    """
    if not files:
        raise SettingError("there is nothing to average; give adapters that `palpate finetune` made")
    if not 0 <= share <= 1:
        raise SettingError(f"a share of {share:g} leads beyond the adapters; give 0 (the base model) to 1 (their mean)")
    made = [adapters.read(file) for file in files]
    first = made[0].card
    for file, each in zip(files, made, strict=True):
        if not adapters.can_be_merged(each):
            raise SettingError(f"{file} has bottleneck layers (trained with `adapter`), which have no average")
        if each.card.base != first.base or each.card.base_sha256 != first.base_sha256:
            raise WeightsError(f"{file} was made from other weights than {files[0]}; only those of one model average")
        if each.card.trained != first.trained:
            raise SettingError(f"{file} did not train the same parts as {files[0]}; average those that did")
        if _window(each.card) != _window(first):
            raise SettingError(f"{file} was trained through another window than {files[0]}; these have no average")
    base = weights.load(first.base, weights=base_weights)
    if base.weights_hash != first.base_sha256:
        raise WeightsError(
            f"{files[0]} was made from other weights of {first.base}; give the checkpoint that it was trained from"
        )
    network = cast("nn.Module", base.model)
    written = Adapter(
        _card(made, name=name or output.stem, summary=summary, share=share, command=command, versions=versions or {}),
        {f"replaced:{key}": tensor for key, tensor in _mean(network, made, share).items()},
    )
    adapters.save(written, output, half=half)
    adapters.applied(network, adapters.read(output))
    return weights.network_hash(network, card(first.base))


def _mean(network: nn.Module, made: Sequence[Adapter], share: float) -> dict[str, Tensor]:
    """The weights that differ from the base model's, averaged in double precision, in the order that was given."""
    before = network.state_dict()
    folded = [adapters.folded(network, each) for each in made]
    found: dict[str, Tensor] = {}
    for key in dict.fromkeys(key for each in folded for key in each):
        start = before[key].cpu().double()
        total = torch.zeros_like(start)
        for each in folded:
            total += each[key].double() if key in each else start
        found[key] = (start + share * (total / len(folded) - start)).to(before[key].dtype)
    return found


def _window(card: AdapterCard) -> Any:
    """How images were shown in training; an adapter brings it along wherever it is used."""
    data = card.recipe.get("data")
    return cast("Mapping[str, Any]", data).get("intensity") if isinstance(data, Mapping) else None


def _card(
    made: Sequence[Adapter], *, name: str, summary: str, share: float, command: str, versions: Mapping[str, str]
) -> AdapterCard:
    first = made[0].card
    of: Mapping[str, Any] = {
        "data": {"intensity": _window(first)},
        "share": share,
        "averaged": [
            {
                key: getattr(each.card, key)
                for key in ("name", "seed", "data", "recipe", "metrics", "versions", "command")
            }
            for each in made
        ],
    }
    return AdapterCard(
        name=name,
        base=first.base,
        base_sha256=first.base_sha256,
        trained=first.trained,
        prompts=tuple(kind for kind in first.prompts if all(kind in each.card.prompts for each in made)),
        summary=summary or first.summary,
        data="; ".join(dict.fromkeys(each.card.data for each in made if each.card.data)),
        licence="; ".join(dict.fromkeys(each.card.licence for each in made if each.card.licence)),
        seed=first.seed,
        recipe=of,
        versions=versions,
        command=command,
    )
