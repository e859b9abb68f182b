"""What does a second worker of a dask cluster save when a folder is segmented by learned prompts?

    python benchmarks/folder.py DATA LEARNED.safetensors [--images 40] [--rounds 3]

DATA is a manifest, its folder, or another data set that palpate opens; the first images of its test split go into a
folder, and LEARNED is what `palpate learn` made. A cluster of one worker process and one of two segment that folder in
turns, so that what else the machine does falls on both alike; the ratio is the median of the ratios of single rounds.
Each round has a cluster of its own, as workers remember what they encoded; that they start, and load the network on
other images, is not counted. Every mask and every line of the table must be the same as what this process writes by
itself, or there is no table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from conditions import conditions

from palpate.datasets import open_dataset
from palpate.inference.folder import find_in
from palpate.inference.folder_helpers import Helpers, Loading
from palpate.inference.folder_images import Entry
from palpate.inference.processes import quick_memory

WORKERS = (1, 2)
WARMING = 8
"""So many images are segmented before, so that each worker gets some."""


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("learned", type=Path)
    parser.add_argument("--images", type=int, default=40, help="how many; all the test split has, if it has fewer")
    parser.add_argument("--dataset", nargs="*", help="only these of DATA")
    parser.add_argument("--split", default="test", help="of DATA, or `all`")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    split = None if options.split == "all" else options.split
    cases = list(open_dataset(options.data, dataset=options.dataset or None, split=split))[: options.images + WARMING]
    entries = [Entry(case.image, f"{number:03d}-{case.image.name}") for number, case in enumerate(cases)]
    if len(entries) <= WARMING:
        sys.exit(f"{options.data} has {len(entries)} such images; {WARMING} are needed to warm up, and some to measure")
    loading = Loading({"auto": options.learned, "device": "cpu"})
    session = loading()
    told = conditions(
        "torch", "openvino", "distributed", model=session.runtime.model, weights=session.runtime.weights_hash
    )
    seconds = measure(entries[WARMING:], entries[:WARMING], loading, options.rounds)
    count = len(entries) - WARMING
    print(
        f"{told}; {count} images, workers of one thread each; medians of {options.rounds} rounds, with equal files in "
        f"every round\n\n{report(seconds, count)}"
    )


def measure(entries: Sequence[Entry], others: Sequence[Entry], loading: Loading, rounds: int) -> dict[int, list[float]]:
    """Seconds of every round, by the number of workers."""
    from distributed import LocalCluster

    session = loading()
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        find_in(session, entries, folder / "alone", helpers=Helpers(loading))
        wanted = content(folder / "alone")
        for number in range(rounds):
            for workers in WORKERS:
                with ExitStack() as stack:
                    with quick_memory():
                        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
                    stack.enter_context(cluster)
                    helpers = Helpers(loading, dask=cluster.scheduler_address)
                    find_in(session, others, folder / f"warm-{number}-{workers}", helpers=helpers)
                    out = folder / f"{number}-{workers}"
                    start = time.perf_counter()
                    find_in(session, entries, out, helpers=helpers)
                    seconds[workers].append(time.perf_counter() - start)
                if content(out) != wanted:
                    sys.exit(f"round {number}: {workers} workers wrote something else than one process")
                print(f"round {number}, {workers}: {seconds[workers][-1]:.2f} s", file=sys.stderr)
    return seconds


def content(folder: Path) -> dict[str, bytes]:
    """All that was written, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def report(seconds: dict[int, list[float]], images: int) -> str:
    """The table: medians over rounds; ratios to one worker, round by round."""
    first = seconds[WORKERS[0]]
    lines = [
        "| workers | seconds | images a second | times as fast as one |",
        "|---:|---:|---:|---:|",
    ]
    for workers, own in seconds.items():
        middle = statistics.median(own)
        ratio = statistics.median(a / b for a, b in zip(first, own, strict=True))
        lines.append(f"| {workers} | {middle:.2f} | {images / middle:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
