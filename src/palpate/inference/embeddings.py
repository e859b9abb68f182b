"""The memory of a session: every image is encoded once.

Embeddings are kept under a key of what determines them: the canvas's content and the encoder's weights. They stay
in main memory up to a limit and go to a temporary file beyond it, so a long volume costs disk, not RAM, and still
no slice is encoded twice.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections import OrderedDict
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from palpate.models.promptable import ImageEmbedding


def embedding_key(canvas: Float32[np.ndarray, "3 row column"], *, encoder_hash: str) -> str:
    """A name for the embedding of this canvas by the encoder with these weights (`Runtime.encoder_hash`)."""
    digest = hashlib.sha256(f"embedding 1\0{encoder_hash}\0{canvas.shape}\0".encode())
    digest.update(np.ascontiguousarray(canvas).data)
    return digest.hexdigest()


class EmbeddingStore:
    """Embeddings by key: the latest in memory, the others in a temporary folder that vanishes with the store.

    `memory_bytes` bounds the part in memory; at least one embedding stays there.
    """

    def __init__(self, *, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._held: OrderedDict[str, ImageEmbedding] = OrderedDict()
        self._spilled: dict[str, list[Path]] = {}
        self._folder: Path | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._held or key in self._spilled

    def __len__(self) -> int:
        return len(self._held.keys() | self._spilled.keys())

    def get(self, key: str) -> ImageEmbedding | None:
        """The embedding, or None if it was never put."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        if key in self._spilled:
            features, *levels = (np.load(path, mmap_mode="r", allow_pickle=False) for path in self._spilled[key])
            return ImageEmbedding(features, tuple(levels))
        return None

    def put(self, key: str, embedding: ImageEmbedding) -> None:
        """Keep an embedding of NumPy arrays."""
        self._held[key] = embedding
        while len(self._held) > 1 and sum(map(_bytes, self._held.values())) > self._memory_bytes:
            oldest, spilled = self._held.popitem(last=False)
            self._spill(oldest, spilled)

    def clear(self) -> None:
        """Forget everything and delete the temporary files."""
        self._held.clear()
        self._spilled.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def drop_spilled(self) -> None:
        """Forget what went to the temporary folder, and keep what is in memory."""
        held = self._held.copy()
        self.clear()
        self._held.update(held)

    def _spill(self, key: str, embedding: ImageEmbedding) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="palpate-embeddings-"))
            # Also when the interpreter ends; TemporaryDirectory would call that a forgotten resource.
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        paths: list[Path] = []
        for number, array in enumerate((embedding.features, *embedding.levels)):
            path = self._folder / f"{key}-{number}.npy"
            np.save(path, array, allow_pickle=False)
            paths.append(path)
        self._spilled[key] = paths


def _bytes(embedding: ImageEmbedding) -> int:
    return embedding.features.nbytes + sum(level.nbytes for level in embedding.levels)
