"""What the page says when something is amiss: the server is gone, slow, or another one; a folder or an image is."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from browsing import Screen, answering, until
from desks import Office, brick
from fake_runtime import FakeRuntime
from palpate.server.app import PAGE

pytestmark = pytest.mark.slow

SLOW = 0.2
"""Seconds of an answer that does not follow the hand."""


@dataclass(eq=False)
class Varying(FakeRuntime):
    """A model that takes its time while `slow` is set."""

    slow: bool = False

    def decode(self, *asked: Any, **more: Any) -> Any:
        if self.slow:
            time.sleep(SLOW)
        return super().decode(*asked, **more)


@pytest.fixture
def office(tmp_path: Path) -> Generator[Office]:
    if not (PAGE / "vendor" / "niivue.js").is_file():
        pytest.skip("NiiVue is not packed; `pip install -e .` packs it where there is npm")
    folder = tmp_path / "scans"
    folder.mkdir()
    office = Office(folder, make_runtime=Varying)
    yield office
    office.closed()


@pytest.fixture
def address(office: Office) -> Generator[str]:
    with answering(office) as where:
        yield where


def cover(screen: Screen) -> str:
    return screen.page.inner_text("#cover")


def test_an_empty_folder_says_what_to_do(office: Office, screen: Screen) -> None:
    until(lambda: "There are no images in this folder." in cover(screen))
    assert "0 of 0 done" in screen.page.inner_text("#worklist")
    brick(office.folder / "new.nii.gz")
    screen.page.click('#worklist [data-key="rescan"]')
    until(lambda: cover(screen) == "Choose a case on the left")
    screen.open("new.nii.gz")
    assert cover(screen) == ""


def test_a_damaged_image_says_why_and_is_opened_once_it_is_whole(office: Office, window: Callable[..., Screen]) -> None:
    (office.folder / "broken.nii.gz").write_bytes(b"this is no NIfTI file")
    for name in ("after.nii.gz", "whole.nii.gz"):
        brick(office.folder / name)
    office.desk.rescan()
    screen = window()
    screen.open("after.nii.gz")
    screen.press("]")  # it is the next in the list
    until(lambda: "broken.nii.gz cannot be opened." in cover(screen))
    assert "is not a NIfTI file" in cover(screen)
    row = '#worklist [data-key="broken.nii.gz"]'
    until(lambda: "cannot be read" in screen.page.inner_text(row))
    assert "is not a NIfTI file" in screen.page.get_attribute(row, "title")
    screen.press("]")
    until(lambda: screen.state["case"] == "whole.nii.gz")
    screen.idle()
    assert cover(screen) == ""
    brick(office.folder / "broken.nii.gz")
    screen.open("broken.nii.gz")
    until(lambda: "cannot be read" not in screen.page.inner_text(row))
    screen.complaints[:] = [said for said in screen.complaints if "422" not in said]


def test_a_server_with_another_token_is_told_and_the_page_goes_on(
    window: Callable[..., Screen], tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    for name in ("one.nii.gz", "other.nii.gz"):
        brick(away / name)
    before = Office(away)
    with answering(before) as address:
        screen = window(where=address)
        screen.open("one.nii.gz")
        screen.press("1", "b")
        screen.drag("axial", (3, 22, 40), (16, 45, 40))
        until(lambda: (screen.draft or {}).get("agreement") is not None)
        drawn = screen.draft
        assert drawn is not None
    before.closed()
    screen.press("Enter")
    until(lambda: "does not answer" in screen.page.inner_text("#banner"))
    assert screen.state["state"]["draft"] == drawn  # what is shown stays

    after = Office(away, token="another-token-now")
    with answering(after, urlsplit(address).port or 0):
        until(lambda: "new token" in screen.page.inner_text("#banner"))
        screen.page.click("#banner button")
        assert screen.page.is_visible("#banner")
        with screen.page.context.new_page() as second:  # as a user who opens the address that was printed
            second.goto(f"{address}/?token=another-token-now")
        until(lambda: not screen.page.is_visible("#banner"))
        until(lambda: "goes on where it was" in screen.page.inner_text("#said"))
        screen.idle()
        assert {**(screen.draft or {}), "agreement": None} == {**drawn, "agreement": None}
        screen.press("Enter")
        until(lambda: screen.voxels() == drawn["voxels"])
        screen.open("other.nii.gz")
        screen.page.context.close()
    after.closed()
    screen.complaints[:] = [said for said in screen.complaints if not any(w in said for w in ("ERR_", "401", "410"))]


def test_a_case_that_was_asked_for_while_the_server_was_gone_is_opened_afterwards(
    office: Office, window: Callable[..., Screen]
) -> None:
    for name in ("one.nii.gz", "other.nii.gz"):
        brick(office.folder / name)
    office.desk.rescan()
    screen = window()
    screen.open("one.nii.gz")
    screen.page.context.set_offline(True)
    screen.page.click('#worklist [data-key="other.nii.gz"]')
    until(lambda: screen.page.is_visible("#banner"))
    screen.page.context.set_offline(False)
    until(lambda: screen.state["case"] == "other.nii.gz")
    assert not screen.page.is_visible("#banner")
    screen.complaints[:] = [said for said in screen.complaints if "ERR_INTERNET_DISCONNECTED" not in said]


def test_a_slow_machine_is_not_asked_for_masks_that_come_too_late(
    office: Office, window: Callable[..., Screen]
) -> None:
    brick(office.folder / "one.nii.gz")
    office.desk.rescan()
    runtime = office.session.runtime
    assert isinstance(runtime, Varying)

    def asked_in_a_drag(screen: Screen, *, slow: bool) -> int:
        """How many masks the page asks for before it gives up to follow the hand."""
        before = sum(url.endswith("/preview") for url in screen.asked)
        runtime.slow = slow
        screen.drag("axial", (3, 22, 40), (15, 45, 40), release=False)
        if slow:
            until(lambda: screen.state["gesture"]["slow"] == 2)
        runtime.slow = False  # but the page has given up
        for row in (46, 45, 46, 45):
            screen.page.mouse.move(*screen.place("axial", (15, row, 40)))
            screen.idle()
        screen.page.mouse.up()
        screen.idle()
        return sum(url.endswith("/preview") for url in screen.asked) - before

    screen = window()
    screen.open("one.nii.gz")
    screen.press("1", "b")
    screen.show((10, 34, 40))
    with screen.timeless():
        assert asked_in_a_drag(screen, slow=False) > 2  # it follows to the end
    assert asked_in_a_drag(screen, slow=True) == 2  # the first might have been slow because the slice was encoded
    assert asked_in_a_drag(screen, slow=True) == 1  # it is known now
    screen.page.context.close()
    newer = window()
    newer.open("one.nii.gz")
    newer.press("1", "b")
    newer.show((10, 34, 40))
    assert asked_in_a_drag(newer, slow=True) == 1  # by what the server says


def test_what_was_asked_for_is_done_before_another_case_is_opened(
    office: Office, window: Callable[..., Screen]
) -> None:
    for name in ("one.nii.gz", "other.nii.gz"):
        brick(office.folder / name)
    office.desk.rescan()
    runtime = office.session.runtime
    assert isinstance(runtime, Varying)
    screen = window()
    screen.open("one.nii.gz")
    screen.press("1", "b")
    screen.show((10, 34, 40))
    screen.drag("axial", (3, 22, 40), (16, 45, 40))
    screen.press("p")
    runtime.slow = True
    screen.page.mouse.click(*screen.place("axial", (10, 34, 40)))  # is answered a while later
    for key in ("Enter", "]"):
        screen.page.keyboard.press(key)
    until(lambda: screen.state["case"] == "other.nii.gz")
    runtime.slow = False
    screen.idle()
    screen.open("one.nii.gz")
    assert screen.draft is None
    assert screen.voxels() > 100
    screen.press("Control+z")
    assert [one["kind"] for one in (screen.draft or {})["prompts"]] == ["box", "point"]
