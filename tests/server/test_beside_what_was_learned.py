"""The semi-autonomous mode: prompts go in beside what was learned, and do so again after a restart and in a replay.

Of the model, everything in a box above one half is the object; what was learned of `bright` is only what is above four
fifths (`FakeFindingRuntime`).
"""

import json
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from desks import Office, Window
from fake_runtime import FakeFindingRuntime
from palpate.errors import InputError
from palpate.inference.session import Session
from palpate.models.promptable import LearnedClass
from palpate.server.opened import OpenImage
from palpate.server.record import learned_in, map_hash, record_of, replayed

GREY, BRIGHT = 12 * 40, 18 * 40
"""How many pixels of 180 and of 255 a slice has, where it has any."""

FIRST, LAST = 1, 4
"""The slices of the volume that show them; the others are black but for the white pixel that all have."""

CASE = "two.nii"

LEARNED = {"learned": "bright"}


@pytest.fixture
def office(tmp_path: Path) -> Generator[Office]:
    volume = np.zeros((64, 64, 6), dtype=np.uint8)
    volume[20:32, 10:50, FIRST : LAST + 1], volume[32:50, 10:50, FIRST : LAST + 1] = 180, 255
    volume[:4] = 10  # where values begin
    volume[63, 63] = 255  # in the last row, which the model does not look at
    (tmp_path / "scans").mkdir()
    nibabel.Nifti1Image(volume, np.diag([1, 1, 4, 1.0])).to_filename(tmp_path / "scans" / CASE)  # type: ignore[attr-defined]
    office = Office(tmp_path / "scans")
    yield office
    office.closed()


def box(z: int = 3, **asked: Any) -> dict[str, Any]:
    return {"kind": "box", "plane": "axial", "from": [5, 5, z], "to": [55, 55, z], **asked}


def drawn(browser: Window, **asked: Any) -> int:
    """How many voxels a box around both parts finds."""
    return int(browser.do("prompts", prompt=box(**asked))["draft"]["voxels"])


def test_a_prompt_goes_in_beside_what_was_learned_where_it_says_so(office: Office) -> None:
    office.learn("bright", "dim")
    window = office.open(CASE)
    assert drawn(window) == GREY + BRIGHT
    assert window.state["draft"]["learned"] is None
    assert drawn(window, **LEARNED) == BRIGHT
    assert window.state["draft"]["learned"] == "bright"
    assert office.finding.asked[-1][0] == (1,)
    assert drawn(window, learned="dim") == GREY + BRIGHT
    assert window.state["draft"]["learned"] == "dim"
    assert drawn(window) == GREY + BRIGHT  # and without it again
    assert window.state["draft"]["learned"] is None


def test_a_preview_is_beside_it_and_counts_when_it_is_let_go_of(office: Office) -> None:
    office.learn("bright")
    window = office.open(CASE)
    assert window.post("encode", plane="axial", slice=3, **LEARNED).status_code == 204
    encoded = office.finding.encodes
    assert encoded == 1
    assert window.post("preview", prompt=box(**LEARNED)).json()["patch"] is not None
    asked = len(office.finding.asked)
    assert drawn(window, **LEARNED) == BRIGHT
    assert len(office.finding.asked) == asked
    assert drawn(window) == GREY + BRIGHT  # which the preview was not of
    assert office.finding.encodes == encoded


def test_it_is_carried_by_what_was_learned(office: Office) -> None:
    office.learn("bright")
    window = office.open(CASE)
    drawn(window, **LEARNED)
    assert window.carry(0, 5)["draft"]["voxels"] == (LAST - FIRST + 1) * BRIGHT
    assert not window.shown[..., [0, 5]].any()
    # A slice that was drawn on by hand stays as it is.
    narrow = {**box(2), "to": [39, 55, 2]}
    window.do("prompts", prompt={**narrow, **LEARNED})
    drawn(window, **LEARNED)
    window.carry(0, 5, until_end=True)
    assert (window.shown == 255).sum(axis=(0, 1)).tolist() == [0, BRIGHT, 8 * 40, BRIGHT, BRIGHT, 0]


def test_its_agreement_is_that_of_what_is_found_beside_it(office: Office) -> None:
    office.learn("bright")
    window = office.open(CASE)
    for asked, agreed in (({}, False), (LEARNED, True)):
        # The left side of the box lies in the grey part, and moves by 5 % of 27 pixels.
        window.do("prompts", prompt={**box(**asked), "from": [26, 5, 3], "to": [53, 55, 3]})
        told = office.client.get(f"/api/v1/cases/{CASE}/agreement", headers=window.headers).json()
        assert (told["agreement"] == 1.0) == agreed


def test_a_class_that_was_not_learned_is_refused_and_nothing_changes(office: Office) -> None:
    window = office.open(CASE)
    for learned, said in ((False, "nothing was learned yet"), (True, "only of bright, dim")):
        if learned:
            office.learn("bright", "dim")
        for verb, more in (("prompts", {"revision": window.state["revision"]}), ("preview", {})):
            answer = window.post(verb, prompt=box(learned="spleen"), **more)
            assert answer.status_code == 422
            assert said in answer.json()["detail"]
        assert window.post("encode", plane="axial", slice=3, learned="spleen").status_code == 422
        assert window.catch_up()["draft"] is None


def test_what_was_learned_anew_is_what_the_next_prompt_goes_in_beside_and_what_was_drawn_stays(
    office: Office,
) -> None:
    office.learn("bright")
    # The second time `bright` is learned as what is above one quarter.
    classes = (LearnedClass("bright", 4), LearnedClass("dim", 1))
    office.findings["learned-2.safetensors"] = FakeFindingRuntime(classes=classes)
    window = office.open(CASE)
    drawn(window, **LEARNED)
    office.learn("bright", "dim")
    assert window.carry(FIRST, LAST)["draft"]["voxels"] == (LAST - FIRST + 1) * BRIGHT
    assert window.do("prompts", prompt=box(2, **LEARNED))["draft"]["voxels"] == GREY + (LAST - FIRST + 1) * BRIGHT
    draft = office.desk.annotation(CASE).draft
    assert draft is not None
    steps = [step.learned.file for step in draft.steps]  # type: ignore[union-attr]
    assert steps == ["learned-1.safetensors", "learned-1.safetensors", "learned-2.safetensors"]
    # Where files have gone and come back, too, and in another process.
    window.do("undo")
    window.do("undo")
    office.closed()
    again = Office(office.folder)
    again.findings = office.findings
    try:
        assert again.open(CASE).carry(FIRST, LAST)["draft"]["voxels"] == (LAST - FIRST + 1) * BRIGHT
    finally:
        again.closed()


def test_nobody_waits_for_what_was_learned_to_be_read(office: Office) -> None:
    office.learn("bright")
    window = office.open(CASE)
    drawn(window)
    read, asked = threading.Event(), threading.Event()

    def slow(path: Path, tell: Any) -> Session:
        asked.set()
        assert read.wait(30)
        return Session(office.finding)

    office.teaching._load = slow  # pyright: ignore[reportPrivateUsage]
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(window.post, "preview", prompt=box(2, **LEARNED))
        try:
            assert asked.wait(30)
            assert window.post("preview", prompt=box(4)).status_code == 200
            assert window.do("undo")["draft"] is None
        finally:
            read.set()
        assert waiting.result().status_code == 200


def test_it_is_the_same_after_a_restart(office: Office) -> None:
    office.learn("bright")
    drawn(office.open(CASE), **LEARNED)
    office.closed()
    again = Office(office.folder)
    try:
        window = again.open(CASE)
        assert window.state["draft"]["learned"] == "bright"
        assert window.carry(0, 5)["draft"]["voxels"] == (LAST - FIRST + 1) * BRIGHT
    finally:
        again.closed()


def test_what_was_learned_and_is_gone_is_told_and_nothing_changes(office: Office) -> None:
    path = office.learn("bright")
    drawn(office.open(CASE), **LEARNED)
    office.closed()
    again = Office(office.folder)
    try:
        window = again.open(CASE)
        path.unlink()
        answer = window.post("propagate", plane="axial", first=0, last=5, revision=window.state["revision"])
        job = window.wait(answer.json()["job"])
        assert job["status"] == "failed"
        assert "put it back" in job["detail"]
        assert str(office.folder) not in job["detail"]
        assert window.catch_up()["draft"]["voxels"] == BRIGHT
    finally:
        again.closed()


def test_it_is_in_the_record_and_replayed(office: Office) -> None:
    path = office.learn("bright")
    window = office.open(CASE)
    drawn(window, **LEARNED)
    window.carry(0, 5)
    window.do("accept", label=1)
    annotation = office.desk.annotation(CASE)
    record: dict[str, Any] = json.loads(
        json.dumps(record_of(annotation, image_name=CASE, names={1: "object"}, made_by={}))
    )
    assert [step["learned"]["name"] for step in record["actions"][0]["steps"]] == ["bright", "bright"]
    ((sha256, name),) = learned_in(record).items()
    assert name == path.name
    image = annotation.opened.image

    def on_learned(wanted: str) -> Session:
        assert wanted == sha256
        return Session(office.finding)

    again = replayed(record, OpenImage(image, office.session.sibling, learned=on_learned))
    assert map_hash(again) == record["labels_sha256"]
    with pytest.raises(InputError, match="nothing was learned here"):
        replayed(record, OpenImage(image, office.session.sibling))
    for step in record["actions"][0]["steps"]:
        del step["learned"]
    assert learned_in(record) == {}
    assert map_hash(replayed(record, OpenImage(image, office.session.sibling))) != record["labels_sha256"]


@pytest.mark.parametrize("learned", [7, {"sha256": "0"}, [1]], ids=str)
def test_a_record_whose_learned_prompts_are_damaged_is_told(learned: Any) -> None:
    with pytest.raises(InputError, match="damaged"):
        learned_in({"actions": [{"steps": [{"learned": learned}]}]})


def test_of_sessions_beside_the_model_alone_one_is_kept(office: Office) -> None:
    office.learn("bright")
    beside = office.teaching.beside("bright").sha256
    opened = office.desk.opened(CASE)
    alone = opened.session(0)
    last = None
    for learned, window in ((beside, None), (None, "60/100"), (beside, "60/100")):
        last = opened.session(0, window, learned)
    assert opened.session(0) is alone
    assert opened.session(0, "60/100", beside) is last
    assert len(opened._sessions) == 2  # pyright: ignore[reportPrivateUsage]
