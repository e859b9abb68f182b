"""The tutorial "Make MedSAM forgive your boxes" runs as it is written."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from command_line import Run

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "forgiving-boxes.md"


def do_all(palpate: Run, *, instead: dict[str, str]) -> None:
    """Run the page's Python and its commands, from top to bottom, in an empty folder; `instead` replaces some words."""
    for language, text in re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        for word, other in instead.items():
            text = text.replace(word, other)
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), {"__name__": "__main__"})
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "palpate"
            answer = palpate(*arguments)
            assert answer.status == 0, answer.err


def mean_dice(run: Path, protocol: str) -> float:
    with (run / "results.csv").open() as file:
        return float(np.mean([float(row["dice"]) for row in csv.DictReader(file) if row["protocol"] == protocol]))


@pytest.mark.slow
def test_every_step_runs(palpate: Run, small_model: None) -> None:
    quick = {
        "range(20)": "range(8)",
        "--epochs 4 --steps 10": "--epochs 1 --steps 2",
        "--workers 1": "--workers 1 --worst 0",
    }
    do_all(palpate, instead=quick)
    assert Path("new-preview.png").is_file()
    assert Path("after/report.html").is_file()


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.usefixtures("weights")
def test_the_model_learns_what_the_page_promises(palpate: Run) -> None:
    do_all(palpate, instead={})
    before, after = Path("before"), Path("after")
    assert mean_dice(after, "shrink") > mean_dice(before, "shrink") + 0.2
    assert mean_dice(after, "standard") > mean_dice(before, "standard") - 0.01
