"""The table by modality, of runs that nobody measured."""

from pathlib import Path

import numpy as np
import pytest
from made_up_runs import row, run_of

from palpate.errors import FormatError
from palpate.evaluation.modalities import CaseTime, by_modality, cases_csv, modalities_markdown, read_cases
from palpate.evaluation.table import Row

CASES = (
    CaseTime("liver", "s1", "c1", "CT", 100.0, 900.0),
    CaseTime("liver", "s2", "c1b", "CT", 300.0, 700.0),
    CaseTime("polyps", "s1", "c1", "endoscopy", 10.0, 490.0),
)


def rows() -> tuple[Row, ...]:
    return (
        row(object="1", dice=0.8, nsd=0.6, milliseconds=500.0),
        row(object="2", dice=0.6, nsd=0.6, milliseconds=500.0),
        row(object="1", protocol="shrink", severity=0.1, dice=0.1, milliseconds=9000.0),
        row(subject="s2", case="c1b", dice=0.9, nsd=0.9, milliseconds=1000.0),
        row(dataset="polyps", dice=0.5, nsd=0.4, milliseconds=500.0),
    )


def table(some: tuple[Row, ...] = rows(), cases: tuple[CaseTime, ...] = CASES):
    return by_modality(run_of(some), cases, np.random.default_rng(0))


def test_a_line_a_modality_by_the_first_prompt_and_their_mean():
    ct, endoscopy, mean = table()
    assert (ct.modality, ct.cases, endoscopy.modality, endoscopy.cases, mean.cases) == ("CT", 2, "endoscopy", 1, 3)
    assert ct.dice.estimate == pytest.approx((0.7 + 0.9) / 2)
    assert ct.nsd.estimate == pytest.approx((0.6 + 0.9) / 2)
    assert mean.dice.estimate == pytest.approx((0.8 + 0.5) / 2)


def test_a_cases_time_is_reading_encoding_and_all_of_its_answers():
    ct, endoscopy, mean = table()
    assert ct.seconds == pytest.approx((2.0 + 2.0) / 2)
    assert endoscopy.seconds == pytest.approx(1.0)
    assert mean.seconds == pytest.approx(1.5)


def test_several_rows_of_one_answer_count_once_and_seeds_do_not_add_up():
    slices = tuple(row(object=f"1@{z}", milliseconds=400.0) for z in (3, 4))
    assert table(slices)[0].seconds == pytest.approx(1.4)
    classes = tuple(row(object=name, protocol="learned", milliseconds=400.0) for name in ("1", "2"))
    assert table(classes)[0].seconds == pytest.approx(1.4)
    seeds = tuple(row(protocol="shift", severity=0.1, seed=seed, milliseconds=400.0) for seed in range(3))
    assert table(seeds)[0].seconds == pytest.approx(1.4)


def test_two_data_sets_of_a_modality_may_call_their_cases_alike():
    both = (row(dice=0.9), row(dataset="spleen", dice=0.5))
    cases = tuple(CaseTime(name, "s1", "c1", "CT", 0.0, 0.0) for name in ("liver", "spleen"))
    (ct, _) = table(both, cases)
    assert (ct.cases, ct.dice.subjects) == (2, 2)
    assert ct.dice.estimate == pytest.approx(0.7)


def test_for_people():
    text = modalities_markdown(run_of(rows(), settings={"runtime": "torch on cpu"}), table())
    assert "| CT | 2 | 80.0" in text
    assert "| mean of these | 3 | 65.0" in text
    assert "torch on cpu" in text
    assert "By modality, standard" in text


def test_where_nobody_says_what_an_image_is_there_is_none():
    unsaid = tuple(CaseTime(one.dataset, one.subject, one.case, "", 1.0, 1.0) for one in CASES)
    assert table(cases=unsaid) == []
    assert modalities_markdown(run_of(rows()), []) == ""
    assert table(cases=()) == []


def test_the_table_of_cases_comes_back_from_its_file(tmp_path: Path):
    assert read_cases(tmp_path) == ()  # a run of an older palpate
    path = tmp_path / "cases.csv"
    path.write_text(cases_csv(CASES), encoding="utf-8")
    assert read_cases(tmp_path) == CASES
    path.write_text("dataset,case\na,b\n", encoding="utf-8")
    with pytest.raises(FormatError, match="damaged"):
        read_cases(tmp_path)
