"""Files that MONAI Label's clients get and send: images as they see them, masks of them, and labels back on our grid.

A client's voxel (i, j, k) is an index into the file that it has, along its first, second and third axis. Whether the
file is the folder's own or was written here, that is the array's [k, j, i].
"""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Shaped, UInt8
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from palpate.datasets.files import files_of
from palpate.errors import FormatError, InputError
from palpate.images.formats import Mask, suffix_of, write_mask
from palpate.images.geometry import LPS_TO_RAS, Geometry
from palpate.images.image import Image
from palpate.server.desk import Desk

RESULT_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".seg.nrrd", ".mha")

RESULT_TYPES = ("uint8", "uint16", "int16", "int32", "uint32", "float32")

_KEPT = 8
"""Images that were written for clients and are kept for the next one who asks."""

_SAME_VOXEL = 0.1
"""How far, in voxels, a label map's voxel may lie from the image's to be the same; headers round."""


@dataclass(frozen=True)
class Served:
    """A file for clients: where it lies, what they should call it, and its SHA-256."""

    path: Path
    name: str
    sha256: str


class ServedImages:
    """The images of a desk as files that every client reads alike.

    NIfTI and NRRD go out as they are, where there is only one way to understand them; everything else is written as
    NIfTI into `folder` first.
    """

    def __init__(self, desk: Desk, folder: Path) -> None:
        self._desk = desk
        self._folder = folder
        self._lock = threading.Lock()
        self._ready: OrderedDict[tuple[str, int], Served] = OrderedDict()

    def of(self, case: str) -> Served:
        """The file of a case.

        Raises:
            UnknownCase: there is none. FormatError and others: the image cannot be read.
        """
        entry = self._desk.entry(case)
        key = (case, entry.path.stat().st_mtime_ns if entry.path.exists() else 0)
        with self._lock:
            if key in self._ready:
                self._ready.move_to_end(key)
                return self._ready[key]
            suffix = suffix_of(entry.path)
            if not entry.damage and entry.path.is_file() and _read_alike(entry.path, suffix):
                served = Served(entry.path, _named(case, suffix), _sha256(entry.path))
            else:
                path = self._folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.nii.gz"
                write_image(path, self._desk.image(case))
                served = Served(path, _named(case, ".nii.gz"), _sha256(path))
            self._ready[key] = served
            while len(self._ready) > _KEPT:
                _, old = self._ready.popitem(last=False)
                if old.path.parent == self._folder:
                    old.path.unlink(missing_ok=True)
            return served


def write_image(path: Path, image: Image) -> None:
    """Write an image as NIfTI in the order of its array; a picture is a volume of one slice."""
    array = image.array if image.is_volume else image.array[None]
    if image.colour:
        if array.dtype != np.uint8:
            array = (array.astype(np.float64) / max(float(array.max()), 1.0) * 255).astype(np.uint8)
        array = np.ascontiguousarray(array).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    elif array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype.itemsize == 8 or array.dtype == np.float16:
        array = array.astype(np.float64 if array.dtype.itemsize == 8 else np.float32)
    volume = Nifti1Image(array.T, image.affine)
    volume.header.set_xyzt_units("mm")
    volume.header.set_sform(image.affine, code="scanner")
    # Both ways of saying where voxels lie, so that no reader has a choice; a quaternion cannot hold shear.
    volume.header.set_qform(image.affine, code="scanner", strip_shears=True)
    if not np.allclose(volume.get_qform(), image.affine, atol=1e-3):
        volume.header.set_qform(None, code="unknown")
    nib.save(volume, path)


def write_result(
    path: Path,
    labels: UInt8[np.ndarray, "..."],
    geometry: Geometry,
    *,
    names: Mapping[int, str],
    dtype: str = "uint8",
    compress: bool = True,
) -> None:
    """Write a label map of an image, on its grid; of a picture it is a volume of one slice.

    Raises:
        InputError: a suffix or a type that is not written here.
    """
    suffix = suffix_of(path, dict.fromkeys(RESULT_SUFFIXES, ""))
    if not suffix or dtype not in RESULT_TYPES:
        raise InputError(
            f"masks are written as {', '.join(RESULT_SUFFIXES)} of type {', '.join(RESULT_TYPES)}; "
            f"{path.suffix[:20]!r} of {dtype[:20]!r} was asked for"
        )
    if labels.ndim == 2:
        labels, geometry = labels[None], Geometry((1, *geometry.shape), geometry.affine, geometry.source)
    if suffix == ".nrrd":
        _write_nrrd(path, labels.astype(dtype), geometry, compress=compress)
        return
    write_mask(path, Mask(labels, geometry, names), overwrite=True)
    if dtype != "uint8" and suffix in (".nii", ".nii.gz"):
        written = nib.load(path)
        assert isinstance(written, Nifti1Image)
        header = written.header.copy()
        header.set_data_dtype(dtype)
        nib.save(type(written)(np.asarray(written.dataobj).astype(dtype), None, header), path)


def on_grid(labels: Image, image: Image) -> UInt8[np.ndarray, "..."]:
    """A label map from elsewhere on the grid of the image, in array order.

    It may be cropped, and its axes in another order or the other way round; its voxels must be the image's own.

    Raises:
        InputError: voxels of another size or place, values that are no labels, or labels outside the image.
    """
    values = _whole_numbers(labels)
    volume = values if labels.is_volume else values[None]
    target = np.zeros(image.shape if image.is_volume else (1, *image.shape), dtype=np.uint8)
    to_image = np.linalg.inv(image.affine) @ labels.affine  # label voxel (x, y, z) -> image voxel
    if not image.is_volume and not labels.is_volume:
        to_image[2, :], to_image[:, 2] = (0, 0, 1, 0), (0, 0, 1, 0)
    turn = np.rint(to_image[:3, :3])
    far = np.array(volume.shape[::-1]) - 1
    off = np.abs(to_image[:3, :3] - turn) @ far + np.abs(to_image[:3, 3] - np.rint(to_image[:3, 3]))
    permutes = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    if not permutes or off.max() > _SAME_VOXEL:
        raise InputError(
            "the label map lies on another grid than its image (resampled, or of another image); export it with the "
            "image as reference geometry"
        )
    xyz = volume.T
    order = [int(np.flatnonzero(turn[axis])[0]) for axis in range(3)]  # of each image axis, the label map's
    first = np.rint(to_image[:3, 3]).astype(int)
    moved = xyz.transpose(order)
    for axis in range(3):
        if turn[axis, order[axis]] < 0:
            moved = np.flip(moved, axis)
            first[axis] -= moved.shape[axis] - 1
    inside = tuple(
        slice(max(0, -start), max(0, min(extent, size - start)))
        for start, extent, size in zip(first, moved.shape, target.T.shape, strict=True)
    )
    if int((moved != 0).sum()) != int((moved[inside] != 0).sum()):
        raise InputError("the label map has labels outside its image; export it with the image as reference geometry")
    there = tuple(slice(start + part.start, start + part.stop) for start, part in zip(first, inside, strict=True))
    if moved[inside].size:
        target.T[there] = moved[inside]
    return target if image.is_volume else target[0]


def from_raw(data: bytes, image: Image) -> UInt8[np.ndarray, "..."]:
    """OHIF's label map: voxels without a header, 8 or 16 bits each, in the order of the image.

    Raises:
        InputError: another number of bytes than the image's voxels need, or values above 254.
    """
    count = int(np.prod(image.shape))
    if len(data) not in (count, 2 * count):
        raise InputError(
            f"a label map of {len(data)} bytes came for an image of {count} voxels; send one or two a voxel"
        )
    values = np.frombuffer(data, np.uint8 if len(data) == count else "<u2").reshape(image.shape)
    return _checked_values(values)


def _whole_numbers(labels: Image) -> UInt8[np.ndarray, "..."]:
    values = labels.array
    if labels.colour:
        raise InputError("a picture in colour came as label map; send whole numbers, one a pixel")
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        raise InputError("the label map holds fractions; labels are whole numbers from 0 to 254")
    return _checked_values(values)


def _checked_values(values: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    if values.size and (values.min() < 0 or values.max() > 254):
        raise InputError(f"the label map holds {values.min()} to {values.max()}; labels are from 0 to 254")
    return values.astype(np.uint8)


def _write_nrrd(path: Path, labels: Shaped[np.ndarray, "z y x"], geometry: Geometry, *, compress: bool) -> None:
    lps = LPS_TO_RAS @ geometry.affine
    kind = "float" if labels.dtype == np.float32 else labels.dtype.name
    vectors = ["(" + ",".join(repr(float(value)) for value in lps[:3, column]) + ")" for column in range(4)]
    head = "\n".join(
        [
            "NRRD0004",
            f"type: {kind}",
            "dimension: 3",
            "space: left-posterior-superior",
            f"sizes: {' '.join(map(str, labels.shape[::-1]))}",
            f"space directions: {' '.join(vectors[:3])}",
            "kinds: domain domain domain",
            "endian: little",
            f"encoding: {'gzip' if compress else 'raw'}",
            f"space origin: {vectors[3]}",
            "",
            "",
        ]
    )
    voxels = labels.astype(labels.dtype.newbyteorder("<"), copy=False).tobytes()
    path.write_bytes(head.encode() + (gzip.compress(voxels, compresslevel=4, mtime=0) if compress else voxels))


def _read_alike(path: Path, suffix: str) -> bool:
    """Whether ITK, which 3D Slicer reads with, finds the same volume in a file as we do."""
    if suffix == ".nrrd":
        return len(list(files_of(path))) == 1 and not path.name.lower().endswith(".seg.nrrd")
    if suffix not in (".nii", ".nii.gz"):
        return False
    try:
        volume = nib.load(path)
        if not isinstance(volume, Nifti1Image):
            return False
        header = volume.header
        sform, sform_code = header.get_sform(coded=True)
        qform, qform_code = header.get_qform(coded=True)
        units = header.get_xyzt_units()[0]
    except (ImageFileError, HeaderDataError, WrapStructError, OSError, ValueError, EOFError, KeyError):
        return False  # our own reader will say what is wrong
    if len(volume.shape) != 3 or units not in ("mm", "unknown"):
        return False
    if sform_code and qform_code:
        return sform is not None and qform is not None and bool(np.allclose(sform, qform, atol=1e-3))
    if sform is not None and sform_code:
        axes = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
        return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-5))
    return bool(qform_code)


def _named(case: str, suffix: str) -> str:
    """What a client calls the file: it tells its format by the end of this."""
    if case.lower().endswith(suffix):
        return case
    known = suffix_of(Path(case))
    return (case[: -len(known)] if known else case) + suffix


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FormatError(f"cannot read {path.name}: {error.strerror or error}") from error
