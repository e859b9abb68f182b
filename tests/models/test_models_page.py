"""The page on models names every card, where its file is, and how it is checked."""

import re
from pathlib import Path

import pytest

from palpate.models.catalogue import CARDS, ModelCard

PAGE = (Path(__file__).parents[2] / "docs/reference/models.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {
        cells[0].strip("`"): cells[1:]
        for line in section.splitlines()
        if line.startswith("| `")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }


def test_every_model_is_there_and_no_other() -> None:
    assert list(rows("Which one")) == [each.name for each in CARDS]
    assert list(rows("Where the weights are")) == [each.name for each in CARDS if each.made_from is None]


@pytest.mark.parametrize("each", CARDS, ids=lambda each: each.name)
def test_a_row_agrees_with_the_card(each: ModelCard) -> None:
    _, parameters, sees, trained = rows("Which one")[each.name]
    assert parameters == f"{each.parameters / 1e6:.0f} M"
    assert sees == f"{each.frame.size} x {each.frame.size}"
    assert trained == ", ".join({"box": "boxes"}.get(kind, kind) for kind in each.prompts.trained)
    assert each.licence == ("MIT" if each.name == "swin-lite-medsam" else "Apache-2.0")  # as the page says
    assert f"arXiv {each.arxiv}" in PAGE
    if each.made_from is None and not each.weights.package:
        file, address, checked = rows("Where the weights are")[each.name]
        size = "" if each.weights.size_bytes is None else f" ({each.weights.size_bytes / 1e6:.0f} MB)"
        assert file == f"`{each.weights.file}`{size}"
        assert address == f"<{each.weights.address}>"
        assert checked == ("hash of the file" if each.can_be_checked else "names and shapes only")


def test_what_is_said_of_lone_points_holds() -> None:
    best = {each.layout.split("-")[0].split(".")[0] for each in CARDS if each.prompts.best_of_three}
    assert best == {"sam", "mobile", "sam2"}
    through_boxes = re.search(r"- (.*) answer points, scribbles and masks by the box", PAGE)
    assert through_boxes is not None
    named = re.findall(r"`([\w.-]+)`", through_boxes[1])
    assert named == [each.name for each in CARDS if each.prompts.through_boxes]
