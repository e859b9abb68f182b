"""The semi-autonomous mode on the page: what is drawn goes in beside what was learned of the chosen label."""

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from browsing import Screen, answering, until
from desks import Office
from palpate.models.promptable import LearnedClass
from palpate.server.app import PAGE

pytestmark = pytest.mark.slow

FIRST, LAST = (20, 16), (43, 39)
"""The bright square of each picture: its first and last pixel, as (column, row)."""


GREY = 6
"""So many columns beside the square are grey: the model takes them for the object, and what was learned does not."""


@pytest.fixture
def office(tmp_path: Path) -> Generator[Office]:
    """Two pictures, and something that was learned of `object`, but not of the other label."""
    if not (PAGE / "vendor" / "niivue.js").is_file():
        pytest.skip("NiiVue is not packed; `pip install -e .` packs it where there is npm")
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        canvas = np.full((64, 64), 10, dtype=np.uint8)
        canvas[FIRST[1] : LAST[1] + 1, FIRST[0] : LAST[0] + 1] = 255
        canvas[FIRST[1] : LAST[1] + 1, FIRST[0] : FIRST[0] + GREY] = 180
        Picture.fromarray(canvas).save(folder / f"case-{number:02}.png")
    office = Office(folder)
    office.finding.classes = (LearnedClass("rim", 7), LearnedClass("object", 1))
    yield office
    office.closed()


@pytest.fixture
def address(office: Office) -> Generator[str]:
    with answering(office) as where:
        yield where


def square(screen: Screen, *, around: int = 4) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two corners of a box around the square: a picture's column 0 has the largest i, its row 0 the largest j."""
    columns, rows, _ = screen.state["image"]["shape"]
    (left, top), (right, bottom) = FIRST, LAST
    return (
        (columns - 1 - left + around, rows - 1 - top + around, 0),
        (columns - 1 - right - around, rows - 1 - bottom - around, 0),
    )


def test_prompts_go_in_beside_what_was_learned_where_one_says_so(
    office: Office, window: Callable[..., Screen], tmp_path: Path
) -> None:
    side = LAST[0] - FIRST[0] + 1
    whole, bright = side**2, side * (side - GREY)
    box = '#draft [data-key="beside"]'
    screen = window(1280, 800)
    page = screen.page
    screen.open("case-00.png")
    assert page.locator(box).count() == 0
    screen.press("l")
    assert "nothing was learned yet" in page.inner_text("#said")
    office.learn("object")
    page.reload()
    screen.ready()
    until(lambda: screen.state["case"] == "case-00.png")
    until(lambda: page.locator(box).count() == 1)
    assert not page.is_checked(box)

    # By hand: the grey part is taken in. Beside what was learned it is not.
    screen.drag("axial", *square(screen))
    assert screen.draft["voxels"] == whole
    page.check(box)
    screen.drag("axial", *square(screen))
    assert screen.draft["voxels"] == bright
    assert page.inner_text("#said") == f"box on axial, beside what was learned of object: {bright} voxels"
    until(lambda: screen.draft["agreement"] == 1)
    assert "learned object" in page.inner_text("#draft .facts")
    screen.press("l")
    assert not page.is_checked(box)
    screen.drag("axial", *square(screen))
    assert screen.draft["voxels"] == whole
    screen.press("l", "Control+z")
    assert screen.draft["voxels"] == bright

    # The mask that follows the hand is made the same way.
    screen.drag("axial", *square(screen), release=False)
    until(lambda: screen.page.evaluate("palpate.state().gesture?.previewed === true"))
    page.mouse.up()
    screen.idle()
    assert screen.draft["voxels"] == bright
    screen.press("Enter")
    assert screen.voxels(1) == bright

    # Of another label nothing was learned, so it is by hand; this browser remembers the choice.
    page.click('#labels [data-key="new"]')
    page.fill("#labels input.name", "vessel")
    page.keyboard.press("Enter")
    until(lambda: "nothing was learned of a label of this name" in page.inner_text("#draft"))
    assert page.is_disabled(box)
    screen.drag("axial", *square(screen))
    assert screen.draft["voxels"] == whole
    screen.press("Escape")
    page.reload()
    screen.ready()
    screen.open("case-01.png")
    until(lambda: page.is_checked(box))
    screen.drag("axial", *square(screen))
    assert screen.draft["voxels"] == bright
    page.screenshot(path=tmp_path / "beside.png")
