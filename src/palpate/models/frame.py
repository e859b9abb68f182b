"""How a model sees an image: the only place that converts pixels and coordinates between image and canvas.

The *canvas* is the square that a network takes. `Frame.canvas` puts an image on it, `Frame.prompts` puts what a
person drew on it, `Frame.image` brings logits home. NumPy only, so that a runtime without torch sees the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image as Picture

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
    """A square canvas, how an image is put on it, and how prompts and masks travel.

    The default is LiteMedSAM's (the CVPR 2024 MedSAM-on-Laptop baseline): the image fills the canvas from the top left,
    its longest side resized to `size`, zeros beyond; intensities are stretched to [0, 1] over the resized image and
    all its channels, before the padding.

    - `size`: side of the canvas in pixels.
    - `mask_size`: side of the masks that the prompt encoder takes and that training compares with, in pixels.
    - `box_rounding`: `truncate` cuts box corners to whole canvas pixels, as LiteMedSAM's inference does, so that
      masks agree with the reference; `none` keeps the exact position.
    - `fit`: `longest-side` keeps the shape of the image; `stretch` fills the whole canvas with it (MedSAM, SAM 2).
    - `resampling`: `area` averages over area (OpenCV's INTER_AREA rule, also when enlarging); `bilinear` is Pillow's
      (SAM; what SAM 2 does to float values differs by the rounding); `cubic` smooths before it shrinks and goes through
      cubic splines, as scikit-image's `resize` of order 3 with anti-aliasing (MedSAM).
    - `intensities`: `min-max` is the stretch to [0, 1]; `imagenet` subtracts the mean colour of ImageNet and divides
      by its deviation (SAM, SAM 2).
    - `coordinates`: `centres` maps centres of pixels to where they come to lie; `scaled` multiplies positions by
      the resize factor and no more, as SAM, MedSAM and SAM 2 do (up to half a canvas pixel beside it).
    - `mask_prompt`: what goes in beside the tokens, `logits` of a first guess (SAM), or a `picture`, 1 on what is drawn
      and 0 elsewhere; scribbles on the object then go there as well (Swin-LiteMedSAM).
    - `interpolate`: what is brought home bilinearly, the logits or, as MedSAM does, their probabilities.
    """

    size: int = 256
    mask_size: int = 256
    box_rounding: Literal["truncate", "none"] = "truncate"
    fit: Literal["longest-side", "stretch"] = "longest-side"
    resampling: Literal["area", "bilinear", "cubic"] = "area"
    intensities: Literal["min-max", "imagenet"] = "min-max"
    coordinates: Literal["centres", "scaled"] = "centres"
    mask_prompt: Literal["logits", "picture"] = "logits"
    interpolate: Literal["logits", "probabilities"] = "logits"

    def content_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the canvas that an image of `shape` (rows, columns) covers."""
        if self.fit == "stretch":
            return self.size, self.size
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
        resize = {"area": resize_area, "bilinear": _resize_bilinear, "cubic": _resize_cubic}[self.resampling]
        resized = resize(pixels, rows, columns).astype(np.float32)
        if self.intensities == "min-max":
            low, high = resized.min(), resized.max()
            resized = (resized - low) / max(float(high - low), 1e-8)
        else:
            resized = (resized / np.float32(255) - _IMAGENET_MEAN) / _IMAGENET_DEVIATION
        canvas = np.zeros((3, self.size, self.size), dtype=np.float32)
        canvas[:, :rows, :columns] = np.moveaxis(resized, -1, 0)
        return canvas

    def prompts(self, prompts: Sequence[Prompt], shape: tuple[int, int]) -> CanvasPrompt:
        """One object's prompts on the canvas of an image of `shape` (rows, columns).

        Prompts must lie inside the image; see `Prompt.inside`. Of several boxes or masks there can be only one.
        Scribbles become points that are spread along them, or a mask where that is a picture (what is drawn beside the
        object becomes points there too).

        Raises:
            PromptError: no prompt, or two of a kind that allows one.
        """
        box: Float32[np.ndarray, "4"] | None = None
        mask: Float32[np.ndarray, "1 row column"] | None = None
        points: list[tuple[float, float]] = []
        labels: list[int] = []
        for prompt in prompts:
            if isinstance(prompt, Scribble) and self.mask_prompt == "picture":
                stroke = (self._coverage(prompt.positive) > 0).astype(np.float32)[None]  # also one too thin for a cell
                mask = stroke if mask is None else np.maximum(mask, stroke)
                if prompt.negative is None:
                    continue
                spread = prompt.points()
                beside = [xy for xy, on in zip(spread.coordinates, spread.labels, strict=True) if not on]
                prompt = Points(beside, [0] * len(beside))
            elif isinstance(prompt, Scribble):
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
        return self._coverage(mask)

    def image(
        self, logits: Float[np.ndarray, "size size"], shape: tuple[int, int]
    ) -> Float32[np.ndarray, "row column"]:
        """Logits on the pixels of an image of `shape` (rows, columns), bilinear between pixel centres.

        A decoder may answer on a coarser grid than the canvas (SAM: 256 for 1024). If there is padding, its logits are
        brought to the canvas first and the padding is cut off there, where its edge is a whole number; if there is
        none, they go straight to the image. Both as in the models' own code.
        """
        rows, columns = self.content_shape(shape)
        content = logits.astype(np.float32, copy=False)
        if self.interpolate == "probabilities":
            content = 1 / (1 + np.exp(-content.clip(-30, 30)))
        side = logits.shape[-1]
        if self.fit == "stretch":
            home = _bilinear_weights(side, shape[0]) @ content @ _bilinear_weights(side, shape[1]).T
        elif side == self.size:
            down, across = _bilinear_weights(rows, shape[0]), _bilinear_weights(columns, shape[1])
            home = down @ content[:rows, :columns] @ across.T
        else:
            down, across = (_through_canvas(side, self.size, *ends) for ends in ((rows, shape[0]), (columns, shape[1])))
            home = down @ content @ across.T
        if self.interpolate == "probabilities":
            home = home.clip(1e-13, 1 - 1e-7)
            home = np.log(home / (1 - home))
        return home.astype(np.float32, copy=False)

    def _box(self, box: Box, shape: tuple[int, int]) -> Float32[np.ndarray, "4"]:
        corners = np.array([box.x_min, box.y_min, box.x_max, box.y_max], dtype=np.float64)
        if self.box_rounding == "truncate":
            y_scale, x_scale = self._scales(shape)
            return np.trunc(corners * [x_scale, y_scale, x_scale, y_scale]).astype(np.float32)
        (x_min, y_min), (x_max, y_max) = self._points(((box.x_min, box.y_min), (box.x_max, box.y_max)), shape)
        return np.array([x_min, y_min, x_max, y_max], dtype=np.float32)

    def _points(self, coordinates: Sequence[tuple[float, float]], shape: tuple[int, int]) -> list[tuple[float, float]]:
        if self.coordinates == "scaled":
            y_scale, x_scale = self._scales(shape)
            return [(x * x_scale, y * y_scale) for x, y in coordinates]
        # Edges of the image map to edges of the content, so centres of pixels sit half a pixel inside both.
        rows, columns = self.content_shape(shape)
        y_scale, x_scale = rows / shape[0], columns / shape[1]
        return [((x + 0.5) * x_scale - 0.5, (y + 0.5) * y_scale - 0.5) for x, y in coordinates]

    def _scales(self, shape: tuple[int, int]) -> tuple[float, float]:
        """How much rows and columns grow; of a `longest-side` fit both by the same, before any rounding of sizes."""
        if self.fit == "stretch":
            return self.size / shape[0], self.size / shape[1]
        return self.size / max(shape), self.size / max(shape)

    def _mask(self, prompt: MaskPrompt, shape: tuple[int, int]) -> Float32[np.ndarray, "1 row column"]:
        coverage = self._coverage(prompt.mask)[None]
        return coverage if self.mask_prompt == "picture" else (2 * coverage - 1) * MASK_PROMPT_LOGIT

    def _coverage(self, mask: Bool[np.ndarray, "row column"]) -> Float32[np.ndarray, "mask_size mask_size"]:
        """The share of each cell of the mask's grid that the mask covers."""
        rows, columns = self.content_shape((mask.shape[0], mask.shape[1]))
        canvas = np.zeros((self.size, self.size), dtype=np.uint8)
        canvas[:rows, :columns] = resize_area(mask.astype(np.uint8)[..., None] * 255, rows, columns)[..., 0]
        if self.mask_size != self.size:
            canvas = resize_area(canvas[..., None], self.mask_size, self.mask_size)[..., 0]
        return canvas.astype(np.float32) / 255


MASK_PROMPT_LOGIT = 10.0
"""A mask prompt is given as logits: plus this inside, minus this outside, in between where a pixel is half covered."""

LITE_MEDSAM_FRAME = Frame(size=256, mask_size=256, box_rounding="truncate")

SWIN_LITE_MEDSAM_FRAME = replace(LITE_MEDSAM_FRAME, mask_prompt="picture")

MEDSAM_FRAME = Frame(
    size=1024,
    mask_size=256,
    box_rounding="none",
    fit="stretch",
    resampling="cubic",
    coordinates="scaled",
    interpolate="probabilities",
)
"""MedSAM (Ma et al. 2024): the image stretched to 1024 x 1024."""

SAM_FRAME = Frame(
    size=1024,
    mask_size=256,
    box_rounding="none",
    resampling="bilinear",
    intensities="imagenet",
    coordinates="scaled",
)
"""SAM (Kirillov et al. 2023) and MobileSAM: the longest side 1024, ImageNet's colours, padded after that."""

SAM2_FRAME = replace(SAM_FRAME, fit="stretch")
"""SAM 2 (Ravi et al. 2024): stretched to 1024 x 1024."""

MEDSAM2_FRAME = replace(SAM2_FRAME, size=512, mask_size=128)
"""MedSAM2: SAM 2 at 512 x 512."""

# As columns of three, so that grey images, which have one channel, come out with three.
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], dtype=np.float32)


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


def _resize_bilinear(
    pixels: UInt8[np.ndarray, "row column channel"], rows: int, columns: int
) -> UInt8[np.ndarray, "rows columns channel"]:
    planes = [Picture.fromarray(pixels[..., i]) for i in range(pixels.shape[2])]
    resized = [plane.resize((columns, rows), Picture.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=-1)


def _resize_cubic(
    pixels: UInt8[np.ndarray, "row column channel"], rows: int, columns: int
) -> UInt8[np.ndarray, "rows columns channel"]:
    from scipy import ndimage

    factors = np.array([pixels.shape[0] / rows, pixels.shape[1] / columns])
    sigma = np.maximum(0, (factors - 1) / 2)
    planes: list[np.ndarray] = []
    for i in range(pixels.shape[2]):
        plane = pixels[..., i].astype(np.float64)
        if sigma.any():
            plane = ndimage.gaussian_filter(plane, sigma, mode="mirror")
        resized = ndimage.zoom(plane, 1 / factors, order=3, mode="mirror", grid_mode=True)
        # A spline overshoots at edges; scikit-image keeps to the range of its input, and MedSAM cuts off fractions.
        planes.append(np.clip(np.asarray(resized), pixels[..., i].min(), pixels[..., i].max()))
    return np.stack(planes, axis=-1).astype(np.uint8)


@lru_cache(maxsize=32)
def _through_canvas(side: int, canvas: int, content: int, size_out: int) -> Float32[np.ndarray, "size_out side"]:
    """From a decoder's grid to the canvas, of which the content is kept, and on to the image, as one matrix."""
    return _bilinear_weights(content, size_out) @ _bilinear_weights(side, canvas)[:content]


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
