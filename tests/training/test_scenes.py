"""Views of images and of their labels agree, pixel by pixel, and are the same ones each time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_runtime import FakeRuntime
from palpate.datasets import Case, LabelledImage
from palpate.errors import SettingError
from palpate.images import Image
from palpate.images.geometry import affine_from_spacing
from palpate.images.image import Source
from palpate.inference.session import Session
from palpate.models.frame import Frame
from palpate.training.scenes import CROP_SIDES, GAMMAS, Move, Sight, View, Views, rng_for, sights_of
from phantoms import column, disk, rectangle

FRAME = Frame(size=32, mask_size=32)
A_CASE = Case("phantoms", "a", "a", Path("a.npz"), Path("a.npz"), lambda _: pytest.fail("nobody reads it"))
EVERY_VIEW = Views(flips=("x", "y", "xy"), crops=3, seed=1)


def read_arrays(case: Case) -> LabelledImage:
    with np.load(case.image) as arrays:
        return LabelledImage(
            Image(arrays["image"], affine_from_spacing((1.0, 1.0, 1.0)), modality="photo"), arrays["labels"]
        )


def case_of(folder: Path, image: np.ndarray, labels: np.ndarray, name: str = "a") -> Case:
    path = folder / f"{name}.npz"
    np.savez(path, image=image, labels=labels)
    return Case("phantoms", name, name, path, path, read_arrays)


def sights(case: Case, views: Views | None = None, **more: int) -> list[Sight]:
    return list(sights_of(case, frame=FRAME, encoder_hash="e", views=views, **more))


@pytest.fixture
def numbered(tmp_path: Path) -> Case:
    """Every pixel has a grey of its own, and the label says which grey: label 1 above 100, label 2 above 180."""
    image = np.arange(15 * 17, dtype=np.uint8).reshape(15, 17)
    return case_of(tmp_path, image, (image > 100).astype(np.uint8) + (image > 180))


class TestViews:
    def test_image_and_labels_are_seen_alike(self, numbered: Case) -> None:
        found = sights(numbered, EVERY_VIEW)
        assert len(found) == len(EVERY_VIEW) == 7
        for sight in found:
            assert sight.pixels.shape == sight.scene.shape
            assert np.array_equal(sight.scene.labels, (sight.pixels > 100).astype(np.uint8) + (sight.pixels > 180))
            for region in sight.scene.regions:
                assert np.array_equal(sight.scene.mask(region), region.mask(sight.scene.labels))

    def test_flips_are_flips(self) -> None:
        pixels = np.array([[1, 2, 3], [4, 5, 6]])
        assert View(flip_x=True).of(pixels).tolist() == [[3, 2, 1], [6, 5, 4]]
        assert View(flip_y=True).of(pixels).tolist() == [[4, 5, 6], [1, 2, 3]]
        assert View(flip_x=True, flip_y=True).of(pixels).tolist() == [[6, 5, 4], [3, 2, 1]]

    def test_colours_stay_where_they_are(self) -> None:
        pixels = np.arange(2 * 3 * 3).reshape(2, 3, 3)
        assert np.array_equal(View(flip_x=True).of(pixels)[0, 0], pixels[0, 2])

    def test_a_crop_holds_both_its_ends(self) -> None:
        pixels = np.arange(20).reshape(4, 5)
        assert View(crop=(1, 2, 0, 3)).of(pixels).tolist() == [[5, 6, 7, 8], [10, 11, 12, 13]]

    @given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 99))
    def test_crops_lie_inside_and_are_as_large_as_promised(self, rows: int, columns: int, seed: int) -> None:
        case = Case("d", "s", "n", Path("i"), Path("l"), read_arrays)
        views = Views(crops=4, seed=seed).of(case, 0, (rows, columns))
        assert views[0] == View()
        for view in views[1:]:
            assert view.crop is not None
            top, bottom, left, right = view.crop
            for first, last, extent in ((top, bottom, rows), (left, right, columns)):
                assert 0 <= first <= last < extent
                length = last - first + 1
                assert CROP_SIDES[0] * extent - 0.5 <= length <= max(1, CROP_SIDES[1] * extent + 0.5)

    def test_they_are_the_same_each_time_and_another_slice_or_seed_has_others(self, numbered: Case) -> None:
        drawn = [EVERY_VIEW.of(numbered, z, (50, 60)) for z in (0, 0, 1)]
        assert drawn[0] == drawn[1]
        assert drawn[0][4:] != drawn[2][4:]
        assert replace(EVERY_VIEW, seed=2).of(numbered, 0, (50, 60))[4:] != drawn[0][4:]

    def test_grey_values_follow_a_curve_that_keeps_black_and_white(self) -> None:
        grey = np.arange(256, dtype=np.uint8)[None]
        assert np.array_equal(View().shown(grey), grey)
        assert np.array_equal(View(inverted=True).shown(grey), 255 - grey)
        darker = View(gamma=2.0).shown(grey)[0]
        assert (darker[0], darker[128], darker[255], darker.dtype) == (0, 64, 255, np.uint8)
        assert (np.diff(darker.astype(int)) >= 0).all()
        assert np.array_equal(View(gamma=2.0, inverted=True).shown(grey)[0], darker[::-1])
        colours = np.stack([grey, grey, grey], axis=-1)
        assert np.array_equal(View(inverted=True).shown(colours), colours)
        assert np.array_equal(View(gamma=2.0).shown(colours)[..., 1], darker[None])

    def test_variants_differ_in_everything_and_their_labels_only_in_place(self, numbered: Case) -> None:
        views = Views(variants=40, seed=3)
        drawn = views.of(numbered, 0, (15, 17))
        assert drawn == views.of(numbered, 0, (15, 17))
        assert (len(drawn), len(views), drawn[0]) == (41, 41, View())
        assert drawn[1:] != replace(views, seed=4).of(numbered, 0, (15, 17))[1:]
        variants = drawn[1:]
        for kind in ("flip_x", "flip_y", "inverted"):
            assert {getattr(view, kind) for view in variants} == {False, True}
        assert {view.crop is None for view in variants} == {False, True}
        assert all(GAMMAS[0] <= view.gamma <= GAMMAS[1] for view in variants)
        assert any(view.gamma < 0.8 for view in variants)
        assert any(view.gamma > 1.25 for view in variants)
        labels = numbered.read().labels
        for sight in sights(numbered, views):
            assert np.array_equal(sight.scene.labels, sight.scene.view.of(labels))
        # Crops that were there before stay where they were.
        assert Views(crops=2, variants=1, seed=3).of(numbered, 0, (15, 17))[:3] == Views(crops=2, seed=3).of(
            numbered, 0, (15, 17)
        )

    def test_each_view_has_a_key_of_its_own(self, numbered: Case) -> None:
        keys = [sight.scene.key for sight in sights(numbered, EVERY_VIEW)]
        assert len(set(keys)) == 7

    def test_what_does_not_exist_is_told(self) -> None:
        with pytest.raises(SettingError, match="no flip 'z'"):
            Views(flips=("z",))
        for kind in ("crops", "variants"):
            with pytest.raises(SettingError, match=f"cannot be -1 {kind}"):
                Views(**{kind: -1})


class TestScenes:
    def test_small_objects_are_not_asked_for(self, tmp_path: Path) -> None:
        large, small = disk((20, 20), centre=(6, 6), radius=4), rectangle((20, 20), 15, 15, 17, 16)
        case = case_of(tmp_path, np.where(large, 200, 10).astype(np.uint8), large.astype(np.uint8) + 2 * small)
        assert [len(sight.scene.regions) for sight in sights(case, min_pixels=6)] == [2]
        assert [len(sight.scene.regions) for sight in sights(case, min_pixels=7)] == [1]
        assert sights(case, min_pixels=1000) == []

    def test_the_ignored_label_is_no_object(self, numbered: Case) -> None:
        case = replace(numbered, ignore=2)
        (sight,) = sights(case)
        assert len(sight.scene.regions) == 1
        assert sight.scene.judged is not None
        assert np.array_equal(~sight.scene.judged, sight.pixels > 180)

    def test_slices_of_a_volume_are_spread_over_what_is_labelled(self, tmp_path: Path) -> None:
        body = column((12, 20, 20), disk((20, 20), centre=(9, 9), radius=5), 2, 10)
        case = case_of(tmp_path, np.where(body, 200, 10).astype(np.uint8), body.astype(np.uint8))
        assert [sight.scene.z for sight in sights(case)] == list(range(2, 11))
        # The middles of three thirds of nine slices.
        assert [sight.scene.z for sight in sights(case, slices_per_volume=3)] == [3, 6, 9]


def test_a_generator_depends_on_all_its_names_and_on_nothing_else() -> None:
    first = rng_for(1, "a", "b").integers(2**40)
    assert rng_for(1, "a", "b").integers(2**40) == first
    others = [rng_for(1, "ab"), rng_for(1, "b", "a"), rng_for(2, "a", "b"), rng_for(1, "a", "b", 0)]
    assert first not in [rng.integers(2**40) for rng in others]


class TestMoves:
    def test_a_shift_is_a_share_of_the_image(self) -> None:
        pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
        moved = Move(shift_x=0.2, shift_y=-0.25).of(pixels, smooth=False)  # one to the right, one up
        assert np.array_equal(moved[:3, 1:], pixels[1:, :4])
        assert not moved[3].any()
        assert not moved[:, 0].any()

    def test_a_quarter_turn_is_clockwise(self) -> None:
        pixels = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
        turned = Move(degrees=90.0).of(pixels, smooth=False)
        assert turned.tolist() == np.rot90(pixels, -1).tolist()

    def test_enlarged_twice_the_middle_is_left(self) -> None:
        mask = np.zeros((8, 8), dtype=np.int16)
        mask[3:5, 3:5] = 7
        large = Move(scale=2.0).of(mask, smooth=False)
        assert large.dtype == np.int16
        assert np.array_equal(large[2:6, 2:6], np.full((4, 4), 7))
        assert int((large > 0).sum()) == 16

    def test_image_labels_and_points_move_by_one_matrix(self, rng: np.random.Generator) -> None:
        """The brightest place of the image, the object and a point on it are still at one place."""
        rows, columns = np.indices((120, 180))
        for _ in range(20):
            view = Views(moves=1).of(A_CASE, int(rng.integers(1000)), (120, 180))[1]
            assert view.move is not None
            inside = (rows - 65) ** 2 + (columns - 80) ** 2 <= 400
            moved = Move(view.move.degrees, view.move.scale, 0.05, 0.05)
            image, labels = (
                moved.of(200 * inside.astype(np.uint8), smooth=True),
                moved.of(inside.astype(np.uint8), smooth=False),
            )
            y, x = (float(np.average(i, weights=labels)) for i in np.indices(labels.shape))
            assert np.average(rows, weights=image) == pytest.approx(y, abs=0.2)
            assert np.average(columns, weights=image) == pytest.approx(x, abs=0.2)
            assert moved.back((x, y), (120, 180)) == pytest.approx((80, 65), abs=0.2)

    def test_colours_stay_together(self, rng: np.random.Generator) -> None:
        pixels = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        moved = Move(degrees=30.0).of(pixels, smooth=True)
        assert moved.shape == pixels.shape
        assert np.array_equal(moved[..., 1], Move(degrees=30.0).of(pixels[..., 1], smooth=True))

    def test_views_are_the_same_whenever_they_are_asked_for(self) -> None:
        views = Views(moves=3, strong_moves=2)
        assert len(views) == 6
        assert views.of(A_CASE, 4, (9, 9)) == views.of(A_CASE, 4, (9, 9))
        assert views.of(A_CASE, 4, (9, 9))[:4] == Views(moves=3).of(A_CASE, 4, (9, 9))

    def test_without_mirrors_moves_are_the_same_but_for_the_mirror(self) -> None:
        usual = Views(moves=8).of(A_CASE, 0, (9, 9))
        assert any(view.flip_x for view in usual)
        assert any(view.flip_y for view in usual)
        plain = [replace(view, flip_x=False, flip_y=False) for view in usual]
        assert Views(moves=8, mirrored=False).of(A_CASE, 0, (9, 9)) == plain

    def test_fewer_than_none_are_refused(self) -> None:
        with pytest.raises(SettingError, match="-1 strong moves"):
            Views(strong_moves=-1)


class TestWhereNothingIs:
    def test_slices_without_an_object_are_added_if_asked_for(self, tmp_path: Path) -> None:
        labels = np.zeros((9, 12, 12), dtype=np.uint8)
        labels[3:6, 4:8, 4:8] = 1
        case = case_of(tmp_path, labels * 100, labels)
        found = sights(case, absent=2)
        assert [sight.scene.z for sight in found] == [1, 3, 4, 5, 7]
        assert [len(sight.scene.regions) for sight in found] == [0, 1, 1, 1, 0]
        assert [sight.scene.z for sight in sights(case)] == [3, 4, 5]

    def test_so_are_pictures(self, tmp_path: Path) -> None:
        empty = case_of(tmp_path, np.arange(81, dtype=np.uint8).reshape(9, 9), np.zeros((9, 9), dtype=np.uint8))
        assert len(sights(empty, absent=0)) == 1
        assert not sights(empty)


def test_what_is_trained_on_looks_like_what_a_session_shows(tmp_path: Path) -> None:
    """A CT of which nobody says that it is one is known by its values: the window is the same on both sides."""
    image = Image(
        np.linspace(-1000, 1500, 2 * 16 * 16, dtype=np.float32).reshape(2, 16, 16),
        affine_from_spacing((1.0, 1.0, 1.0)),
        source=Source(tmp_path / "ct.nii.gz", "nifti"),
    )
    labels = np.ones((2, 16, 16), dtype=np.uint8)
    case = Case("d", "s", "n", Path("i"), Path("l"), lambda _: LabelledImage(image, labels))
    session = Session(FakeRuntime())
    session.set_image(image)
    assert np.array_equal(np.stack([sight.pixels for sight in sights(case)]), session.slices)
