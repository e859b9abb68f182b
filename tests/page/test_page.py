"""The page of `palpate serve` in a browser: what a radiologist does, and where it lands."""

import io
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

from browsing import PLANES, Screen, Voxel, answering, elsewhere, until
from desks import OBLIQUE, Office, brick
from palpate.server.app import PAGE

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
    for name in ("journey", "keys", "preview", "other", "picture", "lost", "window", "undone", "menu"):
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


def on(plane: str, voxel: Voxel, at: int) -> Voxel:
    """The voxel on a certain slice of a plane."""
    moved = list(voxel)
    moved[PLANES[plane]] = at
    return moved[0], moved[1], moved[2]


def box_over_the_brick(screen: Screen, *, wait: bool = True) -> str:
    """Drag a box a little larger than the brick on its middle slice; the plane it was drawn on."""
    plane = screen.state["image"]["plane"]
    axis = PLANES[plane]
    middle = (LOW[axis] + HIGH[axis]) // 2
    screen.show(on(plane, LOW, middle))
    first = on(plane, (LOW[0] - 2, LOW[1] - 2, LOW[2] - 2), middle)
    last = on(plane, (HIGH[0] + 2, HIGH[1] + 2, HIGH[2] + 2), middle)
    screen.drag(plane, first, last, release=wait)
    if not wait:
        screen.page.mouse.up()
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
    page.keyboard.press("n")
    page.keyboard.type("vessel")  # at once, as it comes from a hand
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


def test_every_layout_can_be_chosen_after_every_other(screen: Screen) -> None:
    planes = {
        "1": ["axial"],
        "2": ["coronal"],
        "3": ["sagittal"],
        "4": ["axial", "sagittal", "coronal", None],
        "5": [None],
    }
    screen.open("window.nii.gz")
    for key in "5451425343215":  # 4 after 5 above all
        screen.press(key)
        assert screen.page.evaluate("palpate.drawn()") == planes[key]
    solid = screen.seen()
    screen.press("4")
    x, y = screen.place("axial", (10, 34, 40))
    assert screen.seen()[int(y), int(x)].tolist() != solid[int(y), int(x)].tolist()


def test_a_right_drag_changes_the_window(screen: Screen) -> None:
    page = screen.page
    screen.open("window.nii.gz")
    here, beside = (10, 34, 40), (11, 38, 44)  # both in the brick, the other one off the crosshair
    screen.show(here)
    x, y = screen.place("axial", here)

    def shown() -> str:
        return page.inner_text("#windowing option:checked")

    def grey() -> int:
        """Of the brick, whose value is 200."""
        across, down = screen.place("axial", beside)
        return int(screen.seen()[int(down), int(across)].mean())

    def drag(right: float, down: float) -> None:
        page.mouse.move(x, y)
        page.mouse.down(button="right")
        page.mouse.move(x + right, y + down, steps=3)
        page.mouse.up(button="right")
        screen.idle()

    assert shown() == "whole range"  # 0 to 200
    assert grey() == 255
    drag(100, 0)  # wider: e to the power of 100 / 200 times the width, around the same level
    width = 200 * np.exp(0.5)
    assert shown() == f"{100 - width / 2:.1f} to {100 + width / 2:.0f}"
    assert grey() == pytest.approx(255 * (0.5 + 100 / width), abs=3)
    drag(0, 60)  # downwards the level grows by 60 / 300 of the width, and all gets darker
    level = 100 + width / 5
    assert shown() == f"{level - width / 2:.3g} to {level + width / 2:.0f}"
    assert grey() == pytest.approx(255 * (0.5 + (200 - level) / width), abs=3)
    assert screen.state["gesture"] is None
    assert screen.state["state"]["undo"] is None  # nothing was drawn
    screen.press("w")
    assert shown() == "whole range"
    assert grey() == 255


@pytest.mark.parametrize("name", ["thick", "oblique"])
def test_after_the_picture_was_moved_clicks_land_on_the_very_voxel(screen: Screen, folder: Path, name: str) -> None:
    page = screen.page
    image = nibabel.as_closest_canonical(nibabel.load(folder / f"{name}.nii.gz"))  # type: ignore[attr-defined]
    values = np.asarray(image.dataobj)
    at = np.unravel_index(int(values.argmax()), values.shape)
    voxel = (int(at[0]), int(at[1]), int(at[2]))
    screen.open(f"{name}.nii.gz")
    screen.press("h")
    page.select_option("#windowing select", label="whole range")
    screen.show(voxel)
    for plane, button, key in (("axial", "middle", "p"), ("coronal", "left", "v"), ("sagittal", "middle", "b")):
        screen.press(key)
        x, y = screen.place(plane, voxel)
        page.mouse.move(x, y)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -100)
        page.keyboard.up("Control")
        screen.idle()
        assert screen.place(plane, voxel) == pytest.approx((x, y), abs=0.5)  # zoomed where the pointer is
        page.mouse.down(button=button)
        middle = screen.place(plane, (values.shape[0] // 2, values.shape[1] // 2, values.shape[2] // 2))
        right, down = 31 if middle[0] > x else -31, 19 if middle[1] > y else -19  # so that it stays to be seen
        page.mouse.move(x + right, y + down, steps=3)
        page.mouse.up(button=button)
        screen.idle()
        x, y = x + right, y + down
        assert screen.place(plane, voxel) == pytest.approx((x, y), abs=0.5)
        assert page.evaluate(f"palpate.voxelByNiivue({x}, {y})") == list(voxel)
        painted = screen.seen().mean(axis=2)
        assert painted[int(y), int(x)] > 200  # the needle has come along
        assert painted[int(y - down), int(x - right)] < 150
        screen.press("p")
        screen.click(plane, voxel)
        assert screen.draft is not None
        assert {"kind": "point", "plane": plane, "at": list(voxel), "positive": True} in screen.draft["prompts"]
    screen.press("r")
    for plane in PLANES:
        x, y = screen.place(plane, voxel)
        assert page.evaluate(f"palpate.voxelByNiivue({x}, {y})") == list(voxel)


def test_what_would_be_undone_is_named(screen: Screen) -> None:
    page = screen.page
    undo, redo = '#history [data-key="undo"]', '#history [data-key="redo"]'

    def named(button: str) -> str:
        return page.get_attribute(button, "title")

    screen.open("undone.nii.gz")
    assert named(undo) == "Undo (Ctrl+Z)"
    assert page.is_disabled(undo)
    plane = box_over_the_brick(screen)
    assert named(undo) == "Undo box (Ctrl+Z)"
    middle = screen.state["crosshair"][PLANES[plane]]
    inside, edge = on(plane, (9, 30, 36), middle), on(plane, (9, 36, 44), middle)
    screen.press("p")
    screen.click(plane, inside)
    assert named(undo) == "Undo point (Ctrl+Z)"
    screen.press("s")
    screen.drag(plane, inside, edge)
    assert named(undo) == "Undo scribble (Ctrl+Z)"
    screen.press("g")
    assert named(undo) == "Undo propagation (Ctrl+Z)"
    for key, tool in (("d", "brush"), ("e", "eraser")):
        screen.press(key)
        screen.click(plane, inside)
        assert named(undo) == f"Undo {tool} (Ctrl+Z)"
    screen.press("Enter")
    assert named(undo) == "Undo accept into object (Ctrl+Z)"
    screen.press("d")
    screen.click(plane, on(plane, (2, 4, 4), middle))
    assert named(undo) == "Undo brush in object (Ctrl+Z)"
    screen.press("b")
    box_over_the_brick(screen)
    screen.press("Escape")
    assert named(undo) == "Undo discard of the object (Ctrl+Z)"

    page.reload()  # it is in the journal, not in the page
    screen.ready()
    until(lambda: screen.state["case"] == "undone.nii.gz")
    screen.idle()
    assert named(undo) == "Undo discard of the object (Ctrl+Z)"
    undone: list[str] = []
    for _ in range(10):
        page.click(undo)
        screen.idle()
        undone.append(page.inner_text("#said").removeprefix("undone: "))
    assert undone == [
        "discard of the object", "box", "brush in object", "accept into object", "eraser", "brush", "propagation",
        "scribble", "point", "box",
    ]  # fmt: skip
    assert page.is_disabled(undo)
    assert named(redo) == "Redo box (Ctrl+Shift+Z)"
    page.click(redo)
    screen.idle()
    assert page.inner_text("#said") == "done again: box"
    assert named(redo) == "Redo point (Ctrl+Shift+Z)"


def test_escape_closes_a_menu_before_it_discards(screen: Screen) -> None:
    page = screen.page
    screen.open("menu.nii.gz")
    box_over_the_brick(screen)
    page.click('#finish [data-key="Export case"]')
    assert page.is_visible("#finish .choices button")
    screen.press("Escape")
    assert not page.is_visible("#finish .choices button")
    assert page.evaluate("document.activeElement.dataset.key") == "Export case"
    assert screen.draft is not None
    page.click('#finish [data-key="Export case"]')
    page.click("#worklist h2")
    assert not page.is_visible("#finish .choices button")
    screen.press("Escape")
    assert screen.draft is None


@pytest.mark.parametrize("end", ["accept", "discard"])
def test_how_far_an_object_is_carried_says_nothing_of_the_next(screen: Screen, end: str) -> None:
    screen.open("menu.nii.gz")
    box_over_the_brick(screen)
    screen.page.fill('#draft [data-key="first"]', "7")
    screen.page.uncheck('#draft [data-key="until"]')
    screen.page.click(f'#draft [data-key="{end}"]')
    until(lambda: screen.draft is None)
    box_over_the_brick(screen)
    assert screen.page.input_value('#draft [data-key="first"]') == ""
    assert not screen.page.is_checked('#draft [data-key="until"]')


def test_a_box_stays_and_words_say_why_until_it_is_answered(screen: Screen, office: Office) -> None:
    screen.open("menu.nii.gz")
    screen.press("Escape")  # whatever another test drew
    with office.desk.annotation("menu.nii.gz").opened.lock:  # as somebody does whose question takes long
        plane = box_over_the_brick(screen, wait=False)
        until(lambda: "looking at this slice" in screen.page.inner_text("#said"))
        axis = PLANES[plane]
        corner = on(plane, (LOW[0] - 2, LOW[1] - 2, LOW[2] - 2), (LOW[axis] + HIGH[axis]) // 2)
        x, y = screen.page.evaluate(f"palpate.screenOf({plane!r}, {list(corner)})")
        pixels = np.asarray(Picture.open(io.BytesIO(screen.page.screenshot())).convert("RGB")).astype(int)
        around = pixels[round(y) - 12 : round(y) + 13, round(x) - 12 : round(x) + 13].reshape(-1, 3)
        assert (np.abs(around - (255, 216, 77)).max(axis=1) < 60).any()  # the colour of prompts
    screen.idle()
    assert "voxels" in screen.page.inner_text("#said")
    # The other planes go through what was drawn.
    middle = [(low + high) // 2 for low, high in zip(LOW, HIGH, strict=True)]
    assert screen.state["crosshair"] == middle


def test_keys_tell_of_the_slice_that_they_go_to(screen: Screen) -> None:
    screen.open("menu.nii.gz")
    plane = screen.state["image"]["plane"]
    inside = tuple((low + high) // 2 for low, high in zip(LOW, HIGH, strict=True))
    screen.show(inside)
    screen.page.mouse.move(*screen.place(plane, inside))
    until(lambda: "200" in screen.page.inner_text("#place"))
    screen.press(*["PageDown"] * (inside[PLANES[plane]] - LOW[PLANES[plane]] + 2))
    until(lambda: "value 0" in screen.page.inner_text("#place"))


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
    with screen.timeless():
        screen.drag(plane, first, last, release=False)
        until(lambda: screen.value(inside)["label"] == 255)
    assert screen.draft is None
    screen.page.keyboard.press("Escape")
    screen.page.mouse.up()
    screen.idle()
    until(lambda: screen.value(inside)["label"] == 0)
    assert screen.draft is None


def test_a_mask_under_way_for_a_box_that_is_complete_does_not_stop_the_next_one(screen: Screen) -> None:
    screen.open("preview.nii.gz")
    held: list[Any] = []
    screen.page.route("**/preview", lambda route: route.continue_() if held else held.append(route))
    plane = box_over_the_brick(screen)
    screen.press("Escape")
    middle = (LOW[PLANES[plane]] + HIGH[PLANES[plane]]) // 2
    inside = on(plane, (LOW[0] + 4, LOW[1] + 8, LOW[2] + 8), middle)
    first = on(plane, (LOW[0] - 2, LOW[1] - 2, LOW[2] - 2), middle)
    last = on(plane, (HIGH[0] + 2, HIGH[1] + 2, HIGH[2] + 2), middle)
    with screen.timeless():
        screen.drag(plane, first, last, release=False)
        assert screen.value(inside)["label"] == 0
        held[0].continue_()
        until(lambda: screen.value(inside)["label"] == 255)
    screen.page.keyboard.press("Escape")
    screen.page.mouse.up()
    screen.idle()


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
    second.open("menu.nii.gz")
    second.page.click('#worklist [data-key="other.nii.gz"]')
    second.page.wait_for_selector("#ask[open]")
    assert "open in another window" in second.page.inner_text("#ask")
    second.page.click("#ask button:has-text('Leave it')")
    until(lambda: second.state["case"] == "menu.nii.gz")  # what was there before
    second.idle()
    second.page.click('#worklist [data-key="other.nii.gz"]')
    second.page.wait_for_selector("#ask[open]")
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


def test_after_a_power_cut_the_page_goes_on(window: Callable[..., Screen], tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    brick(folder / "brick.nii.gz")
    with elsewhere(folder) as (address, process):
        screen = window(where=address)
        screen.open("brick.nii.gz")
        box_over_the_brick(screen)
        screen.press("Enter")
        until(lambda: screen.voxels() > 0)
        accepted = screen.voxels()
        box_over_the_brick(screen)
        process.kill()
        process.wait()
        screen.press("Enter")
        until(lambda: screen.page.is_visible("#banner"))
    with elsewhere(folder, urlsplit(address).port or 0):
        until(lambda: not screen.page.is_visible("#banner"))
        until(lambda: "goes on where it was" in screen.page.inner_text("#said"))
        assert screen.state["case"] == "brick.nii.gz"
        assert screen.voxels() == accepted
        assert screen.draft is not None
        screen.press("Enter")
        assert screen.voxels() >= accepted
        screen.page.context.close()
    screen.complaints[:] = [said for said in screen.complaints if "ERR_" not in said and "410" not in said]
