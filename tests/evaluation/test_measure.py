from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from small_cases import load_arrays, write_case

from fake_runtime import FakeFindingRuntime
from palpate.datasets import Case, LabelledImage, Region
from palpate.errors import DatasetError, ImageError
from palpate.evaluation.measure import Plan, measure_case, replay
from palpate.evaluation.protocols import all_protocols, protocol
from palpate.evaluation.table import Row
from palpate.inference.session import Session
from phantoms import column, one_voxel, rectangle, vessel


def plan(*names: str, severities: tuple[float, ...] = (), **options: object) -> Plan:
    return replace(Plan(tuple(protocol(name, severities) for name in names)), **options)


def measured(session: Session, case: Case, asked: Plan) -> list[Row]:
    return list(measure_case(session, case, asked).rows)


def test_a_tight_box_on_a_bright_square_is_perfect(fake_session: Session, squares: list[Case]):
    rows = measured(fake_session, squares[0], plan("standard"))
    assert [(row.object, row.dice, row.nsd, row.hd95, row.leak) for row in rows] == [
        ("1", 1, 1, 0, 0),
        ("2", 1, 1, 0, 0),
    ]
    assert rows[0].area == pytest.approx(16 * 16 / 64**2)
    assert rows[0].subject == "subject0"


def test_a_box_a_quarter_too_tight_on_every_side_leaves_the_inner_quarter(fake_session: Session, squares: list[Case]):
    row = measured(fake_session, squares[0], plan("shrink", severities=(0.25,)))[0]
    # 16 pixels less 4 on either side are 8: 2 * 64 / (256 + 64).
    assert row.dice == pytest.approx(0.4)
    assert row.iou == pytest.approx(0.25)
    assert row.hd95 == pytest.approx(np.hypot(4, 4), abs=1.0)


def test_every_image_is_encoded_once_however_often_it_is_prompted(fake_session: Session, squares: list[Case]):
    measured(fake_session, squares[0], plan("standard", "expansion", "shrink", "points-3", seeds=3))
    assert fake_session.runtime.encodes == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_every_slice_is_encoded_at_most_once(fake_session: Session, block: Case):
    measured(fake_session, block, plan("standard", "shrink", "missing-slices"))
    # Slices 0, 1, 6 and 7 show nothing and 2 to 5 all the same, so one embedding serves all.
    assert fake_session.runtime.encodes == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_protocols_without_dice_are_run_once_and_others_once_a_seed(fake_session: Session, squares: list[Case]):
    rows = measured(fake_session, squares[0], plan("standard", "jitter", severities=(0.1, 0.2), seeds=3))
    count = {name: sum(row.protocol == name for row in rows) for name in ("standard", "jitter")}
    assert count == {"standard": 2, "jitter": 2 * 2 * 3}


def test_a_volume_is_scored_in_millimetres_of_its_own_axes(fake_session: Session, block: Case):
    (whole,) = measured(fake_session, block, plan("standard"))
    assert (whole.dice, whole.hd95) == (1, 0)
    (short,) = measured(fake_session, block, plan("range-short", severities=(0.25,)))
    # One of four slices is lost at either end: 2 * 2 / (4 + 2), and the surface lies one slice of 4 mm away.
    assert short.dice == pytest.approx(2 / 3)
    assert short.hd95 == pytest.approx(4.0)


def test_pixels_instead_of_a_spacing_that_is_not_to_be_believed(fake_session: Session, block: Case):
    asked = plan("range-short", severities=(0.25,), in_pixels=("blocks",))
    (row,) = measured(fake_session, block, asked)
    assert row.hd95 == pytest.approx(1.0)


def test_the_window_decides_what_the_model_sees(fake_session: Session, block: Case):
    (seen,) = measured(fake_session, block, plan("standard", intensity="0..100"))
    assert seen.dice == 1
    with pytest.raises(ImageError, match="window"):
        measured(fake_session, block, plan("standard", intensity="5000..6000"))


def test_slices_can_be_scored_one_by_one(fake_session: Session, block: Case):
    rows = measured(fake_session, block, plan("standard", score="slice"))
    assert [row.object for row in rows] == ["1@2", "1@3", "1@4", "1@5"]
    rows = measured(fake_session, block, plan("range-short", severities=(0.25,), score="slice"))
    assert [row.dice for row in rows] == [0, 1, 1, 0]


def test_the_unit_of_distances_is_known(fake_session: Session, squares: list[Case], block: Case):
    assert measure_case(fake_session, block, plan("standard")).unit == "mm"
    assert measure_case(fake_session, block, plan("standard", in_pixels=("blocks",))).unit == "pixels"
    assert measure_case(fake_session, squares[0], plan("standard")).unit == "pixels"


def test_a_slice_where_something_was_found_and_nothing_is_counts_against_the_model(fake_session: Session, block: Case):
    bright = replace(block, load=_all_bright)
    rows = {
        row.object: row for row in measured(fake_session, bright, plan("range-long", severities=(0.25,), score="slice"))
    }
    assert set(rows) == {f"1@{z}" for z in range(1, 7)}
    assert (rows["1@1"].dice, rows["1@1"].leak) == (0, 1)
    assert np.isnan(rows["1@1"].area)


def test_every_slice_can_be_prompted(fake_session: Session, block: Case):
    (row,) = measured(fake_session, block, plan("standard", volumes="every-slice"))
    assert row.dice == 1


def test_one_slice_of_a_volume_can_stand_for_it(fake_session: Session, block: Case):
    (row,) = measured(fake_session, block, plan("shrink", severities=(0.2,), volumes="one-slice"))
    # Slice 3 is the middle of 2..5; 10 pixels less 2 on either side are 6: 2 * 36 / (100 + 36).
    assert (row.object, row.dice) == ("1@3", pytest.approx(72 / 136))


def test_what_nobody_labelled_is_neither_right_nor_wrong(fake_session: Session, squares: list[Case]):
    (row,) = [
        row
        for row in measured(fake_session, replace(squares[0], ignore=2), plan("expansion", severities=(1.0,)))
        if row.object == "1"
    ]
    assert row.leak == 0


def _with_marks(case: Case, folder: Path, *drawn: np.ndarray) -> Case:
    paths = [folder / f"person{number}.png" for number in range(len(drawn))]
    for path, marks in zip(paths, drawn, strict=True):
        Picture.fromarray(marks.astype(np.uint8)).save(path)
    return replace(case, scribbles=tuple(paths))


def test_peoples_strokes_are_asked_once_a_person(fake_session: Session, squares: list[Case], tmp_path: Path):
    only_large = replace(squares[0], regions=(Region("square", (1,)),))
    first, second = np.zeros((64, 64)), np.zeros((64, 64))
    first[10, 8:12] = 1
    second[12, 8:12], second[60, 3:9] = 1, 2
    case = _with_marks(only_large, tmp_path, first, second)
    rows = measured(fake_session, case, plan("scribble-human"))
    assert [(row.object, row.seed, row.dice) for row in rows] == [("square", 0, 1), ("square", 1, 1)]


def test_drawn_classes_are_told_from_what_nobody_drew_on(fake_session: Session, squares: list[Case], tmp_path: Path):
    marks = np.full((64, 64), 3)  # 3 is neither object, and stands nearly everywhere: not drawn on
    marks[10, 8:12], marks[42, 51:54], marks[60, 3:9] = 1, 2, 0
    rows = measured(fake_session, _with_marks(squares[0], tmp_path, marks), plan("scribble-human"))
    assert [(row.object, row.dice) for row in rows] == [("1", 1), ("2", 1)]


def test_strokes_of_another_size_are_refused(fake_session: Session, squares: list[Case], tmp_path: Path):
    case = _with_marks(squares[0], tmp_path, np.ones((32, 64)))
    with pytest.raises(DatasetError, match="own grid"):
        measured(fake_session, case, plan("scribble-human"))


def test_volume_mistakes_do_not_apply_to_pictures(fake_session: Session, squares: list[Case]):
    assert measured(fake_session, squares[0], plan("wrong-slice")) == []


def test_clicks_go_on_until_the_last_even_when_nothing_is_left_to_correct(fake_session: Session, squares: list[Case]):
    rows = measured(fake_session, squares[0], plan("clicks", "box+clicks", clicks=5))
    large = [(row.protocol, row.severity, row.dice) for row in rows if row.object == "1"]
    assert large == [("clicks", n, 1) for n in (1, 2, 3, 4, 5)] + [("box+clicks", n, 1) for n in (0, 1, 2, 3, 4, 5)]


def test_a_limited_number_of_objects_is_the_same_every_time(fake_session: Session, squares: list[Case]):
    asked = plan("standard", objects=1)
    first, again = (measured(fake_session, squares[0], asked) for _ in range(2))
    assert [row.key for row in first] == [row.key for row in again]
    assert len(first) == 1


def test_a_row_can_be_made_again_by_itself(fake_session: Session, squares: list[Case]):
    asked = plan("jitter", severities=(0.3,), seeds=3)
    for row in measured(fake_session, squares[1], asked):
        (shown,) = replay(fake_session, squares[1], asked, row)
        wrong = (shown.prediction ^ shown.reference).sum()
        total = shown.prediction.sum() + shown.reference.sum()
        assert row.dice == pytest.approx(1 - wrong / total)


def test_the_same_rows_come_out_whatever_else_is_in_the_plan(fake_session: Session, squares: list[Case]):
    alone = measured(fake_session, squares[2], plan("jitter", severities=(0.2,)))
    among = measured(fake_session, squares[2], plan("points-3", "jitter", severities=(0.1, 0.2), seeds=3))
    others = {row.key: row for row in among}
    for row in alone:
        assert replace(others[row.key], milliseconds=0.0) == replace(row, milliseconds=0.0)


def _all_bright(case: Case) -> LabelledImage:
    """The block's labels on an image that shows it on every slice."""
    labelled = load_arrays(case)
    image = np.repeat(labelled.image.array.max(axis=0, keepdims=True), len(labelled.image.array), axis=0)
    return LabelledImage(replace(labelled.image, array=image), labelled.labels)


ODD = {
    "one pixel": one_voxel((5, 64, 64), (2, 4, 3)),
    "thin": np.stack([vessel((64, 64))] * 3),
    "full": np.ones((3, 64, 64), dtype=bool),
    "one slice": column((1, 64, 64), rectangle((64, 64), 4, 4, 9, 9), 0, 0),
    "a gap": column((6, 64, 64), rectangle((64, 64), 4, 4, 9, 9), 0, 1) | one_voxel((6, 64, 64), (5, 63, 63)),
    "at the corner": column((3, 64, 64), rectangle((64, 64), 60, 60, 63, 63), 0, 2),
}


@pytest.mark.parametrize(
    ("shape", "where"),
    [*((shape, "middle") for shape in ODD), *(("a gap", where) for where in ("every-slice", "one-slice"))],
)
def test_every_protocol_works_on_every_shape(tmp_path: Path, shape: str, where: str):
    session = Session(FakeFindingRuntime())
    mask = ODD[shape]
    image = np.where(mask, 240, 0).astype(np.uint8)
    image[0, 0, ::2] += 10
    case = write_case(tmp_path, "odd", image, mask.astype(np.uint8))
    names = [one.name for one in all_protocols()]
    rows = measured(session, case, plan(*names, seeds=1, clicks=2, volumes=where))
    expected = {one.name for one in all_protocols() if one.kind not in ("scribbles",)}
    if where == "one-slice":
        expected -= {one.name for one in all_protocols() if one.kind == "volume"}
    if shape == "full":
        expected -= {"points-50+50", "box+points-50+50"}
    assert {row.protocol for row in rows} == expected
    assert all(0 <= row.dice <= 1 and 0 <= row.nsd <= 1 for row in rows)
