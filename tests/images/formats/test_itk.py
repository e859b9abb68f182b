import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from palpate.errors import FormatError, GeometryError, OutputError
from palpate.images import Geometry, read, write_mask
from palpate.images.formats import Mask

sitk = pytest.importorskip("SimpleITK", reason="needs the extra palpate[sitk]")

VOXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
"""Four by three by two voxels (x, y, z), each with its own value; here with z first."""

RAS_AFFINE = np.array([[-0.8, 0, 0, 100], [0, -0.8, 0, -50], [0, 0, 2.5, 10], [0, 0, 0, 1]])


def by_itk(path: Path, voxels: np.ndarray, *, compress: bool = False, colour: bool = False) -> Path:
    image = sitk.GetImageFromArray(voxels, isVector=colour)
    if image.GetDimension() == 3:
        image.SetSpacing((0.8, 0.8, 2.5))
        image.SetOrigin((-100, 50, 10))
    sitk.WriteImage(image, str(path), compress)
    return path


def by_hand(path: Path, *fields: str, data: bytes = VOXELS.tobytes(), file: str = "LOCAL") -> Path:
    """A MetaImage of 4 x 3 x 2 bytes; a field given here replaces the usual one."""
    usual = ["ObjectType = Image", "NDims = 3", "DimSize = 4 3 2", "ElementType = MET_UCHAR"]
    given = {field.split(" ")[0] for field in fields}
    lines = [line for line in usual if line.split(" ")[0] not in given]
    path.write_bytes("\n".join([*lines, *fields, f"ElementDataFile = {file}", ""]).encode() + data)
    return path


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_an_lps_volume_comes_home_in_ras(tmp_path, compress, suffix, dtype):
    voxels = VOXELS.astype(dtype)
    image = read(by_itk(tmp_path / f"ct{suffix}", voxels, compress=compress))
    np.testing.assert_array_equal(image.array, voxels)
    assert image.array.dtype == dtype
    np.testing.assert_allclose(image.affine, RAS_AFFINE)
    assert image.source is not None
    assert image.source.format == "itk"


def test_colour_and_pictures_are_read(tmp_path):
    rgb = np.arange(72, dtype=np.uint8).reshape(2, 3, 4, 3)
    image = read(by_itk(tmp_path / "rgb.mha", rgb, colour=True))
    assert image.colour
    np.testing.assert_array_equal(image.array, rgb)
    flat = read(by_itk(tmp_path / "flat.mha", VOXELS[0]))
    np.testing.assert_array_equal(flat.array, VOXELS[0])
    np.testing.assert_array_equal(flat.affine, np.diag([-1.0, -1, 1, 1]))


def test_big_endian_voxels_are_the_same_voxels(tmp_path):
    data = VOXELS.astype(">i2").tobytes()
    path = by_hand(tmp_path / "b.mha", "ElementType = MET_SHORT", "BinaryDataByteOrderMSB = True", data=data)
    np.testing.assert_array_equal(read(path).array, VOXELS)


@pytest.mark.parametrize(("unit", "millimetres"), [("mm", 1.0), ("um", 0.001), ("cm", 10.0)])
def test_units_are_obeyed(tmp_path, unit, millimetres):
    path = by_hand(tmp_path / "u.mha", f"DistanceUnits = {unit}", "ElementSpacing = 1 2 3", "Offset = 4 5 6")
    affine = read(path).affine
    np.testing.assert_allclose(np.diag(affine)[:3], np.multiply((-1, -2, 3), millimetres))
    np.testing.assert_allclose(affine[:3, 3], np.multiply((-4, -5, 6), millimetres))


def test_a_detached_header_may_say_where_its_voxels_begin(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"12345" + VOXELS.tobytes())
    for field in ("HeaderSize = 5", "HeaderSize = -1"):
        path = by_hand(tmp_path / "a.mhd", field, file="a.raw", data=b"")
        np.testing.assert_array_equal(read(path).array, VOXELS)


def test_without_simpleitk_the_way_to_it_is_named(tmp_path, monkeypatch):
    path = by_itk(tmp_path / "ct.mha", VOXELS)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(FormatError, match=r"pip install 'palpate\[sitk\]'"):
        read(path)
    with pytest.raises(OutputError, match=r"pip install 'palpate\[sitk\]'"):
        write_mask(tmp_path / "m.mha", Mask(VOXELS, Geometry((2, 3, 4), RAS_AFFINE)))


# Files that must not be believed: SimpleITK takes most of these without a word -----------------------------------


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("fraction", [0.6, 0.99])
def test_truncated_voxels_are_refused_and_never_zeros(tmp_path, compress, suffix, fraction):
    noise = np.random.default_rng(0).integers(0, 255, (30, 30, 30), dtype=np.uint8)
    by_itk(tmp_path / f"a{suffix}", noise, compress=compress)
    voxels = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    content = voxels.read_bytes()
    voxels.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(FormatError, match="truncated"):
        read(tmp_path / f"a{suffix}")


def test_compressed_voxels_must_be_exactly_as_many_as_claimed(tmp_path):
    def packed(data: bytes) -> Path:
        stored = zlib.compress(data)
        return by_hand(tmp_path / "z.mha", "CompressedData = True", f"CompressedDataSize = {len(stored)}", data=stored)

    np.testing.assert_array_equal(read(packed(VOXELS.tobytes())).array, VOXELS)
    with pytest.raises(FormatError, match="truncated: 24 bytes were needed and 23 could be read"):
        read(packed(VOXELS.tobytes()[:-1]))
    with pytest.raises(FormatError, match="more data than its header claims"):
        read(packed(VOXELS.tobytes() + b"1"))
    with pytest.raises(FormatError, match="how large its compressed data is"):
        read(by_hand(tmp_path / "n.mha", "CompressedData = True", data=zlib.compress(VOXELS.tobytes())))


def test_a_wrong_checksum_is_noticed(tmp_path):
    stored = bytearray(zlib.compress(VOXELS.tobytes()))
    stored[-1] ^= 1
    path = by_hand(
        tmp_path / "z.mha", "CompressedData = True", f"CompressedDataSize = {len(stored)}", data=bytes(stored)
    )
    with pytest.raises(FormatError, match="damaged"):
        read(path)


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ("DimSize = 20000 20000 20000", "claims 20000 x 20000 x 20000"),
        ("DimSize = 1e300 1e300 1e300", "the limit is 16 GiB"),
        ("DimSize = 1000 1000 1000", "truncated or its header is damaged"),
        ("DimSize = 4 3 -2", "shape of"),
        ("DimSize = 4 3.5 2", "header is damaged"),
        ("DimSize = 4 nan 2", "header is damaged"),
        ("DimSize = 4 3", "has 2 numbers and not 3"),
        ("DimSize = 4 three 2", "numbers are needed"),
        ("NDims = 4", "has 4 axes"),
        ("NDims = many", "whole number"),
        ("ObjectType = Tube", "holds a Tube"),
        ("ElementType = MET_FLOAT_ARRAY", "MET_FLOAT_ARRAY"),
        ("ElementNumberOfChannels = 2", "2 values of type uint8"),
        ("BinaryData = False", "as text"),
        ("HeaderSize = 7", "7 bytes come before"),
        ("NDims = 3\nNDims = 3", "NDims twice"),
        ("no separator here", "not a MetaImage file"),
        (f"Comment = {'x' * 5000}", "not a MetaImage file"),
    ],
)
def test_a_damaged_header_is_refused_with_what_is_wrong(tmp_path, field, complaint):
    with pytest.raises(FormatError, match=complaint):
        read(by_hand(tmp_path / "d.mha", field))


@pytest.mark.parametrize(
    "field",
    [
        "ElementSpacing = 0 1 1",
        "ElementSpacing = 1 -1 1",
        "ElementSpacing = 1 1 nan",
        "Offset = nan 0 0",
        "TransformMatrix = 1 0 0 0 inf 0 0 0 1",
        "TransformMatrix = 1 0 0 1 0 0 0 0 1",
    ],
)
def test_a_place_that_is_nowhere_is_refused(tmp_path, field):
    with pytest.raises(GeometryError):
        read(by_hand(tmp_path / "g.mha", field))


@pytest.mark.parametrize("reference", ["../secret.raw", "{outside}/secret.raw", "link.raw"])
def test_a_header_cannot_reach_out_of_its_folder(tmp_path, reference):
    folder = tmp_path / "study"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(VOXELS.tobytes())
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    path = by_hand(folder / "h.mhd", file=reference.format(outside=tmp_path), data=b"")
    with pytest.raises(FormatError, match="outside its own folder"):
        read(path)


@pytest.mark.parametrize("reference", ["missing.raw", "LIST", "slice%03d.raw 1 2 1"])
def test_a_header_whose_data_is_not_one_file_is_refused(tmp_path, reference):
    with pytest.raises(FormatError, match="not one file beside it"):
        read(by_hand(tmp_path / "h.mhd", file=reference, data=b""))


# Writing ----------------------------------------------------------------------------------------------------------


def test_a_mask_keeps_its_place_and_its_labels(tmp_path):
    write_mask(tmp_path / "m.mha", Mask(VOXELS * 20, Geometry((2, 3, 4), RAS_AFFINE), description="lite\nmedsam"))
    written = sitk.ReadImage(str(tmp_path / "m.mha"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), VOXELS * 20)
    assert written.GetOrigin() == (-100, 50, 10)
    assert written.GetSpacing() == pytest.approx((0.8, 0.8, 2.5))
    assert written.GetMetaData("Description") == "lite medsam"
    np.testing.assert_allclose(read(tmp_path / "m.mha").affine, RAS_AFFINE)


def test_a_mask_of_a_picture_is_a_picture_unless_it_would_lose_its_place(tmp_path):
    labels = np.eye(3, 4, dtype=np.uint8)
    flat = np.array([[-0.5, 0, 0, 7], [0, -0.5, 0, 8], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_mask(tmp_path / "flat.mha", Mask(labels, Geometry((3, 4), flat)))
    image = read(tmp_path / "flat.mha")
    np.testing.assert_array_equal(image.array, labels)
    np.testing.assert_allclose(image.affine, flat)

    write_mask(tmp_path / "placed.mha", Mask(labels, Geometry((3, 4), RAS_AFFINE)))
    image = read(tmp_path / "placed.mha")
    np.testing.assert_array_equal(image.array, labels[np.newaxis])
    np.testing.assert_allclose(image.affine, RAS_AFFINE)
