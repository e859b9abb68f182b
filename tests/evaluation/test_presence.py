import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palpate.evaluation.presence import auroc, presence_markdown, presence_summary
from palpate.evaluation.table import Presence

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8)


def believed(logit: float, *, present: bool, wanted: str = "liver", dataset: str = "ct") -> Presence:
    return Presence(dataset, "s", "c", 0, wanted, present, 1 / (1 + math.exp(-logit)), logit, 0)


def test_the_area_worked_out_by_hand() -> None:
    # Of six pairs: 2 is above 1 and -1; 1 ties with 1 and is above -1; 0 is above -1 only: 2 + 1.5 + 1.
    assert auroc([2.0, 1.0, 0.0], [1.0, -1.0]) == 4.5 / 6
    assert auroc([3.0, 2.0], [1.0]) == 1
    assert auroc([1.0], [3.0, 2.0]) == 0
    assert auroc([1.0, 1.0], [1.0]) == 0.5
    assert math.isnan(auroc([1.0], []))
    assert math.isnan(auroc([], [1.0]))


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_pairs_in_order(present: list[float], absent: list[float]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in present for b in absent]
    assert auroc(present, absent) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(absent, present) == pytest.approx(1 - auroc(present, absent))


def test_each_class_each_dataset_and_all_have_lines() -> None:
    lines = presence_summary(
        [
            believed(2.0, present=True),
            believed(-1.0, present=True),
            believed(-2.0, present=False),
            believed(1.0, present=True, wanted="spleen"),
            believed(0.0, present=False, dataset="mr"),
        ]
    )
    assert [(line.dataset, line.wanted, line.present, line.absent) for line in lines] == [
        ("ct", "liver", 2, 1),
        ("ct", "spleen", 1, 0),
        ("ct", "all", 3, 1),
        ("mr", "liver", 0, 1),
        ("all", "liver", 2, 2),
        ("all", "spleen", 1, 0),
        ("all", "all", 3, 2),
    ]
    assert (lines[0].auroc, lines[0].believed, lines[0].denied) == (1.0, 0.5, 1.0)
    assert math.isnan(lines[1].auroc)
    assert math.isnan(lines[1].denied)
    # A logit of 0 is no denial, as in the product.
    assert lines[3].denied == 0
    assert (lines[4].auroc, lines[6].auroc) == (0.75, 5 / 6)


def test_the_table_says_where_it_cannot_know() -> None:
    text = presence_markdown(presence_summary([believed(2.0, present=True), believed(-1.0, present=True)]))
    assert "| ct | liver | 2 | 0 | n/a | 50.0 | n/a |" in text
    assert presence_markdown([]) == ""
