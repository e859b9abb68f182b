import gc
import tempfile
from pathlib import Path

import numpy as np
import pytest

from palpate.inference.embeddings import EmbeddingStore, embedding_key
from palpate.models.promptable import ImageEmbedding

KILOBYTE = 256  # float32 values


@pytest.fixture(autouse=True)
def spill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in these tests."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def embedding(seed: int, *, kilobytes: int = 1, levels: int = 0) -> ImageEmbedding:
    generator = np.random.default_rng(seed)
    features, *more = (generator.normal(size=(1, kilobytes, 16, 16)).astype(np.float32) for _ in range(1 + levels))
    return ImageEmbedding(features, tuple(more))


def held(store: EmbeddingStore, seed: int) -> bool:
    """In main memory, not in a file."""
    found = store.get(str(seed))
    assert found is not None
    return not isinstance(found.features, np.memmap)


def test_what_was_never_put_is_none() -> None:
    store = EmbeddingStore(memory_bytes=1)
    assert store.get("nothing") is None
    assert "nothing" not in store
    assert len(store) == 0


def test_spilling_to_disk_keeps_every_bit() -> None:
    store = EmbeddingStore(memory_bytes=4 * KILOBYTE)
    for seed in range(5):
        store.put(str(seed), embedding(seed, levels=2))
    assert len(store) == 5
    assert not held(store, 0)
    for seed in range(5):
        kept, original = store.get(str(seed)), embedding(seed, levels=2)
        assert kept is not None
        assert kept.features.tobytes() == original.features.tobytes()
        assert [level.tobytes() for level in kept.levels] == [level.tobytes() for level in original.levels]


def test_memory_is_bounded() -> None:
    store = EmbeddingStore(memory_bytes=3 * 4 * KILOBYTE)
    for seed in range(10):
        store.put(str(seed), embedding(seed))
    assert [held(store, seed) for seed in range(10)] == [False] * 7 + [True] * 3


def test_levels_count_as_memory() -> None:
    store = EmbeddingStore(memory_bytes=4 * 4 * KILOBYTE)
    for seed in range(3):
        store.put(str(seed), embedding(seed, levels=1))
    assert [held(store, seed) for seed in range(3)] == [False, True, True]


def test_the_one_used_last_stays() -> None:
    store = EmbeddingStore(memory_bytes=2 * 4 * KILOBYTE)
    store.put("0", embedding(0))
    store.put("1", embedding(1))
    store.get("0")
    store.put("2", embedding(2))
    assert [held(store, seed) for seed in range(3)] == [True, False, True]


def test_one_larger_than_the_limit_is_held_all_the_same() -> None:
    store = EmbeddingStore(memory_bytes=1)
    store.put("0", embedding(0, kilobytes=4))
    assert held(store, 0)


def test_forgetting_deletes_the_files(spill: Path) -> None:
    store = EmbeddingStore(memory_bytes=1)
    store.put("0", embedding(0))
    store.put("1", embedding(1))
    assert list(spill.rglob("*.npy"))
    store.clear()
    assert not list(spill.iterdir())
    assert "0" not in store
    assert "1" not in store


def test_a_store_that_forgot_can_be_used_again() -> None:
    store = EmbeddingStore(memory_bytes=1)
    for _ in range(2):
        store.put("0", embedding(0))
        store.put("1", embedding(1))
        assert not held(store, 0)
        store.clear()


def test_the_files_vanish_with_the_store(spill: Path) -> None:
    store = EmbeddingStore(memory_bytes=1)
    store.put("0", embedding(0))
    store.put("1", embedding(1))
    del store
    gc.collect()
    assert not list(spill.iterdir())


def test_nothing_is_written_while_memory_lasts(spill: Path) -> None:
    store = EmbeddingStore(memory_bytes=2 * 4 * KILOBYTE)
    store.put("0", embedding(0))
    store.put("1", embedding(1))
    assert not list(spill.iterdir())


class TestTheKey:
    canvas = np.arange(48, dtype=np.float32).reshape(3, 4, 4)

    def key(self, canvas: np.ndarray | None = None, *, encoder_hash: str = "w") -> str:
        return embedding_key(self.canvas if canvas is None else canvas, encoder_hash=encoder_hash)

    def test_the_same_content_has_the_same_key(self) -> None:
        assert self.key() == self.key(self.canvas.copy())
        assert self.key() == self.key(np.asfortranarray(self.canvas))

    def test_whatever_decides_the_embedding_changes_it(self) -> None:
        other = self.canvas.copy()
        other[0, 0, 0] = np.nextafter(np.float32(0), np.float32(1))
        keys = {
            self.key(),
            self.key(other),
            self.key(self.canvas.reshape(3, 2, 8)),
            self.key(encoder_hash="v"),
        }
        assert len(keys) == 4


def test_dropping_what_was_spilled_keeps_what_is_in_memory() -> None:
    store = EmbeddingStore(memory_bytes=2 * 4 * 4 * 4)
    for name in "abc":
        store.put(name, ImageEmbedding(np.full((1, 1, 4, 4), ord(name), dtype=np.float32)))
    store.drop_spilled()
    assert [name in store for name in "abc"] == [False, True, True]
    assert store.get("a") is None
