"""A day of opening and closing cases: what is held at the end is what was held at the beginning."""

import gc
import tracemalloc
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from desks import Office
from palpate.inference.session import Session
from palpate.server.annotation import Annotation
from palpate.server.opened import OpenImage

CYCLES = 300
MEASURED = 25
"""So many of them come before memory is counted, and as many after."""

MAX_OPEN = 3
CASES = 5
"""More than may be open at once, so that images are let go of and read anew."""

BOX = {"kind": "box", "plane": "axial", "from": [6, 6, 3], "to": [25, 25, 3]}


@pytest.mark.slow
def test_cases_that_are_opened_and_closed_leave_nothing_behind(tmp_path: Path) -> None:
    volume = np.zeros((32, 32, 8), dtype=np.int16)
    volume[8:24, 8:24, 2:6] = 200
    for number in range(CASES):
        image = nibabel.Nifti1Image(volume, np.diag([1, 1, 3.0, 1]))  # type: ignore[attr-defined]
        image.to_filename(tmp_path / f"case-{number}.nii")
    office = Office(tmp_path, max_open=MAX_OPEN)

    def cycle(number: int) -> None:
        window = office.open(f"case-{number % CASES}.nii")
        if number % 30 < CASES:  # what was drawn stays with the case, and comes with it from now on
            window.do("prompts", prompt=BOX)
            assert window.state["draft"]["voxels"] == 16 * 16
        assert window.post("close").status_code == 204

    def held() -> Counter[str]:
        office.session.runtime.batches.clear()  # the fake one's diary
        gc.collect()
        found = Counter[str]()
        for one in gc.get_objects():
            # By type alone: to ask a stranger for its class may wake it (torch's deprecated names warn).
            if type(one) is OpenImage:
                found["images"] += getattr(one._make_session, "__self__", None) is office.session
            elif type(one) is Annotation:
                found["annotations"] += one._journal is office.desk.journal
            elif type(one) is Session:
                found["sessions"] += one.runtime is office.session.runtime
        return found

    for number in range(CYCLES - 2 * MEASURED):
        cycle(number)
    few = held()
    tracemalloc.start()  # which makes everything slow
    try:
        for number in range(MEASURED):
            cycle(number)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(MEASURED):
            cycle(number)
        many = held()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert office.desk.leases.held() == set()
    assert 0 < many["images"] <= MAX_OPEN + 1
    assert many["annotations"] <= many["images"]
    assert many["sessions"] <= many["images"] + 1  # one of each image that was drawn on, and the office's own
    assert few["images"] == many["images"]
    # An image with its map and what is drawn on it takes 40 kB: of 25 cycles not eight may be left.
    assert after - before < 300_000, f"{(after - before) / 1000:.0f} kB more"
    office.closed()
