"""Teach and guess in the page: ten cases are done by hand, the others are guessed, corrected, accepted or undone."""

import json
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from browsing import Screen, answering, until
from desks import Office
from fake_runtime import FakeFindingRuntime
from palpate.inference.session import Session
from palpate.models.promptable import LearnedClass
from palpate.server.app import PAGE, make_app
from palpate.server.jobs import Report
from palpate.server.taught_cases import write_cases
from palpate.server.teaching import ENOUGH, Teaching

pytestmark = pytest.mark.slow

FIRST, LAST = (20, 16), (43, 39)
"""The bright square of each picture: its first and last pixel, as (column, row)."""

REST = 2


class QuickTeaching(Teaching):
    """It learns nothing, in 40 steps, of which the last are taken when `go` is set; all else is as it is."""

    go: threading.Event

    def _teach(self, cases: Sequence[str], report: Report) -> str:
        names = write_cases(self._desk, cases, self._folder / "cases", progress=report.progress)
        number = self._next()
        path = self._path(number)
        while not self.go.is_set():
            report.progress(12, 40, "step 12 of 40")
            self.go.wait(0.02)
        path.touch()
        run = path.with_suffix(".run")
        run.mkdir()
        (run / "run.json").write_text(json.dumps({"metrics": {"val_dice": {"mean": 0.914}}}), encoding="utf-8")
        self._keep(number, cases, tuple(names.values()))
        return f"learned {', '.join(names.values())} from {len(cases)} cases"


@dataclass(eq=False)
class Finding(FakeFindingRuntime):
    """It finds what is bright when `go` is set: the object that was taught, and a rim that no label is called."""

    classes: tuple[LearnedClass, ...] = (LearnedClass("rim", 7), LearnedClass("object", 1))
    go: threading.Event = field(default_factory=threading.Event)

    def find(self, *asked: Any, **more: Any) -> Any:
        assert self.go.wait(30)
        return super().find(*asked, **more)


@dataclass
class School(Office):
    """An office that learns quickly."""

    finding: Finding = field(default_factory=Finding)

    def __post_init__(self) -> None:
        super().__post_init__()
        load = lambda path, tell: Session(self.finding)  # noqa: E731
        self.teaching = self.quick = QuickTeaching(self.desk, self.desk.state / "learned", self.jobs, load=load)
        self.quick.go = threading.Event()
        self.app = make_app(self.desk, self.jobs, self.teaching, self.session, token=self.token)
        self.client = self.another()


@pytest.fixture
def office(tmp_path: Path) -> Generator[School]:
    if not (PAGE / "vendor" / "niivue.js").is_file():
        pytest.skip("NiiVue is not packed; `pip install -e .` packs it where there is npm")
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(ENOUGH + REST):
        canvas = np.zeros((64, 64), dtype=np.uint8)
        canvas[FIRST[1] : LAST[1] + 1, FIRST[0] : LAST[0] + 1] = 255
        canvas[FIRST[1] - 2 : LAST[1] + 3, FIRST[0] - 2 : LAST[0] + 3] |= 110  # the rim, two pixels wide
        Picture.fromarray(canvas).save(folder / f"case-{number:02}.png")
    office = School(folder)
    yield office
    office.quick.go.set()
    office.finding.go.set()
    office.closed()


@pytest.fixture
def address(office: School) -> Generator[str]:
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


def status_of(screen: Screen, case: str) -> str:
    return next(one["status"] for one in screen.state["cases"] if one["id"] == case)


def test_ten_cases_teach_and_the_rest_is_guessed(office: School, screen: Screen) -> None:
    page = screen.page
    teach, guess, cancel = (f'#teach [data-key="{key}"]' for key in ("teach", "guess", "cancel"))

    def said() -> str:
        return page.inner_text("#teach")

    def offered(button: str) -> bool:
        return page.is_enabled(button) and "main" in page.get_attribute(button, "class")

    def done_by_hand(number: int) -> None:
        screen.open(f"case-{number:02}.png")
        screen.drag("axial", *square(screen))
        screen.press("Enter", "Control+Enter")
        until(lambda: status_of(screen, f"case-{number:02}.png") == "done")

    # Fewer than three teach nothing; fewer than ten may, and it is not offered.
    assert page.is_disabled(teach)
    for number in range(2):
        done_by_hand(number)
    until(lambda: f"2 of {ENOUGH}" in said())
    assert page.is_disabled(teach)
    for number in range(2, ENOUGH - 1):
        window = office.open(f"case-{number:02}.png")
        columns, rows, _ = window.opened["image"]["shape"]
        box = [[columns - 1 - x, rows - 1 - y, 0] for x, y in (FIRST, LAST)]
        window.do("prompts", prompt={"kind": "box", "plane": "axial", "from": box[0], "to": box[1]})
        window.do("accept", label=1)
        window.do("done", done=True)
        window.post("close")
    done_by_hand(ENOUGH - 1)
    until(lambda: f"{ENOUGH} of {ENOUGH}" in said())
    assert offered(teach)
    assert page.is_disabled(guess)

    # Teaching shows how far it is, and can be cancelled.
    page.click(teach)
    until(lambda: "12 of 40" in said())
    assert page.get_attribute('#teach [role="progressbar"]', "aria-valuenow") == "30"
    assert not page.is_visible(teach)
    page.click(cancel)
    until(lambda: screen.state["message"]["text"] == "cancelled")
    assert offered(teach)
    assert page.is_disabled(guess)

    # The page works on meanwhile, and another window of it sees it, too.
    page.click(teach)
    until(lambda: "12 of 40" in said())
    screen.press("Control+z")
    assert screen.draft is not None
    screen.press("Control+y")
    page.reload()
    screen.ready()
    until(lambda: "12 of 40" in said())
    office.quick.go.set()
    until(lambda: f"Learned from {ENOUGH} cases, Dice 0.91" in said())
    assert f"{REST} are untouched" in said()
    assert "learned object" in screen.state["message"]["text"]
    assert "learned object" in page.inner_text("#said")
    assert offered(guess)
    assert not offered(teach)

    # So does guessing.
    page.click(guess)
    until(lambda: "Guessing" in said())
    page.click(cancel)
    until(lambda: "stopping" in said())
    assert page.is_disabled(cancel)
    office.finding.go.set()
    until(lambda: screen.state["message"]["text"] == "cancelled")
    guessed = [f"case-{number:02}.png" for number in range(ENOUGH, ENOUGH + REST)]
    assert page.is_enabled(guess)
    page.click(guess)
    until(lambda: all(status_of(screen, case) == "guessed" for case in guessed))
    until(lambda: "2 of 2 cases have a first guess" in page.inner_text("#said"))
    until(lambda: page.is_disabled(guess))
    until(lambda: [label["name"] for label in screen.state["labels"]] == ["object", "rim"])  # without a reload

    # One is corrected and accepted: the guess holds the square and the rim around it.
    screen.open(guessed[0])
    side = LAST[0] - FIRST[0] + 1
    assert screen.voxels(1) == side**2
    assert screen.voxels(2) == (side + 4) ** 2 - side**2
    middle = tuple((a + b) // 2 for a, b in zip(*square(screen), strict=True))
    inside = (middle[0], middle[1], 0)
    assert screen.value(inside)["label"] == 1
    page.click('#labels [data-key="pick1"]')
    screen.press("e")
    screen.click("axial", inside)
    assert screen.value(inside)["label"] == 0
    assert screen.voxels(1) < side**2
    assert page.get_attribute('#history [data-key="undo"]', "title") == "Undo eraser in object (Ctrl+Z)"
    until(lambda: status_of(screen, guessed[0]) == "started")
    screen.press("Control+Enter")
    until(lambda: status_of(screen, guessed[0]) == "done")
    until(lambda: f"{ENOUGH + 1} of {ENOUGH}" in said())

    # The other one is undone, and is as if nobody had touched it.
    screen.open(guessed[1])
    assert screen.voxels(1) == side**2
    assert page.get_attribute('#history [data-key="undo"]', "title") == "Undo first guess (Ctrl+Z)"
    screen.press("Control+z")
    assert screen.voxels(1) == 0
    assert page.inner_text("#said") == "undone: first guess"
    until(lambda: status_of(screen, guessed[1]) == "untouched")
    until(lambda: offered(guess))
