"""A box is looked at while it is dragged; what was found then counts when it is let go of."""

from pathlib import Path

import numpy as np
import pytest

from desks import Office, Window, brick
from fake_runtime import FakeRuntime

BOX = {"kind": "box", "plane": "axial", "from": [15, 20, 3], "to": [45, 50, 3]}


@pytest.fixture
def office(tmp_path: Path):
    brick(tmp_path / "brick.nii", np.diag([1, 1, 3, 1.0]))
    office = Office(tmp_path)
    yield office
    office.closed()


def decodes(office: Office) -> int:
    runtime = office.session.runtime
    assert isinstance(runtime, FakeRuntime)
    return runtime.decodes


def preview(window: Window, **other: object) -> None:
    assert window.post("preview", prompt={**BOX, **other}).status_code == 200


def test_what_the_last_preview_found_is_kept(office: Office) -> None:
    there = {**BOX, "from": [15, 5, 9], "to": [45, 35, 9]}
    window = office.open("brick.nii")
    assert window.post("preview", prompt=there).status_code == 200
    seen = decodes(office)
    window.do("prompts", prompt=there)
    assert decodes(office) == seen
    assert (window.shown[20:40, 10:30, 9] == 255).all()
    assert np.count_nonzero(window.shown) == 400


@pytest.mark.parametrize(
    "other", [{"to": [45, 49, 3]}, {"from": [15, 20, 4], "to": [45, 50, 4]}, {"window": "50/100"}], ids=str
)
def test_another_prompt_is_looked_at_anew(office: Office, other: dict[str, object]) -> None:
    window = office.open("brick.nii")
    preview(window)
    seen = decodes(office)
    window.do("prompts", prompt={**BOX, **other})
    assert decodes(office) == seen + 1


def test_what_was_seen_beside_another_object_does_not_count(office: Office) -> None:
    window = office.open("brick.nii")
    preview(window)
    seen = decodes(office)
    window.do("prompts", prompt={**BOX, "kind": "box", "from": [15, 20, 5], "to": [45, 50, 5]})
    window.do("prompts", prompt=BOX)
    assert decodes(office) == seen + 2
    assert len(window.state["draft"]["prompts"]) == 2
