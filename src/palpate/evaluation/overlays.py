"""One case to look at: what was there, what was asked, and what came back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion

from palpate.prompts.types import Box, MaskPrompt, Points, Prompt, Scribble

# Okabe and Ito's sky blue and orange, which colour-blind readers can tell apart, on grey images of any brightness.
REFERENCE, PREDICTION = (86, 180, 233), (230, 159, 0)
_PROMPT, _POSITIVE, _NEGATIVE = (255, 255, 255), (90, 230, 120), (255, 95, 95)
_BACKGROUND, _TEXT, _DIM = (17, 19, 22), (228, 230, 235), (150, 156, 166)
_SIDE, _INSET, _GAP, _LINE, _FONT = 560, 150, 8, 26, 17
_CONTEXT, _LEAST_CONTEXT = 0.75, 8
_INSET_BELOW = 0.5  # of the picture's area


def draw_overlay(
    pixels: UInt8[np.ndarray, "row column"] | UInt8[np.ndarray, "row column 3"],
    reference: Bool[np.ndarray, "row column"],
    prediction: Bool[np.ndarray, "row column"],
    prompts: Sequence[Prompt],
    *,
    title: str,
    pixel_size: tuple[float, float] = (1.0, 1.0),
) -> Picture.Image:
    """The target with its surroundings, and the whole slice in a free corner of it where the target is small.

    The reference's line runs along the inside of its edge and the prediction's along the outside of its own, so both
    can be seen where they agree. Pixels are enlarged by whole numbers, so that lines lie on the edges of pixels.
    `pixel_size` is (row, column) in any unit: only the ratio counts. Without a title, there is no line for it.
    """
    window = _window(reference, prediction, prompts)
    rows, columns = reference.shape
    tall, wide = window[1] - window[0], window[3] - window[2]
    panel = _panel(pixels, reference, prediction, prompts, window, pixel_size, side=_SIDE, width=2)
    if tall * wide >= _INSET_BELOW * rows * columns:
        return _sheet(panel, None, title, prompts)
    whole = (0, rows, 0, columns)
    inset = _panel(pixels, reference, prediction, (), whole, pixel_size, side=_INSET, width=1)
    inset = _framed(inset, window, (rows, columns))
    occupied = (reference | prediction | _covered(prompts, reference.shape))[
        window[0] : window[1], window[2] : window[3]
    ]
    corner = _free_corner(occupied, panel.size, inset.size)
    if corner is None:
        return _sheet(panel, inset, title, prompts)
    panel.paste(inset, corner)
    return _sheet(panel, None, title, prompts)


def _covered(prompts: Sequence[Prompt], shape: tuple[int, int]) -> Bool[np.ndarray, "row column"]:
    """Where prompts are drawn; of a box the whole inside."""
    covered = np.zeros(shape, dtype=bool)
    for prompt in prompts:
        if isinstance(prompt, Box):
            top, left = max(0, int(prompt.y_min)), max(0, int(prompt.x_min))
            covered[top : int(prompt.y_max) + 1, left : int(prompt.x_max) + 1] = True
        elif isinstance(prompt, Points):
            for x, y in prompt.coordinates:
                covered[int(np.clip(y, 0, shape[0] - 1)), int(np.clip(x, 0, shape[1] - 1))] = True
        else:
            for stroke, _ in _strokes(prompt):
                covered |= stroke
    return covered


def _free_corner(
    occupied: Bool[np.ndarray, "row column"], panel: tuple[int, int], inset: tuple[int, int]
) -> tuple[int, int] | None:
    """Where in the panel the inset hides nothing that was marked, in picture elements; None if nowhere."""
    rows, columns = occupied.shape
    if inset[0] * 2 > panel[0] or inset[1] * 2 > panel[1]:
        return None
    # A little more than the inset itself, for the width of lines and clicks.
    high = min(rows, -(-(inset[1] + _GAP) * rows // panel[1]))
    broad = min(columns, -(-(inset[0] + _GAP) * columns // panel[0]))
    right, bottom = panel[0] - inset[0], panel[1] - inset[1]
    corners = (
        ((right, 0), occupied[:high, columns - broad :]),
        ((0, 0), occupied[:high, :broad]),
        ((right, bottom), occupied[rows - high :, columns - broad :]),
        ((0, bottom), occupied[rows - high :, :broad]),
    )
    return next((corner for corner, part in corners if not part.any()), None)


def _window(
    reference: Bool[np.ndarray, "row column"], prediction: Bool[np.ndarray, "row column"], prompts: Sequence[Prompt]
) -> tuple[int, int, int, int]:
    """First and last row, first and last column (the last ones not included) around target and prompt."""
    rows, columns = reference.shape
    parts = [_extent(reference)] if reference.any() else []
    for prompt in prompts:
        if isinstance(prompt, Box):
            parts.append((prompt.y_min, prompt.y_max + 1, prompt.x_min, prompt.x_max + 1))
        elif isinstance(prompt, Points):
            xs, ys = [x for x, _ in prompt.coordinates], [y for _, y in prompt.coordinates]
            parts.append((min(ys), max(ys) + 1, min(xs), max(xs) + 1))
        else:
            parts.append(_extent(prompt.mask if isinstance(prompt, MaskPrompt) else prompt.positive))
    parts = parts or ([_extent(prediction)] if prediction.any() else [(0, rows, 0, columns)])
    top, bottom = min(part[0] for part in parts), max(part[1] for part in parts)
    left, right = min(part[2] for part in parts), max(part[3] for part in parts)
    margin = max(_LEAST_CONTEXT, _CONTEXT * max(bottom - top, right - left))
    return (
        int(np.clip(np.floor(top - margin), 0, rows - 1)),
        int(np.clip(np.ceil(bottom + margin), 1, rows)),
        int(np.clip(np.floor(left - margin), 0, columns - 1)),
        int(np.clip(np.ceil(right + margin), 1, columns)),
    )


def _extent(mask: Bool[np.ndarray, "row column"]) -> tuple[float, float, float, float]:
    box = Box.around(mask)
    return box.y_min, box.y_max + 1, box.x_min, box.x_max + 1


def _panel(
    pixels: np.ndarray,
    reference: Bool[np.ndarray, "row column"],
    prediction: Bool[np.ndarray, "row column"],
    prompts: Sequence[Prompt],
    window: tuple[int, int, int, int],
    pixel_size: tuple[float, float],
    *,
    side: int,
    width: int,
) -> Picture.Image:
    top, bottom, left, right = window
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    cut = (slice(top, bottom), slice(left, right))
    # The side that is shortest in millimetres sets the smallest whole step; large pictures are thinned by one.
    thick, thin = max(pixel_size), min(pixel_size)
    length = max((bottom - top) * pixel_size[0], (right - left) * pixel_size[1]) / thin
    step = max(1, int(side / length))
    scales = [step if size == thin else max(1, round(step * thick / thin)) for size in pixel_size]
    shown, masks = colour[cut], [reference[cut], prediction[cut]]
    by = [max(1, -(-extent * scale // side)) for extent, scale in zip(shown.shape[:2], scales, strict=True)]
    by = [max(by)] * 2 if step == 1 else by
    if max(by) > 1:
        shown = np.asarray(
            Picture.fromarray(shown).resize(
                (-(-shown.shape[1] // by[1]), -(-shown.shape[0] // by[0])), Picture.Resampling.BOX
            )
        )
        masks = [_thinned(mask, by) for mask in masks]
    size = (shown.shape[1] * scales[1], shown.shape[0] * scales[0])
    # The pixels as they are: what a smooth enlargement invents between them is not what the model saw.
    canvas = np.array(Picture.fromarray(np.ascontiguousarray(shown)).resize(size, Picture.Resampling.NEAREST))
    inside, found = (np.kron(mask, np.ones(scales, dtype=bool)).astype(bool) for mask in masks)
    if min(inside.shape) > 2 * width:
        canvas[found ^ np.asarray(binary_dilation(found, iterations=width))] = PREDICTION
        canvas[inside ^ np.asarray(binary_erosion(inside, iterations=width, border_value=1))] = REFERENCE
    picture = Picture.fromarray(canvas)
    y_scale, x_scale = scales[0] / by[0], scales[1] / by[1]
    pen = ImageDraw.Draw(picture)
    for prompt in prompts:
        _draw_prompt(pen, prompt, (left, top), (x_scale, y_scale))
    return picture


def _thinned(mask: Bool[np.ndarray, "row column"], by: Sequence[int]) -> Bool[np.ndarray, "row2 column2"]:
    """Any pixel of a block counts, so that thin things stay."""
    padded = np.pad(mask, [(0, -length % step) for length, step in zip(mask.shape, by, strict=True)])
    rows, columns = padded.shape
    return np.asarray(padded.reshape(rows // by[0], by[0], columns // by[1], by[1]).any(axis=(1, 3)))


def _draw_prompt(pen: ImageDraw.ImageDraw, prompt: Prompt, corner: tuple[int, int], scale: tuple[float, float]) -> None:
    def place(x: float, y: float) -> tuple[float, float]:
        return (x - corner[0]) * scale[0], (y - corner[1]) * scale[1]

    if isinstance(prompt, Box):
        # Edges are the first and last pixel inside, so the far edges end one pixel later.
        _dashed(pen, (*place(prompt.x_min, prompt.y_min), *place(prompt.x_max + 1, prompt.y_max + 1)))
    elif isinstance(prompt, Points):
        for (x, y), label in zip(prompt.coordinates, prompt.labels, strict=True):
            _mark(pen, *place(x + 0.5, y + 0.5), positive=label == 1)
    else:
        for stroke, colour in _strokes(prompt):
            centres = np.argwhere(stroke) + 0.5
            places = (centres[:, ::-1] - corner) * scale
            if min(scale) < 1:  # many pixels meet in one
                places = np.unique(places.round(), axis=0)
            for middle_x, middle_y in places.tolist():
                pen.ellipse((middle_x - 1, middle_y - 1, middle_x + 1, middle_y + 1), fill=colour)


def _strokes(prompt: Scribble | MaskPrompt) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
    if isinstance(prompt, MaskPrompt):
        return [(prompt.mask ^ np.asarray(binary_erosion(prompt.mask)), _PROMPT)]
    strokes = [(prompt.positive, _POSITIVE)]
    return strokes if prompt.negative is None else [*strokes, (prompt.negative, _NEGATIVE)]


def _dashed(pen: ImageDraw.ImageDraw, corners: tuple[float, float, float, float]) -> None:
    """White dashes on a black line, which show on dark and on bright pixels."""
    left, top, right, bottom = (round(value) for value in corners)
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    pen.rectangle((left, top, right, bottom), outline=(0, 0, 0))
    for start in range(left, right + 1, 10):
        for y in (top, bottom):
            pen.line((start, y, min(start + 5, right), y), fill=_PROMPT)
    for start in range(top, bottom + 1, 10):
        for x in (left, right):
            pen.line((x, start, x, min(start + 5, bottom)), fill=_PROMPT)


def _mark(pen: ImageDraw.ImageDraw, x: float, y: float, *, positive: bool) -> None:
    radius, arm = 6, 3
    pen.ellipse(
        (x - radius, y - radius, x + radius, y + radius), fill=_POSITIVE if positive else _NEGATIVE, outline=(0, 0, 0)
    )
    pen.line((x - arm, y, x + arm, y), fill=(0, 0, 0), width=2)
    if positive:
        pen.line((x, y - arm, x, y + arm), fill=(0, 0, 0), width=2)


def _framed(inset: Picture.Image, window: tuple[int, int, int, int], shape: tuple[int, int]) -> Picture.Image:
    """The whole slice with a frame around what is shown large."""
    top, bottom, left, right = window
    x, y = inset.width / shape[1], inset.height / shape[0]
    pen = ImageDraw.Draw(inset)
    pen.rectangle(
        (left * x, top * y, max(right * x - 1, left * x), max(bottom * y - 1, top * y)),
        outline=_TEXT,
    )
    pen.rectangle((0, 0, inset.width - 1, inset.height - 1), outline=_DIM)
    return inset


def _sheet(panel: Picture.Image, inset: Picture.Image | None, title: str, prompts: Sequence[Prompt]) -> Picture.Image:
    """The panel with its title above (if there is one), and beneath it the legend and the inset (if there is one)."""
    font = ImageFont.load_default(_FONT)
    title = " ".join(title.split())
    kinds = _legend(prompts)
    top = _GAP + (_LINE if title else 0)
    lengths = [20 + round(font.getlength(text)) + 14 for text, _ in kinds]
    indent = inset.width + 2 * _GAP if inset else 0
    width = max(panel.width, indent + max(lengths)) + 2 * _GAP
    # The legend goes on in another line where the panel is narrow.
    places, x, line = [], 0, 0
    for length in lengths:
        if x and indent + x + length > width - _GAP:
            x, line = 0, line + 1
        places.append((x, line))
        x += length
    foot = max(inset.height if inset else 0, (line + 1) * _LINE)
    sheet = Picture.new("RGB", (width, top + panel.height + foot + 2 * _GAP), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((_GAP, _GAP - 2), _fitted(title, font, width - 2 * _GAP), fill=_TEXT, font=font)
    sheet.paste(panel, (_GAP, top))
    under = top + panel.height + _GAP
    if inset:
        sheet.paste(inset, (_GAP, under))
    for (text, colour), (right, down) in zip(kinds, places, strict=True):
        x, y = _GAP + indent + right, under + down * _LINE
        pen.rectangle((x, y + 5, x + 13, y + 16), fill=colour or _PROMPT)
        if colour is None:
            for start in (x + 3, x + 9):
                pen.rectangle((start, y + 5, start + 2, y + 16), fill=(0, 0, 0))
        pen.text((x + 20, y), text, fill=_DIM, font=font)
    return sheet


def _legend(prompts: Sequence[Prompt]) -> list[tuple[str, tuple[int, int, int] | None]]:
    """What is drawn and in which colour; None is black and white."""
    kinds: list[tuple[str, tuple[int, int, int] | None]] = [("reference", REFERENCE), ("prediction", PREDICTION)]
    if any(isinstance(prompt, Box) for prompt in prompts):
        kinds.append(("box (dashed)", None))
    if any(isinstance(prompt, MaskPrompt) for prompt in prompts):
        kinds.append(("first guess", _PROMPT))
    if any(isinstance(prompt, Points | Scribble) for prompt in prompts):
        kinds.append(("on it", _POSITIVE))
        if any(_has_negative(prompt) for prompt in prompts):
            kinds.append(("beside it", _NEGATIVE))
    return kinds


def _has_negative(prompt: Prompt) -> bool:
    if isinstance(prompt, Points):
        return 0 in prompt.labels
    return isinstance(prompt, Scribble) and prompt.negative is not None and bool(prompt.negative.any())


def _fitted(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
