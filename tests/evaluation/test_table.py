import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palpate.errors import FormatError
from palpate.evaluation.table import KEYS, MEASURES, Row, read_rows, read_run, results_csv, times_csv

ROW = Row(
    *("liver, CT", "p1", "a/b.png", 'the "big" one', "shrink", 0.05, 2),
    *(0.9, 0.818182, 1.0, math.inf, 2.5, math.nan, 0.004, 0.97),
    milliseconds=41.5,
)


def test_a_table_reads_back_as_it_was_written(tmp_path: Path):
    (tmp_path / "results.csv").write_text(results_csv([ROW]))
    (tmp_path / "times.csv").write_text(times_csv([ROW]))
    (row,) = read_rows(tmp_path / "results.csv", tmp_path / "times.csv")
    assert math.isnan(row.leak)
    assert replace(row, leak=0.0) == replace(ROW, leak=0.0)


def test_the_columns_are_the_documented_ones():
    heading = results_csv([]).strip().split(",")
    assert heading == [*KEYS, *MEASURES]
    assert times_csv([]).strip().split(",") == [*KEYS, "milliseconds"]


@given(st.floats(0, 1), st.integers(0, 20))
def test_numbers_keep_six_decimals_and_no_more(value: float, whole: int):
    line = results_csv([replace(ROW, dice=value, severity=float(whole))]).splitlines()[1]
    assert abs(float(line.split(",")[-8]) - value) <= 5.1e-7
    assert f",{whole}," in line
    assert "-0," not in line


def test_times_do_not_enter_the_repeatable_table():
    assert results_csv([ROW]) == results_csv([replace(ROW, milliseconds=99.0)])


def test_a_folder_without_a_finished_run_says_how_to_finish_it(tmp_path: Path):
    with pytest.raises(FormatError, match="holds no finished run"):
        read_run(tmp_path)


def test_a_damaged_line_is_named(tmp_path: Path):
    text = results_csv([ROW, ROW]).splitlines()
    (tmp_path / "results.csv").write_text("\n".join([*text[:2], text[2].replace("0.05", "much")]))
    with pytest.raises(FormatError, match="line 3"):
        read_rows(tmp_path / "results.csv")
