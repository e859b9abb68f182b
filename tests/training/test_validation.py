"""What is measured during training, and what of it is shown."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_training
import torch

from palpate.datasets import open_dataset
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.training.items import validation_items
from palpate.training.recipe import recipe_from
from palpate.training.scenes import Views
from palpate.training.student import student
from palpate.training.validation import measure


@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_two_processes_shows_samples_from_all_of_its_part(
    rank: int, tmp_path: Path, recipe_of: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(recipe_of(validation={"prompts": [{"strategy": "standard"}]}))
    pupil = student(recipe, EmbeddingCache(tmp_path / "cache"), torch.device("cpu"))
    cases = open_dataset(tiny_training.phantoms(tmp_path, train=8, val=0))
    items = validation_items(
        [sight.scene for case in cases for sight in pupil.sights(case, Views())],
        recipe.validation.prompts,
        frame=pupil.frame,
        seed=0,
        objects=4,
        pixels=pupil.pixels,
    )

    def gathered(into: list[Any], mine: Any) -> None:
        into[:] = [mine, {label: [] for label in mine}]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    fabric = SimpleNamespace(global_rank=rank, world_size=2, autocast=nullcontext)
    (asked,) = items.values()
    assert len(asked) == 8
    for samples, places in ((4, [0, 1, 2, 3]), (2, [1, 3]), (0, []), (9, [0, 1, 2, 3])):
        shown = measure(pupil, items, fabric=fabric, samples=samples, heed=lambda: None).samples
        assert [asked.index(item) for item, _ in shown] == [rank + 2 * place for place in places]
