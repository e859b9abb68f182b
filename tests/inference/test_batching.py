import numpy as np

from palpate.inference.batching import alike, batch_of
from palpate.models.frame import CanvasPrompt, Frame
from palpate.prompts.types import Box, MaskPrompt, Points, Prompt

FRAME = Frame(size=8, mask_size=8)


def on_canvas(*prompts: Prompt) -> CanvasPrompt:
    return FRAME.prompts(prompts, (8, 8))


BOX, OTHER_BOX = on_canvas(Box(0, 0, 3, 3)), on_canvas(Box(1, 2, 5, 6))
POINT, TWO_POINTS = on_canvas(Points([(1, 1)])), on_canvas(Points([(1, 1), (2, 2)], [1, 0]))
MASK = on_canvas(MaskPrompt(np.eye(8, dtype=bool)))
BOX_AND_POINT = on_canvas(Box(0, 0, 3, 3), Points([(1, 1)]))


def test_prompts_of_the_same_parts_go_together() -> None:
    groups = alike([BOX, POINT, OTHER_BOX, TWO_POINTS, MASK, POINT, BOX_AND_POINT])
    assert groups == [[0, 2], [1, 5], [3], [4], [6]]


def test_none_make_no_batch() -> None:
    assert alike([]) == []


def test_a_batch_keeps_the_order_and_says_where_each_lies() -> None:
    batch = batch_of([OTHER_BOX, BOX], image_index=[4, 1])
    assert batch.image_index.tolist() == [4, 1]
    assert batch.boxes is not None
    assert OTHER_BOX.box is not None
    assert BOX.box is not None
    assert np.array_equal(batch.boxes, [OTHER_BOX.box, BOX.box])
    assert batch.points is None
    assert batch.point_labels is None
    assert batch.masks is None


def test_all_lie_on_the_first_image_unless_told() -> None:
    assert batch_of([POINT, POINT]).image_index.tolist() == [0, 0]


def test_points_keep_their_labels_and_masks_their_channel() -> None:
    points, masks = batch_of([TWO_POINTS]), batch_of([MASK, MASK])
    assert points.points is not None
    assert points.points.shape == (1, 2, 2)
    assert points.point_labels is not None
    assert points.point_labels.tolist() == [[1, 0]]
    assert masks.masks is not None
    assert masks.masks.shape == (2, 1, 8, 8)
