"""Arrays as nnInteractive's clients send them: a short header, then chunks that blosc2 compressed.

All numbers are little-endian.

| bytes | what |
|---|---|
| 4 | the letters NNIA |
| 1 | version of the format: 1 |
| 1 | codec: 1 for zstd, 2 for lz4 |
| 1 | number of axes n |
| 1 | length d of the type's name |
| d | the type's name in ASCII, as NumPy has it: uint8, float32, ... |
| 8 n | the extent of each axis, signed |
| 4 | number of chunks |
| then for each chunk: 8 | its bytes once unpacked, u, at most 2^30 from the client |
| 8 | its bytes as they come, c |
| c | a blosc2 chunk: a header of 32 bytes of its own, which says u and c again, and what it was compressed with |

Nothing that is written there is believed. What the header claims must fit a limit that the caller gives, and the chunks
that came must add up to just that, before anything is allocated for it. Of blosc2 only what clients use is let through
to its C code: a chunk that names another codec or filter could make it look for plug-ins, a lazy one for a file, and
one without initialised values would show what was in memory before.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, cast

import blosc2
import numpy as np

from palpate.errors import FormatError

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)
"""The types that travel; others are refused by name, before NumPy makes anything of them."""

_MAGIC = b"NNIA"
_VERSION = 1
_ZSTD = 1
_CODECS = {1: "zstd", 2: "lz4"}
_MOST_AXES = 8
_CHUNK = 2**30

# A blosc2 chunk (format 2, extended header).
_BLOSC_HEADER = 32
_BLOSC_VERSIONS = (3, 4, 5)
_EXTENDED = 0b101  # both old filter flags at once say that the header is a long one
_COPIED = 0b10  # nothing was gained, so the bytes are there as they were
_BLOSC_CODECS = (1, 4)  # lz4 (and lz4hc) and zstd, in the three highest bits of the flags
_FILTERS = (0, 1, 2)  # none, shuffle, bitshuffle; others lose digits or are plug-ins
_SPECIAL = (0, 1, 2, 3)  # none, zeros, NaN, one value; 4 leaves the memory as it was
_FORBIDDEN = 0b0000_1101  # a dictionary, a codec with instruments, a lazy chunk


@dataclass(frozen=True)
class Header:
    """What a packed array claims to be; `payload` is where its chunks start."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    payload: int

    @property
    def nbytes(self) -> int:
        """How large the array would be. Extents are Python's numbers here, which do not overflow."""
        size = self.dtype.itemsize
        for extent in self.shape:
            size *= extent
        return size


def read_header(data: bytes) -> Header:
    """What a packed array claims to be. Nothing is allocated for it.

    Raises:
        FormatError: it is no packed array, or one of another version, codec or type.
    """
    if len(data) < 8 or data[:4] != _MAGIC:
        raise FormatError("this is no packed array: it does not start with NNIA; send what nninteractive-client packs")
    version, codec, axes, length = data[4:8]
    if version != _VERSION:
        raise FormatError(f"the packed array has version {version}; {_VERSION} is read here")
    if codec not in _CODECS:
        raise FormatError(f"the packed array has codec {codec}; 1 (zstd) and 2 (lz4) are read here")
    if axes > _MOST_AXES:
        raise FormatError(f"the packed array has {axes} axes; {_MOST_AXES} are the most")
    payload = 8 + length + 8 * axes
    if len(data) < payload:
        raise FormatError(f"the packed array ends within its header, after {len(data)} bytes")
    name = data[8 : 8 + length].decode("ascii", errors="replace")
    if name not in DTYPES:
        raise FormatError(f"the packed array holds values of type {name[:40]!r}; {', '.join(DTYPES)} are read here")
    shape = tuple(int(extent) for extent in struct.unpack_from(f"<{axes}q", data, 8 + length))
    if any(extent < 0 for extent in shape):
        raise FormatError(f"the packed array claims the shape {shape}; no extent can be negative")
    return Header(shape, np.dtype(name), payload)


def unpack(data: bytes, *, most_bytes: int) -> np.ndarray:
    """The array that was packed, C-contiguous and writable.

    Raises:
        FormatError: it is damaged or no packed array, or it would take more than `most_bytes` of memory.
    """
    header = read_header(data)
    size = header.nbytes
    if size > most_bytes:
        raise FormatError(
            f"the packed array claims {header.shape} values of {header.dtype}, {size} bytes; {most_bytes} are the most"
        )
    # Every chunk is looked at before the first is unpacked: an array is only made for what is really there.
    chunks = _chunks(data, header)
    if sum(unpacked for _, _, unpacked in chunks) != size:
        raise FormatError(
            f"the chunks hold {sum(unpacked for _, _, unpacked in chunks)} bytes; a {header.dtype} array of shape "
            f"{header.shape} takes {size}"
        )
    array = np.empty(header.shape, dtype=header.dtype)
    into, source, start = array.reshape(-1).view(np.uint8), memoryview(data), 0
    for first, end, unpacked in chunks:
        try:
            cast(Any, blosc2).decompress2(source[first:end], dst=into[start : start + unpacked])
        except (RuntimeError, ValueError, TypeError) as error:
            raise FormatError(f"a chunk of the packed array is damaged ({error}); send it again") from None
        start += unpacked
    if header.dtype == np.bool_ and (into > 1).any():
        raise FormatError("the packed array holds truth values other than 0 and 1")
    return array


def pack(array: np.ndarray) -> bytes:
    """An array as the client's own `unpack_array` reads it.

    Raises:
        FormatError: values of a type that does not travel.
    """
    name = array.dtype.name
    if name not in DTYPES or array.ndim > _MOST_AXES:
        raise FormatError(f"arrays of {name} with {array.ndim} axes are not packed; choose {', '.join(DTYPES)}")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    parts = [
        struct.pack("<4sBBBB", _MAGIC, _VERSION, _ZSTD, array.ndim, len(name)),
        name.encode("ascii"),
        struct.pack(f"<{array.ndim}q", *array.shape),
    ]
    raw = memoryview(cast(Any, little.reshape(-1).view(np.uint8)))
    starts = range(0, raw.nbytes, _CHUNK)
    parts.append(struct.pack("<I", len(starts)))
    for start in starts:
        piece = raw[start : start + _CHUNK]
        # The size of a value is told: zeros of a length that it does not divide make a chunk that cannot be unpacked.
        chunk = cast(
            bytes,
            cast(Any, blosc2).compress2(
                piece,
                typesize=array.dtype.itemsize,
                codec=blosc2.Codec.ZSTD,
                clevel=3,
                filters=[blosc2.Filter.NOFILTER],
                nthreads=1,
            ),
        )
        parts += [struct.pack("<QQ", piece.nbytes, len(chunk)), chunk]
    return b"".join(parts)


def _chunks(data: bytes, header: Header) -> list[tuple[int, int, int]]:
    """Where each chunk starts and ends, and the bytes it unpacks to; all lengths agree with each other."""
    if len(data) < header.payload + 4:
        raise FormatError("the packed array ends before its chunks")
    (count,) = struct.unpack_from("<I", data, header.payload)
    at = header.payload + 4
    if count > (len(data) - at) // (16 + _BLOSC_HEADER):
        raise FormatError(f"the packed array claims {count} chunks, for which {len(data) - at} bytes are too few")
    found: list[tuple[int, int, int]] = []
    for number in range(count):
        if len(data) - at < 16:
            raise FormatError(f"the packed array ends before chunk {number} of {count}")
        unpacked, length = struct.unpack_from("<QQ", data, at)
        at += 16
        if length > len(data) - at:
            raise FormatError(f"chunk {number} claims {length} bytes, but {len(data) - at} are left")
        if not 0 < unpacked < 2**31 or unpacked % header.dtype.itemsize:
            raise FormatError(f"chunk {number} claims to unpack to {unpacked} bytes, which holds no {header.dtype}")
        _check_chunk(data[at : at + _BLOSC_HEADER], number, unpacked=unpacked, length=length)
        found.append((at, at + length, unpacked))
        at += length
    if at != len(data):
        raise FormatError(f"{len(data) - at} bytes follow the last chunk of the packed array")
    return found


def _check_chunk(header: bytes, number: int, *, unpacked: int, length: int) -> None:
    """That blosc2 will find what was announced, packed by means that we know."""
    if length < _BLOSC_HEADER:
        raise FormatError(f"chunk {number} has {length} bytes, fewer than its header")
    version, _, flags, itemsize, nbytes, block, packed = struct.unpack_from("<BBBBiii", header, 0)
    filters, last = header[16:22], header[31]
    known = (
        version in _BLOSC_VERSIONS
        and flags & _EXTENDED == _EXTENDED
        and (flags >> 5 in _BLOSC_CODECS or (flags >> 5 == 0 and flags & _COPIED))
        and all(one in _FILTERS for one in filters)
        and (last >> 4) & 0b111 in _SPECIAL
        and not last & _FORBIDDEN
        and itemsize > 0
    )
    if not known:
        raise FormatError(f"chunk {number} is packed in a way that is not read here; use zstd or lz4, and no plug-ins")
    if (nbytes, packed) != (unpacked, length) or not 0 < block <= unpacked:
        raise FormatError(
            f"chunk {number} is announced as {length} bytes that unpack to {unpacked}, but says {packed} and {nbytes}"
        )
