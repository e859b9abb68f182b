"""By which window the model sees an image, and that it looks at a slice before anything is drawn there."""

import time
from collections.abc import Generator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from browsing import Screen, answering, until
from desks import Office
from fake_runtime import FakeRuntime
from palpate.models.promptable import ImageEmbedding
from palpate.server.app import PAGE
from palpate.server.draft import Step

pytestmark = pytest.mark.slow

BOX = (5, 5, 3), (55, 55, 3)
DIM, BRIGHT = 22 * 40, 18 * 40
"""Pixels of the two parts."""


@pytest.fixture
def office(tmp_path: Path) -> Generator[Office]:
    """A volume of a part of 100, which percentiles leave dark, and one of 200 beside it."""
    if not (PAGE / "vendor" / "niivue.js").is_file():
        pytest.skip("NiiVue is not packed; `pip install -e .` packs it where there is npm")
    volume = np.zeros((64, 64, 6), dtype=np.int16)
    volume[10:32, 10:50], volume[32:50, 10:50] = 100, 200
    volume[60, 60] = range(150, 156)  # no two slices are the same, which would be encoded once
    nibabel.Nifti1Image(volume, np.diag([1, 1, 4, 1.0])).to_filename(tmp_path / "two.nii")  # type: ignore[attr-defined]
    office = Office(tmp_path)
    yield office
    office.closed()


@pytest.fixture
def address(office: Office) -> Generator[str]:
    with answering(office) as where:
        yield where


def encodes(office: Office) -> int:
    runtime = office.session.runtime
    assert isinstance(runtime, FakeRuntime)
    return runtime.encodes


def window_of_the_last_step(office: Office) -> str | None:
    draft = office.desk.annotation("two.nii").draft
    assert draft is not None
    step = draft.steps[-1]
    assert isinstance(step, Step)
    return step.window


def test_the_slice_that_the_user_rests_on_is_encoded_once(office: Office, screen: Screen) -> None:
    screen.open("two.nii")
    until(lambda: encodes(office) == 1)
    screen.page.evaluate("[1, 2, 5, 4].forEach((k) => palpate.moveTo([30, 30, k]))")
    until(lambda: encodes(office) == 2)
    time.sleep(0.6)  # it would have been time for those that were only passed by
    before = encodes(office)
    assert before == 2
    screen.drag("axial", (5, 5, 4), (55, 55, 4))
    assert screen.draft is not None
    assert screen.draft["voxels"] == BRIGHT
    assert encodes(office) == before


def test_with_the_brush_in_hand_nothing_is_encoded(office: Office, screen: Screen) -> None:
    screen.press("d")
    screen.open("two.nii")
    screen.show((30, 30, 3))
    time.sleep(0.6)
    assert encodes(office) == 0
    screen.press("b")
    until(lambda: encodes(office) == 1)


def test_the_model_sees_the_window_of_the_page_where_the_user_says_so(office: Office, screen: Screen) -> None:
    screen.open("two.nii")
    screen.show((30, 30, 3))

    # Right drag: narrower, until what is dim is bright on the screen. The model does not mind.
    x, y = screen.place("axial", (30, 30, 3))
    for _ in range(2):
        screen.page.mouse.move(x, y)
        screen.page.mouse.down(button="right")
        screen.page.mouse.move(x - 100, y - 120, steps=3)
        screen.page.mouse.up(button="right")
    screen.drag("axial", *BOX)
    assert screen.draft is not None
    assert screen.draft["voxels"] == BRIGHT
    assert window_of_the_last_step(office) is None

    # With the key it does.
    screen.press("m")
    assert screen.page.get_attribute('#windowing [data-key="follows"]', "aria-pressed") == "true"
    screen.press("Escape")
    screen.drag("axial", *BOX)
    assert screen.draft["voxels"] == DIM + BRIGHT
    window = window_of_the_last_step(office)
    assert window is not None
    assert ".." in window

    # This browser remembers; the button takes it back; at its own window, the model's own rule is meant.
    screen.page.reload()
    screen.ready()
    until(lambda: screen.state["case"] == "two.nii")
    assert screen.page.get_attribute('#windowing [data-key="follows"]', "aria-pressed") == "true"
    screen.press("Escape")
    screen.show((30, 30, 3))
    screen.drag("axial", *BOX)
    assert window_of_the_last_step(office) is None
    screen.page.click('#windowing [data-key="follows"]')
    until(lambda: screen.page.get_attribute('#windowing [data-key="follows"]', "aria-pressed") == "false")


def test_what_is_drawn_waits_for_one_look_ahead_at_most(
    office: Office, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = office.session.runtime
    assert isinstance(runtime, FakeRuntime)
    quick = runtime.encode

    def slow(canvas: np.ndarray) -> ImageEmbedding:
        time.sleep(2)
        return quick(canvas)

    monkeypatch.setattr(runtime, "encode", slow)
    screen.open("two.nii")
    for k in (0, 1, 2, 4, 5):
        screen.show((30, 30, k))
        time.sleep(0.4)
    screen.drag("axial", (5, 5, 5), (55, 55, 5))
    assert screen.draft is not None
    assert encodes(office) <= 3  # the first that was rested on, perhaps one more, and that of the box
