import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palpate.errors import FormatError
from palpate.evaluation.table import (
    KEYS,
    MEASURES,
    Row,
    Run,
    mixed_units,
    object_name,
    read_rows,
    read_run,
    results_csv,
    times_csv,
    unit_of,
)

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


@pytest.mark.parametrize(
    ("name", "object_"), [("1@17", "1"), ("1", "1"), ("a@b", "a@b"), ("a@1@2", "a@1"), ("@3", ""), ("2@x7", "2@x7")]
)
def test_a_slice_is_a_part_of_its_object(name: str, object_: str):
    assert object_name(replace(ROW, object=name)) == object_


def test_a_slice_without_the_object_has_no_size_and_reads_back(tmp_path: Path):
    (tmp_path / "results.csv").write_text(results_csv([replace(ROW, dice=0.0, leak=1.0, area=math.nan)]))
    (row,) = read_rows(tmp_path / "results.csv")
    assert math.isnan(row.area)
    assert row.leak == 1


RESULTS, TIMES = results_csv([ROW]).encode(), times_csv([ROW]).encode()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("results.csv", RESULTS[: RESULTS.rindex(b",")], "line 2 of .* has 14 cells and the heading 15"),
        ("results.csv", RESULTS.replace(b"0.97", b"0.97,1"), "has 16 cells"),
        ("results.csv", RESULTS[: RESULTS.index(b'"big') + 2], "damaged: unexpected end of data"),
        ("results.csv", b"", "no column dataset"),
        ("results.csv", b"name,dice\na,0.5\n", "no column dataset, subject"),
        ("results.csv", RESULTS.replace(b"liver", b"l\xe9ber"), "utf-8"),
        ("results.csv", RESULTS.replace(b"liver", b"l" * 200_000), "field larger than"),
        ("times.csv", b"name,seconds\na,3\n", "no column dataset"),
        ("times.csv", TIMES[: TIMES.rindex(b",")], "cells"),
        ("times.csv", TIMES.replace(b"41.5", b"soon"), "no row of a run"),
        ("times.csv", TIMES.replace(b"liver", b"l\xe9ber"), "utf-8"),
        ("run.json", b"[]", "no record of a run"),
        ("run.json", b'{"seed": 0', "damaged"),
        ("run.json", b'{"model": "\xe9"}', "damaged"),
        ("run.json", b"[" * 100_000, "damaged"),
    ],
)
def test_what_is_damaged_is_said(tmp_path: Path, name: str, content: bytes, words: str):
    for file, usual in (("results.csv", RESULTS), ("times.csv", TIMES), ("run.json", b"{}")):
        (tmp_path / file).write_bytes(content if file == name else usual)
    with pytest.raises(FormatError, match=words):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("known", "unit", "note"),
    [
        ({"ct": "mm", "mr": "mm", "not in the run": "pixels"}, "mm", None),
        ({"ct": "pixels", "mr": "pixels"}, "pixels", None),
        ({"ct": "mm", "mr": "pixels"}, "mm or pixels", "(in mm: ct; in pixels: mr)"),
        ({"ct": "mm", "mr": "mixed"}, "mm or pixels", "(in mm: ct; in mm or pixels: mr)"),
        ({"ct": "mixed", "mr": "mixed"}, "mm or pixels", "for some images"),
        (None, "mm or pixels", "may be"),
        (["mm"], "mm or pixels", "may be"),
    ],
)
def test_distances_have_the_unit_that_was_recorded(known: object, unit: str, note: str | None):
    run = Run((replace(ROW, dataset="ct"), replace(ROW, dataset="mr")), {"units": known}, Path("run"))
    assert unit_of(run.units) == unit
    found = mixed_units(run.units)
    assert (found is None) if note is None else (note in str(found))
