import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from made_up_runs import row, rows_of, run_of
from typer.testing import CliRunner

from palpate.cli.compare import compare as compare_verb
from palpate.errors import DatasetError, SettingError
from palpate.evaluation.compare import compare, p_text, signed
from palpate.evaluation.statistics import Interval
from palpate.evaluation.table import Row, Run, results_csv

CONDITIONS = (("standard", 0.0), ("shrink", 0.1))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def before(rng: np.random.Generator) -> tuple[Row, ...]:
    return rows_of(rng, datasets={"liver": 9, "polyps": 7}, conditions=CONDITIONS)


def better(rows: tuple[Row, ...], by: float = 0.02) -> tuple[Row, ...]:
    """Tight boxes are answered better; those that are too tight as before."""
    return tuple(replace(item, dice=item.dice + by) if item.protocol == "standard" else item for item in rows)


def test_what_became_better_and_what_did_not(rng: np.random.Generator) -> None:
    rows = before(rng)
    found = compare(run_of(rows), run_of(better(rows)[::-1]), rng)
    standard, shrink = found.lines
    assert standard.result.difference.estimate == pytest.approx(0.02)
    # Nine people (those of polyps have the same names): of 512 sign patterns two are as extreme; two lines.
    assert standard.result.p == 2 / 512
    assert standard.p_adjusted == 4 / 512
    assert (standard.result.better, standard.result.worse, standard.result.equal) == (9, 0, 0)
    assert (shrink.result.difference.estimate, shrink.result.p) == (0, 1)


def test_datasets_one_by_one(rng: np.random.Generator) -> None:
    rows = before(rng)
    found = compare(run_of(rows), run_of(better(rows)), rng, by="dataset")
    assert [(line.dataset, line.protocol) for line in found.lines] == [
        *(("liver", "standard"), ("liver", "shrink")),
        *(("polyps", "standard"), ("polyps", "shrink")),
    ]
    assert [line.result.difference.subjects for line in found.lines] == [9, 9, 7, 7]


def test_runs_over_different_cases_need_to_be_told(rng: np.random.Generator) -> None:
    rows = before(rng)
    with pytest.raises(DatasetError, match="only in the first and 0 only in the second"):
        compare(run_of(rows), run_of(rows[5:]), rng)
    found = compare(run_of(rows), run_of(rows[5:]), rng, common_only=True)
    assert (found.rows, found.left_out) == (len(rows) - 5, (5, 0))
    assert "Left out: 5 rows that only A has" in " ".join(found.notes)


def test_runs_without_a_row_in_common_name_their_datasets(rng: np.random.Generator) -> None:
    with pytest.raises(DatasetError, match=r"no row in common: the first measured the dataset liver, .* polyps"):
        compare(run_of((row(),)), run_of((row(dataset="polyps"),)), rng, common_only=True)


def test_other_data_are_said_and_other_first_seeds_are_none(rng: np.random.Generator) -> None:
    rows = before(rng)
    found = compare(run_of(rows, data_sha256="a", seed=1), run_of(rows, data_sha256="b", seed=2), rng)
    assert "different data" in " ".join(found.notes)
    # Rows of the same seed have the same prompt, wherever the run's seeds began.
    assert "seed" not in " ".join(found.notes)


@pytest.mark.parametrize(
    ("a", "b", "title", "note"),
    [
        ({"liver": "mm", "polyps": "mm"}, {"liver": "mm", "polyps": "mm"}, "HD95, in mm", ""),
        ({"liver": "pixels", "polyps": "pixels"}, {"liver": "pixels", "polyps": "pixels"}, "HD95, in pixels", ""),
        (
            *({"liver": "mm", "polyps": "pixels"}, {"liver": "mm", "polyps": "pixels"}),
            *("HD95, in mm or pixels", "(in mm: liver; in pixels: polyps)"),
        ),
        (
            *({"liver": "mm", "polyps": "mm"}, {"liver": "mm", "polyps": "pixels"}),
            *("HD95, in mm or pixels", "different units of distance: polyps (mm in A, pixels in B)"),
        ),
    ],
)
def test_distances_carry_their_unit(
    rng: np.random.Generator, a: dict[str, str], b: dict[str, str], title: str, note: str
) -> None:
    rows = before(rng)
    runs = run_of(rows, units=a), run_of(rows, units=b)
    found = compare(*runs, rng, measure="hd95")
    assert found.title == title
    assert title + " [" in found.markdown()
    assert found.json()["unit"] == title.removeprefix("HD95, in ")
    notes = " ".join(found.notes)
    assert note in notes
    assert ("istances" in notes or "units" in notes) is bool(note)
    dice = compare(*runs, rng)
    assert (dice.title, dice.json()["unit"]) == ("Dice, in percent", None)
    assert "units" not in " ".join(dice.notes)


def test_slices_that_only_one_run_found_something_on(rng: np.random.Generator) -> None:
    a = tuple(row(subject=f"s{i}", object=f"1@{z}") for i in range(8) for z in (3, 4))
    b = (*better(a), row(object="1@5", dice=0.0, leak=1.0, area=math.nan))
    with pytest.raises(DatasetError, match=r"--common .*something beside the object"):
        compare(run_of(a), run_of(b), rng)
    (line,) = compare(run_of(a), run_of(b), rng, common_only=True).lines
    assert (line.result.rows, line.result.objects) == (16, 8)


def test_too_few_subjects_are_said(rng: np.random.Generator) -> None:
    rows = tuple(row(subject=f"s{i}", dice=0.5 + 0.1 * i) for i in range(4))
    found = compare(run_of(rows), run_of(better(rows)), rng)
    assert "cannot reach p < 0.05" in " ".join(found.notes)
    assert "fewer than eight subjects" in " ".join(found.notes)


def test_two_misses_compare_as_equal(rng: np.random.Generator) -> None:
    rows = tuple(row(subject=f"s{i}", hd95=math.inf, dice=0.0) for i in range(8))
    (line,) = compare(run_of(rows), run_of(rows), rng, measure="hd95").lines
    assert (line.result.difference.estimate, line.result.equal, line.result.a) == (0, 8, math.inf)


def test_a_measure_that_does_not_exist_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(SettingError, match="no measure 'beauty'"):
        compare(run_of((row(),)), run_of((row(),)), rng, measure="beauty")


def test_the_same_runs_and_dice_give_the_same_bytes(rng: np.random.Generator) -> None:
    rows = before(rng)
    texts = {compare(run_of(rows[::step]), run_of(better(rows)), np.random.default_rng(3)).csv() for step in (1, -1)}
    assert len(texts) == 1


def test_hostile_names_stay_in_their_cells(rng: np.random.Generator) -> None:
    names = ["<script>", "a|b", 'quote", comma', "two\nlines"]
    rows = tuple(row(dataset=name) for name in names)
    found = compare(run_of(rows), run_of(rows), rng, by="dataset")
    assert {line["dataset"] for line in csv.DictReader(io.StringIO(found.csv()))} == set(names)
    assert "<script>" not in found.markdown()
    assert sum(line.startswith("|") for line in found.markdown().splitlines()) == 2 + len(names)
    assert json.loads(json.dumps(found.json(), allow_nan=False))["lines"][0]["low"] is None


@pytest.mark.parametrize(("p", "text"), [(0.0001, "< 0.001"), (0.0123, "0.012"), (0.25, "0.25"), (math.nan, "–")])
def test_p_values_are_said_as_journals_do(p: float, text: str) -> None:
    assert p_text(p) == text


def test_gains_carry_a_plus() -> None:
    assert signed(Interval(0.02, -0.01, 0.05, 9), scale=100.0) == "+2.0 [-1.0, 5.0]"
    assert signed(Interval(-0.02, -0.05, 0.01, 9), scale=100.0) == "-2.0 [-5.0, 1.0]"


@pytest.fixture
def folders(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    rows = before(rng)
    for name, content in (("a", rows), ("b", better(rows))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.csv").write_text(results_csv(content))
        (tmp_path / name / "run.json").write_text(json.dumps({"seed": 0}))
    return tmp_path / "a", tmp_path / "b"


def answer(*arguments: object) -> tuple[int, str, str]:
    app = typer.Typer()
    app.command()(compare_verb)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


class TestTheVerb:
    def test_prints_a_table(self, folders: tuple[Path, Path]) -> None:
        status, out, _ = answer(*folders)
        assert status == 0
        for words in ("standard", "shrink 10 %", "+2.0", "0.008", "Higher is better"):
            assert words in out

    def test_prints_json(self, folders: tuple[Path, Path]) -> None:
        status, out, _ = answer(*folders, "--json", "--by", "dataset", "--measure", "nsd")
        assert status == 0
        assert len(json.loads(out)["lines"]) == 4

    @pytest.mark.parametrize(("name", "words"), [("t.csv", "p_adjusted"), ("t.md", "| shrink"), ("t.json", '"notes"')])
    def test_writes_a_file_once(self, folders: tuple[Path, Path], tmp_path: Path, name: str, words: str) -> None:
        assert answer(*folders, "-o", tmp_path / name)[0] == 0
        assert words in (tmp_path / name).read_text()
        assert "exists; pass --overwrite" in answer(*folders, "-o", tmp_path / name)[2]
        assert answer(*folders, "-o", tmp_path / name, "--overwrite")[0] == 0

    def test_says_what_is_no_run(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        status, out, err = answer(folders[0], tmp_path, "--json")
        assert status == 2
        assert "holds no finished run" in err
        assert json.loads(out)["error"]["type"] == "FormatError"

    def test_the_same_folder_twice_is_said(self, folders: tuple[Path, Path]) -> None:
        assert "the same folder" in answer(folders[0], folders[0] / ".." / "a")[1]
        assert "the same folder" not in answer(*folders)[1]

    def test_a_folder_that_does_not_exist_is_said(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        status, _, err = answer(folders[0], tmp_path / "absent")
        assert status == 2
        assert "there is no folder" in err

    def test_a_wrong_way_to_group_is_refused(self, folders: tuple[Path, Path]) -> None:
        assert answer(*folders, "--by", "moon")[0] == 2


def test_a_run_may_be_compared_with_itself(rng: np.random.Generator) -> None:
    run = Run(before(rng), {}, Path("run"))
    assert {line.result.p for line in compare(run, run, rng).lines} == {1}
