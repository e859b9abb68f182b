"""Learned prompts, measured on a model that finds what is dim (label 1) and what is bright (label 4)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_cases import write_case

from fake_runtime import FakeFindingRuntime, FakeRuntime
from palpate.datasets import Case, Region
from palpate.errors import SettingError
from palpate.evaluation.measure import Measured, Plan, measure_case, replay
from palpate.evaluation.protocols import protocol
from palpate.evaluation.run import evaluate
from palpate.evaluation.table import Presence, Row, read_run
from palpate.inference.session import Session
from phantoms import column, picture, rectangle

SHAPE = (64, 64)
DIM, BRIGHT = rectangle(SHAPE, 5, 10, 24, 29), rectangle(SHAPE, 40, 30, 51, 39)
LABELS = (DIM * 1 + BRIGHT * 4).astype(np.uint8)


@pytest.fixture
def runtime() -> FakeFindingRuntime:
    return FakeFindingRuntime()


@pytest.fixture
def session(runtime: FakeFindingRuntime) -> Session:
    return Session(runtime)


@pytest.fixture
def both(tmp_path: Path) -> Case:
    """A picture with both classes, and with an object that nobody learned."""
    other = rectangle(SHAPE, 55, 55, 58, 58)
    return write_case(tmp_path, "both", picture((DIM, 128), (BRIGHT, 255)), LABELS + (other * 7).astype(np.uint8))


@pytest.fixture
def tall(tmp_path: Path) -> Case:
    """A volume of 6 slices: dim on slices 1 to 4, and bright on slice 4."""
    dim, bright = column((6, *SHAPE), DIM, 1, 4), column((6, *SHAPE), BRIGHT, 4, 4)
    pixels = picture((dim, 128), (bright, 255))
    pixels[:, 63, 63] = 255  # or each slice would be as bright as its own brightest
    pixels[range(6), 63, range(6)] = 90  # equal slices would share an embedding
    return write_case(tmp_path, "tall", pixels, (dim * 1 + bright * 4).astype(np.uint8), spacing=(2, 2, 5))


def plan(*names: str, severities: tuple[float, ...] = (), **settings: Any) -> Plan:
    return Plan(tuple(protocol(name, severities) for name in names), **settings)


def by_object(rows: tuple[Row, ...], name: str) -> dict[str, Row]:
    return {row.object: row for row in rows if row.protocol == name}


def on(found: Measured, wanted: str) -> list[tuple[int, bool, bool]]:
    """The slices asked about a class: number, whether it is there, whether the model believes so."""
    return [(one.slice, one.present, one.object_logit >= 0) for one in found.presence if one.wanted == wanted]


class TestAPicture:
    def test_classes_are_found_without_a_prompt(self, session: Session, both: Case) -> None:
        found = measure_case(session, both, plan("learned", "box+learned", "standard"))
        assert [(row.object, row.protocol) for row in found.rows] == [
            (name, asked) for name in ("1", "4") for asked in ("learned", "box+learned", "standard")
        ]
        # The manual model takes only what is brighter than one half, and 128 of 255 is.
        assert all(row.dice == 1 and row.predicted_iou > 0 for row in found.rows)

    def test_what_was_not_learned_is_left_out(self, session: Session, both: Case) -> None:
        found = measure_case(session, both, plan("learned", "standard"))
        assert found.left_out == ("7",)
        assert "7" not in {row.object for row in found.rows}

    def test_what_is_denied_is_empty_and_missed(
        self, session: Session, runtime: FakeFindingRuntime, both: Case
    ) -> None:
        runtime.object_logits["bright"] = -1.0
        found = measure_case(session, both, plan("learned", "box+learned"))
        assert by_object(found.rows, "learned")["4"].dice == 0
        assert by_object(found.rows, "learned")["4"].predicted_iou == 0
        assert by_object(found.rows, "learned")["1"].dice == pytest.approx(800 / (520 + 400))
        # What a person drew is there, whatever the model believes.
        assert by_object(found.rows, "box+learned")["4"].dice == 1
        (bright,) = (one for one in found.presence if one.wanted == "bright")
        assert (bright.present, bright.pixels, bright.object_logit) == (True, 0, -1.0)
        assert bright.object_probability == pytest.approx(1 / (1 + np.e))

    def test_an_absent_class_is_asked_too(self, session: Session, tmp_path: Path) -> None:
        case = write_case(tmp_path, "dim", picture((DIM, 128), (rectangle(SHAPE, 63, 63, 63, 63), 255)), DIM * 1)
        found = measure_case(session, case, plan("learned"))
        assert [row.object for row in found.rows] == ["1"]
        assert on(found, "dim") == [(-1, True, True)]
        assert on(found, "bright") == [(-1, False, False)]

    def test_a_picture_without_any_object_is_asked(self, session: Session, both: Case, tmp_path: Path) -> None:
        case = write_case(tmp_path, "normal", picture((BRIGHT, 255)), np.zeros(SHAPE, np.uint8))
        found = measure_case(session, case, plan("learned"))
        assert found.rows == ()
        assert [(one.wanted, one.present, one.pixels) for one in found.presence] == [
            ("dim", False, 0),
            ("bright", False, BRIGHT.sum()),
        ]

    def test_the_image_is_encoded_once_and_a_look_answers_for_all_classes(
        self, session: Session, runtime: FakeFindingRuntime, both: Case
    ) -> None:
        measure_case(session, both, plan("learned"))
        assert (runtime.encodes, [classes for classes, _ in runtime.asked]) == (1, [(0, 1)])
        measure_case(session, both, plan("box+learned"))
        assert (runtime.encodes, [classes for classes, _ in runtime.asked[1:]]) == (1, [(0, 1)])

    def test_what_is_drawn_beside_is_what_is_drawn_alone(
        self, session: Session, runtime: FakeFindingRuntime, both: Case
    ) -> None:
        measure_case(session, both, plan("jitter", "jitter+learned", severities=(0.2,), seeds=1))
        (_, beside), alone = runtime.asked[-1], [batch.boxes[0] for batch in runtime.batches]
        assert beside is not None
        assert beside.boxes is not None
        assert np.array_equal(beside.boxes, np.stack(alone))

    def test_a_box_that_cuts_costs_what_it_cuts(self, session: Session, both: Case) -> None:
        found = measure_case(session, both, plan("shrink", "shrink+learned", severities=(0.1,)))
        alone, beside = by_object(found.rows, "shrink"), by_object(found.rows, "shrink+learned")
        assert beside["1"].dice == alone["1"].dice < 1
        assert {row.severity for row in found.rows} == {0.1}

    def test_objects_are_known_by_name_before_their_value(self, session: Session, both: Case) -> None:
        named = replace(both, regions=(Region("Bright", (4,)), Region("mass", (1,)), Region("dim", (7,))))
        found = measure_case(session, named, plan("learned"))
        assert found.left_out == ("mass",)
        assert by_object(found.rows, "learned")["Bright"].dice == 1
        assert by_object(found.rows, "learned")["dim"].dice == 0
        by_value = replace(both, regions=(Region("mass", (1,)),))
        found = measure_case(session, by_value, plan("learned"))
        assert by_object(found.rows, "learned")["mass"].dice == 1
        # Nobody says of this case where `bright` is, so nobody asks whether it is there.
        assert {one.wanted for one in found.presence} == {"dim"}


class TestAVolume:
    def test_every_slice_is_looked_at(self, session: Session, runtime: FakeFindingRuntime, tall: Case) -> None:
        found = measure_case(session, tall, plan("learned"))
        assert runtime.encodes == 6
        assert [(row.object, row.dice) for row in found.rows] == [("1", 1.0), ("4", 1.0)]
        assert on(found, "dim") == [(z, 1 <= z <= 4, 1 <= z <= 4) for z in range(6)]
        assert on(found, "bright") == [(z, z == 4, z == 4) for z in range(6)]

    def test_only_middle_slices_and_some_without(
        self, session: Session, runtime: FakeFindingRuntime, tall: Case
    ) -> None:
        found = measure_case(session, tall, plan("learned", "box+learned", volumes="one-slice"))
        assert {row.object for row in found.rows} == {"1@2", "4@4"}
        assert all(row.dice == 1 for row in found.rows)
        asked = [z for z, _, _ in on(found, "dim")]
        assert {2, 4} < set(asked)
        assert runtime.encodes == len(asked) <= 4
        assert {there for _, there, _ in on(found, "dim")} == {True, False}

    def test_as_many_slices_without_a_class_as_are_asked_for(self, session: Session, tall: Case) -> None:
        def absent(count: int) -> list[int]:
            found = measure_case(session, tall, plan("learned", volumes="one-slice", without=count))
            return [sum(not there for _, there, _ in on(found, wanted)) for wanted in ("dim", "bright")]

        # Slice 2, the middle of what is dim, is without what is bright, too.
        assert absent(0) == [0, 1]
        assert absent(1)[0] in (1, 2)
        # Slices 0 and 5 are without what is dim; all but slice 4 without what is bright.
        assert absent(9) == [2, 5]

    def test_a_box_on_every_slice_says_where_the_object_is_not(self, session: Session, tall: Case) -> None:
        # On slice 2 it is bright, too, and nobody says so.
        session_plan = plan("learned", "box+learned", volumes="every-slice")
        with np.load(tall.image) as arrays:
            pixels, labels = arrays["image"].copy(), arrays["labels"]
        pixels[2][BRIGHT] = 255
        case = write_case(tall.image.parent, "more", pixels, labels, spacing=(2, 2, 5))
        found = measure_case(session, case, session_plan)
        area = int(BRIGHT.sum())
        assert by_object(found.rows, "learned")["4"].dice == pytest.approx(2 * area / (3 * area))
        assert by_object(found.rows, "box+learned")["4"].dice == 1

    def test_a_box_on_the_middle_slice_leaves_the_others_to_the_model(self, session: Session, tall: Case) -> None:
        found = measure_case(session, tall, plan("box+learned"))
        assert [(row.object, row.dice) for row in found.rows] == [("1", 1.0), ("4", 1.0)]

    @pytest.mark.parametrize("where", ["middle", "every-slice", "one-slice"])
    @pytest.mark.parametrize("score", ["volume", "slice"])
    def test_a_row_can_be_made_again(self, session: Session, tall: Case, where: str, score: str) -> None:
        asked = plan("learned", "jitter+learned", severities=(0.3,), seeds=2, volumes=where, score=score)
        for row in measure_case(session, tall, asked).rows:
            shown = replay(session, tall, asked, row)
            if score == "slice" or where == "one-slice":
                (one,) = shown
                wrong, total = (one.prediction ^ one.reference).sum(), one.prediction.sum() + one.reference.sum()
                assert row.dice == pytest.approx(1 - wrong / total)


class TestARun:
    def test_presence_is_written_read_and_taken_up(self, both: Case, tall: Case, tmp_path: Path) -> None:
        asked = plan("learned", "standard")
        run = evaluate([both, tall], asked, tmp_path / "run", model=Session(FakeFindingRuntime()))
        text = (tmp_path / "run/presence.csv").read_text().splitlines()
        heading = "dataset,subject,case,slice,class,present,object_probability,object_logit,pixels"
        assert text[:3] == [
            heading,
            "squares,both,both,,dim,yes,0.982014,4,400",
            "squares,both,both,,bright,yes,0.982014,4,120",
        ]
        assert text[3] == "squares,tall,tall,0,dim,no,0.017986,-4,0"
        assert len(run.presence) == 2 + 2 * 6
        assert run.presence[0] == Presence("squares", "both", "both", -1, "dim", True, 0.982014, 4.0, 400)
        assert read_run(tmp_path / "run").presence == run.presence
        assert run.record["settings"]["classes"] == [["dim", 1], ["bright", 4]]
        assert "1 object called 7 left out: none of what was learned (dim, bright)" in run.record["notes"]

    def test_without_learned_prompts_there_is_nothing_to_measure(self, both: Case, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="fake has no learned prompts to measure; give what `palpate learn`"):
            evaluate([both], plan("learned"), tmp_path / "run", model=Session(FakeRuntime()))
        assert not (tmp_path / "run").exists()
