from dataclasses import replace
from pathlib import Path

import pytest

from fake_runtime import FakeRuntime
from palpate.datasets import Case
from palpate.errors import SettingError
from palpate.evaluation.measure import Plan
from palpate.evaluation.protocols import protocol
from palpate.evaluation.results import some_cases, write_results
from palpate.evaluation.run import evaluate
from palpate.inference.session import Session


def test_a_summary_and_a_report_are_written_beside_the_table(squares: list[Case], tmp_path: Path):
    plan = Plan((protocol("standard"), protocol("shrink", [0.1])))
    run = evaluate(squares, plan, tmp_path / "run", model=Session(FakeRuntime()), data="squares")
    for _ in range(2):  # a second time in place of the first
        write_results(run, squares, plan, lambda: Session(FakeRuntime()), worst=1)
    assert {path.name for path in run.folder.iterdir()} == {
        *("results.csv", "times.csv", "cases.csv", "run.json", "summary.csv", "summary.md", "report.html")
    }
    assert (run.folder / "report.html").read_text().count("data:image/png") == 1


def test_where_modalities_are_known_there_is_a_table_of_them(squares: list[Case], tmp_path: Path):
    cases = [replace(case, modality="CT" if number % 2 else "MR") for number, case in enumerate(squares)]
    plan = Plan((protocol("standard"),))
    run = evaluate(cases, plan, tmp_path / "run", model=Session(FakeRuntime()), data="squares")
    write_results(run, cases, plan, lambda: Session(FakeRuntime()), worst=0)
    text = (run.folder / "modalities.md").read_text()
    assert [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")] == [
        *("modality", "CT", "MR", "mean of these")
    ]
    run = evaluate(squares, plan, tmp_path / "run", model=Session(FakeRuntime()), data="squares", overwrite=True)
    write_results(run, squares, plan, lambda: Session(FakeRuntime()), worst=0)
    assert not (run.folder / "modalities.md").exists()


def test_some_cases_are_the_same_for_the_same_seed_and_of_every_dataset(squares: list[Case]):
    cases = squares + [replace(case, dataset="others") for case in squares]
    chosen = some_cases(cases, most=2, seed=1)
    assert [case.dataset for case in chosen] == ["squares"] * 2 + ["others"] * 2
    assert chosen == some_cases(cases, most=2, seed=1)
    assert chosen == [case for case in cases if case in chosen]


def test_no_cases_are_no_choice(squares: list[Case]):
    with pytest.raises(SettingError, match="at least 1"):
        some_cases(squares, most=0, seed=0)
