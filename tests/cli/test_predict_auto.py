"""`palpate predict --auto`: what was learned finds its classes in one image, or in a folder of them."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

import trees
from command_line import Run

if TYPE_CHECKING:
    from palpate.models.catalogue import ModelCard


@pytest.fixture
def auto(tiny: "ModelCard", tmp_path: Path) -> Path:
    """Learned prompts for liver (1) and spleen (4) on `tiny`."""
    from tiny_learned import learned_file

    return learned_file(tmp_path / "abdomen.safetensors", tiny)


@pytest.fixture
def images(pictures: Path) -> Path:
    return pictures / "images"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestOneImage:
    def test_it_needs_no_prompt(self, palpate: Run, images: Path, auto: Path) -> None:
        answer = palpate("predict", images / "p0.png", "--auto", auto, "-o", "m.png", "--preview", "look.png", "--json")
        assert answer.status == 0, answer.err
        account = answer.json
        assert (account["model"], account["mode"], account["objects"]) == ("tiny + abdomen", "autonomous", [])
        assert [(one["label"], one["name"]) for one in account["results"]] == [(1, "liver"), (4, "spleen")]
        with Picture.open("m.png") as mask:
            assert mask.size == (56, 40)
        assert Path("look.png").is_file()

    def test_what_is_drawn_goes_in_beside(self, palpate: Run, images: Path, auto: Path) -> None:
        drawn = ("--box", 5, 5, 25, 30, "--name", "liver")
        answer = palpate("predict", images / "p0.png", "--auto", auto, *drawn, "-o", "m.png", "--json")
        assert answer.status == 0, answer.err
        assert answer.json["mode"] == "semi-autonomous"
        assert answer.json["objects"] == [{"label": 1, "name": "liver", "box": [5, 5, 25, 30]}]
        assert "object probability" in palpate("predict", images / "p0.png", "--auto", auto, "-o", "n.png").out

    def test_each_class_may_have_a_mask(self, palpate: Run, images: Path, auto: Path) -> None:
        answer = palpate("predict", images / "p0.png", "--auto", auto, "-o", "m.png", "--per-class", "--json")
        assert answer.json["output"] == ["m_liver.png", "m_spleen.png"]
        with Picture.open("m_spleen.png") as mask:
            assert set(np.unique(np.asarray(mask))) <= {0, 4}
        assert not Path("m.png").exists()
        again = palpate("predict", images / "p0.png", "--auto", auto, "-o", "m.png", "--per-class")
        assert again.status == 2
        assert "m_liver.png exists" in again.err
        answer = palpate("predict", images / "p0.png", "--auto", auto, "-o", "m.seg.nrrd", "--per-class", "--json")
        assert answer.json["output"] == ["m_liver.seg.nrrd", "m_spleen.seg.nrrd"]

    def test_no_mask_of_a_class_replaces_the_image_or_the_preview(self, palpate: Run, images: Path, auto: Path) -> None:
        image = Path("p_liver.png")
        image.write_bytes((images / "p0.png").read_bytes())
        asked = ("predict", image, "--auto", auto, "-o", "p.png", "--per-class", "--overwrite")
        answer = palpate(*asked)
        assert answer.status == 2
        assert "p_liver.png is the image itself" in answer.err
        assert image.read_bytes() == (images / "p0.png").read_bytes()
        answer = palpate("predict", images / "p0.png", *asked[2:], "--preview", "p_spleen.png")
        assert answer.status == 2
        assert "a mask and the preview would both be p_spleen.png" in answer.err
        assert not Path("p_spleen.png").exists()

    def test_masks_of_classes_are_written_all_or_none(
        self, palpate: Run, images: Path, auto: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from palpate.images.formats import Mask, raster

        write = raster.write_mask

        def full_at_the_second(path: Path, mask: Mask) -> None:
            if "spleen" in mask.names.values():
                raise OSError(28, "No space left on device")
            write(path, mask)

        monkeypatch.setattr(raster, "write_mask", full_at_the_second)
        answer = palpate("predict", images / "p0.png", "--auto", auto, "-o", "m.png", "--per-class")
        assert answer.status == 2
        assert "No space left" in answer.err
        assert not list(Path().glob("*m_*"))

    def test_a_volume_slice_by_slice_and_carried(self, palpate: Run, tmp_path: Path, auto: Path) -> None:
        rng = np.random.default_rng(0)
        path = trees.nifti(tmp_path / "ct.nii.gz", rng.integers(-100, 200, (4, 24, 24)).astype(np.int16))
        for options in ((), ("--carry",)):
            answer = palpate("predict", path, "--auto", auto, *options, "-o", "m.nii.gz", "--overwrite", "--json")
            assert answer.status == 0, answer.err
            assert answer.json["until_end"] == bool(options)
            assert nibabel.load("m.nii.gz").shape == (24, 24, 4)  # type: ignore[attr-defined]

    def test_it_says_what_came_from_the_card(self, palpate: Run, tmp_path: Path, tiny: "ModelCard") -> None:
        from tiny_learned import learned_file

        auto = learned_file(tmp_path / "head.safetensors", tiny, modality="MR", intensity="10..60")
        path = trees.nifti(tmp_path / "head.nii.gz", np.arange(3 * 24 * 24, dtype=np.int16).reshape(3, 24, 24))
        asked = ("predict", path, "--auto", auto, "-o", "m.nii.gz", "--overwrite")
        account = palpate(*asked, "--json").json
        assert (account["modality_origin"], account["intensity_origin"]) == ("card", "card")
        assert "MR (as in training), window 35/50 (10..60), as in training" in palpate(*asked).out
        account = palpate(*asked, "--json", "--modality", "MR", "--window", "10..60").json
        assert (account["modality_origin"], account["intensity_origin"]) == ("given", "given")

    def test_a_volume_is_no_png(self, palpate: Run, tmp_path: Path, auto: Path) -> None:
        path = trees.nifti(tmp_path / "ct.nii.gz", np.zeros((4, 24, 24), np.int16))
        answer = palpate("predict", path, "--auto", auto, "-o", "m.png")
        assert answer.status == 2
        assert "a PNG holds one slice" in answer.err


class TestAFolder:
    def test_masks_and_a_table_whatever_is_broken(self, palpate: Run, images: Path, auto: Path) -> None:
        (images / "p3.png").write_bytes(b"no picture")
        (images / "notes.txt").write_text("hello")
        answer = palpate("predict", images, "--auto", auto, "-o", "masks", "--preview", "looks", "--device", "cpu")
        assert answer.status == 1
        assert "error: p3.png: " in answer.err
        assert "5 segmented, 1 failed" in answer.out
        assert "notes.txt: of no kind that palpate reads" in answer.out
        table = rows(Path("masks/scores.csv"))
        assert table[0]["image"] == "p3.png"
        assert table[0]["error"]
        scores = [float(row["score"]) for row in table[1:]]
        assert len(scores) == 10
        assert scores == sorted(scores)
        assert {path.name for path in Path("masks").glob("*.png")} == {f"p{i}.png" for i in (0, 1, 2, 4, 5)}
        assert len(list(Path("looks").iterdir())) == 5

    def test_the_same_command_goes_on_with_the_rest(self, palpate: Run, images: Path, auto: Path) -> None:
        asked = ("predict", images, "--auto", auto, "-o", "masks")
        (images / "p5.png").rename("kept.png")
        assert palpate(*asked).status == 0
        Path("kept.png").rename(images / "p5.png")
        answer = palpate(*asked)
        assert answer.status == 0
        assert "1 segmented, 5 were done before" in answer.out
        changed = palpate(*asked, "--per-class")
        assert changed.status == 2
        assert "another way (per_class)" in changed.err
        assert "--overwrite" in changed.err
        answer = palpate(*asked, "--per-class", "--overwrite", "--json")
        assert answer.status == 0
        assert len(answer.json["records"]) == 12
        assert Path("masks/p5_spleen.png").is_file()

    def test_an_older_mask_of_an_image_that_failed_is_moved_aside_and_told(
        self, palpate: Run, images: Path, auto: Path
    ) -> None:
        asked = ("predict", images, "--auto", auto, "-o", "masks", "--overwrite")
        assert palpate(*asked).status == 0
        (images / "p3.png").write_bytes(b"no picture")
        answer = palpate(*asked)
        assert answer.status == 1
        assert "1 older file of images that failed, into masks/earlier" in answer.out
        assert "older, moved aside: masks/earlier/p3.png" in answer.err
        Path("masks/earlier/p3.png").rename("masks/p3.png")
        assert palpate(*asked, "--json").json["moved"] == ["masks/earlier/p3.png"]

    @pytest.mark.parametrize(("options", "said"), [((), "command"), (("--overwrite",), "command without --overwrite")])
    def test_an_interrupted_one_says_how_to_go_on(
        self,
        palpate: Run,
        images: Path,
        auto: Path,
        monkeypatch: pytest.MonkeyPatch,
        options: tuple[str, ...],
        said: str,
    ) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("palpate.inference.folder.find_in", stop)
        answer = palpate("predict", images, "--auto", auto, "-o", "masks", *options)
        assert answer.status == 130
        assert f"the same {said} goes on with the rest" in answer.err

    def test_another_process_or_a_cluster_may_do_it(self, palpate: Run, images: Path, auto: Path) -> None:
        pytest.importorskip("distributed")
        asked = ("predict", images, "--auto", auto, "-o", "masks")
        answer = palpate(*asked, "--dask", "tcp://127.0.0.1:9")
        assert answer.status == 2
        assert "no dask scheduler answers" in answer.err
        assert not Path("masks").exists()
        answer = palpate(*asked, "--dask", "tcp://127.0.0.1:9", "--workers", 2)
        assert answer.status == 2
        assert "give one of them" in answer.err
        assert "6 segmented" in palpate(*asked, "--workers", 1).out

    def test_one_image_may_go_into_a_folder_as_well(self, palpate: Run, images: Path, auto: Path) -> None:
        assert palpate("predict", images / "p0.png", "--auto", auto, "-o", "masks").status == 0
        assert {path.name for path in Path("masks").iterdir()} == {"p0.png", "scores.csv", "run.json", "done.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("IMAGES", "--auto", "AUTO"), 2, "which folder the masks go into"),
        (("IMAGES", "--auto", "AUTO", "-o", "m", "--box", 1, 2, 3, 4), 2, "for one image"),
        (("IMAGE", "--auto", "AUTO", "-o", "m.png", "--workers", 2), 2, "share out a folder of images"),
        (("IMAGES", "--auto", "AUTO", "-o", "m", "--format", "jpg"), 2, "choose nii.gz"),
        (("IMAGES", "--auto", "AUTO", "-o", "m", "--window", "odd"), 2, "odd"),
        (("IMAGES", "--auto", "AUTO", "-o", "IMAGES"), 2, "holds the images themselves"),
        (("IMAGES", "--auto", "AUTO", "-o", "m", "--preview", "look.png"), 2, "give --preview a folder"),
        (("IMAGE", "--auto", "AUTO", "-o", "m.png", "--format", "dcm"), 2, "the end of -o"),
        (("IMAGE", "--auto", "AUTO", "-o", "m.png", "--until-end"), 2, "--carry"),
        (("IMAGE", "--auto", "AUTO", "-o", "m.png", "--name", "liver"), 2, "belong to a prompt"),
        (("IMAGE", "--auto", "AUTO", "-o", "m.png", "--box", 1, 2, 9, 9, "--name", "lung"), 2, "'lung' is none of"),
        (("IMAGE", "--auto", "AUTO", "-o", "m.png", "--model", "lite-medsam"), 2, "learned on tiny"),
        (("IMAGE", "--auto", "nowhere.safetensors", "-o", "m.png"), 1, "there is no file nowhere"),
        (("IMAGE", "--auto", "IMAGE", "-o", "m.png"), 1, "no safetensors file"),
        (("IMAGE", "--auto", "AUTO", "--adapter", "AUTO", "-o", "m.png"), 2, "no adapter goes on top"),
        (("IMAGE", "--box", 1, 2, 9, 9, "--carry", "-o", "m.png"), 2, "give --auto FILE"),
    ],
)
def test_what_cannot_be_done_is_said(
    palpate: Run, images: Path, auto: Path, arguments: tuple[object, ...], status: int, words: str
) -> None:
    places = {"IMAGES": images, "IMAGE": images / "p0.png", "AUTO": auto}
    answer = palpate("predict", *(places.get(str(one), one) for one in arguments))
    assert answer.status == status, answer.err
    assert words in answer.err
    assert not Path("m.png").exists()


@pytest.mark.usefixtures("tiny")
def test_an_adapter_is_no_learned_prompts(palpate: Run, trained: Path, images: Path) -> None:
    answer = palpate("predict", images / "p0.png", "--auto", trained / "run/adapter.safetensors", "-o", "m.png")
    assert answer.status == 1
    assert "holds no learned prompts" in answer.err
