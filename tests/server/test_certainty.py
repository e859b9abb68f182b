"""How certain a case is: as its least certain object is now, not as one was that has gone."""

from pathlib import Path

import numpy as np
import pytest

from desks import Office, Window, brick

BOX = {"kind": "box", "plane": "axial", "from": [15, 5, 9], "to": [45, 35, 9]}


@pytest.fixture
def office(tmp_path: Path):
    for name in "ab":
        brick(tmp_path / f"{name}.nii", np.diag([1, 1, 3, 1.0]))
    office = Office(tmp_path)
    yield office
    office.closed()


def listed(office: Office) -> list[tuple[str, float | None]]:
    cases = office.client.get("/api/v1/cases?order=agreement").json()["cases"]
    return [(case["id"], case["agreement"]) for case in cases]


def accept(office: Office, window: Window, *, judged: float | None) -> None:
    """An object, and what was measured of it."""
    window.do("prompts", prompt=BOX)
    if judged is not None:
        annotation = office.desk.annotation(window.case)
        assert annotation.draft is not None
        annotation.judged = (annotation.draft, judged)
    window.do("accept", label=1)


def test_what_was_measured_of_an_object_is_that_of_its_case(office: Office) -> None:
    window = office.open("b.nii")
    window.do("prompts", prompt=BOX)
    measured = office.client.get("/api/v1/cases/b.nii/agreement", headers=window.headers).json()["agreement"]
    window.do("accept", label=1)
    assert listed(office) == [("b.nii", measured), ("a.nii", None)]
    assert 0 < measured <= 1


def test_the_least_certain_object_counts_until_it_is_undone(office: Office) -> None:
    window = office.open("b.nii")
    accept(office, window, judged=0.9)
    accept(office, window, judged=0.4)
    accept(office, window, judged=None)
    accept(office, office.open("a.nii"), judged=0.6)
    assert listed(office) == [("b.nii", 0.4), ("a.nii", 0.6)]
    for _ in range(4):  # the object of which nothing is known and its box, then the uncertain one and its box
        window.do("undo")
    assert listed(office) == [("a.nii", 0.6), ("b.nii", 0.9)]
    window.do("redo")
    window.do("redo")
    assert listed(office) == [("b.nii", 0.4), ("a.nii", 0.6)]


def test_an_object_that_was_discarded_does_not_count(office: Office) -> None:
    window = office.open("a.nii")
    accept(office, window, judged=0.9)
    window.do("prompts", prompt=BOX)
    annotation = office.desk.annotation("a.nii")
    assert annotation.draft is not None
    annotation.judged = (annotation.draft, 0.1)
    window.do("discard")
    assert listed(office)[0] == ("a.nii", 0.9)


def test_a_guess_counts_until_a_person_has_accepted_something(office: Office) -> None:
    labels = np.zeros(office.desk.image("a.nii").shape, dtype=np.uint8)
    labels[0] = 1
    office.desk.put_labels("a.nii", labels, {1: "object"}, "guess", score=0.3)
    assert listed(office)[0] == ("a.nii", 0.3)
    window = office.open("a.nii")
    accept(office, window, judged=0.8)
    assert listed(office)[0] == ("a.nii", 0.8)
    window.do("undo")
    assert listed(office)[0] == ("a.nii", 0.3)
    window.do("undo")
    window.do("undo")
    assert listed(office) == [("a.nii", None), ("b.nii", None)]
    window.do("redo")
    assert listed(office)[0] == ("a.nii", 0.3)


def test_labels_that_are_put_anew_take_what_was_known_with_them(office: Office) -> None:
    window = office.open("a.nii")
    accept(office, window, judged=0.2)
    labels = np.zeros(office.desk.image("a.nii").shape, dtype=np.uint8)
    labels[0] = 1
    office.desk.put_labels("a.nii", labels, {1: "object"}, "guess", score=0.7)
    assert listed(office)[0] == ("a.nii", 0.7)
    office.desk.put_labels("a.nii", labels * 0, {}, "import")
    assert listed(office)[0] == ("a.nii", None)
    window.catch_up()
    window.do("undo")
    assert listed(office)[0] == ("a.nii", 0.7)


def test_it_is_kept_when_the_server_ends(office: Office) -> None:
    accept(office, office.open("a.nii"), judged=0.25)
    office.closed()
    again = Office(office.folder)
    assert listed(again)[0] == ("a.nii", 0.25)
    again.closed()
