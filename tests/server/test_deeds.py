"""What an action of the journal is called before it is undone or done again."""

from typing import Any

import pytest

from palpate.server.annotation import Deed

RUNS = {"size": [4, 4], "counts": [3, 2, 11]}


@pytest.mark.parametrize(
    ("kind", "body", "deed"),
    [
        ("prompt", {"slice": 3, "box": [1, 2, 3, 4]}, Deed("box")),
        ("prompt", {"slice": 3, "box": [1, 2, 3, 4], "points": [[1, 2, 1]]}, Deed("box")),
        ("prompt", {"slice": 3, "points": [[1, 2, 1]]}, Deed("point")),
        ("prompt", {"slice": 3, "points": [[1, 2, 0]]}, Deed("point")),
        ("prompt", {"slice": 3, "scribble": RUNS}, Deed("scribble")),
        ("prompt", {"slice": 3, "points": [[1, 2, 0], [2, 2, 0]]}, Deed("scribble")),  # beside the object
        ("prompt", {"slice": 3, "mask": RUNS}, Deed("mask")),
        ("stroke", {"stroke": "brush", "label": None}, Deed("brush")),
        ("stroke", {"stroke": "eraser", "label": 4}, Deed("eraser", 4)),
        ("accept", {"label": 2, "steps": []}, Deed("accept", 2)),
        ("propagate", {"slice": 3, "box": [1, 2, 3, 4], "range": [0, 5]}, Deed("propagate")),
        ("discard", {}, Deed("discard")),
        ("guess", {"names": {"1": "liver"}}, Deed("guess")),
        ("import", {}, Deed("import")),
    ],
)
def test_it_is_called_as_a_person_would(kind: str, body: dict[str, Any], deed: Deed) -> None:
    assert Deed.of(kind, body) == deed
