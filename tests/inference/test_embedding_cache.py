import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import safetensors.numpy

from palpate.errors import OutputError, SettingError
from palpate.inference.embedding_cache import DEFAULT_MAX_BYTES, EmbeddingCache
from palpate.models.promptable import ImageEmbedding

KILOBYTE = 256  # float32 values


def key(number: int) -> str:
    """As long as a SHA-256, and in folders of their own."""
    return f"{number % 256:02x}" + f"{number:062x}"


def embedding(number: int, *, kilobytes: int = 1, levels: int = 0) -> ImageEmbedding:
    rng = np.random.default_rng(number)
    features, *more = (rng.normal(size=(1, kilobytes, 16, 16)).astype(np.float32) for _ in range(1 + levels))
    return ImageEmbedding(features, tuple(more))


def there(cache: EmbeddingCache, numbers: range) -> list[int]:
    return [number for number in numbers if key(number) in cache]


def one_file(cache: EmbeddingCache) -> Path:
    (path,) = cache.folder.glob("*/*.safetensors")
    return path


class TestWhatComesBack:
    def test_float32_to_the_last_bit(self, tmp_path: Path) -> None:
        cache, put = EmbeddingCache(tmp_path), embedding(0, levels=2)
        put.features.flat[:4] = [np.finfo(np.float32).tiny, 1e30, -0.0, np.float32(1) / 3]
        cache.put(key(0), put)
        got = EmbeddingCache(tmp_path).get(key(0))
        assert got is not None
        assert got.features.tobytes() == put.features.tobytes()
        assert [level.tobytes() for level in got.levels] == [level.tobytes() for level in put.levels]

    def test_more_than_ten_levels_keep_their_order(self, tmp_path: Path) -> None:
        cache, put = EmbeddingCache(tmp_path), embedding(0, levels=12)
        cache.put(key(0), put)
        got = cache.get(key(0))
        assert got is not None
        assert [float(level.flat[0]) for level in got.levels] == [float(level.flat[0]) for level in put.levels]

    def test_what_lies_in_memory_in_another_order(self, tmp_path: Path) -> None:
        cache, put = EmbeddingCache(tmp_path), embedding(0, kilobytes=3)
        cache.put(key(0), ImageEmbedding(np.asfortranarray(put.features)))
        got = cache.get(key(0))
        assert got is not None
        assert np.array_equal(got.features, put.features)

    def test_float16_rounds_to_11_bits_and_takes_half_the_room(self, tmp_path: Path) -> None:
        full, half = EmbeddingCache(tmp_path / "a"), EmbeddingCache(tmp_path / "b", precision="float16")
        put = embedding(0, kilobytes=64)
        full.put(key(0), put)
        half.put(key(0), put)
        got = half.get(key(0))
        assert got is not None
        assert got.features.dtype == np.float32
        # Half a unit in the last of 11 bits; below 2^-14 float16 has steps of 2^-24.
        assert (np.abs(got.features - put.features) <= np.abs(put.features) * 2**-11 + 2**-25).all()
        assert half.use().bytes < 0.51 * full.use().bytes

    @pytest.mark.parametrize("large", [7e4, np.inf, np.nan])
    def test_what_float16_cannot_hold_is_kept_as_it_is(self, large: float, tmp_path: Path) -> None:
        cache, put = EmbeddingCache(tmp_path, precision="float16"), embedding(0)
        put.features.flat[5] = large
        cache.put(key(0), put)
        got = cache.get(key(0))
        assert got is not None
        assert got.features.tobytes() == put.features.tobytes()

    def test_one_precision_never_answers_for_the_other(self, tmp_path: Path) -> None:
        half, full = EmbeddingCache(tmp_path, precision="float16"), EmbeddingCache(tmp_path)
        half.put(key(0), embedding(0))
        assert key(0) not in full
        assert full.get(key(0)) is None

    def test_what_was_never_put_is_none(self, tmp_path: Path) -> None:
        assert EmbeddingCache(tmp_path).get(key(0)) is None


class TestDamage:
    @pytest.mark.parametrize("left", [0, 1, 7, 8, 40, 300, -1])
    def test_a_file_cut_short_is_removed_and_not_there(self, left: int, tmp_path: Path) -> None:
        cache = EmbeddingCache(tmp_path)
        cache.put(key(0), embedding(0))
        path = one_file(cache)
        path.write_bytes(path.read_bytes()[:left])
        assert cache.get(key(0)) is None
        assert key(0) not in cache
        cache.put(key(0), embedding(0))
        assert cache.get(key(0)) is not None

    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_a_file_whose_end_never_reached_the_disk_is_removed(
        self, precision: Literal["float32", "float16"], tmp_path: Path
    ) -> None:
        cache = EmbeddingCache(tmp_path, precision=precision)
        cache.put(key(0), embedding(0, levels=2))
        path = one_file(cache)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
        assert cache.get(key(0)) is None
        assert key(0) not in cache

    def test_a_file_from_before_there_were_digests_is_taken_as_it_is(self, tmp_path: Path) -> None:
        cache, put = EmbeddingCache(tmp_path), embedding(0)
        cache.put(key(0), put)
        safetensors.numpy.save_file({"00": put.features}, one_file(cache))
        got = cache.get(key(0))
        assert got is not None
        assert np.array_equal(got.features, put.features)

    def test_the_content_is_on_the_disk_before_the_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        flush, flushed = os.fsync, list[tuple[int, int]]()

        def watched(handle: int) -> None:
            flushed.append((os.fstat(handle).st_ino, os.fstat(handle).st_size))
            flush(handle)

        monkeypatch.setattr(os, "fsync", watched)
        cache = EmbeddingCache(tmp_path)
        cache.put(key(0), embedding(0))
        state = one_file(cache).stat()
        assert (state.st_ino, state.st_size) in flushed

    def test_a_file_of_something_else_is_removed_too(self, tmp_path: Path) -> None:
        cache = EmbeddingCache(tmp_path)
        cache.put(key(0), embedding(0))
        one_file(cache).write_bytes(b"not an embedding at all")
        assert cache.get(key(0)) is None
        assert key(0) not in cache

    def test_a_file_that_cannot_be_read_just_now_stays(self, tmp_path: Path) -> None:
        cache = EmbeddingCache(tmp_path)
        cache.put(key(0), embedding(0))
        path = one_file(cache)
        path.rename(tmp_path / "kept")
        path.mkdir()  # reading a folder is an OSError, also for root
        assert cache.get(key(0)) is None
        assert path.is_dir()

    def test_a_folder_that_was_removed_meanwhile_is_made_again(self, tmp_path: Path) -> None:
        cache = EmbeddingCache(tmp_path / "cache")
        (tmp_path / "cache").rmdir()
        cache.put(key(0), embedding(0))
        assert key(0) in cache

    def test_a_folder_that_cannot_be_one_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="choose another folder with --cache"):
            EmbeddingCache(tmp_path / "file")

    def test_a_bound_that_holds_nothing_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="0 bytes holds nothing"):
            EmbeddingCache(tmp_path, max_bytes=0)


class TestTheBound:
    def sized(self, folder: Path, count: int) -> EmbeddingCache:
        """A cache for so many embeddings of a kilobyte, headers included."""
        one = EmbeddingCache(folder / "one")
        one.put(key(0), embedding(0))
        return EmbeddingCache(folder / "cache", max_bytes=count * one.use().bytes)

    def test_it_is_never_passed(self, tmp_path: Path) -> None:
        cache = self.sized(tmp_path, 10)
        for number in range(40):
            cache.put(key(number), embedding(number))
            assert cache.use().bytes <= cache.max_bytes
        assert key(39) in cache

    def test_the_one_used_last_stays(self, tmp_path: Path) -> None:
        cache = self.sized(tmp_path, 10)
        for number in range(10):
            cache.put(key(number), embedding(number))
            os.utime(cache.folder / key(number)[:2] / f"{key(number)}.safetensors", (number, number))
        assert cache.get(key(0)) is not None
        cache.put(key(10), embedding(10))
        # Eleven are two too many for nine tenths of the room.
        assert there(cache, range(11)) == [0, 3, 4, 5, 6, 7, 8, 9, 10]

    def test_what_others_wrote_counts(self, tmp_path: Path) -> None:
        mine = self.sized(tmp_path, 10)
        others = EmbeddingCache(mine.folder)
        mine.put(key(0), embedding(0))
        for number in range(1, 30):
            others.put(key(number), embedding(number))
        mine.put(key(30), embedding(30))
        assert mine.use().bytes <= mine.max_bytes

    def test_the_folder_remembers_it_for_all_who_ask_for_none(self, tmp_path: Path) -> None:
        assert EmbeddingCache(tmp_path).max_bytes == DEFAULT_MAX_BYTES
        EmbeddingCache(tmp_path, max_bytes=10 * DEFAULT_MAX_BYTES)
        assert EmbeddingCache(tmp_path).max_bytes == 10 * DEFAULT_MAX_BYTES
        EmbeddingCache(tmp_path, max_bytes=DEFAULT_MAX_BYTES)
        assert EmbeddingCache(tmp_path).max_bytes == DEFAULT_MAX_BYTES

    @pytest.mark.parametrize("content", [b"", b"\0\0\0", b"many", b"-7", b"\xff"])
    def test_a_damaged_memory_of_it_is_none(self, content: bytes, tmp_path: Path) -> None:
        EmbeddingCache(tmp_path, max_bytes=5000)
        (tmp_path / "max_bytes").write_bytes(content)
        assert EmbeddingCache(tmp_path).max_bytes == DEFAULT_MAX_BYTES

    def test_who_began_before_more_was_asked_for_removes_nothing(self, tmp_path: Path) -> None:
        early = self.sized(tmp_path, 3)
        late = EmbeddingCache(early.folder, max_bytes=10 * early.max_bytes)
        for number in range(9):
            late.put(key(number), embedding(number))
        early.put(key(9), embedding(9))
        assert there(late, range(10)) == list(range(10))

    def test_what_killed_processes_left_goes_and_what_is_being_written_stays(self, tmp_path: Path) -> None:
        cache = EmbeddingCache(tmp_path)
        cache.put(key(0), embedding(0))
        folder = one_file(cache).parent
        old, new = folder / ".old.safetensors.1.part", folder / ".new.safetensors.2.part"
        for path in (old, new):
            path.write_bytes(b"half")
        an_hour_ago = time.time() - 3600
        os.utime(old, (an_hour_ago, an_hour_ago))
        assert cache.prune() == 0
        assert not old.exists()
        assert new.exists()
        assert cache.use().embeddings == 1


def put_get_and_prune(folder: Path, max_bytes: int, seed: int) -> list[str]:
    """Keys in an order of this process's own, each checked when it is there; what came back wrong."""
    cache, rng = EmbeddingCache(folder, max_bytes=max_bytes), np.random.default_rng(seed)
    wrong: list[str] = []
    for number in rng.integers(0, 60, 300).tolist():
        got = cache.get(key(number))
        if got is None:
            cache.put(key(number), embedding(number))
        elif got.features.tobytes() != embedding(number).features.tobytes():
            wrong.append(key(number))
        if number == 0:
            cache.prune()
    return wrong


@pytest.mark.slow
def test_several_processes_at_once(tmp_path: Path) -> None:
    max_bytes = 30 * 1200
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        wrong = pool.starmap(put_get_and_prune, [(tmp_path, max_bytes, seed) for seed in range(2)])
    assert wrong == [[], []]
    cache = EmbeddingCache(tmp_path, max_bytes=max_bytes)
    assert 0 < cache.use().bytes <= 1.04 * max_bytes  # each may pass it by a fiftieth
    assert not list(tmp_path.rglob("*.part"))


PUTTING_FOR_EVER = """
import sys
from pathlib import Path
import numpy as np
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.models.promptable import ImageEmbedding
cache = EmbeddingCache(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(10**6):
    cache.put(f"{number % 4:02x}" + f"{number % 4:062x}", ImageEmbedding(np.full((1, 500, 16, 16), number, np.float32)))
"""


def test_kill_9_leaves_no_half_embedding(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PUTTING_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    cache = EmbeddingCache(tmp_path)
    assert cache.use().embeddings
    for path in tmp_path.glob("*/*.safetensors"):
        features = safetensors.numpy.load_file(path)["00"]
        assert (features == features.flat[0]).all()  # of one `put`, all of it
