"""Damaged files of every format: the outcome is an image or a PalpateError, and nothing else.

The damage is drawn from a seeded generator, so a failure names a file that can be made again.
"""

import bz2
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from PIL import Image as PILImage

from palpate.errors import PalpateError
from palpate.images import Image, read
from palpate.images.formats.npz import read_boxes

FILES = 250
"""Damaged files a format."""

VOLUME = np.random.default_rng(7).integers(-100, 1000, (5, 6, 7), dtype=np.int16)
PICTURE = np.random.default_rng(8).integers(0, 255, (9, 11), dtype=np.uint8)
COLOUR = np.random.default_rng(9).integers(0, 255, (9, 11, 3), dtype=np.uint8)
AFFINE = np.array([[-0.8, 0.1, 0, 90], [0.1, 0.8, 0, -120], [0, 0, 2.5, -300], [0, 0, 0, 1.0]])


def nifti(path: Path) -> None:
    image = nib.Nifti1Image(VOLUME, AFFINE)
    image.set_qform(AFFINE, code=1)
    nib.save(image, path)


def nifti_2_rgb(path: Path) -> None:
    rgb = np.ascontiguousarray(np.broadcast_to(PICTURE[..., None, None], (9, 11, 2, 3)))
    nib.save(nib.Nifti2Image(rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0], AFFINE), path)


def nrrd_as(encoding: str) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        header = {
            "space": "left-posterior-superior",
            "space directions": AFFINE[:3, :3],
            "space origin": AFFINE[:3, 3],
            "space units": ["mm", "mm", "mm"],
            "kinds": ["domain"] * 3,
            "encoding": encoding,
        }
        nrrd.write(str(path), VOLUME, header)

    return save


def meta_image(path: Path, *, compress: bool = True) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra palpate[sitk]")
    image = sitk.GetImageFromArray(VOLUME)
    image.SetSpacing((0.8, 0.8, 2.5))
    sitk.WriteImage(image, str(path), compress)


def picture(pixels: np.ndarray, **options: object) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        exif = PILImage.Exif()
        exif[0x0112], exif[0x010E] = 6, "a description"
        PILImage.fromarray(pixels).save(path, exif=exif, **options)

    return save


def stack(path: Path) -> None:
    pages = [PILImage.fromarray(PICTURE.astype(np.uint16) + n) for n in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def palette(path: Path) -> None:
    PILImage.fromarray(COLOUR).quantize(16).save(path, transparency=b"\x00\x40\xff")


def npz(path: Path) -> None:
    np.savez_compressed(path, imgs=VOLUME, spacing=np.array([1.0, 2.0, 3.0]), boxes=np.array([[1, 2, 3, 4]]))


def npz_stored(path: Path) -> None:
    np.savez(path, imgs=VOLUME, spacing=np.array([1.0, 2.0, 3.0]), boxes=np.array([[1, 2, 3, 4]]))


KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "nifti": (".nii", nifti),
    "nifti gzip": (".nii.gz", nifti),
    "nifti 2 colour": (".nii", nifti_2_rgb),
    "nrrd raw": (".nrrd", nrrd_as("raw")),
    "nrrd gzip": (".nrrd", nrrd_as("gzip")),
    "nrrd bzip2": (".nrrd", nrrd_as("bzip2")),
    "mha": (".mha", meta_image),
    "mha raw": (".mha", lambda path: meta_image(path, compress=False)),
    "png": (".png", picture(PICTURE)),
    "png 16 bit": (".png", picture(PICTURE.astype(np.uint16) * 200)),
    "png palette": (".png", palette),
    "jpeg": (".jpg", picture(COLOUR, quality=80)),
    "tiff": (".tif", picture(COLOUR)),
    "tiff deflate": (".tif", picture(PICTURE, compression="tiff_deflate")),
    "tiff lzw": (".tif", picture(COLOUR, compression="tiff_lzw")),
    "tiff float": (".tif", picture(PICTURE.astype(np.float32))),
    "tiff stack": (".tif", stack),
    "bmp": (".bmp", picture(COLOUR)),
    "npz": (".npz", npz),
    "npz stored": (".npz", npz_stored),
}


def damaged(content: bytes, rng: np.random.Generator, *, text: bool) -> bytes:
    """The file cut off, or with bytes changed, mostly near its beginning, where headers are."""
    broken = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not broken:
            break
        # The square of a uniform number favours the beginning.
        place = int(len(broken) * rng.random() ** 2)
        length = int(rng.integers(1, 9))
        match int(rng.integers(0, 7)):
            case 0:
                del broken[place:]
            case 1:
                broken[place] ^= 1 << int(rng.integers(0, 8))
            case 2:
                broken[place : place + length] = rng.bytes(length)
            case 3:
                broken[place : place + length] = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * length
            case 4:
                del broken[place : place + length]
            case 5:
                broken[place:place] = broken[: 4 * length]
            case _:
                words = [b"-1", b"nan", b"1e400", b"99999999999999999999", b"\n", b" ", b"(", b'"', b"\xc3\xa9", b":"]
                broken[place : place + (0 if text else length)] = rng.choice(words)
    return bytes(broken)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_an_image_or_a_palpate_error(tmp_path, kind):
    suffix, save = KINDS[kind]
    whole = tmp_path / f"whole{suffix}"
    save(whole)
    assert isinstance(read(whole), Image)
    content = whole.read_bytes()
    rng = np.random.default_rng(2024)
    complaints: list[str] = []
    for _ in range(FILES):
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(damaged(content, rng, text="nrrd" in kind or "mha" in kind))
        for reader in (read, read_boxes) if suffix == ".npz" else (read,):
            try:
                reader(path)
            except PalpateError as error:
                complaints.append(str(error))
    # Some damage hits only values, which nobody can tell. Were nothing refused, nothing would have been tested.
    assert len(complaints) > FILES / 4
    assert [complaint for complaint in complaints if str(path) not in complaint] == []  # each names its file


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".tif", ".npz"])
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\n" * 50, b"\xff" * 5000, b"%PDF-1.7\n", b"PK\x03\x04", b"\x1f\x8b\x08"]
)
def test_a_file_of_nothing_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"nothing{suffix}"
    path.write_bytes(content)
    with pytest.raises(PalpateError, match="nothing"):
        read(path)


def test_noise_behind_a_right_beginning_is_refused(tmp_path):
    rng = np.random.default_rng(5)
    for suffix, magic in {
        ".nii.gz": b"\x1f\x8b\x08\0\0\0\0\0\0\3",
        ".nrrd": b"NRRD0004\ntype: ",
        ".png": b"\x89PNG\r\n\x1a\n",
        ".tif": b"II*\0\x08\0\0\0",
        ".jpg": b"\xff\xd8\xff\xe0",
        ".bmp": b"BM",
        ".npz": b"PK\x03\x04",
        ".mha": b"ObjectType = Image\nNDims = 3\n",
    }.items():
        for _ in range(20):
            path = tmp_path / f"noise{suffix}"
            path.write_bytes(magic + rng.bytes(2000))
            with pytest.raises(PalpateError):
                read(path)


def test_a_bzip2_that_holds_much_more_than_its_header_claims_is_refused(tmp_path):
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 3 2\nencoding: bzip2\n\n"
    (tmp_path / "bomb.nrrd").write_bytes(header + bz2.compress(bytes(50 * 2**20)))
    with pytest.raises(PalpateError, match="holds more data than its header claims"):
        read(tmp_path / "bomb.nrrd")


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".png", ".npz"])
def test_a_file_that_may_not_be_opened_is_an_input_error(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"locked{suffix}"
    path.write_bytes(b"secret")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may open everything, so permissions alone prove nothing
    with pytest.raises(PalpateError, match=f"cannot open .*locked.*{suffix}: Permission denied"):
        read(path)
