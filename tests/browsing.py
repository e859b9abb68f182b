"""The page in a browser, against a server in this process whose model finds bright things (`fake_runtime`)."""

import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image as Picture

from desks import TOKEN, Office

CHROMIUM = Path("/usr/bin/chromium")
"""Debian's; Playwright's own is not fetched."""

FLAGS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing",  # without graphics the processor puts the window together faster by itself
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Which of i, j, k counts the slices of a plane."""

Voxel = tuple[int, int, int]


@contextmanager
def answering(office: Office, port: int = 0) -> Generator[str]:
    """The address of an office, at a free port or a certain one."""
    config = uvicorn.Config(office.app, port=port, log_level="warning", access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def elsewhere(folder: Path, port: int = 0) -> Generator[tuple[str, "subprocess.Popen[str]"]]:
    """The address of an office in a process of its own, which can be killed, and the process."""
    command = [sys.executable, "-c", "import sys, browsing; browsing.answer(*sys.argv[1:])", str(folder), str(port)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
        finally:
            process.kill()


def answer(folder: str, port: str) -> None:
    """Print at which port an office on a folder answers, and answer there until somebody ends the process."""
    config = uvicorn.Config(Office(Path(folder)).app, log_level="warning", access_log=False, lifespan="off", ws="none")
    with socket.create_server(("127.0.0.1", int(port))) as listening:
        print(listening.getsockname()[1], flush=True)  # noqa: T201 - to whoever started it
        uvicorn.Server(config).run(sockets=[listening])


@dataclass
class Screen:
    """A window of the browser on the page, and what it asked for and complained of meanwhile."""

    page: Any
    address: str
    token: str = TOKEN
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{self.address}/?token={self.token}")
        self.ready()

    def _hear(self, said: Any) -> None:
        # The browser's own note on how it puts the window together without graphics (FLAGS).
        if said.type in ("error", "warning") and "GPU stall due to ReadPixels" not in said.text:
            self.complaints.append(said.text)

    def ready(self) -> None:
        """Wait until the page can be used."""
        until(lambda: self.page.evaluate("window.palpate !== undefined"))

    def open(self, case: str) -> None:
        """Choose a case from the list."""
        self.page.click(f'#worklist [data-key="{case}"]')
        until(lambda: self.state["case"] == case)
        self.idle()

    def idle(self) -> None:
        """Wait until all that was asked has been answered and drawn."""
        self.page.evaluate("palpate.idle()")

    @property
    def state(self) -> dict[str, Any]:
        """What the page knows."""
        return self.page.evaluate("palpate.state()")

    @property
    def draft(self) -> dict[str, Any] | None:
        """The object being drawn."""
        return self.state["state"]["draft"]

    def voxels(self, label: int = 1) -> int:
        """How many voxels a label has."""
        return next((one["voxels"] for one in self.state["state"]["labels"] if one["value"] == label), 0)

    def place(self, plane: str, voxel: Voxel) -> tuple[float, float]:
        """The middle of a voxel in the window."""
        x, y = self.page.evaluate(f"palpate.screenOf({plane!r}, {list(voxel)})")
        return x, y

    def show(self, voxel: Voxel) -> None:
        """Move the crosshair, so that all planes go through a voxel."""
        self.page.evaluate(f"palpate.moveTo({list(voxel)})")
        self.idle()

    def value(self, voxel: Voxel) -> dict[str, Any]:
        """What is at a voxel: {label, values}."""
        return self.page.evaluate(f"palpate.valueAt({list(voxel)})")

    def click(self, plane: str, voxel: Voxel, **how: Any) -> None:
        """Click into the middle of a voxel."""
        self.page.mouse.move(*self.place(plane, voxel))
        if how.get("shift"):
            self.page.keyboard.down("Shift")
        self.page.mouse.down()
        self.page.mouse.up()
        if how.get("shift"):
            self.page.keyboard.up("Shift")
        self.idle()

    def drag(self, plane: str, start: Voxel, end: Voxel, *, release: bool = True) -> None:
        """Drag from the middle of a voxel to that of another one of the same slice."""
        self.page.mouse.move(*self.place(plane, start))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(plane, end), steps=4)
        if release:
            self.page.mouse.up()
            self.idle()

    @contextmanager
    def timeless(self) -> Generator[None]:
        """Within, nothing takes time by the page's clock, however busy this machine is.

        Where answers are slow the page stops asking for the masks of a drag (test_page_states).
        """
        self.page.evaluate("performance.now = () => 0")
        try:
            yield
        finally:
            self.page.evaluate("delete performance.now")

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)
        self.idle()

    def seen(self) -> np.ndarray:
        """The window as it is painted: (height, width, 3)."""
        self.idle()
        return np.asarray(Picture.open(io.BytesIO(self.page.screenshot())).convert("RGB"))


def until(true: Any, seconds: float = 60) -> None:
    """Wait for something. (Playwright's own way evaluates strings, which the page's policy forbids.)"""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
