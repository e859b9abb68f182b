"""A model as files that other programs run: ONNX, and OpenVINO's own format, with a report of how true they are.

What goes in and out is told in `palpate.models.graphs`, `palpate.models.finder_graph` and, for each model, in the
`model.json` beside the files.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from palpate.errors import OutputError, PalpateError, SettingError
from palpate.inference.environment import environment
from palpate.inference.prepared import WEIGHTS
from palpate.inference.runtimes.engines import in_short, locale_kept, openvino_core
from palpate.models.cards import LearnedCard
from palpate.models.catalogue import ModelCard
from palpate.models.finder_graph import FinderGraph
from palpate.models.graphs import EncoderGraph, Sam2DecoderGraph, decoder_graph
from palpate.models.weights import Loaded

Format = Literal["onnx", "openvino"]

OPSET = 17
"""The version of ONNX's operators: old enough for runtimes of 2022."""

FAR = 1e-3
"""A difference of this share of the largest value is more than rounding: such files are not written."""

Feeds = Mapping[str, np.ndarray]
Answer = Callable[[Feeds], dict[str, np.ndarray]]

_AXES = {
    "coordinates": ("object", "token"),
    "labels": ("object", "token"),
    "mask": ("object",),
    "has_mask": ("object",),
    "classes": ("item",),
}
"""Inputs of which there may be any number, and what their first extents are called; an answer has one for each."""

_GRAPHS = ("encoder", "decoder", "finder")

_LEVELS = tuple(f"level{number}" for number in range(1, 10))
"""Of which a model has as many as it has."""


@dataclass(frozen=True, eq=False)
class Graph:
    """One file to be: what computes, made-up input, and what it answers to that."""

    name: str
    network: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """The names of extents that are not fixed."""
        known = {name: _AXES[name] for name in self.inputs if name in _AXES}
        several = next((axes[:1] for axes in known.values()), ())
        return known | (dict.fromkeys(self.outputs, several) if several else {})

    def shapes(self, tensors: Mapping[str, Tensor]) -> dict[str, list[int | str]]:
        """The extents of inputs or outputs, by name where they are not fixed."""
        axes = self.axes
        return {
            name: [*axes.get(name, ()), *tensor.shape[len(axes.get(name, ())) :]] for name, tensor in tensors.items()
        }


@dataclass(frozen=True)
class Parity:
    """How far a runtime's answers are from PyTorch's on made-up input.

    `features` (all that the encoder gives) and `logits` (all that the decoder and the finder give) are the largest
    difference as a share of the largest value; `differing` is how many of a million pixels are on the other side of
    the mask's border.
    """

    runtime: str
    features: float
    logits: float
    differing: float


@dataclass(frozen=True)
class Exported:
    """The folder, its files, and how true each format is."""

    folder: Path
    files: tuple[str, ...]
    parity: tuple[Parity, ...]


def export(
    loaded: Loaded,
    card: ModelCard,
    folder: str | Path,
    *,
    formats: Sequence[Format],
    overwrite: bool = False,
    learned: LearnedCard | None = None,
) -> Exported:
    """Write `encoder` and `decoder` in these formats, and `model.json`, into a folder, all of it or nothing.

    A model with learned prompts becomes a `finder` as well; `learned` is the card of these. Each file is run beside
    PyTorch before it is kept.

    Raises:
        SettingError: a model whose decoder cannot be exported, or a format whose package is not installed.
        OutputError: the folder is there already, or cannot be written.
        PalpateError: what was written gives other answers than PyTorch.
    """
    folder = Path(folder)
    # "." has no name; but a link is not followed.
    folder = folder.resolve() if folder.name in ("", "..") else folder.parent.resolve() / folder.name
    if folder.exists() or folder.is_symlink():
        _may_be_replaced(folder, overwrite=overwrite)
    libraries: list[tuple[Format, Any]] = [(one, _library(one)) for one in formats]
    network = cast("nn.Module", loaded.model).cpu().eval()
    if loaded.finder is not None:
        loaded.finder.cpu().eval()
    graphs = graphs_of(loaded)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        half = work / "new"
        half.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another place") from error
    try:
        for graph in graphs:
            write_onnx(graph, half / f"{graph.name}.onnx")
        parity = tuple(_checked(name, library, graphs, half) for name, library in libraries)
        if "onnx" not in formats:
            for path in (*half.glob("*.onnx"), *half.glob(f"*.onnx{WEIGHTS}")):
                path.unlink()
        about = _about(loaded, card, learned, graphs, parity)
        (half / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            _may_be_replaced(folder, overwrite=overwrite)  # minutes have passed
        _put_in_place(half, folder, aside=work / "old")
    except OSError as error:
        raise OutputError(f"could not write {folder}: {error.strerror or error}; nothing was changed") from error
    finally:
        # What was there before goes only when the new one is in its place.
        if half.exists() and (work / "old").exists():
            warnings.warn(f"the earlier export is now {work / 'old'}", stacklevel=2)
        else:
            shutil.rmtree(work, ignore_errors=True)
        network.eval()
    return Exported(folder, tuple(sorted(path.name for path in folder.iterdir())), parity)


def _put_in_place(new: Path, folder: Path, *, aside: Path) -> None:
    """Move a folder to where it belongs; what was there goes aside, and comes back if that fails or is interrupted."""
    try:
        if folder.exists():
            folder.replace(aside)
        new.replace(folder)
    except BaseException:
        if new.exists() and aside.exists():
            with suppress(OSError):  # somebody else's is there now
                aside.replace(folder)
        raise


def _may_be_replaced(folder: Path, *, overwrite: bool) -> None:
    """Nothing goes but what an earlier export wrote."""
    if folder.is_symlink() or not folder.is_dir():
        raise OutputError(f"{folder} exists and is no folder; choose a new one")
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        is_ours = isinstance(about, dict) and {"weights_hash", "frame", "encoder", "opset", "parity"} <= about.keys()
    except (OSError, ValueError):
        is_ours = False
    if not is_ours:
        raise OutputError(f"{folder} exists, and is no earlier export; choose a new folder")
    known = {f"{name}{kind}" for name in _GRAPHS for kind in (".onnx", f".onnx{WEIGHTS}", ".xml", ".bin")}
    if others := sorted(path.name for path in folder.iterdir() if path.name not in {"model.json", *known}):
        raise OutputError(f"{folder} holds {others[0]}, which no export wrote; move it away, or choose a new folder")
    if not overwrite:
        raise OutputError(f"{folder} exists; --overwrite replaces it")


def graphs_of(loaded: Loaded) -> list[Graph]:
    """The model's verbs, and what PyTorch answers to made-up input."""
    encoder, decoder = EncoderGraph(loaded.model), decoder_graph(loaded.model)
    canvas, prompts = _made_up(loaded.model.frame.size, decoder.decoder.grid_size)
    made = [answered("encoder", encoder, {"canvas": canvas}, ("features", *_LEVELS))]
    seen = list(made[0].outputs.items())
    answers = ("logits", "predicted_iou", "object_logits")
    needed = dict(seen[: 1 + decoder.decoder.levels_read])
    made.append(answered("decoder", decoder, {**prompts, **needed}, answers))
    if loaded.finder is not None:
        finder = FinderGraph(loaded.finder)
        classes = torch.arange(3) % loaded.finder.predictor.classes
        needed = dict(seen[: 1 + finder.levels_read])
        made.append(answered("finder", finder, {"classes": classes, **needed}, answers))
    return made


def answered(name: str, network: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> Graph:
    """A network as a graph, with what it answers to some input; `outputs` may name more than it gives."""
    with torch.inference_mode():
        found = cast("tuple[Tensor, ...]", network.eval()(*inputs.values()))
    return Graph(name, network, inputs, dict(zip(outputs, found, strict=False)))


def _made_up(size: int, grid: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A smooth picture, and three objects: a box with a point, one with a mask as well, and two points alone."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 3, 8, 8), dtype=np.float32))
    canvas = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    places = torch.tensor(
        [[[0.5, 0.5], [0.2, 0.3], [0.7, 0.8]], [[0.3, 0.6], [0.1, 0.2], [0.6, 0.9]], [[0.4, 0.4]] * 3]
    )
    labels = torch.tensor([[1.0, 2, 3], [0, 2, 3], [1, 1, -1]])
    mask = torch.zeros(3, 1, 4 * grid, 4 * grid)
    mask[1, :, grid : 2 * grid, grid : 3 * grid] = 1
    return canvas, {
        "coordinates": places * size,
        "labels": labels,
        "mask": mask,
        "has_mask": torch.tensor([0.0, 1.0, 0.0]),
    }


def write_onnx(graph: Graph, path: Path) -> None:
    """One graph as ONNX; where it has more than 2 GB, which one file cannot hold, its weights go to `PATH.data`."""
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as parts:
        written = Path(parts) / path.name
        _write_onnx(graph, written)
        if len(list(Path(parts).iterdir())) > 1:
            gather_weights(written)
            written.with_name(path.name + WEIGHTS).replace(path.with_name(path.name + WEIGHTS))
        written.replace(path)


def gather_weights(path: Path, *, threshold: int = 1024) -> None:
    """A graph whose weights lie in a file each, as torch writes large ones, has them in `PATH.data` afterwards.

    Those of fewer bytes than the threshold go into the graph's own file.
    """
    import onnx

    # Checked against the standard by both runtimes, which open it next.
    model = onnx.load(path)
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=path.name + WEIGHTS,
        size_threshold=threshold,
    )


def _write_onnx(graph: Graph, path: Path) -> None:
    with torch.inference_mode(), warnings.catch_warnings():
        # The tracing exporter: torch's newer one needs packages of its own and minutes.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.network,
            tuple(graph.inputs.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes={name: dict(enumerate(axes)) for name, axes in graph.axes.items()},
        )


def _library(name: Format) -> Any:
    """The package that runs files of a format."""
    package = {"onnx": "onnxruntime", "openvino": "openvino"}[name]
    try:
        return import_module(package)
    except ImportError:
        raise SettingError(
            f"{name} files are checked before they are kept, by a package that is not here; install it with: pip "
            f"install 'palpate[export]' (or {package} alone)"
        ) from None


def _opened_by_onnxruntime(library: Any, path: Path) -> Answer:
    session = library.InferenceSession(str(path.with_suffix(".onnx")), providers=["CPUExecutionProvider"])
    known, names = {item.name for item in session.get_inputs()}, [item.name for item in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        found = session.run(None, {key: value for key, value in feeds.items() if key in known})
        return dict(zip(names, found, strict=True))

    return run


def _opened_by_openvino(library: Any, path: Path) -> Answer:
    core = openvino_core()
    # Weights stay float32: half of it moves mask borders.
    with locale_kept():
        library.save_model(core.read_model(path.with_suffix(".onnx")), path.with_suffix(".xml"), compress_to_fp16=False)
        compiled = core.compile_model(path.with_suffix(".xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # A tensor has several names where OpenVINO left out an operation that did nothing.
    known = set[str]().union(*(item.get_names() for item in compiled.inputs))

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        found = compiled({key: value for key, value in feeds.items() if key in known})
        return {name: np.array(found[item]) for item in compiled.outputs for name in item.get_names()}

    return run


def _checked(name: Format, library: Any, graphs: Sequence[Graph], folder: Path) -> Parity:
    """How true the files of a format are; those of OpenVINO are written on the way."""
    opened = _opened_by_onnxruntime if name == "onnx" else _opened_by_openvino
    package, title = {"onnx": ("onnxruntime", "ONNX Runtime"), "openvino": ("openvino", "OpenVINO")}[name]
    called = f"{title} {version(package)}"
    apart = {"features": 0.0, "logits": 0.0}
    differing: list[np.ndarray] = []
    for graph in graphs:
        try:
            found = opened(library, folder / graph.name)({name: x.numpy() for name, x in graph.inputs.items()})
        except OSError:
            raise
        except Exception as error:
            raise PalpateError(
                f"{called} cannot run the {name} files ({graph.name}: {in_short(error)}), so nothing was kept"
            ) from error
        expected = {name: tensor.numpy() for name, tensor in graph.outputs.items()}
        part = "features" if graph.name == "encoder" else "logits"
        apart[part] = max(apart[part], *(share_apart(found[key], value) for key, value in expected.items()))
        if not apart[part] < FAR:
            raise PalpateError(
                f"what {called} makes of the {name} files differs from PyTorch by {apart[part]:.2g} of the largest "
                f"value ({graph.name}), so nothing was kept; please report this"
            )
        if part == "logits":
            differing.append(((found["logits"] > 0) != (expected["logits"] > 0)).ravel())
    return Parity(called, **apart, differing=float(1e6 * np.concatenate(differing).mean()))


def share_apart(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest value; infinite for another shape or what is no number."""
    if found.shape != wanted.shape or not np.isfinite(found - wanted).all():
        return float("inf")
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-12))


def _about(
    loaded: Loaded,
    card: ModelCard,
    learned: LearnedCard | None,
    graphs: Sequence[Graph],
    parity: Sequence[Parity],
) -> dict[str, Any]:
    """All that a program needs that runs the files, ready for JSON."""
    packages: dict[str, str] = {}
    for name in ("onnxruntime", "openvino"):
        with suppress(ImportError):
            packages[name] = version(name)
    about: dict[str, Any] = {
        "model": card.name,
        "weights_hash": loaded.weights_hash,
        "licence": card.licence,
        "frame": asdict(loaded.model.frame),
        "prompts": {
            "trained": card.prompts.trained,
            "beside_box": card.prompts.beside_box,
            "no_point_after_box": any(isinstance(graph.network, Sam2DecoderGraph) for graph in graphs),
        },
    }
    if learned is not None:
        about["learned"] = {
            "name": learned.name,
            "classes": [asdict(one) for one in learned.classes],
            "intensity": learned.intensity,
            "modality": learned.modality,
            "licence": learned.licence,
        }
    for graph in graphs:
        about[graph.name] = {"inputs": graph.shapes(graph.inputs), "outputs": graph.shapes(graph.outputs)}
    return {
        **about,
        "opset": OPSET,
        "parity": [asdict(one) for one in parity],
        "versions": {**environment(), **packages},
    }


__all__ = [
    "FAR",
    "Exported",
    "Format",
    "Graph",
    "Parity",
    "answered",
    "export",
    "gather_weights",
    "graphs_of",
    "share_apart",
    "write_onnx",
]
