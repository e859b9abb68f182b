"""The frames of MedSAM, SAM and SAM 2, against the libraries that their own preprocessing calls."""

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from skimage import transform
from torch.nn.functional import interpolate

from palpate.models.frame import MEDSAM2_FRAME, MEDSAM_FRAME, SAM2_FRAME, SAM_FRAME, Frame
from palpate.prompts.types import Box, MaskPrompt, Points
from phantoms import disk

SHAPES = ((300, 480), (1024, 1024), (1500, 1100), (64, 33))
FRAMES = (MEDSAM_FRAME, SAM_FRAME, SAM2_FRAME, MEDSAM2_FRAME)


def colourful(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Picture.fromarray(blocks).resize(shape[::-1], Picture.Resampling.BICUBIC))


def middle(weights: np.ndarray) -> tuple[float, float]:
    """The mean row and column."""
    rows, columns = np.indices(weights.shape)
    return float((rows * weights).sum() / weights.sum()), float((columns * weights).sum() / weights.sum())


class TestTheCanvas:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_medsam_sees_what_scikit_image_resizes(self, shape: tuple[int, int], rng: np.random.Generator) -> None:
        pixels = colourful(shape, rng)
        resized = transform.resize(pixels, (1024, 1024), order=3, preserve_range=True, anti_aliasing=True)
        resized = resized.astype(np.uint8).astype(np.float32)
        expected = (resized - resized.min()) / max(float(resized.max() - resized.min()), 1e-8)
        difference = np.abs(MEDSAM_FRAME.canvas(pixels) - np.moveaxis(expected, -1, 0))
        # A value that lands on a whole number may be cut to the one below; one grey level, and rarely.
        assert difference.max() < 1.01 / 255 * 255 / float(resized.max() - resized.min())
        assert (difference > 1e-6).mean() < 1e-3

    @pytest.mark.parametrize("shape", SHAPES)
    def test_sam_sees_the_longest_side_in_imagenets_colours_and_zeros_beyond(
        self, shape: tuple[int, int], rng: np.random.Generator
    ) -> None:
        pixels = colourful(shape, rng)
        scale = 1024 / max(shape)
        rows, columns = (int(extent * scale + 0.5) for extent in shape)
        resized = np.asarray(Picture.fromarray(pixels).resize((columns, rows), Picture.Resampling.BILINEAR))
        # The constants as segment-anything has them, in grey levels.
        expected = (resized - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
        canvas = SAM_FRAME.canvas(pixels)
        assert np.allclose(canvas[:, :rows, :columns], np.moveaxis(expected, -1, 0), atol=1e-5)
        assert not canvas[:, rows:].any()
        assert not canvas[:, :, columns:].any()

    @pytest.mark.parametrize("frame", [SAM2_FRAME, MEDSAM2_FRAME])
    def test_sam2_sees_a_stretched_image(self, frame: Frame, rng: np.random.Generator) -> None:
        pixels = colourful((700, 1300), rng)
        floats = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
        resized = interpolate(floats, (frame.size, frame.size), mode="bilinear", antialias=True)[0].numpy()
        expected = (resized - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([0.229, 0.224, 0.225])[
            :, None, None
        ]
        # The reference resizes float values, Pillow whole ones, in two rounds: a grey level at the most.
        assert np.abs(frame.canvas(pixels) - expected).max() < 1.01 / 255 / 0.224

    @pytest.mark.parametrize("frame", FRAMES)
    def test_grey_is_the_same_as_three_equal_colours(self, frame: Frame, rng: np.random.Generator) -> None:
        grey = colourful((90, 120), rng)[..., 0]
        assert np.array_equal(frame.canvas(grey), frame.canvas(np.repeat(grey[..., None], 3, axis=-1)))


class TestPrompts:
    def test_boxes_are_scaled_and_no_more(self) -> None:
        box = Box(10, 20, 99, 199)
        stretched = MEDSAM_FRAME.prompts([box], (200, 100)).box
        assert stretched is not None
        assert np.allclose(stretched, [10 * 10.24, 20 * 5.12, 99 * 10.24, 199 * 5.12])
        whole = SAM_FRAME.prompts([box], (200, 100)).box
        assert whole is not None
        assert np.allclose(whole, np.array([10, 20, 99, 199]) * 5.12)

    def test_points_are_scaled_and_no_more(self) -> None:
        points = SAM2_FRAME.prompts([Points([(50, 60)])], (200, 100)).points
        assert points is not None
        assert np.allclose(points, [[50 * 10.24, 60 * 5.12]])

    @pytest.mark.parametrize(("frame", "shape"), list(product(FRAMES, SHAPES)))
    def test_a_mask_lies_where_its_image_lies(self, frame: Frame, shape: tuple[int, int]) -> None:
        """The mask of the bright object is, on the grid of masks, where the canvas is bright."""
        inside = disk(shape, centre=(shape[1] // 3 + 4, shape[0] // 2), radius=min(shape) // 4)
        prompt = frame.prompts([MaskPrompt(inside)], shape).mask
        assert prompt is not None
        canvas = frame.canvas(inside.astype(np.uint8) * 255)[0]
        cells = canvas.reshape(frame.mask_size, 4, frame.mask_size, 4).mean(axis=(1, 3))
        low, high = canvas.min(), canvas.max()
        share = ((cells - low) / (high - low)).clip(0, 1)
        rows, columns = (extent // 4 for extent in frame.content_shape(shape))
        coverage = (prompt[0] + 10) / 20
        for mine, seen in zip(middle(coverage), middle(share[:rows, :columns]), strict=True):
            assert abs(mine - seen) < 0.1
        # Two ways of resampling differ at the border of the object only.
        assert np.abs(coverage - share)[:rows, :columns].mean() < 0.02
        assert np.allclose(frame.target(inside), coverage, atol=1e-6)


class TestTheWayHome:
    @pytest.mark.parametrize("shape", [(683, 1024), (100, 341), (1024, 1024), (1500, 1100)])
    def test_sams_logits_pass_through_the_canvas(self, shape: tuple[int, int], rng: np.random.Generator) -> None:
        """Upsampled to 1024, the padding cut off, then to the image: segment-anything's `postprocess_masks`."""
        logits = rng.normal(size=(256, 256)).astype(np.float32)
        rows, columns = SAM_FRAME.content_shape(shape)
        large = interpolate(torch.from_numpy(logits)[None, None], (1024, 1024), mode="bilinear")
        expected = interpolate(large[..., :rows, :columns], shape, mode="bilinear")[0, 0].numpy()
        assert np.allclose(SAM_FRAME.image(logits, shape), expected, atol=1e-4)

    def test_medsam_interpolates_probabilities(self, rng: np.random.Generator) -> None:
        logits = 5 * rng.normal(size=(256, 256)).astype(np.float32)
        probabilities = torch.from_numpy(logits)[None, None].sigmoid()
        expected = interpolate(probabilities, (300, 480), mode="bilinear")[0, 0].numpy()
        found = MEDSAM_FRAME.image(logits, (300, 480))
        sure = np.abs(expected - 0.5) > 1e-4
        assert np.array_equal(found[sure] > 0, expected[sure] > 0.5)
        assert np.allclose(1 / (1 + np.exp(-found)), expected, atol=1e-4)

    @pytest.mark.parametrize(("frame", "shape"), list(product(FRAMES, SHAPES)))
    def test_a_mask_comes_home_where_it_was(self, frame: Frame, shape: tuple[int, int]) -> None:
        inside = disk(shape, centre=(shape[1] // 2, shape[0] // 2), radius=min(shape) // 4)
        prompt = frame.prompts([MaskPrompt(inside)], shape).mask
        assert prompt is not None
        home = frame.image(prompt[0], shape) > 0
        cell = max(1, max(shape) / frame.mask_size)
        for mine, drawn in zip(middle(home), middle(inside), strict=True):
            assert abs(mine - drawn) < 0.1 * cell
        assert abs(home.sum() / inside.sum() - 1) < 0.1
