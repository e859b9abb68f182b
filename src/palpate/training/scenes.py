"""What training looks at: slices of labelled images, each in one or several fixed views.

An encoder that is frozen need not see an image twice, and augmentation must not undo that. So a view is not drawn anew
in every epoch: each slice has a small fixed set of them (as it is, flipped, a few crops drawn once from the seed), and
each is encoded once, ever, and kept under its own key. What is drawn anew in every epoch is cheap: which objects are
asked for, and the prompts.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image as Picture

from palpate.datasets.case import Case, Region
from palpate.errors import SettingError
from palpate.images.intensity import intensity_for, parse_intensity, to_uint8
from palpate.images.modality import with_modality
from palpate.images.slices import slice_first, slicing_axis
from palpate.inference.embeddings import embedding_key
from palpate.models.frame import Frame

CROP_SIDES = (0.5, 0.9)
"""How long a crop's sides are, as shares of the image's: drawn from this range, each for itself."""

GAMMAS = (0.6, 1.7)
"""The exponents of a variant's grey values, drawn from this range so that darker is as likely as brighter."""


@dataclass(frozen=True)
class Move:
    """An image turned about its middle, made larger and shifted; what comes from beyond it is black and no object.

    `degrees` turn clockwise as seen on the screen, `scale` above 1 enlarges, and shifts are shares of the image's
    width and height, to the right and down.
    """

    degrees: float = 0.0
    scale: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    def matrix(self, shape: tuple[int, int]) -> tuple[float, float, float, float, float, float]:
        """Where pixel centres x, y of the moved image come from: (a, b, c, d, e, f), a x + b y + c and d x + e y + f.

        The one matrix by which image, labels and prompts move (`shape` is rows, columns).
        """
        rows, columns = shape
        angle = math.radians(self.degrees)
        cos, sin = math.cos(angle) / self.scale, math.sin(angle) / self.scale
        x, y = (columns - 1) / 2, (rows - 1) / 2
        from_x, from_y = x + self.shift_x * columns, y + self.shift_y * rows
        return cos, sin, x - cos * from_x - sin * from_y, -sin, cos, y + sin * from_x - cos * from_y

    def of(self, pixels: np.ndarray, *, smooth: bool) -> np.ndarray:
        """The moved image (row, column) or (row, column, colour); `smooth` for grey values, not for labels."""
        if not smooth:
            return self._resampled(pixels.astype(np.int32), Picture.Resampling.NEAREST).astype(pixels.dtype)
        planes = pixels[..., None] if pixels.ndim == 2 else pixels
        moved = [self._resampled(planes[..., i], Picture.Resampling.BILINEAR) for i in range(planes.shape[2])]
        return moved[0] if pixels.ndim == 2 else np.stack(moved, axis=-1)

    def back(self, point: tuple[float, float], shape: tuple[int, int]) -> tuple[float, float]:
        """Where a point x, y of the moved image lies in the image that was moved."""
        a, b, c, d, e, f = self.matrix(shape)
        x, y = point
        return a * x + b * y + c, d * x + e * y + f

    def _resampled(self, plane: np.ndarray, how: Picture.Resampling) -> np.ndarray:
        # Pillow's numbers are of corners of pixels, half a pixel up and left of their centres.
        a, b, c, d, e, f = self.matrix((plane.shape[0], plane.shape[1]))
        corners = (a, b, c + 0.5 * (1 - a - b), d, e, f + 0.5 * (1 - d - e))
        size = (plane.shape[1], plane.shape[0])
        picture = Picture.fromarray(np.ascontiguousarray(plane))
        return np.asarray(picture.transform(size, Picture.Transform.AFFINE, corners, how))


@dataclass(frozen=True)
class View:
    """A slice as it is, or flipped, or a part of it, or moved, or in other grey values.

    `crop` is (first row, last row, first column, last column), in pixels of the slice before flipping, both ends
    included. `move` comes after cropping and flipping. `gamma` is the exponent of grey values between 0 (black) and 1
    (white); `inverted` exchanges black and white before, but not in colour images, whose negative nobody ever looks at.
    """

    flip_x: bool = False
    flip_y: bool = False
    crop: tuple[int, int, int, int] | None = None
    gamma: float = 1.0
    inverted: bool = False
    move: Move | None = None

    def of(self, labels: np.ndarray) -> np.ndarray:
        """This part of an image's labels, turned as it is, as (row, column)."""
        seen = self._part(labels)
        return seen if self.move is None else self.move.of(seen, smooth=False)

    def _part(self, pixels: np.ndarray) -> np.ndarray:
        if self.crop is not None:
            top, bottom, left, right = self.crop
            pixels = pixels[top : bottom + 1, left : right + 1]
        return pixels[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def shown(self, pixels: UInt8[np.ndarray, "row column *colour"]) -> UInt8[np.ndarray, "row2 column2 *colour"]:
        """This view of an image, with its grey values."""
        seen = self._part(pixels)
        if self.move is not None:
            seen = self.move.of(seen, smooth=True)
        if self.inverted and seen.ndim == 2:
            seen = 255 - seen
        if self.gamma == 1:
            return seen
        curve = np.rint(255 * (np.arange(256) / 255) ** self.gamma).astype(np.uint8)
        return curve[seen]


@dataclass(frozen=True)
class Views:
    """Which views each slice has: itself, `flips` of it, and others of each kind, drawn from `seed`.

    A variant is a crop (three times in four), flipped or not, with another gamma, and now and then inverted, all at
    once: the most another look can teach for the price of one encoding. Moves change where things are, and how large,
    but hardly what they look like: turned by up to 30 degrees, shifted by up to a fifth, larger or smaller by a third,
    a little brighter or darker, and, where `mirrored`, half of them mirrored left and right and a quarter up and down
    (not where left is not right, or where things are counted from below). Strong moves are those of Sam2Rad (Wahd et
    al. 2024, section 4.2): mirrored both ways, shifted by up to a fifth, turned by up to 90 degrees, enlarged so that
    0.8 to 1 of the area is left, each with probability one half.

    Raises:
        SettingError: a kind of flip that does not exist, or a negative number of views.
    """

    flips: tuple[str, ...] = ()
    crops: int = 0
    variants: int = 0
    moves: int = 0
    strong_moves: int = 0
    seed: int = 0
    mirrored: bool = True

    def __post_init__(self) -> None:
        for name in self.flips:
            if name not in ("x", "y", "xy"):
                raise SettingError(f"there is no flip {name!r}; choose x (left and right), y (up and down) or xy")
        for kind in ("crops", "variants", "moves", "strong_moves"):
            if getattr(self, kind) < 0:
                words = kind.replace("_", " ")
                raise SettingError(f"there cannot be {getattr(self, kind)} {words}; give 0 or more")

    def __len__(self) -> int:
        """How many views a slice has."""
        return 1 + len(self.flips) + self.crops + self.variants + self.moves + self.strong_moves

    def of(self, case: Case, z: int, shape: tuple[int, int]) -> list[View]:
        """The views of slice `z` of a case, which has `shape` (rows, columns); always the same ones."""
        views = [View(), *(View(flip_x="x" in name, flip_y="y" in name) for name in self.flips)]
        rng = rng_for(self.seed, case.dataset, case.name, z, "crops")
        views += [View(crop=_part(shape, rng)) for _ in range(self.crops)]
        rng = rng_for(self.seed, case.dataset, case.name, z, "variants")
        views += [_variant(shape, rng) for _ in range(self.variants)]
        rng = rng_for(self.seed, case.dataset, case.name, z, "moves")
        views += [_moved(rng, mirrored=self.mirrored) for _ in range(self.moves)]
        rng = rng_for(self.seed, case.dataset, case.name, z, "strong moves")
        return views + [_strongly_moved(rng) for _ in range(self.strong_moves)]


def _part(shape: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A crop of an image of (rows, columns)."""
    ends: list[int] = []
    for extent in shape:
        length = max(1, round(extent * float(rng.uniform(*CROP_SIDES))))
        first = int(rng.integers(0, extent - length, endpoint=True))
        ends += [first, first + length - 1]
    return ends[0], ends[1], ends[2], ends[3]


def _variant(shape: tuple[int, int], rng: np.random.Generator) -> View:
    """A view in which everything is another at once; every draw is made, whatever comes of the others."""
    cropped, flip_x, flip_y, inverted = (rng.random(4) < (0.75, 0.5, 0.5, 0.25)).tolist()
    gamma = float(np.exp(rng.uniform(*np.log(GAMMAS))))
    part = _part(shape, rng)
    return View(flip_x, flip_y, part if cropped else None, gamma, inverted)


def _moved(rng: np.random.Generator, *, mirrored: bool) -> View:
    """A view in which things are elsewhere; every draw is made, whatever comes of the others."""
    turned, flip_x, flip_y = (rng.random(3) < (0.7, 0.5, 0.25)).tolist()
    degrees = float(rng.uniform(-30, 30))
    scale, gamma = float(np.exp(rng.uniform(-0.25, 0.3))), float(np.exp(rng.uniform(-0.4, 0.4)))
    shift_x, shift_y = rng.uniform(-0.2, 0.2, 2).tolist()
    move = Move(degrees if turned else 0.0, scale, shift_x, shift_y)
    return View(mirrored and flip_x, mirrored and flip_y, gamma=gamma, move=move)


def _strongly_moved(rng: np.random.Generator) -> View:
    """A view as Sam2Rad draws them."""
    flip_x, flip_y, shifted, turned, enlarged = (rng.random(5) < 0.5).tolist()
    shift_x, shift_y = rng.uniform(-0.2, 0.2, 2).tolist()
    degrees, left = float(rng.uniform(-90, 90)), float(rng.uniform(0.8, 1))
    move = Move(
        degrees if turned else 0.0,
        1 / math.sqrt(left) if enlarged else 1.0,
        shift_x if shifted else 0.0,
        shift_y if shifted else 0.0,
    )
    return View(flip_x, flip_y, move=move)


@dataclass(frozen=True, eq=False)
class Scene:
    """One view of one slice, ready to be asked about.

    `key` names its embedding; `shape` is (rows, columns) of the view; `regions` are the objects large enough to be
    asked for. Labels are kept packed: a data set of many slices stays in memory.
    """

    case: Case
    z: int
    view: View
    key: str
    shape: tuple[int, int]
    regions: tuple[Region, ...]
    _packed: bytes = field(repr=False)
    _dtype: str = field(repr=False)

    @property
    def labels(self) -> Integer[np.ndarray, "row column"]:
        """The reference labels of this view, those that nobody gave (`Case.ignore`) as they are in the file."""
        return np.frombuffer(zlib.decompress(self._packed), dtype=self._dtype).reshape(self.shape)

    def mask(self, region: Region) -> Bool[np.ndarray, "row column"]:
        """Where one object is."""
        return region.mask(self.labels)

    @property
    def judged(self) -> Bool[np.ndarray, "row column"] | None:
        """Where an answer is right or wrong: not on pixels that nobody labelled. None if that is everywhere."""
        if self.case.ignore is None:
            return None
        judged = self.labels != self.case.ignore
        return None if judged.all() else judged

    @property
    def name(self) -> str:
        """A name for people: the case and its slice."""
        return f"{self.case.dataset}/{self.case.name}#{self.z}"

    @property
    def identity(self) -> tuple[str, str, int, View]:
        """What tells it from all other scenes; two cases may show one image with other labels, or at another size."""
        return self.case.dataset, self.case.name, self.z, self.view


@dataclass(frozen=True, eq=False)
class Sight:
    """A scene with the pixels a model would be shown."""

    scene: Scene
    pixels: UInt8[np.ndarray, "row column *colour"]


def sights_of(
    case: Case,
    *,
    frame: Frame,
    encoder_hash: str,
    views: Views | None = None,
    views_of_volumes: Views | None = None,
    slices_per_volume: int | None = None,
    min_pixels: int = 1,
    intensity: str | None = None,
    absent: int | None = None,
) -> Iterator[Sight]:
    """The scenes of a case, with their pixels.

    Of a volume, those slices count on which something is labelled; with `slices_per_volume`, that many of them,
    spread evenly. An object with fewer than `min_pixels` pixels in a view is not asked for there, and a view without
    any object is left out; unless `absent` is given: then they are kept, and so many slices of each volume are added on
    which nothing is labelled, spread over all of those. `views_of_volumes` are those of slices of a volume, where they
    differ from `views`. Labelled is what belongs to one of the case's regions, if it has any.

    Raises:
        PalpateError: the case cannot be read.
    """
    labelled = case.read()
    image = with_modality(labelled.image)  # as a session settles it: what is trained on looks like what is segmented
    axis = slicing_axis(image, None) if image.is_volume else None
    seen = to_uint8(image, parse_intensity(intensity) if intensity else intensity_for(image))
    pixels = seen[None] if axis is None else slice_first(seen, axis)
    labels = labelled.labels[None] if axis is None else slice_first(labelled.labels, axis)
    labelled_voxels = _labelled(labels, case)
    if axis is not None:
        views = views_of_volumes or views
    numbers = [0] if axis is None else np.flatnonzero(labelled_voxels.any(axis=(1, 2))).tolist()
    chosen = _spread(numbers, slices_per_volume)
    if absent is not None and axis is not None:
        without = np.flatnonzero(~labelled_voxels.any(axis=(1, 2))).tolist()
        chosen = sorted(chosen + _spread(without, absent))
    elif absent is not None:
        chosen = [0]
    for z in chosen:
        shape = (pixels.shape[1], pixels.shape[2])
        for view in (views or Views()).of(case, z, shape):
            shown, marked = view.shown(pixels[z]), np.ascontiguousarray(view.of(labels[z]))
            present = case.objects(marked)
            regions = tuple(item for item in present if int(item.mask(marked).sum()) >= min_pixels)
            if not regions and absent is None:
                continue
            key = embedding_key(frame.canvas(shown), encoder_hash=encoder_hash)
            packed = zlib.compress(marked.tobytes(), level=1)
            extent = (marked.shape[0], marked.shape[1])
            yield Sight(Scene(case, z, view, key, extent, regions, packed, marked.dtype.str), shown)


def _labelled(labels: Integer[np.ndarray, "slice row column"], case: Case) -> Bool[np.ndarray, "slice row column"]:
    if case.regions:
        return np.isin(labels, sorted({value for region in case.regions for value in region.values}))
    return (labels > 0) & (labels != case.ignore) if case.ignore is not None else labels > 0


def _spread(numbers: Sequence[int], most: int | None) -> list[int]:
    if most is None or len(numbers) <= most:
        return list(numbers)
    # The middles of `most` equal parts: neither end, where hardly anything is left of an object.
    return [numbers[int((i + 0.5) * len(numbers) / most)] for i in range(most)]


def rng_for(*names: object) -> np.random.Generator:
    """A generator that depends on these names alone, not on what was drawn before, elsewhere or by another process."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32).tolist())
