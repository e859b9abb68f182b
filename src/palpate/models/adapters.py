"""What fine-tuning leaves behind: a small file that turns a released model into another one.

An adapter holds the difference that training made, in safetensors, and a card that says what it belongs to:

    replaced    tensors that take the place of the base model's (decoder, prompt encoder, biases and norms, or all)
    LoRA        two thin matrices a linear layer, W + (alpha / rank) B A; Hu et al. 2021, arXiv 2106.09685
    bottleneck  a small network beside an MLP, x -> MLP(x) + up(gelu(down(x))); AdaptFormer, arXiv 2205.13535

`trainable` prepares a network for training, `extracted` takes the adapter out of it, `save` and `read` are the file,
and `applied` puts it into a freshly loaded base model. Replaced tensors and LoRA fold into the base model's own
weights, so that the result is a plain model again; a bottleneck stays a layer of its own.

A network here is one with an `image_encoder` and a `prompt_decoder`, which has a `prompt_encoder` and a `mask_decoder`.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import gelu

from palpate.errors import OutputError, SettingError, WeightsError
from palpate.models.promptable import PromptKind

Part = Literal["decoder", "prompt-encoder", "bias-norm", "lora", "adapter", "last-blocks", "full"]
Where = Literal["decoder", "encoder"]
Targets = Literal["attention", "linear"]

FORMAT = 1
"""Grows when an adapter file can no longer be read by an older palpate."""

_METADATA = "palpate_adapter"
_REPLACED, _LORA_A, _LORA_B, _DOWN, _UP = "replaced:", "lora_A:", "lora_B:", "down:", "up:"


@dataclass(frozen=True)
class Trained:
    """Which weights move.

    - `parts`: `decoder` is the mask decoder, as MedSAM's fine-tuning has it with a frozen encoder; `prompt-encoder`
      the embeddings of corners, points and masks; `bias-norm` all biases and normalisation weights; `lora` and
      `adapter` add few weights beside frozen ones; `last-blocks` are the last blocks of the image encoder and its neck;
      `full` is everything.
    - `where`: whether `bias-norm`, `lora` and `adapter` go into the mask decoder, the image encoder, or both.
    - `rank` and `alpha`: of LoRA; its change is scaled by alpha / rank. `targets`: the layers it goes beside: the
      `attention`'s query and value projections (in TinyViT one layer makes both, and the key), or every `linear` one.
    - `width`: channels of a bottleneck adapter. `blocks`: how many of the encoder's last blocks.

    Raises:
        SettingError: nothing is trained, or what cannot be.
    """

    parts: tuple[Part, ...] = ("decoder",)
    where: tuple[Where, ...] = ("decoder",)
    rank: int = 8
    alpha: float | int = 16
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
        for name in ("rank", "width", "blocks"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.alpha <= 0:
            raise SettingError(f"alpha must be above 0, got {self.alpha}")

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


@dataclass(frozen=True, eq=False)
class Adapter:
    """A card and the tensors by what they are and where they go: `replaced:NAME`, `lora_A:LAYER`, `down:MLP.weight`."""

    card: AdapterCard
    tensors: Mapping[str, Tensor]


class Bottleneck(nn.Module):
    """A narrow network beside an MLP: what training adds while the MLP stays as it was. It starts as zero."""

    def __init__(self, inner: nn.Module, *, channels: int, width: int):
        super().__init__()
        self.inner = inner
        self.down = nn.Linear(channels, width)
        self.up = nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The MLP's answer and the bottleneck's, added."""
        return self.inner(x) + self.up(gelu(self.down(x)))


# --- Before and after training ----------------------------------------------------------------------------------------


def trainable(network: nn.Module, trained: Trained) -> dict[str, nn.Parameter]:
    """Freeze the network but for what is to be trained, add what has to be added, and give the moving weights by name.

    The network stays in eval mode: batch normalisation keeps its statistics, which batches of one or two would ruin.
    New weights are drawn from torch's global generator; seed it before.
    """
    network.eval().requires_grad_(requires_grad=False)
    decoder = cast("nn.Module", network.get_submodule("prompt_decoder"))
    places = {"decoder": ("prompt_decoder.mask_decoder",), "encoder": ("image_encoder",)}
    roots = [root for where in trained.where for root in places[where]]
    for part in trained.parts:
        if part == "full":
            network.requires_grad_(requires_grad=True)
        elif part == "decoder":
            decoder.get_submodule("mask_decoder").requires_grad_(requires_grad=True)
        elif part == "prompt-encoder":
            decoder.get_submodule("prompt_encoder").requires_grad_(requires_grad=True)
        elif part == "last-blocks":
            for module in _last_blocks(network, trained.blocks):
                module.requires_grad_(requires_grad=True)
        elif part == "bias-norm":
            for root in roots:
                _free_biases_and_norms(network.get_submodule(root))
        elif part == "adapter":
            for root in roots:
                for name in _mlps(network, root):
                    _put_bottleneck(network, name, width=trained.width)
    if "lora" in trained.parts:
        _add_lora(network, [name for root in roots for name in _linear_layers(network, root, trained.targets)], trained)
    for name, parameter in network.named_parameters():
        if any(mark in name for mark in (".lora_A.", ".lora_B.", ".down.", ".up.")):
            parameter.requires_grad_(requires_grad=True)
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def extracted(network: nn.Module, card: AdapterCard, *, weights: Mapping[str, Tensor] | None = None) -> Adapter:
    """The adapter that training made of a network prepared by `trainable`.

    `weights` take the place of the trained ones of the same names (a running average of them, say).
    """
    found: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        tensor = (weights or {}).get(name, parameter).detach().cpu().clone()
        found[_role(name)] = tensor
    return Adapter(card, found)


def applied(network: nn.Module, adapter: Adapter, *, share: float = 1.0) -> None:
    """Put an adapter into its base model, all of it or a `share` of the way (0 is the base model, 1 the adapter).

    Replaced tensors and LoRA are folded in; bottlenecks become layers of the network.

    Raises:
        WeightsError: the adapter does not fit this network; nothing was changed.
        SettingError: a share of a bottleneck, whose middle is not defined.
    """
    state = network.state_dict()
    changed: dict[str, Tensor] = {}
    card = adapter.card
    bottlenecks: dict[str, int] = {}
    for key, tensor in adapter.tensors.items():
        role, _, name = key.partition(":")
        tensor = tensor.to(torch.float32)
        if f"{role}:" == _REPLACED:
            before = _fitting(state, name, tensor.shape)
            changed[name] = torch.lerp(before.to(torch.float32), tensor, share) if share != 1 else tensor
        elif f"{role}:" == _LORA_A:
            other = adapter.tensors.get(_LORA_B + name)
            if other is None or other.shape[1] != tensor.shape[0]:
                raise WeightsError(f"the adapter {card.name} is damaged: {name} has no second matrix that fits")
            scale = share * card.trained.alpha / card.trained.rank
            update = scale * (other.to(torch.float32) @ tensor)
            weight = f"{name}.weight"
            changed[weight] = changed.get(weight, _fitting(state, weight, update.shape)) + update
        elif f"{role}:" == _DOWN and name.endswith(".weight"):
            bottlenecks[name.removesuffix(".weight")] = int(tensor.shape[0])
    if bottlenecks and share != 1:
        raise SettingError("a bottleneck adapter cannot be taken by a share; only replaced weights and LoRA can")
    for name in bottlenecks:
        try:
            network.get_submodule(name)
        except AttributeError:
            raise WeightsError(f"the adapter {card.name} does not fit this model: it has no {name}") from None
    for name, width in bottlenecks.items():
        _put_bottleneck(network, name, width=width)
        module = cast("Bottleneck", network.get_submodule(name))
        for role, layer in ((_DOWN, module.down), (_UP, module.up)):
            layer.weight.data = adapter.tensors[f"{role}{name}.weight"].to(layer.weight)
            layer.bias.data = adapter.tensors[f"{role}{name}.bias"].to(layer.bias)
    # Names inside an MLP that got a bottleneck have moved one level down.
    changed = {_moved(name, bottlenecks): tensor for name, tensor in changed.items()}
    network.load_state_dict(changed, strict=False)
    network.eval()


def can_be_merged(adapter: Adapter) -> bool:
    """Whether it folds into the base model's own weights: all but bottlenecks do."""
    return not any(key.startswith(_DOWN) for key in adapter.tensors)


def _fitting(state: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in state:
        raise WeightsError(f"this adapter does not fit the model: it changes {name}, which the model does not have")
    if state[name].shape != shape:
        raise WeightsError(
            f"this adapter does not fit the model: {name} is {tuple(shape)} there and {tuple(state[name].shape)} here"
        )
    return state[name]


def _role(name: str) -> str:
    """The key of a trained parameter in the file."""
    for mark, role in ((".lora_A.", _LORA_A), (".lora_B.", _LORA_B)):
        if mark in name:
            return role + name.partition(mark)[0].replace(".inner", "")
    for mark, role in ((".down.", _DOWN), (".up.", _UP)):
        if mark in name:
            layer, _, kind = name.partition(mark)
            return f"{role}{layer}.{kind}"
    return _REPLACED + name.replace(".base_layer.", ".").replace(".inner.", ".")


def _moved(name: str, bottlenecks: Mapping[str, int]) -> str:
    for layer in bottlenecks:
        if name.startswith(f"{layer}."):
            return f"{layer}.inner.{name.removeprefix(f'{layer}.')}"
    return name


def _put_bottleneck(network: nn.Module, name: str, *, width: int) -> None:
    parent, _, own = name.rpartition(".")
    mlp = network.get_submodule(name)
    if isinstance(mlp, Bottleneck):
        return
    first = next(module for module in mlp.modules() if isinstance(module, nn.Linear))
    setattr(network.get_submodule(parent), own, Bottleneck(mlp, channels=first.in_features, width=width))


def _mlps(network: nn.Module, root: str) -> list[str]:
    """Names of the MLPs of transformer blocks below `root`."""
    below = network.get_submodule(root)
    return [f"{root}.{name}" for name, _ in below.named_modules() if name.rpartition(".")[2] == "mlp"]


def _linear_layers(network: nn.Module, root: str, targets: Targets) -> list[str]:
    below = network.get_submodule(root)
    names = [name for name, module in below.named_modules() if isinstance(module, nn.Linear)]
    if targets == "attention":
        names = [name for name in names if name.rpartition(".")[2] in ("q_proj", "v_proj", "qkv")]
    return [f"{root}.{name}" for name in names if not name.endswith((".down", ".up"))]


def _add_lora(network: nn.Module, layers: Sequence[str], trained: Trained) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import, and few need it

    if not layers:
        raise SettingError("there is no linear layer here for LoRA to go beside")
    moving = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    config = LoraConfig(
        r=trained.rank, lora_alpha=math.ceil(trained.alpha), lora_dropout=0.0, target_modules=list(layers), bias="none"
    )
    inject_adapter_in_model(config, network)
    # peft freezes everything but its own; what other parts freed stays free.
    for name, parameter in network.named_parameters():
        if name.replace(".base_layer.", ".") in moving:
            parameter.requires_grad_(requires_grad=True)


def _free_biases_and_norms(module: nn.Module) -> None:
    for child in module.modules():
        is_norm = "norm" in type(child).__name__.lower()
        for name, parameter in child.named_parameters(recurse=False):
            if is_norm or name == "bias":
                parameter.requires_grad_(requires_grad=True)


def _last_blocks(network: nn.Module, count: int) -> list[nn.Module]:
    """The last blocks of the image encoder, and its neck, which reads them."""
    encoder = network.get_submodule("image_encoder")
    layers = list(cast("nn.Sequential", encoder.get_submodule("layers")))
    blocks = [
        block
        for layer in layers
        for block in (cast("nn.Sequential", layer.blocks) if hasattr(layer, "blocks") else [layer])
    ]
    if count > len(blocks):
        raise SettingError(f"the encoder has {len(blocks)} blocks, not {count}")
    return [*blocks[-count:], encoder.get_submodule("neck")]


# --- The file ---------------------------------------------------------------------------------------------------------


def save(adapter: Adapter, path: Path, *, half: bool = False, overwrite: bool = True) -> None:
    """Write an adapter, whole or not at all. With `half`, tensors are rounded to float16.

    Raises:
        OutputError: the file exists and may not be replaced, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; pass --overwrite to replace it")
    content = {"format": FORMAT, "half": half, **asdict(adapter.card)}
    tensors = {
        name: (tensor.half() if half else tensor).detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in sorted(adapter.tensors.items())
    }
    data = safetensors.torch.save(tensors, metadata={_METADATA: json.dumps(content, sort_keys=True, default=str)})
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror or error}); choose another place") from error


def is_adapter(path: Path) -> bool:
    """Whether the file is an adapter; false for anything else, also for what cannot be read."""
    try:
        with safe_open(path, framework="pt") as opened:
            return _METADATA in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_card(path: Path) -> AdapterCard:
    """The card of an adapter file, without reading its tensors.

    Raises:
        WeightsError: no such file, no adapter, or one of a newer palpate.
    """
    if not path.is_file():
        raise WeightsError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(_METADATA)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short, damaged or no safetensors file ({error})") from error
    if text is None:
        raise WeightsError(
            f"{path} is no adapter of palpate; give whole checkpoints with --weights, and adapters as "
            "`palpate finetune` writes them"
        )
    try:
        content = json.loads(text)
        if content["format"] > FORMAT:
            raise WeightsError(f"{path} was made by a newer palpate; update this one")
        trained = {name: tuple(v) if isinstance(v, list) else v for name, v in content["trained"].items()}
        return AdapterCard(
            name=content["name"],
            base=content["base"],
            base_sha256=content["base_sha256"],
            trained=Trained(**trained),
            prompts=tuple(content["prompts"]),
            summary=content["summary"],
            data=content["data"],
            licence=content["licence"],
            seed=content["seed"],
            recipe=content["recipe"],
            metrics=content["metrics"],
            versions=content["versions"],
            command=content["command"],
        )
    except (KeyError, TypeError, ValueError, SettingError) as error:
        raise WeightsError(f"the card inside {path} is damaged ({error})") from error


def read(path: Path) -> Adapter:
    """An adapter file.

    Raises:
        WeightsError: no such file, no adapter, damaged, or one of a newer palpate.
    """
    card = read_card(path)
    try:
        return Adapter(card, safetensors.torch.load_file(path, device="cpu"))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short or damaged ({error})") from error
