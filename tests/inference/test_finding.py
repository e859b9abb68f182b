from dataclasses import replace

import numpy as np
import pytest

from fake_runtime import FakeFindingRuntime
from palpate.errors import PromptError, SettingError
from palpate.images import Image
from palpate.inference.session import Session
from palpate.models.promptable import LearnedClass
from palpate.prompts import Box, MaskPrompt, Points, Target
from phantoms import column, empty, picture, rectangle

SHAPE = (64, 64)
DIM, BRIGHT = rectangle(SHAPE, 5, 10, 24, 29), rectangle(SHAPE, 40, 30, 51, 39)
BOTH = picture((DIM, 128), (BRIGHT, 255))


@pytest.fixture
def runtime() -> FakeFindingRuntime:
    return FakeFindingRuntime()


@pytest.fixture
def session(runtime: FakeFindingRuntime) -> Session:
    made = Session(runtime)
    made.set_image(Image(BOTH))
    return made


def volume(*bodies: tuple[np.ndarray, int]) -> Image:
    """Every slice has a white pixel in the last row, or its own brightest would count as white."""
    pixels = picture(*bodies)
    pixels[:, 63, 63] = 255
    return Image(pixels, np.diag([-2.0, -2.0, 5.0, 1.0]))


class TestAPicture:
    def test_each_class_is_an_object_with_its_label_and_name(self, session: Session) -> None:
        found = session.find()
        assert [(item.label, item.name, item.voxels) for item in found.objects] == [
            (1, "dim", DIM.sum()),
            (4, "bright", BRIGHT.sum()),
        ]
        assert np.array_equal(found.labels, DIM * 1 + BRIGHT * 4)
        assert found.notes == ()

    def test_a_pixel_belongs_to_the_class_of_the_highest_logit(self, session: Session) -> None:
        # What is bright is dim as well, with a logit of 2 against 5.
        assert set(np.unique(session.find().labels[BRIGHT])) == {4}

    def test_each_class_by_itself_may_overlap_another(self, session: Session) -> None:
        dim, bright = session.find_each()
        assert np.array_equal(dim.labels, (DIM | BRIGHT) * 1)
        assert np.array_equal(bright.labels, BRIGHT * 4)
        assert (dim.objects[0].name, dim.provenance.overlap) == ("dim", "none")

    def test_all_together_and_each_by_itself_from_one_look(self, session: Session, runtime: FakeFindingRuntime) -> None:
        together, each = session.find_both()
        assert len(runtime.asked) == 1
        assert np.array_equal(together.labels, session.find().labels)
        assert together.provenance == session.find().provenance
        for one, other in zip(each, session.find_each(), strict=True):
            assert np.array_equal(one.labels, other.labels)
            assert one.record() == other.record()

    def test_what_the_object_logit_denies_is_not_there(self, session: Session, runtime: FakeFindingRuntime) -> None:
        runtime.object_logits["bright"] = -1.0
        found = session.find()
        bright = found.objects[1]
        assert (bright.voxels, bright.predicted_iou, bright.score) == (0, 0.0, 0.0)
        assert bright.object_probability == pytest.approx(1 / (1 + np.e))
        assert found.notes == ("bright is not there (object probability 0.27)",)
        # Nor does it take a pixel from another class.
        assert np.array_equal(found.labels, DIM | BRIGHT)

    def test_an_object_logit_of_zero_is_no_denial(self, session: Session, runtime: FakeFindingRuntime) -> None:
        runtime.object_logits["bright"] = 0.0
        assert session.find().objects[1].voxels == BRIGHT.sum()

    def test_a_class_without_a_pixel_of_its_own_is_told(self, session: Session) -> None:
        session.set_image(Image(picture((BRIGHT, 255))))
        found = session.find()
        assert (found.objects[0].voxels, found.objects[0].score) == (0, 0)
        (note,) = found.notes
        assert note.startswith("dim was found, but every pixel of it belongs more surely to another class")

    def test_the_image_is_encoded_once_for_all_classes_and_ways(
        self, session: Session, runtime: FakeFindingRuntime
    ) -> None:
        session.find()
        session.find_each()
        session.find([Target((Box(0, 0, 30, 30),), name="dim")], mode="semi-autonomous")
        session.predict(Box(0, 0, 30, 30))
        assert runtime.encodes == 1
        assert runtime.asked[0] == ((0, 1), None)

    def test_the_score_is_the_product_of_both_estimates(self, session: Session) -> None:
        bright = session.find().objects[1]
        assert bright.predicted_iou == pytest.approx(1)
        assert bright.score == pytest.approx(1 / (1 + np.exp(-4)))

    def test_what_made_it_is_told(self, session: Session) -> None:
        record = session.find().record()
        assert (record["mode"], record["overlap"], record["until_end"]) == ("autonomous", "logits", False)
        assert record["objects"] == []
        assert record["results"][1]["object_probability"] == 0.982
        assert "object_probability" not in session.predict(Box(0, 0, 30, 30)).record()["results"][0]

    def test_it_can_be_looked_at(self, session: Session, runtime: FakeFindingRuntime) -> None:
        found = session.find()
        shown = np.asarray(session.preview(found))
        runtime.object_logits["bright"] = -1.0
        assert not np.array_equal(np.asarray(session.preview(session.find())), shown)


class TestSomethingDrawn:
    def test_a_box_changes_its_class_and_no_other(self, session: Session, runtime: FakeFindingRuntime) -> None:
        alone = session.find_each()
        dim, bright = session.find_each([Target((Box(0, 0, 30, 30),), name="dim")], mode="semi-autonomous")
        assert np.array_equal(dim.labels, DIM * 1)
        assert np.array_equal(bright.labels, alone[1].labels)
        (undrawn, nothing), (drawn, batch) = runtime.asked[1:]
        assert (undrawn, nothing, drawn) == ((1,), None, (0,))
        assert batch is not None
        assert batch.boxes.tolist() == [[0, 0, 30, 30]]

    @pytest.mark.parametrize(
        "target", [Target((Box(0, 0, 30, 30),), label=4), Target((Box(0, 0, 30, 30),), name="Bright")]
    )
    def test_its_label_or_its_name_says_which_class(self, session: Session, target: Target) -> None:
        found = session.find([target], mode="semi-autonomous")
        assert found.objects[1].voxels == 0
        assert found.record()["objects"] == [{"label": 4, "name": "bright", "box": [0, 0, 30, 30]}]

    def test_a_single_class_needs_no_name(self) -> None:
        session = Session(FakeFindingRuntime(classes=(LearnedClass("dim", 9),)))
        session.set_image(Image(BOTH))
        found = session.find([Target((Box(0, 0, 30, 30),))], mode="semi-autonomous")
        assert np.array_equal(found.labels, DIM * 9)

    def test_two_parts_of_a_class_are_one_object(self, session: Session) -> None:
        parts = [Target((Box(5, 10, 14, 29),)), Target((Points([(45, 35)]),))]
        found = session.find_each(parts, mode="semi-autonomous")[0]
        assert np.array_equal(found.labels, rectangle(SHAPE, 5, 10, 14, 29) | BRIGHT)
        assert len(found.objects) == 1

    def test_points_and_masks_go_to_the_network_as_they_are(
        self, session: Session, runtime: FakeFindingRuntime
    ) -> None:
        prompts = (Points([(45, 35), (10, 12)], [1, 0]), MaskPrompt(BRIGHT))
        found = session.find([Target(prompts, name="dim")], mode="semi-autonomous")
        batch = runtime.asked[-1][1]
        assert batch is not None
        assert batch.points.shape == (1, 2, 2)
        assert batch.masks.shape == (1, 1, 64, 64)
        assert not any("was trained with box prompts only" in note for note in found.notes)

    def test_what_a_person_drew_is_there(self, session: Session, runtime: FakeFindingRuntime) -> None:
        runtime.object_logits["dim"] = -1.0
        found = session.find([Target((Box(0, 0, 30, 30),), name="dim")], mode="semi-autonomous")
        assert found.objects[0].voxels == DIM.sum()
        assert found.notes == ("dim was drawn, though the model doubts that it is there (object probability 0.27)",)

    def test_manual_is_what_was_always_there(self, session: Session, runtime: FakeFindingRuntime) -> None:
        targets = [Target((Box(0, 0, 30, 30),), 1), Target((Box(40, 20, 63, 63),), 2)]
        by_find, by_predict = session.find(targets, mode="manual"), session.predict_all(targets)
        assert np.array_equal(by_find.labels, by_predict.labels)
        assert by_find.record() == by_predict.record()
        assert [each.objects[0].label for each in session.find_each(targets, mode="manual")] == [1, 2]
        assert not runtime.asked


class TestAVolume:
    BODY = column((9, *SHAPE), BRIGHT, 2, 6)

    def test_every_slice_is_looked_at(self, session: Session, runtime: FakeFindingRuntime) -> None:
        session.set_image(volume((self.BODY, 255)))
        told: list[tuple[int, int]] = []
        found = session.find(progress=lambda done, total: told.append((done, total)))
        assert told == [(z, 9) for z in range(1, 10)]
        assert np.array_equal(found.labels == 4, self.BODY)
        bright = found.objects[1]
        assert bright.slices == (2, 6)
        assert bright.volume_ml == pytest.approx(bright.voxels * 20 / 1000)

    def test_a_slice_without_the_class_is_left_empty_and_the_volume_has_it_all_the_same(
        self, session: Session, runtime: FakeFindingRuntime
    ) -> None:
        session.set_image(volume((self.BODY, 255)))
        found = session.find()
        assert not found.labels[[0, 1, 7, 8]].any()
        assert found.objects[1].object_probability == pytest.approx(1 / (1 + np.exp(-4)))
        assert not any("not there" in note for note in found.notes)

    def test_a_class_on_no_slice_is_not_there(self, session: Session) -> None:
        session.set_image(volume((empty((3, *SHAPE)), 255)))
        found = session.find()
        assert found.objects[0].slices is None
        assert [note[:16] for note in found.notes] == ["dim is not there", "bright is not th"]
        session.preview(found)

    def test_what_is_drawn_counts_on_its_slice(self, session: Session) -> None:
        session.set_image(volume((self.BODY, 255)))
        left = Box(40, 30, 45, 39, z=4)
        found = session.find([Target((left,), name="bright")], mode="semi-autonomous")
        across = (found.labels == 4)[:, 30:40, 40:52].sum(axis=(1, 2))
        assert across.tolist() == [0, 0, 120, 120, 60, 120, 120, 0, 0]

    def test_a_row_of_slices_has_no_meaning_here(self, session: Session) -> None:
        session.set_image(volume((self.BODY, 255)))
        with pytest.raises(PromptError, match="carry=True"):
            session.find([Target((Box(0, 0, 60, 60, z=3),), name="dim", z_range=(1, 4))], mode="semi-autonomous")


class TestOneClass:
    BODY = column((9, *SHAPE), BRIGHT, 2, 6)
    LEFT = Target((Box(40, 30, 45, 39, z=4),), name="bright")
    """A box around the left half: 6 of 12 columns, 10 rows."""

    def test_it_is_looked_for_where_it_was_drawn_and_nowhere_else(
        self, session: Session, runtime: FakeFindingRuntime
    ) -> None:
        session.set_image(volume((self.BODY, 255)))
        found = session.find_one(self.LEFT)
        assert (found.labels == 4).sum(axis=(1, 2)).tolist() == [0, 0, 0, 0, 60, 0, 0, 0, 0]
        assert [classes for classes, _ in runtime.asked] == [(1,)]
        assert [(one.label, one.name, one.voxels) for one in found.objects] == [(4, "bright", 60)]
        assert found.provenance.mode == "semi-autonomous"

    def test_on_the_other_slices_of_a_range_it_is_what_was_learned(self, session: Session) -> None:
        session.set_image(volume((self.BODY, 255)))
        told: list[tuple[int, int]] = []
        found = session.find_one(replace(self.LEFT, z_range=(1, 5)), progress=lambda *done: told.append(done))
        assert (found.labels == 4).sum(axis=(1, 2)).tolist() == [0, 0, 120, 120, 60, 120, 0, 0, 0]
        assert told[-1] == (5, 5)
        assert [done for done, _ in told] == sorted(done for done, _ in told)

    def test_until_its_end_is_until_a_slice_where_it_is_not(self, session: Session) -> None:
        stray = column((9, *SHAPE), BRIGHT, 8, 8)
        session.set_image(volume((self.BODY, 255), (stray, 255)))
        told: list[tuple[int, int]] = []
        found = session.find_one(self.LEFT, until_end=True, progress=lambda *done: told.append(done))
        assert (found.labels == 4).sum(axis=(1, 2)).tolist() == [0, 0, 120, 120, 60, 120, 120, 0, 0]
        assert told[-1] == (9, 9)
        assert session.find_one(replace(self.LEFT, z_range=(0, 8))).labels[8].any()

    def test_it_goes_on_where_what_was_drawn_holds_nothing(self, session: Session) -> None:
        session.set_image(volume((self.BODY, 255)))
        beside = Target((Box(2, 2, 9, 9, z=4),), name="bright")
        found = session.find_one(beside, until_end=True)
        assert (found.labels == 4).sum(axis=(1, 2)).tolist() == [0, 0, 120, 120, 0, 120, 120, 0, 0]

    def test_no_class_takes_a_pixel_from_it(self, session: Session) -> None:
        # What is bright is dim as well; with both in one map it would belong to `bright`.
        everything = Target((Box(0, 0, 63, 63),), name="dim")
        assert np.array_equal(session.find_one(everything).mask, DIM | BRIGHT)

    def test_its_name_is_taken_exactly_where_another_is_like_it(self) -> None:
        session = Session(FakeFindingRuntime(classes=(LearnedClass("Liver", 1), LearnedClass("liver", 4))))
        session.set_image(Image(BOTH))
        for name, label in (("Liver", 1), ("liver", 4)):
            assert session.find_one(Target((Box(0, 0, 63, 63),), name=name)).objects[0].label == label
        with pytest.raises(PromptError, match="'LIVER'"):
            session.find_one(Target((Box(0, 0, 63, 63),), name="LIVER"))

    def test_masks_of_several_targets_are_those_of_each(self, session: Session, runtime: FakeFindingRuntime) -> None:
        session.set_image(volume((self.BODY, 255)))
        drawn = [
            self.LEFT,
            Target((Box(40, 30, 47, 39, z=4),), name="bright"),
            Target((Points([(45, 35)], [1], z=3),), name="dim"),
        ]
        masks = session.masks(drawn, mode="semi-autonomous")
        assert len(runtime.asked) == 2  # one batch a slice
        for target, mask in zip(drawn, masks, strict=True):
            assert target.z is not None
            assert np.array_equal(mask, session.find_one(target).mask[target.z])

    def test_what_cannot_be_is_refused(self, session: Session, fake_session: Session) -> None:
        with pytest.raises(PromptError, match="'spleen'"):
            session.find_one(Target((Box(0, 0, 30, 30),), name="spleen"))
        with pytest.raises(SettingError, match="autonomous"):
            session.masks([Target((Box(0, 0, 30, 30),), name="dim")], mode="autonomous")
        fake_session.set_image(Image(BOTH))
        with pytest.raises(SettingError, match="palpate learn"):
            fake_session.find_one(Target((Box(0, 0, 30, 30),), name="dim"))
        with pytest.raises(SettingError, match="palpate learn"):
            fake_session.masks([Target((Box(0, 0, 30, 30),), name="dim")], mode="semi-autonomous")


class TestCarrying:
    def test_gaps_are_filled_and_strays_are_dropped(self, session: Session) -> None:
        # Found alone on slices 1, 2, 5 and, somewhere else, on 8; grey in between, which only the manual model sees.
        body = column((9, *SHAPE), BRIGHT, 1, 5)
        grey = column((9, *SHAPE), BRIGHT, 3, 4)
        stray = column((9, *SHAPE), rectangle(SHAPE, 2, 50, 9, 57), 8, 8)
        session.set_image(volume((body, 255), (grey, 200), (stray, 255)))
        alone, carried = session.find_each()[1], session.find_each(carry=True)[1]
        assert alone.mask.any(axis=(1, 2)).nonzero()[0].tolist() == [1, 2, 5, 8]
        assert np.array_equal(carried.mask, body)
        assert carried.objects[0].slices == (1, 5)
        assert carried.provenance.until_end

    def test_slices_are_those_of_the_label_map(self, session: Session) -> None:
        # What is bright is dim as well, and takes all of it on slice 4.
        bright, dim = column((9, *SHAPE), BRIGHT, 3, 4), column((9, *SHAPE), BRIGHT, 1, 4)
        session.set_image(volume((dim, 128), (bright, 255), (column((9, *SHAPE), DIM, 3, 3), 128)))
        found = session.find()
        assert [item.slices for item in found.objects] == [(1, 3), (3, 4)]
        assert session.find_each()[0].objects[0].slices == (1, 4)

    def test_it_goes_no_further_than_the_class_was_found(self, session: Session, runtime: FakeFindingRuntime) -> None:
        # Above slice 4 the body is grey: the manual model would follow it, the class was not found there.
        body, grey = column((9, *SHAPE), BRIGHT, 1, 8), column((9, *SHAPE), BRIGHT, 5, 8)
        session.set_image(volume((body, 255), (grey, 200)))
        assert session.find_each(carry=True)[1].objects[0].slices == (1, 4)

    def test_it_starts_where_a_person_drew(self, session: Session) -> None:
        body = column((9, *SHAPE), BRIGHT, 1, 5)
        twin = column((9, *SHAPE), rectangle(SHAPE, 5, 10, 16, 19), 1, 5)
        session.set_image(volume((body, 255), (twin, 255)))
        drawn = [Target((Box(2, 7, 20, 24, z=3),), name="bright")]
        found = session.find_each(drawn, mode="semi-autonomous", carry=True)[1]
        assert np.array_equal(found.mask, twin)

    def test_a_picture_has_nothing_to_carry_through(self, session: Session) -> None:
        assert np.array_equal(session.find(carry=True).labels, session.find().labels)
        assert not session.find(carry=True).provenance.until_end


class TestWhatIsRefused:
    def test_a_model_without_learned_prompts_says_where_they_come_from(self, fake_session: Session) -> None:
        fake_session.set_image(Image(BOTH))
        with pytest.raises(SettingError, match="palpate learn"):
            fake_session.find()

    @pytest.mark.parametrize(
        ("targets", "mode", "said"),
        [
            ([Target((Box(0, 0, 30, 30),))], "autonomous", "nothing can be drawn"),
            ([], "semi-autonomous", "something is drawn"),
            ([Target((Box(0, 0, 30, 30),), label=2)], "semi-autonomous", r"label 2 is none .* dim \(label 1\), bright"),
            ([Target((Box(0, 0, 30, 30),), name="lung")], "semi-autonomous", "'lung' is none"),
            ([Target((Box(90, 90, 95, 95),))], "semi-autonomous", "outside the image"),
        ],
    )
    def test_prompts_that_do_not_fit(self, session: Session, targets: list[Target], mode: str, said: str) -> None:
        with pytest.raises(PromptError, match=said):
            session.find(targets, mode=mode)

    def test_carrying_by_hand(self, session: Session) -> None:
        targets = [Target((Box(0, 0, 30, 30),))]
        for ask in (session.find, session.find_each, session.find_both):
            with pytest.raises(SettingError, match=r"predict_all\(targets, until_end=True\)"):
                ask(targets, mode="manual", carry=True)

    def test_a_mode_that_does_not_exist(self, session: Session) -> None:
        with pytest.raises(SettingError, match="choose autonomous, semi-autonomous, manual"):
            session.find(mode="automatic")
