import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from palpate.errors import FormatError, GeometryError, ImageError
from palpate.images import Geometry, read, write_mask
from palpate.images.formats import Mask
from palpate.images.formats.npz import read_boxes
from palpate.images.geometry import affine_from_spacing

VOLUME = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def saved(path: Path, **arrays: object) -> Path:
    np.savez_compressed(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def archive(path: Path, content: bytes, name: str = "imgs.npy", method: int = zipfile.ZIP_DEFLATED) -> Path:
    """An .npz with one member written by hand."""
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)
    return path


def npy_claiming(shape: str, descr: str = "'|u1'", data: bytes = b"") -> bytes:
    """A .npy whose header says what we like."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def test_a_volume_has_its_spacing_in_the_order_x_y_z(tmp_path):
    image = read(saved(tmp_path / "3D_CT.npz", imgs=VOLUME, spacing=[0.5, 0.7, 3.0]))
    np.testing.assert_array_equal(image.array, VOLUME)
    assert image.geometry.spacing == (0.5, 0.7, 3.0)
    assert image.source is not None
    assert image.source.format == "npz"
    assert image.modality == "unknown"


def test_without_a_spacing_a_voxel_is_one_millimetre(tmp_path):
    assert read(saved(tmp_path / "a.npz", imgs=VOLUME)).geometry.spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "colour"),
    [
        ("2D_photo.npz", (5, 4, 3), np.uint8, True),
        ("2D_photo.npz", (5, 4, 3), np.uint16, True),
        ("3D_thin.npz", (5, 4, 3), np.uint8, False),  # five slices, three columns
        ("case.npz", (5, 4, 3), np.uint8, True),
        ("case.npz", (5, 4, 3), np.int16, False),
        ("case.npz", (5, 4, 6), np.uint8, False),
        ("2D_grey.npz", (5, 4), np.uint8, False),
        ("3D_colour.npz", (2, 5, 4, 3), np.uint8, True),
    ],
)
def test_the_name_decides_between_colour_and_volume_then_the_shape(tmp_path, name, shape, dtype, colour):
    image = read(saved(tmp_path / name, imgs=np.ones(shape, dtype)))
    assert image.colour is colour
    assert image.array.shape == shape


def test_a_picture_whose_last_axis_is_no_colour_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"\(5, 4, 2\)"):
        read(saved(tmp_path / "2D_odd.npz", imgs=np.ones((5, 4, 2), np.uint8)))


def test_fortran_order_and_big_endian_hold_the_same_voxels(tmp_path):
    array = np.asfortranarray(VOLUME.astype(">i2"))
    image = read(saved(tmp_path / "3D.npz", imgs=array))
    np.testing.assert_array_equal(image.array, VOLUME)
    assert image.array.dtype == np.dtype(np.int16)
    assert image.array.flags.c_contiguous


def test_an_uncompressed_archive_is_read(tmp_path):
    np.savez(tmp_path / "3D.npz", imgs=VOLUME)
    np.testing.assert_array_equal(read(tmp_path / "3D.npz").array, VOLUME)


@pytest.mark.parametrize("width", [4, 6])
@pytest.mark.parametrize("count", [0, 3])
def test_boxes_are_rows_of_four_or_six(tmp_path, width, count):
    boxes = np.arange(width * count).reshape(count, width)
    np.testing.assert_array_equal(read_boxes(saved(tmp_path / "a.npz", imgs=VOLUME, boxes=boxes)), boxes)


def test_a_case_without_boxes_has_none(tmp_path):
    assert read_boxes(saved(tmp_path / "a.npz", imgs=VOLUME)) is None


@pytest.mark.parametrize("boxes", [[1, 2, 3, 4], [[1, 2, 3]], [["a", "b", "c", "d"]]])
def test_boxes_of_another_shape_are_refused(tmp_path, boxes):
    with pytest.raises(FormatError, match=r"\(n, 4\) or \(n, 6\) are needed"):
        read_boxes(saved(tmp_path / "a.npz", boxes=boxes))


@pytest.mark.parametrize("spacing", [[1, 1], [1, 0, 1], [1, -1, 1], [1, np.nan, 1], ["a", "b", "c"], 2.0])
def test_a_spacing_that_measures_nothing_is_refused(tmp_path, spacing):
    with pytest.raises(GeometryError, match="three positive numbers"):
        read(saved(tmp_path / "3D.npz", imgs=VOLUME, spacing=spacing))


# Files that must not be believed ----------------------------------------------------------------------------------


def test_python_objects_are_never_unpickled(tmp_path):
    class Explosive:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "it ran",))

    objects = np.empty(1, dtype=object)
    objects[0] = Explosive()
    path = saved(tmp_path / "evil.npz", imgs=objects, boxes=objects)
    for open_ in (read, read_boxes):
        with pytest.raises(FormatError, match=r"could run code .* save it again as numbers"):
            open_(path)
    assert not (tmp_path / "it ran").exists()


def test_boxes_of_the_2025_challenge_are_objects_and_refused(tmp_path):
    with pytest.raises(FormatError, match="holds Python objects"):
        read_boxes(saved(tmp_path / "2025.npz", boxes=[{"z_min": 0, "z_max": 1}]))


def test_a_tiny_file_that_claims_a_huge_array_is_refused(tmp_path):
    path = archive(tmp_path / "bomb.npz", npy_claiming("(20000, 20000, 20000)"))
    with pytest.raises(FormatError, match="claims 20000 x 20000 x 20000"):
        read(path)
    path = archive(tmp_path / "lie.npz", npy_claiming("(1000, 1000, 1000)"))
    with pytest.raises(FormatError, match="claims 1000000000 bytes and the archive 0"):
        read(path)


def test_a_directory_that_shares_the_lie_is_refused_too(tmp_path):
    path = archive(tmp_path / "lie.npz", npy_claiming("(1000, 1000, 1000)"), method=zipfile.ZIP_STORED)
    content = path.read_bytes()
    true, false = struct.pack("<I", 128), struct.pack("<I", 128 + 10**9)
    end = content.rindex(b"PK\x01\x02")  # the entry of the central directory; its size field is at byte 24
    assert content[end + 24 : end + 28] == true
    path.write_bytes(content[: end + 24] + false + content[end + 28 :])
    with pytest.raises(FormatError, match="truncated or its header is damaged"):
        read(path)


def test_an_endless_header_is_not_waited_for(tmp_path):
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(2**20)
    with pytest.raises(FormatError, match="no numpy array, or damaged"):
        read(archive(tmp_path / "h.npz", content))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not numpy",
        npy_claiming("(-1, 4)", data=bytes(4)),
        npy_claiming("'four'"),
        npy_claiming("(2, 2)", descr="'nothing'"),
        npy_claiming("(2, 2)", descr="("),
        npy_claiming("(" * 90),
        npy_claiming("(2, 2)", data=b"123"),
        npy_claiming("(2, 2)", data=b"12345"),
        npy_claiming("(2, 2)", descr="'|V0'"),
        b"\x93NUMPY\x09\x00" + bytes(100),
    ],
)
def test_what_is_no_array_is_refused(tmp_path, content):
    with pytest.raises(FormatError):
        read(archive(tmp_path / "x.npz", content))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_archive_is_refused(tmp_path, fraction):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20), dtype=np.uint8)
    content = saved(tmp_path / "whole.npz", imgs=noise).read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(FormatError, match="damaged"):
        read(tmp_path / "cut.npz")


def test_a_wrong_checksum_is_noticed(tmp_path):
    path = tmp_path / "3D.npz"
    np.savez(path, imgs=VOLUME)
    content = bytearray(path.read_bytes())
    content[content.index(VOLUME.tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged"):
        read(path)


def test_exotic_compression_is_refused(tmp_path):
    # Its packing has no limit that could be checked beforehand.
    path = archive(tmp_path / "l.npz", npy_claiming("(2, 2)", data=b"1234"), method=zipfile.ZIP_LZMA)
    with pytest.raises(FormatError, match="numpy never writes"):
        read(path)


def test_an_archive_without_image_says_so(tmp_path):
    with pytest.raises(FormatError, match="no array `imgs`"):
        read(saved(tmp_path / "a.npz", boxes=[[1, 2, 3, 4]]))


# Writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "dtype"), [(1, np.uint8), (256, np.uint16)])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_results_are_called_segs(tmp_path, most, dtype, shape):
    labels = np.zeros(shape, np.int64)
    labels.flat[5] = most
    write_mask(tmp_path / "m.npz", Mask(labels, Geometry(shape, affine_from_spacing((1.0, 1.0, 1.0)))))
    with np.load(io.BytesIO((tmp_path / "m.npz").read_bytes())) as written:
        assert written.files == ["segs"]
        assert written["segs"].dtype == dtype
        np.testing.assert_array_equal(written["segs"], labels)
