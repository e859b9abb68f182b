"""Which images prompts are learned from, and what is looked for in them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from palpate.datasets import Case, LabelledImage
from palpate.datasets.case import Region
from palpate.errors import DatasetError, SettingError
from palpate.images import Image
from palpate.training.learn_data import asking, classes_of, drawn, few, one_modality
from palpate.training.learn_recipe import LearnDataRecipe, learn_recipe_from, parse_class, usual_steps


def case_of(name: str, values: list[int], regions: tuple[Region, ...] = (), subject: str = "") -> Case:
    labels = np.zeros((4, 8), dtype=np.uint8)
    labels[0, : len(values)] = values

    def read(_: Case) -> LabelledImage:
        return LabelledImage(Image(np.arange(32, dtype=np.uint8).reshape(4, 8), np.eye(4)), labels)

    return Case("d", subject or name, name, Path(name), Path(name), read, regions=regions)


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


class TestClasses:
    def test_every_label_is_one_where_nobody_says(self) -> None:
        found = classes_of((), [case_of("a", [3]), case_of("b", [1, 3])])
        assert [(one.name, one.value) for one in found] == [("1", 1), ("3", 3)]

    def test_a_label_may_be_given_a_name(self) -> None:
        (found,) = classes_of(("liver=3",), [case_of("a", [3])])
        assert (found.name, found.value) == ("liver", 3)

    def test_a_name_with_another_label_than_the_datas_is_refused(self) -> None:
        liver = (Region("liver", (1,)),)
        with pytest.raises(DatasetError, match="has the label 1"):
            classes_of(("liver=3",), [case_of("a", [1, 3], liver)])

    def test_regions_that_begin_with_one_label_get_labels_of_their_own(self) -> None:
        nested = (Region("whole", (1, 2)), Region("core", (1,)))
        found = classes_of((), [case_of("a", [1, 2], nested)])
        assert [(one.name, one.value) for one in found] == [("whole", 1), ("core", 2)]
        assert [region.values for region in asking([case_of("a", [1, 2], nested)], found)[0].regions] == [(1, 2), (1,)]

    def test_two_names_of_one_label_are_refused(self) -> None:
        with pytest.raises(DatasetError, match="the same one"):
            classes_of(("liver=1", "organ=1"), [case_of("a", [1])])

    @pytest.mark.parametrize("text", ["", "=3", "liver=", "liver=x", "liver=0", "liver=²"])
    def test_what_cannot_be_read_is_refused(self, text: str) -> None:
        with pytest.raises(SettingError, match="NAME=VALUE"):
            parse_class(text)


class TestAsking:
    def test_another_data_sets_organ_is_not_taken_for_the_class(self) -> None:
        liver, kidney = Region("liver", (1,)), Region("kidney", (1,))
        cases = [case_of("a", [1], (liver,)), case_of("b", [1], (kidney,)), case_of("c", [1], (liver, kidney))]
        found = asking(cases, classes_of(("liver",), cases))
        assert names(found) == ["a", "c"]  # of b nobody can tell whether there is a liver
        assert [case.regions for case in found] == [(liver,), (liver,)]


class TestShots:
    def test_one_of_every_subject_comes_before_a_second_of_any(self) -> None:
        cases = [case_of(f"{subject}{i}", [1], subject=subject) for subject in "abc" for i in range(4)]
        for seed in range(5):
            assert sorted(case.subject for case in drawn(cases, 3, seed=seed)) == ["a", "b", "c"]
            assert len({case.subject for case in drawn(cases, 4, seed=seed)}) == 3
        assert names(drawn(cases, 5, seed=1)) == names(drawn(cases, 5, seed=1)) != names(drawn(cases, 5, seed=2))

    def test_fewer_are_part_of_more(self) -> None:
        cases = [case_of(str(i), [1]) for i in range(20)]
        assert set(names(drawn(cases, 5, seed=0))) < set(names(drawn(cases, 10, seed=0)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = ["image,label,subject,split"]
    for i, (subject, split) in enumerate([("s", "train"), ("t", "train"), ("s", "val"), ("u", "val")]):
        path = tmp_path / f"{i}.png"
        PILImage.fromarray(np.eye(4, dtype=np.uint8)).save(path)
        lines.append(f"{i}.png,{i}.png,{subject},{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "manifest.csv"


class TestValidation:
    def test_a_subject_on_both_sides_is_refused(self, folder: Path) -> None:
        with pytest.raises(DatasetError, match="flattered"):
            few(LearnDataRecipe(path=str(folder), val="val"), seed=0)

    def test_one_way_of_validating_is_enough(self, folder: Path) -> None:
        with pytest.raises(SettingError, match="one of them"):
            few(LearnDataRecipe(path=str(folder), val="val", held_out=0.2), seed=0)

    def test_of_two_subjects_one_is_held_out(self, folder: Path) -> None:
        learned, held = few(LearnDataRecipe(path=str(folder), held_out=0.1), seed=0)
        assert len(learned) == len(held) == 1
        assert learned[0].subject != held[0].subject

    def test_nothing_is_held_out_unless_asked(self, folder: Path) -> None:
        learned, held = few(LearnDataRecipe(path=str(folder)), seed=0)
        assert (len(learned), held) == (2, [])


@pytest.mark.parametrize(
    ("said", "classes", "wanted"), [(None, 1, True), (None, 2, False), (True, 2, True), (False, 1, False)]
)
def test_several_classes_are_not_mirrored_unless_it_is_said(said: bool | None, classes: int, wanted: bool) -> None:
    data = LearnDataRecipe(path="p", mirrored=said)
    assert data.views(0, of_volume=False, classes=classes).mirrored == wanted


@pytest.mark.parametrize(
    ("said", "wanted"), [(["MR", "MR"], "MR"), (["MR", "CT"], ""), (["MR", ""], ""), (["", ""], "")]
)
def test_images_are_of_one_modality_if_all_say_the_same(said: list[str], wanted: str) -> None:
    assert one_modality([replace(case_of(f"case{i}", [1]), modality=name) for i, name in enumerate(said)]) == wanted


@pytest.mark.parametrize(("images", "steps"), [(1, 250), (10, 250), (11, 275), (50, 1250), (80, 2000), (500, 2000)])
def test_more_images_are_learned_from_for_longer(images: int, steps: int) -> None:
    assert usual_steps(images) == steps


@pytest.mark.parametrize("variant", ["odd", ["linear"], 7])
def test_a_variant_that_does_not_exist_is_told(variant: object) -> None:
    with pytest.raises(SettingError, match="variant"):
        learn_recipe_from({"data": {"path": "p"}, "variant": variant})
