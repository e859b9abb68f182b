from pathlib import Path

import numpy as np
from small_cases import write_case

from fake_runtime import FakeRuntime
from palpate.datasets import Case
from palpate.evaluation.measure import Plan
from palpate.evaluation.protocols import protocol
from palpate.evaluation.run import evaluate
from palpate.evaluation.worst import worst_cases, worst_rows
from palpate.inference.session import Session
from phantoms import rectangle

PLAN = Plan((protocol("expansion", [0.5, 0.1]), protocol("standard")))


def test_the_worst_are_those_of_the_first_protocol_at_its_mildest_one_a_case(squares: list[Case], tmp_path: Path):
    # The model takes all that is bright, so a bright frame around the object is taken with it as soon as it can.
    halo = rectangle((64, 64), 10, 10, 40, 40)
    body = rectangle((64, 64), 12, 12, 38, 38)
    image = np.where(body, 250, np.where(halo, 200, 0)).astype(np.uint8)
    hard = write_case(tmp_path, "hard", image, body.astype(np.uint8))
    run = evaluate([*squares, hard], PLAN, tmp_path / "run", model=Session(FakeRuntime()))
    rows = worst_rows(run, count=3)
    assert rows[0].case == "hard"
    assert {(row.protocol, row.severity) for row in rows} == {("expansion", 0.1)}
    assert len({row.case for row in rows}) == 3


def test_a_protocol_that_applied_nowhere_is_passed_over(squares: list[Case], tmp_path: Path):
    plan = Plan((protocol("wrong-slice"), protocol("scale", [-0.2, 0.1])))
    run = evaluate(squares, plan, tmp_path / "run", model=Session(FakeRuntime()))
    assert {(row.protocol, row.severity) for row in worst_rows(run)} == {("scale", 0.1)}


def test_they_are_drawn_again_side_by_side_for_volumes(block: Case, tmp_path: Path):
    plan = Plan((protocol("range-short", [0.25]),))
    run = evaluate([block], plan, tmp_path / "run", model=Session(FakeRuntime()))
    (case,) = worst_cases(run, [block], plan, lambda: Session(FakeRuntime()))
    assert case.row == run.rows[0]
    assert "most mistakes" in case.note
    assert case.picture.width > case.picture.height


def test_none_are_drawn_when_none_are_wanted(squares: list[Case], tmp_path: Path):
    run = evaluate(squares, PLAN, tmp_path / "run", model=Session(FakeRuntime()))
    assert worst_cases(run, squares, PLAN, _never, count=0) == []


def _never() -> Session:
    raise AssertionError("no model is needed for no pictures")
