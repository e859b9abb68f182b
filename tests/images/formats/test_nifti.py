import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from palpate.errors import FormatError, GeometryError, ImageError, OutputError
from palpate.images import Geometry, Image, read, write_mask
from palpate.images.formats import Mask

AFFINE = np.array([[-0.8, 0, 0, 90], [0, 0.8, 0, -120], [0, 0, 2.5, -300], [0, 0, 0, 1.0]])

# Offsets in a NIfTI-1 header, from the standard.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, UNITS = 40, 70, 76, 108, 112, 116, 123
SROW_X, MAGIC = 280, 344


@pytest.fixture
def volume() -> np.ndarray:
    """Four by three by two voxels (x, y, z), each with its own value."""
    return np.arange(24, dtype=np.int16).reshape(4, 3, 2)


def saved(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE, **fields: float) -> Path:
    image = nib.Nifti1Image(voxels, affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patched(path: Path, offset: int, form: str, *values: float) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + form, content, offset, *values)
    path.write_bytes(content)
    return path


def mask_on(image: Image, labels: np.ndarray) -> Mask:
    return Mask(labels, image.geometry, description="lite-medsam 79d8c9dc")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_is_read_with_z_first_and_its_affine_unchanged(tmp_path, volume, suffix):
    image = read(saved(tmp_path / f"ct{suffix}", volume))

    assert image.array.shape == (2, 3, 4)
    assert image.array[1, 2, 3] == volume[3, 2, 1]
    assert image.array.dtype == np.int16
    np.testing.assert_array_equal(image.affine, AFFINE.astype(np.float32))
    assert image.geometry.spacing == pytest.approx((0.8, 0.8, 2.5))
    assert image.source is not None
    assert image.source.format == "nifti"
    assert image.modality == "unknown"


def test_a_big_endian_file_holds_the_same_voxels(tmp_path, volume):
    image = nib.Nifti1Image(volume, AFFINE, nib.Nifti1Header(endianness=">"), dtype=np.int16)
    nib.save(image, tmp_path / "sun.nii")

    array = read(tmp_path / "sun.nii").array

    assert array.dtype == np.dtype(np.int16)
    np.testing.assert_array_equal(array, volume.T)


def test_nifti_2_is_read_too(tmp_path, volume):
    nib.save(nib.Nifti2Image(volume, AFFINE), tmp_path / "two.nii.gz")
    image = read(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(image.array, volume.T)
    np.testing.assert_array_equal(image.affine, AFFINE)


def test_a_name_that_hides_compression_does_not_matter(tmp_path, volume):
    packed = saved(tmp_path / "a.nii.gz", volume).read_bytes()
    (tmp_path / "b.nii").write_bytes(packed)
    (tmp_path / "c.nii.gz").write_bytes(gzip.decompress(packed))
    np.testing.assert_array_equal(read(tmp_path / "b.nii").array, volume.T)
    np.testing.assert_array_equal(read(tmp_path / "c.nii.gz").array, volume.T)


def test_a_file_of_two_axes_is_a_picture(tmp_path):
    image = read(saved(tmp_path / "slice.nii", np.arange(6, dtype=np.uint8).reshape(3, 2)))
    np.testing.assert_array_equal(image.array, [[0, 2, 4], [1, 3, 5]])
    assert not image.is_volume


def test_a_volume_of_one_slice_stays_a_volume_and_trailing_axes_of_one_vanish(tmp_path, volume):
    assert read(saved(tmp_path / "one.nii", volume[:, :, :1])).shape == (1, 3, 4)
    assert read(saved(tmp_path / "five.nii", volume[..., None, None])).shape == (2, 3, 4)


def test_a_time_series_is_refused_with_the_way_out(tmp_path, volume):
    path = saved(tmp_path / "bold.nii.gz", np.stack([volume] * 5, axis=-1))
    with pytest.raises(FormatError, match=r"4 x 3 x 2 x 5 voxels, a series of volumes; save the one .*slicer"):
        read(path)


def test_rgb_voxels_are_colour(tmp_path):
    rgb = np.zeros((4, 3, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"][3, 2, 1] = 7
    image = read(saved(tmp_path / "rgb.nii.gz", rgb))
    assert image.colour
    assert image.array.shape == (2, 3, 4, 3)
    assert image.array[1, 2, 3].tolist() == [0, 7, 0]


def test_complex_voxels_are_refused(tmp_path):
    path = saved(tmp_path / "k.nii", np.zeros((4, 3, 2), np.complex64))
    with pytest.raises(FormatError, match="complex64; integers, real numbers or RGB"):
        read(path)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [
        (1, -1024, np.int16),  # CT stored without a sign
        (2, 60000, np.int32),
        (0.001, 0, np.float32),
        (0, 5, np.uint16),  # a slope of 0 means: no scaling
    ],
)
def test_scaling_is_honoured_in_the_smallest_type_that_holds_it(tmp_path, slope, intercept, dtype):
    stored = np.arange(24, dtype=np.uint16).reshape(4, 3, 2)
    path = saved(tmp_path / "s.nii", stored)
    patched(path, SLOPE, "ff", slope, intercept)

    array = read(path).array

    assert array.dtype == dtype
    expected = stored.T.astype(float) * slope + intercept if slope else stored.T
    np.testing.assert_allclose(array, expected, rtol=1e-6)


def test_float32_is_not_used_where_it_would_merge_neighbouring_values(tmp_path):
    stored = np.array([[[0], [2**30], [2**30 + 1]]], dtype=np.int32)
    path = patched(saved(tmp_path / "fine.nii", stored), SLOPE, "ff", 0.5, 0)
    array = read(path).array
    assert array.dtype == np.float64
    assert len(np.unique(array)) == 3


@pytest.mark.parametrize(("code", "millimetres"), [(1, 1000.0), (2, 1.0), (3, 0.001), (0, 1.0)])
def test_affines_in_metres_and_microns_become_millimetres(tmp_path, volume, code, millimetres):
    path = patched(saved(tmp_path / "u.nii", volume), UNITS, "B", code)
    np.testing.assert_allclose(read(path).affine[:3], AFFINE[:3] * millimetres, rtol=1e-6)


# Files that must not be believed ----------------------------------------------------------------------------------


def test_a_tiny_file_that_claims_a_huge_volume_is_refused(tmp_path, volume):
    for name in ("bomb.nii", "bomb.nii.gz"):
        path = saved(tmp_path / "bomb.nii", volume.astype(np.float32))
        patched(path, DIM, "4h", 3, 20000, 20000, 20000)
        content = path.read_bytes()[:360]
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        with pytest.raises(FormatError, match="claims 20000 x 20000 x 20000 voxels"):
            read(tmp_path / name)


def test_a_claim_within_the_limit_is_held_against_the_size_of_the_file(tmp_path, volume):
    path = patched(saved(tmp_path / "lie.nii", volume), DIM, "4h", 3, 1000, 1000, 1000)
    with pytest.raises(FormatError, match="truncated or its header is damaged: 2000000352 bytes"):
        read(path)
    (tmp_path / "lie.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(FormatError, match="bytes of compressed data are there"):
        read(tmp_path / "lie.nii.gz")


def test_a_gzip_that_holds_much_more_than_its_header_claims_is_refused(tmp_path, volume):
    path = saved(tmp_path / "v.nii", volume)
    (tmp_path / "fat.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(3 * 2**20)))
    with pytest.raises(FormatError, match="holds more data than its header claims"):
        read(tmp_path / "fat.nii.gz")


@pytest.mark.parametrize("kept", [0, 3, 100, 347, 352, 370])
def test_a_truncated_file_is_refused(tmp_path, volume, kept):
    content = saved(tmp_path / "whole.nii", volume).read_bytes()
    (tmp_path / "cut.nii").write_bytes(content[:kept])
    with pytest.raises(FormatError, match="truncated"):
        read(tmp_path / "cut.nii")


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.99])
def test_a_truncated_gzip_is_refused_and_called_so(tmp_path, fraction):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 40), dtype=np.uint8)
    content = saved(tmp_path / "whole.nii.gz", noise).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(FormatError, match="truncated"):
        read(tmp_path / "cut.nii.gz")


def test_a_gzip_with_a_wrong_checksum_is_refused(tmp_path, volume):
    path = saved(tmp_path / "v.nii.gz", volume)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # in the CRC
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged"):
        read(path)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [0.0, np.nan])
def test_a_voxel_size_of_zero_is_not_repaired_in_silence(tmp_path, volume, axis, size):
    path = patched(saved(tmp_path / "flat.nii", volume), PIXDIM + 4 * (axis + 1), "f", size)
    with pytest.raises(GeometryError, match=f"axis {'xyz'[axis]} a voxel size of zero"):
        read(path)


def test_a_nan_in_the_affine_is_refused(tmp_path, volume):
    path = patched(saved(tmp_path / "nan.nii", volume), SROW_X, "f", np.nan)
    with pytest.raises(GeometryError, match="NaN"):
        read(path)


def test_nan_voxels_are_refused(tmp_path, volume):
    voxels = volume.astype(np.float32)
    voxels[0, 0, 0] = np.nan
    with pytest.raises(ImageError, match="1 NaN"):
        read(saved(tmp_path / "n.nii", voxels))


def test_half_of_a_pair_and_analyze_files_are_named(tmp_path, volume):
    path = saved(tmp_path / "v.nii", volume)
    with pytest.raises(FormatError, match=r"half of a \.hdr/\.img pair"):
        read(patched(path, MAGIC, "3s", b"ni1"))
    with pytest.raises(FormatError, match="ANALYZE"):
        read(patched(path, MAGIC, "3s", b"\0\0\0"))


def test_something_else_is_not_nifti(tmp_path):
    (tmp_path / "letter.nii").write_bytes(b"Dear colleague, please find attached" * 20)
    with pytest.raises(FormatError, match="is not a NIfTI file"):
        read(tmp_path / "letter.nii")


# Writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_a_mask_is_written_as_labels_in_the_smallest_type(tmp_path, volume, most, dtype):
    image = read(saved(tmp_path / "ct.nii.gz", volume))
    labels = np.zeros(image.shape, np.int64)
    labels[1, 2, 3] = most

    write_mask(tmp_path / "mask.nii.gz", mask_on(image, labels))

    written = nib.load(tmp_path / "mask.nii.gz")
    assert written.get_data_dtype() == dtype
    assert written.header.get_intent()[0] == "label"
    assert bytes(written.header["descrip"]).rstrip(b"\0") == b"lite-medsam 79d8c9dc"
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels.T)


def test_two_writes_of_one_mask_are_the_same_bytes(tmp_path, volume):
    image = read(saved(tmp_path / "ct.nii.gz", volume))
    mask = mask_on(image, image.array > 7)
    write_mask(tmp_path / "a.nii.gz", mask)
    write_mask(tmp_path / "b.nii.gz", mask)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 4), (3, 3)])
@pytest.mark.parametrize("units", [1, 2, 3])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_mask_of_a_nifti_copies_what_places_its_voxels_bit_by_bit(tmp_path, volume, codes, units, kind):
    qform, sform = AFFINE.copy(), AFFINE.copy()
    sform[:3, 3] += 0.123456789  # they may differ, and both must survive
    source = kind(volume, None)
    source.header.set_qform(qform, code=codes[0])
    source.header.set_sform(sform, code=codes[1])
    source.header["xyzt_units"] = units
    nib.save(source, tmp_path / "mr.nii")
    image = read(tmp_path / "mr.nii")

    write_mask(tmp_path / "mask.nii", mask_on(image, image.array > 7))

    before, after = nib.load(tmp_path / "mr.nii").header, nib.load(tmp_path / "mask.nii").header
    for field in ("qform_code", "sform_code", "srow_x", "quatern_b", "qoffset_x", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(after[field], before[field], err_msg=field)
    np.testing.assert_array_equal(read(tmp_path / "mask.nii").affine, image.affine)


def test_a_grid_from_elsewhere_gets_both_forms(tmp_path):
    geometry = Geometry((2, 3, 4), AFFINE)
    write_mask(tmp_path / "m.nii", Mask(np.ones((2, 3, 4), np.uint8), geometry))
    header = nib.load(tmp_path / "m.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(header.get_sform(), AFFINE, atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"


def test_a_sheared_grid_is_written_to_the_sform_alone(tmp_path):
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.7  # gantry tilt
    write_mask(tmp_path / "m.nii", Mask(np.ones((2, 3, 4), np.uint8), Geometry((2, 3, 4), sheared)))
    image = nib.load(tmp_path / "m.nii")
    assert int(image.header["qform_code"]) == 0
    np.testing.assert_allclose(image.affine, sheared, rtol=1e-6)


def test_a_mask_of_a_picture_is_a_picture(tmp_path):
    image = read(saved(tmp_path / "slice.nii", np.arange(6, dtype=np.uint8).reshape(3, 2)))
    write_mask(tmp_path / "m.nii.gz", mask_on(image, image.array > 2))
    again = read(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(again.array, image.array > 2)
    np.testing.assert_array_equal(again.affine, image.affine)


def test_a_source_that_was_replaced_meanwhile_is_not_copied_from(tmp_path, volume):
    image = read(saved(tmp_path / "ct.nii", volume))
    saved(tmp_path / "ct.nii", volume, np.eye(4))
    write_mask(tmp_path / "m.nii", mask_on(image, image.array > 7))
    np.testing.assert_allclose(read(tmp_path / "m.nii").affine, image.affine, atol=1e-5)
    (tmp_path / "ct.nii").unlink()
    write_mask(tmp_path / "m2.nii", mask_on(image, image.array > 7))
    np.testing.assert_allclose(read(tmp_path / "m2.nii").affine, image.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (np.full((2, 3, 4), 65536), "0 to 65535"),
        (np.full((2, 3, 4), -1), "from -1"),
        (np.full((2, 3, 4), 0.5), "round it"),
        (np.ones((4, 3, 2), np.uint8), "they must be equal"),
    ],
)
def test_labels_that_no_file_can_hold_are_refused_and_leave_nothing(tmp_path, labels, complaint):
    with pytest.raises(OutputError, match=complaint):
        write_mask(tmp_path / "m.nii", Mask(labels, Geometry((2, 3, 4), AFFINE)))
    assert list(tmp_path.iterdir()) == []


NIFTI_SETS = (
    *("acdc_cardiac_mr", "colin27_aal_t1", "msd_hippocampus_mr", "pyradiomics_mr"),
    *("sts_sarcoma_ct", "sts_sarcoma_mr_t1", "sts_sarcoma_pet"),
)


@pytest.mark.real_data
@pytest.mark.parametrize("name", NIFTI_SETS)
def test_real_volumes_agree_with_nibabel(data_root, name):
    path = min((data_root / name).rglob("*.nii.gz"))
    image = read(path)
    reference = nib.load(path)
    np.testing.assert_allclose(image.array, np.asarray(reference.dataobj).T, rtol=1e-6)
    np.testing.assert_array_equal(image.affine, reference.affine)
