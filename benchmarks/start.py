"""How long does a fresh process take from the command to the mask of a picture?

    python benchmarks/start.py IMAGE --box X0 Y0 X1 Y1 [--rounds 7] [--steps | --roads]

`palpate predict` as a person would type it, on each runtime in turn; each has run once before, so that files are in
memory and models are prepared. A ratio is the median of the ratios of single rounds, to the first of them.

With `--steps` instead, what the default runtime does one after the other, each in as many fresh processes; with
`--roads`, other orders in which it could be done, which take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conditions import conditions

WAYS = {
    "torch": ("--runtime", "torch"),
    "onnxruntime": ("--runtime", "onnxruntime"),
    "openvino": ("--runtime", "openvino"),
    "openvino, bfloat16": ("--runtime", "openvino", "--precision", "bfloat16"),
}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--box", nargs=4, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--steps", action="store_true", help="what the default runtime spends it on, instead")
    parser.add_argument("--roads", action="store_true", help="other orders of these steps, instead")
    parser.add_argument("--road", choices=[*ROADS], help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.begun is not None:
        box = [float(side) for side in options.box]
        if options.road is None:
            print(json.dumps(steps(options.image, box, options.begun)))
        else:
            ROADS[options.road](options.image, box)
            print(json.dumps(time.time() - options.begun), flush=True)
        return
    if options.steps or options.roads:
        print(f"{said()}; {options.rounds} rounds\n")
        (tell_steps if options.steps else tell_roads)(options.rounds)
        return
    seconds: dict[str, list[float]] = {way: [] for way in options.ways}
    peaks: dict[str, float] = {}
    program = str(Path(sys.executable).with_name("palpate"))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + 1):
            for way in options.ways:
                mask = str(Path(folder) / f"{number}-{way}.png")
                command = [program, "predict", str(options.image), "--box", *options.box, "-o", mask, *WAYS[way]]
                start = time.perf_counter()
                child = os.posix_spawn(
                    program, command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
                )
                _, status, used = os.wait4(child, 0)
                if status:
                    raise SystemExit(f"{' '.join(command)} failed")
                if number:
                    seconds[way].append(time.perf_counter() - start)
                peaks[way] = used.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    print(f"{said()}; {options.rounds} rounds\n")
    print("| runtime | seconds, median (least) | times quicker | peak memory, GB |\n|---|---:|---:|---:|")
    first = seconds[options.ways[0]]
    for way, own in seconds.items():
        quicker = statistics.median(a / b for a, b in zip(first, own, strict=True))
        print(f"| {way} | {statistics.median(own):.2f} ({min(own):.2f}) | {quicker:.2f} | {peaks[way]:.2f} |")


def said() -> str:
    """The model, the machine and versions."""
    from palpate.models import DEFAULT, catalogue  # not above: children of this script are timed

    weights = catalogue.card(DEFAULT).content_sha256 or ""
    return conditions("torch", "openvino", "onnxruntime", "numpy", model=DEFAULT, weights=weights)


def tell_roads(rounds: int) -> None:
    """Print the seconds of every road; each is this script in a fresh process, and they take turns."""
    told: dict[str, list[float]] = {road: [] for road in ROADS}
    for number in range(rounds + 1):
        for road, own in told.items():
            command = [sys.executable, *sys.argv, "--road", road, "--begun", repr(time.time())]
            seconds = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            if number:
                own.append(seconds)
    first = next(iter(told.values()))
    print("| road | seconds, median | least | times quicker |\n|---|---:|---:|---:|")
    for road, own in told.items():
        quicker = statistics.median(a / b for a, b in zip(first, own, strict=True))
        print(f"| {road} | {statistics.median(own):.2f} | {min(own):.2f} | {quicker:.2f} |")


def tell_steps(rounds: int) -> None:
    """Print the median of every step; each round is this script in a fresh process."""
    told: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        begun = time.time()
        command = [sys.executable, *sys.argv, "--begun", repr(begun)]
        told.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        told[-1]["ending"] = time.time() - begun - sum(told[-1].values())
    medians = {step: statistics.median(one[step] for one in told[1:]) for step in told[0]}
    print("| step | seconds, median | least |\n|---|---:|---:|")
    for step, middle in medians.items():
        print(f"| {step} | {middle:.3f} | {min(one[step] for one in told[1:]):.3f} |")
    print(f"| sum | {sum(medians.values()):.3f} | |")


def steps(path: Path, box: list[float], begun: float) -> dict[str, float]:
    """Seconds of what `palpate predict` does, in its order; `begun` is when the process was started.

    It is the real command, whose functions say when they are through.
    """
    ends = {"Python itself": time.time()}

    def saying(step: str, job: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            answer = job(*given, **more)
            ends.setdefault(step, time.time())
            return answer

        return run

    import palpate.cli

    ends["importing the command line"] = time.time()
    from palpate.cli import predict

    def when_parsed(*given: Any, check: Callable[..., None] = predict._check_paths, **more: Any) -> None:
        ends["parsing the command, with what parses it"] = time.time()
        check(*given, **more)
        import palpate.images

        palpate.images.read = read_and_on(saying("reading the picture, with what reads pictures", palpate.images.read))

    def read_and_on(read: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            image = read(*given, **more)
            # What the command imports next, so that it can be listened to.
            from palpate.inference import loading
            from palpate.inference.runtimes import engines, graphs

            engines.openvino_core = saying("importing OpenVINO and what runs models", engines.openvino_core)
            loading.load = saying("finding and opening the prepared model", loading.load)
            for name, step in (("encode", "encoding"), ("decode", "answering the box")):
                setattr(graphs.GraphRuntime, name, saying(step, getattr(graphs.GraphRuntime, name)))
            return image

        return run

    predict._check_paths = when_parsed
    with tempfile.TemporaryDirectory() as folder:
        command = ["predict", str(path), "--box", *map(str, box), "-o", f"{folder}/mask.png", "--runtime", "openvino"]
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            try:
                palpate.cli.main(command)
            except SystemExit as stop:
                if stop.code:
                    raise
    ends["writing the mask, and telling"] = time.time()
    times = [begun, *ends.values()]
    return {step: after - before for step, before, after in zip(ends, times, times[1:], strict=False)}


def usual(path: Path, box: list[float]) -> None:
    """One after the other, as palpate does it."""
    import palpate.cli
    from palpate.images import read

    palpate.cli.be_quick()
    session = palpate.load(runtime="openvino")
    session.set_image(read(path))
    session.predict(palpate.Box(*box))


def opened_beside(path: Path, box: list[float]) -> None:
    """The model is opened in a thread while the picture is read."""
    import palpate.cli
    from palpate.images import read

    palpate.cli.be_quick()
    sessions: list[palpate.Session] = []
    other = threading.Thread(target=lambda: sessions.append(palpate.load(runtime="openvino")))
    other.start()
    image = read(path)
    other.join()
    sessions[0].set_image(image)
    sessions[0].predict(palpate.Box(*box))


def decoder_beside(path: Path, box: list[float]) -> None:
    """The decoder is opened in a thread while the picture is encoded."""
    import palpate.cli
    from palpate.images import read
    from palpate.inference import loading
    from palpate.inference.runtimes.graphs import GraphRuntime

    class Late(GraphRuntime):
        """Opens its encoder first."""

        @property
        def _usual(self) -> str:
            return "encoder"

    palpate.cli.be_quick()
    loading.GraphRuntime = Late  # pyright: ignore[reportPrivateImportUsage]
    session = palpate.load(runtime="openvino")
    assert isinstance(session.runtime, Late)
    other = threading.Thread(target=session.runtime.answer, args=("tokens",))
    other.start()
    session.set_image(read(path))
    session.encode([0])
    other.join()
    session.predict(palpate.Box(*box))


def nothing_kept(path: Path, box: list[float]) -> None:
    """OpenVINO compiles the graphs, of which it keeps nothing."""
    from palpate.inference.runtimes import engines

    kept = engines.OpenVINO
    engines.OpenVINO = lambda precision, _, threads: kept(precision, None, threads)  # pyright: ignore
    usual(path, box)


ROADS: dict[str, Callable[[Path, list[float]], None]] = {
    "as palpate does it": usual,
    "model opened in a thread while the picture is read": opened_beside,
    "decoder opened in a thread while the picture is encoded": decoder_beside,
    "nothing kept of what OpenVINO compiled": nothing_kept,
}


if __name__ == "__main__":
    main()
