"""NIfTI-1 and NIfTI-2 in one file, plain or gzipped (.nii, .nii.gz).

- A file (x, y) is a picture, (x, y, z) a volume; further axes must have length 1 and vanish. A volume of one
  slice stays a volume.
- The affine is the one nibabel chooses: sform, else qform, else voxel sizes. Metres and microns become mm.
- Values are scaled as the header says. Without scaling they keep their type; a whole-numbered slope and intercept
  give integers; anything else gives float32, or float64 where float32 would merge neighbouring values.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Shaped
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from palpate.errors import FormatError, GeometryError
from palpate.images.formats import Mask, check_size
from palpate.images.formats.labels import unsigned_labels
from palpate.images.formats.payload import DEFLATE_LIMIT, check_claim, finish, opened, size_of, take
from palpate.images.geometry import Affine
from palpate.images.image import Image, Source

_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Length of the spatial units in mm, by NIfTI code; a file that names none means mm."""

_PLACE = (
    *("qform_code", "sform_code", "pixdim", "xyzt_units", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
"""The header fields that say where voxels are."""

# nibabel repairs small sins of a header and says so on a logger, which by default writes to the terminal. The
# sins that matter are refused before; this logger belongs to nobody and writes nowhere.
_NOWHERE = logging.Logger("nifti repairs", level=logging.CRITICAL + 1)


@dataclass(frozen=True, eq=False)
class _Header:
    fields: Nifti1Header
    shape: tuple[int, ...]  # (x, y) or (x, y, z)
    dtype: np.dtype
    offset: int  # of the first voxel
    affine: Affine  # in mm


def read(path: Path) -> Image:
    """Read a picture or a volume.

    Raises:
        FormatError: not NIfTI, damaged, truncated, a time series, or values that are no real numbers.
        GeometryError: zero voxel size or an affine that places voxels nowhere.
    """
    with opened(path) as file:
        available = size_of(file)
        packed = file.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=file) if packed else file
        header = _read_header(stream, path)
        check_size(header.shape, header.dtype.itemsize, path=path)
        bytes_of_voxels = math.prod(header.shape) * header.dtype.itemsize
        check_claim(header.offset + bytes_of_voxels, available, path=path, growth=DEFLATE_LIMIT if packed else 1)
        _skip_to(stream, header.offset, path=path)
        data = take(stream, bytes_of_voxels, path=path)
        if packed:
            finish(stream, path=path)
    stored = data.view(header.dtype).reshape(header.shape[::-1])
    colour = stored.dtype.names is not None
    if colour:
        array = np.stack([stored[channel] for channel in ("R", "G", "B")], axis=-1)
    else:
        array = _rescaled(stored.astype(stored.dtype.newbyteorder("="), copy=False), header.fields, path)
    return Image(array, header.affine, colour=colour, source=Source(path, "nifti"))


def write_mask(path: Path, mask: Mask) -> None:
    """Write a label map on the grid it was drawn on.

    If that grid came from a NIfTI file, the fields that place its voxels are copied bit by bit.
    """
    labels = unsigned_labels(mask).T
    source = _source_header(mask)
    if source is None:
        header = _placed_header(labels, mask.geometry.affine)
    else:
        kind = Nifti2Image if isinstance(source, Nifti2Header) else _kind_for(labels)
        header = kind(labels, np.eye(4)).header
        for field in _PLACE:
            header[field] = source[field]
    header.set_data_dtype(labels.dtype)
    header.set_intent("label", name="labels")
    header["cal_min"], header["cal_max"] = 0, labels.max()
    header["descrip"] = mask.description.encode("ascii", "replace")[:79]
    # Without an affine nibabel leaves the header's own as it is.
    nib.save((Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image)(labels, None, header), path)


def write_grey(path: Path, array: Shaped[np.ndarray, "..."], affine: Affine) -> None:
    """Write the grey values of an image, (z, y, x) or (y, x), on the grid of an affine (RAS+, in mm).

    Values keep their type where readers know it: bool becomes uint8, float16 float32, and integers of 64 bits become
    int32, or float64 where they do not fit.
    """
    values = array.T
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    elif values.dtype.kind in "ui" and values.dtype.itemsize == 8:
        most = np.iinfo(np.int32)
        fits = values.size == 0 or (int(values.min()) >= most.min and int(values.max()) <= most.max)
        values = values.astype(np.int32 if fits else np.float64)
    header = _placed_header(values, affine)
    header.set_data_dtype(values.dtype)
    nib.save((Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image)(values, None, header), path)


def _kind_for(array: Shaped[np.ndarray, "..."]) -> type[Nifti1Image]:
    return Nifti2Image if max(array.shape) > np.iinfo(np.int16).max else Nifti1Image


def _placed_header(array: Shaped[np.ndarray, "..."], affine: Affine) -> Nifti1Header:
    header: Nifti1Header = _kind_for(array)(array, affine).header
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    # A quaternion cannot hold shear (gantry tilt); a wrong qform beside a right sform is worse than none.
    header.set_qform(affine, code="unknown" if _sheared(affine) else "scanner")
    return header


def _read_header(stream: io.BufferedIOBase, path: Path) -> _Header:
    start = take(stream, 4, path=path).tobytes()
    sizes = {start_of.to_bytes(4, order): start_of for start_of in (348, 540) for order in ("little", "big")}
    if start not in sizes:
        raise FormatError(f"{path} is not a NIfTI file (or its first bytes are damaged)")
    kind = Nifti1Header if sizes[start] == 348 else Nifti2Header
    block = start + take(stream, sizes[start] - 4, path=path).tobytes()
    try:
        fields = kind(block, check=False)
    except WrapStructError as error:  # pragma: no cover - the length is right by construction
        raise FormatError(f"{path} is not a NIfTI file: {error}") from error
    magic = bytes(fields["magic"])[:3].rstrip(b"\0")
    if magic in (b"ni1", b"ni2"):
        raise FormatError(f"{path} is half of a .hdr/.img pair; save the pair as one .nii.gz first")
    if magic not in (b"n+1", b"n+2"):
        raise FormatError(f"{path} is not a NIfTI file (an ANALYZE file, perhaps); save it as .nii.gz first")

    shape = _spatial_shape(fields, path)
    _check_voxel_sizes(fields, len(shape), path)
    try:
        fields.check_fix(logger=_NOWHERE)
        dtype = fields.get_data_dtype()
    except HeaderDataError as error:
        raise FormatError(f"the NIfTI header of {path} is damaged: {error}") from error
    if dtype.names is None and dtype.kind not in "uif":
        raise FormatError(f"{path} holds values of type {dtype}; integers, real numbers or RGB are needed")
    offset = float(fields["vox_offset"])
    if not np.isfinite(offset) or offset < len(block):
        raise FormatError(f"{path} claims that its voxels begin at byte {offset}; its header is damaged")
    return _Header(fields, shape, dtype, int(offset), _affine(fields, path))


def _spatial_shape(fields: Nifti1Header, path: Path) -> tuple[int, ...]:
    count = int(fields["dim"][0])
    if not 1 <= count <= 7:
        raise FormatError(f"{path} claims {count} axes; its header is damaged")
    shape = tuple(int(extent) for extent in fields["dim"][1 : count + 1])
    if any(extent <= 0 for extent in shape):
        raise FormatError(f"{path} claims a shape of {shape}; its header is damaged")
    if any(extent != 1 for extent in shape[3:]):
        raise FormatError(
            f"{path} holds {' x '.join(map(str, shape))} voxels, a series of volumes; save the one to segment as "
            "a file of its own (in Python: nibabel.load(path).slicer[..., 0].to_filename(new_path))"
        )
    if count < 2:
        raise FormatError(f"{path} holds a line of {shape[0]} voxels; a picture or a volume is needed")
    return shape[:3]


def _check_voxel_sizes(fields: Nifti1Header, axes: int, path: Path) -> None:
    # nibabel turns a voxel size of zero into 1 mm without a word that a caller could see.
    sizes = fields["pixdim"][1 : 1 + axes]
    bad = ", ".join(name for name, size in zip("xyz", sizes, strict=False) if size == 0 or not np.isfinite(size))
    if bad:
        raise GeometryError(
            f"{path} gives axis {bad} a voxel size of zero or none at all (pixdim {sizes.tolist()}); "
            "set the true size in its header"
        )
    if axes == 2 and fields["pixdim"][3] == 0:
        fields["pixdim"][3] = 1  # a picture has no third axis, so nothing is claimed about it


def _affine(fields: Nifti1Header, path: Path) -> Affine:
    try:
        with np.errstate(all="ignore"):  # what overflows is infinite, and infinite affines are refused
            affine = np.array(fields.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:  # ValueError: a quaternion longer than 1
        raise GeometryError(f"the orientation in the header of {path} is damaged: {error}") from error
    affine[:3] *= _MM.get(int(fields["xyzt_units"]) & 7, 1.0)
    return affine


def _skip_to(stream: io.BufferedIOBase, offset: int, *, path: Path) -> None:
    # Header extensions: nothing in them is needed. A gzip stream can only be read past, not jumped over.
    while (ahead := offset - stream.tell()) > 0:
        take(stream, min(ahead, 2**20), path=path)


def _rescaled(stored: np.ndarray, fields: Nifti1Header, path: Path) -> np.ndarray:
    try:
        slope, intercept = fields.get_slope_inter()
    except HeaderDataError as error:
        raise FormatError(f"the intensity scaling in {path} is damaged: {error}") from error
    if slope is None or (slope == 1 and intercept == 0):
        return stored
    assert intercept is not None  # nibabel gives both or neither
    if stored.dtype.kind in "ui" and float(slope).is_integer() and float(intercept).is_integer():
        factor, shift = int(slope), int(intercept)
        products = [factor * int(stored.min()), factor * int(stored.max())]
        ends = [factor, shift, int(stored.min()), int(stored.max()), *products, *(end + shift for end in products)]
        for small in (np.int16, np.int32, np.int64):
            # Everything on the way fits, so nothing wraps around.
            if np.iinfo(small).min <= min(ends) and max(ends) <= np.iinfo(small).max:
                return stored.astype(small) * small(factor) + small(shift)
    with np.errstate(all="ignore"):  # what overflows is infinite, and infinite voxels are refused
        values = stored.astype(np.float64) * slope + intercept
        if stored.dtype == np.float64:
            return values
        # Neighbouring stored integers are one slope apart; float32 must still tell them from each other.
        finest = abs(slope) if stored.dtype.kind in "ui" else np.inf
        largest = max(abs(float(values.min())), abs(float(values.max())))
        fine = largest * float(np.finfo(np.float32).eps) < finest / 2
        return values.astype(np.float32) if fine else values


def _sheared(affine: Affine) -> bool:
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(directions.T @ directions, np.eye(3), atol=1e-6)


def _source_header(mask: Mask) -> Nifti1Header | None:
    """The header the mask's grid came from, if it is still there and still says the same."""
    source = mask.geometry.source
    if source is None or source.format != "nifti":
        return None
    try:
        with opened(source.path) as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            header = _read_header(gzip.GzipFile(fileobj=file) if packed else file, source.path)
    except (FormatError, GeometryError):  # moved or changed since it was read: the geometry itself still holds
        return None
    same = header.shape[::-1] == mask.geometry.shape and np.array_equal(header.affine, mask.geometry.affine)
    return header.fields if same else None
