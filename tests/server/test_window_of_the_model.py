"""The model sees an image by the window that a prompt says, and so it does again when the work is replayed."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from desks import Office, Window
from fake_runtime import FakeRuntime
from palpate.images import Image
from palpate.images.intensity import Window as Rule
from palpate.images.intensity import parse_intensity
from palpate.inference.session import Session
from palpate.prompts import Box
from palpate.server.opened import OpenImage
from palpate.server.record import map_hash, record_of, replayed

LOW, HIGH = "50/100", "150/100"
"""By the first, whatever is above 50 is bright; by the second, whatever is above 150."""


@pytest.fixture
def office(tmp_path: Path):
    """A volume with a part of 100 in i < 32 and one of 200 beside it."""
    volume = np.zeros((64, 64, 6), dtype=np.int16)
    volume[10:32, 10:50], volume[32:50, 10:50] = 100, 200
    (tmp_path / "scans").mkdir()
    nibabel.Nifti1Image(volume, np.diag([1, 1, 4, 1.0])).to_filename(tmp_path / "scans" / "two.nii")  # type: ignore[attr-defined]
    office = Office(tmp_path / "scans")
    yield office
    office.closed()


def boxed(browser: Window, **asked: Any) -> int:
    """How many voxels a box around both parts finds."""
    prompt = {"kind": "box", "plane": "axial", "from": [5, 5, 3], "to": [55, 55, 3], **asked}
    return int(browser.do("prompts", prompt=prompt)["draft"]["voxels"])


def test_the_model_sees_by_the_window_of_the_prompt(office: Office) -> None:
    window = office.open("two.nii")
    assert boxed(window, window=HIGH) == 18 * 40
    assert boxed(window, window=LOW) == 40 * 40


def test_a_preview_and_a_slice_encoded_ahead_are_by_the_same_window(office: Office) -> None:
    window = office.open("two.nii")
    assert window.post("encode", plane="axial", slice=3, window=LOW).status_code == 204
    runtime = office.session.runtime
    assert isinstance(runtime, FakeRuntime)
    encoded = runtime.encodes
    prompt = {"kind": "box", "plane": "axial", "from": [5, 5, 3], "to": [55, 55, 3], "window": LOW}
    before = window.shown.copy()
    assert window.post("preview", prompt=prompt).json()["patch"] is not None
    assert boxed(window, window=LOW) == 40 * 40
    assert runtime.encodes == encoded
    assert not before.any()


def test_what_is_carried_and_judged_is_seen_by_the_same_window(office: Office) -> None:
    window = office.open("two.nii")
    boxed(window, window=LOW)
    assert window.carry(0, 5)["draft"]["voxels"] == 6 * 40 * 40
    told = office.client.get("/api/v1/cases/two.nii/agreement", headers=window.headers).json()
    assert told["agreement"] == 1.0


@pytest.mark.parametrize("given", ["bright", "40/0", "1/2/3", "9..1", "40/400" + "0" * 40])
def test_a_window_that_is_none_is_refused_and_changes_nothing(office: Office, given: str) -> None:
    window = office.open("two.nii")
    prompt = {"kind": "box", "plane": "axial", "from": [5, 5, 3], "to": [55, 55, 3], "window": given}
    answer = window.post("prompts", revision=window.state["revision"], prompt=prompt)
    assert answer.status_code == 422
    assert "window" in answer.json()["detail"]
    assert window.catch_up()["draft"] is None


def test_a_window_in_which_all_is_alike_is_told(office: Office) -> None:
    window = office.open("two.nii")
    prompt = {"kind": "box", "plane": "axial", "from": [5, 5, 3], "to": [55, 55, 3], "window": "5000/10"}
    answer = window.post("prompts", revision=window.state["revision"], prompt=prompt)
    assert answer.status_code == 422
    assert "same value" in answer.json()["detail"]


def test_it_is_in_the_record_and_replayed(office: Office) -> None:
    window = office.open("two.nii")
    boxed(window, window=LOW)
    window.carry(1, 4)
    window.do("accept", label=1)
    made = {"model": "fake", "weights_hash": "0" * 64, "runtime": "fake on paper", "load": {}}

    annotation = office.desk.annotation("two.nii")
    record = json.loads(json.dumps(record_of(annotation, image_name="two.nii", names={1: "object"}, made_by=made)))
    steps = record["actions"][0]["steps"]
    assert [step.get("window") for step in steps] == [LOW, LOW]
    again = replayed(record, OpenImage(annotation.opened.image, office.session.sibling))
    assert map_hash(again) == record["labels_sha256"]
    for step in steps:
        del step["window"]
    other = replayed(record, OpenImage(annotation.opened.image, office.session.sibling))
    assert map_hash(other) != record["labels_sha256"]


def test_it_is_the_same_after_a_restart(office: Office) -> None:
    window = office.open("two.nii")
    boxed(window, window=LOW)
    office.closed()
    again = Office(office.folder)
    try:
        assert again.open("two.nii").carry(0, 5)["draft"]["voxels"] == 6 * 40 * 40
    finally:
        again.closed()


def test_of_many_windows_the_last_is_kept(office: Office) -> None:
    opened = office.desk.opened("two.nii")
    own = opened.session(0)
    last = None
    for level in range(60, 100, 5):
        last = opened.session(0, f"{level}/100")
    assert opened.session(0) is own
    assert opened.session(0, "95/100") is last
    assert len(opened._sessions) == 2  # pyright: ignore[reportPrivateUsage]


def test_the_server_can_have_a_window_of_its_own_and_the_page_begins_with_it(tmp_path: Path) -> None:
    volume = np.zeros((64, 64, 6), dtype=np.int16)
    volume[10:32, 10:50], volume[32:50, 10:50] = 100, 200
    (tmp_path / "scans").mkdir()
    nibabel.Nifti1Image(volume, np.diag([1, 1, 4, 1.0])).to_filename(tmp_path / "scans" / "two.nii")  # type: ignore[attr-defined]
    office = Office(tmp_path / "scans", intensity=parse_intensity(HIGH))
    try:
        window = office.open("two.nii")
        told = window.opened["image"]["window"]
        assert (told["low"], told["high"]) == (100, 200)
        assert [one["name"] for one in told["presets"]] == ["150/100", "whole range"]
        assert boxed(window) == 18 * 40
        assert boxed(window, window=LOW) == 40 * 40
    finally:
        office.closed()


def test_a_sibling_has_the_rule_of_its_session_unless_told() -> None:
    session = Session(FakeRuntime(), intensity=Rule(40, 400))
    assert session.sibling().intensity == Rule(40, 400)
    assert session.sibling(intensity=Rule(-600, 1500)).intensity == Rule(-600, 1500)
    assert Session(FakeRuntime()).sibling().intensity is None


def test_a_rule_that_a_sibling_was_told_is_given_and_no_card_says_it() -> None:
    image = Image(np.arange(64 * 64, dtype=np.int16).reshape(64, 64))
    for session, origin in (
        (Session(FakeRuntime(), intensity=Rule(40, 400)), "card"),
        (Session(FakeRuntime()).sibling(intensity=Rule(40, 400)).sibling(), "given"),
        (Session(FakeRuntime()).sibling(), "image"),
    ):
        session.set_image(image)
        assert session.predict(Box(5, 5, 50, 50)).provenance.intensity_origin == origin
