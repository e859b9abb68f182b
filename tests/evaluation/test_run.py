import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_cases import write_case

from fake_runtime import FakeRuntime
from palpate.datasets import Case, Region
from palpate.errors import DatasetError, OutputError
from palpate.evaluation.measure import Plan
from palpate.evaluation.modalities import read_cases
from palpate.evaluation.protocols import protocol
from palpate.evaluation.run import evaluate
from palpate.evaluation.table import read_run
from palpate.inference.session import Session

PLAN = Plan((protocol("standard"), protocol("jitter", [0.1, 0.2])), seeds=2)


class Interrupting(FakeRuntime):
    """Stops like Ctrl-C when it is asked to encode a second image."""

    def encode(self, canvas):
        if self.encodes:
            raise KeyboardInterrupt
        return super().encode(canvas)


def test_a_run_leaves_a_table_times_and_a_record(fake_session: Session, squares: list[Case], tmp_path: Path):
    run = evaluate(squares, PLAN, tmp_path / "run", model=fake_session, command="palpate evaluate squares")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("cases.csv", "results.csv", "run.json", "times.csv")
    ]
    assert len(run.rows) == 3 * 2 * (1 + 2 * 2)
    assert run.record["command"] == "palpate evaluate squares"
    assert run.record["weights_hash"] == "0" * 64
    assert {"palpate", "torch", "numpy", "python"} <= set(run.record["versions"])
    assert all(row.milliseconds > 0 for row in run.rows)


def test_cases_are_of_the_kind_that_their_layout_names(fake_session: Session, squares: list[Case], tmp_path: Path):
    kinds = replace(squares[0], modality="CT"), replace(squares[1], extra=(("modality", "fundus"),)), squares[2]
    run = evaluate(kinds, PLAN, tmp_path / "run", model=fake_session)
    assert [case.modality for case in read_cases(run.folder)] == ["CT", "fundus", ""]


def test_the_same_command_writes_the_same_bytes(fake_session: Session, squares: list[Case], tmp_path: Path):
    for name in ("a", "b"):
        evaluate(squares, PLAN, tmp_path / name, model=fake_session)
    assert (tmp_path / "a/results.csv").read_bytes() == (tmp_path / "b/results.csv").read_bytes()


def test_another_seed_writes_others(fake_session: Session, squares: list[Case], tmp_path: Path):
    evaluate(squares, PLAN, tmp_path / "a", model=fake_session)
    evaluate(squares, replace(PLAN, seed=7), tmp_path / "b", model=fake_session)
    assert (tmp_path / "a/results.csv").read_bytes() != (tmp_path / "b/results.csv").read_bytes()


def test_an_interrupted_run_goes_on_and_measures_nothing_twice(squares: list[Case], tmp_path: Path):
    stopped = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        evaluate(squares, PLAN, tmp_path / "run", model=Session(stopped))
    assert not (tmp_path / "run/results.csv").exists()
    second = FakeRuntime()
    evaluate(squares, PLAN, tmp_path / "run", model=Session(second))
    assert stopped.encodes + second.encodes == 3
    evaluate(squares, PLAN, tmp_path / "whole", model=Session(FakeRuntime()))
    assert (tmp_path / "run/results.csv").read_bytes() == (tmp_path / "whole/results.csv").read_bytes()


def test_a_finished_run_is_read_and_not_measured_again(squares: list[Case], tmp_path: Path):
    evaluate(squares, PLAN, tmp_path / "run", model=Session(FakeRuntime()))
    again = FakeRuntime()
    run = evaluate(squares, PLAN, tmp_path / "run", model=Session(again))
    assert again.encodes == 0
    assert run.rows == read_run(tmp_path / "run").rows


def test_a_part_that_was_cut_off_is_measured_again(squares: list[Case], tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(squares, PLAN, tmp_path / "run", model=Session(Interrupting()))
    (part,) = (path for path in (tmp_path / "run/parts").iterdir() if path.name != "settings.json")
    part.write_text(part.read_text()[:100])
    again = FakeRuntime()
    evaluate(squares, PLAN, tmp_path / "run", model=Session(again))
    assert again.encodes == 3


def test_an_image_that_changed_meanwhile_is_measured_again(squares: list[Case], tmp_path: Path):
    stopped = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        evaluate(squares, PLAN, tmp_path / "run", model=Session(stopped))
    for case in squares:
        case.image.write_bytes(case.image.read_bytes() + b" ")
    again = FakeRuntime()
    evaluate(squares, PLAN, tmp_path / "run", model=Session(again))
    assert again.encodes == 3


def test_other_settings_do_not_mix_into_a_run(fake_session: Session, squares: list[Case], tmp_path: Path):
    evaluate(squares, PLAN, tmp_path / "run", model=fake_session)
    before = (tmp_path / "run/results.csv").read_bytes()
    with pytest.raises(OutputError, match="other seeds"):
        evaluate(squares, replace(PLAN, seeds=1), tmp_path / "run", model=fake_session)
    assert (tmp_path / "run/results.csv").read_bytes() == before
    run = evaluate(squares, replace(PLAN, seeds=1), tmp_path / "run", model=fake_session, overwrite=True)
    assert run.record["seeds"] == 1


def test_a_finished_run_of_data_that_changed_is_not_taken_for_this_one(squares: list[Case], tmp_path: Path):
    evaluate(squares, PLAN, tmp_path / "run", model=Session(FakeRuntime()))
    squares[0].image.write_bytes(squares[0].image.read_bytes() + b" ")
    with pytest.raises(OutputError, match="images, labels or their description changed"):
        evaluate(squares, PLAN, tmp_path / "run", model=Session(FakeRuntime()))
    again = FakeRuntime()
    evaluate(squares, PLAN, tmp_path / "run", model=Session(again), overwrite=True)
    assert again.encodes == 3


def test_another_description_of_a_case_is_another_case(squares: list[Case], tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(squares, PLAN, tmp_path / "run", model=Session(Interrupting()))
    described = [replace(case, regions=(Region("large", (1,)),)) for case in squares]
    again = FakeRuntime()
    run = evaluate(described, PLAN, tmp_path / "run", model=Session(again))
    assert again.encodes == 3
    assert {row.object for row in run.rows} == {"large"}


def test_overwriting_an_interrupted_run_of_the_same_settings_goes_on_with_it(squares: list[Case], tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(squares, PLAN, tmp_path / "run", model=Session(Interrupting()), overwrite=True)
    again = FakeRuntime()
    evaluate(squares, PLAN, tmp_path / "run", model=Session(again), overwrite=True)
    assert again.encodes == 2


def test_a_table_that_is_being_replaced_stays_until_the_new_one_is_whole(squares: list[Case], tmp_path: Path):
    evaluate(squares, PLAN, tmp_path / "run", model=Session(FakeRuntime()))
    before = (tmp_path / "run/results.csv").read_bytes()
    other = replace(PLAN, seed=7)
    with pytest.raises(KeyboardInterrupt):
        evaluate(squares, other, tmp_path / "run", model=Session(Interrupting()), overwrite=True)
    assert (tmp_path / "run/results.csv").read_bytes() == before
    with pytest.raises(OutputError, match="other seed;"):
        evaluate(squares, PLAN, tmp_path / "run", model=Session(FakeRuntime()))
    again = FakeRuntime()
    evaluate(squares, other, tmp_path / "run", model=Session(again))
    assert again.encodes == 2
    assert (tmp_path / "run/results.csv").read_bytes() != before


def test_overwrite_touches_nothing_that_is_not_a_run(fake_session: Session, squares: list[Case], tmp_path: Path):
    (tmp_path / "mine/parts").mkdir(parents=True)
    (tmp_path / "mine/parts/thesis.txt").write_text("years of work")
    (tmp_path / "mine/results.csv").write_text("1,2,3")
    with pytest.raises(OutputError, match="holds no run"):
        evaluate(squares, PLAN, tmp_path / "mine", model=fake_session, overwrite=True)
    assert (tmp_path / "mine/parts/thesis.txt").read_text() == "years of work"
    assert (tmp_path / "mine/results.csv").read_text() == "1,2,3"


def test_objects_are_counted_once_however_many_slices_are_scored(
    fake_session: Session, squares: list[Case], block: Case, tmp_path: Path
):
    plan = Plan((protocol("standard"), protocol("clicks")), clicks=1)
    run = evaluate([*squares, block], plan, tmp_path / "run", model=fake_session)
    assert run.record["objects"] == 3 * 2 + 1
    assert run.record["units"] == {"squares": "pixels", "blocks": "mm"}


def test_a_folder_with_other_things_is_not_written_into(fake_session: Session, squares: list[Case], tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"me")
    with pytest.raises(OutputError, match="not empty"):
        evaluate(squares, PLAN, tmp_path / "photos", model=fake_session)


def test_one_bad_case_is_named_and_the_others_are_kept(squares: list[Case], tmp_path: Path):
    bad = replace(squares[1], load=_damaged)
    first = FakeRuntime()
    with pytest.raises(DatasetError, match=r"1 of 3 cases could not be measured .*case1: the header is damaged"):
        evaluate([squares[0], bad, squares[2]], PLAN, tmp_path / "run", model=Session(first))
    second = FakeRuntime()
    evaluate(squares, PLAN, tmp_path / "run", model=Session(second))
    assert (first.encodes, second.encodes) == (2, 1)


def test_no_cases_are_refused(fake_session: Session, tmp_path: Path):
    with pytest.raises(DatasetError, match="no cases"):
        evaluate([], PLAN, tmp_path / "run", model=fake_session)


def test_two_cases_of_one_name_are_refused(fake_session: Session, squares: list[Case], tmp_path: Path):
    with pytest.raises(DatasetError, match="case0"):
        evaluate([squares[0], squares[0]], PLAN, tmp_path / "run", model=fake_session)


def test_progress_counts_cases_that_were_done_before(squares: list[Case], tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(squares, PLAN, tmp_path / "run", model=Session(Interrupting()))
    seen: list[tuple[int, int]] = []
    evaluate(squares, PLAN, tmp_path / "run", model=Session(FakeRuntime()), progress=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_protocol_that_applied_nowhere_is_noted(fake_session: Session, squares: list[Case], tmp_path: Path):
    plan = Plan((protocol("standard"), protocol("wrong-slice")))
    run = evaluate(squares, plan, tmp_path / "run", model=fake_session)
    assert "no rows of wrong-slice: it applies to none of these cases" in run.record["notes"]
    assert json.loads((tmp_path / "run/run.json").read_text())["notes"] == run.record["notes"]


def test_a_prompt_that_does_not_exist_for_an_object_is_left_out_and_counted(squares: list[Case], tmp_path: Path):
    bright = np.tile(np.arange(190, 254, dtype=np.uint8), (64, 1))
    full = write_case(tmp_path, "full", bright, np.ones((64, 64), dtype=np.uint8))
    plan = Plan((protocol("standard"), protocol("points-50+50")), seeds=1)
    run = evaluate([*squares, full], plan, tmp_path / "run", model=Session(FakeRuntime()))
    assert "points-50+50 was asked for 6 of 7 objects; the others have no such prompt" in run.record["notes"]


def test_cases_without_an_object_are_named(squares: list[Case], tmp_path: Path):
    dark = write_case(tmp_path, "dark", np.eye(64, dtype=np.uint8) * 90, np.zeros((64, 64), dtype=np.uint8))
    run = evaluate([*squares, dark], PLAN, tmp_path / "run", model=Session(FakeRuntime()))
    assert "1 of 4 cases hold no object and count nowhere: dark" in run.record["notes"]
    with pytest.raises(DatasetError, match="nothing was measured"):
        evaluate([dark], PLAN, tmp_path / "nothing", model=Session(FakeRuntime()))


def test_images_that_are_all_taken_for_subjects_of_their_own_are_remarked_on(squares: list[Case], tmp_path: Path):
    strangers = [replace(case, subject=case.name) for case in squares]
    run = evaluate(strangers, PLAN, tmp_path / "run", model=Session(FakeRuntime()))
    assert any("subject of its own" in note for note in run.record["notes"])
    run = evaluate(squares, PLAN, tmp_path / "other", model=Session(FakeRuntime()))
    assert not any("subject of its own" in note for note in run.record["notes"])


def _damaged(case: Case):
    raise DatasetError("the header is damaged")
