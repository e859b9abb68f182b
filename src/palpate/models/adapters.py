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

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import gelu

from palpate.errors import OutputError, SettingError, WeightsError
from palpate.images.formats import replacing
from palpate.models.cards import AdapterCard, Part, Targets, Trained, Where, adapter_card, metadata

_REPLACED, _LORA_A, _LORA_B, _DOWN, _UP = "replaced:", "lora_A:", "lora_B:", "down:", "up:"
_ROLES, _BESIDE = (_REPLACED, _LORA_A, _LORA_B, _DOWN, _UP), (_DOWN, _UP)
_PLACES: Mapping[Where, str] = {"decoder": "prompt_decoder.mask_decoder", "encoder": "image_encoder"}


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

    @property
    def added(self) -> tuple[nn.Linear, nn.Linear]:
        """The layers that were not there before."""
        return self.down, self.up

    def forward(self, x: Tensor) -> Tensor:
        """The MLP's answer and the bottleneck's, added."""
        return self.inner(x) + self.up(gelu(self.down(x)))


# --- Before and after training ----------------------------------------------------------------------------------------


def trainable(network: nn.Module, trained: Trained) -> dict[str, nn.Parameter]:
    """Freeze the network but for what is to be trained, add what has to be added, and give the moving weights by name.

    The network stays in eval mode: batch normalisation keeps its statistics, which batches of one or two would ruin.
    New weights are drawn from torch's global generator of the CPU; seed it before.

    Raises:
        SettingError: there are not so many blocks, or LoRA finds no layer to go beside.
    """
    network.eval().requires_grad_(requires_grad=False)
    roots = [_PLACES[where] for where in dict.fromkeys(trained.where)]
    for part in trained.parts:
        for module in _freed_whole(network, part, trained):
            module.requires_grad_(requires_grad=True)
        if part == "bias-norm":
            for root in roots:
                _free_biases_and_norms(network.get_submodule(root))
    if "adapter" in trained.parts:
        for name in (name for root in roots for name in _mlps(network, root)):
            for layer in _put_bottleneck(network, name, width=trained.width).added:
                layer.requires_grad_(requires_grad=True)
    if "lora" in trained.parts:
        _add_lora(network, roots, trained)
    network.eval()  # what was added, too
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def extracted(network: nn.Module, card: AdapterCard, *, weights: Mapping[str, Tensor] | None = None) -> Adapter:
    """The adapter that training made of a network prepared by `trainable`.

    `weights` take the place of the trained ones of the same names (a running average of them, say).
    """
    found: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            tensor = (weights or {}).get(name, parameter)
            found[_key(network, name)] = tensor.detach().cpu().clone()
    return Adapter(card, found)


def applied(network: nn.Module, adapter: Adapter, *, share: float | int = 1) -> None:
    """Put an adapter into its base model, all of it or a `share` of the way (0 is the base model, 1 the adapter).

    Replaced tensors and LoRA are folded in; bottlenecks become layers of the network. What comes out is the same on
    every machine, bit for bit, so that its hash can be known beforehand.

    Raises:
        WeightsError: the adapter does not fit this network, or is damaged; nothing was changed.
        SettingError: a share outside of 0..1, or of a bottleneck, whose middle is not defined.
    """
    if not 0 <= share <= 1:
        raise SettingError(f"the share of an adapter lies between 0 (the base model) and 1 (the adapter), got {share}")
    if share != 1 and not can_be_merged(adapter):
        raise SettingError("a bottleneck adapter cannot be taken by a share; only replaced weights and LoRA can")
    becoming = folded(network, adapter, share=float(share))
    bottlenecks = _bottlenecks(network, adapter)
    # From here on nothing can fail.
    network.load_state_dict(becoming, strict=False)
    for name, tensors in bottlenecks.items():
        with torch.random.fork_rng(devices=[]):  # whoever loads a model does not expect its dice to roll
            _put_bottleneck(network, name, width=len(tensors["down.weight"])).load_state_dict(tensors, strict=False)
    network.eval()


def folded(network: nn.Module, adapter: Adapter, *, share: float = 1) -> dict[str, Tensor]:
    """The tensors of a base model that replaced weights and LoRA change, by name, as they become; it stays as it is.

    Computed in double precision, one product and one sum after the other: a matrix product would differ in its last
    bit from one processor to the next, and with it the hash of the weights.

    Raises:
        WeightsError: the adapter does not fit this network, or is damaged.
    """
    state = network.state_dict()
    becoming: dict[str, Tensor] = {}
    for key, tensor in adapter.tensors.items():
        if not tensor.is_floating_point():
            raise _damaged(adapter, f"{key} holds {tensor.dtype}, not real numbers")
        role, _, name = key.partition(":")
        if f"{role}:" == _REPLACED:
            before = _fitting(state, name, tensor.shape).double()
            becoming[name] = before + share * (tensor.double() - before) if share != 1 else tensor.double()
        elif f"{role}:" not in _ROLES:
            raise _damaged(adapter, f"{key} is none of {', '.join(_ROLES)}")
    if not adapter.tensors:
        raise _damaged(adapter, "it holds no tensors")
    # A layer may be replaced and have LoRA beside it; then LoRA comes on top.
    for name in _named(adapter, _LORA_A, _LORA_B):
        thin, wide = adapter.tensors.get(_LORA_A + name), adapter.tensors.get(_LORA_B + name)
        rank = adapter.card.trained.rank
        if thin is None or wide is None or thin.ndim != 2 or wide.ndim != 2 or len(thin) != wide.shape[1]:
            raise _damaged(adapter, f"{name} needs two matrices that fit together")
        if len(thin) != rank:
            raise _damaged(adapter, f"its card says rank {rank}, and {name} has {len(thin)}")
        weight = f"{name}.weight"
        before = _fitting(state, weight, torch.Size((wide.shape[0], thin.shape[1])))
        change = torch.zeros(before.shape, dtype=torch.float64)
        for column, row in zip(wide.double().T, thin.double(), strict=True):
            change += column[:, None] * row
        becoming[weight] = becoming.get(weight, before.double()) + share * adapter.card.trained.alpha / rank * change
    result = {name: tensor.to(state[name].dtype) for name, tensor in becoming.items()}
    for name, tensor in result.items():
        _require_finite(adapter, name, tensor)
    return result


def can_be_merged(adapter: Adapter) -> bool:
    """Whether it folds into the base model's own weights: all but bottlenecks do."""
    return not any(key.startswith(_BESIDE) for key in adapter.tensors)


def _bottlenecks(network: nn.Module, adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    """The tensors of each bottleneck by the name of its MLP, as a `Bottleneck` names them."""
    names = {key.partition(":")[2].rpartition(".")[0]: None for key in adapter.tensors if key.startswith(_BESIDE)}
    if not names:
        return {}
    known = [name for root in _PLACES.values() for name in _mlps(network, root)]
    found: dict[str, dict[str, Tensor]] = {}
    for name in names:
        if name not in known or isinstance(network.get_submodule(name), Bottleneck):
            raise WeightsError(
                f"this adapter does not fit the model: it goes beside {name}, which is no MLP of the model's own"
            )
        channels, width = _first_linear(network.get_submodule(name)).in_features, adapter.card.trained.width
        shapes = {
            "down.weight": (width, channels),
            "down.bias": (width,),
            "up.weight": (channels, width),
            "up.bias": (channels,),
        }
        found[name] = {}
        for own, shape in shapes.items():
            layer, _, kind = own.partition(".")
            tensor = adapter.tensors.get(f"{layer}:{name}.{kind}")
            if tensor is None or tuple(tensor.shape) != shape:
                is_there = "is missing" if tensor is None else f"is {tuple(tensor.shape)}"
                raise _damaged(adapter, f"{layer}:{name}.{kind} {is_there}, and the model needs {shape}")
            _require_finite(adapter, f"{layer}:{name}.{kind}", tensor)
            found[name][own] = tensor.float()
    if extra := sum(key.startswith(_BESIDE) for key in adapter.tensors) - 4 * len(found):
        raise _damaged(adapter, f"{extra} of its tensors belong to no bottleneck")
    return found


def _named(adapter: Adapter, *roles: str) -> list[str]:
    """What stands behind these roles in the keys, each once."""
    return list(dict.fromkeys(key.partition(":")[2] for key in adapter.tensors if key.startswith(roles)))


def _fitting(state: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in state or not state[name].is_floating_point():
        raise WeightsError(f"this adapter does not fit the model: it changes {name}, which the model does not have")
    if state[name].shape != shape:
        raise WeightsError(
            f"this adapter does not fit the model: {name} is {tuple(shape)} there and {tuple(state[name].shape)} here"
        )
    return state[name].cpu()


def _require_finite(adapter: Adapter, name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise _damaged(adapter, f"{name} holds or becomes numbers that are not finite")


def _damaged(adapter: Adapter, how: str) -> WeightsError:
    return WeightsError(f"the adapter {adapter.card.name} is damaged: {how}; nothing was changed")


def _key(network: nn.Module, name: str) -> str:
    """What a parameter of a prepared network is called in the file: without the levels that were put in between."""
    path: list[str] = []
    module = network
    *layers, own = name.split(".")
    for layer in layers:
        if isinstance(module, Bottleneck) and layer != "inner":
            return f"{layer}:{'.'.join(path)}.{own}"
        if _has_lora(module) and layer != "base_layer":
            return f"{layer}:{'.'.join(path)}"
        if not isinstance(module, Bottleneck) and not _has_lora(module):
            path.append(layer)
        module = module.get_submodule(layer)
    return _REPLACED + ".".join((*path, own))


def _put_bottleneck(network: nn.Module, name: str, *, width: int) -> Bottleneck:
    parent, _, own = name.rpartition(".")
    mlp = network.get_submodule(name)
    first = _first_linear(mlp)
    added = Bottleneck(mlp, channels=first.in_features, width=width)
    for layer in added.added:
        layer.to(first.weight)  # drawn on the CPU, so that a seed gives the same on every device
    setattr(network.get_submodule(parent), own, added)
    return added


def _first_linear(module: nn.Module) -> nn.Linear:
    return next(each for each in module.modules() if isinstance(each, nn.Linear))


def _mlps(network: nn.Module, root: str) -> list[str]:
    """Names of the MLPs of transformer blocks below `root`."""
    below = network.get_submodule(root)
    return [f"{root}.{name}" for name, _ in below.named_modules() if name.rpartition(".")[2] == "mlp"]


def _linear_layers(network: nn.Module, root: str, targets: Targets) -> list[str]:
    """Names of the base model's linear layers below `root`, or of those that make queries and values."""
    below = network.get_submodule(root)
    added = {id(layer) for module in below.modules() if isinstance(module, Bottleneck) for layer in module.added}
    linear = {name: module for name, module in below.named_modules() if isinstance(module, nn.Linear)}
    return [
        f"{root}.{name}"
        for name, module in linear.items()
        if id(module) not in added and (targets == "linear" or name.rpartition(".")[2] in ("q_proj", "v_proj", "qkv"))
    ]


def _add_lora(network: nn.Module, roots: Sequence[str], trained: Trained) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import, and few need it

    frozen = [
        name
        for root in roots
        for name in _linear_layers(network, root, trained.targets)
        if not cast("nn.Linear", network.get_submodule(name)).weight.requires_grad
    ]
    if not frozen:
        raise SettingError(
            "no frozen linear layer is left for lora to go beside; leave lora out, or choose another where"
        )
    moving = [parameter for parameter in network.parameters() if parameter.requires_grad]
    config = LoraConfig(r=trained.rank, lora_alpha=trained.alpha, lora_dropout=0.0, target_modules=frozen, bias="none")
    inject_adapter_in_model(config, network)
    # peft freezes everything but its own; what other parts freed stays free.
    for parameter in moving:
        parameter.requires_grad = True


def _has_lora(module: nn.Module) -> bool:
    """Whether peft has put LoRA around this layer."""
    if "peft" not in sys.modules:
        return False  # then nothing can be of its making, and importing it takes seconds
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def _freed_whole(network: nn.Module, part: Part, trained: Trained) -> list[nn.Module]:
    """The modules of which a part trains every weight."""
    if part == "full":
        return [network]
    if part == "decoder":
        decoder = [network.get_submodule("prompt_decoder.mask_decoder")]
        skip = getattr(network, "skip_neck", None)
        return decoder if skip is None else [*decoder, skip]  # in its authors' code it is a part of the decoder
    if part == "mask-head":
        decoder = network.get_submodule("prompt_decoder.mask_decoder")
        return [
            child
            for name, child in decoder.named_children()
            if name.startswith(("upscal", "mask_tokens", "output_hypernetworks"))
        ]
    if part == "prompt-encoder":
        return [network.get_submodule("prompt_decoder.prompt_encoder")]
    return _last_blocks(network, trained.blocks) if part == "last-blocks" else []


def _free_biases_and_norms(module: nn.Module) -> None:
    for child in module.modules():
        is_norm = isinstance(child, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d)
        for name, parameter in child.named_parameters(recurse=False):
            if is_norm or name == "bias":
                parameter.requires_grad = True


def _last_blocks(network: nn.Module, count: int) -> list[nn.Module]:
    """The last blocks of the image encoder, and its neck, which reads them."""
    encoder = network.get_submodule("image_encoder")
    stages = [child for name, child in encoder.named_children() if name.startswith("stage")]
    layers = stages or list(cast("nn.Sequential", encoder.get_submodule("layers")))
    blocks = [
        block
        for layer in layers
        for some in (cast("nn.Sequential", layer.blocks) if hasattr(layer, "blocks") else [layer])
        for block in (some if isinstance(some, nn.Sequential) else [some])  # Swin's come in pairs
    ]
    if count > len(blocks):
        raise SettingError(f"the encoder has {len(blocks)} blocks, not {count}")
    return [*blocks[-count:], encoder.get_submodule("neck")]


# --- The file ---------------------------------------------------------------------------------------------------------


def save(adapter: Adapter, path: Path, *, half: bool = False, overwrite: bool = True) -> None:
    """Write an adapter, whole or not at all. With `half`, tensors are rounded to float16.

    Raises:
        OutputError: the file exists and may not be replaced, or cannot be written; or a weight is no finite number, or
            not in float16.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; pass --overwrite to replace it")
    for name, tensor in adapter.tensors.items():
        if not bool(torch.isfinite(tensor.half() if half else tensor).all()):
            why = " in float16; save it in full precision" if half else "; training has gone wrong, lower its rate"
            raise OutputError(f"{name} of {adapter.card.name} holds numbers that are not finite{why}")
    tensors = {
        name: (tensor.half() if half else tensor).detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in sorted(adapter.tensors.items())
    }
    data = safetensors.torch.save(tensors, metadata=metadata(adapter.card, half=half))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror or error}); choose another place") from error
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def read(path: Path) -> Adapter:
    """An adapter file.

    Raises:
        WeightsError: no such file, no adapter, damaged, or one of a newer palpate.
    """
    card = adapter_card(path)
    try:
        return Adapter(card, safetensors.torch.load_file(path, device="cpu"))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short or damaged ({error})") from error
