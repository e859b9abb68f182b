"""How long does a fresh process take from the command to the mask of a picture?

    python benchmarks/start.py IMAGE --box X0 Y0 X1 Y1 [--rounds 7] [--steps]

`palpate predict` as a person would type it, on each runtime in turn; each has run once before, so that files are in
memory and models are prepared. A ratio is the median of the ratios of single rounds, to the first of them.

With `--steps` instead, what the default runtime does one after the other, each in as many fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

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
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.begun is not None:
        print(json.dumps(steps(options.image, [float(side) for side in options.box], options.begun)))
        return
    if options.steps:
        tell_steps(options.rounds)
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
    packages = ", ".join(f"{name} {version(name)}" for name in ("palpate", "torch", "openvino", "onnxruntime"))
    print(f"{os.cpu_count()} cores, {platform.machine()}; {options.rounds} rounds; {packages}\n")
    print("| runtime | seconds, median (least) | times quicker | peak memory, GB |\n|---|---:|---:|---:|")
    first = seconds[options.ways[0]]
    for way, own in seconds.items():
        quicker = statistics.median(a / b for a, b in zip(first, own, strict=True))
        print(f"| {way} | {statistics.median(own):.2f} ({min(own):.2f}) | {quicker:.2f} | {peaks[way]:.2f} |")


def tell_steps(rounds: int) -> None:
    """Print the median of every step; each round is this script in a fresh process."""
    told: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        command = [sys.executable, *sys.argv, "--begun", repr(time.time())]
        told.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    medians = {step: statistics.median(one[step] for one in told[1:]) for step in told[0]}
    packages = ", ".join(f"{name} {version(name)}" for name in ("palpate", "openvino", "numpy"))
    print(f"{os.cpu_count()} cores, {platform.machine()}; {rounds} rounds; {packages}\n")
    print("| step | seconds, median | least |\n|---|---:|---:|")
    for step, middle in medians.items():
        print(f"| {step} | {middle:.3f} | {min(one[step] for one in told[1:]):.3f} |")
    print(f"| sum | {sum(medians.values()):.3f} | |")


def steps(path: Path, box: list[float], begun: float) -> dict[str, float]:
    """Seconds of what `palpate predict` does, in its order; `begun` is when the process was started."""
    ends = {"Python itself": time.time()}
    import palpate.cli

    palpate.cli.be_quick()
    ends["importing the command line"] = time.time()
    from palpate.images import read

    image = read(path)
    ends["reading the picture, with what reads pictures"] = time.time()
    from palpate.inference.runtimes.engines import openvino_core

    openvino_core()
    ends["importing OpenVINO"] = time.time()
    session = palpate.load(runtime="openvino")
    ends["finding and opening the prepared model"] = time.time()
    session.set_image(image)
    session.encode([0])
    ends["encoding"] = time.time()
    session.predict(palpate.Box(*box))
    ends["answering the box"] = time.time()
    times = [begun, *ends.values()]
    return {step: after - before for step, before, after in zip(ends, times, times[1:], strict=False)}


if __name__ == "__main__":
    main()
