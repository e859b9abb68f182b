"""From a network to graphs that run without PyTorch; see `palpate.inference.prepared` for what is kept."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palpate.errors import OutputError, PalpateError, WeightsError
from palpate.inference.export import FAR, answered, graphs_of, share_apart, write_onnx
from palpate.inference.prepared import (
    ABOUT,
    HALF,
    Prepared,
    folder_of,
    forget_old,
    home,
    measured,
    opened,
    remember_failure,
)
from palpate.inference.runtimes.engines import Engine, in_short
from palpate.models import weights as checkpoints
from palpate.models.cards import adapter_card, learned_card
from palpate.models.catalogue import ModelCard
from palpate.models.graphs import DecoderGraph
from palpate.models.token_graph import TokenDecoderGraph

if TYPE_CHECKING:
    from palpate.models.weights import Loaded

_OF_MASKS = ("mask", "has_mask")


def prepare(
    chosen: ModelCard,
    engine: Engine,
    *,
    weights: Path | None = None,
    adapter: Path | None = None,
    learned: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Prepared:
    """Make a model ready, if it is not: write its graphs, and keep them if the engine gives PyTorch's answers.

    On the model may be an `adapter`, or `learned` prompts. `tell` hears that it takes a while, or that another process
    is at it. Models that were used longest ago make room. Why an engine cannot run a model is noted for
    `palpate.inference.prepared.failed`.

    Raises:
        WeightsError: the weights are missing, changed or of another model.
        SettingError: a model whose decoder cannot be a graph.
        OutputError: the folder cannot be written.
        PalpateError: the engine's answers are not PyTorch's.
    """
    with _one_at_a_time, _one_process_at_a_time(tell):  # torch's exporter works for one thread
        folder = folder_of(chosen, engine.title, weights=weights, added=adapter or learned)
        if folder is not None and (there := opened(folder)) is not None:
            return there
        try:
            home().mkdir(parents=True, exist_ok=True)
            half = Path(tempfile.mkdtemp(prefix=HALF, dir=home()))
        except OSError as error:
            raise OutputError(f"cannot write {home()}: {error.strerror or error}") from error
        try:
            if learned is None:
                loaded = checkpoints.load(chosen, weights=weights, adapter=adapter)
            else:
                loaded = checkpoints.load_learned(learned, weights=weights)
            if tell is not None:
                tell(f"making {chosen.name} ready for {engine.title}, which is done once")
            _write_all(loaded, _about(chosen, loaded, adapter, learned), half, engine)
            if folder is None or folder != folder_of(chosen, engine.title, weights=weights, added=adapter or learned):
                raise OutputError(f"the files of {chosen.name} were changed while it was made ready; run it again")
            half.chmod(0o755)
            if folder.exists() and opened(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)  # damaged
            if not folder.exists():
                half.replace(folder)
        except OSError as error:
            if folder is None or opened(folder) is None:  # else another process was quicker
                raise OutputError(f"could not write {folder}: {error.strerror or error}") from error
        except (OutputError, WeightsError, MemoryError, ImportError):
            raise  # another try may go well
        except Exception as error:
            if folder is not None:
                remember_failure(folder, in_short(error))
            raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
        forget_old()
        found = opened(folder)
        if found is None:
            raise OutputError(f"what was written to {folder} cannot be read")
        return found


_one_at_a_time = threading.Lock()


@contextmanager
def _one_process_at_a_time(tell: Callable[[str], None] | None) -> Generator[None]:
    """Processes that start together, such as workers, wait for the first of them, and then find what it made."""
    with ExitStack() as held:
        # Without locks (Windows, a home to read only, some file systems) each works for itself, and the first one's is
        # kept.
        with suppress(ImportError, OSError):
            import fcntl

            lock = home().with_suffix(".lock")
            lock.parent.mkdir(parents=True, exist_ok=True)
            stream = held.enter_context(lock.open("a", encoding="utf-8"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if tell is not None:
                    tell("another process is making a model ready; waiting for it")
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _write_all(loaded: Loaded, about: Mapping[str, Any], folder: Path, engine: Engine) -> None:
    """The graphs and what a session has to know, in a folder that is there."""
    network = loaded.model
    graphs = list(graphs_of(loaded))
    encoder, decoder = graphs[:2]
    is_sam = isinstance(decoder.network, DecoderGraph)
    if is_sam:
        inputs = {key: tensor for key, tensor in decoder.inputs.items() if key not in _OF_MASKS}
        tokens = answered("tokens", TokenDecoderGraph(network), inputs, tuple(decoder.outputs))
        # What it has to answer is what the other decoder says where no object has a mask.
        without = {**decoder.inputs, "has_mask": torch.zeros_like(decoder.inputs["has_mask"])}
        usual = answered("decoder", decoder.network, without, tuple(decoder.outputs))
        graphs.append(replace(tokens, outputs=usual.outputs))
    written: dict[str, tuple[int, str]] = {}
    for graph in graphs:
        path = folder / f"{graph.name}.onnx"
        write_onnx(graph, path)
        found = engine.open(path)({key: tensor.numpy() for key, tensor in graph.inputs.items()})
        apart = max(share_apart(found[key], tensor.numpy()) for key, tensor in graph.outputs.items())
        if not apart < FAR:
            raise PalpateError(
                f"what {engine.title} makes of {path.name} differs from PyTorch by {apart:.2g} of the largest value"
            )
        written[graph.name] = measured(path)
    content = {**about, "graphs": written, "levels": len(encoder.outputs) - 1, "no_point_after_box": not is_sam}
    (folder / ABOUT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _about(chosen: ModelCard, loaded: Loaded, adapter: Path | None, learned: Path | None) -> dict[str, Any]:
    """What a session has to know of a model, beside its graphs."""
    name, classes = chosen.name, ()
    if adapter is not None:
        name = f"{name} + {adapter_card(adapter).name}"
    elif learned is not None:
        card = learned_card(learned)
        name, classes = f"{name} + {card.name}", card.classes
    from_box = getattr(loaded.model, "from_box", None)
    return {
        "name": name,
        "weights_hash": loaded.weights_hash,
        "encoder_hash": loaded.encoder_hash,
        "frame": asdict(loaded.model.frame),
        "prompts": asdict(loaded.prompts),
        "classes": [asdict(one) for one in classes],
        "from_box": None if from_box is None else asdict(from_box),
    }


__all__ = ["prepare"]
