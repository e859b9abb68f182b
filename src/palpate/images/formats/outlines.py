"""The outlines of a mask, along the borders of its pixels.

What is traced is the exact edge of the pixels and no curve through their centres: the area inside is the area of the
pixels, and whoever fills the outline again gets every pixel back, a single one included.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

_CHANNEL = 0.25
"""At which height of a pixel row a channel to a hole runs. Pixel centres lie at 0.5: a channel through them would leave
it to rounding on which side they are."""

_Point = tuple[float | int, float | int]
"""(x, y), in corners of pixels."""

_X_STEP = (1, 0, -1, 0)
_Y_STEP = (0, 1, 0, -1)


@dataclass(eq=False)
class _Loop:
    """Corners of pixels around a piece (clockwise as seen) or around a hole in it (the other way)."""

    corners: list[tuple[int, int]]
    holes: dict[tuple[int, int], list[_Point]] = field(default_factory=dict[tuple[int, int], list[_Point]])
    """Finished outlines of holes that a channel joins to this loop, by the vertical border (x, row) it starts from."""


def outlines(mask: Bool[np.ndarray, "height width"]) -> list[Float[np.ndarray, "points 2"]]:
    """One closed outline for each piece of a mask, as (x, y) in pixels; the last point joins the first.

    Pixel (0, 0) has its centre at (0, 0), so its corners lie at -0.5 and 0.5. Pixels belong to one piece if they share
    a side. Holes are part of their piece's outline: a channel of no width leads to each and back, inside the piece.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    y, x = int(rows[0]), int(columns[0])
    part = mask[y : int(rows[-1]) + 1, x : int(columns[-1]) + 1]
    return [np.add(outline, (x - 0.5, y - 0.5)) for outline in _joined(_loops(part), part)]


def _loops(mask: Bool[np.ndarray, "height width"]) -> list[_Loop]:
    height, width = mask.shape
    padded = np.pad(mask, 1)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]  # (height + 1, width): the pixels on both sides of a border
    left, right = padded[1:-1, :-1], padded[1:-1, 1:]  # (height, width + 1)
    leaving = np.zeros((height + 1, width + 1), dtype=np.uint8)  # bit d: a border leaves this corner in direction d
    # Along each border the mask lies to the right-hand side: to the right above it, down on its right, and so on.
    leaving[:, :-1] |= np.where(below & ~above, 1, 0).astype(np.uint8)
    leaving[:-1] |= np.where(left & ~right, 2, 0).astype(np.uint8)
    leaving[:, 1:] |= np.where(above & ~below, 4, 0).astype(np.uint8)
    leaving[1:] |= np.where(right & ~left, 8, 0).astype(np.uint8)
    starts = np.argwhere(leaving & 1).tolist()
    ways, todo = leaving.tolist(), leaving.tolist()
    loops: list[_Loop] = []
    for y, x in starts:
        if not todo[y][x] & 1:
            continue  # part of a loop already
        corners: list[tuple[int, int]] = []
        direction = 0
        while todo[y][x] & (1 << direction):
            todo[y][x] &= ~(1 << direction)
            corners.append((x, y))
            x, y = x + _X_STEP[direction], y + _Y_STEP[direction]
            # Where pixels touch at a corner two ways go on. The right turn stays with the same pixel.
            for turn in (1, 0, 3):
                if ways[y][x] & (1 << (direction + turn) % 4):
                    direction = (direction + turn) % 4
                    break
        loops.append(_Loop(corners))
    return loops


def _joined(loops: list[_Loop], mask: Bool[np.ndarray, "height width"]) -> list[list[_Point]]:
    """The loops around pieces, with those around holes joined to them."""
    holes = [loop for loop in loops if _is_hole(loop)]
    if not holes:
        return [_simplified(loop) for loop in loops]
    owner = {place: loop for loop in loops for place in _verticals(loop)}
    # A channel leads to the left, so the loop it meets reaches further left than the hole: with those furthest to the
    # right first, all that joins a hole is there when the hole is joined in its turn.
    first = {id(hole): min(_verticals(hole)) for hole in holes}
    for hole in sorted(holes, key=lambda one: first[id(one)], reverse=True):
        x, row = first[id(hole)]
        # Left of the hole the row belongs to the piece, up to the next pixel that does not.
        outside = np.flatnonzero(~mask[row, :x])
        meets = (int(outside[-1]) + 1 if len(outside) else 0, row)
        owner[meets].holes[meets] = [*_simplified(hole, begin=(x, row)), (x, row + _CHANNEL)]
    kept = {id(hole) for hole in holes}
    return [_simplified(loop) for loop in loops if id(loop) not in kept]


def _is_hole(loop: _Loop) -> bool:
    ends = [*loop.corners[1:], loop.corners[0]]
    return sum(x * (y_end - y) for (x, y), (_, y_end) in zip(loop.corners, ends, strict=True)) < 0


def _verticals(loop: _Loop) -> list[tuple[int, int]]:
    """The vertical borders of a loop as (x, row)."""
    ends = [*loop.corners[1:], loop.corners[0]]
    return [(x, min(y, y_end)) for (x, y), (_, y_end) in zip(loop.corners, ends, strict=True) if y != y_end]


def _simplified(loop: _Loop, begin: tuple[int, int] | None = None) -> list[_Point]:
    """The corners where a loop turns, with its holes; `begin` is a vertical border in the middle of which to begin."""
    corners = loop.corners
    count = len(corners)
    start = 0
    points: list[_Point] = []
    if begin is not None:
        x, row = begin
        start = next(
            i
            for i, (x_at, y_at) in enumerate(corners)
            if x_at == x == corners[(i + 1) % count][0] and min(y_at, corners[(i + 1) % count][1]) == row
        )
        points.append((x, row + _CHANNEL))
        start += 1
    for i in range(start, start + count):
        (x_before, y_before), (x, y), (x_after, y_after) = (corners[(i + step) % count] for step in (-1, 0, 1))
        if (x - x_before, y - y_before) != (x_after - x, y_after - y):
            points.append((x, y))
        if loop.holes and x == x_after and (hole := loop.holes.get((x, min(y, y_after)))):
            there = (x, min(y, y_after) + _CHANNEL)
            points += [there, *hole, there]
    return points
