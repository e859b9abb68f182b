"""Masks that hypothesis may draw: every kind that breaks prompt code, each small."""

import numpy as np
from hypothesis import strategies as st

from phantoms import disk, one_voxel, rectangle, ring, vessel


@st.composite
def masks(draw: st.DrawFn, *, allow_empty: bool = False) -> np.ndarray:
    """Bool (row, column): thin, tiny, holed, in parts, touching the border, full, noise, and empty if allowed."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    shape = (rows, columns)
    x, y = draw(st.integers(0, columns - 1)), draw(st.integers(0, rows - 1))
    kinds = ["pixel", "row", "column", "disk", "ring", "vessel", "parts", "corner", "full", "noise"]
    kind = draw(st.sampled_from(kinds + (["empty"] if allow_empty else [])))
    if kind == "pixel":
        return one_voxel(shape, (y, x))
    if kind == "row":
        return rectangle(shape, 0, y, x, y)
    if kind == "column":
        return rectangle(shape, x, 0, x, y)
    if kind == "disk":
        return disk(shape, centre=(x, y), radius=draw(st.integers(0, 12)))
    if kind == "ring":
        hollow = ring(shape, centre=(x, y), outer=draw(st.integers(3, 14)), inner=2)
        return hollow if hollow.any() else one_voxel(shape, (y, x))
    if kind == "vessel":
        return vessel(shape)
    if kind == "parts":
        return one_voxel(shape, (y, x)) | one_voxel(shape, (rows - 1 - y, columns - 1 - x)) | one_voxel(shape, (0, 0))
    if kind == "corner":
        return rectangle(shape, x, y, columns - 1, rows - 1)
    if kind == "full":
        return np.ones(shape, dtype=bool)
    if kind == "noise":
        noise = np.random.default_rng(draw(st.integers(0, 2**16))).random(shape) < 0.2
        return noise if noise.any() else one_voxel(shape, (y, x))
    return np.zeros(shape, dtype=bool)
