"""One picture to judge a result by: the image, what was asked, and the outline of what came back."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from palpate.prompts.types import Box, MaskPrompt, Points, Scribble, Target

# Okabe and Ito's palette, which colour-blind readers can tell apart; bright ones first, for dark images.
COLOURS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
_TINT = 0.22
_BACKGROUND = (17, 19, 22)
_TEXT = (228, 230, 235)
_DIM = (150, 156, 166)
_PROMPT = (255, 255, 255)
_POSITIVE, _NEGATIVE = (90, 230, 120), (255, 95, 95)
_ONE_TILE, _MANY_TILES = 768, 400
_LINE = 22


@dataclass(frozen=True, eq=False)
class Tile:
    """One slice of the picture: its pixels, labels, the targets prompted on it, and where it is."""

    pixels: UInt8[np.ndarray, "row column"] | UInt8[np.ndarray, "row column 3"]
    labels: np.ndarray
    targets: Sequence[Target]
    title: str
    pixel_size: tuple[float, float]  # as (row, column), any unit: only the ratio counts
    letters: tuple[str, str, str, str] | None  # left, right, top, bottom


@dataclass(frozen=True)
class LegendLine:
    """One object in the legend."""

    label: int
    text: str


def colour_of(label: int) -> tuple[int, int, int]:
    """The colour of a label, the same in every picture."""
    return COLOURS[(label - 1) % len(COLOURS)]


def draw(tiles: Sequence[Tile], legend: Sequence[LegendLine], *, caption: str) -> Picture.Image:
    """The tiles side by side (three in a row), the caption and the legend beneath.

    No words are cut: beside a narrow image there is room for its title, and long lines are broken.
    """
    side = _ONE_TILE if len(tiles) == 1 else _MANY_TILES
    drawn = [_draw_tile(tile, side) for tile in tiles]
    per_row = min(3, len(drawn))
    rows = [drawn[i : i + per_row] for i in range(0, len(drawn), per_row)]
    gap = 8
    width = max(480, max(sum(t.width + gap for t in row) for row in rows) + gap)
    heights = [max(t.height for t in row) for row in rows]
    shown = list(legend[:8])
    more = len(legend) - len(shown)
    font, indent = _font(15), 20
    captions = _broken(caption, font, width - 2 * gap)
    texts = [_broken(line.text, font, width - 2 * gap - indent) for line in shown]
    lines = len(captions) + sum(map(len, texts)) + (more > 0)
    picture = Picture.new("RGB", (width, sum(heights) + gap * (len(rows) + 2) + _LINE * lines), _BACKGROUND)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for tile in row:
            picture.paste(tile, (x, y))
            x += tile.width + gap
        y += height + gap
    pen = ImageDraw.Draw(picture)
    for text in captions:
        pen.text((gap, y), text, fill=_DIM, font=font)
        y += _LINE
    for line, parts in zip(shown, texts, strict=True):
        pen.rectangle((gap + 1, y + 4, gap + 12, y + 15), fill=colour_of(line.label))
        for text in parts:
            pen.text((gap + indent, y), text, fill=_TEXT, font=font)
            y += _LINE
    if more > 0:
        pen.text((gap + indent, y), f"and {more} more", fill=_DIM, font=font)
    return picture


def _draw_tile(tile: Tile, side: int) -> Picture.Image:
    rows, columns = tile.labels.shape
    # Show millimetres, not pixels: a sagittal cut of thick slices would look squashed otherwise.
    tall, wide = rows * tile.pixel_size[0], columns * tile.pixel_size[1]
    scale = side / max(tall, wide)
    size = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    x_scale, y_scale = size[0] / columns, size[1] / rows
    pixels = tile.pixels if tile.pixels.ndim == 3 else np.repeat(tile.pixels[..., None], 3, axis=2)
    shown = np.asarray(Picture.fromarray(pixels).resize(size, Picture.Resampling.BICUBIC)).astype(np.float32)
    for label in np.unique(tile.labels[tile.labels > 0]):
        # Nearest enlargement keeps the outline on the true edges of the mask's pixels.
        inside = _enlarged(tile.labels == label, size)
        edge = inside ^ np.asarray(binary_erosion(inside, iterations=2, border_value=1))
        colour = np.array(colour_of(int(label)), dtype=np.float32)
        shown[inside] = (1 - _TINT) * shown[inside] + _TINT * colour
        shown[edge] = colour
    picture = Picture.fromarray(shown.round().clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for target in tile.targets:
        _draw_prompts(pen, target, x_scale, y_scale)
    _draw_letters(pen, tile, size)
    return _titled(picture, tile, side)


def _draw_prompts(pen: ImageDraw.ImageDraw, target: Target, x_scale: float, y_scale: float) -> None:
    for prompt in target.prompts:
        if isinstance(prompt, Box):
            # Edges are the first and last pixel inside, so the far edges end one pixel later.
            corners = (
                prompt.x_min * x_scale,
                prompt.y_min * y_scale,
                (prompt.x_max + 1) * x_scale,
                (prompt.y_max + 1) * y_scale,
            )
            _dashed(pen, corners)
        elif isinstance(prompt, Points):
            for (x, y), label in zip(prompt.coordinates, prompt.labels, strict=True):
                _mark(pen, (x + 0.5) * x_scale, (y + 0.5) * y_scale, positive=label == 1)
        else:
            strokes = [(prompt.mask, _PROMPT)] if isinstance(prompt, MaskPrompt) else _strokes(prompt)
            for stroke, colour in strokes:
                _dotted(pen, stroke, colour, x_scale, y_scale)


def _strokes(prompt: Scribble) -> list[tuple[Bool[np.ndarray, "row column"], tuple[int, int, int]]]:
    strokes = [(prompt.positive, _POSITIVE)]
    return strokes if prompt.negative is None else [*strokes, (prompt.negative, _NEGATIVE)]


def _dotted(
    pen: ImageDraw.ImageDraw,
    stroke: Bool[np.ndarray, "row column"],
    colour: tuple[int, int, int],
    x_scale: float,
    y_scale: float,
) -> None:
    """A stroke or the edge of a first guess as small dots, which leave the anatomy visible."""
    edge = stroke ^ np.asarray(binary_erosion(stroke))
    for y, x in np.argwhere(edge):
        centre_x, centre_y = (x + 0.5) * x_scale, (y + 0.5) * y_scale
        pen.ellipse((centre_x - 1, centre_y - 1, centre_x + 1, centre_y + 1), fill=colour)


def _dashed(pen: ImageDraw.ImageDraw, corners: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = (round(value) for value in corners)
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    for colour, offset in (((0, 0, 0), 1), (_PROMPT, 0)):
        for start in range(left, right + 1, 10):
            for y in (top, bottom):
                pen.line((start, y + offset, min(start + 5, right), y + offset), fill=colour)
        for start in range(top, bottom + 1, 10):
            for x in (left, right):
                pen.line((x + offset, start, x + offset, min(start + 5, bottom)), fill=colour)


def _mark(pen: ImageDraw.ImageDraw, x: float, y: float, *, positive: bool) -> None:
    radius, arm = 7, 4
    colour = _POSITIVE if positive else _NEGATIVE
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(0, 0, 0))
    pen.line((x - arm, y, x + arm, y), fill=(0, 0, 0), width=2)
    if positive:
        pen.line((x, y - arm, x, y + arm), fill=(0, 0, 0), width=2)


def _draw_letters(pen: ImageDraw.ImageDraw, tile: Tile, size: tuple[int, int]) -> None:
    if tile.letters is None:
        return
    width, height = size
    left, right, top, bottom = tile.letters
    _write(pen, (6, height / 2), left, "lm")
    _write(pen, (width - 6, height / 2), right, "rm")
    _write(pen, (width / 2, 5), top, "ma")
    _write(pen, (width / 2, height - 5), bottom, "md")


def _titled(picture: Picture.Image, tile: Tile, side: int) -> Picture.Image:
    """The picture with its title in the upper left corner; a narrow one gets room beside it, and a flat one above."""
    if not tile.title:
        return picture
    font, margin, line_height = _font(14), 6, 18
    lines = _broken(tile.title, font, side - 2 * margin)
    wide, tall = math.ceil(max(map(font.getlength, lines))) + 2 * margin, line_height * len(lines) + margin
    if tile.letters is not None:
        wide = min(2 * (wide + 2 * margin), side)  # it must not touch the letter in the middle
    above = tall if picture.height < 3 * tall else 0
    if wide > picture.width or above:
        bare, picture = picture, Picture.new("RGB", (max(wide, picture.width), picture.height + above), _BACKGROUND)
        picture.paste(bare, ((picture.width - bare.width) // 2, above))
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        _write(pen, (margin, 5 + line_height * number), line, "la")
    return picture


def _write(pen: ImageDraw.ImageDraw, place: tuple[float | int, float | int], words: str, anchor: str) -> None:
    pen.text(place, words, fill=_TEXT, font=_font(14), anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _broken(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text as lines of at most this width, broken at spaces, or within a name that is longer than a line."""
    lines, line = [], ""
    for character in re.sub(r"\s", " ", text):
        if line and font.getlength(line + character) > width:
            kept, _, rest = (line + character).rpartition(" ")
            lines.append(kept.rstrip() or line)
            line = rest if kept.strip() else character
        else:
            line += character
    return [*lines, line]


def _enlarged(mask: Bool[np.ndarray, "row column"], size: tuple[int, int]) -> Bool[np.ndarray, "row2 column2"]:
    picture = Picture.fromarray(mask.astype(np.uint8) * 255).resize(size, Picture.Resampling.NEAREST)
    return np.asarray(picture) > 0


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
