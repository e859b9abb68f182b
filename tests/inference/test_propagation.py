from collections.abc import Sequence

import numpy as np
import pytest

from fake_runtime import FakeRuntime
from palpate.images import Image
from palpate.inference.propagation import SliceMask, Track, doubtful_slices, propagate
from palpate.inference.session import Session
from palpate.models.frame import CanvasPrompt, Frame
from palpate.prompts import Box, MaskPrompt, Points, Target
from phantoms import column, disk, empty, one_voxel, picture, rectangle, touching_the_edge

FRAME = Frame(size=64, mask_size=64)
SQUARE = rectangle((64, 64), 20, 20, 29, 29)


def session_on(*bodies: tuple[np.ndarray, int]) -> Session:
    session = Session(FakeRuntime())
    session.set_image(Image(picture(*bodies)), axis="z")
    return session


def boxes(session: Session) -> list[list[float]]:
    """The box of the only object of each decode, in order."""
    return [batch.boxes[0].tolist() for batch in session.runtime.batches]


class TestTheWay:
    def test_both_end_slices_are_included(self) -> None:
        body = column((9, 64, 64), SQUARE, 0, 8)
        found = session_on((body, 255)).predict(Box(18, 18, 31, 31, z=4), z_range=(1, 7))
        assert np.array_equal(found.mask, column((9, 64, 64), SQUARE, 1, 7))
        assert found.objects[0].slices == (1, 7)

    def test_it_goes_to_the_ends_of_the_volume(self) -> None:
        body = column((5, 64, 64), SQUARE, 0, 4)
        found = session_on((body, 255)).predict(Box(18, 18, 31, 31, z=0), z_range=(0, 4))
        assert np.array_equal(found.mask, body)
        found = session_on((body, 255)).predict(Box(18, 18, 31, 31, z=4), z_range=(0, 4))
        assert np.array_equal(found.mask, body)

    def test_without_a_range_only_the_prompted_slice_is_segmented(self) -> None:
        session = session_on((column((5, 64, 64), SQUARE, 0, 4), 255))
        found = session.predict(Box(18, 18, 31, 31, z=2))
        assert np.array_equal(found.mask, column((5, 64, 64), SQUARE, 2, 2))
        assert session.runtime.encodes == 1

    def test_the_first_box_is_the_given_one_and_the_next_are_three_pixels_larger_than_the_mask(self) -> None:
        body = column((4, 64, 64), SQUARE, 0, 3)
        session = session_on((body, 255))
        session.predict(Box(18, 18, 31, 31, z=1), z_range=(0, 3))
        # Up from 1 to 3, then down to 0.
        assert boxes(session) == [[18, 18, 31, 31], [17, 17, 32, 32], [17, 17, 32, 32], [17, 17, 32, 32]]

    def test_it_follows_an_object_that_moves_by_three_pixels_a_slice(self) -> None:
        body = np.stack([rectangle((64, 64), 5 + 3 * z, 10, 14 + 3 * z, 19) for z in range(12)])
        found = session_on((body, 255)).predict(Box(20, 10, 29, 19, z=5), z_range=(0, 11))
        assert np.array_equal(found.mask, body)

    def test_an_object_at_the_edge_stays_at_the_edge(self) -> None:
        body = column((3, 64, 64), touching_the_edge((64, 64)), 0, 2)
        found = session_on((body, 255)).predict(Box(57, 59, 63, 63, z=1), z_range=(0, 2))
        assert np.array_equal(found.mask, body)

    def test_the_box_grows_on_the_canvas_of_a_larger_slice(self) -> None:
        # 128 pixels on a canvas of 64: three canvas pixels are six image pixels.
        body = column((2, 128, 128), rectangle((128, 128), 40, 40, 59, 59), 0, 1)
        session = session_on((body, 255))
        session.predict(Box(40, 40, 59, 59, z=0), z_range=(0, 1))
        assert boxes(session) == [[20, 20, 29, 29], [17, 17, 32, 32]]


class TestWhereTheMaskIsEmpty:
    gap = column((7, 64, 64), SQUARE, 0, 6)
    gap[3:5] = False
    # Something else on every slice, so that the empty ones are not of a single grey.
    landmark = column((7, 64, 64), rectangle((64, 64), 60, 60, 62, 62), 0, 6)

    def test_the_given_box_is_asked_again(self) -> None:
        session = session_on((self.gap | self.landmark, 255))
        found = session.predict(Box(18, 18, 31, 31, z=1), z_range=(1, 6))
        assert np.array_equal(found.mask, self.gap & column((7, 64, 64), SQUARE, 1, 6))
        given, grown = [18, 18, 31, 31], [17, 17, 32, 32]
        #                           1      2      3      4      5      6
        assert boxes(session) == [given, grown, grown, given, given, grown]

    def test_clicks_fall_back_to_the_box_of_the_first_mask(self) -> None:
        session = session_on((self.gap | self.landmark, 255))
        found = session.predict(Points([(25, 25)], z=1), z_range=(0, 6))
        assert np.array_equal(found.mask, self.gap)

    def test_clicks_that_find_nothing_end_there(self) -> None:
        session = session_on((self.gap | self.landmark, 255))
        found = session.predict(Points([(5, 5)], z=1), z_range=(0, 6))
        assert not found.mask.any()
        assert session.runtime.decodes == 1
        assert found.objects[0].slices is None
        assert found.objects[0].predicted_iou == 0

    def test_a_first_guess_carries_on_as_a_box(self) -> None:
        session = session_on((column((3, 64, 64), SQUARE, 0, 2), 255))
        found = session.predict(MaskPrompt(disk((64, 64), centre=(24.5, 24.5), radius=9), z=1), z_range=(0, 2))
        assert np.array_equal(found.mask, column((3, 64, 64), SQUARE, 0, 2))
        assert session.runtime.batches[1].masks is None


class TestUntilTheEnd:
    # The object is on slices 2..5 of 0..8; the box sees a vessel of one pixel beyond it.
    body = column((9, 64, 64), SQUARE, 2, 5)
    landmark = column((9, 64, 64), rectangle((64, 64), 60, 60, 62, 62), 0, 8)
    vessel = column((9, 64, 64), one_voxel((64, 64), (25, 25)), 0, 8)

    def test_it_stops_where_nothing_is_found(self) -> None:
        session = session_on((self.body | self.landmark, 255))
        found = session.predict(Box(18, 18, 31, 31, z=3), until_end=True)
        assert np.array_equal(found.mask, self.body)
        # 3, 4, 5, and 6 to see that it ended; 2, and 1 likewise.
        assert session.runtime.decodes == 6

    def test_it_stops_where_less_than_a_tenth_is_left(self) -> None:
        session = session_on((self.body | self.landmark | self.vessel, 255))
        found = session.predict(Box(18, 18, 31, 31, z=3), until_end=True)
        assert np.array_equal(found.mask, self.body)

    @pytest.mark.parametrize(("side", "stays"), [(4, True), (3, False)])
    def test_a_tenth_is_measured_by_the_prompted_slice(self, side: int, stays: bool) -> None:
        # 10 x 10 = 100 pixels on the prompted slice, 16 or 9 on the next.
        body = self.body.copy()
        body[6, 22 : 22 + side, 22 : 22 + side] = True
        found = session_on((body | self.landmark, 255)).predict(Box(18, 18, 31, 31, z=3), until_end=True)
        assert found.mask[6].any() == stays

    def test_it_stops_where_the_model_doubts(self) -> None:
        # Grey 180 beside white: brightness 180 / 255, so 2 * 0.706 - 1 = 0.41, less than one half.
        doubtful = column((9, 64, 64), SQUARE, 6, 6)
        found = session_on((self.landmark, 255), (self.body, 255), (doubtful, 180)).predict(
            Box(18, 18, 31, 31, z=3), until_end=True
        )
        assert np.array_equal(found.mask, self.body)

    def test_it_does_not_start_again_beyond_a_gap(self) -> None:
        again = column((9, 64, 64), SQUARE, 7, 8)
        found = session_on((self.body | again | self.landmark, 255)).predict(Box(18, 18, 31, 31, z=3), until_end=True)
        assert np.array_equal(found.mask, self.body)

    def test_a_range_holds_it_back(self) -> None:
        found = session_on((self.body | self.landmark, 255)).predict(
            Box(18, 18, 31, 31, z=3), z_range=(3, 4), until_end=True
        )
        assert found.objects[0].slices == (3, 4)

    def test_unasked_it_goes_on(self) -> None:
        session = session_on((self.body | self.landmark | self.vessel, 255))
        found = session.predict(Box(18, 18, 31, 31, z=3), z_range=(0, 8))
        assert np.array_equal(found.mask, self.body | self.vessel)
        assert session.runtime.decodes == 9

    def test_one_object_that_ends_does_not_end_another(self) -> None:
        other = column((9, 64, 64), rectangle((64, 64), 45, 5, 54, 14), 0, 8)
        found = session_on((self.body | self.landmark | other, 255)).predict_all(
            [Target((Box(18, 18, 31, 31, z=3),), 1), Target((Box(44, 4, 55, 15, z=3),), 2)], until_end=True
        )
        assert np.array_equal(found.labels == 1, self.body)
        assert np.array_equal(found.labels == 2, other)


class TestManyObjects:
    grid = tuple((x, y) for y in range(2, 62, 12) for x in range(2, 62, 12))  # corners of 25 squares of 4 x 4

    def footprint(self, i: int) -> np.ndarray:
        x, y = self.grid[i]
        return rectangle((64, 64), x, y, x + 3, y + 3)

    def bodies(self, depth: int) -> list[np.ndarray]:
        return [column((depth, 64, 64), self.footprint(i), 0, depth - 1) for i in range(len(self.grid))]

    def target(self, i: int, z: int, z_range: tuple[int, int]) -> Target:
        x, y = self.grid[i]
        return Target((Box(x - 1, y - 1, x + 4, y + 4, z=z),), i + 1, z_range=z_range)

    def test_each_slice_is_encoded_once_for_all(self) -> None:
        depth = 6
        volume = picture(*((body, 255) for body in self.bodies(depth)))
        volume[:, 63, 63] = np.arange(100, 100 + depth)  # no two slices are the same
        session = Session(FakeRuntime(), memory_bytes=1)
        session.set_image(Image(volume), axis="z")
        targets = [self.target(i, i % depth, (0, depth - 1)) for i in range(len(self.grid))]
        found = session.predict_all(targets)
        assert session.runtime.encodes == depth
        for i, body in enumerate(self.bodies(depth)):
            assert np.array_equal(found.labels == i + 1, body)

    def test_all_objects_of_a_slice_are_decoded_as_one_batch(self) -> None:
        session = session_on(*((body, 255) for body in self.bodies(4)))
        session.predict_all([self.target(i, 2, (0, 3)) for i in range(len(self.grid))])
        assert [len(batch) for batch in session.runtime.batches] == [25, 25, 25, 25]

    def test_one_label_never_leaks_into_another(self) -> None:
        # Two neighbours start on different slices; the second ends where the first goes on.
        near = rectangle((64, 64), 20, 20, 29, 29), rectangle((64, 64), 36, 20, 45, 29)
        first, second = column((8, 64, 64), near[0], 0, 7), column((8, 64, 64), near[1], 0, 3)
        targets = [
            Target((Box(18, 18, 31, 31, z=1),), 1, z_range=(0, 7)),
            Target((Box(34, 18, 47, 31, z=3),), 2, z_range=(0, 7)),
        ]
        for order in (targets, targets[::-1]):
            found = session_on((first | second, 255)).predict_all(order)
            assert np.array_equal(found.labels == 1, first)
            assert np.array_equal(found.labels == 2, second)

    def test_together_they_get_what_each_gets_alone(self) -> None:
        bodies = self.bodies(4)
        targets = [self.target(i, i % 4, (i % 2, 3)) for i in range(9)]
        targets[4] = Target((Points([(self.grid[4][0] + 1, self.grid[4][1] + 1)], z=2),), 5, z_range=(1, 3))
        together = session_on(*((body, 255) for body in bodies)).predict_all(targets)
        for target in targets:
            alone = session_on(*((body, 255) for body in bodies)).predict_all([target])
            assert np.array_equal(together.labels == target.label, alone.mask)


class TestProgress:
    def settle(self, targets: Sequence[Target], *, until_end: bool = False) -> list[tuple[int, int]]:
        told: list[tuple[int, int]] = []
        body = column((9, 64, 64), SQUARE, 2, 5)
        landmark = column((9, 64, 64), rectangle((64, 64), 60, 60, 62, 62), 0, 8)
        session_on((body | landmark, 255)).predict_all(
            targets, until_end=until_end, progress=lambda done, total: told.append((done, total))
        )
        return told

    def test_each_slice_counts(self) -> None:
        told = self.settle([Target((Box(18, 18, 31, 31, z=3),), z_range=(1, 6))])
        assert told == [(n, 6) for n in range(1, 7)]

    def test_each_object_counts_on_its_own(self) -> None:
        told = self.settle(
            [
                Target((Box(18, 18, 31, 31, z=3),), 1, z_range=(3, 5)),
                Target((Box(59, 59, 63, 63, z=4),), 2, z_range=(2, 4)),
            ]
        )
        # Up: slice 3 one, 4 both, 5 one. Down: 3 and 2 one each.
        assert told == [(1, 6), (3, 6), (4, 6), (5, 6), (6, 6)]

    @pytest.mark.parametrize("until_end", [False, True])
    def test_it_reaches_the_total(self, until_end: bool) -> None:
        targets = [
            Target((Box(18, 18, 31, 31, z=3),), 1, z_range=(0, 8)),
            Target((Points([(5, 5)], z=7),), 2, z_range=(1, 8)),
            Target((Box(59, 59, 63, 63),), 3, z_range=(6, 8)),
        ]
        told = self.settle(targets, until_end=until_end)
        assert told[-1] == (9 + 8 + 3, 9 + 8 + 3)
        assert [done for done, _ in told] == sorted({done for done, _ in told})

    def test_nothing_to_do_is_done(self) -> None:
        def refuse(z: int, prompts: Sequence[CanvasPrompt]) -> Sequence[SliceMask]:
            raise AssertionError

        assert list(propagate([], FRAME, refuse)) == []


class TestSliceMask:
    @pytest.mark.parametrize(
        "mask",
        [SQUARE, empty((5, 7)), one_voxel((5, 7), (4, 6)), touching_the_edge(), np.eye(6, dtype=bool)],
        ids=["square", "empty", "one voxel", "touching the edge", "vessel"],
    )
    def test_cutting_to_the_rectangle_loses_nothing(self, mask: np.ndarray) -> None:
        cut = SliceMask.of(mask, 0.5)
        assert np.array_equal(cut.full(), mask)
        assert cut.area == mask.sum()
        assert np.array_equal(mask[cut.window], cut.inside)

    def test_it_holds_no_more_than_the_rectangle(self) -> None:
        assert SliceMask.of(SQUARE, 0.5).inside.base is None
        assert SliceMask.of(SQUARE, 0.5).inside.shape == (10, 10)


def test_a_track_counts_its_slices() -> None:
    assert len(Track(CanvasPrompt(), start=4, first=2, last=7)) == 6


def test_slices_where_an_object_fades_are_named() -> None:
    whole, speck = np.ones((4, 8), dtype=bool), np.zeros((4, 8), dtype=bool)
    speck[0, 0] = True  # 1 of 32 pixels is less than a tenth
    masks = {
        4: SliceMask.of(whole, 0.9),
        5: SliceMask.of(whole, 0.9),
        6: SliceMask.of(whole, 0.4),
        7: SliceMask.of(speck, 0.9),
        3: SliceMask.of(np.zeros_like(whole), 0.9),
    }
    assert doubtful_slices(Track(CanvasPrompt(), 4, 3, 7, masks)) == [3, 6, 7]
