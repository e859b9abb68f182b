"""What adapters and learned prompts say of themselves: the cards inside their files.

This module does not import torch: what a file belongs to is known before there is a network to put it on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from safetensors import SafetensorError, safe_open

from palpate.errors import SettingError, WeightsError
from palpate.models.promptable import LearnedClass, PromptKind

Part = Literal["decoder", "mask-head", "prompt-encoder", "bias-norm", "lora", "adapter", "last-blocks", "full"]
Where = Literal["decoder", "encoder"]
Targets = Literal["attention", "linear"]
Variant = Literal["localiser", "linear", "high-res"]
"""What learns the prompts; see `palpate.models.localiser` and `palpate.models.prompt_predictor`."""

FORMAT = 1
"""Grows when a file can no longer be read by an older palpate."""

Card = TypeVar("Card")

_ADAPTER, _LEARNED = "palpate_adapter", "palpate_learned_prompts"


@dataclass(frozen=True)
class Trained:
    """Which weights move.

    - `parts`: `decoder` is the mask decoder, as MedSAM's fine-tuning has it with a frozen encoder, and what makes skip
      connections of an encoder's maps, where a model has them; `mask-head` is what
      in it makes masks of attended tokens and cells (mask tokens, upscaling, hypernetworks); `prompt-encoder` the
      embeddings of corners, points and masks; `bias-norm` all biases and normalisation weights; `lora` and
      `adapter` add few weights beside frozen ones; `last-blocks` are the last blocks of the image encoder and its neck;
      `full` is everything.
    - `where`: whether `bias-norm`, `lora` and `adapter` go into the mask decoder, the image encoder, or both.
    - `rank` and `alpha`: of LoRA; its change is scaled by alpha / rank. `targets`: the layers it goes beside: the
      `attention`'s query and value projections (in TinyViT one layer makes both, and the key), or every `linear` one.
      Layers that another part trains anyway get no LoRA.
    - `width`: channels of a bottleneck adapter. `blocks`: how many of the encoder's last blocks.

    Raises:
        SettingError: nothing is trained, or what cannot be, or one part leaves nothing to another.
    """

    parts: tuple[Part, ...] = ("decoder",)
    where: tuple[Where, ...] = ("decoder",)
    rank: int = 8
    alpha: int = 16
    targets: Targets = "attention"
    width: int = 64
    blocks: int = 1

    def __post_init__(self) -> None:
        for name, given, known in (
            ("parts", self.parts, get_args(Part)),
            ("where", self.where, get_args(Where)),
            ("targets", (self.targets,), get_args(Targets)),
        ):
            if unknown := [one for one in given if one not in known]:
                raise SettingError(f"{unknown[0]!r} cannot be trained ({name}); choose from {', '.join(known)}")
        if not self.parts:
            raise SettingError("nothing is to be trained; give parts such as decoder or lora")
        if not self.where:
            raise SettingError("`where` is empty; give decoder, encoder or both")
        for name in ("rank", "alpha", "width", "blocks"):
            value = cast("object", getattr(self, name))
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(f"{name} must be a whole number of at least 1, got {value}")
        others = [part for part in self.parts if part != "full"]
        if "full" in self.parts and others:
            raise SettingError(f"full trains every weight there is; leave out {', '.join(others)}, or full")
        if {"decoder", "lora"} <= set(self.parts) and set(self.where) == {"decoder"}:
            raise SettingError(
                "decoder trains the very layers that lora would go beside; give where = encoder, or one of the two"
            )

    @property
    def moves_encoder(self) -> bool:
        """Whether the image encoder changes, so that embeddings cannot be kept."""
        added = {"bias-norm", "lora", "adapter"} & set(self.parts)
        return bool({"full", "last-blocks"} & set(self.parts)) or bool(added and "encoder" in self.where)


@dataclass(frozen=True)
class AdapterCard:
    """All that is known of an adapter; it travels inside the file.

    `base` is a model of the catalogue and `base_sha256` the content hash of its weights. `prompts` are the kinds
    it was trained with. `data`, `licence`, `recipe` and `metrics` are for people, and for making it again.
    """

    name: str
    base: str
    base_sha256: str
    trained: Trained
    prompts: tuple[PromptKind, ...]
    summary: str = ""
    data: str = ""
    licence: str = ""
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class LearnedCard:
    """All that is known of learned prompts; it travels inside the file.

    `base` is a model of the catalogue and `base_sha256` the content hash of its weights. `trained` says what of the
    base model moved with the prompts; None: nothing. `images` is how many labelled images they were learned from.
    `intensity` is the rule that images were shown by, empty for each image's own, and `modality` what all of them were
    said to be, empty where nobody said. `data`, `licence`, `recipe` and `metrics` are for people, and for making it
    again.
    """

    name: str
    base: str
    base_sha256: str
    classes: tuple[LearnedClass, ...]
    variant: Variant
    tokens: int
    trained: Trained | None
    images: int
    intensity: str = ""
    modality: str = ""
    summary: str = ""
    data: str = ""
    licence: str = ""
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


def metadata(card: AdapterCard | LearnedCard, **more: object) -> dict[str, str]:
    """A card, and what else is to be said of the tensors, as a safetensors file takes it."""
    name = _ADAPTER if isinstance(card, AdapterCard) else _LEARNED
    return {name: json.dumps({"format": FORMAT, **more, **asdict(card)}, sort_keys=True, default=str)}


def is_adapter(path: Path) -> bool:
    """Whether the file is an adapter; false for anything else, also for what cannot be read."""
    return _holds(path, _ADAPTER)


def is_learned(path: Path) -> bool:
    """Whether the file holds learned prompts; false for anything else, also for what cannot be read."""
    return _holds(path, _LEARNED)


def adapter_card(path: Path) -> AdapterCard:
    """The card of an adapter file, without reading its tensors.

    Raises:
        WeightsError: no such file, no adapter, or one of a newer palpate.
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; give the file in it: {path / 'adapter.safetensors'}")
    if not path.is_file():
        unfinished = "; the run is not finished, the same `palpate finetune` goes on" if _begun(path) else ""
        raise WeightsError(f"there is no file {path}{unfinished}")
    text = _text(path, _ADAPTER)
    if text is None:
        raise WeightsError(
            f"{path} is no adapter of palpate; give whole checkpoints with --weights, and adapters as "
            "`palpate finetune` writes them"
        )
    return _card(path, text, AdapterCard)


def learned_card(path: Path) -> LearnedCard:
    """The card of a file of learned prompts, without reading its tensors.

    Raises:
        WeightsError: no such file, no learned prompts, or those of a newer palpate.
    """
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; `palpate learn` makes one")
    text = _text(path, _LEARNED)
    if text is None:
        raise WeightsError(f"{path} holds no learned prompts; give a file that `palpate learn` wrote")
    return _card(path, text, LearnedCard)


def _begun(path: Path) -> bool:
    """Whether the file would come out of a run that has begun."""
    return path.name == "adapter.safetensors" and (path.parent / "checkpoints").is_dir()


def _holds(path: Path, name: str) -> bool:
    try:
        return _text(path, name) is not None
    except WeightsError:
        return False


def _text(path: Path, name: str) -> str | None:
    """What stands under a name in a safetensors file's metadata, if it does."""
    try:
        with safe_open(path, framework="np") as opened:
            return (opened.metadata() or {}).get(name)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short, damaged or no safetensors file ({error})") from error


def _card(path: Path, text: str, kind: type[Card]) -> Card:
    # A tenth of a second, and most sessions read no card.
    from pydantic import TypeAdapter, ValidationError

    try:
        content = json.loads(text)
        # Looked at first: what a newer palpate wrote may not look like a card here.
        if content["format"] > FORMAT:
            raise WeightsError(f"{path} was made by a newer palpate; update this one")
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)[:3]
        )
        raise WeightsError(f"the card inside {path} is damaged ({problems})") from None
    except (KeyError, TypeError, ValueError, RecursionError, SettingError) as error:
        raise WeightsError(f"the card inside {path} is damaged ({type(error).__name__}: {error})") from None


__all__ = [
    "FORMAT",
    "AdapterCard",
    "LearnedCard",
    "Part",
    "Targets",
    "Trained",
    "Variant",
    "Where",
    "adapter_card",
    "is_adapter",
    "is_learned",
    "learned_card",
    "metadata",
]
