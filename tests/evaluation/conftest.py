"""A small dataset that can be worked out by hand: bright squares on 64 x 64 pictures, which the fake model finds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_cases import write_case

from palpate.datasets import Case
from phantoms import column, picture, rectangle


@pytest.fixture
def squares(tmp_path: Path) -> list[Case]:
    """Three pictures of two subjects; label 1 is a square of 16 pixels a side, label 2 one of 6."""
    folder = tmp_path / "squares"
    folder.mkdir()
    cases: list[Case] = []
    for number, corner in enumerate((4, 8, 12)):
        large = rectangle((64, 64), corner, corner, corner + 15, corner + 15)
        small = rectangle((64, 64), 50, 40, 55, 45)
        labels = large.astype(np.uint8) + 2 * small.astype(np.uint8)
        image = picture((large, 250), (small, 220))
        cases.append(write_case(folder, f"case{number}", image, labels, subject=f"subject{number // 2}"))
    return cases


@pytest.fixture
def block(tmp_path: Path) -> Case:
    """A volume of 8 slices 4 mm apart: a square of 10 pixels (2 mm each) from slice 2 to 5."""
    mask = column((8, 64, 64), rectangle((64, 64), 20, 20, 29, 29), 2, 5)
    image = np.where(mask, 250, 0).astype(np.uint8)
    case = write_case(tmp_path, "block", image, mask.astype(np.uint8), spacing=(2.0, 2.0, 4.0))
    return replace(case, dataset="blocks")
