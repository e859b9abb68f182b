"""Sessions on models of the catalogue, on adapters and on learned prompts, from the files that these are in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from palpate.errors import OutputError, PalpateError, SettingError, WeightsError
from palpate.images.intensity import Intensity, parse_intensity
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.inference.prepared import Damaged, Prepared, failed, find
from palpate.inference.runtimes import FindingRuntime
from palpate.inference.runtimes.engines import (
    Engine,
    EngineName,
    Precision,
    engine,
    has_cuda,
    hash_on,
    in_short,
    is_installed,
)
from palpate.inference.runtimes.graphs import FindingGraphRuntime, GraphRuntime
from palpate.inference.session import Session
from palpate.models import DEFAULT, catalogue
from palpate.models.cards import AdapterCard, adapter_card, learned_card

if TYPE_CHECKING:
    from palpate.inference.runtimes.torch import FindingTorchRuntime
    from palpate.models.catalogue import ModelCard

RuntimeName = Literal["auto", "openvino", "onnxruntime", "torch"]


def load(
    model: str | None = None,
    *,
    device: str = "auto",
    weights: str | Path | None = None,
    adapter: str | Path | None = None,
    auto: str | Path | None = None,
    cache: EmbeddingCache | None = None,
    runtime: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Session:
    """A session on a model of the catalogue (`palpate models` lists them), or on an adapter file and its base model.

    Without a `model` it is the base model of the `adapter` or of the learned prompts, if there are any, and else
    `palpate.models.DEFAULT`. `device` is auto, cpu, cuda, cuda:N or mps. `weights` takes a checkpoint file of your own
    instead of the known one, `adapter` what `palpate finetune` made, and `auto` what `palpate learn` made: such a
    session finds its classes by itself (`Session.find`). `cache` keeps embeddings on disk; see
    `palpate.inference.embedding_cache`.

    `runtime` is what computes: torch; openvino or onnxruntime, which are quicker on a CPU and for which a model is made
    ready when it is first used; or auto, which is the environment variable PALPATE_RUNTIME if it is set, else torch
    where there is a CUDA device, else the first of openvino, onnxruntime and torch that is installed and can run the
    model. `tell` hears when a model is being made ready, which takes a while.
    `threads` is how many openvino and onnxruntime take (default: OMP_NUM_THREADS, else their choice); torch has a
    setting of its own. `precision` is float32, bfloat16 or float16. The lower ones move masks a
    little; bfloat16 is quicker where the processor has it, float16 was slower than float32 on a CPU.

    Raises:
        UnknownModel: no model of that name.
        WeightsError: the weights are missing, changed or of another model; the message says which command gets them.
        SettingError: a device, runtime or precision that does not exist here, two adapters, or learned prompts with an
            adapter.
    """
    own = None if weights is None else Path(weights)
    wanted = _runtime_of(runtime)
    if precision not in get_args(Precision):
        raise SettingError(f"there is no precision {precision!r}; choose {', '.join(get_args(Precision))}")
    exact = cast("Precision", precision)
    notes: list[str] = []
    choice = _Choice(wanted, exact, device, threads, tell, notes)
    if auto is not None:
        if adapter is not None:
            raise SettingError(
                f"{auto} brings along what it changed in its base model, so no adapter goes on top; leave {adapter} out"
            )
        return _finding(Path(auto), choice, model=model, weights=own, cache=cache)
    path = None if adapter is None else Path(adapter)
    if model is not None and model.endswith(".safetensors"):
        if path is not None:
            raise SettingError(f"{model} is an adapter, and so is {path}; give one of them")
        path, model = Path(model), None
    made = None if path is None else adapter_card(path)
    if made is not None:
        card = catalogue.card(model or made.base)
    else:
        card = catalogue.card(model or DEFAULT)
        if model is None and weights is not None:
            card = card.origin  # whose checkpoint it may be; the default's own weights are in no file
    intensity = None if made is None else _trained_with(made)
    ready = choice.on_graphs(card, weights=own, adapter=path)
    if ready is None:
        # torch takes seconds to import; `import palpate` must not.
        from palpate.inference.runtimes.torch import TorchRuntime, choose_device
        from palpate.models import weights as checkpoints

        torch_device = choose_device(device)
        loaded = checkpoints.load(card, weights=own, adapter=path, device=torch_device)
        name = card.name if made is None else f"{card.name} + {made.name}"
        hashes = (loaded.weights_hash, hash_on("torch", exact, loaded.encoder_hash))
        ready = TorchRuntime(loaded.model, name, *hashes, loaded.prompts, torch_device, exact)
    return Session(ready, cache=cache, intensity=intensity, notes=notes)


@dataclass(frozen=True)
class _Choice:
    """What was asked to compute, and where; `notes` gathers why it is something else."""

    runtime: RuntimeName
    precision: Precision
    device: str
    threads: int | None
    tell: Callable[[str], None] | None
    notes: list[str]

    def on_graphs(
        self,
        card: ModelCard,
        *,
        weights: Path | None,
        adapter: Path | None = None,
        learned: Path | None = None,
        beside: Callable[[], FindingRuntime] | None = None,
    ) -> GraphRuntime | None:
        """The model on an engine without torch; None where torch has to do, and then `notes` may say why."""
        if not self._may_be_graphs():
            return None
        names = get_args(EngineName) if self.runtime == "auto" else (self.runtime,)
        for name in cast("Sequence[EngineName]", names):
            if self.runtime == "auto" and not is_installed(name):
                continue
            try:
                for last in (False, True):
                    prepared = self._prepared(name, card, weights=weights, adapter=adapter, learned=learned)
                    keeping = self._engine(name, kept=prepared.folder / "compiled")
                    try:
                        if beside is None:
                            return GraphRuntime(prepared, keeping)
                        return FindingGraphRuntime(prepared, keeping, beside)
                    except Damaged:
                        if last:  # it was made anew
                            raise
            except WeightsError:
                raise  # torch would say the same
            except Exception as error:
                why = f"{name} cannot run {card.name} ({in_short(error)})"
                if self.runtime != "auto":
                    raise error if isinstance(error, PalpateError) else PalpateError(f"{why}; choose torch") from error
                # Whatever an engine cannot do, torch can.
                self.notes.append(f"{why}, so something slower computes")
                if isinstance(error, OutputError):  # no other engine could write either
                    break
        return None

    def _engine(self, name: EngineName, *, kept: Path | None = None) -> Engine:
        return engine(name, precision=self.precision, threads=self.threads, kept=kept)

    def _prepared(
        self, name: EngineName, card: ModelCard, *, weights: Path | None, adapter: Path | None, learned: Path | None
    ) -> Prepared:
        """The model made ready for an engine, now if it was not."""
        self._engine(name)  # before anything is made: can it?
        exact, added = engine(name), adapter or learned
        prepared = find(card, exact.title, weights=weights, added=added)
        if prepared is not None:
            return prepared
        why = failed(card, exact.title, weights=weights, added=added) if self.runtime == "auto" else None
        if why is not None:
            raise PalpateError(why)
        # It imports torch, which takes seconds.
        from palpate.inference.preparing import prepare

        # The graphs serve every precision, so they are compared with PyTorch in the exact one.
        return prepare(card, exact, weights=weights, adapter=adapter, learned=learned, tell=self.tell)

    def _may_be_graphs(self) -> bool:
        """Whether an engine may compute: on the CPU, which `auto` takes where there is no CUDA device."""
        if self.runtime == "torch" or self.device not in ("auto", "cpu"):
            if self.runtime in get_args(EngineName):
                raise SettingError(
                    f"{self.runtime} runs on the CPU here, not on {self.device}; choose the runtime torch"
                )
            return False
        return self.device == "cpu" or self.runtime != "auto" or not has_cuda()


def _runtime_of(name: str) -> RuntimeName:
    """What computes, by its name; `auto` is what the environment says."""
    chosen = os.environ.get("PALPATE_RUNTIME", "auto") if name == "auto" else name
    if chosen not in get_args(RuntimeName):
        where = " (it is in PALPATE_RUNTIME)" if name == "auto" else ""
        raise SettingError(f"there is no runtime {chosen!r}{where}; choose {', '.join(get_args(RuntimeName))}")
    return cast("RuntimeName", chosen)


def _finding(
    path: Path, choice: _Choice, *, model: str | None, weights: Path | None, cache: EmbeddingCache | None
) -> Session:
    """A session on learned prompts and their base model."""
    card = learned_card(path)
    if model not in (None, card.base):
        raise SettingError(f"{path} was learned on {card.base}, not on {model}; give --model {card.base}, or none")

    def on_torch() -> FindingTorchRuntime:
        from palpate.inference.runtimes.torch import FindingTorchRuntime, choose_device
        from palpate.models import weights as checkpoints

        device = choose_device(choice.device)
        loaded = checkpoints.load_learned(path, weights=weights, device=device)
        assert loaded.finder is not None
        return FindingTorchRuntime(
            loaded.model,
            f"{card.base} + {card.name}",
            loaded.weights_hash,
            hash_on("torch", choice.precision, loaded.encoder_hash),
            loaded.prompts,
            device,
            choice.precision,
            finder=loaded.finder,
            classes=card.classes,
        )

    ready = choice.on_graphs(catalogue.card(card.base), weights=weights, learned=path, beside=on_torch) or on_torch()
    intensity = parse_intensity(card.intensity) if card.intensity else None
    modality = card.modality or None
    return Session(ready, cache=cache, intensity=intensity, modality=modality, notes=choice.notes)


def _trained_with(made: AdapterCard) -> Intensity | None:
    """The rule that an adapter's training images were shown by, if its recipe chose one."""
    data = made.recipe.get("data")
    name = cast("Mapping[str, object]", data).get("intensity") if isinstance(data, Mapping) else None
    return parse_intensity(name) if isinstance(name, str) else None
