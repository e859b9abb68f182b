"""What Swin-LiteMedSAM makes of a box by itself: four points and one scribble, decoded together with the box.

Source: Gao, Lyu, Staring, "Swin-LiteMedSAM: A Lightweight Box-Based Segment Anything Model for Large-Scale Medical
Image Datasets" (CVPR 2024 challenge "Segment Anything in Medical Images on Laptop"), and the authors' code.

All is in pixels of one grid, in use the model's canvas of 256 x 256: boxes and points as arrays, x before y, masks as
(row, column). `palpate.prompts.sampling` and `scribbles` hold the rules and refuse a `Box` beside the image. Here every
box gets an answer, since a batch must not fail for one odd box: corners are cut to whole numbers (towards zero, as the
authors do) and moved onto the grid, so that a box beside it counts as its nearest border. Only what is no box at all,
not finite or with a maximum below its minimum, raises PromptError.

`inside` is where points and scribbles may lie. In training it is the reference mask; in use nobody knows the object,
and it is where the canvas, scaled to 0..1, is above zero.

Where paper and code differ, the code is the default, for it is what the released weights come with:

- Before points are drawn the box shrinks. The paper moves its edges by 1/5 to 2/5 of the image's sides, which turns
  boxes narrower than twice that inside out; the code by 1/5 to 1/2 of the box's. `shrunk_box` has both ranges, of the
  box's sides.
- The paper wants a random point of the non-zero area. The code draws row and column apart, which puts points beside
  whatever is not a rectangle. Here we follow the paper and draw a pixel as a whole; `independent_xy` does as the code.
- The paper gives no scribble where all is zero. The code does so in use; in training it fills the whole box and strokes
  leave the object, and so they do in `training_prompts`.
- The code draws from three global generators, all of this draws from `rng`: the same rules, other dice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

from palpate.prompts.sampling import moved_in, swin_points
from palpate.prompts.scribbles import free_form_stroke
from palpate.prompts.types import Box

Shrinking = Literal["points-code", "points-paper", "scribble"]

_RANGES: dict[Shrinking, tuple[Callable[[int], int], Callable[[int], int]]] = {
    "points-code": (lambda side: side // 5, lambda side: side // 2 - 1),
    "points-paper": (lambda side: side // 5, lambda side: 2 * side // 5),
    "scribble": (lambda side: side // 8, lambda side: side // 6),
}
"""The pixels that the edges move inwards, by the side of the box: the first, and the last + 1."""


def derived_prompts(
    inside: Bool[np.ndarray, "row column"],
    box: Float[np.ndarray, "4"],
    *,
    rng: np.random.Generator,
    independent_xy: bool = False,
) -> tuple[Float32[np.ndarray, "4 2"], Bool[np.ndarray, "row column"]]:
    """Points (x, y), to be shown with label 1, and a scribble for a box in use; `inside` is what is not black.

    Each is drawn in a smaller box of its own, see `shrunk_box`. The scribble may be empty; the network then gets a mask
    of zeros. The points come first from `rng`: whoever needs them alone may leave the scribble out.

    Raises:
        PromptError: `box` is not finite or inverted.
    """
    whole = _on_grid(box, inside)
    points = box_quadrant_points(
        inside, shrunk_box(whole, rng=rng, rule="points-code"), rng=rng, independent_xy=independent_xy
    )
    return points, scribble_in_box(inside, shrunk_box(whole, rng=rng, rule="scribble"), rng=rng)


def training_prompts(
    mask: Bool[np.ndarray, "row column"],
    box: Float[np.ndarray, "4"],
    *,
    rng: np.random.Generator,
    independent_xy: bool = False,
) -> tuple[Float32[np.ndarray, "4 2"], Bool[np.ndarray, "row column"]]:
    """Points of the reference mask, with label 1, and a scribble anywhere in the box, on the object or not.

    Nothing shrinks. `box` is the one that the network is shown: in the authors' code the tight box, every edge moved
    outward by 0 to 5 pixels. An empty mask gives the box's centre four times.

    Raises:
        PromptError: `box` is not finite or inverted.
    """
    points = box_quadrant_points(mask, box, rng=rng, independent_xy=independent_xy)
    return points, scribble_in_box(np.ones_like(mask), box, rng=rng)


def box_quadrant_points(
    inside: Bool[np.ndarray, "row column"],
    box: Float[np.ndarray, "4"],
    *,
    rng: np.random.Generator,
    independent_xy: bool = False,
) -> Float32[np.ndarray, "4 2"]:
    """One pixel (x, y) of each quarter of the box: top left, bottom left, bottom right, top right.

    A quarter with nothing inside gives the centre of the box, `(minimum + maximum) // 2`. Ranges are half-open: the
    centre's row and column belong to the lower and right quarters, the box's last row and column to none. A box of one
    pixel is that pixel four times.

    `independent_xy` draws row and column apart, as the authors do; such a point may lie beside `inside`.

    Raises:
        PromptError: `box` is not finite or inverted.
    """
    points = swin_points(inside, _box(_on_grid(box, inside)), rng=rng, independent_xy=independent_xy)
    return np.array(points.coordinates, dtype=np.float32)


def shrunk_box(box: Float[np.ndarray, "4"], *, rng: np.random.Generator, rule: Shrinking) -> Float[np.ndarray, "4"]:
    """The box with corners cut to whole numbers, and both edges of an axis moved inwards alike.

    By how many pixels is drawn for x, then for y, from these whole numbers of w = x_max - x_min, and the same of y:

    - "points-code": floor(w/5) .. floor(w/2) - 2
    - "points-paper": floor(w/5) .. floor(2w/5) - 1
    - "scribble": floor(w/8) .. floor(w/6) - 1

    Where there is none, as for small boxes, the edges of that axis stay. The box never turns inside out, and its centre
    `(minimum + maximum) // 2` does not move: whether it is taken before shrinking, as by the authors, or after, as by
    `box_quadrant_points`, it is the same. A box that reaches out of the grid is to be cut first, as `derived_prompts`
    does: cut last, it would lie lopsided.

    Raises:
        PromptError: `box` is not finite or inverted.
    """
    first, end = _RANGES[rule]
    return _array(moved_in(_box(box), rng=rng, first=first, end=end), box.dtype)


def scribble_in_box(
    inside: Bool[np.ndarray, "row column"], box: Float[np.ndarray, "4"], *, rng: np.random.Generator
) -> Bool[np.ndarray, "row column"]:
    """A free-form stroke of preset "rand_curve" that starts in the box on `inside` and is cut to both.

    8-connected, and more than five pixels, or nothing at all: after six tries, and where the box holds five pixels or
    fewer of `inside`. The box's last row and column take part. For a stroke anywhere in the box `inside` is all True.

    Raises:
        PromptError: `box` is not finite or inverted.
    """
    cut = _box(_on_grid(box, inside))
    place = slice(int(cut.y_min), int(cut.y_max) + 1), slice(int(cut.x_min), int(cut.x_max) + 1)
    region = np.zeros_like(inside)
    region[place] = inside[place]
    return free_form_stroke(region, rng=rng)


def _on_grid(box: Float[np.ndarray, "4"], grid: np.ndarray) -> Float[np.ndarray, "4"]:
    """Cut to whole numbers, and to 0..columns and 0..rows: the authors' boxes may end one past the last pixel."""
    given = _box(box)
    rows, columns = grid.shape
    x_min, x_max = _on_axis(given.x_min, given.x_max, columns)
    y_min, y_max = _on_axis(given.y_min, given.y_max, rows)
    return _array(Box(x_min, y_min, x_max, y_max), box.dtype)


def _on_axis(first: float, last: float, length: int) -> tuple[int, int]:
    return min(max(int(first), 0), length - 1), min(max(int(last), 0), length)


def _box(corners: Float[np.ndarray, "4"]) -> Box:
    return Box(*corners.tolist())


def _array(box: Box, dtype: np.dtype) -> Float[np.ndarray, "4"]:
    return np.array([box.x_min, box.y_min, box.x_max, box.y_max], dtype=dtype)
