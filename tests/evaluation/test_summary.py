import csv
import io
import math

import numpy as np
import pytest
from made_up_runs import row, rows_of, run_of

from palpate.evaluation.summary import (
    ALL,
    SummaryRow,
    by_condition,
    in_words,
    label_of,
    summarise,
    summary_csv,
    summary_markdown,
)
from palpate.evaluation.table import Row

INF, NAN = math.inf, math.nan


def summary(*rows: Row) -> list[SummaryRow]:
    return summarise(run_of(rows), np.random.default_rng(0))


def line(rows: list[SummaryRow], measure: str, *, dataset: str = ALL, size: str = ALL) -> SummaryRow:
    (found,) = [r for r in rows if (r.measure, r.dataset, r.size, r.protocol) == (measure, dataset, size, "standard")]
    return found


def test_each_dataset_each_size_and_all_of_them_have_lines() -> None:
    rows = summary(row(subject="a", area=0.004, dice=0.5), row(subject="b", dataset="polyps", area=0.3, dice=0.9))
    assert line(rows, "dice").estimate == pytest.approx(0.7)
    assert line(rows, "dice", size="tiny").estimate == 0.5
    assert line(rows, "dice", dataset="polyps", size="large").estimate == 0.9
    assert not [r for r in rows if r.dataset == "polyps" and r.size == "tiny"]


def test_what_a_number_rests_on_is_counted() -> None:
    rows = summary(
        row(case="c1"),
        row(case="c2", object="1"),
        row(case="c2", object="2", dice=0.0, hd95=INF, assd=INF, leak=NAN),
        row(subject="s2", nsd=NAN),
    )
    nsd = line(rows, "nsd")
    assert (nsd.subjects, nsd.cases, nsd.objects, nsd.undefined, nsd.misses) == (1, 2, 3, 1, 1)
    leak = line(rows, "leak")
    assert (leak.subjects, leak.undefined) == (2, 1)
    # The subject's share of misses: one of the two objects of one of two cases; the other subject has none.
    assert line(rows, "miss").estimate == pytest.approx(1 / 8)


def test_the_slices_of_an_object_are_one_object() -> None:
    rows = summary(
        *(row(case=case, object=f"1@{z}", dice=0.1 * z) for case in ("c1", "c2") for z in (3, 4)),
        row(case="c1", object="1@5", dice=0.0, hd95=INF, assd=INF, leak=1.0, area=NAN),
    )
    dice = line(rows, "dice")
    assert (dice.objects, dice.cases, dice.undefined, dice.misses) == (2, 2, 0, 0)
    # c1: (0.3 + 0.4 + 0) / 3; c2: (0.3 + 0.4) / 2
    assert dice.estimate == pytest.approx((0.7 / 3 + 0.35) / 2)
    # The slice without the object is of no size.
    assert not [r for r in rows if r.size == "tiny"]
    assert line(rows, "dice", size="medium").estimate == pytest.approx(0.35)


def test_distances_of_nothing_found_are_never_averaged() -> None:
    rows = summary(*(row(subject=f"s{i}", hd95=hd95) for i, hd95 in enumerate((1.0, 2.0, INF))))
    assert line(rows, "hd95").estimate == 2
    gone = summary(*(row(subject=f"s{i}", hd95=INF) for i in range(3)))
    assert line(gone, "hd95").estimate == INF


def test_the_same_rows_and_dice_give_the_same_bytes(rng: np.random.Generator) -> None:
    rows = rows_of(rng, datasets={"liver": 4, "polyps": 3}, conditions=(("standard", 0.0), ("shift", 0.1)))
    first = summarise(run_of(rows), np.random.default_rng(1))
    again = summarise(run_of(rows[::-1]), np.random.default_rng(1))
    assert summary_csv(first) == summary_csv(again)
    assert summary_markdown(first) == summary_markdown(again)
    assert summary_csv(summarise(run_of(rows), np.random.default_rng(2))) != summary_csv(first)


def test_an_empty_run_has_an_empty_summary() -> None:
    assert summary() == []
    assert summary_csv([]).count("\n") == 1
    assert "|" not in summary_markdown([])


def test_the_tight_box_comes_first_and_mild_comes_before_severe() -> None:
    rows = [row(protocol=name, severity=s) for name, s in (("shrink", 0.1), ("expansion", 0.2), ("standard", 0.0))]
    rows += [row(protocol="expansion", severity=0.05), row(protocol="clicks", severity=10.0)]
    rows += [row(protocol="clicks", severity=2.0)]
    order = [label_of(condition) for condition in by_condition(rows)]
    assert order == ["standard", "clicks 2", "clicks 10", "expansion 5 %", "expansion 20 %", "shrink 10 %"]


def test_conditions_are_said_in_words() -> None:
    assert in_words(("standard", 0.0)) == "With a tight box"
    assert in_words(("shrink", 0.075)) == "With every side of the box 7.5 % too far in"
    assert in_words(("points-3", 0.0)) == "With points-3"


HOSTILE = ['<script>alert("x")</script>', "a|b", 'quote " comma, end', "two\nlines", "`code`", "=1+1"]


def test_hostile_names_stay_in_their_cells() -> None:
    rows = summary(*(row(dataset=name, subject=name) for name in HOSTILE))
    read = list(csv.DictReader(io.StringIO(summary_csv(rows))))
    assert {line["dataset"] for line in read} == {ALL, *HOSTILE}
    text = summary_markdown(rows)
    assert "<script>" not in text
    # Two tables of a heading, a rule, a line for each name and one for all.
    assert sum(line.startswith("|") for line in text.splitlines()) == 2 * (2 + len(HOSTILE) + 1)
    assert all(line.replace("\\|", "").count("|") == 4 for line in text.splitlines() if line.startswith("|"))


def test_the_readable_table_has_a_line_a_dataset_and_warns_of_few_subjects() -> None:
    rows = summary(*(row(subject=f"s{i}", dice=0.5 + 0.05 * i) for i in range(5)))
    text = summary_markdown(rows)
    assert "| liver | 5 | 60.0 [" in text
    assert "fewer than eight subjects" in text
    many = summary(*(row(subject=f"s{i}", dice=0.5 + 0.01 * i) for i in range(8)))
    assert "fewer than eight" not in summary_markdown(many)
