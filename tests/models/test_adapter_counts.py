"""The numbers of docs/concepts/adapters.md, counted."""

from pathlib import Path

import pytest
import torch

from palpate.models.adapters import trainable
from palpate.models.cards import Trained
from palpate.models.catalogue import card

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "adapters.md"
CHOICES = {
    "`decoder`": Trained(("decoder",)),
    "`prompt-encoder`": Trained(("prompt-encoder",)),
    "`bias-norm`": Trained(("bias-norm",)),
    "`bias-norm`, `where = encoder`": Trained(("bias-norm",), ("encoder",)),
    "`lora`": Trained(("lora",)),
    "`lora`, `targets = linear`": Trained(("lora",), targets="linear"),
    "`lora`, `where = encoder`": Trained(("lora",), ("encoder",)),
    "`lora`, `where = encoder`, `targets = linear`": Trained(("lora",), ("encoder",), targets="linear"),
    "`adapter`": Trained(("adapter",)),
    "`adapter`, `where = encoder`": Trained(("adapter",), ("encoder",)),
    "`last-blocks`": Trained(("last-blocks",)),
    "`last-blocks`, `blocks = 2`": Trained(("last-blocks",), blocks=2),
    "`full`": Trained(("full",)),
}


@pytest.fixture(scope="module")
def told() -> dict[str, int]:
    """The page's first table: the choice, and how many weights move."""
    table = PAGE.read_text(encoding="utf-8").partition("## What moves")[2].partition("\n\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {choice: int(count.replace(",", "")) for choice, count, _ in rows}


@pytest.mark.parametrize("choice", CHOICES)
def test_as_many_weights_move_as_the_page_says(told: dict[str, int], choice: str) -> None:
    with torch.device("meta"):
        network = card("lite-medsam").build()
        moving = trainable(network, CHOICES[choice])
    assert sum(weight.numel() for weight in moving.values()) == told[choice]


def test_the_page_has_no_row_that_is_not_counted(told: dict[str, int]) -> None:
    assert set(told) == set(CHOICES)
