"""How a model sees an image: the only place that converts pixels and coordinates between image and canvas.

The *canvas* is the square that a network takes. `Frame.canvas` puts an image on it, `Frame.prompts` puts what a
person drew on it, `Frame.image` brings logits home. NumPy only, so that a runtime without torch sees the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from palpate.errors import PromptError
from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble


@dataclass(frozen=True, eq=False)
class CanvasPrompt:
    """All that is said about one object, in pixels of the canvas; fields as in `PromptBatch`, without `object`."""

    box: Float32[np.ndarray, "4"] | None = None
    points: Float32[np.ndarray, "point 2"] | None = None
    point_labels: Float32[np.ndarray, " point"] | None = None
    mask: Float32[np.ndarray, "1 row column"] | None = None


@dataclass(frozen=True)
class Frame:
    """A square canvas that the image fills from the top left, its longest side resized to `size`, zeros beyond.

    Resampling averages over area (OpenCV's INTER_AREA rule, also when enlarging); intensities are stretched
    to [0, 1] over the resized image and all its channels, before the padding. That is the preprocessing of LiteMedSAM
    (the CVPR 2024 MedSAM-on-Laptop baseline).

    - `size`: side of the canvas in pixels.
    - `mask_size`: side of the mask prompts that the prompt encoder takes, in pixels.
    - `box_rounding`: `truncate` cuts box corners to whole canvas pixels, as LiteMedSAM's inference does, so that
      masks agree with the reference; `none` keeps the exact position.
    """

    size: int = 256
    mask_size: int = 256
    box_rounding: Literal["truncate", "none"] = "truncate"

    def content_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the canvas that an image of `shape` (rows, columns) covers."""
        scale = self.size / max(shape)
        rows, columns = (max(1, math.floor(extent * scale + 0.5)) for extent in shape)
        return rows, columns

    def canvas(
        self, pixels: UInt8[np.ndarray, "row column"] | UInt8[np.ndarray, "row column 3"]
    ) -> Float32[np.ndarray, "3 size size"]:
        """The image as the network takes it. Grey is repeated to three channels."""
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        rows, columns = self.content_shape((pixels.shape[0], pixels.shape[1]))
        resized = resize_area(pixels, rows, columns).astype(np.float32)
        low, high = resized.min(), resized.max()
        resized = (resized - low) / max(float(high - low), 1e-8)
        canvas = np.zeros((3, self.size, self.size), dtype=np.float32)
        canvas[:, :rows, :columns] = np.moveaxis(resized, -1, 0)
        return canvas

    def prompts(self, prompts: Sequence[Prompt], shape: tuple[int, int]) -> CanvasPrompt:
        """One object's prompts on the canvas of an image of `shape` (rows, columns).

        Prompts must lie inside the image; see `Prompt.inside`. Of several boxes or masks there can be only one.
        Scribbles become points that are spread along them; models that take a scribble as a picture do that
        themselves.

        Raises:
            PromptError: no prompt, or two of a kind that allows one.
        """
        box: Float32[np.ndarray, "4"] | None = None
        mask: Float32[np.ndarray, "1 row column"] | None = None
        points: list[tuple[float, float]] = []
        labels: list[int] = []
        for prompt in prompts:
            if isinstance(prompt, Scribble):
                prompt = prompt.points()
            if isinstance(prompt, Box):
                if box is not None:
                    raise PromptError("one object takes one box; make it two objects with the same label")
                box = self._box(prompt, shape)
            elif isinstance(prompt, Points):
                points += self._points(prompt.coordinates, shape)
                labels += prompt.labels
            else:
                if mask is not None:
                    raise PromptError("one object takes one mask prompt; unite the masks before")
                mask = self._mask(prompt, shape)
        if box is None and mask is None and not points:
            raise PromptError("an object needs at least one prompt: a box, a point, a scribble or a mask")
        return CanvasPrompt(
            box=box,
            points=np.array(points, dtype=np.float32) if points else None,
            point_labels=np.array(labels, dtype=np.float32) if points else None,
            mask=mask,
        )

    def box_around(self, mask: Bool[np.ndarray, "row column"], *, margin: int) -> Float32[np.ndarray, "4"] | None:
        """The tight box of a mask of image pixels, on the canvas, grown by `margin` canvas pixels; None if it is empty.

        It carries an object from one slice to the next (LiteMedSAM's 3D inference; margin 3 there).
        """
        rows, columns = self.content_shape(mask.shape)
        inside = resize_area(mask.astype(np.uint8)[..., None], rows, columns)[..., 0] > 0
        if not inside.any():
            return None
        ys, xs = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        corners = np.array([xs[0] - margin, ys[0] - margin, xs[-1] + margin, ys[-1] + margin], dtype=np.float32)
        return corners.clip(0, self.size)

    def target(self, mask: Bool[np.ndarray, "row column"]) -> Float32[np.ndarray, "mask_size mask_size"]:
        """A reference mask of image pixels on the decoder's grid: the share of each cell that the object covers.

        What logits are compared with in training. A share and not a yes or no, so that a border between two cells
        is learned where it is.
        """
        rows, columns = self.content_shape((mask.shape[0], mask.shape[1]))
        rows, columns = (max(1, extent * self.mask_size // self.size) for extent in (rows, columns))
        grid = np.zeros((self.mask_size, self.mask_size), dtype=np.float32)
        grid[:rows, :columns] = resize_area(mask.astype(np.uint8)[..., None] * 255, rows, columns)[..., 0] / 255
        return grid

    def image(
        self, logits: Float[np.ndarray, "size size"], shape: tuple[int, int]
    ) -> Float32[np.ndarray, "row column"]:
        """Logits on the pixels of an image of `shape` (rows, columns), bilinear between pixel centres."""
        rows, columns = self.content_shape(shape)
        side = logits.shape[-1]
        # A decoder may answer on a coarser grid than the canvas (SAM: 256 for 1024); the content shrinks alike.
        rows, columns = max(1, rows * side // self.size), max(1, columns * side // self.size)
        content = logits[:rows, :columns].astype(np.float32, copy=False)
        return _bilinear_weights(rows, shape[0]) @ content @ _bilinear_weights(columns, shape[1]).T

    def _box(self, box: Box, shape: tuple[int, int]) -> Float32[np.ndarray, "4"]:
        corners = np.array([box.x_min, box.y_min, box.x_max, box.y_max], dtype=np.float64)
        if self.box_rounding == "truncate":
            return np.trunc(corners * (self.size / max(shape))).astype(np.float32)
        (x_min, y_min), (x_max, y_max) = self._points(((box.x_min, box.y_min), (box.x_max, box.y_max)), shape)
        return np.array([x_min, y_min, x_max, y_max], dtype=np.float32)

    def _points(self, coordinates: Sequence[tuple[float, float]], shape: tuple[int, int]) -> list[tuple[float, float]]:
        # Edges of the image map to edges of the content, so centres of pixels sit half a pixel inside both.
        rows, columns = self.content_shape(shape)
        y_scale, x_scale = rows / shape[0], columns / shape[1]
        return [((x + 0.5) * x_scale - 0.5, (y + 0.5) * y_scale - 0.5) for x, y in coordinates]

    def _mask(self, prompt: MaskPrompt, shape: tuple[int, int]) -> Float32[np.ndarray, "1 row column"]:
        rows, columns = self.content_shape(shape)
        rows, columns = (
            max(1, rows * self.mask_size // self.size),
            max(1, columns * self.mask_size // self.size),
        )
        coverage = resize_area(prompt.mask.astype(np.uint8)[..., None] * 255, rows, columns)[..., 0] / 255
        canvas = np.full((1, self.mask_size, self.mask_size), -MASK_PROMPT_LOGIT, dtype=np.float32)
        canvas[0, :rows, :columns] = (2 * coverage - 1) * MASK_PROMPT_LOGIT
        return canvas


MASK_PROMPT_LOGIT = 10.0
"""A mask prompt is given as logits: plus this inside, minus this outside, in between where a pixel is half covered."""

LITE_MEDSAM_FRAME = Frame(size=256, mask_size=256, box_rounding="truncate")


def resize_area(
    pixels: UInt8[np.ndarray, "row column channel"], rows: int, columns: int
) -> UInt8[np.ndarray, "rows columns channel"]:
    """Resample by area, rounded to whole values, to the last bit as OpenCV's INTER_AREA does.

    Shrinking averages over the covered area; if either side grows, both sides are interpolated by OpenCV's rule for
    that case (nearest in the interior of a source pixel, linear across its border).

    To the last bit, because one grey level is enough to move the masks of small objects by whole pixels.
    """
    height, width, _ = pixels.shape
    if (rows, columns) == (height, width):
        return pixels
    if rows > height or columns > width:
        return _enlarge_area(pixels, rows, columns)
    if height % rows == 0 and width % columns == 0:
        return _shrink_whole(pixels, height // rows, width // columns)
    # In single precision, columns before rows and tap after tap, which is the order of OpenCV's roundings.
    wide = _weighted_sum(np.moveaxis(pixels, 1, 0).astype(np.float32), *_shrinking_taps(width, columns))
    tall = _weighted_sum(np.moveaxis(wide, 1, 0), *_shrinking_taps(height, rows))
    return np.rint(tall).clip(0, 255).astype(np.uint8)


def _shrink_whole(
    pixels: UInt8[np.ndarray, "row column channel"], tall: int, wide: int
) -> UInt8[np.ndarray, "rows columns channel"]:
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // tall, tall, width // wide, wide, channels).astype(np.int32)
    total = blocks.sum(axis=(1, 3))
    if (tall, wide) == (2, 2):
        return ((total + 2) >> 2).astype(np.uint8)  # halves go up here, to the even number elsewhere
    return np.rint(total.astype(np.float32) * np.float32(1 / (tall * wide))).astype(np.uint8)


def _weighted_sum(
    source: Float32[np.ndarray, "source *rest"], taps: np.ndarray, weights: np.ndarray
) -> Float32[np.ndarray, "target *rest"]:
    total = np.zeros((taps.shape[1], *source.shape[1:]), dtype=np.float32)
    for tap, weight in zip(taps, weights, strict=True):
        total += weight.reshape(-1, *(1 for _ in source.shape[1:])) * source[tap]
    return total


@lru_cache(maxsize=32)
def _shrinking_taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """For each target pixel the source pixels it covers and their shares, as arrays of (tap, target)."""
    scale = size_in / size_out
    covered: list[list[tuple[int, float]]] = []
    for target in range(size_out):
        start = target * scale
        end, cell = start + scale, min(scale, size_in - start)
        last = min(math.floor(end), size_in - 1)
        first = min(math.ceil(start), last)
        taps = [(first - 1, (first - start) / cell)] if first - start > _SLIVER else []
        taps += [(source, 1 / cell) for source in range(first, last)]
        if end - last > _SLIVER:
            taps.append((last, min(end - last, 1, cell) / cell))
        covered.append(taps)
    most = max(map(len, covered))
    padded = [taps + [(0, 0.0)] * (most - len(taps)) for taps in covered]
    sources = np.array([[source for source, _ in taps] for taps in padded]).T
    shares = np.array([[share for _, share in taps] for taps in padded], dtype=np.float32).T
    return sources, shares


_SLIVER = 1e-3
"""OpenCV ignores pixels that a target pixel covers less than this share of."""


def _enlarge_area(
    pixels: UInt8[np.ndarray, "row column channel"], rows: int, columns: int
) -> UInt8[np.ndarray, "rows columns channel"]:
    # In OpenCV's fixed point: weights of 11 bits, sums cut to 4 + 16 bits.
    left, right, left_weight, right_weight = _enlarging_taps(pixels.shape[1], columns)
    source = pixels.astype(np.int32)
    wide = source[:, left] * left_weight[:, None] + source[:, right] * right_weight[:, None]
    above, below, above_weight, below_weight = _enlarging_taps(pixels.shape[0], rows)
    upper = (above_weight[:, None, None] * (wide[above] >> 4)) >> 16
    lower = (below_weight[:, None, None] * (wide[below] >> 4)) >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


@lru_cache(maxsize=32)
def _enlarging_taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each target pixel the two source pixels it lies on, and their weights in 1/2048."""
    target = np.arange(size_out)
    # OpenCV's own roundings, which decide whole pixels where the edges of two pixels meet (246 -> 256).
    magnification = size_out / size_in
    left = np.floor(target * (1 / magnification)).astype(int)
    share = ((target + 1) - (left + 1) * magnification).astype(np.float32)
    share = np.where(share <= 0, 0, share - np.floor(share))
    share = np.where(left >= size_in - 1, 0, share).astype(np.float32)
    left = np.minimum(left, size_in - 1)
    weights = [np.rint(part * 2048).astype(np.int32) for part in (1 - share, share)]
    return left, np.minimum(left + 1, size_in - 1), weights[0], weights[1]


@lru_cache(maxsize=32)
def _bilinear_weights(size_in: int, size_out: int) -> Float32[np.ndarray, "size_out size_in"]:
    position = ((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5).clip(0, size_in - 1)
    left = np.floor(position).astype(int)
    share = (position - left).astype(np.float32)
    weights = np.zeros((size_out, size_in), dtype=np.float32)
    rows = np.arange(size_out)
    weights[rows, left] = 1 - share
    weights[rows, np.minimum(left + 1, size_in - 1)] += share
    return weights
