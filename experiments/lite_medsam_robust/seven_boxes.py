"""The seven boxes of "robust Dice", and errors on tiny targets, of runs that `palpate evaluate` made.

python experiments/lite_medsam_robust/seven_boxes.py RUN [RUN ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import run

from palpate.evaluation.table import read_run


def main() -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders with results.csv and run.json")
    print(run.head("run"))
    for folder in parser.parse_args().runs:
        print(f"| {folder.name} | " + " | ".join(f"{value:.1f}" for value in run.numbers(read_run(folder).rows)) + " |")


if __name__ == "__main__":
    main()
