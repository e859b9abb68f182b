"""How often do the 95 % intervals hold the truth? Subjects drawn from a known, skewed distribution, again and again.

    python benchmarks/interval_coverage.py

Values are like mean Dice of subjects: most near 0.9, some far below (Beta with parameters 5 and 0.8, mean 0.862).
"""

from __future__ import annotations

import argparse
from importlib.metadata import version

import numpy as np
from rich.console import Console
from rich.progress import track

from palpate.evaluation.statistics import Resampler, interval

ALPHA, BETA = 5.0, 0.8


def main() -> None:
    """Draw, count, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    truth = ALPHA / (ALPHA + BETA)
    print(f"python benchmarks/interval_coverage.py --repeats {options.repeats} --seed {options.seed}")
    print(f"palpate {version('palpate')}, numpy {version('numpy')}, scipy {version('scipy')}\n")
    print("| subjects | intervals that hold the mean |\n|---:|---:|")
    for subjects in (4, 8, 15, 30, 60):
        held = 0
        for _ in track(range(options.repeats), description=f"{subjects} subjects", console=Console(stderr=True)):
            values = dict(enumerate(rng.beta(ALPHA, BETA, subjects).tolist()))
            found = interval({"set": {str(key): value for key, value in values.items()}}, Resampler(rng, 1999))
            held += found.low <= truth <= found.high
        share = held / options.repeats
        error = np.sqrt(share * (1 - share) / options.repeats)
        print(f"| {subjects} | {100 * share:.1f} % (standard error {100 * error:.1f}) |")


if __name__ == "__main__":
    main()
