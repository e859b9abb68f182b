"""A model as files that other programs run: ONNX, and OpenVINO's own format, with a report of how true they are.

What goes in and out is told in `palpate.models.graphs` and, for each model, in the `model.json` beside the files.
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
from palpate.models.catalogue import ModelCard
from palpate.models.graphs import DecoderGraph, EncoderGraph
from palpate.models.weights import Loaded

Format = Literal["onnx", "openvino"]

OPSET = 17
"""The version of ONNX's operators: old enough for runtimes of 2022."""

FAR = 1e-3
"""A difference of this share of the largest value is more than rounding: such files are not written."""

_PROMPTS = ("coordinates", "labels", "mask", "has_mask")
_MASKS = ("logits", "predicted_iou")

Feeds = Mapping[str, np.ndarray]
Answer = Callable[[Feeds], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Parity:
    """How far a runtime's answers are from PyTorch's on made-up input.

    `features` and `logits` are the largest difference as a share of the largest value; `differing` is how many of a
    million pixels are on the other side of the mask's border.
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
    loaded: Loaded, card: ModelCard, folder: str | Path, *, formats: Sequence[Format], overwrite: bool = False
) -> Exported:
    """Write `encoder` and `decoder` in these formats, and `model.json`, into a folder, all of it or nothing.

    Each file is run beside PyTorch before it is kept.

    Raises:
        SettingError: a model whose decoder cannot be exported, or a format whose package is not installed.
        OutputError: the folder is there already, or cannot be written.
        PalpateError: what was written gives other answers than PyTorch.
    """
    folder = Path(folder)
    if folder.exists() and not (overwrite and (folder / "model.json").is_file()):
        hint = "--overwrite replaces it" if (folder / "model.json").is_file() else "choose a new folder"
        raise OutputError(f"{folder} exists; {hint}")
    runners: list[tuple[Format, Callable[[Path], tuple[str, Answer, Answer]]]] = [
        (one, _runner(one)) for one in formats
    ]
    network = cast("nn.Module", loaded.model).cpu().eval()
    encoder, decoder = EncoderGraph(loaded.model).eval(), DecoderGraph(loaded.model).eval()
    canvas, prompts = _made_up(loaded.model.frame.size, decoder.decoder.grid_size)
    with torch.inference_mode():
        embedding = encoder(canvas)
        wanted = decoder(*prompts.values(), *embedding)
    names = ("features", *(f"level{number}" for number in range(1, len(embedding))))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another place") from error
    try:
        _write(encoder, (canvas,), half / "encoder.onnx", ("canvas",), names)
        inputs = (*_PROMPTS, *names)
        _write(decoder, (*prompts.values(), *embedding), half / "decoder.onnx", inputs, _MASKS, objects=True)
        feeds = {name: tensor.numpy() for name, tensor in ({"canvas": canvas} | prompts).items()}
        feeds |= {name: tensor.numpy() for name, tensor in zip(names, embedding, strict=True)}
        expected = dict(zip((*names, *_MASKS), (x.numpy() for x in (*embedding, *wanted)), strict=True))
        parity = tuple(_checked(name, run(half), feeds, expected) for name, run in runners)
        if "onnx" not in formats:
            for path in half.glob("*.onnx"):
                path.unlink()
        about = _about(loaded, card, names, expected, feeds, parity)
        (half / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        half.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        half.replace(folder)
    except OSError as error:
        raise OutputError(f"could not write {folder}: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
        network.eval()
    return Exported(folder, tuple(sorted(path.name for path in folder.iterdir())), parity)


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


def _write(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    into: Sequence[str],
    out: Sequence[str],
    *,
    objects: bool = False,
) -> None:
    """One graph as ONNX; a decoder's takes any number of `objects`, and of tokens for each."""
    axes: dict[str, dict[int, str]] = {}
    if objects:
        axes = {name: {0: "object"} for name in (*_PROMPTS, *_MASKS)}
        axes["coordinates"][1] = axes["labels"][1] = "token"
    with torch.inference_mode(), warnings.catch_warnings():
        # The tracing exporter: torch's newer one needs packages of its own and minutes.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            inputs,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(into),
            output_names=list(out),
            dynamic_axes=axes,
        )


def _runner(name: Format) -> Callable[[Path], tuple[str, Answer, Answer]]:
    """What runs files of a format, as (how it is called, the encoder, the decoder) of a folder with ONNX in it."""
    package = {"onnx": "onnxruntime", "openvino": "openvino"}[name]
    try:
        library = import_module(package)
    except ImportError:
        raise SettingError(
            f"{name} files are checked before they are kept, by a package that is not here; install it with: pip "
            f"install 'palpate[export]' (or {package} alone)"
        ) from None
    opened = _opened_by_onnxruntime if name == "onnx" else _opened_by_openvino
    title = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[name]

    def run(folder: Path) -> tuple[str, Answer, Answer]:
        return f"{title} {version(package)}", opened(library, folder / "encoder"), opened(library, folder / "decoder")

    return run


def _opened_by_onnxruntime(library: Any, path: Path) -> Answer:
    session = library.InferenceSession(str(path.with_suffix(".onnx")), providers=["CPUExecutionProvider"])
    known, names = {item.name for item in session.get_inputs()}, [item.name for item in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        found = session.run(None, {key: value for key, value in feeds.items() if key in known})
        return dict(zip(names, found, strict=True))

    return run


def _opened_by_openvino(library: Any, path: Path) -> Answer:
    core = library.Core()
    # Weights stay float32: half of it moves mask borders.
    library.save_model(core.read_model(path.with_suffix(".onnx")), path.with_suffix(".xml"), compress_to_fp16=False)
    compiled = core.compile_model(path.with_suffix(".xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # A tensor has several names where OpenVINO left out an operation that did nothing.
    known = set[str]().union(*(item.get_names() for item in compiled.inputs))

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        found = compiled({key: value for key, value in feeds.items() if key in known})
        return {name: np.array(found[item]) for item in compiled.outputs for name in item.get_names()}

    return run


def _checked(
    name: Format, runner: tuple[str, Answer, Answer], feeds: Feeds, expected: Mapping[str, np.ndarray]
) -> Parity:
    """How true the files of a format are."""
    called, encoder, decoder = runner
    found = encoder(feeds) | decoder(feeds)
    parity = Parity(
        runtime=called,
        features=max(_apart(found[key], value) for key, value in expected.items() if key not in _MASKS),
        logits=max(_apart(found[key], expected[key]) for key in _MASKS),
        differing=float(1e6 * np.mean((found["logits"] > 0) != (expected["logits"] > 0))),
    )
    if not max(parity.features, parity.logits) < FAR:
        raise PalpateError(
            f"what {called} makes of the {name} files differs from PyTorch by "
            f"{max(parity.features, parity.logits):.2g} of the largest value, so nothing was kept; please report this"
        )
    return parity


def _apart(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest value; infinite for another shape."""
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-12))


def _about(
    loaded: Loaded,
    card: ModelCard,
    names: Sequence[str],
    outputs: Mapping[str, np.ndarray],
    inputs: Feeds,
    parity: Sequence[Parity],
) -> dict[str, Any]:
    """All that a program needs that runs the files, ready for JSON."""

    def shapes(names: Sequence[str], arrays: Feeds) -> dict[str, list[int | str]]:
        found: dict[str, list[int | str]] = {name: list(arrays[name].shape) for name in names}
        for name in {*_PROMPTS, *_MASKS} & set(names):
            found[name][0] = "object"
            if name in ("coordinates", "labels"):
                found[name][1] = "token"
        return found

    packages: dict[str, str] = {}
    for name in ("onnxruntime", "openvino"):
        with suppress(ImportError):
            packages[name] = version(name)
    return {
        "model": card.name,
        "weights_hash": loaded.weights_hash,
        "licence": card.licence,
        "frame": asdict(loaded.model.frame),
        "prompts": {"trained": card.prompts.trained, "beside_box": card.prompts.beside_box},
        "encoder": {
            "inputs": shapes(["canvas"], inputs),
            "outputs": shapes(names, outputs),
        },
        "decoder": {
            "inputs": shapes([*_PROMPTS, *names[: 1 + _levels(loaded)]], inputs),
            "outputs": shapes(_MASKS, outputs),
        },
        "opset": OPSET,
        "parity": [asdict(one) for one in parity],
        "versions": {**environment(), **packages},
    }


def _levels(loaded: Loaded) -> int:
    return int(cast("nn.Module", loaded.model).get_submodule("prompt_decoder").levels_read)  # pyright: ignore[reportArgumentType]


__all__ = ["Exported", "Format", "Parity", "export"]
