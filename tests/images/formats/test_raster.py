import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from palpate.errors import FormatError, ImageError, OutputError
from palpate.images import Geometry, read, write_mask
from palpate.images.formats import Mask
from palpate.images.geometry import affine_from_spacing

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
"""Three rows of four pixels, each with its own value."""


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    picture = PILImage.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims this size and whose data is one compressed byte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".PNG"])
def test_a_grey_picture_keeps_its_values_and_is_one_millimetre_a_pixel(tmp_path, suffix):
    image = read(saved(tmp_path / f"a{suffix}", GREY))
    np.testing.assert_array_equal(image.array, GREY)
    assert image.array.dtype == np.uint8
    assert not image.colour
    assert (image.modality, image.modality_origin) == ("unknown", "unknown")
    np.testing.assert_array_equal(image.affine, affine_from_spacing((1.0, 1.0, 1.0)))
    assert image.source is not None
    assert image.source.format == "raster"


@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [("u2", ".png"), ("u2", ".tif"), ("i4", ".tif"), ("f4", ".tif")],
)
def test_deeper_grey_keeps_its_values_and_type(tmp_path, dtype, suffix):
    pixels = GREY.astype(dtype) * 5000
    array = read(saved(tmp_path / f"a{suffix}", pixels)).array
    np.testing.assert_array_equal(array, pixels)
    assert array.dtype == np.dtype(dtype)


def bare_tiff(path: Path, voxels: np.ndarray, *, sample_format: int) -> Path:
    """The smallest TIFF that holds one uncompressed strip."""
    height, width = voxels.shape
    data = voxels.tobytes()
    tags = {256: width, 257: height, 258: 8 * voxels.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)
    return path


@pytest.mark.parametrize(
    ("dtype", "sample_format", "values"),
    [("u4", 1, [0, 2**31 + 5]), ("i4", 2, [-7, 5]), ("i1", 2, [-7, 5]), ("i2", 2, [-1024, 3000])],
)
def test_signs_survive_in_tiff(tmp_path, dtype, sample_format, values):
    path = bare_tiff(tmp_path / "s.tif", np.array([values], dtype), sample_format=sample_format)
    np.testing.assert_array_equal(read(path).array, [values])


def test_one_bit_is_zero_and_one(tmp_path):
    array = read(saved(tmp_path / "b.png", GREY > 5)).array
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, GREY > 5)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_colour_is_a_photo_even_if_it_looks_grey(tmp_path, suffix):
    image = read(saved(tmp_path / f"c{suffix}", np.dstack([GREY] * 3)))
    assert image.colour
    assert image.array.shape == (3, 4, 3)
    assert (image.modality, image.modality_origin) == ("photo", "guessed")


def test_a_jpeg_is_read_close_to_what_it_was(tmp_path):
    smooth = np.dstack([np.full((16, 16), value, np.uint8) for value in (200, 100, 50)])
    array = read(saved(tmp_path / "p.jpg", smooth, quality=95)).array
    assert array.shape == (16, 16, 3)
    np.testing.assert_allclose(array.astype(int), smooth, atol=3)
    assert not read(saved(tmp_path / "g.jpeg", smooth[..., 0])).colour


def test_a_palette_is_looked_up(tmp_path):
    picture = PILImage.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "p.png")
    image = read(tmp_path / "p.png")
    assert image.colour
    assert image.array[0].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_alpha_is_dropped_and_hides_nothing(tmp_path):
    rgba = np.dstack([GREY, GREY + 1, GREY + 2, np.zeros_like(GREY)])  # wholly transparent
    np.testing.assert_array_equal(read(saved(tmp_path / "a.png", rgba)).array, rgba[..., :3])
    grey_alpha = PILImage.merge("LA", [PILImage.fromarray(GREY), PILImage.fromarray(np.zeros_like(GREY))])
    grey_alpha.save(tmp_path / "la.png")
    image = read(tmp_path / "la.png")
    np.testing.assert_array_equal(image.array, GREY)
    assert not image.colour


def test_cmyk_becomes_rgb(tmp_path):
    image = read(saved(tmp_path / "k.tif", np.dstack([GREY] * 3), mode="CMYK"))
    assert image.array.shape == (3, 4, 3)


def test_pixels_lie_as_stored_whatever_exif_says(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6  # turn by a quarter to show
    assert read(saved(tmp_path / "e.jpg", np.zeros((8, 16), np.uint8), exif=exif)).shape == (8, 16)


def test_equal_pages_of_a_tiff_are_slices(tmp_path):
    pages = [PILImage.fromarray(GREY.astype(np.uint16) + 100 * n) for n in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    image = read(tmp_path / "stack.tif")
    assert image.is_volume
    assert image.array.dtype == np.uint16
    assert image.array.shape == (3, 3, 4)
    assert image.array[2, 1, 2] == 206

    colour = [PILImage.fromarray(np.dstack([GREY] * 3))] * 2
    colour[0].save(tmp_path / "colour.tif", save_all=True, append_images=colour[1:])
    assert read(tmp_path / "colour.tif").array.shape == (2, 3, 4, 3)


def test_pages_that_differ_are_no_stack(tmp_path):
    pages = [PILImage.fromarray(GREY), PILImage.fromarray(GREY[:2, :2])]
    pages[0].save(tmp_path / "pyramid.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(FormatError, match=r"page 2 of .* is 2 x 2 L and the first is 4 x 3 L"):
        read(tmp_path / "pyramid.tif")


def test_nan_in_a_float_tiff_is_refused(tmp_path):
    with pytest.raises(ImageError, match="NaN"):
        read(saved(tmp_path / "n.tif", np.array([[1, np.nan]], np.float32)))


# Files that must not be believed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [12_000, 40_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_claiming(side, side))
    with pytest.raises(FormatError, match="claims"):
        read(tmp_path / "bomb.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 0.95])
def test_a_truncated_picture_is_refused(tmp_path, suffix, fraction):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    content = saved(tmp_path / f"whole{suffix}", noise).read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(FormatError, match="damaged"):
        read(tmp_path / f"cut{suffix}")


def test_other_kinds_behind_a_known_name_are_not_opened(tmp_path):
    saved(tmp_path / "a.gif", GREY)
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(FormatError, match="not a PNG, JPEG, TIFF or BMP"):
        read(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(FormatError, match="not a PNG, JPEG, TIFF or BMP"):
        read(tmp_path / "b.png")


# Writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_a_mask_of_one_slice_is_a_grey_png(tmp_path, most, dtype):
    labels = np.zeros((3, 4), np.int32)
    labels[1, 2] = most
    affine = affine_from_spacing((1.0, 1.0, 1.0))

    write_mask(tmp_path / "m.png", Mask(labels, Geometry((3, 4), affine), description="lite-medsam µ"))
    write_mask(tmp_path / "v.png", Mask(labels[np.newaxis], Geometry((1, 3, 4), affine)))

    with PILImage.open(tmp_path / "m.png") as picture:
        assert picture.mode == ("L" if dtype == np.uint8 else "I;16")
        assert picture.info["Description"] == "lite-medsam µ"
        written = np.asarray(picture)
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, labels)
    np.testing.assert_array_equal(read(tmp_path / "v.png").array, labels)


def test_a_volume_does_not_fit_into_a_png(tmp_path):
    mask = Mask(np.ones((2, 3, 4), np.uint8), Geometry((2, 3, 4), affine_from_spacing((1.0, 1.0, 1.0))))
    with pytest.raises(OutputError, match=r"a PNG holds one slice .* choose \.nii\.gz or pass --slice"):
        write_mask(tmp_path / "m.png", mask)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["busi_breast_us", "drive_vessels", "dsb2018_nuclei", "kvasir_seg_polyp"])
def test_real_pictures_agree_with_pillow(data_root, name):
    path = min(path for path in (data_root / name / "images").iterdir())
    image = read(path)
    with PILImage.open(path) as picture:
        np.testing.assert_array_equal(image.array, np.asarray(picture))
    assert image.shape == (picture.height, picture.width)
