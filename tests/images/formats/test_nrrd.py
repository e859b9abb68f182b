import gzip
from pathlib import Path

import nrrd
import numpy as np
import pytest

from palpate.errors import FormatError, GeometryError, OutputError
from palpate.images import Geometry, read, write_mask
from palpate.images.formats import Mask

# A CT in LPS: 0.8 x 0.8 x 2.5 mm, first voxel 100 mm to the right, 50 mm to the back, 10 mm towards the head.
LPS_HEADER = {
    "space": "left-posterior-superior",
    "space directions": np.diag([0.8, 0.8, 2.5]),
    "space origin": np.array([-100.0, 50.0, 10.0]),
    "kinds": ["domain", "domain", "domain"],
}
RAS_AFFINE = np.array([[-0.8, 0, 0, 100], [0, -0.8, 0, -50], [0, 0, 2.5, 10], [0, 0, 0, 1]])


@pytest.fixture
def volume() -> np.ndarray:
    """Four by three by two voxels (x, y, z), each with its own value."""
    return np.arange(24, dtype=np.int16).reshape(4, 3, 2)


def text_nrrd(path: Path, fields: str, data: bytes = b"") -> Path:
    """An NRRD written by hand, one field a line."""
    lines = [line.strip() for line in fields.strip().splitlines()]
    path.write_bytes("\n".join(["NRRD0004", *lines, "", ""]).encode() + data)
    return path


GREY = "type: uint8\ndimension: 3\nsizes: 4 3 2\nencoding: raw"
"""Twenty-four bytes that know nothing about space."""


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_an_lps_volume_comes_home_in_ras_with_z_first(tmp_path, volume, encoding):
    nrrd.write(str(tmp_path / "ct.nrrd"), volume, {**LPS_HEADER, "encoding": encoding})

    image = read(tmp_path / "ct.nrrd")

    np.testing.assert_array_equal(image.array, volume.T)
    assert image.array.dtype == np.int16
    np.testing.assert_allclose(image.affine, RAS_AFFINE)
    assert image.source is not None
    assert image.source.format == "nrrd"


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LAS", (-1, 1, 1)),
        ("scanner-xyz", (-1, -1, 1)),  # no patient in it: as ITK does
    ],
)
def test_every_space_is_turned_into_ras(tmp_path, space, signs):
    path = text_nrrd(
        tmp_path / "s.nrrd",
        f"{GREY}\nspace: {space}\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (10,20,30)",
        bytes(24),
    )
    affine = read(path).affine
    np.testing.assert_allclose(np.diag(affine)[:3], np.multiply(signs, (2, 3, 4)))
    np.testing.assert_allclose(affine[:3, 3], np.multiply(signs, (10, 20, 30)))


def test_big_endian_voxels_are_the_same_voxels(tmp_path, volume):
    fields = "type: short\ndimension: 3\nsizes: 4 3 2\nencoding: raw\nendian: big"
    path = text_nrrd(tmp_path / "b.nrrd", fields, volume.astype(">i2").tobytes(order="F"))
    array = read(path).array
    np.testing.assert_array_equal(array, volume.T)
    assert array.dtype == np.dtype(np.int16)


@pytest.mark.parametrize("kind", ["RGB-color", "vector", "3-color"])
def test_a_colour_axis_goes_last_and_has_no_direction(tmp_path, kind):
    rgb = np.zeros((3, 4, 5, 2), np.uint8)
    rgb[1, 3, 2, 1] = 9  # green at x 3, y 2, z 1
    header = {
        **LPS_HEADER,
        "kinds": [kind, "domain", "domain", "domain"],
        "space directions": np.vstack([np.full(3, np.nan), np.diag([0.8, 0.8, 2.5])]),
    }
    nrrd.write(str(tmp_path / "rgb.nrrd"), rgb, header)
    assert b"space directions: none (" in (tmp_path / "rgb.nrrd").read_bytes()

    image = read(tmp_path / "rgb.nrrd")

    assert image.colour
    assert image.shape == (2, 5, 4)
    assert image.array[1, 2, 3].tolist() == [0, 9, 0]
    np.testing.assert_allclose(image.affine, RAS_AFFINE)


def test_alpha_is_dropped_wherever_the_colour_axis_stands(tmp_path):
    rgba = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)  # x, y, colour
    path = text_nrrd(
        tmp_path / "rgba.nrrd",
        "type: uint8\ndimension: 3\nsizes: 2 3 4\nencoding: raw\nkinds: domain domain RGBA-color",
        rgba.tobytes(order="F"),
    )
    np.testing.assert_array_equal(read(path).array, rgba.transpose(1, 0, 2)[..., :3])


def test_an_axis_without_kind_and_direction_is_colour(tmp_path):
    path = text_nrrd(
        tmp_path / "c.nrrd",
        "type: uint8\ndimension: 4\nsizes: 3 4 3 2\nencoding: raw\nspace: LPS\n"
        "space directions: none (1,0,0) (0,1,0) (0,0,1)",
        bytes(72),
    )
    assert read(path).array.shape == (2, 3, 4, 3)


@pytest.mark.parametrize("kinds", ["list domain domain domain", "domain domain domain time"])
def test_layers_and_time_series_are_refused_with_the_way_out(tmp_path, kinds):
    path = text_nrrd(
        tmp_path / "l.nrrd", f"type: uint8\ndimension: 4\nsizes: 3 4 2 3\nencoding: raw\nkinds: {kinds}", bytes(72)
    )
    with pytest.raises(FormatError, match="save the one volume"):
        read(path)


def test_a_displacement_field_is_no_colour(tmp_path):
    nrrd.write(str(tmp_path / "d.nrrd"), np.zeros((3, 4, 3, 2), np.float32), {"kinds": ["vector", *["domain"] * 3]})
    with pytest.raises(FormatError, match="kind vector of 3"):
        read(tmp_path / "d.nrrd")


def test_spacings_alone_give_voxel_sizes_and_units_are_obeyed(tmp_path):
    path = text_nrrd(tmp_path / "s.nrrd", f'{GREY}\nspacings: 0.5 0.5 0.2\nunits: "mm" "mm" "cm"', bytes(24))
    assert read(path).geometry.spacing == pytest.approx((0.5, 0.5, 2.0))
    path = text_nrrd(tmp_path / "n.nrrd", GREY, bytes(24))
    assert read(path).geometry.spacing == (1.0, 1.0, 1.0)
    path = text_nrrd(
        tmp_path / "u.nrrd",
        f"{GREY}\nspace: RAS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (5,6,7)\n"
        'space units: "um" "µm" "m"',
        bytes(24),
    )
    np.testing.assert_allclose(read(path).affine[:3, 3], (0.005, 0.006, 7000))


def test_a_picture_may_lie_in_a_plane_or_in_the_patient(tmp_path):
    flat = "type: uint8\ndimension: 2\nsizes: 4 3\nencoding: raw"
    plane = text_nrrd(
        tmp_path / "p.nrrd",
        f"{flat}\nspace dimension: 2\nspace directions: (0.5,0) (0,0.25)\nspace origin: (7,8)",
        bytes(12),
    )
    image = read(plane)
    assert image.array.shape == (3, 4)
    np.testing.assert_allclose(image.affine[:3], [[-0.5, 0, 0, -7], [0, -0.25, 0, -8], [0, 0, 1, 0]])

    patient = text_nrrd(
        tmp_path / "q.nrrd",
        f"{flat}\nspace: RAS\nspace directions: (0,0.5,0) (0,0,2)\nspace origin: (1,2,3)",
        bytes(12),
    )
    np.testing.assert_allclose(read(patient).affine[:3], [[0, 0, 1, 1], [0.5, 0, 0, 2], [0, 2, 0, 3]])


def test_parallel_directions_place_voxels_nowhere(tmp_path):
    path = text_nrrd(
        tmp_path / "p.nrrd",
        "type: uint8\ndimension: 2\nsizes: 4 3\nencoding: raw\nspace: RAS\nspace directions: (0,1,0) (0,2,0)",
        bytes(12),
    )
    with pytest.raises(GeometryError):
        read(path)
    with pytest.raises(GeometryError, match="NaN"):
        read(text_nrrd(tmp_path / "s.nrrd", f"{GREY}\nspacings: 1 1 nan", bytes(24)))
    with pytest.raises(GeometryError, match="zero"):
        read(text_nrrd(tmp_path / "z.nrrd", f"{GREY}\nspacings: 1 0 1", bytes(24)))


# Detached headers -------------------------------------------------------------------------------------------------


def test_a_detached_header_finds_the_file_beside_it(tmp_path, volume):
    nrrd.write(str(tmp_path / "ct.nhdr"), volume, dict(LPS_HEADER))
    assert (tmp_path / "ct.raw.gz").exists()
    np.testing.assert_array_equal(read(tmp_path / "ct.nhdr").array, volume.T)


@pytest.mark.parametrize("reference", ["../secret.raw", "{outside}/secret.raw", "sub/../../secret.raw", "link.raw"])
def test_a_header_cannot_reach_out_of_its_folder(tmp_path, reference):
    folder = tmp_path / "study"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.raw").write_bytes(bytes(24))
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    path = text_nrrd(folder / "h.nhdr", f"{GREY}\ndata file: {reference.format(outside=tmp_path)}")
    with pytest.raises(FormatError, match="outside its own folder"):
        read(path)


@pytest.mark.parametrize("reference", ["missing.raw", "LIST", "slice%03d.raw 1 2 1", "."])
def test_a_header_whose_data_is_not_one_file_is_refused(tmp_path, reference):
    path = text_nrrd(tmp_path / "h.nhdr", f"{GREY}\ndata file: {reference}")
    with pytest.raises(FormatError, match="not one file beside it"):
        read(path)


def test_lines_and_bytes_before_the_voxels_are_skipped(tmp_path, volume):
    voxels = volume.astype(np.uint8).tobytes(order="F")
    for fields, data in [
        ("line skip: 2", b"one\ntwo\n" + voxels),
        ("byte skip: 5", b"12345" + voxels),
        ("byte skip: -1", b"whatever it is" + voxels),
        ("line skip: 1\nbyte skip: 2", b"one\n12" + voxels),
    ]:
        path = text_nrrd(tmp_path / "skip.nrrd", f"{GREY}\n{fields}", data)
        np.testing.assert_array_equal(read(path).array, volume.T)


# Files that must not be believed ----------------------------------------------------------------------------------


def test_a_tiny_file_that_claims_a_huge_volume_is_refused(tmp_path):
    for encoding in ("raw", "gzip"):
        fields = f"type: uint8\ndimension: 3\nsizes: 20000 20000 20000\nencoding: {encoding}"
        with pytest.raises(FormatError, match="claims 20000 x 20000 x 20000"):
            read(text_nrrd(tmp_path / "bomb.nrrd", fields, gzip.compress(bytes(100))))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("fraction", [0.3, 0.7, 0.99])
def test_truncated_voxels_are_refused(tmp_path, encoding, fraction):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 40), dtype=np.uint8)
    nrrd.write(str(tmp_path / "whole.nrrd"), noise, {"encoding": encoding})
    content = (tmp_path / "whole.nrrd").read_bytes()
    (tmp_path / "cut.nrrd").write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(FormatError, match="truncated"):
        read(tmp_path / "cut.nrrd")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ("dimension: 3\nsizes: 4 3 2\nencoding: raw", "has no type"),
        ("type: uint8\ndimension: 2\nsizes: 4 3 2\nencoding: raw", "claims 2 axes and lists 3"),
        ("type: block\ndimension: 3\nsizes: 4 3 2\nencoding: raw", "'block'"),
        ("type: short\ndimension: 3\nsizes: 4 3 2\nencoding: raw", "endian"),
        ("type: uint8\ndimension: 3\nsizes: 4 3 2\nencoding: ascii", "save it as gzip"),
        ("type: uint8\ndimension: 3\nsizes: 4 0 2\nencoding: raw", r"shape of \(4, 0, 2\)"),
        ("type: uint8\ndimension: 3\nsizes: 4 nan 2\nencoding: raw", "header is damaged"),
        ("type: uint8\ndimension: 3\nsizes: four 3 2\nencoding: raw", "damaged"),
        (GREY + "\nkinds: domain domain", "2 kinds"),
        (GREY + "\nspacings: 1 1", "2 spacings"),
        (GREY + "\nspace directions: (1,0,0) (0,1,0)", "space directions"),
        (GREY + "\nspace directions: (1,0) (0,1) (1,1)", "3 spatial axes in a space of 2"),
        (GREY + "\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (1,2)", "space origin"),
        (GREY + "\nbyte skip: -2", "skips 0 lines and -2 bytes"),
        (GREY + "\ntype: uint8", "Duplicate"),
        ("type: uint8\ndimension: 1\nsizes: 24\nencoding: raw", "1 spatial axes"),
    ],
)
def test_a_damaged_header_is_refused_with_what_is_wrong(tmp_path, fields, complaint):
    with pytest.raises(FormatError, match=complaint):
        read(text_nrrd(tmp_path / "d.nrrd", fields, bytes(24)))


def test_something_else_is_not_nrrd(tmp_path):
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"Dear colleague,\n\n"):
        (tmp_path / "x.nrrd").write_bytes(content)
        with pytest.raises(FormatError):
            read(tmp_path / "x.nrrd")


# Writing ----------------------------------------------------------------------------------------------------------


def labelled() -> Mask:
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[0, 1:, 2] = 1
    labels[:, 0, 0] = 7
    return Mask(labels, Geometry((2, 3, 4), RAS_AFFINE), {7: "Größe := 7\nLeber", 9: "empty one"}, "lite-medsam")


@pytest.mark.parametrize("suffix", [".nrrd", ".seg.nrrd"])
def test_a_mask_keeps_its_place_and_its_labels(tmp_path, suffix):
    mask = labelled()
    write_mask(tmp_path / f"m{suffix}", mask)

    data, header = nrrd.read(str(tmp_path / f"m{suffix}"))

    np.testing.assert_array_equal(data.T, mask.labels)
    assert header["space"] == "left-posterior-superior"
    assert header["content"] == "lite-medsam"
    np.testing.assert_allclose(header["space directions"], LPS_HEADER["space directions"])
    np.testing.assert_allclose(header["space origin"], LPS_HEADER["space origin"])
    np.testing.assert_allclose(read(tmp_path / f"m{suffix}").affine, RAS_AFFINE)


def test_slicer_finds_every_segment_by_name_value_and_extent(tmp_path):
    write_mask(tmp_path / "m.seg.nrrd", labelled())

    header = nrrd.read_header(str(tmp_path / "m.seg.nrrd"))
    text = (tmp_path / "m.seg.nrrd").read_bytes().split(b"\n\n")[0].decode()

    assert header["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert [header[f"Segment{n}_LabelValue"] for n in range(3)] == ["1", "7", "9"]
    assert [header[f"Segment{n}_Layer"] for n in range(3)] == ["0", "0", "0"]
    assert "Segment0_Name:=label 1\n" in text
    assert "Segment1_Name:=Größe := 7 Leber\n" in text
    # x 2..2, y 1..2, z 0..0; then x 0..0, y 0..0, z 0..1; then nothing.
    assert header["Segment0_Extent"] == "2 2 1 2 0 0"
    assert header["Segment1_Extent"] == "0 0 0 0 0 1"
    assert header["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert len({header[f"Segment{n}_ID"] for n in range(3)}) == 3
    assert "Segment3_ID" not in header


def test_segments_get_distinct_colours_that_never_change(tmp_path):
    labels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    mask = Mask(labels, Geometry((3, 4, 5), RAS_AFFINE))
    write_mask(tmp_path / "a.seg.nrrd", mask)
    write_mask(tmp_path / "b.seg.nrrd", mask)
    assert (tmp_path / "a.seg.nrrd").read_bytes() == (tmp_path / "b.seg.nrrd").read_bytes()

    header = nrrd.read_header(str(tmp_path / "a.seg.nrrd"))
    colours = [tuple(map(float, header[f"Segment{n}_Color"].split())) for n in range(59)]
    assert len(set(colours)) == 59
    assert all(0 <= part <= 1 for colour in colours for part in colour)


def test_a_mask_of_a_picture_is_a_picture_but_one_slice_for_slicer(tmp_path):
    mask = Mask(np.eye(3, 4, dtype=np.uint8), Geometry((3, 4), RAS_AFFINE))
    write_mask(tmp_path / "m.nrrd", mask)
    write_mask(tmp_path / "m.seg.nrrd", mask)
    flat, slice_ = read(tmp_path / "m.nrrd"), read(tmp_path / "m.seg.nrrd")
    assert flat.shape == (3, 4)
    assert slice_.shape == (1, 3, 4)
    np.testing.assert_array_equal(slice_.array[0], flat.array)
    np.testing.assert_allclose(flat.affine[:, [0, 1, 3]], RAS_AFFINE[:, [0, 1, 3]])
    np.testing.assert_allclose(slice_.affine, RAS_AFFINE)


def test_many_labels_need_two_bytes(tmp_path):
    labels = np.full((1, 2, 2), 300)
    write_mask(tmp_path / "m.nrrd", Mask(labels, Geometry((1, 2, 2), RAS_AFFINE)))
    array = read(tmp_path / "m.nrrd").array
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array, labels)


def test_the_background_cannot_have_a_segment(tmp_path):
    mask = Mask(np.zeros((1, 2, 2), np.uint8), Geometry((1, 2, 2), RAS_AFFINE), {0: "nothing"})
    with pytest.raises(OutputError, match="0 is the background"):
        write_mask(tmp_path / "m.seg.nrrd", mask)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["dcmqi_small_23x38x3/nrrd/label", "dcmqi_ct3slice_liver_seg/seg/liver_seg"], ids=["small", "liver"]
)
def test_real_label_maps_agree_with_pynrrd(data_root, name):
    path = data_root / "dicom_io" / f"{name}.nrrd"
    image = read(path)
    voxels, header = nrrd.read(str(path))
    np.testing.assert_array_equal(image.array, voxels.T)
    # The files are LPS: x and y change sign.
    np.testing.assert_allclose(image.affine[:3, 3], header["space origin"] * (-1, -1, 1))
    np.testing.assert_allclose(image.affine[:3, :3], (header["space directions"] * (-1, -1, 1)).T)
