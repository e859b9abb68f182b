"""Embeddings on disk: with a frozen encoder, every image is encoded once, ever.

    FOLDER/3f/3fa9…c1.safetensors       one embedding; its name is its key
    FOLDER/lock                         held for the moments in which files are removed
    FOLDER/max_bytes                    the bound that was last asked for, which holds for all who ask for none

The key (`palpate.inference.embeddings.embedding_key`) is a hash of the canvas and of the encoder's weights, so runs,
models that differ in their decoder alone, and processes share what is there, and nothing goes stale: another image,
window, view or encoder has another key. A file appears whole, by renaming, or not at all, and its header holds a
digest of the rest. Two processes that want the same embedding at once both compute it and one of the two equal files
stays.
"""

from __future__ import annotations

import os
import secrets
import time
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from palpate.errors import OutputError, SettingError
from palpate.images.formats import replacing
from palpate.models.catalogue import home
from palpate.models.promptable import ImageEmbedding

Precision = Literal["float32", "float16"]

DEFAULT_MAX_BYTES = 20 * 10**9
"""What a cache may take of the disk if nobody ever said: 5,000 embeddings of LiteMedSAM in float32."""

_BOUND = "max_bytes"

_ROOM_AFTER_PRUNING = 0.9

_LOOK_AFTER = 0.02
"""How much of the bound a process writes before it looks what others wrote."""

_DIGEST = "crc32"
"""Of the numbers, in the header of a file. It is there against accidents; 4 MiB take it a millisecond or two."""

_ABANDONED_SECONDS = 600.0
"""After this long, half a file belongs to a process that was killed."""


def default_folder() -> Path:
    """Where embeddings are kept unless told otherwise: beside the weights, in palpate's cache folder."""
    return home() / "embeddings"


def bound_of(folder: Path) -> int:
    """What the cache in a folder may take, in bytes: what was last asked for, else `DEFAULT_MAX_BYTES`."""
    return _remembered(folder) or DEFAULT_MAX_BYTES


@dataclass(frozen=True)
class Use:
    """How full a cache is."""

    embeddings: int
    bytes: int


class EmbeddingCache:
    """A folder of embeddings, bounded, for any number of processes.

    `max_bytes` bounds the folder: when it is passed, those that were not used for longest go first. The folder
    remembers it, for all processes: without it, the bound is the one that was last asked for (`bound_of`). Each looks
    around after every fiftieth part of it, so many that write at once may pass it by that much each. In `float16` an
    embedding takes half the room (2 MiB for LiteMedSAM) and comes back rounded to 11 bits of mantissa; `float32` gives
    back what was put. The two never answer for each other.

    Raises:
        SettingError: a precision that does not exist, or a bound that holds nothing.
        OutputError: the folder cannot be made, or a new bound not be written there.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None = None, precision: Precision = "float32") -> None:
        if precision not in ("float32", "float16"):
            raise SettingError(f"embeddings are kept in float32 or float16, not in {precision!r}")
        if max_bytes is not None and max_bytes <= 0:
            raise SettingError(f"a cache of {max_bytes} bytes holds nothing; give it some gigabytes")
        self.folder = folder
        self.precision = precision
        self._seen: int | None = None  # bytes in the folder when this process last looked
        self._written = 0  # and what it wrote since
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot keep embeddings in {folder} ({error.strerror or error}); choose another folder with --cache"
            ) from error
        if max_bytes is not None and max_bytes != bound_of(folder):
            with replacing(folder / _BOUND, overwrite=True) as temporary:
                temporary.write_text(f"{max_bytes}\n", encoding="ascii")
        self.max_bytes = max_bytes or bound_of(folder)

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def get(self, key: str) -> ImageEmbedding | None:
        """The embedding as float32, or None if it is not there; a damaged file is removed and is not there."""
        path = self._path(key)
        try:
            stored = _read(path)
        except FileNotFoundError:
            return None
        except OSError:  # too many open files, a share that is gone: the file itself may be sound
            return None
        except (SafetensorError, ValueError):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # the time of last use, which decides what goes first
        arrays = [stored[name].astype(np.float32, copy=False) for name in sorted(stored)]
        return ImageEmbedding(arrays[0], tuple(arrays[1:]))

    def put(self, key: str, embedding: ImageEmbedding) -> None:
        """Keep an embedding of NumPy arrays, and remove the oldest ones if there are too many.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        # In float16 nothing above 65504 exists; such an embedding is kept as it is, and is as good.
        arrays = {f"{number:02d}": array for number, array in enumerate((embedding.features, *embedding.levels))}
        if self.precision == "float16" and all(float(np.abs(array).max()) < 6e4 for array in arrays.values()):
            arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        data = safetensors.numpy.save(arrays, metadata={_DIGEST: _digest(arrays)})
        path = self._path(key)
        half = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with half.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())  # else a power cut may leave the name without the content
                half.replace(path)
            finally:
                half.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot keep an embedding in {self.folder} ({error.strerror or error}); choose another folder with "
                "--cache, or make room"
            ) from error
        self._written += len(data)
        if self._seen is None or self._written > _LOOK_AFTER * self.max_bytes:
            self._seen, self._written = self.use().bytes, 0
        if self._seen + self._written > self.max_bytes:
            self.prune()

    def use(self) -> Use:
        """How many embeddings lie there, and how many bytes they take."""
        sizes = [size for _, _, size in self._files()]
        return Use(len(sizes), sum(sizes))

    def prune(self) -> int:
        """Remove those not used for longest until a tenth of `max_bytes` is free; how many went.

        Another process may prune at the same time: one of them does it. What a killed process left half written goes
        as well.
        """
        removed = 0
        with _alone(self.folder / "lock") as first:
            files = self._files()
            total = sum(size for _, _, size in files)
            self.max_bytes = _remembered(self.folder) or self.max_bytes  # another process may have asked for more
            if first:
                self._remove_abandoned()
            if first and total > self.max_bytes:
                for _, path, size in sorted(files):
                    if total <= _ROOM_AFTER_PRUNING * self.max_bytes:
                        break
                    with suppress(OSError):
                        path.unlink()
                        removed += 1
                        total -= size
        self._seen, self._written = total, 0
        return removed

    def _remove_abandoned(self) -> None:
        for path in self.folder.glob("[0-9a-f][0-9a-f]/.*.part"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                    path.unlink()

    def _path(self, key: str) -> Path:
        suffix = ".half.safetensors" if self.precision == "float16" else ".safetensors"
        return self.folder / key[:2] / f"{key}{suffix}"

    def _files(self) -> list[tuple[float, Path, int]]:
        """Time of last use, path and size of each."""
        found: list[tuple[float, Path, int]] = []
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*.safetensors"):
            with suppress(OSError):  # another process has just removed it
                state = path.stat()
                found.append((state.st_mtime, path, state.st_size))
        return found


def _remembered(folder: Path) -> int | None:
    """The bound that a folder remembers, if it remembers any."""
    try:
        return max(0, int((folder / _BOUND).read_text(encoding="ascii"))) or None
    except (OSError, ValueError):
        return None


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; one from before there were digests is taken as it is.

    Raises:
        OSError: it cannot be read.
        SafetensorError, ValueError: it is damaged.
    """
    with safe_open(path, "numpy") as file:
        wanted = (file.metadata() or {}).get(_DIGEST)
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    if wanted is not None and wanted != _digest(arrays):
        raise ValueError(f"{path} is not what was written")
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(arrays[name].data, found)
    return f"{found:08x}"


@contextmanager
def _alone(lock: Path) -> Generator[bool]:
    """Whether this process is the only one in the block; it does not wait for the others."""
    try:
        import fcntl
    except ImportError:  # Windows: removal is safe there too, a file that is open stays
        yield True
        return
    with lock.open("a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
