"""How long does a fresh process take from the command to the mask of a picture?

    python benchmarks/start.py IMAGE --box X0 Y0 X1 Y1 [--rounds 7]

`palpate predict` as a person would type it, on each runtime in turn; each has run once before, so that files are in
memory and models are prepared. A ratio is the median of the ratios of single rounds, to the first of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
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
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()
