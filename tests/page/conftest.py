"""Windows of a browser on the page. A module says what they look at, by fixtures of its own: `office` and `address`."""

from collections.abc import Callable, Generator
from typing import Any
from urllib.parse import urlsplit

import pytest

from browsing import CHROMIUM, FLAGS, Screen
from desks import Office


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    """A browser, for a module: while it runs, no test in this process can have an event loop of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no browser at {CHROMIUM}")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def window(browser: Any, address: str, office: Office) -> Generator[Callable[..., Screen]]:
    """Opens windows on the page; at the end none may have complained, or asked anybody else."""
    opened: list[Screen] = []

    # Small, as all is drawn by the processor: what is seen at the usual sizes has tests of its own.
    def new(width: int = 1000, height: int = 640, where: str = address, script: str = "", **more: Any) -> Screen:
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        if script:
            context.add_init_script(script)
        screen = Screen(context.new_page(), where, **more)
        opened.append(screen)
        return screen

    yield new
    for screen in opened:
        screen.page.context.close()
    for case in office.desk.leases.held():  # a window that is closed may not have come to say so
        office.desk.leases.give_back(case, office.desk.leases.take(case, take_over=True))
    for screen in opened:
        assert screen.complaints == []
        hosts = {urlsplit(url).netloc for url in screen.asked if not url.startswith(("data:", "blob:"))}
        assert hosts == {urlsplit(screen.address).netloc}


@pytest.fixture
def screen(window: Callable[..., Screen]) -> Screen:
    """One window."""
    return window()
