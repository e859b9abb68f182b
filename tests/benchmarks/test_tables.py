"""What the benchmarks print of numbers that are known."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("conditions", "runtimes", "volume", "folder", "precision", "growth", "start")


@pytest.fixture(scope="module")
def scripts() -> Generator[dict[str, Any]]:
    """The benchmarks' own modules, as they are when one of them is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in NAMES}
        for name in NAMES:
            sys.modules.pop(name, None)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_is_said_above_a_table(scripts: dict[str, Any]) -> None:
    told = scripts["conditions"].conditions(
        "numpy", "no-such-package", model="lite-medsam", weights="0" * 64, threads=2
    )
    assert told.startswith("lite-medsam (weights 000000000000); ")
    assert ", 2 threads; Python 3." in told
    assert told.endswith(f"numpy {np.__version__}, no-such-package (missing)")
    assert "palpate " in told


def test_runtimes_are_compared_turn_by_turn(scripts: dict[str, Any]) -> None:
    turn = scripts["runtimes"].Turn
    # The machine was half as fast in the second turn: ratios of medians would say something else.
    turns = {
        "torch": [turn(1.0, 0.04, 0.64, 0.64), turn(2.0, 0.08, 1.28, 1.28), turn(2.0, 0.08, 1.28, 1.28)],
        "openvino": [turn(0.5, 0.02, 0.32, 0.16), turn(1.0, 0.04, 0.64, 0.32), turn(0.4, 0.01, 0.64, 0.32)],
    }
    half, whole = np.zeros((2, 1, 4, 4), bool), np.zeros((2, 1, 4, 4), bool)
    whole[:, :, :2] = True
    half[0, :, :1] = True
    half[1] = whole[1]
    table = scripts["runtimes"].report(turns, {"torch": 0.9, "openvino": 0.7}, {"torch": whole, "openvino": half})
    rows = [cells(line) for line in table.splitlines()[2:]]
    assert rows[0] == ["torch", "2000", "1.00", "80", "1.00", "80", "80", "1.00", "1.0000 (1.0000)", "0.90"]
    dice = (1 + 2 / 3) / 2
    assert rows[1] == ["openvino", "500", "2.00", "20", "2.00", "40", "20", "2.00", f"{dice:.4f} (0.6667)", "0.70"]


def test_the_least_dice_is_that_of_the_worst_organ(scripts: dict[str, Any]) -> None:
    known = np.repeat(np.arange(5, dtype=np.uint16), 8).reshape(5, 8)
    found = known.copy()
    found[3, :4] = 0
    assert scripts["volume"].least_dice(known, known) == 1
    assert scripts["volume"].least_dice(found, known) == pytest.approx(2 * 4 / (4 + 8))


def test_workers_are_compared_round_by_round(scripts: dict[str, Any]) -> None:
    table = scripts["folder"].report({1: [40.0, 20.0, 20.0], 2: [20.0, 10.0, 20.0]}, 40)
    assert [cells(line) for line in table.splitlines()[2:]] == [
        ["1", "20.00", "2.00", "1.00"],
        ["2", "20.00", "2.00", "2.00"],
    ]


def test_objects_are_the_largest_parts_of_the_largest_labels(scripts: dict[str, Any]) -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[2:12, 2:12] = 1
    labels[20:23, 20:23] = 1  # a smaller part of the same
    labels[30:38, 2:10] = 2
    labels[30:33, 30:33] = 3  # the third label
    found = scripts["precision"].objects(labels)
    assert [int(mask.sum()) for mask in found] == [100, 64]
    assert scripts["precision"].objects(np.zeros((4, 4), np.uint8)) == []
