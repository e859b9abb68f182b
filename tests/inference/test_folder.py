import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture
from pydicom.uid import generate_uid

import trees
from dicom_phantoms import save, series
from fake_runtime import FakeFindingRuntime
from palpate.errors import FormatError, OutputError, SettingError
from palpate.inference.folder import Choices, Result, find_in
from palpate.inference.folder_book import Book
from palpate.inference.folder_images import Entry, Skipped, images_in
from palpate.inference.folder_names import names_of
from palpate.inference.folder_table import COLUMNS, Row
from palpate.inference.session import Session
from palpate.models.promptable import LearnedClass
from phantoms import column, picture, rectangle

SHAPE = (64, 64)
DIM, BRIGHT = rectangle(SHAPE, 5, 10, 24, 29), rectangle(SHAPE, 40, 30, 51, 39)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two pictures (only the first has something bright and large), a volume, a broken picture and a text."""
    where = tmp_path / "images"
    where.mkdir()
    Picture.fromarray(picture((DIM, 128), (BRIGHT, 255))).save(where / "both.png")
    grey = picture((DIM, 128))
    grey[63, 63] = 255
    Picture.fromarray(grey).save(where / "grey.png")
    trees.nifti(where / "ct.nii.gz", picture((column((5, *SHAPE), BRIGHT, 1, 3), 255)))
    (where / "broken.png").write_bytes(b"no picture")
    (where / "notes.txt").write_text("hello")
    return where


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "masks"


def run(images: Path, out: Path, runtime: FakeFindingRuntime | None = None, **settings: object) -> Result:
    entries, _ = images_in(images, leave_out=[out])
    return find_in(Session(runtime or FakeFindingRuntime()), entries, out, **settings)  # type: ignore[arg-type]


def table(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def dicom(where: Path, *, count: int, name: str = "slice", suffix: str = ".dcm") -> Path:
    """A CT series of so many slices, each with the bright body, as files named after `name`."""
    uid = generate_uid()
    pixels = np.repeat(picture((BRIGHT, 255))[None], count, axis=0).astype(np.int16)
    for z, dataset in enumerate(series(pixels=pixels, SeriesInstanceUID=uid)):
        save(dataset, where / f"{name}-{z}{suffix}")
    return where


class TestMasks:
    def test_each_image_has_one_under_its_own_name(self, images: Path, out: Path) -> None:
        run(images, out)
        assert {path.name for path in out.iterdir()} == {
            "both.png",
            "grey.png",
            "ct.nii.gz",
            "scores.csv",
            "run.json",
            "done.jsonl",
        }
        with Picture.open(out / "both.png") as mask:
            assert np.array_equal(np.asarray(mask), DIM * 1 + BRIGHT * 4)
        volume = np.asarray(nibabel.load(out / "ct.nii.gz").dataobj).T  # type: ignore[attr-defined]
        assert np.array_equal(volume, column((5, *SHAPE), BRIGHT, 1, 3) * 4)

    def test_each_class_may_have_its_own(self, images: Path, out: Path) -> None:
        run(images, out, choices=Choices(per_class=True))
        names = {path.name for path in out.iterdir()}
        assert {"both_dim.png", "both_bright.png", "ct_dim.nii.gz", "ct_bright.nii.gz"} <= names
        assert "both.png" not in names
        with Picture.open(out / "both_dim.png") as mask:
            assert np.array_equal(np.asarray(mask), (DIM | BRIGHT) * 1)
        assert {row["output"] for row in table(out) if row["image"] == "both.png"} == {
            "both_dim.png",
            "both_bright.png",
        }

    def test_volumes_may_become_another_kind_of_file(self, images: Path, out: Path) -> None:
        run(images, out, choices=Choices(volume_suffix=".seg.nrrd"))
        assert (out / "ct.seg.nrrd").is_file()
        assert (out / "both.png").is_file()

    def test_images_of_one_name_and_two_kinds_keep_both_masks(self, images: Path, out: Path) -> None:
        Picture.fromarray(picture((BRIGHT, 255))).save(images / "both.tif")
        run(images, out)
        assert {"both.png.png", "both.tif.png", "grey.png"} <= {path.name for path in out.iterdir()}

    def test_pictures_to_look_at(self, images: Path, out: Path, tmp_path: Path) -> None:
        run(images, out, previews=tmp_path / "looks")
        assert {path.name for path in (tmp_path / "looks").iterdir()} == {"both.png", "grey.png", "ct.png"}

    def test_each_image_is_encoded_and_decoded_once(self, images: Path, out: Path, tmp_path: Path) -> None:
        runtime = FakeFindingRuntime()
        run(images, out, runtime, choices=Choices(per_class=True), previews=tmp_path / "looks")
        # Two pictures and five slices, of which the first and the last are the same.
        assert runtime.encodes == 2 + 2
        assert len(runtime.asked) == 2 + 5


class TestTheTable:
    def test_what_failed_comes_first_then_the_lowest_scores(self, images: Path, out: Path) -> None:
        result = run(images, out)
        rows = table(out)
        assert tuple(rows[0]) == COLUMNS
        assert [(row["image"], row["class"], row["present"]) for row in rows] == [
            ("broken.png", "", ""),
            ("ct.nii.gz", "dim", "no"),
            ("grey.png", "bright", "no"),
            ("grey.png", "dim", "yes"),
            ("both.png", "dim", "yes"),
            ("both.png", "bright", "yes"),
            ("ct.nii.gz", "bright", "yes"),
        ]
        assert "damaged" in rows[0]["error"] or "picture" in rows[0]["error"]
        assert [row.image for row in result.failed] == ["broken.png"]
        assert (result.now, result.before) == (3, 0)

    def test_the_score_is_probability_times_predicted_iou(self, images: Path, out: Path) -> None:
        run(images, out)
        (row,) = [row for row in table(out) if (row["image"], row["class"]) == ("both.png", "bright")]
        # An object logit of 4, and white.
        assert (row["object_probability"], row["predicted_iou"], row["score"]) == ("0.9820", "1.0000", "0.9820")
        assert (row["label"], row["pixels"], row["ml"], row["output"]) == ("4", str(BRIGHT.sum()), "", "both.png")

    def test_volumes_come_in_millilitres(self, images: Path, out: Path) -> None:
        run(images, out)
        (row,) = [row for row in table(out) if (row["image"], row["class"]) == ("ct.nii.gz", "bright")]
        mm3 = float(abs(np.linalg.det(nibabel.load(images / "ct.nii.gz").affine)))  # type: ignore[attr-defined]
        assert float(row["ml"]) == pytest.approx(3 * BRIGHT.sum() * mm3 / 1000, abs=1e-3)

    def test_of_what_is_absent_the_least_sure_comes_first(self, images: Path, out: Path) -> None:
        sure, unsure = (Row("a", "liver", 1, False, probability, 0.0, 0.0) for probability in (0.01, 0.4))
        assert sorted([sure, unsure], key=Row.place) == [unsure, sure]


class Stopped(FakeFindingRuntime):
    """Somebody presses Ctrl-C while the third image is looked at."""

    def find(self, embedding, classes, drawn=None):  # type: ignore[no-untyped-def]
        if len(self.asked) == 2:
            raise KeyboardInterrupt
        return super().find(embedding, classes, drawn)


class TestGoingOn:
    def test_after_an_interruption_only_what_is_missing_is_done(self, images: Path, out: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(images, out, Stopped())
        assert {row["image"] for row in table(out)} == {"both.png", "broken.png"}
        before = (out / "both.png").stat()
        result = run(images, out)
        assert (result.now, result.before, len(result.failed)) == (2, 1, 1)
        assert (out / "both.png").stat() == before
        assert len(table(out)) == 7

    def test_what_changed_or_lost_its_mask_is_done_again_and_what_failed_is_tried_again(
        self, images: Path, out: Path
    ) -> None:
        run(images, out)
        Picture.fromarray(picture((BRIGHT, 255))).save(images / "broken.png")
        Picture.fromarray(picture((BRIGHT, 250), (DIM, 100))).save(images / "grey.png")
        (out / "ct.nii.gz").unlink()
        result = run(images, out)
        assert (result.now, result.before, result.failed) == (3, 1, ())
        assert len(table(out)) == 8

    def test_the_table_keeps_what_another_call_made(self, images: Path, out: Path, tmp_path: Path) -> None:
        run(images, out)
        other = tmp_path / "other"
        other.mkdir()
        Picture.fromarray(picture((BRIGHT, 255))).save(other / "late.png")
        assert run(other, out).now == 1
        names = {row["image"] for row in table(out)}
        assert names == {"both.png", "grey.png", "ct.nii.gz", "late.png"}
        (out / "grey.png").unlink()
        assert run(other, out, overwrite=True).now == 1
        assert {row["image"] for row in table(out)} == names - {"grey.png"}
        assert (run(images, out).before, len(table(out))) == (2, 9)

    def test_another_image_of_the_same_name_does_not_take_its_place(
        self, images: Path, out: Path, tmp_path: Path
    ) -> None:
        run(images, out)
        before = (out / "both.png").read_bytes()
        other = tmp_path / "other"
        other.mkdir()
        Picture.fromarray(picture((BRIGHT, 255))).save(other / "both.png")
        with pytest.raises(OutputError, match=r"another image called both.png.*--overwrite"):
            run(other, out)
        Picture.fromarray(picture((BRIGHT, 255))).save(other / "both.tif")
        (other / "both.png").unlink()
        with pytest.raises(OutputError, match=r"both.tif would replace"):
            run(other, out)
        assert (out / "both.png").read_bytes() == before
        assert run(other, out, overwrite=True).now == 1
        assert (out / "both.png").read_bytes() != before
        assert {row["image"] for row in table(out)} == {"both.tif", "grey.png", "ct.nii.gz"}

    @pytest.mark.parametrize("end", [b"", b"\xff\x00"], ids=["nothing", "noise"])
    def test_half_a_line_is_no_line(self, images: Path, out: Path, end: bytes) -> None:
        run(images, out)
        done = out / "done.jsonl"
        done.write_bytes(done.read_bytes()[:-40] + end)
        assert run(images, out).now == 1
        assert run(images, out).now == 0

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_previews_that_were_drawn_before_an_interruption_are_not_in_the_way(
        self, images: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
    ) -> None:
        looks = tmp_path / "looks"
        if overwrite:
            run(images, out, previews=looks)

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Book, "note", stop)  # the preview is there, and the image not yet done
            with pytest.raises(KeyboardInterrupt):
                run(images, out, previews=looks, overwrite=overwrite)
        assert (looks / "both.png").is_file()
        assert run(images, out, previews=looks).now == 3

    def test_the_table_is_the_same_as_that_of_one_go(self, images: Path, out: Path, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(images, out, Stopped())
        run(images, out)
        run(images, tmp_path / "at once")
        assert (out / "scores.csv").read_bytes() == (tmp_path / "at once/scores.csv").read_bytes()

    @pytest.mark.parametrize(
        "other",
        [
            lambda: {"runtime": FakeFindingRuntime(weights_hash="1" * 64)},
            lambda: {"choices": Choices(carry=True)},
            lambda: {"choices": Choices(intensity="min-max")},
        ],
    )
    def test_masks_made_in_another_way_are_not_mixed(
        self, images: Path, out: Path, other: Callable[[], dict[str, object]]
    ) -> None:
        run(images, out)
        with pytest.raises(OutputError, match=r"another way \((weights_hash|carry|intensity)\).*--overwrite"):
            run(images, out, **other())  # type: ignore[arg-type]
        assert run(images, out, overwrite=True, **other()).before == 0  # type: ignore[arg-type]
        settings = json.loads((out / "run.json").read_text())["settings"]
        assert run(images, out, **other()).before == 3  # type: ignore[arg-type]
        assert settings["per_class"] is False

    def test_a_folder_of_other_things_is_left_alone(self, images: Path, out: Path) -> None:
        out.mkdir()
        (out / "both.png").write_bytes(b"precious")
        with pytest.raises(OutputError, match="holds other files"):
            run(images, out)
        assert (out / "both.png").read_bytes() == b"precious"
        assert run(images, out, overwrite=True).now == 3


class TestAnImageThatFailsAfterItWasDone:
    """Its mask is of what it was then, and maybe made in another way."""

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_its_older_mask_and_preview_are_moved_aside_and_its_row_says_where(
        self, images: Path, out: Path, tmp_path: Path, overwrite: bool
    ) -> None:
        looks = tmp_path / "looks"
        run(images, out, previews=looks)
        mask, look = (out / "both.png").read_bytes(), (looks / "both.png").read_bytes()
        (images / "both.png").write_bytes(b"no picture")
        result = run(images, out, previews=looks, overwrite=overwrite)
        assert not (out / "both.png").exists()
        assert not (looks / "both.png").exists()
        assert (out / "earlier/both.png").read_bytes() == mask
        assert (looks / "earlier/both.png").read_bytes() == look
        assert result.moved == (out / "earlier/both.png", looks / "earlier/both.png")
        (row,) = [row for row in table(out) if row["image"] == "both.png"]
        assert row["error"].endswith(f"; older, moved aside: {result.moved[0]}, {result.moved[1]}")
        assert {path.name for path in out.glob("*.*")} >= {"grey.png", "ct.nii.gz"}

    def test_nothing_that_was_moved_is_replaced(self, images: Path, out: Path) -> None:
        before: list[bytes] = []
        for body in (BRIGHT, DIM):
            Picture.fromarray(picture((body, 255))).save(images / "both.png")
            run(images, out)
            before.append((out / "both.png").read_bytes())
            (images / "both.png").write_bytes(b"no picture")
            run(images, out)
        assert [(out / "earlier" / name).read_bytes() for name in ("both.png", "2-both.png")] == before
        Picture.fromarray(picture((BRIGHT, 255))).save(images / "both.png")
        assert [row.image for row in run(images, out).failed] == ["broken.png"]

    def test_of_classes_all_masks_are_and_those_of_other_images_stay(self, images: Path, out: Path) -> None:
        Picture.fromarray(picture((BRIGHT, 255))).save(images / "both_dim.png")
        run(images, out, choices=Choices(per_class=True))
        (images / "both.png").write_bytes(b"no picture")
        run(images, out, choices=Choices(per_class=True), overwrite=True)
        assert {path.name for path in (out / "earlier").iterdir()} == {"both_dim.png", "both_bright.png"}
        assert {"both_dim_dim.png", "both_dim_bright.png"} <= {path.name for path in out.iterdir()}

    def test_what_was_written_now_stays(
        self, images: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(images, out)

        def full(*_: object) -> None:
            raise OutputError("no space left")

        monkeypatch.setattr("palpate.inference.folder_masks.write_preview", full)
        result = run(images, out, previews=tmp_path / "looks", overwrite=True)
        assert len(result.failed) == 4
        assert result.moved == ()
        assert (out / "both.png").is_file()

    def test_a_mask_that_cannot_be_moved_is_told(self, images: Path, out: Path) -> None:
        run(images, out)
        (out / "earlier").write_text("a file of that name")
        (images / "both.png").write_bytes(b"no picture")
        result = run(images, out)
        assert result.moved == ()
        assert f"cannot make the folder {out / 'earlier'}" in result.failed[0].error


class TestNamesOfMasks:
    @pytest.mark.parametrize(
        ("names", "called"),
        [
            (("left kidney", "left/kidney"), {"left_kidney_1", "left_kidney_2"}),
            (("Liver", "liver"), {"Liver_1", "liver_2"}),
            (("a b", "a_b", "a_b_1"), {"a_b_1", "a_b_2", "a_b_1_3"}),
            (("label 2", "??"), {"label_2_1", "label_2"}),
        ],
    )
    def test_no_two_classes_share_one(self, names: tuple[str, ...], called: set[str]) -> None:
        classes = [LearnedClass(name, value) for value, name in enumerate(names, start=1)]
        assert set(names_of(classes).values()) == called

    def test_what_another_runtime_began_does_not_go_on(
        self, images: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor another precision, which is part of how a runtime describes itself."""
        run(images, out)
        monkeypatch.setattr(FakeFindingRuntime, "describe", lambda _: "fake on paper, bfloat16")
        with pytest.raises(OutputError, match="runtime"):
            run(images, out)
        assert run(images, out, overwrite=True).now == 3

    def test_two_images_whose_masks_of_classes_would_be_one_are_refused(self, images: Path, out: Path) -> None:
        runtime = FakeFindingRuntime(classes=(LearnedClass("b_dim", 1), LearnedClass("dim", 4)))
        for name in ("a.png", "A_b.png"):  # on some disks, capitals and small letters are the same
            Picture.fromarray(picture((BRIGHT, 255))).save(images / name)
        said = r"A_b.png and a.png would each have a mask called a_b_dim; rename .*leave --per-class out"
        with pytest.raises(OutputError, match=said):
            run(images, out, runtime, choices=Choices(per_class=True), overwrite=True)
        assert not out.exists()
        assert run(images, out, runtime).now == 5

    def test_nor_does_one_replace_that_of_an_image_of_an_earlier_call(self, images: Path, out: Path) -> None:
        runtime = FakeFindingRuntime(classes=(LearnedClass("b_dim", 1), LearnedClass("dim", 4)))
        choices = Choices(per_class=True)
        (images / "both.png").rename(images / "a.png")
        run(images, out, runtime, choices=choices)
        before = (out / "a_b_dim.png").read_bytes()
        (images / "a.png").rename(images.parent / "kept.png")
        Picture.fromarray(picture((BRIGHT, 255))).save(images / "a_b.png")
        with pytest.raises(OutputError, match=r"another image called a.png, which that of .*a_b.png would replace"):
            run(images, out, runtime, choices=choices)
        assert (out / "a_b_dim.png").read_bytes() == before
        run(images, out, runtime, choices=choices, overwrite=True)
        assert (out / "a_b_dim.png").read_bytes() != before
        assert "a.png" not in {row["image"] for row in table(out)}

    def test_an_image_whose_mask_another_one_has_taken_is_no_longer_done(self, images: Path, out: Path) -> None:
        runtime = FakeFindingRuntime(classes=(LearnedClass("b_dim", 1), LearnedClass("dim", 4)))
        choices = Choices(per_class=True)
        (images / "both.png").rename(images / "a.png")
        run(images, out, runtime, choices=choices)
        (out / "a_b_dim.png").unlink()
        (images / "a.png").rename(images / "a_b.png")
        assert run(images, out, runtime, choices=choices).failed[0].image == "broken.png"
        assert (out / "a_b_dim.png").is_file()
        assert "a.png" not in {row["image"] for row in table(out)}


class TestWhatIsInAFolder:
    def test_images_and_why_others_are_none(self, images: Path) -> None:
        (images / "empty").mkdir()
        (images / ".hidden.png").write_bytes(b"")
        entries, skipped = images_in(images)
        assert [entry.name for entry in entries] == ["both.png", "broken.png", "ct.nii.gz", "grey.png"]
        assert skipped == [
            Skipped("empty", "a folder without DICOM images"),
            Skipped("notes.txt", "of no kind that palpate reads"),
        ]

    def test_the_output_may_lie_in_it(self, images: Path) -> None:
        run(images, images / "masks")
        assert run(images, images / "masks").before == 3

    def test_the_output_may_lie_beside_a_series(self, tmp_path: Path) -> None:
        where = dicom(tmp_path / "series", count=2)
        out, looks = where / "masks", where / "looks"
        for suffix in (".dcm", ".nii.gz"):
            entries = [Entry(where, "series")]
            settings = {"choices": Choices(volume_suffix=suffix), "previews": looks, "overwrite": suffix != ".dcm"}
            assert find_in(Session(FakeFindingRuntime()), entries, out, **settings).now == 1  # type: ignore[arg-type]
            settings["overwrite"] = False
            assert find_in(Session(FakeFindingRuntime()), entries, out, **settings).before == 1  # type: ignore[arg-type]

    def test_a_folder_of_one_series_is_one_image(self, tmp_path: Path) -> None:
        where = dicom(tmp_path / "series", count=3)
        (entry,), skipped = images_in(where)
        assert (entry.path, entry.name) == (where, "series")
        assert not skipped

    def test_series_whose_uids_end_alike_have_names_of_their_own(self, tmp_path: Path, out: Path) -> None:
        where = tmp_path / "exams" / "patient"
        for number, uid in enumerate(("1.2.10.1", "1.2.20.1", "1.2.20.3")):
            pixels = np.repeat(picture((BRIGHT, 255))[None], 2, axis=0).astype(np.int16)
            for z, dataset in enumerate(series(pixels=pixels, SeriesInstanceUID=uid)):
                save(dataset, where / f"{number}-{z}.dcm")
        entries, _ = images_in(where.parent)
        assert [entry.name for entry in entries] == ["patient_1.2.10.1", "patient_1.2.20.1", "patient_3"]
        assert run(where.parent, out).failed == ()

    def test_series_in_folders_and_loose_files_are_images_each(self, tmp_path: Path, out: Path) -> None:
        where = tmp_path / "all"
        dicom(where / "patient-a", count=3)
        dicom(where / "patient-b", count=1)
        dicom(where, count=1, name="film1")
        dicom(where, count=1, name="film2")
        entries, _ = images_in(where)
        assert [entry.name for entry in entries] == ["film1-0.dcm", "film2-0.dcm", "patient-a", "patient-b"]
        result = run(where, out)
        assert result.failed == ()
        assert {row.output for row in result.rows} == {
            f"{n}.nii.gz" for n in ("film1-0", "film2-0", "patient-a", "patient-b")
        }

    @pytest.mark.parametrize("suffix", ["", ".dcm"])
    @pytest.mark.parametrize("below", [False, True], ids=["loose", "in a sub-folder"])
    @pytest.mark.parametrize("left", [0, 100, 132, 300], ids=lambda count: f"{count} bytes left")
    def test_a_dicom_file_that_is_cut_short_is_told_with_and_without_a_suffix(
        self, tmp_path: Path, out: Path, suffix: str, below: bool, left: int
    ) -> None:
        where = tmp_path / "all"
        own = dicom(where / "patient" if below else where, count=3, name="IM", suffix=suffix)
        damaged = own / f"IM-2{suffix}"
        damaged.write_bytes(damaged.read_bytes()[:left])
        name = f"patient_IM-2{suffix}" if below else damaged.name
        (error,) = [row["error"] for row in (run(where, out), table(out))[1] if row["image"] == name]
        assert str(damaged) in error

    def test_of_files_beside_dicom_only_those_that_seem_to_have_been_dicom_are_damaged(self, tmp_path: Path) -> None:
        where = dicom(tmp_path / "series", count=2, name="1.2.840", suffix="")
        (where / "README").write_text("hello")
        (where / "LICENSE").write_bytes(b"")
        (where / "thumbs.db").write_bytes(b"\0" * 200)
        (where / "notes.1").write_text("one")
        (where / "1.2.840-9").write_bytes(b"")  # called like the others
        (where / "EXPORT").write_bytes(b"\0" * 200)  # no text
        for one in (where, where.parent):
            entries, _ = images_in(one)
            assert [entry.path.name for entry in entries if entry.damage] == ["1.2.840-9", "EXPORT"]

    def test_without_dicom_beside_it_a_file_without_a_suffix_is_no_image(self, images: Path) -> None:
        (images / "EXPORT").write_bytes(b"\0" * 200)
        entries, skipped = images_in(images)
        assert not [entry for entry in entries if entry.damage]
        assert "EXPORT" in {one.name for one in skipped}

    def test_damaged_files_of_one_name_in_two_folders_of_a_patient_have_names_of_their_own(
        self, tmp_path: Path, out: Path
    ) -> None:
        where = tmp_path / "all"
        for visit in ("first", "second"):
            dicom(where / "patient" / visit, count=2)
            (where / "patient" / visit / "broken.dcm").write_bytes(b"")
        result = run(where, out)
        assert {"patient_first_broken.dcm", "patient_second_broken.dcm"} <= {row.image for row in result.failed}

    def test_dicom_may_become_a_dicom_seg(self, tmp_path: Path, images: Path, out: Path) -> None:
        dicom(images / "patient", count=3)
        result = run(images, out, choices=Choices(volume_suffix=".dcm"))
        outputs = {row.image: row.output for row in result.rows}
        assert (outputs["patient"], outputs["ct.nii.gz"]) == ("patient.dcm", "ct.nii.gz")
        assert (out / "patient.dcm").is_file()

    def test_a_dicom_seg_of_nothing_is_not_written(self, tmp_path: Path, out: Path) -> None:
        where = dicom(tmp_path / "series", count=2)
        nothing = FakeFindingRuntime(object_logits={"dim": -2.0, "bright": -2.0})
        result = run(where, out, nothing, choices=Choices(volume_suffix=".dcm"))
        assert [(row.present, row.output) for row in result.rows] == [(False, ""), (False, "")]
        assert not list(out.glob("*.dcm"))
        assert run(where, out, nothing, choices=Choices(volume_suffix=".dcm")).before == 1

    def test_a_dicom_seg_of_what_is_no_longer_found_is_removed(self, tmp_path: Path, out: Path) -> None:
        where = dicom(tmp_path / "series", count=2)
        run(where, out, choices=Choices(volume_suffix=".dcm"))
        assert (out / "series.dcm").is_file()
        for path in where.iterdir():
            os.utime(path, (1, 1))
        nothing = FakeFindingRuntime(object_logits={"dim": -2.0, "bright": -2.0})
        result = run(where, out, nothing, choices=Choices(volume_suffix=".dcm"))
        assert (result.now, result.failed) == (1, ())
        assert not (out / "series.dcm").exists()


class TestWhatIsRefused:
    def test_the_images_own_folder(self, images: Path) -> None:
        with pytest.raises(OutputError, match="holds the images themselves"):
            run(images, images)

    def test_previews_among_masks_or_images(self, images: Path, out: Path) -> None:
        before = (images / "both.png").read_bytes()
        with pytest.raises(OutputError, match=r"masks go into.*another folder"):
            run(images, out, previews=out)
        with pytest.raises(OutputError, match=r"holds the images themselves.*another folder"):
            run(images, out, previews=images, overwrite=True)
        assert (images / "both.png").read_bytes() == before
        assert not out.exists()

    def test_previews_in_place_of_pictures_that_others_made(self, images: Path, out: Path, tmp_path: Path) -> None:
        looks = tmp_path / "looks"
        looks.mkdir()
        (looks / "grey.png").write_bytes(b"precious")
        with pytest.raises(OutputError, match=r"grey.png exists.*--overwrite"):
            run(images, out, previews=looks)
        assert (looks / "grey.png").read_bytes() == b"precious"
        assert not out.exists()
        assert run(images, out, previews=looks, overwrite=True).now == 3
        (out / "grey.png").unlink()
        assert run(images, out, previews=looks).now == 1

    def test_nothing_to_do(self, tmp_path: Path, out: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(FormatError, match="no images"):
            run(tmp_path / "empty", out)
        with pytest.raises(FormatError, match="there is no folder"):
            images_in(tmp_path / "nowhere")

    def test_a_session_that_finds_nothing_by_itself(self, images: Path, out: Path, fake_session: Session) -> None:
        with pytest.raises(SettingError, match="palpate learn"):
            find_in(fake_session, images_in(images)[0], out)
        assert not out.exists()

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"volume_suffix": ".jpg"}, "choose nii.gz"),
            ({"intensity": "odd"}, "odd"),
            ({"modality": "xray"}, "no modality 'xray'; choose one of CT"),
            ({"axis": "w"}, "no axis 'w'; choose one of z"),
        ],
    )
    def test_choices_that_do_not_exist(self, wrong: dict[str, str], said: str) -> None:
        with pytest.raises(SettingError, match=said):
            Choices(**wrong)  # type: ignore[arg-type]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written(self, images: Path, out: Path) -> None:
        out.mkdir(mode=0o555)
        with pytest.raises(OutputError, match="cannot write in"):
            run(images, out)

    def test_names_that_cannot_be_told_apart(self, images: Path, out: Path) -> None:
        entries = [Entry(images / "both.png", "a"), Entry(images / "grey.png", "a")]
        with pytest.raises(OutputError, match="rename one"):
            find_in(Session(FakeFindingRuntime()), entries, out)
