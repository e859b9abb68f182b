"""The tutorial "Annotate a folder of scans in the browser" goes as it is written, and its pictures are of the page.

PALPATE_UPDATE_PICTURES=1 takes the pictures of the documentation anew.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import nibabel
import numpy as np
import pytest
from PIL import Image as Picture
from scipy.ndimage import binary_dilation, distance_transform_edt

from browsing import Screen, Voxel, until
from command_line import Run
from desks import unpacked
from palpate.metrics import dice
from palpate.server.annotation import DRAFT
from palpate.server.app import PAGE
from serving import serving

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = DOCS / "tutorials" / "annotate-a-folder.md"
PICTURES = DOCS / "pictures" / "annotate"

MOST_BYTES = 150_000
"""Of a picture."""

LIVER, KIDNEY = 1, 2

KEYS = {"Esc": "Escape", "Ctrl+Z": "Control+z", "Ctrl+Shift+Z": "Control+Shift+z", "Ctrl+Enter": "Control+Enter"}
"""Keys that a browser calls otherwise than the tutorial."""

_KEY = re.compile(r"[A-Z0-9,.?\[\]]|Enter|Esc|Shift|Space|(Ctrl|Alt)\+\S+")
_NUMBER = re.compile(r"\d[\d,.]*")


def blocks(language: str) -> list[str]:
    """The parts of the tutorial that are in a language."""
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL)


@dataclass
class Reader:
    """Somebody who does what the tutorial says, from top to bottom, and to whom happens what it says.

    `folder` is where the pictures go.
    """

    folder: Path
    screen: Screen = field(init=False)
    seen: set[str] = field(default_factory=set)
    read: int = 0

    @cached_property
    def text(self) -> str:
        """The tutorial in one line, without its code."""
        return " ".join(re.sub("```.*?```", "", TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL).split())

    @contextmanager
    def at(self, browser: Any, address: str) -> Generator[None]:
        """Before a window on a server, which at the end may have complained of nothing and asked nobody else."""
        context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
        try:
            self.screen = Screen(context.new_page(), address)
            yield
            assert self.screen.complaints == []
            hosts = {urlsplit(url).netloc for url in self.screen.asked if not url.startswith(("data:", "blob:"))}
            assert hosts == {urlsplit(address).netloc}
        finally:
            context.close()

    def is_told(self, words: str) -> None:
        """The tutorial says so."""
        assert words in self.text

    def hears(self, begin: str) -> None:
        """The page says first what the tutorial quotes next that begins so; its numbers may differ by a tenth."""
        found = re.compile(rf"`({re.escape(begin)}[^`]*)`").search(self.text, self.read)
        assert found, f"the tutorial does not quote {begin!r} here"
        self.read = found.end()
        said = self.screen.page.inner_text("#said").strip().split("; ")[0]
        assert _NUMBER.sub("#", said) == _NUMBER.sub("#", found[1])
        for theirs, ours in zip(_NUMBER.findall(said), _NUMBER.findall(found[1]), strict=True):
            assert float(theirs.replace(",", "")) == pytest.approx(float(ours.replace(",", "")), rel=0.1)

    def presses(self, *keys: str) -> None:
        """Press keys that the tutorial names."""
        for key in keys:
            self.is_told(f"`{key}`")
            self.screen.press(KEYS.get(key, key.lower() if len(key) == 1 else key))
        self.looks()

    def writes(self, words: str) -> None:
        """Write what the tutorial says in the place of what is there."""
        self.is_told(f"`{words}`")
        self.screen.page.keyboard.press("Control+a")
        self.screen.page.keyboard.type(words)
        self.presses("Enter")

    def clicks(self, caption: str, within: str) -> None:
        """Press a button that the tutorial names, by what is written on it or what it is called."""
        self.is_told(f"**{caption}**")
        part = self.screen.page.locator(within)
        part.get_by_text(caption, exact=True).or_(part.get_by_title(caption, exact=True)).first.click()
        self.screen.page.wait_for_timeout(200)
        self.looks()
        self.screen.idle()
        self.looks()

    def carries(self, organ: str, truth: np.ndarray) -> None:
        """Carry the object through the slices that the tutorial says an organ is on."""
        found = re.search(rf"{organ} is on slices (\d+) to (\d+)", self.text)
        assert found
        held = np.flatnonzero(truth.any(axis=(0, 1))).tolist()
        assert [int(number) for number in found.groups()] == [held[0], held[-1]]
        for key, number in zip(("first", "last"), found.groups(), strict=True):
            self.screen.page.fill(f'#draft [data-key="{key}"]', number)
            self.screen.page.keyboard.press("Tab")
        self.clicks("Propagate", "#draft")
        assert "carried" in self.screen.state["message"]["text"]

    def looks(self) -> None:
        """Remember every caption on the page."""
        page = self.screen.page
        self.seen |= {line.strip() for line in page.inner_text("body").splitlines()}
        self.seen |= set(page.evaluate("[...document.querySelectorAll('[title]')].map((one) => one.title)"))
        self.seen |= set(page.evaluate("[...document.querySelectorAll('option')].map((one) => one.text)"))

    def photographs(self, name: str) -> None:
        """A picture of the window, small enough for a repository."""
        page = self.screen.page
        assert self.screen.token not in page.inner_text("body")
        if self.folder == PICTURES:
            page.wait_for_timeout(5000)  # for the agreement and for the rendering, which wait until the hand rests
        path = self.folder / f"{name}.png"
        page.screenshot(path=path)
        with Picture.open(path) as taken:
            few = with_few_colours(taken.convert("RGB"))
        few.save(path, optimize=True)

    def mask(self, value: int = DRAFT) -> np.ndarray:
        """What is shown of a label, or of the object being drawn, as the file has its axes."""
        state = self.screen.state
        address = f"{self.screen.address}/api/v1/cases/{state['case']}/map"
        headers = {"authorization": f"Bearer {self.screen.token}", "x-palpate-lease": state["lease"]}
        shown = np.zeros(state["image"]["shape"], dtype=np.uint8)
        window, values = unpacked(httpx.get(address, headers=headers).raise_for_status().json()["patch"])
        shown[window] = values
        return shown == value

    def agreement(self) -> float:
        """That of the object being drawn, once it is known."""
        until(lambda: (self.screen.draft or {}).get("agreement") is not None)
        return (self.screen.draft or {})["agreement"]


def with_few_colours(taken: Picture.Image) -> Picture.Image:
    """A picture by a palette, in which small things of vivid colours have a part of their own."""
    colours = np.asarray(taken)
    vivid = np.ptp(colours, axis=2) > 60
    palette: list[int] = []
    for part, count in ((~vivid, 184), (vivid, 72)):
        chosen = Picture.fromarray(colours[part][None]).quantize(count, kmeans=3).getpalette() or []
        palette += chosen[: 3 * count]
    frame = Picture.new("P", (1, 1))
    frame.putpalette(palette)
    return taken.quantize(palette=frame, dither=Picture.Dither.NONE)


def deepest(mask: np.ndarray, k: int) -> Voxel:
    """The voxel of a slice that is furthest from all that is not in a mask."""
    depth = distance_transform_edt(np.pad(mask[:, :, k], 1))
    assert isinstance(depth, np.ndarray)
    i, j = np.unravel_index(int(depth[1:-1, 1:-1].argmax()), mask.shape[:2])
    return int(i), int(j), k


def box(mask: np.ndarray, k: int, *, left: int = 3, front: int = 3) -> tuple[Voxel, Voxel]:
    """Two corners around a mask on a slice, with three voxels of room, or others to the patient's left and front."""
    across, up = (np.flatnonzero(mask[:, :, k].any(axis=axis)) for axis in (1, 0))
    return (int(across[0]) - left, int(up[0]) - 3, k), (int(across[-1]) + 3, int(up[-1]) + front, k)


def test_every_picture_is_there_small_and_shown() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(\.\./pictures/annotate/([^)]+)\)", TUTORIAL.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(path.name for path in PICTURES.iterdir())
    assert all((PICTURES / name).stat().st_size < MOST_BYTES for name in shown)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.usefixtures("weights")
def test_the_tutorial_goes_as_it_is_written(
    palpate: Run, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (PAGE / "vendor" / "niivue.js").is_file():
        pytest.skip("NiiVue is not packed; `pip install -e .` packs it where there is npm")
    monkeypatch.delenv("PALPATE_RUNTIME", raising=False)  # a reader has none
    reader = Reader(PICTURES if os.environ.get("PALPATE_UPDATE_PICTURES") else tmp_path)
    draw, compare = blocks("python")
    start, again, unpack, replay = (shlex.split(line) for line in blocks("bash"))
    assert start == again == ["palpate", "serve", "scans/"]

    exec(compile(draw, "draw_scans.py", "exec"), {"__name__": "__main__"})
    truth = np.asarray(nibabel.load("truth/patient-1.nii.gz").dataobj)  # type: ignore[attr-defined]
    liver, kidney = truth == LIVER, truth == KIDNEY
    with serving(Path("scans")) as server, reader.at(browser, server.address):
        draws_the_liver(reader, liver)
        corrects_it(reader, liver)
        carries_it(reader, liver)
        mends_it(reader, liver)
        draws_the_kidney(reader, kidney)
        is_done_and_begins_another(reader, liver)
    with serving(Path("scans")) as server, reader.at(browser, server.address):
        goes_on(reader)
        exports(reader, Path(unpack[-2]))
        knows_every_caption_and_key(reader)

    subprocess.run([sys.executable, *unpack[1:]], check=True)
    capsys.readouterr()
    exec(compile(compare, "compare.py", "exec"), {"__name__": "__main__"})
    for line in capsys.readouterr().out.splitlines():
        name, value = line.split(": Dice ")
        told = re.search(rf"^{name}: Dice ([\d.]+)$", TUTORIAL.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert told
        assert float(value) == pytest.approx(float(told[1]), abs=0.02)
    answer = palpate(*replay[1:])
    assert answer.status == 0, answer.err
    assert answer.out.splitlines()[0] in TUTORIAL.read_text(encoding="utf-8").splitlines()


def draws_the_liver(reader: Reader, liver: np.ndarray) -> None:
    """Sections 2 and 3."""
    screen, k = reader.screen, liver.shape[2] // 2
    screen.open("patient-1.nii.gz")
    reader.photographs("open")
    reader.looks()
    screen.page.dblclick('#labels [data-key="pick1"]')
    reader.writes("liver")
    until(lambda: screen.state["labels"][0]["name"] == "liver")

    reader.presses("1", "B")
    assert screen.state["crosshair"][2] == k
    reader.is_told(f"`k {k} of {liver.shape[2] - 1}`, slice {k}")
    screen.drag("axial", *box(liver, k, left=-12))
    reader.hears("box on axial")
    reader.photographs("box")
    assert reader.mask().sum() == reader.mask()[:, :, k].sum()
    assert 0.8 < dice(reader.mask()[:, :, k], liver[:, :, k]) < 0.95


def corrects_it(reader: Reader, liver: np.ndarray) -> None:
    """Section 4."""
    screen, k = reader.screen, liver.shape[2] // 2
    reader.presses("P")
    screen.click("axial", deepest(liver & ~reader.mask(), k))
    reader.hears("point on axial")
    assert dice(reader.mask()[:, :, k], liver[:, :, k]) > 0.97


def carries_it(reader: Reader, liver: np.ndarray) -> None:
    """Section 5."""
    screen, k = reader.screen, int(np.flatnonzero(liver.any(axis=(0, 1)))[0])
    reader.presses("4")
    reader.carries("the liver", liver)
    reader.hears("carried through the volume")
    reader.is_told(f"On the lowest one, slice {k}, the mask has taken")
    bad = dice(reader.mask()[:, :, k], liver[:, :, k])
    reader.presses("B")
    screen.show(deepest(liver, k))
    screen.drag("axial", *box(liver, k))
    assert bad < 0.75
    assert dice(reader.mask()[:, :, k], liver[:, :, k]) > 0.97
    assert dice(reader.mask(), liver) > 0.97
    screen.show((160, 104, k + 1))
    reader.photographs("carried")


def mends_it(reader: Reader, liver: np.ndarray) -> None:
    """Section 6."""
    screen, k = reader.screen, int(np.flatnonzero(liver.any(axis=(0, 1)))[-1])
    reader.presses("Enter")
    reader.hears("accepted as liver")
    accepted = screen.voxels(LIVER)
    reader.is_told(f"On the highest slice, {k}, the mask has taken")
    reader.presses("1", "E", *["."] * 13)
    # What is no liver, but for its rim: a large piece, and small ones from there to the patient's left.
    strange = reader.mask(LIVER) & ~binary_dilation(liver, np.ones((5, 5, 1)))
    piece = deepest(strange, k)
    i, j, _ = np.nonzero(strange & (np.arange(len(liver)) < piece[0] - 5)[:, None, None])
    bend, end = (int(i.max()), int(np.median(j)), k), (int(i.min()), int(np.median(j)), k)
    screen.show(piece)
    screen.drag("axial", piece, bend)
    screen.drag("axial", bend, end, release=False)
    reader.photographs("eraser")
    screen.page.mouse.up()
    screen.idle()
    reader.hears("eraser: liver")
    erased = screen.voxels(LIVER)
    assert erased < accepted
    assert (reader.mask(LIVER) & strange)[:, :, k].sum() < strange[:, :, k].sum() / 3
    reader.presses("Ctrl+Z")
    reader.hears("undone: eraser")
    assert erased < screen.voxels(LIVER) < accepted
    reader.presses("Ctrl+Shift+Z")
    assert screen.voxels(LIVER) == erased


def draws_the_kidney(reader: Reader, kidney: np.ndarray) -> None:
    """Section 7."""
    screen, k = reader.screen, 6
    before = screen.voxels(LIVER)
    reader.presses("N")
    reader.writes("right kidney")
    until(lambda: len(screen.state["labels"]) == 2)
    reader.clicks("Lock liver", "#labels")
    until(lambda: screen.state["labels"][0]["locked"])

    reader.is_told(f"Turn to slice {k}.")
    screen.show(deepest(kidney, k))
    reader.presses("B")
    screen.drag("axial", *box(kidney, k, front=25))
    reader.is_told("The agreement is high all the same")
    assert reader.agreement() > 0.95
    assert dice(reader.mask()[:, :, k], kidney[:, :, k]) < 0.85
    reader.presses("P")
    screen.click("axial", deepest(reader.mask() & ~kidney, k), shift=True)
    assert dice(reader.mask()[:, :, k], kidney[:, :, k]) > 0.96
    reader.photographs("shift-click")

    reader.carries("The kidney", kidney)
    reader.presses("Enter")
    reader.hears("accepted as right kidney")
    assert "stayed with other labels" in screen.state["message"]["text"]
    assert screen.voxels(LIVER) == before
    reader.presses("4")
    turns_the_rendering(screen)
    reader.photographs("labels")


def turns_the_rendering(screen: Screen) -> None:
    """Half around."""
    stage = screen.page.locator("#marks").bounding_box()
    x, y = stage["x"] + stage["width"] * 0.75, stage["y"] + stage["height"] * 0.75
    screen.page.mouse.move(x, y)
    screen.page.mouse.down()
    screen.page.mouse.move(x + 150, y + 20, steps=2)
    screen.page.mouse.up()


def is_done_and_begins_another(reader: Reader, liver: np.ndarray) -> None:
    """Section 8, and 9 until the server is stopped."""
    screen = reader.screen
    reader.presses("Ctrl+Enter")
    until(lambda: screen.state["state"]["done"])
    reader.presses("]")
    until(lambda: screen.state["case"] == "patient-2.nii.gz")
    screen.idle()
    reader.presses("B")
    screen.drag("axial", *box(liver, liver.shape[2] // 2))
    assert screen.draft is not None


def goes_on(reader: Reader) -> None:
    """Section 9 from there on."""
    screen = reader.screen
    screen.open("patient-2.nii.gz")
    assert screen.draft is not None
    assert [one["kind"] for one in screen.draft["prompts"]] == ["box"]
    assert screen.draft["voxels"] > 1000
    screen.open("patient-1.nii.gz")
    assert screen.state["state"]["done"]
    kidney = screen.voxels(KIDNEY)
    reader.presses("Ctrl+Z")
    assert screen.voxels(KIDNEY) == 0
    reader.presses("Ctrl+Shift+Z")
    assert screen.voxels(KIDNEY) == kidney > 0


def exports(reader: Reader, archive: Path) -> None:
    """Section 10."""
    reader.clicks("Export case", "#finish")
    reader.photographs("export")
    with reader.screen.page.expect_download() as download:
        reader.clicks("NIfTI", "#finish details[open]")
    assert download.value.suggested_filename == archive.name
    download.value.save_as(archive)


def knows_every_caption_and_key(reader: Reader) -> None:
    """All that the tutorial says of buttons and keys was on the page, or is in its help."""
    captions = set(re.findall(r"\*\*([^*]+)\*\*", reader.text))
    assert captions - reader.seen == set()
    reader.presses("?")
    keys = " ".join(re.sub(r" \+ ", "+", key) for key in reader.screen.page.locator("#help dt").all_inner_texts())
    named = {word for word in re.findall(r"`([^`]+)`", reader.text) if _KEY.fullmatch(word)}
    assert len(named) > 15
    assert named - set(re.split(r"[ +]+|(?<=\S)\+(?=\S)", keys)) - set(keys.split()) == set()
