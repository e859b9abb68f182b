"""The whole journey in a browser, with the real server and model: a heart, and a liver as DICOM, from box to file.

The files that come out are compared with what experts drew.
"""

import io
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path
from shutil import copy
from typing import Any
from urllib.parse import urlsplit

import nibabel
import numpy as np
import pydicom
import pytest

from browsing import PLANES, Screen, Voxel, until
from command_line import Run
from palpate.images import read
from palpate.metrics import dice
from palpate.server.app import PAGE
from palpate.server.grid import RasGrid
from serving import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.weights,
    pytest.mark.real_data,
    pytest.mark.usefixtures("weights"),
]

HEART = "acdc_cardiac_mr/{}/patient001_frame01.nii.gz"
LEFT, RIGHT = 3, 1
"""The values of the two ventricles."""


@pytest.fixture(autouse=True)
def runtime_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALPATE_RUNTIME", raising=False)


@pytest.fixture
def open_window(browser: Any) -> Generator[Callable[[str], Screen]]:
    if not (PAGE / "vendor" / "niivue.js").is_file():
        pytest.skip("NiiVue is not packed; `pip install -e .` packs it where there is npm")
    contexts: list[Any] = []

    def new(address: str) -> Screen:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True))
        return Screen(contexts[-1].new_page(), address)

    yield new
    for context in contexts:
        context.close()


def in_ras(path: Path) -> np.ndarray:
    """A NIfTI file's values in the order of the page."""
    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)  # type: ignore[attr-defined]


def boxed(screen: Screen, body: np.ndarray) -> tuple[int, int, int]:
    """Drag the tight box of a body on the slice that shows most of it; that slice, and the first and last one."""
    plane = screen.state["image"]["plane"]
    axis = PLANES[plane]
    areas = body.sum(axis=tuple(other for other in range(3) if other != axis))
    at = int(areas.argmax())
    places = np.argwhere(np.take(body, [at], axis=axis))
    low, high = places.min(axis=0), places.max(axis=0)
    low[axis] = high[axis] = at
    first, last = (tuple(int(index) for index in corner) for corner in (low, high))
    middle: Voxel = tuple(int(index) for index in (low + high) // 2)  # type: ignore[assignment]
    screen.show(middle)
    screen.drag(plane, first, last)  # type: ignore[arg-type]
    shown = np.flatnonzero(areas)
    return at, int(shown[0]), int(shown[-1])


def carried(screen: Screen, first: int, last: int) -> None:
    """Say how far, and propagate."""
    for key, number in (("first", first), ("last", last)):
        screen.page.fill(f'#draft [data-key="{key}"]', str(number))
        screen.page.keyboard.press("Enter")
    screen.page.uncheck('#draft [data-key="until"]')
    screen.page.click('#draft [data-key="propagate"]')


def exported(screen: Screen, kind: str, folder: Path) -> Path:
    """Export the open case from the menu; the folder with what was in the zip."""
    screen.page.click('#finish [data-key="Export case"]')
    with screen.page.expect_download() as download:
        screen.page.click(f"#finish details[open] .choices button:has-text('{kind}')")
    zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())).extractall(folder)
    return folder


def test_a_heart_from_box_to_file_through_a_power_cut(
    open_window: Callable[[str], Screen], data_root: Path, tmp_path: Path, palpate: Run
) -> None:
    (tmp_path / "scans").mkdir()
    copy(data_root / HEART.format("images"), tmp_path / "scans" / "heart.nii.gz")
    truth = in_ras(data_root / HEART.format("labels"))
    left, right = truth == LEFT, truth == RIGHT

    with serving(tmp_path / "scans") as server:
        screen = open_window(server.address)
        page = screen.page
        screen.open("heart.nii.gz")
        plane = screen.state["image"]["plane"]
        assert plane == "axial"
        at, first, last = boxed(screen, left)
        area = int(left[..., at].sum())
        assert screen.draft is not None
        assert screen.draft["voxels"] == pytest.approx(area, rel=0.1)

        # A click beside the object, outside the box, changes little; it is taken back.
        before = screen.draft["voxels"]
        corner = np.argwhere(left[..., at]).min(axis=0) - 12
        screen.press("p")
        screen.click("axial", (int(corner[0]), int(corner[1]), at), shift=True)
        assert len(screen.draft["prompts"]) == 2
        screen.press("Control+z")
        assert (len(screen.draft["prompts"]), screen.draft["voxels"]) == (1, before)

        carried(screen, first, last)
        until(lambda: screen.state["job"] is None and screen.draft["voxels"] > 2 * area)  # type: ignore[index]
        screen.idle()
        screen.press("Enter")
        accepted = screen.voxels(1)
        assert accepted == pytest.approx(int(left.sum()), rel=0.1)
        screen.press("Control+z")
        assert screen.voxels(1) == 0
        assert screen.draft is not None
        screen.press("Control+Shift+z")
        assert screen.voxels(1) == accepted

        # The other ventricle; the power goes while it is carried.
        page.click('#labels [data-key="new"]')
        page.fill("#labels input.name", "right")
        page.keyboard.press("Enter")
        until(lambda: screen.state["label"] == 2)
        screen.press("b")
        _, first, last = boxed(screen, right)
        drawn = screen.draft
        assert drawn is not None
        carried(screen, first, last)
        until(lambda: screen.state["job"] is not None)
        server.kill()
        until(lambda: page.is_visible("#banner"))

    with serving(tmp_path / "scans", "--port", urlsplit(server.address).port):
        until(lambda: not page.is_visible("#banner"))
        until(lambda: "goes on where it was" in page.inner_text("#said"))
        screen.idle()
        assert screen.voxels(1) == accepted
        assert screen.draft is not None
        if screen.draft["voxels"] == drawn["voxels"]:  # what was under way is lost, and nothing else
            carried(screen, first, last)
            until(lambda: screen.state["job"] is None and screen.draft["voxels"] > drawn["voxels"])  # type: ignore[index]
            screen.idle()
        page.click('#labels [data-key="pick2"]')
        page.click('#draft [data-key="accept"]')
        until(lambda: screen.voxels(2) > 0)
        page.screenshot(path=tmp_path / "heart.png")
        made = exported(screen, "NIfTI", tmp_path / "made")
        # The browser notes that the server was gone, and that the new one knows neither the lease nor the job.
        expected = ("ERR_", "410", "404")
        assert [said for said in screen.complaints if not any(word in said for word in expected)] == []

    (file,) = made.rglob("heart.nii.gz")
    labels = in_ras(file)
    assert np.allclose(nibabel.load(file).affine, nibabel.load(data_root / HEART.format("images")).affine)  # type: ignore[attr-defined]
    assert dice(labels == 1, left) > 0.95
    assert dice(labels == 2, right) > 0.9
    (record,) = made.rglob("heart.prompts.json")
    answer = palpate("replay", record, "--image", tmp_path / "scans" / "heart.nii.gz", "--runtime", "auto", "--json")
    assert (answer.status, answer.json["same"]) == (0, True), answer.err


def test_a_liver_from_dicom_to_dicom(
    open_window: Callable[[str], Screen], data_root: Path, tmp_path: Path, palpate: Run
) -> None:
    source = data_root / "dicom_io" / "dcmqi_ct3slice_liver_seg"
    (tmp_path / "scans").mkdir()
    for path in sorted((source / "ct").iterdir()):
        copy(path, tmp_path / "scans")
    expert = read(source / "seg" / "liver_seg.nrrd")
    liver = RasGrid.of(expert.geometry).to_ras(expert.array) > 0

    with serving(tmp_path / "scans") as server:
        screen = open_window(server.address)
        (case,) = [one["id"] for one in screen.state["cases"]]
        screen.open(case)
        assert screen.state["image"]["shape"] == list(liver.shape)
        _, first, last = boxed(screen, liver)
        carried(screen, first, last)
        until(lambda: screen.state["job"] is None and screen.draft["voxels"] > 2 * liver.sum() / 3)  # type: ignore[index]
        screen.idle()
        screen.press("Enter")
        until(lambda: screen.voxels(1) > 0)
        screen.page.screenshot(path=tmp_path / "liver.png")
        made, segmented = (exported(screen, kind, tmp_path / kind) for kind in ("NIfTI", "DICOM SEG"))
        voxels = screen.voxels(1)
        assert screen.complaints == []

    (file,) = made.rglob("*.nii.gz")
    assert dice(in_ras(file) == 1, liver) > 0.9
    (file,) = segmented.rglob("*.dcm")
    assert int(pydicom.dcmread(file).pixel_array.sum()) == voxels
    (record,) = segmented.rglob("*.prompts.json")
    answer = palpate("replay", record, "--image", tmp_path / "scans", "--runtime", "auto", "--json")
    assert (answer.status, answer.json["same"]) == (0, True), answer.err
