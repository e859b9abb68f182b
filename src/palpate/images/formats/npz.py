"""The .npz cases of the MedSAM challenges (CVPR 2024 and later).

- `imgs` is (y, x), (y, x, 3) or (z, y, x). A name that begins with `2D` or `3D` decides, as in the challenge. Without
  it, three axes are colour if the last has length 3 and the values are 8 bits, otherwise a volume.
- `spacing` holds mm in the order x, y, z, unlike the array; without it a voxel is 1 mm.
- `boxes` holds [x_min, y_min, x_max, y_max] or [x_min, y_min, z_min, x_max, y_max, z_max] a row, edges inside.
- Nothing is ever unpickled: arrays of Python objects can run code and are refused.
"""

from __future__ import annotations

import io
import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from palpate.errors import FormatError, GeometryError
from palpate.images.formats import Mask, check_size
from palpate.images.formats.labels import unsigned_labels
from palpate.images.formats.payload import DEFLATE_LIMIT, check_claim, finish, opened, size_of, take
from palpate.images.geometry import Affine, affine_from_spacing
from palpate.images.image import Image, Source

_LONGEST_HEADER = 2**16

# What zipfile raises on damaged archives: its own errors; NotImplementedError and RuntimeError for methods and
# encryption it does not know; the others from fields that do not fit together.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, OSError, EOFError),
    *(ValueError, OverflowError, IndexError, zlib.error),
)

# The header of an array is a Python literal: what parsing a damaged one can raise.
_LITERAL_ERRORS = (
    *(ValueError, SyntaxError, TypeError, KeyError, EOFError, tokenize.TokenError),
    *(RecursionError, MemoryError, OverflowError),
)


def read(path: Path) -> Image:
    """Read the image of a case.

    Raises:
        FormatError: no archive, no `imgs`, damaged, too large, or Python objects inside.
        GeometryError: a spacing that is not three positive numbers.
    """
    arrays = _read_arrays(path, ("imgs", "spacing"))
    if "imgs" not in arrays:
        raise FormatError(f"{path} has no array `imgs`, so it is no case of the challenge; see the format's page")
    imgs = arrays["imgs"]
    return Image(imgs, _affine(arrays.get("spacing"), path), colour=_is_colour(imgs, path), source=Source(path, "npz"))


def read_boxes(path: Path) -> np.ndarray | None:
    """The prompts of a case: (n, 4) or (n, 6) numbers, or None if it has none.

    Raises:
        FormatError: no archive, damaged, Python objects, or another shape.
    """
    boxes = _read_arrays(path, ("boxes",)).get("boxes")
    if boxes is None:
        return None
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 6) or boxes.dtype.kind not in "uif":
        raise FormatError(
            f"`boxes` in {path} has shape {boxes.shape} of {boxes.dtype}; numbers of shape (n, 4) or (n, 6) are needed"
        )
    return boxes


def read_labels(path: Path) -> Image:
    """The reference of a case, its array `gts`, on the case's grid.

    Raises:
        FormatError: no archive, no `gts`, damaged, too large, or Python objects inside.
        GeometryError, ImageError: a spacing that is not three positive numbers, or labels that are no picture.
    """
    arrays = _read_arrays(path, ("gts", "spacing"))
    if "gts" not in arrays:
        raise FormatError(
            f"{path} has no array `gts`, so it holds no reference; take the labelled files of the challenge"
        )
    return Image(arrays["gts"], _affine(arrays.get("spacing"), path), source=Source(path, "npz"))


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        FormatError: no array, damaged, truncated, too large, or Python objects inside.
    """
    with opened(path) as file:
        available = size_of(file)
        start = io.BytesIO(file.read(_LONGEST_HEADER))
        shape, fortran, dtype = _checked_header(start, path.name, path)
        count = math.prod(shape) * dtype.itemsize
        check_claim(start.tell() + count, available, path=path)
        file.seek(start.tell())
        return _array(take(file, count, path=path), shape, fortran, dtype)


def write_mask(path: Path, mask: Mask) -> None:
    """Write a label map as the challenge wants results: the array `segs`, compressed."""
    np.savez_compressed(path, segs=unsigned_labels(mask))


def _is_colour(imgs: np.ndarray, path: Path) -> bool:
    if imgs.ndim == 4:
        return True
    if imgs.ndim != 3:
        return False
    if path.name.startswith("3D"):
        return False
    return path.name.startswith("2D") or (imgs.shape[-1] == 3 and imgs.dtype == np.uint8)


def _affine(spacing: np.ndarray | None, path: Path) -> Affine:
    if spacing is None:
        return affine_from_spacing((1.0, 1.0, 1.0))
    if spacing.shape != (3,) or spacing.dtype.kind not in "uif" or not (spacing > 0).all():
        raise GeometryError(
            f"`spacing` in {path} is {spacing.tolist()}; three positive numbers are needed: mm along x, y and z"
        )
    x, y, z = spacing.astype(np.float64)
    return affine_from_spacing((float(x), float(y), float(z)))


def _read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the named arrays that are there."""
    with opened(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename: info for info in archive.infolist()}
                return {
                    name: _read_array(archive, members[f"{name}.npy"], path)
                    for name in names
                    if f"{name}.npy" in members
                }
        except _ZIP_ERRORS as error:
            raise FormatError(f"{path} is not an .npz archive, or it is damaged ({error})") from error


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(f"{path} is compressed in a way that numpy never writes; save it with np.savez_compressed")
    with archive.open(member) as stream:
        # A header may claim to be 4 GiB long itself; numpy believes it, so it gets a stream that ends early.
        start = io.BytesIO(stream.read(_LONGEST_HEADER))
    shape, fortran, dtype = _checked_header(start, member.filename, path)
    count = math.prod(shape) * dtype.itemsize
    if start.tell() + count != member.file_size:
        raise FormatError(
            f"`{member.filename}` in {path} claims {count} bytes and the archive {member.file_size - start.tell()}; "
            "the file is damaged"
        )
    growth = DEFLATE_LIMIT if member.compress_type == zipfile.ZIP_DEFLATED else 1
    check_claim(member.file_size, member.compress_size, path=path, growth=growth)
    with archive.open(member) as stream:
        assert isinstance(stream, zipfile.ZipExtFile)
        take(stream, start.tell(), path=path)
        data = take(stream, count, path=path)
        finish(stream, path=path)
    return _array(data, shape, fortran, dtype)


def _checked_header(start: io.BytesIO, name: str, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """What an array's header claims, if it can be true; the stream stands where the values begin."""
    try:
        shape, fortran, dtype = _read_header(start)
    except _LITERAL_ERRORS as error:
        raise FormatError(f"`{name}` in {path} is no numpy array, or damaged ({error})") from error
    if dtype.hasobject:
        raise FormatError(
            f"`{name}` in {path} holds Python objects, which could run code when opened; where the file is "
            "trusted, save it again as numbers (np.savez_compressed with np.array(..., dtype=np.int64))"
        )
    check_size(tuple(extent or 1 for extent in shape) or (1,), dtype.itemsize, path=path)
    return shape, fortran, dtype


def _array(data: np.ndarray, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> np.ndarray:
    array = data.view(dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))


def _read_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    with warnings.catch_warnings():
        # Python 2 wrote its headers differently; numpy reads them and says so.
        warnings.filterwarnings("ignore", "Reading `.npy`", UserWarning)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(stream)
        elif version in ((2, 0), (3, 0)):
            shape, fortran, dtype = npy.read_array_header_2_0(stream)
        else:
            raise ValueError(f"version {version} of the format is not known")
    return tuple(map(int, shape)), fortran, dtype
