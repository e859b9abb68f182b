"""Where does the time of the default runtime go, and what do other roads give?

    python benchmarks/roads.py [--model lite-medsam] [--turns 15]

OpenVINO's own profile of the encoder and of the decoder, by kind of layer; how many operations both need, beside what
this machine does in a large product of matrices; and other ways to run the same networks, which take turns with the
one that palpate takes, so that what else the machine does falls on all alike. A ratio is the median of the ratios of
single turns. The weights must be here (`palpate models get`); all in float32 where nothing else is said.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from conditions import conditions
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

import palpate
from palpate.inference.export import answered, write_onnx
from palpate.inference.processes import be_quick
from palpate.inference.runtimes.graphs import OBJECTS_AT_ONCE, GraphRuntime
from palpate.models import catalogue, weights
from palpate.models.graphs import EncoderGraph
from palpate.models.token_graph import TokenDecoderGraph

BOXES = 16
BATCH = 4
POINTS = (2, 8, 16, 24, 40)
SHIPPED: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "SNIPPETS_MODE": "DISABLE",
}
"""As in `palpate.inference.runtimes.engines`."""
FUSED: dict[str, Any] = {name: value for name, value in SHIPPED.items() if name != "SNIPPETS_MODE"}
ROUNDED = {"INFERENCE_PRECISION_HINT": "bf16"}

Feeds = Mapping[str, np.ndarray]
Job = Callable[[], object]
Way = tuple[Job, int]
"""Something to be timed, and how many images or boxes it answers."""


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    be_quick()
    torch.set_num_threads(options.threads)
    ready = palpate.load(options.model, device="cpu", runtime="openvino").runtime
    assert isinstance(ready, GraphRuntime)
    if "tokens" not in ready.prepared.graphs:
        raise SystemExit(f"{options.model} has no decoder for tokens alone; choose a model of the SAM family")
    loaded = weights.load(catalogue.card(options.model))
    said = conditions("torch", "openvino", model=options.model, weights=ready.weights_hash, threads=options.threads)
    print(f"{said}; {options.turns} turns\n")
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        Roads(ready, loaded.model, options.threads, options.turns, Path(name)).told()


class Roads:
    """One model, its prepared graphs, and made-up input for them."""

    def __init__(self, ready: GraphRuntime, network: Any, threads: int, turns: int, scratch: Path) -> None:
        self.paths = {name: ready.prepared.graph(name) for name in ready.prepared.graphs}
        self.network = network.eval()
        self.threads, self.turns, self.scratch = threads, turns, scratch
        size = ready.frame.size
        self.canvas = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
        features, *levels = EncoderGraph(network)(torch.from_numpy(self.canvas))
        self.seen = {"features": features.numpy()}
        self.seen |= {f"level{number}": level.numpy() for number, level in enumerate(levels, start=1)}
        self.mask_size = ready.frame.mask_size

    def told(self) -> None:
        """Print everything."""
        self.operations()
        self.profile("encoder", {"canvas": self.canvas})
        self.profile("encoder", {"canvas": self.canvas}, ROUNDED)
        self.profile("tokens", self.boxes(1))
        self.compare("an image", self.of_encoder())
        self.compare("an image, bfloat16", self.of_rounded_encoder())
        self.compare("a box alone", self.of_decoder(1))
        self.compare(f"a box, {OBJECTS_AT_ONCE} in a call", self.of_decoder(OBJECTS_AT_ONCE))
        self.compare(f"a box of {BOXES}", self.of_calls())
        for count in POINTS:
            self.compare(f"an object of {count} points", self.of_points(count))

    def boxes(self, count: int, *, masks: bool = False) -> dict[str, np.ndarray]:
        """What the decoder is asked for so many boxes."""
        size = self.canvas.shape[-1]
        corners = np.array([[0.2, 0.3], [0.6, 0.7]], dtype=np.float32) * size
        asked = {
            "coordinates": np.repeat(corners[None], count, axis=0),
            "labels": np.repeat(np.array([[2, 3]], dtype=np.float32), count, axis=0),
            **self.seen,
        }
        if masks:
            asked["mask"] = np.zeros((count, 1, self.mask_size, self.mask_size), dtype=np.float32)
            asked["has_mask"] = np.zeros(count, dtype=np.float32)
        return asked

    def operations(self) -> None:
        """What the networks need at least, at the pace of a product of matrices."""
        side = 2048
        paces: list[float] = []
        for kind in (torch.float32, torch.bfloat16):
            a, b = torch.rand(side, side).to(kind), torch.rand(side, side).to(kind)
            least = min(timed(lambda: a @ b) for _ in range(10))  # noqa: B023 - run at once
            paces.append(2 * side**3 / least / 1e9)
        pace, rounded = paces
        print(
            f"A product of two matrices of {side} x {side}, best of ten: {pace:.0f} GFLOP/s in float32, "
            f"{rounded:.0f} in bfloat16.\n"
        )
        print("| part | GFLOP | at that pace, ms | in bfloat16, ms |\n|---|---:|---:|---:|")
        parts: list[tuple[str, torch.nn.Module, Feeds]] = [
            ("encoder, an image", EncoderGraph(self.network), {"canvas": self.canvas}),
            ("decoder, one box", TokenDecoderGraph(self.network), self.boxes(1)),
            (f"decoder, {BOXES} boxes", TokenDecoderGraph(self.network), self.boxes(BOXES)),
        ]
        for title, graph, feeds in parts:
            with FlopCounterMode(display=False) as counter:
                graph(*map(torch.from_numpy, feeds.values()))
            needed = counter.get_total_flops() / 1e9
            print(f"| {title} | {needed:.1f} | {1000 * needed / pace:.0f} | {1000 * needed / rounded:.0f} |")
        print()

    def profile(self, name: str, feeds: Feeds, more: Mapping[str, Any] | None = None) -> None:
        """Which kinds of layers a graph's time goes to."""
        settings = {**SHIPPED, **(more or {})}
        compiled = self.compiled(self.paths[name], {**settings, "PERF_COUNT": True})
        request, known = compiled.create_infer_request(), inputs_of(compiled)
        spent: Counter[str] = Counter()
        feeds = {key: value for key, value in feeds.items() if key in known}
        for turn in range(4):
            request.infer(feeds)
            if turn:  # the first one finds its memory
                for layer in request.profiling_info:
                    spent[layer.node_type] += layer.real_time.total_seconds()
        total = sum(spent.values())
        kinds = ", ".join(f"{kind} {100 * own / total:.0f} %" for kind, own in spent.most_common(8))
        print(f"{name}, {settings['INFERENCE_PRECISION_HINT']}, by kind of layer: {kinds}\n")

    def compiled(self, source: Any, settings: Mapping[str, Any]) -> Any:
        """A graph on OpenVINO, compiled anew."""
        return openvino.Core().compile_model(source, "CPU", {"INFERENCE_NUM_THREADS": self.threads, **settings})

    def runner(self, source: Any, settings: Mapping[str, Any], feeds: Feeds) -> Job:
        """Something that runs a graph on what it knows of these arrays."""
        compiled = self.compiled(source, settings)
        request, known = compiled.create_infer_request(), inputs_of(compiled)
        given = {key: value for key, value in feeds.items() if key in known}
        return lambda: request.infer(given, share_inputs=True)

    def of_encoder(self) -> dict[str, Way]:
        """Ways to encode images; the first is palpate's."""
        path, one = self.paths["encoder"], {"canvas": self.canvas}
        several = {"canvas": np.repeat(self.canvas, BATCH, axis=0)}
        folded = self.scratch / "folded.onnx"
        with torch.inference_mode(mode=False):
            encoder = EncoderGraph(without_batch_norm(self.network))
        write_onnx(answered("encoder", encoder, {"canvas": torch.from_numpy(self.canvas)}, ("features",)), folded)
        batched = self.scratch / "batched.onnx"
        example = {"canvas": torch.from_numpy(several["canvas"])}
        write_onnx(answered("encoder", EncoderGraph(self.network), example, ("features", *self.seen)[:1]), batched)
        picture = torch.from_numpy(self.canvas)
        last = picture.to(memory_format=torch.channels_last)
        eager = EncoderGraph(self.network)
        return {
            "OpenVINO, as palpate runs it": (self.runner(path, SHIPPED, one), 1),
            "with its own fusion of attention": (self.runner(path, FUSED, one), 1),
            "threads pinned to cores": (self.runner(path, {**SHIPPED, "ENABLE_CPU_PINNING": True}, one), 1),
            "threads not pinned": (self.runner(path, {**SHIPPED, "ENABLE_CPU_PINNING": False}, one), 1),
            "batch normalisation folded into convolutions before": (self.runner(folded, SHIPPED, one), 1),
            f"a batch of {BATCH} images": (self.runner(batched, SHIPPED, several), BATCH),
            "two images at once, a thread each": (self.in_two_streams(path, one), 2),
            "bfloat16": (self.runner(path, {**SHIPPED, **ROUNDED}, one), 1),
            "torch": (lambda: eager(picture), 1),
            "torch, channels last": (lambda: eager(last), 1),
        }

    def of_rounded_encoder(self) -> dict[str, Way]:
        """Ways to encode images in lower precision; the first is palpate's."""
        path, one = self.paths["encoder"], {"canvas": self.canvas}
        several = {"canvas": np.repeat(self.canvas, BATCH, axis=0)}
        rounded, batched = {**SHIPPED, **ROUNDED}, self.scratch / "batched.onnx"
        picture, eager = torch.from_numpy(self.canvas), EncoderGraph(self.network)

        def by_torch() -> object:
            with torch.autocast("cpu", torch.bfloat16):
                return eager(picture)

        return {
            "OpenVINO, as palpate runs it": (self.runner(path, rounded, one), 1),
            "with its own fusion of attention": (self.runner(path, {**FUSED, **ROUNDED}, one), 1),
            "batch normalisation folded into convolutions before": (
                self.runner(self.scratch / "folded.onnx", rounded, one),
                1,
            ),
            f"a batch of {BATCH} images": (self.runner(batched, rounded, several), BATCH),
            "two images at once, a thread each": (self.in_two_streams(path, one, ROUNDED), 2),
            "float16": (self.runner(path, {**SHIPPED, "INFERENCE_PRECISION_HINT": "f16"}, one), 1),
            "torch, autocast": (by_torch, 1),
        }

    def in_two_streams(self, path: Path, feeds: Feeds, more: Mapping[str, Any] | None = None) -> Job:
        """Twice the same side by side, each on a thread of its own."""
        two = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": 2}
        settings = {**SHIPPED, **two, **(more or {})}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        requests, known = [compiled.create_infer_request() for _ in range(2)], inputs_of(compiled)
        given = {key: value for key, value in feeds.items() if key in known}

        def run() -> None:
            for request in requests:
                request.start_async(given, share_inputs=True)
            for request in requests:
                request.wait()

        return run

    def of_decoder(self, count: int) -> dict[str, Way]:
        """Ways to answer boxes; the first is palpate's."""
        tokens, full = self.paths["tokens"], self.paths["decoder"]
        asked, as_well = self.boxes(count), self.boxes(count, masks=True)
        return {
            "OpenVINO, as palpate runs it": (self.runner(tokens, SHIPPED, asked), count),
            "with its own fusion of attention": (self.runner(tokens, FUSED, asked), count),
            "cells projected first, as SAM is written, a copy for each object": (
                self.runner(full, SHIPPED, as_well),
                count,
            ),
            "the same, with its own fusion of attention": (self.runner(full, FUSED, as_well), count),
            "one mask instead of four": (self.runner(self.of_one_mask(), SHIPPED, asked), count),
            "threads pinned to cores": (self.runner(tokens, {**SHIPPED, "ENABLE_CPU_PINNING": True}, asked), count),
            "one thread": (self.runner(tokens, {**SHIPPED, "INFERENCE_NUM_THREADS": 1}, asked), count),
            "two such calls at once, a thread each": (self.in_two_streams(tokens, asked), 2 * count),
            "bfloat16": (self.runner(tokens, {**SHIPPED, **ROUNDED}, asked), count),
        }

    def of_one_mask(self) -> Path:
        """The decoder for boxes without the three candidates."""
        path = self.scratch / "one.onnx"
        if not path.exists():
            network = copy.deepcopy(self.network)
            answer = network.prompt_decoder.answer
            network.prompt_decoder.answer = lambda *given, **more: answer(*given, **{**more, "every_mask": False})
            asked = {name: torch.from_numpy(value) for name, value in self.boxes(2).items()}
            with torch.inference_mode():
                write_onnx(answered("tokens", TokenDecoderGraph(network), asked, ("logits", "predicted_iou")), path)
        return path

    def of_calls(self) -> dict[str, Way]:
        """Sixteen boxes, so many a call; the first is palpate's."""
        sizes = (OBJECTS_AT_ONCE, 1, 2, 4, BOXES)

        def repeated(job: Job, times: int) -> Job:
            return lambda: [job() for _ in range(times)]

        return {
            f"{size} in a call": (
                repeated(self.runner(self.paths["tokens"], SHIPPED, self.boxes(size)), BOXES // size),
                BOXES,
            )
            for size in sizes
        }

    def of_points(self, count: int) -> dict[str, Way]:
        """One object, so many points; the first is palpate's."""
        rng, size = np.random.default_rng(0), self.canvas.shape[-1]
        asked = self.boxes(1, masks=True)
        asked["coordinates"] = rng.uniform(0, size, (1, count, 2)).astype(np.float32)
        asked["labels"] = np.ones((1, count), dtype=np.float32)
        return {
            "OpenVINO, as palpate runs it": (self.runner(self.paths["tokens"], SHIPPED, asked), 1),
            "cells projected first, as SAM is written": (self.runner(self.paths["decoder"], SHIPPED, asked), 1),
        }

    def compare(self, unit: str, ways: Mapping[str, Way]) -> None:
        """Let all take turns, and print how they do beside the first."""
        for job, _ in ways.values():
            job()
            job()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.turns):
            for name, (job, count) in ways.items():
                seconds[name].append(timed(job) / count)
        print(f"| {unit} | ms, median | least | times quicker |\n|---|---:|---:|---:|")
        first = next(iter(seconds.values()))
        for name, own in seconds.items():
            quicker = statistics.median(a / b for a, b in zip(first, own, strict=True))
            print(f"| {name} | {1000 * statistics.median(own):.1f} | {1000 * min(own):.1f} | {quicker:.2f} |")
        print()


def inputs_of(compiled: Any) -> set[str]:
    """All names of what goes in."""
    return set[str]().union(*(item.get_names() for item in compiled.inputs))


def without_batch_norm(network: Any) -> Any:
    """A copy in which each convolution has taken in the batch normalisation after it."""
    changed = copy.deepcopy(network).eval()
    for module in changed.modules():
        children = list(module.named_children())
        for (name, first), (after, second) in itertools.pairwise(children):
            if isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(first, second))
                setattr(module, after, torch.nn.Identity())
    return changed


def timed(job: Job) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
