"""The smallest bodies that can prove something. All are masks; `picture` makes an image of them."""

import numpy as np


def disk(shape: tuple[int, int], *, centre: tuple[float, float], radius: float) -> np.ndarray:
    """Pixels whose centres lie within `radius` of `centre`, given as (x, y)."""
    y, x = np.indices(shape)
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def rectangle(shape: tuple[int, int], x_min: int, y_min: int, x_max: int, y_max: int) -> np.ndarray:
    """First and last column and row are inside."""
    mask = np.zeros(shape, dtype=bool)
    mask[y_min : y_max + 1, x_min : x_max + 1] = True
    return mask


def ring(shape: tuple[int, int], *, centre: tuple[float, float], outer: float, inner: float) -> np.ndarray:
    return disk(shape, centre=centre, radius=outer) & ~disk(shape, centre=centre, radius=inner)


def vessel(shape: tuple[int, int]) -> np.ndarray:
    """One pixel thin, down the diagonal; its pixels touch only at corners."""
    return np.eye(*shape, dtype=bool)


def two_organs(shape: tuple[int, int] = (16, 16)) -> np.ndarray:
    """A label map: label 1 is 4 x 4 pixels in the upper left, label 2 is 3 rows of 6 in the lower right."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[2:6, 2:6] = 1
    labels[10:13, 8:14] = 2
    return labels


def empty(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, dtype=bool)


def one_voxel(shape: tuple[int, ...], place: tuple[int, ...]) -> np.ndarray:
    """`place` is an array index: (y, x) or (z, y, x)."""
    mask = np.zeros(shape, dtype=bool)
    mask[place] = True
    return mask


def touching_the_edge(shape: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Five rows of seven pixels in the lower right corner."""
    mask = np.zeros(shape, dtype=bool)
    mask[-5:, -7:] = True
    return mask


def column(shape: tuple[int, int, int], footprint: np.ndarray, first: int, last: int) -> np.ndarray:
    """A 3D body with the same footprint (y, x) from slice `first` to slice `last`, both included."""
    mask = np.zeros(shape, dtype=bool)
    mask[first : last + 1] = footprint
    return mask


def picture(*bodies: tuple[np.ndarray, int], background: int = 0) -> np.ndarray:
    """An 8-bit image: each body painted in its grey, later ones over earlier ones."""
    pixels = np.full(bodies[0][0].shape, background, dtype=np.uint8)
    for mask, grey in bodies:
        pixels[mask] = grey
    return pixels
