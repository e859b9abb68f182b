"""Annotations are found by a case's id, so it stays whatever else comes into the folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from pydicom.uid import generate_uid

from desks import Office
from dicom_phantoms import save, series


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    return folder


def put(where: Path, *, count: int, name: str, uid: str | None = None) -> None:
    """A CT series of so many slices, bright from (20, 20) to (39, 39), as files that are called `name`."""
    pixels = np.zeros((count, 64, 64), dtype=np.int16)
    pixels[:, 20:40, 20:40] = 200
    for z, dataset in enumerate(series(pixels=pixels, SeriesInstanceUID=uid or generate_uid())):
        save(dataset, where / f"{name}-{z}.dcm")


def ids(office: Office) -> set[str]:
    office.desk.rescan()
    return {case.id for case in office.desk.cases()}


@pytest.mark.parametrize("below", ["", "patient one"], ids=["loose", "in a sub-folder"])
@pytest.mark.parametrize("count", [1, 3], ids=["one file", "three files"])
def test_another_series_leaves_a_series_its_id_and_its_labels(folder: Path, below: str, count: int) -> None:
    put(folder / below, count=count, name="b")
    office = Office(folder)
    (case,) = ids(office)
    office.desk.put_labels(case, np.ones(office.desk.image(case).shape, dtype=np.uint8), {1: "object"}, "import")
    for name in ("a", "c"):
        put(folder / below, count=2, name=name)
        put(folder / below, count=1, name=name + name)
    office.closed()
    again = Office(folder)
    assert len(ids(again)) == 5
    assert {one.id: one.status for one in again.desk.cases()}[case] == "started"
    assert again.desk.labels_of(case).all()
    again.closed()


def test_one_series_in_two_sub_folders_is_two_cases(folder: Path) -> None:
    uid = generate_uid()
    for below in ("a b", "a_b"):
        put(folder / below, count=2, name="slice", uid=uid)
    put(folder, count=1, name="a_b", uid=uid)
    office = Office(folder)
    assert len(ids(office)) == 3
    assert all(one.startswith("a_b-") for one in ids(office))
    office.closed()


def test_an_id_says_where_the_series_lies_and_fits_an_address(folder: Path) -> None:
    put(folder / "Müller, CT", count=2, name="slice")
    put(folder, count=1, name="film")
    office = Office(folder)
    film, patient = sorted(ids(office), key=len)
    assert film.rpartition("-")[0] == "film-0"
    assert patient.rpartition("-")[0] == "M_ller_CT"
    for case in (film, patient):
        assert office.client.post(f"/api/v1/cases/{case}/open", json={}).status_code == 200
    office.closed()


def test_clients_of_monai_label_find_a_series_of_one_file_by_its_uid_too(folder: Path) -> None:
    uid = generate_uid()
    put(folder, count=1, name="film", uid=uid)
    office = Office(folder)
    told = office.client.get("/datastore/image/info", params={"image": uid})
    assert told.json()["name"] == "film-0.dcm"
    office.closed()


@pytest.mark.parametrize("order", [("a b.png", "a_b.png"), ("a_b.png", "a b.png")])
def test_files_keep_their_ids_whichever_comes_first(folder: Path, order: tuple[str, str]) -> None:
    first, second = order
    Picture.fromarray(np.zeros((5, 5), np.uint8)).save(folder / first)
    office = Office(folder)
    (before,) = ids(office)
    Picture.fromarray(np.zeros((5, 5), np.uint8)).save(folder / second)
    both = {one.id: one.name for one in (office.desk.rescan(), office.desk.cases())[1]}
    assert both[before] == first
    assert len(both) == 2
    assert "a_b.png" in both
    office.closed()


def test_a_file_that_is_called_like_the_id_of_another_does_not_take_its_place(folder: Path) -> None:
    put(folder / "patient", count=2, name="slice")
    office = Office(folder)
    (series_id,) = ids(office)
    (folder / series_id).write_bytes(b"\0" * 200)  # beside DICOM, what has no suffix and is no text is damaged DICOM
    put(folder, count=1, name="film")
    assert len(ids(office)) == 3
    assert {one.id: one.status for one in office.desk.cases()}[series_id] == "untouched"
    office.closed()
