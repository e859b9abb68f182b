"""What a second pair of eyes found on the server: each was wrong once."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from command_line import Run
from desks import TOKEN, Office, box_around, brick
from fake_runtime import FakeFindingRuntime
from palpate.errors import InputError
from palpate.inference.session import Session
from palpate.server.desk import InUse
from palpate.server.leases import Gone, Leases
from palpate.server.nninteractive import LARGE_PATHS
from palpate.server.packed import pack
from palpate.server.teaching import Teaching


def test_an_image_that_a_job_works_on_is_the_same_for_whoever_opens_it_again(tmp_path: Path) -> None:
    brick(tmp_path / "a.nii")
    brick(tmp_path / "b.nii")
    office = Office(tmp_path)
    office.desk._image_bytes = 1  # pyright: ignore[reportPrivateUsage]
    window = office.open("a.nii")
    working = office.desk.annotation("a.nii")
    mask = working.opened.grid.to_ras(working.opened.image.array > 0)
    window.do("prompts", prompt=box_around(mask, window.plane))
    with working.opened.lock:  # the job waits for its turn
        job = window.post("propagate", revision=window.state["revision"], plane=window.plane, until_end=True)
        window.post("close")
        office.desk.opened("b.nii")
        again = office.open("a.nii")
        assert office.desk.annotation("a.nii") is working
    assert again.wait(job.json()["job"])["status"] == "finished"
    state = again.catch_up()
    kept = office.desk.journal.last_done("a.nii", shape=working.opened.image.shape)
    assert kept is not None
    assert kept.mask is not None
    assert state["draft"]["voxels"] == int(kept.mask.sum()) == 4000


def test_an_image_that_nobody_works_on_any_more_is_let_go_of(tmp_path: Path) -> None:
    brick(tmp_path / "a.nii")
    brick(tmp_path / "b.nii")
    office = Office(tmp_path)
    office.desk._image_bytes = 1  # pyright: ignore[reportPrivateUsage]
    first = id(office.desk.annotation("a.nii"))
    assert id(office.desk.annotation("a.nii")) == first
    office.desk.opened("b.nii")
    assert list(office.desk._used) == ["b.nii"]  # pyright: ignore[reportPrivateUsage]


def test_while_an_object_is_carried_nothing_waits_behind_it(tmp_path: Path) -> None:
    brick(tmp_path / "a.nii")
    office = Office(tmp_path)
    window = office.open("a.nii")
    working = office.desk.annotation("a.nii")
    mask = working.opened.grid.to_ras(working.opened.image.array > 0)
    window.do("prompts", prompt=box_around(mask, window.plane))
    with working.opened.lock:
        job = window.post("propagate", revision=window.state["revision"], plane=window.plane, until_end=True)
        looked = window.client.get("/api/v1/cases/a.nii/agreement", headers=window.headers)
        ahead = window.post("encode", plane=window.plane, slice=3)
        assert looked.json()["agreement"] is None
        assert ahead.status_code == 204
    window.wait(job.json()["job"])
    assert window.client.get("/api/v1/cases/a.nii/agreement", headers=window.headers).json()["agreement"] is not None


def test_a_label_of_a_case_whose_image_is_elsewhere_is_still_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    brick(folder / "a.nii")
    office = Office(folder)
    labels = np.zeros(office.desk.image("a.nii").shape, dtype=np.uint8)
    labels[5] = 1
    office.desk.put_labels("a.nii", labels, {1: "object"}, "import")
    (folder / "a.nii").rename(tmp_path / "a.nii")
    office.desk.rescan()
    with pytest.raises(InUse, match=r"object is used in a\.nii"):
        office.desk.drop_label(1)


def test_the_journal_tells_of_one_case_what_it_tells_of_all(tmp_path: Path) -> None:
    brick(tmp_path / "a.nii")
    brick(tmp_path / "b.nii")
    desk = Office(tmp_path).desk
    for case in ("a.nii", "b.nii"):
        desk.put_labels(case, np.ones(desk.image(case).shape, dtype=np.uint8), {1: "object"}, "import", score=0.5)
    assert (
        desk.journal.cases("b.nii") == {"b.nii": desk.journal.cases()["b.nii"]} == {"b.nii": (False, 0.5, 1, "import")}
    )
    assert desk.journal.cases("c.nii") == {}


def test_who_gives_back_what_was_taken_over_takes_nothing_away() -> None:
    leases = Leases(most=1)
    old = leases.take("a")
    new = leases.take("a", take_over=True)
    with pytest.raises(Gone):
        leases.give_back("a", old)
    leases.give_back("a", new)
    assert leases.held() == set()


@pytest.mark.parametrize("origin", ["http://[::1", "null", "http://localhost:8001"])
def test_an_origin_that_is_no_address_is_refused(tmp_path: Path, origin: str) -> None:
    assert Office(tmp_path).client.get("/api/v1/about", headers={"origin": origin}).status_code == 403


def test_two_servers_on_one_machine_do_not_share_a_cookie(tmp_path: Path) -> None:
    browser = Office(tmp_path).another(token=None)
    told = browser.get(f"/?token={TOKEN}", follow_redirects=False)
    assert told.headers["set-cookie"].startswith(f"palpate_token_8000={TOKEN};")
    assert browser.get("/api/v1/about").status_code == 200
    elsewhere = {"host": "localhost:8001"}  # where another one has another token
    assert browser.get("/api/v1/about", headers=elsewhere).status_code == 401


def test_a_spacing_too_large_for_a_number_is_no_spacing(tmp_path: Path) -> None:
    client = Office(tmp_path).client
    headers = {"x-lease-token": client.post("/claim").json()["lease_token"]}
    headers["x-meta"] = f'{{"image_properties": {{"spacing": [{"9" * 400}, 1, 1]}}}}'
    answer = client.post("/set_image", headers=headers, content=pack(np.eye(6, dtype=np.float32)[None, None]))
    assert answer.status_code == 422
    assert "spacing" in answer.json()["detail"]


def test_only_arrays_may_be_large(tmp_path: Path) -> None:
    client = Office(tmp_path).client
    large = b" " * (2**20 + 1)
    for path in LARGE_PATHS:  # whoever has no lease is refused before the body is read
        assert client.post(path, headers={"x-lease-token": "none"}, content=large).status_code == 410
    for path in ("/add_point_interaction", "/add_bbox_interaction"):
        assert client.post(path, headers={"x-lease-token": "none"}, content=large).status_code == 413


def test_a_token_that_does_not_fit_an_address_is_refused(tmp_path: Path, palpate: Run) -> None:
    answer = palpate("serve", tmp_path, "--token", "with/slash;here")
    assert answer.status != 0
    assert "part of an address" in answer.err


def test_a_guess_that_cannot_be_kept_does_not_end_the_others(tmp_path: Path) -> None:
    learned = tmp_path / "learned"
    learned.mkdir()
    (learned / "learned-1.safetensors").touch()
    record = {"cases": ["x"], "classes": ["dim"], "val_dice": None, "made_at": "2026-01-01"}
    (learned / "learned-1.json").write_text(json.dumps(record))
    for name in ("a", "b"):
        pixels = np.zeros((64, 64), dtype=np.uint8)
        pixels[5:21, 5:21] = 102
        pixels[63, 63] = 255
        Picture.fromarray(pixels).save(tmp_path / f"{name}.png")
    office = Office(tmp_path)

    def load(path: Path, tell: object) -> Session:
        return Session(FakeFindingRuntime())

    teaching = Teaching(office.desk, learned, office.jobs, load=load)
    kept: list[str] = []

    def guessed(case: str, *_: object) -> None:
        if case == "a.png":
            raise InputError("label 1 (dim) is locked")
        kept.append(case)

    job = office.jobs.wait(teaching.guess(["a.png", "b.png"], guessed).id, 20)
    assert (job.status, kept) == ("finished", ["b.png"]), job.detail
    assert "1 of 2 cases have a first guess" in job.detail
    assert "a.png could not be looked at (label 1 (dim) is locked)" in job.detail
