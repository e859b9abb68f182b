"""What would an encoder in int8 save, and what would it do to masks of real images?

    python benchmarks/int8.py DATA [--model lite-medsam] [--tool nncf] [--images 64] [--kinds MatMul Gemm] [--turns 15]

The encoder that is prepared for OpenVINO is quantised after training: weights of convolutions and products of matrices
a channel at a time, what goes into them by the range that it has on images of the split `train`, of which one slice of
each volume counts. ONNX Runtime's tool can leave some products as they are (`--kinds`, `--keep`); NNCF, which is
OpenVINO's own (`pip install nncf`), chooses by itself. Then both encoders take turns on one canvas, and
objects of `--split` are segmented from tight boxes with each, as in precision.py; the decoder stays as it is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino
from conditions import conditions
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from precision import objects, spread
from rich.progress import track

import palpate
from palpate import Box
from palpate.datasets import Case, open_dataset
from palpate.images import Image
from palpate.inference.prepared import measured
from palpate.inference.runtimes.engines import Answer, OpenVINO
from palpate.inference.runtimes.graphs import GraphRuntime
from palpate.inference.session import Session
from palpate.metrics import dice

KINDS = ("Conv", "MatMul", "Gemm")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--tool", choices=["onnxruntime", "nncf"], default="onnxruntime")
    parser.add_argument("--images", type=int, default=64, help="of train, by which ranges are set")
    parser.add_argument("--method", choices=["MinMax", "Percentile", "Entropy"], default="MinMax")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="which operations become int8")
    parser.add_argument("--keep", nargs="*", default=[], help="nodes with one of these in their names stay float32")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--cases", type=int, help="so many, evenly spread over the split")
    options = parser.parse_args()
    exact = palpate.load(options.model, device="cpu", runtime="openvino")
    runtime = exact.runtime
    assert isinstance(runtime, GraphRuntime)
    seen = list(open_dataset(options.data, split="train"))
    seen = spread(seen, options.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.perf_counter()
        encoder = runtime.prepared.graph("encoder")
        if options.tool == "nncf":
            quantise_by_nncf(encoder, folder, canvases(exact, seen))
        else:
            quantise(encoder, folder, canvases(exact, seen), options)
        took = time.perf_counter() - begun
        for path in runtime.prepared.folder.glob("*.onnx"):
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        graphs = {one.stem: measured(one) for one in folder.glob("*.onnx")}
        quantised = GraphRuntime(replace(runtime.prepared, folder=folder, graphs=graphs), Quantised())
        ratio, own, other = in_turns(runtime, quantised, options.turns)
        cases = list(open_dataset(options.data, split=options.split))
        cases = spread(cases, options.cases) if options.cases else cases
        agreement, with_exact, with_int8 = beside(exact, Session(quantised), cases)
        is_nncf = options.tool == "nncf"
        written = folder / ("encoder.bin" if is_nncf else "encoder.onnx")
        sizes = [graph.stat().st_size / 1e6 for graph in (encoder, written)]
    packages = ("openvino", "nncf") if is_nncf else ("openvino", "onnxruntime", "onnx")
    print(conditions(*packages, model=options.model, weights=runtime.weights_hash))
    how = "NNCF" if is_nncf else f"{options.method}, {', '.join(options.kinds)}"
    print(
        f"\nRanges of {len(seen)} images of train ({how}) in {took:.0f} s; {len(agreement)} objects of {len(cases)} "
        f"cases of {options.split}; {options.turns} turns.\n"
    )
    print("| encoder | ms | times quicker | MB | mean agreement | least | below 0.95 | Dice with the reference |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    print(f"| float32 | {1000 * own:.0f} | 1 | {sizes[0]:.0f} | 1 | 1 | 0 | {100 * np.mean(with_exact):.2f} |")
    few = sum(one < 0.95 for one in agreement)
    print(
        f"| int8 | {1000 * other:.0f} | {ratio:.2f} | {sizes[1]:.0f} | {np.mean(agreement):.4f} | "
        f"{min(agreement):.4f} | {few} | {100 * np.mean(with_int8):.2f} |"
    )


class Quantised(OpenVINO):
    """OpenVINO, which opens a graph in its own format where there is one beside the ONNX file."""

    def open(self, path: Path) -> Answer:
        """The graph in a file, compiled."""
        own = path.with_suffix(".xml")
        return super().open(own if own.exists() else path)


def canvases(session: Session, cases: list[Case]) -> Iterator[np.ndarray]:
    """What the encoder would see of them: one slice of each, as (1, 3, row, column)."""
    for case in track(cases, description="looking"):
        image, _, z = shown(case)
        session.set_image(image, axis=None if z is None else "z")
        yield session.runtime.frame.canvas(session.slices[z or 0])[None]


def shown(case: Case) -> tuple[Image, np.ndarray, int | None]:
    """The image, the labels of its fullest slice, and which slice that is; a picture has none."""
    given = case.read()
    if not given.image.is_volume:
        return given.image, given.labels, None
    z = int(np.argmax((given.labels > 0).sum(axis=(1, 2))))
    return given.image, given.labels[z], z


class Canvases(CalibrationDataReader):
    """Hands canvases to the quantisation, one after the other."""

    def __init__(self, given: Iterator[np.ndarray]) -> None:
        self.given = given

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one, as the encoder takes it."""
        canvas = next(self.given, None)
        return None if canvas is None else {"canvas": canvas}


def quantise(path: Path, folder: Path, given: Iterator[np.ndarray], options: argparse.Namespace) -> None:
    """Write `encoder.onnx` in int8 into a folder."""
    ready = folder / "ready.onnx"
    # Its optimiser knows the shapes, which its own way to tell them does not here.
    quant_pre_process(path, ready, skip_symbolic_shape=True)
    nodes = [node.name for node in onnx.load(ready).graph.node if any(part in node.name for part in options.keep)]
    quantize_static(
        ready,
        folder / "encoder.onnx",
        Canvases(given),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=options.kinds,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        nodes_to_exclude=nodes,
        calibrate_method=CalibrationMethod[options.method],
    )
    ready.unlink()


def quantise_by_nncf(path: Path, folder: Path, given: Iterator[np.ndarray]) -> None:
    """Write `encoder.xml` in int8 into a folder."""
    import nncf

    seen = list(given)
    model = nncf.quantize(
        openvino.Core().read_model(path),
        nncf.Dataset(seen),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(seen),
        # It takes the table of positions, of which a Gather picks, for weights, and stumbles (3.4.0).
        ignored_scope=nncf.IgnoredScope(types=["Gather"]),
    )
    openvino.save_model(model, folder / "encoder.xml", compress_to_fp16=False)


def in_turns(first: GraphRuntime, second: GraphRuntime, turns: int) -> tuple[float, float, float]:
    """How many times quicker the second encodes, and the median seconds of both."""
    size = first.frame.size
    canvas = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    seconds: list[list[float]] = []
    for turn in range(turns + 2):
        row = [timed(lambda: one.encode(canvas)) for one in (first, second)]  # noqa: B023 - run at once
        if turn > 1:
            seconds.append(row)
    columns = list(zip(*seconds, strict=True))
    return statistics.median(a / b for a, b in seconds), *(statistics.median(column) for column in columns)


def timed(job: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def beside(exact: Session, other: Session, cases: list[Case]) -> tuple[list[float], list[float], list[float]]:
    """Dice of the two sessions' masks with each other, and of each with the reference."""
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for case in track(cases, description="segmenting"):
        image, labels, z = shown(case)
        for session in (exact, other):
            session.set_image(image, axis=None if z is None else "z")
        for known in objects(labels):
            box = replace(Box.around(known), z=z)
            one, two = (
                mask if z is None else mask[z] for mask in (session.predict(box).mask for session in (exact, other))
            )
            for scores, pair in zip(found, ((one, two), (one, known), (two, known)), strict=True):
                scores.append(dice(*pair))
    return found


if __name__ == "__main__":
    main()
