import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from palpate.errors import GeometryError, ImageError, SettingError
from palpate.metrics import Surface, assd, hausdorff95, nsd, surface_distances
from phantoms import column, disk, empty, one_voxel, rectangle, ring, touching_the_edge, vessel

PIXELS = (1.0, 1.0)
SURFACES: tuple[Surface, ...] = ("surfel", "voxel")
shapes = st.sampled_from([(4, 5), (3, 4, 5)])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two masks and a spacing, all in one order of axes; whole numbers of quarters keep the distances exact."""
    shape = draw(shapes)
    spacing = tuple(draw(st.integers(1, 12)) / 4 for _ in shape)
    return draw(arrays(bool, shape)), draw(arrays(bool, shape)), spacing


def scores(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], surface: Surface) -> list[float]:
    distances = surface_distances(prediction, reference, spacing_mm=spacing, surface=surface)
    return [
        distances.nsd(1.0, both_empty=-1.0),
        distances.hausdorff95(both_empty=-1.0),
        distances.assd(both_empty=-1.0),
    ]


class TestByHand:
    def test_two_pixels_apart_along_an_axis(self) -> None:
        # Pixels of 2 mm x 1 mm, the second two columns to the right. Corners of the first lie at columns 0 and 1 (say),
        # of the second at 2 and 3.
        one, two = one_voxel((5, 6), (2, 1)), one_voxel((5, 6), (2, 3))
        distances = surface_distances(one, two, spacing_mm=(2.0, 1.0))
        # Columns 0 and 1 of `one` are 2 and 1 mm from column 2; each of the four corners is half a diagonal long.
        assert sorted(distances.to_reference) == [1, 1, 2, 2]
        assert distances.prediction_area == pytest.approx([0.5 * math.hypot(2, 1)] * 4)
        assert distances.assd() == pytest.approx(1.5)
        assert distances.hausdorff95() == 2
        assert distances.nsd(1.0) == pytest.approx(0.5)
        assert distances.nsd(0.9) == 0
        assert distances.nsd(2.0) == 1
        # Their centres are two columns of 1 mm apart.
        voxels = surface_distances(one, two, spacing_mm=(2.0, 1.0), surface="voxel")
        assert voxels.hausdorff95() == voxels.assd() == 2

    def test_spacing_belongs_to_the_axes_in_the_arrays_order(self) -> None:
        below = one_voxel((5, 6), (0, 0)), one_voxel((5, 6), (3, 0))
        right = one_voxel((5, 6), (0, 0)), one_voxel((5, 6), (0, 3))
        assert hausdorff95(*below, spacing_mm=(2.0, 0.5), surface="voxel") == 6
        assert hausdorff95(*right, spacing_mm=(2.0, 0.5), surface="voxel") == 1.5
        deep = one_voxel((4, 2, 2), (0, 0, 0)), one_voxel((4, 2, 2), (3, 0, 0))
        assert hausdorff95(*deep, spacing_mm=(5.0, 1.0, 1.0), surface="voxel") == 15

    def test_a_square_shifted_by_one_column(self) -> None:
        # A 2 x 2 square has nine corners: four tips of half a diagonal, four sides of 1, and one inside, which is none.
        prediction, reference = rectangle((4, 6), 1, 1, 2, 2), rectangle((4, 6), 2, 1, 3, 2)
        distances = surface_distances(prediction, reference, spacing_mm=PIXELS)
        half = math.sqrt(0.5)
        assert distances.reference_area.sum() == pytest.approx(4 + 4 * half)
        # Corners at columns 1, 2, 3 against 2, 3, 4. Column 1 (tip, side, tip) is 1 away, column 2 (two sides) is on
        # the other's tips, column 3 has two tips on the other's sides, and a side in the other's middle: 1 away.
        assert distances.assd() == pytest.approx((2 * half + 1 + 1) / (4 + 4 * half))
        assert distances.nsd(0.0) == pytest.approx((2 + 2 * half) / (4 + 4 * half)) == pytest.approx(0.5)
        assert distances.nsd(1.0) == 1
        assert distances.hausdorff95() == 1

    def test_a_long_bar_has_the_area_of_its_sides(self) -> None:
        # 1 x 1 voxels of 3 mm x 2 mm, ten slices of 5 mm: the roofs over its edges add up to four slanted sides.
        bar = column((12, 4, 4), one_voxel((4, 4), (1, 1)), 1, 10)
        area = surface_distances(bar, bar, spacing_mm=(5.0, 3.0, 2.0)).reference_area
        side = 0.5 * math.hypot(3, 2) * 5
        tip = 0.125 * math.sqrt((3 * 2) ** 2 + (5 * 2) ** 2 + (5 * 3) ** 2)
        assert area.sum() == pytest.approx(4 * 9 * side + 8 * tip)

    def test_a_sphere_in_a_larger_sphere(self) -> None:
        z, y, x = np.indices((40, 40, 40))
        far = np.sqrt((x - 19.5) ** 2 + (y - 19.5) ** 2 + (z - 19.5) ** 2)
        distances = surface_distances(far <= 10, far <= 15, spacing_mm=(1.0, 1.0, 1.0))
        # Stairs of voxels are not smooth; marching cubes overrates a sphere's area a little.
        assert distances.prediction_area.sum() == pytest.approx(4 * math.pi * 10**2, rel=0.1)
        # Elements lie up to half a voxel's diagonal beside the sphere they stand for, and the nearest one counts.
        beside = math.sqrt(3) / 2
        assert 5 - 2 * beside < distances.assd() < 5
        assert distances.hausdorff95() <= 5 + beside
        assert distances.nsd(5 - 2 * beside) == 0
        assert distances.nsd(5 + 2 * beside) == 1

    def test_hausdorff95_forgives_five_percent(self) -> None:
        line = rectangle((3, 200), 0, 1, 179, 1)
        # 170 of the 180 pixels are found; the others are 1 to 10 from the last one. 5 % of 180 are 9 pixels.
        short = rectangle((3, 200), 0, 1, 169, 1)
        # In ascending order the farthest ten are at places 170 to 179; the percentile lies at 0.95 * 179 = 170.05.
        assert hausdorff95(short, line, spacing_mm=PIXELS, surface="voxel") == pytest.approx(1.05)
        # The contour is 2 * 179 sides of 1 and four tips of sqrt(0.5): 360.8, of which 5 % are 18.0. Two tips are 10
        # away, and two sides each 9, 8, ... 1. Down to 2 away that is 2 * sqrt(0.5) + 2 * 8 = 17.4; down to 1, 19.4.
        assert hausdorff95(short, line, spacing_mm=PIXELS) == 1

    def test_assd_weighs_by_area_not_by_direction(self) -> None:
        # A pixel against itself and a second one, 10 columns on: nothing is far for the prediction.
        one = one_voxel((3, 14), (1, 1))
        two = one | one_voxel((3, 14), (1, 11))
        # Voxels: distances 0 | 0, 10, all three alike: not the 2.5 that the mean of the two directions would be.
        assert assd(one, two, spacing_mm=PIXELS, surface="voxel") == pytest.approx(10 / 3)
        # Surfels: 4 corners at 0 | 4 at 0, 2 at 9 and 2 at 10 columns, each of the same length.
        assert assd(one, two, spacing_mm=PIXELS) == pytest.approx((2 * 9 + 2 * 10) / 12)

    def test_a_tolerance_counts_although_it_is_rounded(self) -> None:
        one, two = one_voxel((1, 9), (0, 0)), one_voxel((1, 9), (0, 4))
        assert 3 * 0.7 < 2.1 < 4 * 0.7  # by a hair
        shifted = surface_distances(one, two, spacing_mm=(0.7, 0.7))
        assert sorted(shifted.to_reference) == pytest.approx([2.1, 2.1, 2.8, 2.8])
        assert 3 * 1.1 > 3.3  # by a hair
        assert surface_distances(one, two, spacing_mm=(1.1, 1.1)).nsd(3.3) == 0.5


class TestDiscs:
    """The trap of the challenge's script: what is inside both masks agrees, and most of a disc is inside."""

    @pytest.mark.parametrize(
        ("radius", "challenge", "surfel", "voxel"), [(36, 0.949, 0.0, 0.0), (38, 0.998, 0.804, 0.679)]
    )
    def test_three_definitions_give_three_numbers(
        self, radius: int, challenge: float, surfel: float, voxel: float
    ) -> None:
        reference = disk((101, 101), centre=(50, 50), radius=40)
        prediction = disk((101, 101), centre=(50, 50), radius=radius)
        slab = nsd(prediction, reference, spacing_mm=PIXELS, mode="challenge")
        assert slab == pytest.approx(challenge, abs=5e-4)
        assert nsd(prediction, reference, spacing_mm=PIXELS) == pytest.approx(surfel, abs=5e-4)
        voxels = surface_distances(prediction, reference, spacing_mm=PIXELS, surface="voxel")
        assert voxels.nsd(2.0) == pytest.approx(voxel, abs=5e-4)

    def test_the_challenge_ignores_the_spacing_of_pictures(self) -> None:
        prediction, reference = disk((41, 41), centre=(20, 20), radius=15), disk((41, 41), centre=(20, 22), radius=15)
        in_pixels = nsd(prediction, reference, spacing_mm=PIXELS, tolerance_mm=1.0, mode="challenge")
        assert nsd(prediction, reference, spacing_mm=(9.0, 9.0), tolerance_mm=1.0, mode="challenge") == in_pixels
        assert in_pixels < 1

    def test_on_volumes_both_modes_are_the_same(self) -> None:
        footprint = disk((12, 12), centre=(6, 6), radius=4)
        long, short = column((8, 12, 12), footprint, 1, 6), column((8, 12, 12), footprint, 1, 3)
        contour, challenge = (
            nsd(short, long, spacing_mm=(3.0, 1.0, 1.0), mode=mode) for mode in ("contour", "challenge")
        )
        assert contour == challenge < 1


class TestBorders:
    @pytest.mark.parametrize("surface", SURFACES)
    def test_a_mask_ends_where_the_array_ends(self, surface: Surface) -> None:
        edge = touching_the_edge()
        inside = np.pad(edge, 3)
        missed = np.zeros_like(edge)
        missed[-4:, -7:] = True
        assert scores(missed, edge, PIXELS, surface) == pytest.approx(
            scores(np.pad(missed, 3), inside, PIXELS, surface), rel=1e-12
        )

    def test_a_full_array_is_all_surface_at_its_rim(self) -> None:
        full = np.ones((3, 4), dtype=bool)
        # Three steps down, four across: 2 * (2 + 3) sides and four tips.
        assert surface_distances(full, full, spacing_mm=PIXELS).reference_area.sum() == pytest.approx(
            10 + 4 * math.sqrt(0.5)
        )

    def test_the_voxel_border_is_what_has_a_face_on_the_background(self) -> None:
        full = np.ones((3, 3), dtype=bool)
        # Only the middle pixel has no face on the background.
        assert len(surface_distances(full, full, spacing_mm=PIXELS, surface="voxel").to_reference) == 8

    def test_a_hole_is_a_surface_too(self) -> None:
        solid = disk((31, 31), centre=(15, 15), radius=12)
        hollow = ring((31, 31), centre=(15, 15), outer=12, inner=4)
        assert hausdorff95(hollow, solid, spacing_mm=PIXELS) > 5
        assert nsd(hollow, solid, spacing_mm=PIXELS) < 1


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
class TestEmpty:
    def test_one_empty_mask_is_infinitely_far(self, shape: tuple[int, ...], surface: Surface) -> None:
        something, nothing, spacing = one_voxel(shape, (1,) * len(shape)), empty(shape), (1.0,) * len(shape)
        for pair in ((something, nothing), (nothing, something)):
            assert scores(*pair, spacing, surface) == [0, math.inf, math.inf]
            assert nsd(*pair, spacing_mm=spacing, both_empty=1.0) == 0
            assert nsd(*pair, spacing_mm=spacing, mode="challenge", both_empty=1.0) == 0
            assert hausdorff95(*pair, spacing_mm=spacing, surface=surface, both_empty=0.0) == math.inf
            assert assd(*pair, spacing_mm=spacing, surface=surface, both_empty=0.0) == math.inf

    def test_two_empty_masks_score_what_the_caller_says(self, shape: tuple[int, ...], surface: Surface) -> None:
        nothing, spacing = empty(shape), (1.0,) * len(shape)
        distances = surface_distances(nothing, nothing, spacing_mm=spacing, surface=surface)
        assert distances.both_empty
        assert all(map(math.isnan, (distances.nsd(2.0), distances.hausdorff95(), distances.assd())))
        assert nsd(nothing, nothing, spacing_mm=spacing, both_empty=1.0) == 1
        assert nsd(nothing, nothing, spacing_mm=spacing, mode="challenge", both_empty=1.0) == 1
        assert hausdorff95(nothing, nothing, spacing_mm=spacing, surface=surface, both_empty=0.0) == 0
        assert assd(nothing, nothing, spacing_mm=spacing, surface=surface, both_empty=0.0) == 0


class TestRefusals:
    def test_the_error_says_what_to_do(self) -> None:
        mask = vessel((5, 5))
        with pytest.raises(ImageError, match=r"pass `labels == 1`"):
            surface_distances(mask.astype(np.uint8), mask, spacing_mm=PIXELS)
        with pytest.raises(ImageError, match="onto one grid"):
            nsd(mask, vessel((6, 6)), spacing_mm=PIXELS)
        with pytest.raises(ImageError, match=r"slice \(y, x\) or a volume"):
            assd(np.ones(3, dtype=bool), np.ones(3, dtype=bool), spacing_mm=(1.0,))
        with pytest.raises(GeometryError, match="one for each axis"):
            hausdorff95(mask, mask, spacing_mm=(1.0, 1.0, 1.0))

    @pytest.mark.parametrize("millimetres", [0.0, -1.0, math.nan, math.inf])
    def test_a_spacing_must_be_a_length(self, millimetres: float) -> None:
        mask = vessel((5, 5))
        for mode in ("contour", "challenge"):
            with pytest.raises(GeometryError, match="positive numbers"):
                nsd(mask, mask, spacing_mm=(1.0, millimetres), mode=mode)

    @pytest.mark.parametrize("tolerance", [-0.5, math.nan, math.inf])
    def test_a_tolerance_must_be_a_length(self, tolerance: float) -> None:
        mask = vessel((5, 5))
        with pytest.raises(SettingError, match="not negative"):
            nsd(mask, mask, spacing_mm=PIXELS, tolerance_mm=tolerance)


class TestLaws:
    @given(pairs(), st.sampled_from(SURFACES))
    def test_the_order_does_not_matter(
        self, pair: tuple[np.ndarray, np.ndarray, tuple[float, ...]], surface: Surface
    ) -> None:
        a, b, spacing = pair
        assert scores(a, b, spacing, surface) == pytest.approx(scores(b, a, spacing, surface))

    @given(pairs(), st.sampled_from(SURFACES))
    def test_a_mask_agrees_with_itself(
        self, pair: tuple[np.ndarray, np.ndarray, tuple[float, ...]], surface: Surface
    ) -> None:
        mask, _, spacing = pair
        assert scores(mask, mask, spacing, surface) == ([1, 0, 0] if mask.any() else [-1, -1, -1])

    @given(pairs(), st.sampled_from(SURFACES), st.data())
    def test_turning_the_axes_with_their_spacing_changes_nothing(
        self, pair: tuple[np.ndarray, np.ndarray, tuple[float, ...]], surface: Surface, data: st.DataObject
    ) -> None:
        a, b, spacing = pair
        order = data.draw(st.permutations(range(a.ndim)))
        turned = tuple(spacing[axis] for axis in order)
        assert scores(a.transpose(order), b.transpose(order), turned, surface) == pytest.approx(
            scores(a, b, spacing, surface)
        )

    @given(pairs(), st.sampled_from(SURFACES), st.data())
    def test_where_the_masks_lie_does_not_matter(
        self, pair: tuple[np.ndarray, np.ndarray, tuple[float, ...]], surface: Surface, data: st.DataObject
    ) -> None:
        a, b, spacing = pair
        margins = [data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in a.shape]
        assert scores(np.pad(a, margins), np.pad(b, margins), spacing, surface) == pytest.approx(
            scores(a, b, spacing, surface)
        )

    @given(pairs())
    def test_inside_and_outside_have_one_surface(self, pair: tuple[np.ndarray, np.ndarray, tuple[float, ...]]) -> None:
        mask, _, spacing = pair
        outside = np.pad(~mask, 2, constant_values=True)
        inside, around, rim = (
            surface_distances(body, body, spacing_mm=spacing).reference_area.sum()
            for body in (mask, outside, np.ones_like(outside))
        )
        assert inside == pytest.approx(around - rim, abs=1e-9)

    @given(pairs(), st.sampled_from(SURFACES), st.floats(0, 10), st.floats(0, 10))
    def test_a_larger_tolerance_never_scores_less(
        self,
        pair: tuple[np.ndarray, np.ndarray, tuple[float, ...]],
        surface: Surface,
        one: float,
        other: float,
    ) -> None:
        a, b, spacing = pair
        distances = surface_distances(a, b, spacing_mm=spacing, surface=surface)
        low, high = (distances.nsd(tolerance, both_empty=1.0) for tolerance in sorted((one, other)))
        assert 0 <= low <= high <= 1

    @given(pairs())
    def test_doubling_the_spacing_doubles_the_distances(
        self, pair: tuple[np.ndarray, np.ndarray, tuple[float, ...]]
    ) -> None:
        a, b, spacing = pair
        if a.any() and b.any():
            twice = tuple(2 * mm for mm in spacing)
            assert assd(a, b, spacing_mm=twice) == pytest.approx(2 * assd(a, b, spacing_mm=spacing))
            assert hausdorff95(a, b, spacing_mm=twice) == pytest.approx(2 * hausdorff95(a, b, spacing_mm=spacing))


def test_a_ball_in_the_middle_of_a_ball_is_measured_exactly() -> None:
    # So far that the tree is left for the transform: 1.5 * 14 away, and more elements on both sides than it may ask.
    z, y, x = np.indices((45, 45, 45))
    square = (x - 22) ** 2 + (y - 22) ** 2 + (z - 22) ** 2
    small, large = square <= 6**2, square <= 20**2
    distances = surface_distances(small, large, spacing_mm=(1.5, 1.5, 1.5))
    assert len(distances.to_reference) * len(distances.to_prediction) > 16 * 42**3
    # A corner on the small ball's axis, 22 + 6 and half a voxel in x, half a voxel beside it in y and z. The large
    # ball's nearest ones lie straight ahead, where its own pole is: 14 voxels on.
    assert distances.to_reference.max() <= 1.5 * 14.5
    assert distances.to_prediction.min() == distances.to_reference.min()
    whole = np.round((distances.to_reference / 1.5) ** 2)
    assert distances.to_reference == pytest.approx(1.5 * np.sqrt(whole), rel=1e-12)
