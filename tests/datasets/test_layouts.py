"""Each layout as people have it, and as nobody wants it."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import trees
from palpate.datasets import Region, open_dataset, write_manifest
from palpate.errors import DatasetError, FormatError, ImageError, SettingError


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_cases_of_every_layout_can_be_sent_to_another_process(tmp_path: Path) -> None:
    folders = [
        trees.pictures(tmp_path / "m", {"p": 1}),
        trees.nnunet(tmp_path / "n"),
        trees.npy_slices(tmp_path / "npy"),
        trees.two_folders(tmp_path / "f"),
        trees.npz_case(tmp_path / "z" / "CT_one.npz").parent,
    ]
    for folder in folders:
        case = pickle.loads(pickle.dumps(open_dataset(folder)[0]))
        read = case.read()
        assert read.image.shape == read.labels.shape
        assert case.objects(read.labels)[0].values == (1,)


# manifest


def test_a_manifest_needs_only_image_and_label(tmp_path: Path) -> None:
    trees.two_folders(tmp_path / "x")
    trees.manifest(tmp_path, [{"image": "x/images/a.png", "label": "x/labels/a.png"}], "mine.csv")
    (case,) = open_dataset(tmp_path / "mine.csv")
    assert (case.dataset, case.name, case.subject, case.split) == (tmp_path.name, "a", f"{tmp_path.name}/a", "")


def test_a_manifest_keeps_its_other_columns_and_scribbles(tmp_path: Path) -> None:
    trees.two_folders(tmp_path / "x")
    row = {"image": "x/images/a.png", "label": "x/labels/a.png", "modality": "endoscopy", "licence": "CC0"}
    trees.manifest(tmp_path, [{**row, "scribbles": "x/labels/a.png; x/labels/b.png"}])
    (case,) = open_dataset(tmp_path)
    assert (case.modality, case.kind) == ("", "endoscopy")
    assert case.extra == (("modality", "endoscopy"), ("licence", "CC0"))
    assert [path.name for path in case.scribbles] == ["a.png", "b.png"]


def test_equal_stems_in_a_manifest_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for part in "xy":
        trees.two_folders(tmp_path / part, ("a",))
    trees.manifest(tmp_path, [{"image": f"{part}/images/a.png", "label": f"{part}/labels/a.png"} for part in "xy"])
    assert [case.name for case in open_dataset(tmp_path)] == ["x/images/a.png", "y/images/a.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"picture,mask\na,b\n", "has the columns picture, mask"),
        (b"image;label\na;b\n", "parted by commas"),
        (b"", "has the columns none"),
        (b"image,label\na,b,c\n", "line 2 .* more values"),
        (b"image,label\n\xff\xfe,b\n", "no table in UTF-8"),
        (b'image,label\n"a,b\n', "no table"),
    ],
)
def test_a_manifest_that_is_no_table_is_explained(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


def test_a_manifest_as_a_spreadsheet_writes_it_is_read(tmp_path: Path) -> None:
    trees.two_folders(tmp_path / "x", ("a",))
    (tmp_path / "manifest.csv").write_bytes(b"\xef\xbb\xbfimage, label\r\nx/images/a.png,x/labels/a.png\r\n,\r\n")
    assert len(open_dataset(tmp_path)) == 1


def test_the_manifest_s_modality_is_given_to_volumes_and_not_to_display_values(tmp_path: Path) -> None:
    trees.nifti(tmp_path / "v.nii.gz", np.abs(trees.VOLUME))
    trees.nifti(tmp_path / "o.nii.gz", trees.ORGANS)
    trees.two_folders(tmp_path, ("a",))
    rows = [{"image": "v.nii.gz", "label": "o.nii.gz"}, {"image": "images/a.png", "label": "labels/a.png"}]
    trees.manifest(tmp_path, [{**row, "modality": "mri"} for row in rows])
    volume, picture = (case.read().image for case in open_dataset(tmp_path))
    assert (volume.modality, volume.modality_origin) == ("MR", "given")
    assert picture.modality == "unknown"


# nnU-Net


def test_nnunet_names_labels_and_knows_regions_and_the_ignored(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    root = trees.nnunet(tmp_path, labels=labels, regions_class_order=[1, 2])
    case = open_dataset(root)[0]
    assert [(region.name, region.values) for region in case.regions] == [("whole", (1, 2)), ("core", (2,))]
    assert (case.ignore, case.modality, case.split, case.subject) == (3, "CT", "train", "a")
    assert case.regions[0].mask(trees.ORGANS).sum() == 7


def test_nnunet_gives_the_channel_that_was_asked_for(tmp_path: Path) -> None:
    root = trees.nnunet(tmp_path, channels=2, channel_names={"0": "T1", "1": "CT"})
    second = open_dataset(root, channel=1)[0]
    assert second.image.name == "a_0001.nii.gz"
    assert second.modality == "CT"
    np.testing.assert_array_equal(second.read().image.array, trees.VOLUME + 1)
    with pytest.raises(DatasetError, match=r"no channel 2; it lists 0 \(T1\), 1 \(CT\)"):
        open_dataset(root, channel=2)


def test_nnunet_test_cases_count_where_they_have_labels(tmp_path: Path) -> None:
    root = trees.nnunet(tmp_path)
    trees.nifti(root / "imagesTs" / "c_0000.nii.gz", trees.VOLUME)
    assert {case.split for case in open_dataset(root)} == {"train"}
    trees.nifti(root / "labelsTs" / "c.nii.gz", trees.ORGANS)
    assert [case.name for case in open_dataset(root, split="test")] == ["c"]


def test_nnunet_files_may_be_named_in_dataset_json(tmp_path: Path) -> None:
    root = trees.nnunet(tmp_path)
    shutil.move(root / "imagesTr", tmp_path / "elsewhere")
    entry = {"images": ["../elsewhere/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**description, "dataset": {"a": entry}, "numTraining": 1}))
    (case,) = open_dataset(root)
    assert case.read().image.shape == (3, 5, 6)


def test_a_folder_of_nnunet_datasets_keeps_equal_case_names_apart(tmp_path: Path) -> None:
    trees.nnunet(tmp_path, ("a",))
    shutil.copytree(tmp_path / "Dataset007_Organs", tmp_path / "Dataset008_More")
    subjects = [case.subject for case in open_dataset(tmp_path)]
    assert subjects == ["Dataset007_Organs/a", "Dataset008_More/a"]
    assert len(open_dataset(tmp_path, dataset=["Dataset008_More"])) == 1


def test_nnunet_tiff_volumes_take_their_spacing_from_beside(tmp_path: Path) -> None:
    root = trees.nnunet(tmp_path, (), file_ending=".tif", numTraining=1)
    trees.tiff(root / "imagesTr" / "a_0000.tif", trees.VOLUME.astype(np.uint16), (3.0, 0.7, 0.5))
    trees.tiff(root / "labelsTr" / "a.tif", trees.ORGANS, (3.0, 0.7, 0.5))
    (case,) = open_dataset(root)
    assert case.read().image.geometry.spacing == (0.5, 0.7, 3.0)
    (root / "imagesTr" / "a.json").write_text('{"spacing": [3.0, 0]}')
    with pytest.raises(DatasetError, match="spacing"):
        case.read()


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_dataset_json_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    root = trees.nnunet(tmp_path)
    (root / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match="is no JSON"):
        open_dataset(root)
    (root / "dataset.json").unlink()
    with pytest.raises(DatasetError, match="--labels"):
        open_dataset(root)


# npy


def test_npy_slices_are_grey_pictures_of_8_bits_and_belong_to_their_volume(tmp_path: Path) -> None:
    cases = open_dataset(trees.npy_slices(tmp_path / "CT"))
    assert [case.subject for case in cases] == ["CT_abdomen", "CT_abdomen", "CT_chest"]
    read = cases[0].read()
    np.testing.assert_array_equal(read.image.array, trees.grey(0))
    assert read.image.modality == "unknown"


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.array([Evil()], dtype=object), FormatError, "Python objects"),
        (np.ones((5, 6), np.float32) * 7, ImageError, "from 0 to 1"),
        (np.full((5, 6), np.nan), ImageError, "NaN"),
        (np.zeros((4, 5, 6, 3)), FormatError, "one picture"),
    ],
)
def test_hostile_slices_are_refused(tmp_path: Path, array: np.ndarray, error: type, message: str) -> None:
    folder = trees.npy_slices(tmp_path / "CT", ("a",))
    np.save(folder / "imgs" / "a.npy", array, allow_pickle=True)
    with pytest.raises(error, match=message):
        open_dataset(folder)[0].read()


def test_an_npy_header_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    folder = trees.npy_slices(tmp_path / "CT", ("a",))
    path = folder / "imgs" / "a.npy"
    whole = path.read_bytes()
    for lie, message in (
        (b"(5, 6, 9), }", "truncated"),
        (b"(500000, 600000, 3), }", "GiB"),
        (b"(-5, 6, 3), }", "damaged"),
    ):
        path.write_bytes(whole.replace(b"(5, 6, 3), }".ljust(len(lie)), lie))
        with pytest.raises(FormatError, match=message):
            open_dataset(folder)[0].read()
    path.write_bytes(whole[:-10])
    with pytest.raises(FormatError, match="truncated"):
        open_dataset(folder)[0].read()


# npz


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Fundus/Fundus_1", "fundus"),
        ("Endoscopy/polyp_1", "endoscopy"),
        ("Fundus/OCT_1", "oct"),
        ("x/Fundus_OCT_1", ""),
        ("US/Fundus_1", "fundus"),
        ("x/1", ""),
    ],
)
def test_challenge_cases_whose_kind_decides_no_intensities_have_one_still(tmp_path: Path, name: str, kind: str) -> None:
    trees.npz_case(tmp_path / f"{name}.npz")
    (case,) = open_dataset(tmp_path)
    assert (case.modality, case.kind) == ("", kind)


def test_challenge_cases_have_spacing_references_and_their_name_s_modality(tmp_path: Path) -> None:
    trees.npz_case(tmp_path / "CT" / "CT_Abd" / "CT_Abd_001.npz")
    trees.npz_case(tmp_path / "MR" / "MR_Heart" / "MR_Heart_001.npz")
    ct, mr = open_dataset(tmp_path)
    assert (ct.dataset, ct.name, ct.subject, ct.modality) == ("CT/CT_Abd", "CT_Abd_001", "CT/CT_Abd/CT_Abd_001", "CT")
    read = ct.read()
    assert read.image.geometry.spacing == (0.5, 0.6, 3.0)
    assert read.labels.dtype == np.int16
    assert read.image.modality == "unknown"  # windowed already
    assert (mr.modality, mr.kind) == ("MR", "MR")


def test_challenge_references_may_lie_apart(tmp_path: Path) -> None:
    trees.npz_case(tmp_path / "imgs" / "CT_1.npz", gts=[[0]])
    trees.npz_case(tmp_path / "gts" / "CT_1.npz")
    assert open_dataset(tmp_path)[0].read().labels.shape == (3, 5, 6)


def test_an_npz_without_or_with_hostile_references_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "CT_1.npz", imgs=trees.VOLUME)
    with pytest.raises(FormatError, match="no array `gts`"):
        open_dataset(tmp_path)[0].read()
    np.savez(tmp_path / "CT_1.npz", imgs=trees.VOLUME, gts=np.array([Evil()], dtype=object))
    with pytest.raises(FormatError, match="Python objects"):
        open_dataset(tmp_path)[0].read()


# two folders


def test_stems_pair_whatever_the_suffix_and_nnunet_s_channel(tmp_path: Path) -> None:
    trees.nifti(tmp_path / "i" / "a.1_0000.nii.gz", trees.VOLUME)
    trees.nifti(tmp_path / "i" / "a.1_0001.nii.gz", trees.VOLUME + 1)
    trees.nifti(tmp_path / "l" / "a.1.nii", trees.ORGANS)
    (first,) = open_dataset(tmp_path / "i", labels=tmp_path / "l")
    (second,) = open_dataset(tmp_path / "i", labels=tmp_path / "l", channel=1)
    assert (first.name, first.image.name, second.image.name) == ("a.1", "a.1_0000.nii.gz", "a.1_0001.nii.gz")


def test_subfolders_are_part_of_the_name_and_a_pattern_finds_the_subject(tmp_path: Path) -> None:
    trees.two_folders(tmp_path, ("p1/s1", "p1/s2", "p2/s1"))
    assert [case.subject for case in open_dataset(tmp_path)] == ["p1/s1", "p1/s2", "p2/s1"]
    assert [case.subject for case in open_dataset(tmp_path, subject_pattern="(.+)/")] == ["p1", "p1", "p2"]
    with pytest.raises(DatasetError, match="finds no subject in the name 'p1/s1'"):
        open_dataset(tmp_path, subject_pattern="patient")
    with pytest.raises(SettingError, match="no regular expression"):
        open_dataset(tmp_path, subject_pattern="(")


def test_two_files_of_one_stem_are_not_guessed_between(tmp_path: Path) -> None:
    trees.two_folders(tmp_path, ("a",))
    trees.png(tmp_path / "images" / "a.bmp", trees.grey(9))
    with pytest.raises(DatasetError, match="same stem"):
        open_dataset(tmp_path)


# what every layout shares


@pytest.mark.parametrize(
    ("labels", "affine", "message"),
    [
        (trees.ORGANS[:2], trees.AFFINE, "3 x 5 x 6 and 2 x 5 x 6"),
        (trees.ORGANS.T.copy(), trees.AFFINE, "transposed"),
        (trees.ORGANS, trees.AFFINE * [[1], [1], [2], [1]], "0.8 x 0.8 x 2.5 and 0.8 x 0.8 x 5 mm"),
        (trees.ORGANS, trees.AFFINE * [[-1], [1], [1], [1]], "turned or flipped"),
        (trees.ORGANS, trees.AFFINE + np.outer([5, 0, 0, 0], [0, 0, 0, 1]), "5 mm"),
        (trees.ORGANS * 0.5, trees.AFFINE, "not whole"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, labels: np.ndarray, affine: np.ndarray, message: str
) -> None:
    trees.nifti(tmp_path / "images" / "a.nii.gz", trees.VOLUME)
    trees.nifti(tmp_path / "labels" / "a.nii.gz", labels, affine)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)[0].read()


def test_whole_numbers_in_floating_point_are_labels(tmp_path: Path) -> None:
    trees.nifti(tmp_path / "images" / "a.nii.gz", trees.VOLUME)
    trees.nifti(tmp_path / "labels" / "a.nii.gz", trees.ORGANS.astype(np.float32) * 200)
    labels = open_dataset(tmp_path)[0].read().labels
    assert labels.dtype == np.uint16
    assert set(np.unique(labels)) == {0, 200, 400}


def test_grey_saved_as_colour_is_a_label_map_and_colours_are_not(tmp_path: Path) -> None:
    trees.two_folders(tmp_path, ("a",))
    grey = np.repeat(trees.square()[..., None], 3, axis=2)
    trees.png(tmp_path / "labels" / "a.png", grey)
    np.testing.assert_array_equal(open_dataset(tmp_path)[0].read().labels, trees.square())
    trees.png(tmp_path / "labels" / "a.png", grey * np.array([255, 0, 0], np.uint8))
    with pytest.raises(DatasetError, match="colour picture"):
        open_dataset(tmp_path)[0].read()
    (tmp_path / "labels" / "a.png").unlink()
    trees.png(tmp_path / "labels" / "a.jpg", trees.square())
    with pytest.raises(DatasetError, match="JPEG"):
        open_dataset(tmp_path)[0].read()


def test_an_unknown_split_or_dataset_is_told_what_there_is(tmp_path: Path) -> None:
    trees.pictures(tmp_path, {"p": 2}, split="train", dataset="polyps")
    with pytest.raises(DatasetError, match="no split 'tset'; there are train"):
        open_dataset(tmp_path, split="tset")
    with pytest.raises(DatasetError, match="no dataset 'polyp'; there are polyps"):
        open_dataset(tmp_path, dataset=["polyp"])


def test_a_folder_that_may_not_be_read_is_an_error_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    trees.two_folders(tmp_path)
    monkeypatch.setattr(Path, "iterdir", denied)  # who runs tests as root may read everything
    with pytest.raises(DatasetError, match=r"cannot look into .*Permission denied"):
        open_dataset(tmp_path)


def test_files_missing_in_another_dataset_do_not_matter(tmp_path: Path) -> None:
    trees.two_folders(tmp_path, ("a",))
    rows = [{"dataset": "one", "image": "images/a.png", "label": "labels/a.png"}]
    trees.manifest(tmp_path, [*rows, {"dataset": "two", "image": "images/gone.png", "label": "labels/a.png"}])
    assert len(open_dataset(tmp_path, dataset=["one"])) == 1
    with pytest.raises(DatasetError, match=r"gone\.png is not there"):
        open_dataset(tmp_path)


def test_a_manifest_names_regions_and_what_to_ignore(tmp_path: Path) -> None:
    trees.pictures(tmp_path, {"p": 1}, regions=" liver=1 | kidneys = 2 + 3", ignore="4")
    (case,) = open_dataset(tmp_path)
    assert case.regions == (Region("liver", (1,)), Region("kidneys", (2, 3)))
    assert case.ignore == 4
    assert case.extra == ()
    assert case.objects(np.array([[0, 1, 4]], np.uint8)) == [Region("liver", (1,))]


@pytest.mark.parametrize(
    ("column", "text"),
    [
        *(("regions", text) for text in ("liver", "liver=", "liver=x", "a=0", "a=-1")),
        *(("regions", text) for text in ("a=1||b=2", "a=1|a=2", "a=1;b=2", "a=1,2")),
        *(("ignore", text) for text in ("no", "-1", "1+2", "1.0", "9" * 30)),
        ("scribble_convention", "colours"),
    ],
)
def test_a_manifest_whose_labels_cannot_be_understood_is_refused(tmp_path: Path, column: str, text: str) -> None:
    trees.pictures(tmp_path, {"p": 1}, **{column: text})
    with pytest.raises(DatasetError, match=r"line 2 of .*manifest\.csv: "):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "convention"), [("", ""), ("strokes", "strokes"), ("classes", "classes"), ("Classes", "classes")]
)
def test_a_manifest_may_say_what_numbers_in_strokes_mean(tmp_path: Path, text: str, convention: str) -> None:
    trees.pictures(tmp_path, {"p": 1}, scribble_convention=text)
    (case,) = open_dataset(tmp_path)
    assert case.scribble_convention == convention
    write_manifest(tmp_path / "again.csv", [case])
    assert open_dataset(tmp_path / "again.csv")[0].scribble_convention == convention


def test_a_tiff_volume_of_any_layout_takes_its_spacing_from_beside(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        trees.tiff(tmp_path / folder / "a.tif", trees.ORGANS, (3.0, 0.7, 0.5))
    (case,) = open_dataset(tmp_path)
    assert case.read().image.geometry.spacing == (0.5, 0.7, 3.0)
    (tmp_path / "images" / "a.json").write_text('{"patient": "p1"}')
    with pytest.raises(DatasetError, match="move it away"):
        case.read()
