"""The page of `palpate serve` in a browser: what a radiologist does, and where it lands."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

from browsing import CHROMIUM, FLAGS, PLANES, Screen, Voxel, answering, until
from desks import OBLIQUE, Office, brick
from palpate.server.app import PAGE
from serving import serving

pytestmark = pytest.mark.slow

LOW, HIGH = (5, 24, 30), (14, 43, 49)
"""The brick's first and last voxel, in the RAS grid."""

NEEDLE = np.diag([-0.7, -0.7, 5.0, 1.0])
"""Thick slices, the rows and columns of a scanner."""


def needle(path: Path, affine: np.ndarray, at: Voxel) -> np.ndarray:
    """Noise with one bright voxel at a place of the RAS grid; the values in RAS order."""
    values = np.random.default_rng(7).integers(0, 90, (40, 36, 12)).astype(np.int16)
    image = nibabel.Nifti1Image(values, affine)  # type: ignore[attr-defined]
    canonical = nibabel.as_closest_canonical(image)  # type: ignore[attr-defined]
    in_ras = np.asarray(canonical.dataobj).copy()
    in_ras[at] = 1000
    turn = nibabel.orientations.ornt_transform(  # type: ignore[attr-defined]
        nibabel.io_orientation(canonical.affine),  # type: ignore[attr-defined]
        nibabel.io_orientation(affine),  # type: ignore[attr-defined]
    )
    back = nibabel.orientations.apply_orientation(in_ras, turn)  # type: ignore[attr-defined]
    nibabel.Nifti1Image(back, affine).to_filename(path)  # type: ignore[attr-defined]
    return in_ras


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "scans"
    folder.mkdir()
    for name in ("journey", "keys", "preview", "other", "picture", "lost"):
        brick(folder / f"{name}.nii.gz")
    canvas = np.full((60, 80, 3), (20, 40, 200), dtype=np.uint8)
    canvas[10:30, 40:70] = (230, 240, 250)
    Picture.fromarray(canvas).save(folder / "spot.png")
    return folder


@pytest.fixture(scope="module")
def office(folder: Path) -> Generator[Office]:
    if not (PAGE / "vendor" / "niivue.js").is_file():
        pytest.skip("NiiVue is not packed; `pip install -e .` packs it where there is npm")
    for name, at in (("thick", (30, 5, 4)), ("oblique", (3, 9, 20))):
        needle(
            folder / f"{name}.nii.gz", NEEDLE if name == "thick" else OBLIQUE, at if name == "thick" else (9, 30, 14)
        )
    office = Office(folder)
    yield office
    office.closed()


@pytest.fixture(scope="module")
def address(office: Office) -> Generator[str]:
    with answering(office) as where:
        yield where


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
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

    def new(width: int = 1280, height: int = 800, where: str = address) -> Screen:
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        screen = Screen(context.new_page(), where)
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
    return window()


def on(plane: str, voxel: Voxel, at: int) -> Voxel:
    """The voxel on a certain slice of a plane."""
    moved = list(voxel)
    moved[PLANES[plane]] = at
    return moved[0], moved[1], moved[2]


def box_over_the_brick(screen: Screen) -> str:
    """Drag a box a little larger than the brick on its middle slice; the plane it was drawn on."""
    plane = screen.state["image"]["plane"]
    axis = PLANES[plane]
    middle = (LOW[axis] + HIGH[axis]) // 2
    screen.show(on(plane, LOW, middle))
    first = on(plane, (LOW[0] - 2, LOW[1] - 2, LOW[2] - 2), middle)
    last = on(plane, (HIGH[0] + 2, HIGH[1] + 2, HIGH[2] + 2), middle)
    screen.drag(plane, first, last)
    return plane


def test_a_box_becomes_a_label_and_a_file(screen: Screen) -> None:
    page = screen.page
    screen.open("journey.nii.gz")
    plane = box_over_the_brick(screen)
    axis = PLANES[plane]
    extents = [high - low + 1 for low, high in zip(LOW, HIGH, strict=True)]
    slice_voxels = int(np.prod(extents)) // extents[axis]
    assert screen.draft is not None
    assert screen.draft["voxels"] == pytest.approx(slice_voxels, rel=0.15)

    middle = tuple((low + high) // 2 for low, high in zip(LOW, HIGH, strict=True))
    inside = (middle[0], middle[1], middle[2])
    beside = on(plane, (LOW[0] - 2, LOW[1] - 2, LOW[2] - 2), inside[axis])
    screen.press("p")
    screen.click(plane, inside)
    screen.click(plane, beside, shift=True)
    assert screen.draft is not None
    assert screen.draft["prompts"][-2] == {"kind": "point", "plane": plane, "at": list(inside), "positive": True}
    assert screen.draft["prompts"][-1] == {"kind": "point", "plane": plane, "at": list(beside), "positive": False}

    page.click('#draft [data-key="propagate"]')
    until(lambda: (screen.draft or {}).get("voxels", 0) > 3 * slice_voxels)
    screen.idle()

    page.click('#draft [data-key="accept"]')
    screen.idle()
    until(lambda: screen.voxels() > 0)
    accepted = screen.voxels()
    assert screen.draft is None

    corner = on(plane, (2, 4, 4), inside[axis])
    screen.press("d")
    screen.click(plane, corner)
    assert screen.value(corner)["label"] == 1
    assert screen.voxels() > accepted
    screen.press("Control+z")
    assert screen.voxels() == accepted
    assert screen.value(corner)["label"] == 0
    screen.press("Control+Shift+z")
    assert screen.voxels() > accepted
    screen.press("e")
    screen.click(plane, corner)
    assert screen.voxels() == accepted

    page.click('#labels [data-key="lock1"]')
    until(lambda: screen.state["labels"][0]["locked"])
    screen.press("d")
    screen.click(plane, corner)
    assert "lock" in page.inner_text("#said")
    screen.complaints.clear()  # the browser notes every refusal of the server
    assert screen.voxels() == accepted
    page.click('#labels [data-key="lock1"]')

    page.click('#finish [data-key="Export case"]')
    with page.expect_download() as download:
        page.click("#finish details[open] .choices button >> nth=0")
    assert download.value.suggested_filename.endswith(".zip")
    assert Path(download.value.path()).stat().st_size > 100

    page.reload()
    screen.ready()
    until(lambda: screen.state["case"] == "journey.nii.gz")
    screen.idle()
    assert screen.voxels() == accepted
    assert screen.value(inside)["label"] == 1


@pytest.mark.parametrize("name", ["thick", "oblique"])
def test_clicks_land_on_the_very_voxel(screen: Screen, folder: Path, name: str) -> None:
    image = nibabel.as_closest_canonical(nibabel.load(folder / f"{name}.nii.gz"))  # type: ignore[attr-defined]
    values = np.asarray(image.dataobj)
    screen.open(f"{name}.nii.gz")
    screen.press("p")
    rng = np.random.default_rng(3)
    bright = np.unravel_index(int(values.argmax()), values.shape)
    places = [tuple(int(i) for i in bright), tuple(n - 1 for n in values.shape), (0, 0, 0)]
    places += [tuple(int(rng.integers(n)) for n in values.shape) for _ in range(4)]
    for at in places:
        voxel = (at[0], at[1], at[2])
        for plane in PLANES:
            screen.show(voxel)
            x, y = screen.place(plane, voxel)
            assert screen.page.evaluate(f"palpate.voxelByNiivue({x}, {y})") == list(voxel)
            screen.page.mouse.move(x, y)
            screen.idle()
            assert screen.state["hover"] == list(voxel)
            assert f"value {values[voxel]}" in screen.page.inner_text("#place")
    voxel = places[0][0], places[0][1], places[0][2]
    for plane in PLANES:
        screen.show(voxel)
        screen.click(plane, voxel)
        assert screen.draft is not None
        assert {"kind": "point", "plane": plane, "at": list(voxel), "positive": True} in screen.draft["prompts"]


@pytest.mark.parametrize("name", ["thick", "oblique"])
def test_what_is_painted_at_a_voxel_is_that_voxel(screen: Screen, folder: Path, name: str) -> None:
    image = nibabel.as_closest_canonical(nibabel.load(folder / f"{name}.nii.gz"))  # type: ignore[attr-defined]
    values = np.asarray(image.dataobj)
    at = np.unravel_index(int(values.argmax()), values.shape)
    voxel = (int(at[0]), int(at[1]), int(at[2]))
    screen.open(f"{name}.nii.gz")
    screen.press("h")  # without what others have drawn
    screen.page.select_option("#windowing select", label="whole range")
    for plane in PLANES:
        screen.show(voxel)
        # The crosshair leaves the middle of its voxel free, and nothing around is as bright as the needle.
        painted = screen.seen().mean(axis=2)
        x, y = screen.place(plane, voxel)
        around = painted[int(y) - 40 : int(y) + 41, int(x) - 40 : int(x) + 41]
        down, right = (int(i) for i in np.unravel_index(int(around.argmax()), around.shape))
        brightest = (int(x) - 40 + right + 0.5, int(y) - 40 + down + 0.5)
        assert screen.page.evaluate(f"palpate.voxelByNiivue({brightest[0]}, {brightest[1]})") == list(voxel)
        for axis in {0, 1, 2} - {PLANES[plane]}:
            beside = list(voxel)
            beside[axis] += 2 if voxel[axis] < values.shape[axis] // 2 else -2
            x, y = screen.place(plane, (beside[0], beside[1], beside[2]))
            assert painted[int(y), int(x)] < 100


def test_everything_goes_without_a_mouse(screen: Screen) -> None:
    page = screen.page
    until(lambda: page.evaluate("document.querySelectorAll('#worklist .case').length > 3"))
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.key") == "keys.nii.gz":
            break
    screen.press("Enter")
    until(lambda: screen.state["case"] == "keys.nii.gz")
    screen.idle()
    plane = screen.state["plane"]
    axis = PLANES[plane]
    assert page.evaluate("document.activeElement.id") == "marks"
    screen.press("4", "b")
    # To just before a corner of the brick: by arrows, as somebody would who looks.
    across, up = (a for a in range(3) if a != axis)
    goal = list(screen.state["crosshair"])
    goal[across], goal[up] = LOW[across] - 2, LOW[up] - 2
    steer(screen, goal)
    screen.press("Space")
    goal[across], goal[up] = HIGH[across] + 2, HIGH[up] + 2
    steer(screen, goal)
    screen.press("Space")
    assert screen.draft is not None
    assert screen.draft["prompts"][0]["kind"] == "box"
    assert screen.draft["voxels"] > 50
    screen.press("PageUp")
    assert screen.state["crosshair"][axis] == goal[axis] + 1
    screen.press("PageDown", "g")
    until(lambda: "carried" in screen.state["message"]["text"])
    screen.press("Enter")
    until(lambda: screen.voxels() > 500)
    screen.press("n")
    page.keyboard.type("vessel")
    screen.press("Enter")
    until(lambda: screen.state["labels"][-1]["name"] == "vessel")
    screen.press("Alt+Digit1")
    assert screen.state["label"] == 1
    screen.press("Control+z", "Control+z")
    assert screen.voxels() == 0
    screen.press("Control+y", "Control+y")
    assert screen.voxels() > 500
    screen.press("Control+Enter")
    until(lambda: screen.state["state"]["done"])
    for key, layout in (("1", "axial"), ("2", "coronal"), ("3", "sagittal"), ("5", "render"), ("4", "multi")):
        screen.press(key)
        assert screen.state["layout"] == layout
    screen.press("?")
    assert page.is_visible("#help")
    screen.press("Escape")
    assert not page.is_visible("#help")
    screen.press("]")
    until(lambda: screen.state["case"] not in (None, "keys.nii.gz"))
    screen.idle()


def steer(screen: Screen, goal: list[int]) -> None:
    """Move the crosshair to a voxel of its slice with arrow keys."""
    state = screen.state
    here, plane = state["crosshair"], state["plane"]
    from_x, from_y = screen.place(plane, (here[0], here[1], here[2]))
    to_x, to_y = screen.place(plane, (goal[0], goal[1], goal[2]))
    across, up = (axis for axis in range(3) if axis != PLANES[plane])
    for _ in range(abs(goal[across] - here[across])):
        screen.page.keyboard.press("ArrowRight" if to_x > from_x else "ArrowLeft")
    for _ in range(abs(goal[up] - here[up])):
        screen.page.keyboard.press("ArrowDown" if to_y > from_y else "ArrowUp")
    assert screen.state["crosshair"] == goal


def test_the_mask_follows_the_box_while_it_is_dragged(screen: Screen) -> None:
    screen.open("preview.nii.gz")
    plane = screen.state["image"]["plane"]
    box_over_the_brick(screen)
    screen.press("Escape")
    axis = PLANES[plane]
    middle = (LOW[axis] + HIGH[axis]) // 2
    inside = on(plane, (LOW[0] + 4, LOW[1] + 8, LOW[2] + 8), middle)
    first = on(plane, (LOW[0] - 2, LOW[1] - 2, LOW[2] - 2), middle)
    last = on(plane, (HIGH[0] + 2, HIGH[1] + 2, HIGH[2] + 2), middle)
    screen.show(inside)
    screen.drag(plane, first, last, release=False)
    until(lambda: screen.value(inside)["label"] == 255)
    assert screen.draft is None
    screen.page.keyboard.press("Escape")
    screen.page.mouse.up()
    screen.idle()
    until(lambda: screen.value(inside)["label"] == 0)
    assert screen.draft is None


def test_colours_of_a_picture_and_of_the_label_on_it(screen: Screen) -> None:
    screen.open("spot.png")
    painted = screen.seen()
    x, y = screen.place("axial", (5, 5, 0))
    assert painted[int(y), int(x)].tolist() == pytest.approx([20, 40, 200], abs=6)
    assert screen.state["layout"] == "axial"
    size = screen.state["image"]["shape"]
    spot = (size[0] - 1 - 55, size[1] - 1 - 20, 0)
    assert screen.value(spot)["values"] == [230, 240, 250]
    screen.drag("axial", (spot[0] - 20, spot[1] - 14, 0), (spot[0] + 20, spot[1] + 14, 0))
    assert screen.value(spot)["label"] == 255
    screen.press("Enter")
    until(lambda: screen.voxels() > 100)
    before = painted[tuple(int(c) for c in screen.place("axial", spot))[::-1]]
    after = screen.seen()[tuple(int(c) for c in screen.place("axial", spot))[::-1]]
    assert int(after[2]) < int(before[2]) - 20  # the first label is amber


def test_a_case_that_is_open_elsewhere_can_be_taken_over(window: Callable[..., Screen]) -> None:
    first, second = window(), window()
    first.open("other.nii.gz")
    second.page.click('#worklist [data-key="other.nii.gz"]')
    second.page.wait_for_selector("#ask[open]")
    assert "open in another window" in second.page.inner_text("#ask")
    second.page.click("#ask button:has-text('Take it over')")
    until(lambda: second.state["case"] == "other.nii.gz")
    second.idle()
    box_over_the_brick(first)
    assert "not open here" in first.page.inner_text("#banner")
    first.page.click("#banner button")
    until(lambda: not first.page.is_visible("#banner"))
    for screen in (first, second):
        screen.complaints[:] = [said for said in screen.complaints if "409" not in said and "410" not in said]


def test_a_server_that_does_not_answer_is_told(screen: Screen) -> None:
    screen.open("lost.nii.gz")
    screen.page.context.set_offline(True)
    screen.press("Control+Enter")
    until(lambda: screen.page.is_visible("#banner"))
    assert "does not answer" in screen.page.inner_text("#banner")
    screen.page.context.set_offline(False)
    screen.page.click("#banner button")
    until(lambda: not screen.page.is_visible("#banner"))
    box_over_the_brick(screen)
    assert screen.draft is not None
    screen.complaints[:] = [said for said in screen.complaints if "ERR_INTERNET_DISCONNECTED" not in said]


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080)])
def test_everything_fits_into_the_window(
    window: Callable[..., Screen], tmp_path: Path, width: int, height: int
) -> None:
    screen = window(width, height)
    screen.open("picture.nii.gz")
    box_over_the_brick(screen)
    until(lambda: (screen.draft or {}).get("agreement") is not None)
    screen.press("d")
    screen.page.screenshot(path=tmp_path / f"page-{width}.png")
    outside = screen.page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, summary, h2, dd")]
            .filter((one) => one.checkVisibility())
            .filter((one) => {
                const box = one.getBoundingClientRect();
                const room = one.closest("nav, aside, header, footer, main").getBoundingClientRect();
                return box.left < room.left - 1 || box.right > room.right + 1 || box.bottom > innerHeight + 1;
            }).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    assert screen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    screen.press("Escape")


@pytest.mark.weights
@pytest.mark.usefixtures("weights")
def test_after_a_power_cut_the_page_goes_on(window: Callable[..., Screen], tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    brick(folder / "brick.nii.gz")
    with serving(folder) as first:
        screen = window(where=first.address)
        port = urlsplit(first.address).port
        screen.open("brick.nii.gz")
        box_over_the_brick(screen)
        screen.press("Enter")
        until(lambda: screen.voxels() > 0)
        accepted = screen.voxels()
        box_over_the_brick(screen)
        first.kill()
        screen.press("Enter")
        until(lambda: screen.page.is_visible("#banner"))
    with serving(folder, "--port", port):
        until(lambda: not screen.page.is_visible("#banner"))
        screen.idle()
        assert screen.state["case"] == "brick.nii.gz"
        assert screen.voxels() == accepted
        assert screen.draft is not None
        screen.press("Enter")
        assert screen.voxels() >= accepted
    screen.complaints[:] = [said for said in screen.complaints if "ERR_" not in said and "410" not in said]
