"""A model that fills bright blobs inside a box: what is drawn must lead to the right box."""

from collections.abc import Sequence

import numpy as np
import pytest

from palpate.errors import PromptError
from palpate.inference.box_search import Answer, best_box
from palpate.models.frame import CanvasPrompt
from phantoms import disk

SHAPE = (64, 64)
BIG, SMALL = disk(SHAPE, centre=(20, 24), radius=12), disk(SHAPE, centre=(50, 50), radius=4)


class BlobModel:
    """Answers a box by the blobs inside it, and believes in its answer the more, the better the box fits the blob."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, prompts: Sequence[CanvasPrompt]) -> list[Answer]:
        self.batches.append(len(prompts))
        answers: list[Answer] = []
        for prompt in prompts:
            assert prompt.box is not None
            x_min, y_min, x_max, y_max = prompt.box
            y, x = np.indices(SHAPE)
            within = (x >= x_min) & (x <= x_max) & (y >= y_min) & (y <= y_max)
            inside = (BIG | SMALL) & within
            touched = sum(int(blob.sum()) for blob in (BIG, SMALL) if (blob & within).any())
            # Whole blobs in a box without much room around them.
            fit = inside.sum() / max(1, touched) * (inside.sum() / max(1, within.sum())) ** 0.25
            answers.append(Answer(np.where(inside, 10.0, -10.0), float(fit)))
        return answers


def _clicks(*clicks: tuple[float, float, int]) -> dict[str, np.ndarray]:
    places = np.array([click[:2] for click in clicks], dtype=np.float32)
    return {"points": places, "point_labels": np.array([click[2] for click in clicks], dtype=np.float32)}


def _mask(box: np.ndarray) -> np.ndarray:
    return BlobModel()([CanvasPrompt(box=box)])[0].logits > 0


def _box(*corners: float) -> np.ndarray:
    return np.array(corners, dtype=np.float32)


def test_one_click_finds_the_blob_it_lies_on() -> None:
    found = _mask(best_box(CanvasPrompt(**_clicks((50, 50, 1))), BlobModel(), content=SHAPE))
    assert not (found & ~SMALL).any()
    assert found.sum() > 0.9 * SMALL.sum()


def test_a_click_on_a_large_blob_finds_most_of_it() -> None:
    found = _mask(best_box(CanvasPrompt(**_clicks((20, 24, 1))), BlobModel(), content=SHAPE))
    assert not (found & SMALL).any()
    assert found.sum() > 0.5 * BIG.sum()


def test_clicks_on_both_blobs_take_both() -> None:
    found = _mask(best_box(CanvasPrompt(**_clicks((20, 24, 1), (50, 50, 1))), BlobModel(), content=SHAPE))
    assert found[24, 20]
    assert found[50, 50]


def test_all_candidates_are_decoded_in_two_batches() -> None:
    model = BlobModel()
    best_box(CanvasPrompt(**_clicks((50, 50, 1))), model, content=SHAPE)
    assert len(model.batches) == 2


def test_a_box_that_satisfies_its_clicks_is_kept() -> None:
    given = _box(7, 11, 33, 37)
    box = best_box(CanvasPrompt(box=given, **_clicks((20, 24, 1), (50, 50, 0))), BlobModel(), content=SHAPE)
    np.testing.assert_array_equal(box, given)


def test_a_box_that_is_too_tight_reaches_out_to_a_click() -> None:
    given = _box(12, 12, 32, 36)  # the blob's left edge is at 8
    assert not _mask(given)[24, 9]
    box = best_box(CanvasPrompt(box=given, **_clicks((9, 24, 1))), BlobModel(), content=SHAPE)
    assert _mask(box)[24, 9]


def test_a_box_is_cut_at_a_click_beside_the_object() -> None:
    given = _box(6, 10, 56, 56)  # holds both blobs; the small one is not wanted
    box = best_box(CanvasPrompt(box=given, **_clicks((46, 50, 0))), BlobModel(), content=SHAPE)  # its left rim
    assert not _mask(box)[50, 46]
    assert _mask(box)[BIG].all()


def test_a_click_cannot_turn_a_box_to_another_object() -> None:
    given = _box(7, 11, 33, 37)
    # The click lies on the other blob; the only boxes that satisfy it also keep this one.
    found = _mask(best_box(CanvasPrompt(box=given, **_clicks((50, 50, 1))), BlobModel(), content=SHAPE))
    assert (found & BIG).sum() > 0.6 * BIG.sum()


def test_a_first_guess_stands_for_its_box_with_some_room() -> None:
    guess = np.where(SMALL, 10.0, -10.0).astype(np.float32)[None]
    box = best_box(CanvasPrompt(mask=guess), BlobModel(), content=SHAPE)
    # SMALL spans 46 to 54, nine pixels; five per cent of that is 0.45.
    np.testing.assert_allclose(box, [45.55, 45.55, 54.45, 54.45])


def test_a_guess_too_thin_for_the_canvas_is_still_boxed() -> None:
    guess = np.full((1, *SHAPE), -10, dtype=np.float32)
    guess[0, 30, 10:20] = -4
    np.testing.assert_allclose(
        best_box(CanvasPrompt(mask=guess), BlobModel(), content=SHAPE), [9.5, 29.95, 19.5, 30.05], atol=1e-4
    )


def test_clicks_beside_the_object_alone_say_nothing() -> None:
    with pytest.raises(PromptError, match="add one on it"):
        best_box(CanvasPrompt(**_clicks((5, 5, 0))), BlobModel(), content=SHAPE)


def test_boxes_stay_on_the_part_of_the_canvas_that_shows_the_image() -> None:
    box = best_box(CanvasPrompt(**_clicks((50, 30, 1))), BlobModel(), content=(40, 64))
    assert (box >= 0).all()
    assert box[3] <= 39
