import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from palpate.errors import PromptError
from palpate.models.frame import LITE_MEDSAM_FRAME, MASK_PROMPT_LOGIT, Frame, resize_area
from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble
from phantoms import disk, empty, one_voxel, rectangle, vessel

EXACT = Frame(box_rounding="none")

sides = st.one_of(st.integers(1, 900), st.sampled_from((128, 255, 256, 257, 512, 1024)))
shapes = st.tuples(sides, sides)


@st.composite
def points_on_images(draw: st.DrawFn) -> tuple[tuple[int, int], float, float]:
    """A shape (rows, columns) and a point x, y on it."""
    rows, columns = draw(shapes)
    return (rows, columns), draw(st.floats(0, columns - 1)), draw(st.floats(0, rows - 1))


def back(frame: Frame, shape: tuple[int, int], x: float, y: float) -> tuple[float, float]:
    """A place on the canvas in image pixels: the edges of the content are the edges of the image."""
    rows, columns = frame.content_shape(shape)
    return (x + 0.5) * shape[1] / columns - 0.5, (y + 0.5) * shape[0] / rows - 0.5


def ramp(rows: int, columns: int) -> np.ndarray:
    y, x = np.indices((rows, columns))
    return (x + 3 * y).astype(np.uint8)


class TestTheContent:
    @given(shapes)
    def test_the_longest_side_fills_the_canvas_and_the_other_is_rounded_half_up(self, shape: tuple[int, int]) -> None:
        rows, columns = LITE_MEDSAM_FRAME.content_shape(shape)
        assert max(rows, columns) == 256
        exact = min(shape) * 256 / max(shape)
        assert min(rows, columns) == max(1, np.floor(exact + 0.5))

    def test_known_sizes(self) -> None:
        assert LITE_MEDSAM_FRAME.content_shape((512, 512)) == (256, 256)
        assert LITE_MEDSAM_FRAME.content_shape((480, 640)) == (192, 256)
        assert LITE_MEDSAM_FRAME.content_shape((1024, 10)) == (256, 3)  # 2.5 goes up
        assert LITE_MEDSAM_FRAME.content_shape((10, 5)) == (256, 128)
        assert LITE_MEDSAM_FRAME.content_shape((1000, 1)) == (256, 1)  # a quarter of a pixel is still one

    def test_padding_is_zero_and_lies_right_or_below(self) -> None:
        wide, tall = LITE_MEDSAM_FRAME.canvas(ramp(10, 20)), LITE_MEDSAM_FRAME.canvas(ramp(20, 10))
        assert wide[:, :128].max() == 1
        assert not wide[:, 128:].any()
        assert tall[:, :, :128].max() == 1
        assert not tall[:, :, 128:].any()

    def test_intensities_are_stretched_before_the_padding(self) -> None:
        # Were it after, the padding's zero would be the minimum and the darkest pixel 100 / 200.
        canvas = Frame(size=4).canvas(np.array([[100, 150, 200, 100], [200, 200, 200, 200]], dtype=np.uint8))
        assert np.array_equal(canvas[0], [[0, 0.5, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])

    def test_all_channels_are_stretched_together(self) -> None:
        pixels = np.array([[[0, 50, 100], [10, 60, 200]]], dtype=np.uint8)
        canvas = Frame(size=2).canvas(pixels)
        assert np.allclose(canvas[:, 0], np.array([[0, 10], [50, 60], [100, 200]]) / 200)

    def test_grey_is_repeated_to_three_channels(self) -> None:
        canvas = LITE_MEDSAM_FRAME.canvas(ramp(30, 40))
        assert canvas.shape == (3, 256, 256)
        assert canvas.dtype == np.float32
        assert np.array_equal(canvas[0], canvas[1])
        assert np.array_equal(canvas[0], canvas[2])

    def test_an_image_of_one_value_is_black(self) -> None:
        assert not LITE_MEDSAM_FRAME.canvas(np.full((5, 7), 93, dtype=np.uint8)).any()

    def test_a_view_of_a_volume_gives_what_its_copy_gives(self) -> None:
        volume = np.random.default_rng(0).integers(0, 256, (6, 40, 50), dtype=np.uint8)
        across = np.moveaxis(volume, 2, 0)[7]
        assert np.array_equal(LITE_MEDSAM_FRAME.canvas(across), LITE_MEDSAM_FRAME.canvas(across.copy()))


class TestAreaResampling:
    @staticmethod
    def opencv(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
        resized = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
        return resized.reshape(rows, columns, pixels.shape[2])

    @given(shapes, st.sampled_from((1, 3)), st.booleans(), st.integers(0, 99))
    def test_it_is_opencvs_to_the_last_bit(
        self, shape: tuple[int, int], channels: int, smooth: bool, seed: int
    ) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (*shape, channels), dtype=np.uint8)
        if smooth:
            pixels = cv2.GaussianBlur(pixels, (0, 0), 3).reshape(pixels.shape)
        rows, columns = LITE_MEDSAM_FRAME.content_shape(shape)
        assert np.array_equal(resize_area(pixels, rows, columns), self.opencv(pixels, rows, columns))

    @pytest.mark.parametrize("shape", [(512, 512), (512, 300), (22, 512), (1024, 1024), (1024, 400), (768, 768)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_it_is_opencvs_exactly_when_shrinking_by_a_whole_number(
        self, shape: tuple[int, int], channels: int, rng: np.random.Generator
    ) -> None:
        pixels = rng.integers(0, 256, (*shape, channels), dtype=np.uint8)
        rows, columns = LITE_MEDSAM_FRAME.content_shape(shape)
        assert np.array_equal(resize_area(pixels, rows, columns), self.opencv(pixels, rows, columns))

    def test_halves_go_up_when_halving(self) -> None:
        # Means of 0.5, 1.5 and 2.5; rounding to even would give 0, 2, 2.
        pixels = np.array([[0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 3, 3]], dtype=np.uint8)[..., None]
        assert resize_area(pixels, 1, 3)[..., 0].tolist() == [[1, 2, 3]]

    def test_enlarging_meets_the_edges_of_pixels_where_opencv_meets_them(self, rng: np.random.Generator) -> None:
        # 256 / 246 is not a binary fraction, and half of 246 lies on half of 256 exactly.
        pixels = rng.integers(0, 256, (246, 196, 1), dtype=np.uint8)
        assert np.array_equal(resize_area(pixels, 256, 204), self.opencv(pixels, 256, 204))

    def test_a_mean_over_uneven_shares(self) -> None:
        # Three pixels on two: each takes one whole and one half. (2 * 0 + 30) / 3 and (30 + 2 * 90) / 3.
        assert resize_area(np.array([[[0], [30], [90]]], dtype=np.uint8), 1, 2)[0, :, 0].tolist() == [10, 70]

    def test_the_same_size_changes_nothing(self, rng: np.random.Generator) -> None:
        pixels = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        assert np.array_equal(resize_area(pixels, 9, 7), pixels)


class TestPrompts:
    @given(points_on_images())
    def test_a_point_comes_home(self, case: tuple[tuple[int, int], float, float]) -> None:
        shape, x, y = case
        points = LITE_MEDSAM_FRAME.prompts([Points([(x, y)])], shape).points
        assert points is not None
        home = back(LITE_MEDSAM_FRAME, shape, *points[0].astype(float))
        assert np.allclose(home, (x, y), atol=1e-3 + 1e-6 * max(shape))

    @given(points_on_images())
    def test_an_exact_box_comes_home(self, case: tuple[tuple[int, int], float, float]) -> None:
        shape, x, y = case
        box = EXACT.prompts([Box(0, 0, x, y)], shape).box
        assert box is not None
        assert np.allclose(back(EXACT, shape, *box[:2].astype(float)), (0, 0), atol=1e-3)
        assert np.allclose(back(EXACT, shape, *box[2:].astype(float)), (x, y), atol=1e-3 + 1e-6 * max(shape))

    @given(points_on_images())
    def test_a_truncated_box_stays_within_half_a_pixel_of_each_grid(
        self, case: tuple[tuple[int, int], float, float]
    ) -> None:
        # Truncation moves a corner by less than one canvas pixel, to the left; leaving out the pixel centres moves it
        # by half an image pixel to the left and half a canvas pixel to the right. The short side's own rounding (at
        # most half a canvas pixel over its whole length) comes on top.
        shape, x, y = case
        box = LITE_MEDSAM_FRAME.prompts([Box(0, 0, x, y)], shape).box
        exact = EXACT.prompts([Box(0, 0, x, y)], shape).box
        assert box is not None
        assert exact is not None
        scale = 256 / max(shape)
        assert (np.abs(box - exact) <= 0.5 * scale + 0.5 + 0.5 + 1e-4).all()

    @given(st.integers(2, 900), st.data())
    def test_the_long_side_of_a_truncated_box_is_off_by_half_a_pixel_of_each_grid(
        self, side: int, data: st.DataObject
    ) -> None:
        x = data.draw(st.integers(0, side - 1))
        box = LITE_MEDSAM_FRAME.prompts([Box(0, 0, x, 0)], (1, side)).box
        assert box is not None
        centre = (x + 0.5) * 256 / side - 0.5
        assert abs(box[2] - centre) <= 0.5 + 0.5 * 256 / side

    def test_lite_medsams_corners_are_cut_to_whole_canvas_pixels(self) -> None:
        # int(c * 256 / 640): 101 -> 40.4, 33 -> 13.2, 299 -> 119.6, 479 -> 191.6.
        box = LITE_MEDSAM_FRAME.prompts([Box(101, 33, 299, 479)], (480, 640)).box
        assert box is not None
        assert box.tolist() == [40, 13, 119, 191]

    @given(points_on_images())
    def test_truncation_is_the_reference_formula(self, case: tuple[tuple[int, int], float, float]) -> None:
        (rows, columns), x, y = case
        shape = (rows, columns)
        box = LITE_MEDSAM_FRAME.prompts([Box(0, 0, int(x), int(y))], shape).box
        assert box is not None
        assert box.tolist() == [0, 0, int(int(x) * (256 / max(shape))), int(int(y) * (256 / max(shape)))]

    def test_every_point_keeps_its_mark(self) -> None:
        prompts = [Points([(0, 0), (3, 1)], [1, 0]), Points([(2, 2)])]
        canvas = Frame(size=8).prompts(prompts, (4, 4))
        # Pixel centres of a 4 x 4 image on an 8 x 8 canvas: (x + 0.5) * 2 - 0.5.
        assert canvas.points is not None
        assert canvas.points.tolist() == [[0.5, 0.5], [6.5, 2.5], [4.5, 4.5]]
        assert canvas.point_labels is not None
        assert canvas.point_labels.tolist() == [1, 0, 1]
        assert canvas.box is None
        assert canvas.mask is None

    def test_a_scribble_becomes_points_that_lie_on_it(self) -> None:
        positive, negative = rectangle((64, 64), 5, 10, 40, 10), rectangle((64, 64), 5, 30, 5, 30)
        canvas = Frame(size=64).prompts([Scribble(positive, negative)], (64, 64))
        assert canvas.points is not None
        assert canvas.point_labels is not None
        assert canvas.point_labels.tolist() == [1] * 8 + [0]
        for (x, y), mark in zip(canvas.points.astype(int), canvas.point_labels, strict=True):
            assert (positive if mark else negative)[y, x]

    def test_a_mask_prompt_is_logits_that_say_how_much_of_a_pixel_is_covered(self) -> None:
        # 4 x 8 pixels on a canvas of 4: two image pixels a canvas pixel, and two rows of padding.
        mask = rectangle((4, 8), 0, 0, 2, 1)
        canvas = Frame(size=4, mask_size=4).prompts([MaskPrompt(mask)], (4, 8))
        assert canvas.mask is not None
        half = 128 / 255 * 2 - 1  # a half is 127.5 grey levels of 255
        wanted = np.array([[1, half, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1]])
        assert np.allclose(canvas.mask[0], wanted * MASK_PROMPT_LOGIT, atol=1e-5)

    def test_a_mask_prompt_has_the_prompt_encoders_size(self) -> None:
        canvas = Frame(size=1024, mask_size=256).prompts([MaskPrompt(rectangle((50, 100), 0, 0, 99, 49))], (50, 100))
        assert canvas.mask is not None
        assert canvas.mask.shape == (1, 256, 256)
        assert (canvas.mask[0, :128] == MASK_PROMPT_LOGIT).all()
        assert (canvas.mask[0, 128:] == -MASK_PROMPT_LOGIT).all()

    def test_a_mask_prompt_comes_home_as_it_went(self) -> None:
        mask = disk((300, 200), centre=(80, 190), radius=40)
        logits = LITE_MEDSAM_FRAME.prompts([MaskPrompt(mask)], mask.shape).mask
        assert logits is not None
        home = LITE_MEDSAM_FRAME.image(logits[0], mask.shape) > 0
        # The outline is 2 * pi * 40 = 251 pixels long; at most every fourth of its pixels may change sides.
        assert (home != mask).sum() < 63

    @pytest.mark.parametrize(
        ("prompts", "told"),
        [
            ([], "at least one prompt"),
            ([Box(0, 0, 1, 1), Box(2, 2, 3, 3)], "one object takes one box"),
            ([MaskPrompt(np.eye(4, dtype=bool))] * 2, "unite the masks"),
        ],
    )
    def test_what_one_object_cannot_take(self, prompts: list[Prompt], told: str) -> None:
        with pytest.raises(PromptError, match=told):
            LITE_MEDSAM_FRAME.prompts(prompts, (4, 4))


class TestBoxAround:
    def test_it_grows_by_the_margin(self) -> None:
        box = LITE_MEDSAM_FRAME.box_around(rectangle((256, 256), 100, 50, 120, 90), margin=3)
        assert box is not None
        assert box.tolist() == [97, 47, 123, 93]

    def test_it_is_measured_on_the_canvas(self) -> None:
        # 512 pixels on 256: columns 100..121 become 50..60.
        box = LITE_MEDSAM_FRAME.box_around(rectangle((512, 512), 100, 100, 121, 101), margin=3)
        assert box is not None
        assert box.tolist() == [47, 47, 63, 53]

    def test_it_is_clipped_to_0_and_256(self) -> None:
        box = LITE_MEDSAM_FRAME.box_around(np.ones((256, 256), dtype=bool), margin=3)
        assert box is not None
        assert box.tolist() == [0, 0, 256, 256]

    def test_one_pixel_has_a_box(self) -> None:
        box = LITE_MEDSAM_FRAME.box_around(one_voxel((256, 256), (7, 9)), margin=0)
        assert box is not None
        assert box.tolist() == [9, 7, 9, 7]

    def test_an_empty_mask_has_none(self) -> None:
        assert LITE_MEDSAM_FRAME.box_around(empty((40, 30)), margin=3) is None

    def test_a_mask_thinner_than_half_a_canvas_pixel_has_none(self) -> None:
        # One of sixteen image pixels rounds to nothing, as in the reference.
        assert LITE_MEDSAM_FRAME.box_around(one_voxel((1024, 1024), (500, 500)), margin=3) is None

    def test_a_thin_vessel_keeps_its_extent(self) -> None:
        box = LITE_MEDSAM_FRAME.box_around(vessel((256, 256)), margin=0)
        assert box is not None
        assert box.tolist() == [0, 0, 255, 255]


class TestLogitsComeHome:
    @given(shapes, st.integers(0, 99))
    def test_it_is_torchs_bilinear_interpolation(self, shape: tuple[int, int], seed: int) -> None:
        logits = np.random.default_rng(seed).normal(size=(256, 256)).astype(np.float32)
        rows, columns = LITE_MEDSAM_FRAME.content_shape(shape)
        # In double precision, because torch's positions in single precision are off by some 1e-5 of a pixel.
        content = torch.from_numpy(logits)[None, None, :rows, :columns].double()
        wanted = torch.nn.functional.interpolate(content, shape, mode="bilinear", align_corners=False)
        assert np.allclose(LITE_MEDSAM_FRAME.image(logits, shape), wanted[0, 0].numpy(), atol=1e-5)

    @given(
        st.one_of(
            st.tuples(st.integers(60, 900), st.integers(60, 900)),
            st.sampled_from(((60, 1400), (1400, 60), (64, 64), (90, 100), (256, 256), (1000, 1000))),
        ),
        st.floats(0.25, 0.75),
        st.floats(0.25, 0.75),
    )
    def test_a_disc_on_the_canvas_comes_home_to_its_place(
        self, shape: tuple[int, int], across: float, down: float
    ) -> None:
        rows, columns = LITE_MEDSAM_FRAME.content_shape(shape)
        centre = (across * (columns - 1), down * (rows - 1))
        radius = min(rows, columns) / 5
        y, x = np.indices((256, 256), dtype=np.float32)
        logits = (radius - np.hypot(x - centre[0], y - centre[1])).astype(np.float32)
        ys, xs = np.nonzero(LITE_MEDSAM_FRAME.image(logits, shape) > 0)
        wanted = back(LITE_MEDSAM_FRAME, shape, *centre)
        assert abs(xs.mean() - wanted[0]) < 0.5
        assert abs(ys.mean() - wanted[1]) < 0.5

    @given(
        st.one_of(
            st.tuples(st.integers(40, 600), st.integers(40, 600)),
            st.sampled_from(((40, 900), (900, 40), (64, 64), (256, 256))),
        ),
        st.floats(0.3, 0.7),
        st.floats(0.3, 0.7),
    )
    def test_a_bright_disc_travels_to_the_canvas_and_back(
        self, shape: tuple[int, int], across: float, down: float
    ) -> None:
        centre = (across * (shape[1] - 1), down * (shape[0] - 1))
        body = disk(shape, centre=centre, radius=min(shape) / 4)
        canvas = LITE_MEDSAM_FRAME.canvas(body.astype(np.uint8) * 255)[0]
        home = LITE_MEDSAM_FRAME.image(canvas - 0.5, shape) > 0
        for found, true in zip(np.nonzero(home), np.nonzero(body), strict=True):
            # A canvas pixel is up to max(shape) / 256 image pixels wide; half of one is the best that can be had.
            assert abs(found.mean() - true.mean()) < 0.5 * max(1, max(shape) / 256)

    def test_a_decoder_may_answer_on_a_coarser_grid(self) -> None:
        # SAM: a canvas of 1024, logits of 256. The left half is inside.
        logits = np.full((256, 256), -1, dtype=np.float32)
        logits[:, :128] = 1
        home = Frame(size=1024).image(logits, (100, 200)) > 0
        assert home[:, :100].all()
        assert not home[:, 100:].any()

    def test_padding_never_leaks_in(self) -> None:
        logits = np.full((256, 256), 1e6, dtype=np.float32)
        rows, columns = LITE_MEDSAM_FRAME.content_shape((30, 50))
        logits[:rows, :columns] = -1
        assert np.allclose(LITE_MEDSAM_FRAME.image(logits, (30, 50)), -1)


class TestTargets:
    """What logits are compared with in training."""

    @given(shapes, st.floats(0.2, 0.8), st.floats(0.2, 0.8), st.sampled_from([256, 64]))
    def test_it_covers_as_much_of_the_grid_as_the_object_of_the_image(
        self, shape: tuple[int, int], across: float, down: float, mask_size: int
    ) -> None:
        cell = max(1, max(shape) / mask_size)
        assume(min(shape) / 4 >= cell)  # what lies within a cell may come home elsewhere in it, or not at all
        frame = Frame(size=256, mask_size=mask_size)
        mask = disk(shape, centre=(across * (shape[1] - 1), down * (shape[0] - 1)), radius=min(shape) / 4)
        home = frame.image(frame.target(mask) - 0.5, shape) > 0
        for found, true in zip(np.nonzero(home), np.nonzero(mask), strict=True):
            # Half a pixel of the coarser of the two grids.
            assert abs(found.mean() - true.mean()) < 0.5 * cell

    def test_a_half_covered_cell_is_a_half(self) -> None:
        # 8 x 8 pixels on 4 x 4 cells; the object ends in the middle of the second column of cells.
        target = Frame(size=4, mask_size=4).target(rectangle((8, 8), 0, 0, 2, 7))
        assert np.allclose(target[:, :3], [[1, 0.5, 0]] * 4, atol=1 / 255)

    def test_of_nothing_it_is_nothing_and_of_everything_the_content(self) -> None:
        assert not LITE_MEDSAM_FRAME.target(empty((30, 50))).any()
        assert LITE_MEDSAM_FRAME.target(np.ones((128, 256), dtype=bool)).sum() == 128 * 256
