"""The voxel bytes of a file: exactly as many as its header claims, or the reason why not.

Parsers differ in what they do with a short or a lying file: some raise, some return zeros, some allocate what the
header claims before looking. All formats here that hold plain or deflated bytes come through this door instead.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from palpate.errors import FormatError

DEFLATE_LIMIT = 1032
"""No deflate stream (gzip, zlib, zip) grows by more than this: its longest match is 258 bytes in two bits."""

_TAIL = 2**20
"""Bytes that may follow the voxels inside a compressed stream before it counts as a lie about its size."""

_CHUNK = 2**24

# EOFError: a gzip stream ends early. zlib.error: damaged deflate data or a wrong checksum in it. BadZipFile: the
# same for a member of an archive. OSError: BadGzipFile, damaged bzip2 data, or the disk itself.
_STREAM_ERRORS = (EOFError, zlib.error, zipfile.BadZipFile, OSError)


@contextmanager
def opened(path: Path) -> Generator[io.BufferedReader, None, None]:
    """The file, open for reading.

    Raises:
        FormatError: it cannot be opened (permissions, a folder, gone meanwhile).
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise FormatError(f"cannot open {path}: {error.strerror or error}") from error
    with file:
        yield file


def beside(path: Path, name: str) -> Path:
    """The file that a detached header names, if it is in the header's own folder.

    A header comes from a stranger; what it names must not reach the rest of the disk.

    Raises:
        FormatError: it lies elsewhere (links are followed), is missing, or is not one plain file.
    """
    folder = path.parent.resolve()
    try:
        found = (folder / name).resolve()
        inside, plain = found.is_relative_to(folder), found.is_file()
    except (ValueError, OSError, RuntimeError) as error:  # a zero byte, a name too long, links in a circle
        raise FormatError(f"{path} wants its voxels from {name!r}, which is no file name ({error})") from error
    if not inside:
        raise FormatError(f"{path} wants its voxels from {name}, outside its own folder; put both into one folder")
    if not plain:
        raise FormatError(f"{path} wants its voxels from {name}, which is not one file beside it; save both as one")
    return found


def size_of(file: io.BufferedReader) -> int:
    """Bytes from where the file stands to its end."""
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def check_claim(claimed: int, available: int, *, path: Path, growth: int = 1) -> None:
    """Refuse a header that claims more bytes than the file can hold, before anything is allocated.

    `growth` is how much larger than itself the stored data may become: 1 as it lies, `DEFLATE_LIMIT` if deflated.
    """
    if claimed > available * growth:
        raise FormatError(
            f"{path} is truncated or its header is damaged: {claimed} bytes of voxels are claimed and "
            f"{available} bytes{' of compressed data' if growth > 1 else ''} are there; copy or export it again"
        )


def take(stream: io.BufferedIOBase, count: int, *, path: Path) -> np.ndarray:
    """The next `count` bytes of a stream as a new uint8 array.

    Raises:
        FormatError: the stream ends early, its compressed data is damaged, or memory does not suffice.
    """
    try:
        # Not yet touched, so memory is only used as far as the stream really goes.
        taken = np.empty(count, np.uint8)
    except MemoryError as error:
        raise FormatError(f"{path} needs {count / 2**30:.1f} GiB, which this machine does not have") from error
    view = memoryview(taken)  # pyright: ignore[reportArgumentType] - arrays are buffers; a stub for 3.11 cannot say so
    done = 0
    try:
        while done < count:
            got = stream.readinto(view[done : done + _CHUNK])
            if not got:
                break
            done += got
    except EOFError as error:
        raise FormatError(_truncated(path, done, count)) from error
    except _STREAM_ERRORS as error:
        raise FormatError(f"the data of {path} is damaged ({error}); copy or export it again") from error
    if done < count:
        raise FormatError(_truncated(path, done, count))
    return taken


def finish(stream: io.BufferedIOBase, *, path: Path) -> None:
    """Read a compressed stream to its end, where its checksum stands.

    Raises:
        FormatError: the checksum is wrong, the stream is cut off, or much more follows than the header claims.
    """
    try:
        rest = stream.read(_TAIL + 1)
    except EOFError as error:
        raise FormatError(f"{path} is truncated: its end is missing; copy or export it again") from error
    except _STREAM_ERRORS as error:
        raise FormatError(f"the data of {path} is damaged ({error}); copy or export it again") from error
    if len(rest) > _TAIL:
        raise FormatError(f"{path} holds more data than its header claims, so one of them is wrong; export it again")


def inflate(stored: np.ndarray, count: int, *, path: Path) -> np.ndarray:
    """The `count` bytes that zlib or gzip data must unpack to, as a new uint8 array.

    Raises:
        FormatError: it unpacks to fewer or to more, or is damaged.
    """
    taken = np.empty(count, np.uint8)
    unpack = zlib.decompressobj(wbits=47)  # 47: either header
    rest, done = stored.tobytes(), 0
    try:
        # Asking for one byte more than claimed also brings the checksum at the end under the eye.
        while not unpack.eof and (piece := unpack.decompress(rest, min(_CHUNK, count - done + 1))):
            if done + len(piece) > count:
                raise FormatError(f"{path} holds more data than its header claims, so one of them is wrong")
            taken[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
            rest = unpack.unconsumed_tail
    except zlib.error as error:
        raise FormatError(f"the data of {path} is damaged ({error}); copy or export it again") from error
    if done < count or not unpack.eof:
        raise FormatError(_truncated(path, done, count))
    return taken


def _truncated(path: Path, done: int, count: int) -> str:
    return f"{path} is truncated: {count} bytes were needed and {done} could be read; copy or export it again"
