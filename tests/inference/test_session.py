import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from fake_runtime import FakeRuntime
from palpate.errors import ImageError, PalpateError, PromptError, SettingError, UnsupportedPrompt
from palpate.images import Image, Source
from palpate.images.intensity import WINDOWS, MinMax
from palpate.inference.segmentation import Segmentation
from palpate.inference.session import Session
from palpate.models.frame import Frame
from palpate.models.promptable import PromptSupport
from palpate.prompts import Box, MaskPrompt, Points, Prompt, Scribble, Target
from phantoms import column, disk, empty, one_voxel, picture, rectangle, ring, touching_the_edge, two_organs, vessel

SHAPE = (64, 64)  # the fake model's own canvas
LEFT, RIGHT = rectangle(SHAPE, 5, 10, 14, 19), rectangle(SHAPE, 40, 30, 51, 39)
BOTH = picture((LEFT, 255), (RIGHT, 255))


def on(session: Session, pixels: np.ndarray, **options: str) -> Session:
    session.set_image(Image(pixels), **options)
    return session


@pytest.fixture
def on_picture(fake_session: Session) -> Session:
    """A session on a picture of 64 x 64 pixels with two white rectangles on black."""
    return on(fake_session, BOTH)


@pytest.fixture
def on_volume(fake_session: Session) -> Session:
    """A session on six slices of the same two rectangles."""
    return on(fake_session, np.repeat(BOTH[None], 6, axis=0))


class TestEncodeOnceDecodeOften:
    def test_a_picture_is_encoded_when_it_is_set(self, fake_session: Session) -> None:
        on(fake_session, BOTH)
        assert (fake_session.runtime.encodes, fake_session.runtime.decodes) == (1, 0)

    def test_a_volume_waits_for_a_prompt(self, on_volume: Session) -> None:
        assert on_volume.runtime.encodes == 0
        on_volume.predict(Box(0, 0, 63, 63, z=2))
        assert on_volume.runtime.encodes == 1

    def test_a_second_prompt_never_encodes_again(self, on_picture: Session) -> None:
        for prompt in (Box(0, 0, 30, 30), Box(1, 1, 30, 30), Points([(10, 12)]), MaskPrompt(LEFT), Scribble(LEFT)):
            on_picture.predict(prompt)
        assert (on_picture.runtime.encodes, on_picture.runtime.decodes) == (1, 5)

    def test_several_prompts_on_one_image_are_one_decode(self, on_picture: Session) -> None:
        on_picture.predict_all([Target((Box(0, 0, 30, 30),), 1), Target((Box(35, 25, 60, 45),), 2)])
        assert on_picture.runtime.decodes == 1
        (batch,) = on_picture.runtime.batches
        assert batch.boxes.tolist() == [[0, 0, 30, 30], [35, 25, 60, 45]]
        assert batch.image_index.tolist() == [0, 0]

    def test_prompts_of_other_shapes_are_batches_of_their_own(self, on_picture: Session) -> None:
        # SAM attends to every token, so two points and one point cannot share a batch.
        on_picture.predict_all(
            [
                Target((Points([(10, 12)]),), 1),
                Target((Points([(10, 12), (11, 12)]),), 2),
                Target((Points([(45, 35)]),), 3),
                Target((Box(0, 0, 30, 30), Points([(10, 12)])), 4),
                Target((MaskPrompt(LEFT),), 5),
            ]
        )
        assert sorted(len(batch) for batch in on_picture.runtime.batches) == [1, 1, 1, 2]

    def test_the_same_image_again_is_not_encoded_again(self, fake_session: Session) -> None:
        for pixels in (BOTH, np.rot90(BOTH).copy(), BOTH):
            on(fake_session, pixels)
        assert fake_session.runtime.encodes == 2

    def test_another_window_is_another_image(self, fake_session: Session) -> None:
        image = Image((BOTH.astype(np.int16) - 100) * 3, modality="CT")
        fake_session.set_image(image)
        fake_session.set_image(image, intensity="min-max")
        # Both windows show two rectangles in black and white; only a third value makes them differ.
        assert fake_session.runtime.encodes == 1
        image.array[0, 0] = 100
        fake_session.set_image(image)
        fake_session.set_image(image, intensity="min-max")
        assert fake_session.runtime.encodes == 3


class TestMasks:
    @pytest.mark.parametrize(
        "prompts",
        [
            (Box(3, 8, 20, 25),),
            (Points([(10, 12)]),),
            (Points([(10, 12), (45, 35)], [1, 0]),),
            (Scribble(rectangle(SHAPE, 6, 15, 13, 15)),),
            (Scribble(rectangle(SHAPE, 6, 15, 13, 15), rectangle(SHAPE, 41, 31, 50, 31)),),
            (MaskPrompt(disk(SHAPE, centre=(10, 15), radius=12)),),
            (Box(0, 0, 63, 63), Points([(10, 12)])),
            (Box(0, 0, 63, 63), MaskPrompt(disk(SHAPE, centre=(10, 15), radius=12))),
        ],
        ids=["box", "point", "two points", "scribble", "two strokes", "mask", "box and point", "box and mask"],
    )
    def test_every_kind_of_prompt_finds_its_object(self, on_picture: Session, prompts: tuple[Prompt, ...]) -> None:
        found = on_picture.predict(*prompts)
        assert np.array_equal(found.mask, LEFT)
        assert found.labels.dtype == np.uint8
        assert found.predicted_iou == 1

    @pytest.mark.parametrize(
        "body",
        [
            ring(SHAPE, centre=(30, 30), outer=12, inner=6),
            vessel(SHAPE),
            one_voxel(SHAPE, (20, 40)),
            touching_the_edge(SHAPE),
            disk(SHAPE, centre=(32, 32), radius=20),
        ],
        ids=["ring", "vessel", "one pixel", "touching the edge", "disk"],
    )
    def test_the_tight_box_of_a_body_gives_the_body(self, fake_session: Session, body: np.ndarray) -> None:
        found = on(fake_session, picture((body, 255))).predict(Box.around(body))
        assert np.array_equal(found.mask, body)

    def test_a_box_beside_everything_finds_nothing(self, on_picture: Session) -> None:
        found = on_picture.predict(Box(20, 50, 30, 60))
        assert not found.mask.any()
        assert found.labels.shape == SHAPE
        assert (found.objects[0].voxels, found.objects[0].predicted_iou) == (0, 0)

    def test_together_they_get_what_each_gets_alone(self, on_picture: Session) -> None:
        targets = [
            Target((Box(3, 8, 20, 25),), 1),
            Target((Points([(45, 35)]),), 2),
            Target((Box(45, 0, 63, 63),), 3),
            Target((Box(0, 0, 63, 63), Points([(10, 12)])), 4),
            Target((MaskPrompt(RIGHT),), 5),
        ]
        for target in targets:
            alone = on_picture.predict_all([target])
            others = [other for other in targets if other is not target]
            together = on_picture.predict_all([*others, target])  # the last one paints over the others
            assert np.array_equal(together.labels == target.label, alone.mask)
            assert together.objects[-1].predicted_iou == alone.objects[0].predicted_iou

    @pytest.mark.parametrize("shape", [(100, 40), (40, 100), (300, 200), (30, 20), (512, 512)])
    def test_an_image_of_any_size_gets_a_mask_on_its_own_grid(self, fake_session: Session, shape: tuple) -> None:
        body = disk(shape, centre=(shape[1] * 0.45, shape[0] * 0.55), radius=min(shape) / 4)
        found = on(fake_session, picture((body, 255))).predict(Box(0, 0, shape[1] - 1, shape[0] - 1))
        assert found.labels.shape == shape
        # Half a canvas pixel, in image pixels, all along the outline, is the most that the canvas may cost.
        outline, pixel = 2 * math.pi * min(shape) / 4, max(shape) / 64
        assert (found.mask != body).sum() <= 0.5 * outline * max(pixel, 1)

    def test_colour_pictures(self, fake_session: Session) -> None:
        # Light pink on dark blue: channel means (255 + 180 + 200) / 3 = 212 and 120 / 3 = 40.
        pixels = np.full((*SHAPE, 3), (0, 0, 120), dtype=np.uint8)
        pixels[LEFT] = (255, 180, 200)
        fake_session.set_image(Image(pixels, colour=True))
        found = fake_session.predict(Box(0, 0, 63, 63))
        assert np.array_equal(found.mask, LEFT)
        assert found.provenance.modality == "photo"

    def test_colour_volumes(self, fake_session: Session) -> None:
        pixels = np.zeros((3, *SHAPE, 3), dtype=np.uint8)
        pixels[:, LEFT] = (255, 255, 200)
        pixels[0, 0, 0] = 9
        fake_session.set_image(Image(pixels, colour=True), axis="z")
        found = fake_session.predict(Box(0, 0, 63, 63, z=1), z_range=(1, 2))
        assert np.array_equal(found.mask, column((3, *SHAPE), LEFT, 1, 2))


class TestManyObjects:
    corners = tuple((x, y) for y in range(1, 61, 3) for x in range(1, 61, 3))  # 400 squares of 2 x 2

    def targets(self, count: int) -> list[Target]:
        return [Target((Box(x, y, x + 1, y + 1),), label) for label, (x, y) in enumerate(self.corners[:count], start=1)]

    def on_squares(self, session: Session) -> Session:
        pixels = np.zeros(SHAPE, dtype=np.uint8)
        for x, y in self.corners:
            pixels[y : y + 2, x : x + 2] = 255
        return on(session, pixels)

    def test_three_hundred_objects_get_three_hundred_labels(self, fake_session: Session) -> None:
        found = self.on_squares(fake_session).predict_all(self.targets(300))
        assert found.labels.dtype == np.uint16
        assert found.labels.max() == 300
        assert [item.voxels for item in found.objects] == [4] * 300
        assert [found.labels[y, x] for x, y in self.corners[:300]] == list(range(1, 301))
        assert (fake_session.runtime.encodes, fake_session.runtime.decodes) == (1, 1)

    @pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.uint16)])
    def test_labels_are_as_small_as_they_can_be(self, fake_session: Session, count: int, dtype: type) -> None:
        assert self.on_squares(fake_session).predict_all(self.targets(count)).labels.dtype == dtype

    def test_parts_with_one_label_are_one_object(self, on_picture: Session) -> None:
        found = on_picture.predict_all([Target((Box(3, 8, 20, 25),), 7), Target((Box(35, 25, 60, 45),), 7)])
        assert np.array_equal(found.labels == 7, LEFT | RIGHT)
        assert [item.voxels for item in found.objects] == [100, 120]  # each part counts its own


class TestOverlap:
    # White in columns 10..29, grey 200 in columns 30..39. The first box sees white only, so its score is 1; the second
    # sees half white and half 200, so its score is 2 * (1 + 200 / 255) / 2 - 1 = 0.78. Both claim columns 20..29.
    pixels = picture((rectangle(SHAPE, 10, 10, 29, 19), 255), (rectangle(SHAPE, 30, 10, 39, 19), 200))
    first, second = Target((Box(10, 10, 29, 19),), 1), Target((Box(20, 10, 39, 19),), 2)

    @pytest.mark.parametrize(
        ("policy", "reverse", "winner"),
        [
            ("last", False, 2),
            ("last", True, 1),
            ("first", False, 1),
            ("first", True, 2),
            ("score", False, 1),
            ("score", True, 1),
        ],
    )
    def test_who_gets_a_pixel_claimed_twice(
        self, fake_session: Session, policy: str, reverse: bool, winner: int
    ) -> None:
        targets = [self.second, self.first] if reverse else [self.first, self.second]
        found = on(fake_session, self.pixels).predict_all(targets, overlap=policy)
        assert np.unique(found.labels[10:20, 10:20]).tolist() == [1]
        assert np.unique(found.labels[10:20, 20:30]).tolist() == [winner]
        assert np.unique(found.labels[10:20, 30:40]).tolist() == [2]
        scores = {item.label: item.predicted_iou for item in found.objects}
        assert scores[1] == 1
        assert scores[2] == pytest.approx(200 / 255)

    def test_a_voxel_is_counted_for_the_one_who_got_it(self, fake_session: Session) -> None:
        found = on(fake_session, self.pixels).predict_all([self.first, self.second])
        assert [item.voxels for item in found.objects] == [100, 200]

    def test_a_policy_that_does_not_exist_gets_the_list(self, on_picture: Session) -> None:
        with pytest.raises(SettingError, match="there is no overlap policy 'largest'; choose last, first, score"):
            on_picture.predict_all([self.first], overlap="largest")


class TestBadInput:
    @pytest.mark.parametrize(
        ("prompt", "told"),
        [
            (lambda: Box(9, 0, 3, 5), "inverted"),
            (lambda: Box(math.nan, 0, 3, 5), "not finite"),
            (lambda: Box(64, 0, 70, 5), "lies outside the image, which has columns 0..63 and rows 0..63"),
            (lambda: Box(-20, -20, -1, -1), "lies outside"),
            (lambda: Points([(64, 3)]), r"the point \(64, 3\) lies outside the image"),
            (lambda: Points([(3, -1)]), "lies outside"),
            (lambda: Points([(math.inf, 3)]), "not finite"),
            (lambda: Points([]), "at least one point"),
            (lambda: Scribble(empty(SHAPE)), "at least one drawn pixel"),
            (
                lambda: Scribble(np.ones((5, 5), dtype=bool)),
                "the scribble has 5 rows and 5 columns but the slice",
            ),
            (lambda: MaskPrompt(empty(SHAPE)), "at least one pixel inside"),
            (lambda: MaskPrompt(np.ones((5, 5), dtype=bool)), "the mask has 5 rows"),
            (lambda: Box(0, 0, 5, 5, z=1), "this image is a picture, not a volume"),
            (lambda: Points([(0, 0)], z=3), "this image is a picture, not a volume"),
        ],
    )
    def test_a_prompt_that_makes_no_sense_on_a_picture(
        self, on_picture: Session, prompt: Callable[[], Prompt], told: str
    ) -> None:
        with pytest.raises(PromptError, match=told):
            on_picture.predict(prompt())
        assert on_picture.runtime.decodes == 0

    @pytest.mark.parametrize(
        ("z", "z_range", "told"),
        [
            (None, None, r"this is a volume of 6 slices; say which slice .*--slice K, in Python z=K"),
            (6, None, r"slice 6 does not exist; this volume has slices 0..5"),
            (-1, None, "slice -1 does not exist"),
            (2, (0, 6), "slice 6 does not exist"),
            (2, (-1, 3), "slice -1 does not exist"),
            (None, (7, 9), "slice 8 does not exist"),
            (2, (3, 5), r"the prompted slice 2 lies outside the slice range 3..5"),
            (2, (4, 1), "inverted"),
        ],
    )
    def test_a_slice_that_makes_no_sense_in_a_volume(
        self, on_volume: Session, z: int | None, z_range: tuple[int, int] | None, told: str
    ) -> None:
        with pytest.raises(PromptError, match=told):
            on_volume.predict(Box(0, 0, 30, 30, z=z), z_range=z_range)
        assert on_volume.runtime.decodes == 0

    def test_a_range_in_a_picture(self, on_picture: Session) -> None:
        with pytest.raises(PromptError, match="not a volume; leave the slice and the slice range out"):
            on_picture.predict(Box(0, 0, 30, 30), z_range=(0, 3))

    def test_no_prompt_at_all(self, on_picture: Session) -> None:
        with pytest.raises(PromptError, match="at least one prompt"):
            on_picture.predict()
        with pytest.raises(PromptError, match="nothing to segment"):
            on_picture.predict_all([])

    def test_two_boxes_for_one_object(self, on_picture: Session) -> None:
        with pytest.raises(PromptError, match="one object takes one box; make it two objects with the same label"):
            on_picture.predict(Box(0, 0, 9, 9), Box(9, 9, 20, 20))

    def test_no_image_is_set(self, fake_session: Session) -> None:
        with pytest.raises(PromptError, match=r"call set_image\(image\) before predict"):
            fake_session.predict(Box(0, 0, 9, 9))

    def test_a_constant_image(self, fake_session: Session) -> None:
        with pytest.raises(ImageError, match="a constant image shows nothing to segment"):
            on(fake_session, np.full(SHAPE, 7, dtype=np.uint8))

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"modality": "MRI"}, "there is no modality 'MRI'"),
            ({"intensity": "liver"}, "there is no window 'liver'"),
            ({"axis": "w"}, "there is no axis 'w'"),
        ],
    )
    def test_an_option_that_does_not_exist(self, fake_session: Session, options: dict, told: str) -> None:
        with pytest.raises(SettingError, match=told):
            on(fake_session, np.repeat(BOTH[None], 2, axis=0), **options)

    def test_a_picture_has_no_axis(self, fake_session: Session) -> None:
        with pytest.raises(SettingError, match="a picture has one slice, so there is no axis 'z'"):
            on(fake_session, BOTH, axis="z")

    def test_labels_that_do_not_fit(self, on_picture: Session) -> None:
        with pytest.raises(PromptError, match="labels above 65535"):
            on_picture.predict_all([Target((Box(0, 0, 9, 9),), 65536)])

    def test_a_bad_target_among_good_ones_stops_all(self, on_picture: Session) -> None:
        with pytest.raises(PalpateError, match="lies outside"):
            on_picture.predict_all([Target((Box(0, 0, 9, 9),), 1), Target((Box(99, 0, 120, 9),), 2)])
        assert on_picture.runtime.decodes == 0

    @pytest.mark.parametrize(
        "prompt", [Points([(3, 3)]), Scribble(LEFT), MaskPrompt(LEFT)], ids=lambda p: type(p).__name__
    )
    def test_a_kind_that_the_model_does_not_take(self, prompt: Prompt) -> None:
        session = on(Session(FakeRuntime(prompts=PromptSupport(trained=("box",)))), BOTH)
        with pytest.raises(UnsupportedPrompt, match=r"fake does not take a \w+ prompt; it takes box"):
            session.predict(prompt)


class TestVolumes:
    def test_a_volume_of_one_slice_needs_no_slice_number(self, fake_session: Session) -> None:
        on(fake_session, BOTH[None])
        assert fake_session.runtime.encodes == 1
        for found in (
            fake_session.predict(Box(0, 0, 30, 30)),
            fake_session.predict(Box(0, 0, 30, 30, z=0)),
            fake_session.predict(Box(0, 0, 30, 30), z_range=(0, 0)),
            fake_session.predict(Box(0, 0, 30, 30), until_end=True),
        ):
            assert np.array_equal(found.labels, LEFT[None])
            assert found.objects[0].slices == (0, 0)
        with pytest.raises(PromptError, match="slice 1 does not exist"):
            fake_session.predict(Box(0, 0, 30, 30, z=1))

    def test_a_picture_may_be_called_slice_zero(self, on_picture: Session) -> None:
        found = on_picture.predict(Box(0, 0, 30, 30, z=0), z_range=(0, 0))
        assert found.labels.shape == SHAPE
        assert found.objects[0].slices is None

    def test_a_range_without_a_slice_starts_in_its_middle(self, on_volume: Session) -> None:
        found = on_volume.predict(Box(0, 0, 30, 30), z_range=(1, 4))
        assert found.objects[0].targets[0].z == 2
        assert found.objects[0].slices == (1, 4)

    def test_volume_in_millilitres(self, fake_session: Session) -> None:
        fake_session.set_image(Image(np.repeat(BOTH[None], 3, axis=0), np.diag([0.5, 0.5, 4.0, 1.0])))
        found = fake_session.predict(Box(0, 0, 30, 30, z=1), z_range=(0, 2))
        # 3 slices of 100 voxels of 1 cubic millimetre each.
        assert found.objects[0].voxels == 300
        assert found.objects[0].volume_ml == pytest.approx(0.3)

    def test_a_picture_has_no_volume(self, on_picture: Session) -> None:
        assert on_picture.predict(Box(0, 0, 30, 30)).objects[0].volume_ml is None


class TestAnyAxis:
    """The same patient, stored with its axes in another order, gives the same mask in millimetres."""

    affine = np.array([[-0.8, 0, 0, 90], [0, 0.7, 0.6, -120], [0, -0.2, 2.5, -300], [0, 0, 0, 1.0]])
    body = np.stack([disk((64, 48), centre=(20 + z, 30), radius=6 + z) for z in range(7)])
    body[0] = False
    volume = picture((body, 255), (column(body.shape, rectangle((64, 48), 45, 50, 47, 55), 0, 6), 230))

    def stored(self, slices_at: int) -> Image:
        """The volume with its slices along this array axis, and the affine that keeps every voxel in its place."""
        order = [1, 2]  # where each new array axis comes from
        order.insert(slices_at, 0)
        affine = self.affine.copy()
        for new, old in enumerate(order):
            affine[:, 2 - new] = self.affine[:, 2 - old]
        return Image(np.transpose(self.volume, order), affine)

    @staticmethod
    def millimetres(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        places = np.argwhere(mask)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
        return places[np.lexsort(places.round(3).T)]

    @pytest.mark.parametrize("slices_at", [0, 1, 2])
    @pytest.mark.parametrize("named", [True, False])
    def test_it_gives_the_same_mask_in_millimetres(self, slices_at: int, named: bool) -> None:
        image = self.stored(slices_at)
        session = Session(FakeRuntime())
        session.set_image(image, axis="zyx"[slices_at] if named else None)
        found = session.predict(Box(10, 15, 42, 45, z=4), z_range=(0, 6))
        assert found.labels.shape == image.shape
        assert found.provenance.axis == slices_at
        assert np.allclose(
            self.millimetres(found.mask, found.geometry.affine), self.millimetres(self.body, self.affine)
        )

    def test_across_the_slices_a_box_is_in_columns_and_rows_of_the_cut(self, fake_session: Session) -> None:
        # Along x, a cut's columns are y and its rows are z.
        body = np.zeros((20, 30, 40), dtype=bool)
        body[5:9, 12:20, 25:33] = True
        found = on(fake_session, picture((body, 255)), axis="x").predict(Box(12, 5, 19, 8, z=28), z_range=(25, 32))
        # A canvas of 64 for 30 pixels: whole image pixels are kept but for the rounding at the box's corner.
        assert (found.mask & body).sum() >= 0.7 * body.sum()
        assert not (found.mask & ~body).any()


class TestWhatIsToldAboutAResult:
    def test_where_it_comes_from(self, fake_session: Session) -> None:
        image = Image(np.repeat(BOTH[None], 3, axis=0), modality="MR", modality_origin="header")
        fake_session.set_image(image, intensity="min-max", axis="z")
        made = fake_session.predict_all([Target((Box(0, 0, 30, 30, z=1),))], overlap="score", until_end=True).provenance
        assert vars(made) == {
            "model": "fake",
            "weights_hash": "0" * 64,
            "runtime": "fake on paper",
            "modality": "MR",
            "modality_origin": "header",
            "intensity": "minimum..maximum",
            "intensity_origin": "given",
            "axis": 0,
            "overlap": "score",
            "until_end": True,
            "palpate_version": version("palpate"),
            "mode": "manual",
        }

    def test_a_guessed_modality_is_told_as_a_guess(self, fake_session: Session) -> None:
        on(fake_session, BOTH.astype(np.int16) * 8 - 1000)
        made = fake_session.predict(Box(0, 0, 30, 30)).provenance
        assert (made.modality, made.modality_origin) == ("CT", "guessed")
        assert (made.intensity, made.intensity_origin) == (str(WINDOWS["soft-tissue"]), "image")

    def test_a_rule_may_be_given_as_such(self, fake_session: Session) -> None:
        fake_session.set_image(Image(BOTH, modality="CT"), intensity=MinMax())
        assert fake_session.predict(Box(0, 0, 30, 30)).provenance.intensity == str(MinMax())

    def test_a_box_over_the_border_is_cut_and_told(self, on_picture: Session) -> None:
        found = on_picture.predict(Box(-5, 8, 20, 99))
        assert found.notes == ("the box (-5, 8, 20, 99) reached over the border and was cut to (0, 8, 20, 63)",)
        assert found.objects[0].targets[0].prompts == (Box(0, 8, 20, 63),)

    def test_a_kind_that_the_model_never_saw_is_told_once(self, on_picture: Session) -> None:
        found = on_picture.predict_all([Target((Points([(10, 12)]),), 1), Target((Points([(45, 35)]),), 2)])
        (note,) = found.notes
        assert note.startswith("fake was trained with box prompts only; a points prompt works less well")

    def test_nothing_is_told_of_a_plain_box(self, on_picture: Session) -> None:
        assert on_picture.predict(Box(0, 0, 30, 30)).notes == ()

    def test_the_mask_keeps_its_place(self, fake_session: Session) -> None:
        image = Image(BOTH, TestAnyAxis.affine, source=Source(Path("slice.nii.gz"), "nifti"), modality="photo")
        fake_session.set_image(image)
        found = fake_session.predict(Box(0, 0, 30, 30))
        assert np.array_equal(found.geometry.affine, image.affine)
        assert found.geometry.source == image.source

    def test_the_score_of_a_volume_is_the_mean_over_its_slices(self, fake_session: Session) -> None:
        # White on slices 0 and 1, grey 204 = 0.8 * 255 beside white on slice 2: 1, 1 and 2 * 0.8 - 1 = 0.6.
        slices = np.repeat(BOTH[None], 3, axis=0)
        slices[2][LEFT] = 204
        found = on(fake_session, slices, axis="z").predict(Box(0, 0, 30, 30, z=0), z_range=(0, 2))
        assert found.predicted_iou == pytest.approx((1 + 1 + 0.6) / 3)


def test_a_label_map_of_two_organs_by_hand(fake_session: Session) -> None:
    labels = two_organs(SHAPE)
    on(fake_session, picture((labels == 1, 255), (labels == 2, 200)))
    found: Segmentation = fake_session.predict_all(
        [Target((Box(1, 1, 6, 6),), 1, "liver"), Target((Box(7, 9, 14, 13),), 2, "spleen")]
    )
    assert np.array_equal(found.labels, labels)
    assert [item.voxels for item in found.objects] == [16, 18]
    assert found.names == {1: "liver", 2: "spleen"}


def test_the_canvas_is_the_models(fake_session: Session) -> None:
    session = on(Session(FakeRuntime(frame=Frame(size=256))), BOTH)
    session.predict(Box(10, 10, 20, 20))
    assert session.runtime.batches[0].boxes.tolist() == [[40, 40, 80, 80]]


def test_an_image_that_is_refused_does_not_leave_the_last_one_to_answer(fake_session: Session) -> None:
    fake_session.set_image(Image(np.eye(16, dtype=np.uint8)))
    with pytest.raises(ImageError, match="constant"):
        fake_session.set_image(Image(np.zeros((16, 16), dtype=np.uint8)))
    with pytest.raises(PromptError, match="no image is set"):
        fake_session.predict(Box(1, 1, 5, 5))
