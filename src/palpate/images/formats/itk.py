"""MetaImage (.mha, and .mhd with its data file beside it), with SimpleITK, which is an extra.

SimpleITK says what a header means. The voxels are read here: where data is cut off or its compressed size is not
stated, SimpleITK returns zeros or arbitrary memory and no error. LPS+ becomes RAS+.

A mask of a picture is written as a picture if the picture lies where a two-dimensional file can say (an axial plane at
height 0), otherwise as a volume of one slice, so that it never loses its place.
"""

from __future__ import annotations

import importlib
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from palpate.errors import FormatError, GeometryError, OutputError, PalpateError
from palpate.images.formats import Mask, check_size
from palpate.images.formats.labels import unsigned_labels
from palpate.images.formats.payload import DEFLATE_LIMIT, beside, check_claim, inflate, opened, size_of, take
from palpate.images.geometry import LPS_TO_RAS, Affine
from palpate.images.image import Image, Source

_LONGEST_HEADER = 2**20
_LONGEST_LINE = 4096

_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4"},
    **{"MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
"""MET_LONG has four bytes in a file, whatever a long is on the machine."""

_MM = {"mm": 1.0, "um": 0.001, "cm": 10.0}
"""SimpleITK does not look at DistanceUnits."""

_PLACE = ("Offset", "Position", "Origin", "ElementSpacing", "ElementSize", "CenterOfRotation")
_TURN = ("TransformMatrix", "Rotation", "Orientation")


def read(path: Path) -> Image:
    """Read a picture or a volume, grey or in colour.

    Raises:
        FormatError: SimpleITK is missing; not MetaImage, damaged, truncated, or data outside the header's folder.
        GeometryError: an affine that places voxels nowhere.
    """
    sitk = _simpleitk(FormatError, f"reading {path.name}")
    with opened(path) as file:
        header = _read_header(file, path)
        shape, dtype, channels = _voxel_grid(header, path)
        affine = _affine(sitk, header, shape, path)
        count = math.prod(shape) * channels * dtype.itemsize
        if header["ElementDataFile"].upper() == "LOCAL":
            data = _voxels(file, header, count, path, local=True)
        else:
            with opened(beside(path, header["ElementDataFile"])) as data_file:
                data = _voxels(data_file, header, count, path, local=False)
    colour = channels == 3
    array = data.view(dtype).reshape((*shape, 3) if colour else shape)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return Image(array, affine, colour=colour, source=Source(path, "itk"))


def write_mask(path: Path, mask: Mask) -> None:
    """Write a label map as a compressed `.mha`."""
    sitk = _simpleitk(OutputError, "writing .mha")
    labels = unsigned_labels(mask)
    lps = LPS_TO_RAS @ mask.geometry.affine
    axes = labels.ndim
    if axes == 2 and not np.array_equal(_lifted(lps[:2, :2], lps[:2, 3]), lps):
        labels, axes = labels[np.newaxis], 3
    spacing = np.linalg.norm(lps[:axes, :axes], axis=0)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:axes, 3].tolist())
    image.SetDirection((lps[:axes, :axes] / spacing).ravel().tolist())
    image.SetMetaData("Description", " ".join(mask.description.split()))
    try:
        sitk.WriteImage(image, str(path), useCompression=True, imageIO="MetaImageIO")
    except RuntimeError as error:
        raise OutputError(f"SimpleITK could not write the mask: {_last_line(error)}") from error


def _simpleitk(kind: type[PalpateError], job: str) -> Any:
    try:
        return importlib.import_module("SimpleITK")
    except ImportError as error:
        raise kind(f"{job} needs SimpleITK; install it with: pip install 'palpate[sitk]'") from error


def _read_header(file: io.BufferedReader, path: Path) -> dict[str, str]:
    """The fields as text; the file then stands at the first byte after them."""
    header: dict[str, str] = {}
    while "ElementDataFile" not in header:
        line = file.readline(_LONGEST_LINE)
        name, *value = (part.strip() for part in re.split(r"[=:]", line.decode("utf-8", "replace"), maxsplit=1))
        if not value or len(line) == _LONGEST_LINE or file.tell() > _LONGEST_HEADER:
            raise FormatError(f"{path} is not a MetaImage file, or its header is damaged")
        if name in header:
            raise FormatError(f"the header of {path} gives {name} twice; it is damaged")
        header[name] = value[0]
    return header


def _voxel_grid(header: dict[str, str], path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """The spatial shape (z first), the type of a value, and values a voxel: 1 or 3."""
    if header.get("ObjectType", "Image") != "Image":
        raise FormatError(f"{path} holds a {header['ObjectType']}, not an image")
    axes = _whole_number(header, "NDims", path)
    if axes not in (2, 3):
        raise FormatError(f"{path} has {axes} axes; save the one picture or volume to segment as a file of its own")
    extents = _numbers(header, "DimSize", axes, path)
    if not all(extent.is_integer() for extent in extents):
        raise FormatError(f"{path} has {header['DimSize']} voxels; its header is damaged")
    shape = tuple(map(int, extents))[::-1]
    channels = _whole_number(header, "ElementNumberOfChannels", path, default=1)
    if header.get("ElementType") not in _TYPES:
        raise FormatError(f"{path} holds values of type {header.get('ElementType')}; MET_SHORT and the like are needed")
    dtype = np.dtype(_TYPES[header["ElementType"]])
    if channels not in (1, 3) or (channels == 3 and dtype.kind == "f"):
        raise FormatError(
            f"{path} has {channels} values of type {dtype} a voxel; one, or three integers for colour, are needed"
        )
    if not _flag(header, "BinaryData", default=True):
        raise FormatError(f"{path} holds its voxels as text; save it with binary data")
    msb = _flag(header, "BinaryDataByteOrderMSB") or _flag(header, "ElementByteOrderMSB")
    check_size(shape, dtype.itemsize * channels, path=path)
    return shape, dtype.newbyteorder(">" if msb else "<"), channels


def _affine(sitk: Any, header: dict[str, str], shape: tuple[int, ...], path: Path) -> Affine:
    axes = len(shape)
    # SimpleITK takes NaN for 0 and a negative spacing for a flip; neither is what anybody meant.
    for names, count in ((_PLACE, axes), (_TURN, axes * axes)):
        for name in names:
            if name in header and not np.isfinite(_numbers(header, name, count, path)).all():
                raise GeometryError(f"{name} of {path} is {header[name]}; repair the header")
    for name in ("ElementSpacing", "ElementSize"):
        if name in header and min(_numbers(header, name, axes, path)) <= 0:
            raise GeometryError(f"{name} of {path} is {header[name]}; positive numbers are needed: repair the header")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise FormatError(f"SimpleITK refuses the header of {path}: {_last_line(error)}") from error
    if tuple(reader.GetSize()) != shape[::-1]:
        raise FormatError(f"{path} says {shape[::-1]} voxels and SimpleITK {reader.GetSize()}; its header is damaged")
    directions = np.reshape(reader.GetDirection(), (axes, axes)) * np.array(reader.GetSpacing())
    unit = _MM.get(header.get("DistanceUnits", "mm"), 1.0)
    origin = np.array(reader.GetOrigin())
    if axes == 2:
        return LPS_TO_RAS @ _lifted(directions * unit, origin * unit)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * unit, origin * unit
    return LPS_TO_RAS @ affine


def _lifted(directions: np.ndarray, origin: np.ndarray) -> Affine:
    """The plane of a two-dimensional file in the patient: axial, at height 0, 1 mm thick."""
    affine = np.eye(4)
    affine[:2, :2], affine[:2, 3] = directions, origin
    return affine


def _voxels(file: io.BufferedReader, header: dict[str, str], count: int, path: Path, *, local: bool) -> np.ndarray:
    skip = _whole_number(header, "HeaderSize", path, default=0)
    available = size_of(file)
    if skip < -1 or (local and skip > 0):
        raise FormatError(f"{path} says that {skip} bytes come before its voxels; its header is damaged")
    if _flag(header, "CompressedData"):
        if "CompressedDataSize" not in header:
            raise FormatError(f"{path} does not say how large its compressed data is; save it again with a recent ITK")
        stored = _whole_number(header, "CompressedDataSize", path)
        check_claim(max(skip, 0) + stored, available, path=path)
        check_claim(count, stored, path=path, growth=DEFLATE_LIMIT)
        file.seek(max(skip, 0), io.SEEK_CUR)
        return inflate(take(file, stored, path=path), count, path=path)
    if skip == -1:
        skip = max(available - count, 0)  # the voxels are the last bytes of the file
    check_claim(skip + count, available, path=path)
    file.seek(skip, io.SEEK_CUR)
    return take(file, count, path=path)


def _whole_number(header: dict[str, str], name: str, path: Path, *, default: int | None = None) -> int:
    text = header.get(name, str(default))
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        raise FormatError(f"{name} of {path} is {text!r}; a whole number is needed, so its header is damaged")
    return int(text)


def _numbers(header: dict[str, str], name: str, count: int, path: Path) -> list[float]:
    try:
        numbers = [float(word) for word in header.get(name, "").split()]
    except ValueError as error:
        raise FormatError(f"{name} of {path} is {header[name]!r}; numbers are needed: its header is damaged") from error
    if len(numbers) != count:
        raise FormatError(f"{name} of {path} has {len(numbers)} numbers and not {count}; its header is damaged")
    return numbers


def _flag(header: dict[str, str], name: str, *, default: bool = False) -> bool:
    return header[name][:1] in ("T", "t", "1") if header.get(name) else default


def _last_line(error: RuntimeError) -> str:
    # SimpleITK's messages begin with source files and end with the reason.
    return str(error).strip().splitlines()[-1]
