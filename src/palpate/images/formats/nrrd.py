"""NRRD (.nrrd, .nhdr with its data file beside it) and 3D Slicer's segmentations (.seg.nrrd).

- pynrrd reads the header; the voxels are read here, because pynrrd unpacks without a limit.
- Encodings raw, gzip and bzip2. Text encodings are refused: nobody keeps images that way.
- Spaces RAS, LAS and LPS become RAS+. Any other space is taken for LPS, as ITK and Slicer do. A file with
  spacings alone lies like a picture (see `affine_from_spacing`); one without any has voxels of 1 mm.
- An axis of kind RGB-color, RGBA-color, 3-color or vector with three (four) integers is colour, wherever it stands.
- A mask of a picture is a picture in .nrrd, and a volume of one slice in .seg.nrrd, because Slicer has no other.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from scipy import ndimage

from palpate.errors import FormatError, OutputError
from palpate.images.formats import Mask, check_size
from palpate.images.formats.labels import unsigned_labels
from palpate.images.formats.payload import DEFLATE_LIMIT, beside, check_claim, finish, opened, size_of, take
from palpate.images.geometry import LPS_TO_RAS, Affine, affine_from_spacing
from palpate.images.image import Image, Source

_LONGEST_HEADER = 2**24

_TYPES = {
    name: np.dtype(code)
    for code, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}

_COLOUR_KINDS = {"rgb-color": 3, "3-color": 3, "vector": 3, "3-vector": 3, "rgba-color": 4, "4-color": 4}
"""Kinds of an axis that may be colour, with its length. `list` is not among them: Slicer's layers are lists."""

_SPACES_TO_RAS = {
    "right-anterior-superior": np.diag([1.0, 1.0, 1.0, 1.0]),
    "ras": np.diag([1.0, 1.0, 1.0, 1.0]),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
}

_MM = {
    **dict.fromkeys(("m", "meter", "metre", "meters", "metres"), 1000.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre", "centimeters", "centimetres"), 10.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometre"), 0.001),
}
"""Length of a unit in mm; one that is not here, or missing, means mm."""

# What pynrrd's header parser raises on damaged text: its own error; ValueError from numbers, quotes and lines
# without a colon; IndexError from an empty vector; StopIteration from an empty file; OverflowError from a huge
# integer; KeyError and TypeError from fields of the wrong kind.
_PARSER_ERRORS = (nrrd.NRRDError, ValueError, IndexError, StopIteration, OverflowError, KeyError, TypeError)


def read(path: Path) -> Image:
    """Read a picture or a volume, grey or in colour.

    Raises:
        FormatError: not NRRD, damaged, truncated, a time series or layers, or data outside the header's folder.
        GeometryError: an affine that places voxels nowhere.
    """
    with opened(path) as file:
        header = _read_header(file, path)
        sizes = _sizes(header, path)
        dtype = _dtype(header, path)
        spatial, colour = _axes(header, sizes, dtype, path)
        check_size(sizes, dtype.itemsize, path=path)
        count = math.prod(sizes) * dtype.itemsize
        detached = header.get("data file", header.get("datafile"))
        if detached is None:
            data = _voxels(file, header, count, path)
        else:
            with opened(beside(path, str(detached))) as data_file:
                data = _voxels(data_file, header, count, path)
    array = data.view(dtype).reshape(sizes[::-1]).astype(dtype.newbyteorder("="), copy=False)
    if colour is not None:
        array = np.moveaxis(array, len(sizes) - 1 - colour, -1)[..., :3]
    with np.errstate(all="ignore"):  # what overflows is infinite, and infinite affines are refused
        affine = _affine(header, spatial, len(sizes), path)
    return Image(np.ascontiguousarray(array), affine, colour=colour is not None, source=Source(path, "nrrd"))


def write_mask(path: Path, mask: Mask) -> None:
    """Write a label map: plain `.nrrd`, or with names and colours as 3D Slicer's `.seg.nrrd`.

    Segments are the labels in the mask and those that have a name, even if empty.
    """
    segmentation = path.name.lower().endswith(".seg.nrrd")
    labels = unsigned_labels(mask)
    if segmentation and labels.ndim == 2:
        labels = labels[np.newaxis]
    lps = LPS_TO_RAS @ mask.geometry.affine
    fields = [
        f"type: {labels.dtype.name}",
        f"dimension: {labels.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, labels.shape[::-1]))}",
        f"space directions: {' '.join(_vector(lps[:3, axis]) for axis in range(labels.ndim))}",
        f"kinds: {' '.join(['domain'] * labels.ndim)}",
        *(["endian: little"] if labels.itemsize > 1 else []),
        "encoding: gzip",
        f"content: {_one_line(mask.description)}",
        f"space origin: {_vector(lps[:3, 3])}",
        *(_slicer_fields(mask, labels) if segmentation else []),
    ]
    # Not nrrd.write: it stamps the time of day into the header, so that equal masks would differ as files, and it
    # cannot write a name that is not ASCII.
    head = "\n".join(["NRRD0005", *fields, "", ""]).encode()
    voxels = labels.astype(labels.dtype.newbyteorder("<"), copy=False).tobytes()
    path.write_bytes(head + gzip.compress(voxels, compresslevel=6, mtime=0))


def _read_header(file: io.BufferedReader, path: Path) -> dict[str, Any]:
    """The parsed fields; the file then stands at the first byte after the blank line."""
    lines: list[str] = []
    left = _LONGEST_HEADER
    while line := file.readline(left):
        left -= len(line)
        if not lines and not line.startswith(b"NRRD"):
            raise FormatError(f"{path} is not an NRRD file (or its first bytes are damaged)")
        if left <= 0:
            raise FormatError(f"the header of {path} does not end; the file is damaged")
        # The standard says ASCII; Slicer writes segment names in UTF-8.
        text = line.decode("utf-8", "replace").rstrip()
        if not text:
            break
        lines.append(text)
    try:
        # pynrrd casts what it reads to integers; NaN becomes a negative number, which is refused as a size.
        with np.errstate(invalid="ignore"):
            return dict(nrrd.read_header(lines))
    except _PARSER_ERRORS as error:
        raise FormatError(f"the NRRD header of {path} is damaged ({error}); export it again") from error


def _sizes(header: dict[str, Any], path: Path) -> tuple[int, ...]:
    if missing := [name for name in ("type", "dimension", "sizes", "encoding") if name not in header]:
        raise FormatError(f"the NRRD header of {path} has no {', '.join(missing)}; it is damaged")
    sizes = tuple(int(extent) for extent in header["sizes"])
    if header["dimension"] != len(sizes):
        raise FormatError(f"{path} claims {header['dimension']} axes and lists {len(sizes)}; its header is damaged")
    return sizes


def _dtype(header: dict[str, Any], path: Path) -> np.dtype:
    dtype = _TYPES.get(header["type"].lower())
    if dtype is None:
        raise FormatError(f"{path} holds values of type {header['type']!r}; integers or real numbers are needed")
    if dtype.itemsize == 1:
        return dtype
    order = str(header.get("endian", "")).lower()
    if order not in ("little", "big"):
        raise FormatError(f"{path} does not say in which order its bytes stand (endian); its header is damaged")
    return dtype.newbyteorder(order)


def _axes(header: dict[str, Any], sizes: tuple[int, ...], dtype: np.dtype, path: Path) -> tuple[list[int], int | None]:
    """The spatial axes in file order (x first), and the colour axis if there is one."""
    kinds = [kind.lower() for kind in header.get("kinds", [])]
    if not kinds:
        # An axis whose direction is `none` (NaN in pynrrd) is not in space.
        directions = header.get("space directions", np.zeros((len(sizes), 3)))
        kinds = ["vector" if np.isnan(direction).all() else "domain" for direction in directions]
    if len(kinds) != len(sizes):
        raise FormatError(
            f"{path} has {len(sizes)} axes and {len(kinds)} kinds or space directions; its header is damaged"
        )
    spatial = [axis for axis, kind in enumerate(kinds) if kind in ("domain", "space", "???", "none")]
    other = [axis for axis in range(len(sizes)) if axis not in spatial]
    colour = None
    if len(other) == 1 and _COLOUR_KINDS.get(kinds[other[0]]) == sizes[other[0]] and dtype.kind in "ui":
        colour = other[0]
    elif other:
        what = ", ".join(f"{kinds[axis]} of {sizes[axis]}" for axis in other)
        raise FormatError(
            f"{path} has {' x '.join(map(str, sizes))} values with an axis of kind {what}; save the one volume "
            "(or segmentation layer) to use as a file of its own"
        )
    if len(spatial) not in (2, 3):
        raise FormatError(f"{path} has {len(spatial)} spatial axes; a picture or a volume is needed")
    return spatial, colour


def _affine(header: dict[str, Any], spatial: list[int], axes: int, path: Path) -> Affine:
    directions = header.get("space directions")
    if directions is None:
        return _affine_without_space(header, spatial, axes, path)
    directions = np.asarray(directions, dtype=np.float64)
    if directions.shape not in ((axes, 2), (axes, 3)):
        raise FormatError(f"{path} has {axes} axes and space directions {directions.tolist()}; its header is damaged")
    world = directions.shape[1]
    origin = np.asarray(header.get("space origin", np.zeros(world)), dtype=np.float64)
    if origin.shape != (world,):
        raise FormatError(f"{path} has a space origin {origin.tolist()} in {world} dimensions; its header is damaged")
    if world < len(spatial):
        raise FormatError(f"{path} has {len(spatial)} spatial axes in a space of {world}; its header is damaged")

    affine = np.eye(4)
    affine[:world, : len(spatial)] = directions[spatial].T
    affine[:world, 3] = origin
    if world == 3 and len(spatial) == 2:
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        length = np.linalg.norm(normal)
        affine[:3, 2] = normal / length if length > 0 else 0.0  # parallel axes are refused by Image
    units = header.get("space units") or []
    for axis, unit in enumerate(units[:world]):
        affine[axis, [*range(len(spatial)), 3]] *= _MM.get(unit.lower(), 1.0)
    return _SPACES_TO_RAS.get(str(header.get("space", "")).lower(), LPS_TO_RAS) @ affine


def _affine_without_space(header: dict[str, Any], spatial: list[int], axes: int, path: Path) -> Affine:
    spacings = header.get("spacings")
    if spacings is None:
        return affine_from_spacing((1.0, 1.0, 1.0))
    if len(spacings) != axes:
        raise FormatError(f"{path} has {axes} axes and {len(spacings)} spacings; its header is damaged")
    units = header.get("units") or [""] * axes
    sizes = [float(spacings[axis]) * _MM.get(units[axis].lower() if axis < len(units) else "", 1.0) for axis in spatial]
    return affine_from_spacing((sizes[0], sizes[1], sizes[2] if len(sizes) == 3 else 1.0))


def _voxels(file: io.BufferedReader, header: dict[str, Any], count: int, path: Path) -> np.ndarray:
    lines = header.get("line skip", header.get("lineskip", 0))
    skip = header.get("byte skip", header.get("byteskip", 0))
    encoding = header["encoding"].lower()
    if lines < 0 or skip < -1:
        raise FormatError(f"{path} skips {lines} lines and {skip} bytes; its header is damaged")
    for _ in range(lines):
        if not file.readline(_LONGEST_HEADER):
            break
    if encoding == "raw":
        available = size_of(file)
        if skip == -1:
            skip = max(available - count, 0)  # the voxels are the last bytes of the file
        check_claim(skip + count, available, path=path)
        file.seek(skip, io.SEEK_CUR)
        return take(file, count, path=path)
    if encoding not in ("gzip", "gz", "bzip2", "bz2"):
        raise FormatError(f"{path} is encoded as {encoding!r}; raw, gzip and bzip2 are read, so save it as gzip")
    if skip > 0:
        raise FormatError(f"{path} skips {skip} bytes of compressed data; save it without a byte skip")
    if encoding in ("gzip", "gz"):
        check_claim(count, size_of(file), path=path, growth=DEFLATE_LIMIT)
    stream = gzip.GzipFile(fileobj=file) if encoding in ("gzip", "gz") else bz2.BZ2File(file)
    data = take(stream, count, path=path)
    finish(stream, path=path)
    return data


def _slicer_fields(mask: Mask, labels: np.ndarray) -> list[str]:
    """The fields by which 3D Slicer knows segments; all of them lie in one layer, since labels do not overlap."""
    boxes = ndimage.find_objects(labels)
    present = {label for label, box in enumerate(boxes, start=1) if box is not None}
    if any(label <= 0 for label in mask.names):
        raise OutputError(f"the names {dict(mask.names)} name a label below 1; 0 is the background")
    fields = [
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_ConversionParameters:=",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
        "Segmentation_SourceRepresentation:=Binary labelmap",
    ]
    for number, label in enumerate(sorted(present | set(mask.names))):
        box = boxes[label - 1] if label <= len(boxes) else None
        # The first and the last voxel along x, y and z; Slicer's sign for nothing is a last one before the first.
        extent = [f"{side.start} {side.stop - 1}" for side in reversed(box)] if box else ["0 -1"] * 3
        fields += [
            f"Segment{number}_Color:={' '.join(f'{part / 255:.6g}' for part in mask.colour(label))}",
            f"Segment{number}_ColorAutoGenerated:={int(label not in mask.colours)}",
            f"Segment{number}_Extent:={' '.join(extent)}",
            f"Segment{number}_ID:=Segment_{label}",
            f"Segment{number}_LabelValue:={label}",
            f"Segment{number}_Layer:=0",
            f"Segment{number}_Name:={_one_line(mask.name(label))}",
            f"Segment{number}_NameAutoGenerated:={int(label not in mask.names)}",
            f"Segment{number}_Tags:=Segmentation.Status:inprogress|",
        ]
    return fields


def _vector(values: np.ndarray) -> str:
    # repr is the shortest text that reads back as the same float64.
    return f"({','.join(repr(float(value)) for value in values)})"


def _one_line(text: str) -> str:
    return " ".join(text.split())
