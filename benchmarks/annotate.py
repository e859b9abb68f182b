"""How long does it take from letting go of the mouse to the mask on the screen?

    python benchmarks/annotate.py [--shape 512 512 100] [--rounds 40] [--model lite-medsam] [--browser PATH]

`palpate serve` on a phantom volume, driven in a headless Chromium that renders in software: a box is dragged, a click
made, a brush stroke drawn, always on the axial plane, and undone. The clock in the page runs from `pointerup` to the
frame after the one in which the answer was drawn. A slice has been encoded unless the row says so. `the server` is what
the request took of it, by the browser's own record; the rest is drawn, which a graphics card does at once and software
does not.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

Waited = tuple[float, float]
"""Milliseconds until the mask was there, and those of the request."""

WATCH = """() => {
  window.waited = [];
  addEventListener("pointerup", () => {
    const begun = performance.now(), before = palpate.state().state.revision;
    const look = () => {
      if (palpate.state().state.revision === before) requestAnimationFrame(look);
      else requestAnimationFrame(() => {
        const asked = performance.getEntriesByType("resource").filter(
          (one) => one.responseEnd >= begun && /(prompts|stroke)$/.test(one.name));
        // A click asks when the button goes down, just before it goes up.
        const since = (one) => one.responseEnd - Math.max(one.startTime, begun);
        waited.push([performance.now() - begun, asked.reduce((sum, one) => sum + since(one), 0)]);
        performance.clearResourceTimings();
      });
    };
    look();
  }, true);
}"""


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 100], metavar=("X", "Y", "Z"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        phantom(Path(folder) / "phantom.nii", tuple(options.shape))
        command = [sys.executable, "-m", "palpate", "serve", folder, "--port", "0", "--no-browser"]
        server = subprocess.Popen([*command, "--model", options.model], stdout=subprocess.PIPE, text=True)
        try:
            said = []
            assert server.stdout is not None
            for line in server.stdout:
                said.append(line)
                if line.startswith("kept in"):
                    break
            page = re.search(r"^page\s+(\S+)", "".join(said), re.MULTILINE)
            if page is None:
                raise SystemExit("the server did not start")
            model = re.search(r"^model\s+(.+)", "".join(said), re.MULTILINE)
            waited = driven(page[1], options)
        finally:
            server.terminate()
            server.wait()
    size = " x ".join(map(str, options.shape))
    machine = f"{os.cpu_count()} cores, {platform.machine()}; palpate {version('palpate')}"
    print(f"{size} voxels; {model[1] if model else ''}; {machine}\n")
    print("| from letting go to the mask on the screen | times | p50, ms | p95, ms | the server, p50, ms |")
    print("|---|---:|---:|---:|---:|")
    for what, times in waited.items():
        whole, server = np.array(times).T
        low, high = np.percentile(whole, [50, 95])
        print(f"| {what} | {len(times)} | {low:.0f} | {high:.0f} | {np.median(server):.0f} |")


def phantom(path: Path, shape: tuple[int, ...]) -> None:
    """A ball in noise, in the middle of the volume."""
    rng = np.random.default_rng(0)
    i, j, k = np.ogrid[tuple(slice(0, extent) for extent in shape)]
    radius = shape[0] / 6
    inside = (i - shape[0] / 2) ** 2 + (j - shape[1] / 2) ** 2 + ((k - shape[2] / 2) * shape[0] / shape[2] / 2) ** 2
    values = np.where(inside < radius**2, 160, 20) + rng.normal(0, 10, shape).astype(np.float32)
    nibabel.Nifti1Image(values.astype(np.int16), np.diag([0.8, 0.8, 2.5, 1.0])).to_filename(path)  # type: ignore[attr-defined]


def driven(address: str, options: argparse.Namespace) -> dict[str, list[Waited]]:
    """What each kind of action took."""
    from playwright.sync_api import sync_playwright

    flags = (
        "--no-sandbox",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--disable-background-networking",
    )
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=options.browser, args=list(flags))
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        until(page, "window.palpate !== undefined")
        page.goto(page.url + "#phantom.nii")
        page.reload()
        until(page, "window.palpate !== undefined && palpate.state().state !== null")
        page.evaluate("palpate.idle()")
        page.evaluate(WATCH)
        found = {
            "a box on a slice that was not encoded": boxes(page, options, fresh=True),
            "a box": boxes(page, options, fresh=False),
            "a click": clicks(page, options),
            "a stroke of the brush": strokes(page, options),
        }
        browser.close()
    return found


def boxes(page: Any, options: argparse.Namespace, *, fresh: bool) -> list[Waited]:
    """Boxes around the ball, a little different each time; `fresh`: each on a slice of its own."""
    x, y, z = (extent // 2 for extent in options.shape)
    half = options.shape[0] // 6
    page.keyboard.press("b")
    times: list[Waited] = []
    for number in range(options.rounds // 4 if fresh else options.rounds):
        k = z - options.rounds // 8 + number if fresh else z
        page.evaluate(f"palpate.moveTo([{x}, {y}, {k}])")
        if not fresh:
            page.evaluate("palpate.idle()")
        low, high = half + number % 5, half + number % 7
        times += acted(page, [(x - low, y - low, k), (x, y, k), (x + high, y + high, k)])
    return times if fresh else times[1:]  # the first encodes its slice


def clicks(page: Any, options: argparse.Namespace) -> list[Waited]:
    """Clicks on the ball."""
    x, y, z = (extent // 2 for extent in options.shape)
    page.evaluate(f"palpate.moveTo([{x}, {y}, {z}])")
    page.evaluate("palpate.idle()")
    page.keyboard.press("p")
    return [one for number in range(options.rounds // 2) for one in acted(page, [(x + number, y - number, z)])]


def strokes(page: Any, options: argparse.Namespace) -> list[Waited]:
    """Short strokes of the brush."""
    x, y, z = (extent // 2 for extent in options.shape)
    page.keyboard.press("d")
    return [
        one
        for number in range(options.rounds)
        for one in acted(page, [(x + number, y, z), (x + number + 8, y + 8, z), (x + number + 16, y, z)])
    ]


def acted(page: Any, way: list[tuple[int, int, int]]) -> list[Waited]:
    """Press at the first voxel, go to the others and let go; then undo."""
    places = [page.evaluate(f"palpate.screenOf('axial', {list(voxel)})") for voxel in way]
    page.evaluate("waited.length = 0")
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    until(page, "waited.length > 0")
    took = page.evaluate("waited[0]")
    page.evaluate("palpate.idle()")
    page.keyboard.press("Control+z")
    time.sleep(0.05)
    page.evaluate("palpate.idle()")
    return [(float(took[0]), float(took[1]))]


def until(page: Any, condition: str) -> None:
    """Wait; the page's policy forbids Playwright's own way, which evaluates in the page."""
    for _ in range(6000):
        if page.evaluate(condition):
            return
        time.sleep(0.02)
    raise SystemExit(f"in two minutes it never came to: {condition}")


if __name__ == "__main__":
    main()
