import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from fake_runtime import FakeRuntime
from palpate.errors import OutputError
from palpate.images import Image, read
from palpate.inference.segmentation import Segmentation
from palpate.inference.session import Session
from palpate.prompts import Box, MaskPrompt, Points, Scribble, Target
from palpate.prompts.file import read_prompts
from phantoms import column, picture, rectangle

SHAPE = (64, 64)
LIVER, SPLEEN = rectangle(SHAPE, 5, 10, 24, 29), rectangle(SHAPE, 40, 30, 51, 39)
AFFINE = np.array([[-0.8, 0, 0, 90], [0, -0.7, 0.1, 120], [0, 0.2, 2.5, -300], [0, 0, 0, 1.0]])


@pytest.fixture
def volume() -> Image:
    depth = 6
    bodies = (column((depth, *SHAPE), LIVER, 1, 4), 255), (column((depth, *SHAPE), SPLEEN, 0, 3), 220)
    return Image(picture(*bodies), AFFINE)


@pytest.fixture
def session(volume: Image) -> Session:
    made = Session(FakeRuntime())
    made.set_image(volume)
    return made


def organs() -> list[Target]:
    return [
        Target((Box(3, 8, 26, 31, z=2),), 1, "liver", (1, 4)),
        Target((Points([(45, 35), (10, 15)], [1, 0], z=2), Box(35, 25, 60, 45, z=2)), 2, "spleen", (0, 3)),
    ]


class TestSaving:
    @pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii", "mask.nrrd", "mask.seg.nrrd"])
    def test_the_mask_comes_back_in_its_place(self, session: Session, tmp_path: Path, name: str) -> None:
        found = session.predict_all(organs())
        found.save(tmp_path / name)
        again = read(tmp_path / name)
        assert np.array_equal(again.array, found.labels)
        assert np.allclose(again.affine, AFFINE, atol=1e-4)

    def test_a_path_may_be_text(self, session: Session, tmp_path: Path) -> None:
        session.predict_all(organs()).save(str(tmp_path / "mask.nii.gz"))
        assert (tmp_path / "mask.nii.gz").is_file()

    def test_nothing_is_replaced_unasked(self, session: Session, tmp_path: Path) -> None:
        path = tmp_path / "mask.nii.gz"
        path.write_bytes(b"precious")
        found = session.predict_all(organs())
        with pytest.raises(OutputError, match="exists; pass --overwrite"):
            found.save(path)
        assert path.read_bytes() == b"precious"
        found.save(path, overwrite=True)
        assert np.array_equal(read(path).array, found.labels)

    def test_one_slice_of_a_volume_fits_a_png(self, session: Session, tmp_path: Path) -> None:
        session.predict(Box(3, 8, 26, 31, z=2)).save(tmp_path / "mask.png")
        assert np.array_equal(np.asarray(Picture.open(tmp_path / "mask.png")) > 0, LIVER)

    @pytest.mark.parametrize("axis", ["y", "x"])
    def test_a_slice_across_fits_a_png_too(self, volume: Image, tmp_path: Path, axis: str) -> None:
        across = Session(FakeRuntime())
        across.set_image(volume, axis=axis)
        found = across.predict(Box(0, 0, 63, 5, z=15))
        found.save(tmp_path / "mask.png")
        wanted = found.mask[:, 15] if axis == "y" else found.mask[:, :, 15]
        assert wanted.any()
        assert np.array_equal(np.asarray(Picture.open(tmp_path / "mask.png")) > 0, wanted)

    def test_several_slices_do_not_fit_a_png(self, session: Session, tmp_path: Path) -> None:
        for found in (
            session.predict(Box(3, 8, 26, 31, z=2), z_range=(1, 4)),
            session.predict(Box(3, 8, 26, 31, z=2), until_end=True),
            session.predict_all([Target((Box(3, 8, 26, 31, z=2),)), Target((Box(3, 8, 26, 31, z=3),))]),
        ):
            with pytest.raises(OutputError, match="a PNG holds one slice, and this segmentation covers several"):
                found.save(tmp_path / "mask.png")
            assert not list(tmp_path.iterdir())


class TestTheRecord:
    def replayed(self, session: Session, found: Segmentation, folder: Path) -> Segmentation:
        path = folder / "record.json"
        path.write_text(json.dumps(found.record()))
        return session.predict_all(read_prompts(path), overlap=found.provenance.overlap)

    @pytest.mark.parametrize(
        "prompt",
        [
            Box(3.5, 8.25, 26, 31, z=2),
            Points([(10.5, 15), (45, 35)], [1, 0], z=2),
            Scribble(rectangle(SHAPE, 6, 15, 20, 15), rectangle(SHAPE, 41, 31, 50, 31), z=2),
            MaskPrompt(LIVER, z=2),
        ],
        ids=["box", "points", "scribble", "mask"],
    )
    def test_any_prompt_makes_the_mask_again(
        self, session: Session, tmp_path: Path, prompt: Box | Points | Scribble | MaskPrompt
    ) -> None:
        found = session.predict(prompt, z_range=(1, 3))
        assert found.mask.any()
        assert np.array_equal(self.replayed(session, found, tmp_path).labels, found.labels)

    def test_several_objects_are_made_again(self, session: Session, tmp_path: Path) -> None:
        found = session.predict_all(organs())
        again = self.replayed(session, found, tmp_path)
        assert np.array_equal(again.labels, found.labels)
        assert again.names == {1: "liver", 2: "spleen"}

    def test_a_picture_is_made_again(self, tmp_path: Path) -> None:
        session = Session(FakeRuntime())
        session.set_image(Image(picture((LIVER, 255), (SPLEEN, 220))))
        found = session.predict(Box(-3, 8, 26, 31), Points([(10, 15)]))
        assert np.array_equal(self.replayed(session, found, tmp_path).labels, found.labels)

    def test_it_says_what_was_made_from_what_by_what(self, session: Session) -> None:
        record = session.predict_all(organs()).record()
        assert record["shape"] == [6, 64, 64]
        # Lengths of the affine's columns: 0.8; sqrt(0.7^2 + 0.2^2); sqrt(0.1^2 + 2.5^2).
        assert record["spacing_mm"] == pytest.approx([0.8, 0.728011, 2.501999], abs=1e-6)
        assert record["orientation"] == "LPS"
        assert (record["image"], record["axis"], record["model"]) == (None, "z", "fake")
        liver, spleen = record["results"]
        # 4 slices of 400 voxels; of 0.8 * |0.7 * 2.5 - 0.1 * 0.2| = 0.8 * (1.75 + 0.02) cubic millimetres.
        assert (liver["name"], liver["voxels"], liver["slices"], liver["predicted_iou"]) == ("liver", 1600, [1, 4], 1)
        assert spleen["slices"] == [0, 3]

    def test_a_sheared_voxel_is_as_large_as_its_determinant(self, volume: Image) -> None:
        sheared = Image(volume.array, np.array([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
        session = Session(FakeRuntime())
        session.set_image(sheared, axis="z")
        (found,) = session.predict(Box(3, 8, 26, 31, z=2)).objects
        # A gantry's tilt moves slices along each other; it does not make them larger.
        assert found.volume_ml == pytest.approx(400 / 1000)

    def test_numbers_of_numpy_are_written_too(self, session: Session) -> None:
        found = session.predict_all(
            [Target((Points(np.array([[10, 15]]).tolist(), z=2),), label=int(np.uint8(3)), z_range=(1, 2))]
        )
        assert json.loads(json.dumps(found.record()))["objects"][0]["label"] == 3


def test_all_objects_together_are_the_mask(session: Session) -> None:
    found = session.predict_all(organs())
    assert np.array_equal(found.mask, (found.labels == 1) | (found.labels == 2))
    # White is 1; grey 220 is 2 * 220 / 255 - 1 beside white and 1 alone on slice 0, where it is the brightest.
    grey = 2 * 220 / 255 - 1
    assert found.predicted_iou == pytest.approx((1 + (3 * grey + 1) / 4) / 2)
