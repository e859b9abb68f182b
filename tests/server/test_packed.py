"""Arrays that travel packed: what comes is what was sent, and what lies is refused before it costs anything."""

import struct
import tracemalloc
from collections.abc import Callable

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from nnInteractive.inference.remote.serialization import pack_array, unpack_array

from palpate.errors import FormatError
from palpate.server.packed import DTYPES, pack, read_header, unpack

MEBIBYTE = 2**20

any_array = st.sampled_from(DTYPES).flatmap(
    lambda name: arrays.arrays(np.dtype(name), arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9))
)


def _same(one: np.ndarray, other: np.ndarray) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()


@given(any_array)
def test_what_is_packed_comes_back(array: np.ndarray) -> None:
    _same(unpack(pack(array), most_bytes=array.nbytes), array)


@given(any_array)
def test_the_client_reads_what_is_packed_here(array: np.ndarray) -> None:
    _same(unpack_array(pack(array)), array)


@given(any_array, st.sampled_from([blosc2.Codec.ZSTD, blosc2.Codec.LZ4]), st.sampled_from([None, 0, 1, 2]))
def test_what_the_client_packs_is_read_here(array: np.ndarray, codec: blosc2.Codec, filter_: int | None) -> None:
    filters = None if filter_ is None else [blosc2.Filter(filter_)]
    _same(unpack(pack_array(array, codec=codec, filters=filters), most_bytes=array.nbytes), array)


@pytest.mark.parametrize("fill", [0, 1])
def test_a_large_empty_mask_travels_both_ways(fill: int) -> None:
    """A length that eight does not divide, which blosc2 cannot unpack when the size of its values is not told."""
    mask = np.full((707, 17, 58), fill, dtype=np.uint8)
    assert len(pack(mask)) < 1000
    _same(unpack_array(pack(mask)), mask)
    _same(unpack(pack_array(mask), most_bytes=mask.nbytes), mask)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_nothing_and_a_single_number_travel(shape: tuple[int, ...]) -> None:
    _same(unpack(pack(np.ones(shape, dtype=np.int16)), most_bytes=2), np.ones(shape, dtype=np.int16))


def test_views_and_the_other_byte_order_travel_as_their_values() -> None:
    array = np.arange(24, dtype=">i4").reshape(2, 3, 4)[:, ::-1]
    np.testing.assert_array_equal(unpack(pack(array), most_bytes=array.nbytes), array)
    assert unpack(pack(array), most_bytes=array.nbytes).flags.writeable


def test_objects_are_not_packed() -> None:
    with pytest.raises(FormatError, match="object"):
        pack(np.array([{}], dtype=object))


# Lies. `whole` is 8 header bytes, "uint8", three extents, the number of chunks, and one chunk.

whole = pack(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
COUNT = 8 + 5 + 24
CHUNK = COUNT + 4
BLOSC = CHUNK + 16


def _with(at: int, piece: bytes, data: bytes = whole) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


def _named(name: bytes, extents: tuple[int, ...] = (3, 4, 5)) -> bytes:
    start = struct.pack("<4sBBBB", b"NNIA", 1, 1, len(extents), len(name)) + name
    return start + struct.pack(f"<{len(extents)}q", *extents) + whole[COUNT:]


LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "NNIA"),
    "another format": (b"\x93NUMPY" + whole[6:], "NNIA"),
    "another version": (_with(4, b"\x02"), "version 2"),
    "another codec": (_with(5, b"\x03"), "codec 3"),
    "many axes": (_with(6, b"\xff"), "255 axes"),
    "a long name": (_with(7, b"\xff"), "ends within its header"),
    "objects": (_named(b"object"), "'object'"),
    "objects by their letter": (_named(b"O"), "'O'"),
    "a record": (_named(b"u1,O"), "read here"),
    "text": (_named(b"str32"), "read here"),
    "complex numbers": (_named(b"complex128"), "read here"),
    "no type": (_named(b""), "''"),
    "a name that is no text": (_named(b"\xff\xfe"), "read here"),
    "a negative extent": (_named(b"uint8", (-3, -4, 5)), "negative"),
    "a huge shape": (_named(b"uint8", (2**40, 2**40)), "are the most"),
    "a shape that overflows to what is there": (_named(b"uint8", (2**62, 4, 60)), "are the most"),
    "an overflow to nothing": (_named(b"uint8", (2**32, 2**32, 2**32)), "are the most"),
    "a larger shape": (_named(b"uint8", (3, 4, 6)), "takes 72"),
    "a smaller shape": (_named(b"uint8", (3, 4, 4)), "takes 48"),
    "no extent but chunks": (_named(b"uint8", (0, 4, 4)), "takes 0"),
    "values that do not fit": (_named(b"float64", (3, 4, 5)), "holds no float64"),
    "no chunk": (_with(COUNT, struct.pack("<I", 0)), "follow the last chunk"),
    "two chunks": (_with(COUNT, struct.pack("<I", 2)), "ends before chunk 1 of 2"),
    "four billion chunks": (_with(COUNT, b"\xff" * 4), "chunks"),
    "a chunk of nothing": (_with(CHUNK, struct.pack("<Q", 0)), "claims to unpack to 0"),
    "a chunk that grows": (_with(CHUNK, struct.pack("<Q", 2**40)), "claims to unpack to"),
    "a chunk that is longer": (_with(CHUNK, struct.pack("<Q", 61)), "announced"),
    "a chunk beyond the end": (_with(CHUNK + 8, struct.pack("<Q", 2**63)), "are left"),
    "a chunk shorter than its header": (_with(CHUNK + 8, struct.pack("<Q", 31)), "fewer than its header"),
    "bytes at the end": (whole + b"\x00", "follow the last chunk"),
    "another blosc": (_with(BLOSC, b"\x09"), "no plug-ins"),
    "a short header": (_with(BLOSC + 2, b"\x22"), "no plug-ins"),
    "a codec of a plug-in": (_with(BLOSC + 2, b"\xc5"), "no plug-ins"),
    "a filter of a plug-in": (_with(BLOSC + 16, b"\xa0"), "no plug-ins"),
    "memory as it was": (_with(BLOSC + 31, b"\x40"), "no plug-ins"),
    "a lazy chunk": (_with(BLOSC + 31, b"\x08"), "no plug-ins"),
    "a dictionary": (_with(BLOSC + 31, b"\x01"), "no plug-ins"),
    "values without a size": (_with(BLOSC + 3, b"\x00"), "no plug-ins"),
    "another size inside": (_with(BLOSC + 4, struct.pack("<i", 59)), "but says"),
    "a negative size inside": (_with(BLOSC + 4, struct.pack("<i", -60)), "but says"),
    "another length inside": (_with(BLOSC + 12, struct.pack("<i", 32)), "but says"),
    "huge blocks": (_with(BLOSC + 8, struct.pack("<i", 2**30)), "but says"),
    "a truth value of 7": (pack(np.full(60, 7, np.uint8)).replace(b"\x05uint8", b"\x04bool"), "truth"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str) -> None:
    data, said = LIES[name]
    with pytest.raises(FormatError, match=said):
        unpack(data, most_bytes=MEBIBYTE)


def test_every_cut_is_noticed() -> None:
    for end in range(len(whole)):
        with pytest.raises(FormatError):
            unpack(whole[:end], most_bytes=MEBIBYTE)


def _peak(attempt: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            attempt()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", LIES)
def test_lies_cost_no_memory(name: str) -> None:
    # The limit would allow sixteen gigabytes; what is there is a hundred bytes.
    data = LIES[name][0]
    if name not in ("a huge shape", "a shape that overflows to what is there", "an overflow to nothing"):
        assert _peak(lambda: unpack(data, most_bytes=2**34)) < MEBIBYTE


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    zeros = pack(np.zeros(2**27, dtype=np.uint8))
    assert len(zeros) < 100  # it grows a million times
    assert _peak(lambda: unpack(zeros, most_bytes=2**27 - 1)) < MEBIBYTE
    assert read_header(zeros).nbytes == 2**27


@given(st.data())
def test_whatever_is_changed_gives_an_array_or_a_format_error(data: st.DataObject) -> None:
    array = np.arange(600, dtype=np.int16).reshape(4, 10, 15) % 7
    codec = data.draw(st.sampled_from([blosc2.Codec.ZSTD, blosc2.Codec.LZ4]))
    sent = bytearray(pack_array(array, codec=codec, filters=[blosc2.Filter.SHUFFLE]))
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = unpack(bytes(sent), most_bytes=MEBIBYTE)
    except FormatError:
        return
    assert got.nbytes <= MEBIBYTE


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, b"NNIA\x01\x01" + noise, _named(b"uint8")[:CHUNK] + noise):
        with pytest.raises(FormatError):
            unpack(data, most_bytes=MEBIBYTE)
