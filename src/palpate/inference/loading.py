"""Sessions on models of the catalogue, on adapters and on learned prompts, from the files that these are in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from palpate.errors import SettingError
from palpate.images.intensity import Intensity, parse_intensity
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.inference.session import Session
from palpate.models import DEFAULT

if TYPE_CHECKING:
    import torch

    from palpate.models.adapters import AdapterCard


def load(
    model: str | None = None,
    *,
    device: str = "auto",
    weights: str | Path | None = None,
    adapter: str | Path | None = None,
    auto: str | Path | None = None,
    cache: EmbeddingCache | None = None,
) -> Session:
    """A session on a model of the catalogue (`palpate models` lists them), or on an adapter file and its base model.

    Without a `model` it is the base model of the `adapter` or of the learned prompts, if there are any, and else
    `palpate.models.DEFAULT`. `device` is auto, cpu, cuda, cuda:N or mps. `weights` takes a checkpoint file of your own
    instead of the known one, `adapter` what `palpate finetune` made, and `auto` what `palpate learn` made: such a
    session finds its classes by itself (`Session.find`). `cache` keeps embeddings on disk; see
    `palpate.inference.embedding_cache`.

    Raises:
        UnknownModel: no model of that name.
        WeightsError: the weights are missing, changed or of another model; the message says which command gets them.
        SettingError: a device that does not exist here, two adapters, or learned prompts with an adapter.
    """
    # torch takes seconds to import; `import palpate` must not.
    from palpate.inference.runtimes.torch import TorchRuntime, choose_device
    from palpate.models import catalogue
    from palpate.models import weights as checkpoints
    from palpate.models.adapters import read_card

    own = None if weights is None else Path(weights)
    if auto is not None:
        if adapter is not None:
            raise SettingError(
                f"{auto} brings along what it changed in its base model, so no adapter goes on top; leave {adapter} out"
            )
        return _finding(Path(auto), model=model, device=choose_device(device), weights=own, cache=cache)
    path = None if adapter is None else Path(adapter)
    if model is not None and model.endswith(".safetensors"):
        if path is not None:
            raise SettingError(f"{model} is an adapter, and so is {path}; give one of them")
        path, model = Path(model), None
    made = None if path is None else read_card(path)
    if made is not None:
        card = catalogue.card(model or made.base)
    else:
        card = catalogue.card(model or DEFAULT)
        if model is None and weights is not None:
            card = card.origin  # whose checkpoint it may be; the default's own weights are in no file
    chosen = choose_device(device)
    loaded = checkpoints.load(card, weights=own, adapter=path, device=chosen)
    name = card.name if made is None else f"{card.name} + {made.name}"
    runtime = TorchRuntime(loaded.model, name, loaded.weights_hash, loaded.encoder_hash, loaded.prompts, chosen)
    return Session(runtime, cache=cache, intensity=None if made is None else _trained_with(made))


def _finding(
    path: Path, *, model: str | None, device: torch.device, weights: Path | None, cache: EmbeddingCache | None
) -> Session:
    """A session on learned prompts and their base model."""
    from palpate.inference.runtimes.torch import FindingTorchRuntime
    from palpate.models import weights as checkpoints
    from palpate.models.learned import read_card

    card = read_card(path)
    if model not in (None, card.base):
        raise SettingError(f"{path} was learned on {card.base}, not on {model}; give --model {card.base}, or none")
    loaded = checkpoints.load_learned(path, weights=weights, device=device)
    assert loaded.finder is not None
    runtime = FindingTorchRuntime(
        loaded.model,
        f"{card.base} + {card.name}",
        loaded.weights_hash,
        loaded.encoder_hash,
        loaded.prompts,
        device,
        loaded.finder,
        card.classes,
    )
    intensity = parse_intensity(card.intensity) if card.intensity else None
    return Session(runtime, cache=cache, intensity=intensity, modality=card.modality or None)


def _trained_with(made: AdapterCard) -> Intensity | None:
    """The rule that an adapter's training images were shown by, if its recipe chose one."""
    data = made.recipe.get("data")
    name = cast("Mapping[str, object]", data).get("intensity") if isinstance(data, Mapping) else None
    return parse_intensity(name) if isinstance(name, str) else None
