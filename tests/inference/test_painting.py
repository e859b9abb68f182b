import numpy as np
import pytest

from palpate.inference.painting import Overlap, paint, score
from palpate.inference.propagation import SliceMask, Track
from palpate.models.frame import CanvasPrompt


def _track(columns: slice, *, predicted_iou: float = 0.5, z: int = 0) -> Track:
    mask = np.zeros((2, 6), dtype=bool)
    mask[:, columns] = True
    return Track(CanvasPrompt(), z, z, z, {z: SliceMask.of(mask, predicted_iou)})


@pytest.mark.parametrize(
    ("overlap", "row", "voxels"),
    [
        ("last", [3, 3, 9, 9, 9, 0], [4, 6]),  # columns 2 and 3 are claimed twice
        ("first", [3, 3, 3, 3, 9, 0], [8, 2]),
        ("score", [3, 3, 3, 3, 9, 0], [8, 2]),
    ],
)
def test_a_voxel_claimed_twice_goes_to_one_object_and_is_counted_there(
    overlap: Overlap, row: list[int], voxels: list[int]
) -> None:
    tracks = [_track(slice(0, 4), predicted_iou=0.9), _track(slice(2, 5), predicted_iou=0.6)]
    painted, counted = paint(tracks, [3, 9], shape=(1, 2, 6), overlap=overlap)
    assert painted[0].tolist() == [row, row]
    assert counted.tolist() == voxels


def test_parts_of_one_object_are_counted_apart_and_add_up() -> None:
    painted, counted = paint([_track(slice(0, 3)), _track(slice(2, 4))], [5, 5], shape=(1, 2, 6), overlap="last")
    assert counted.tolist() == [4, 4]
    assert (painted == 5).sum() == counted.sum()


def test_slices_do_not_mix() -> None:
    painted, _ = paint([_track(slice(0, 3), z=0), _track(slice(0, 3), z=2)], [1, 300], shape=(3, 2, 6), overlap="last")
    assert painted.dtype == np.uint16
    assert [int(part.max()) for part in painted] == [1, 0, 300]


def test_an_object_that_was_not_found_scores_nothing() -> None:
    assert score(_track(slice(0, 0))) == 0
    assert score(_track(slice(0, 2), predicted_iou=0.7)) == 0.7
