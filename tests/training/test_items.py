import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_training

from palpate.datasets import open_dataset
from palpate.datasets.case import Region
from palpate.errors import SettingError
from palpate.models.frame import Frame
from palpate.prompts.types import Box, Points
from palpate.training.items import draw, in_an_epoch, named, order_of, training_items, validation_items
from palpate.training.recipe import PromptRecipe
from palpate.training.scenes import Scene, rng_for, sights_of

FRAME = Frame(size=32, mask_size=32)
STANDARD = PromptRecipe(strategy="standard")


@pytest.fixture
def scenes(tmp_path: Path) -> list[Scene]:
    """Four scenes of `squares` and three of `discs`, two objects each."""
    path = tiny_training.phantoms(tmp_path, train=7, val=0)
    cases = sorted(open_dataset(path), key=lambda case: case.name)
    return [sight.scene for case in cases for sight in sights_of(case, frame=FRAME, encoder_hash="e")]


class TestTheOrder:
    def test_no_scene_comes_again_before_all_have_come(self, scenes: list[Scene]) -> None:
        order = order_of(scenes, epoch=0, seed=0, count=17, balance="images")
        assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
        assert len(order) == 17

    def test_data_sets_come_equally_often(self, scenes: list[Scene]) -> None:
        order = order_of(scenes, epoch=0, seed=0, count=24, balance="datasets")
        assert Counter(scenes[i].case.dataset for i in order) == {"squares": 12, "discs": 12}
        counts = Counter(order)
        assert all(counts[i] == (3 if scenes[i].case.dataset == "squares" else 4) for i in range(7))

    def test_each_case_comes_once_in_a_round_with_one_slice_of_its_own(self, scenes: list[Scene]) -> None:
        more = [*scenes, *(replace(scene, z=1) for scene in scenes[:2])]
        assert in_an_epoch(more, balance="cases") == 7
        assert in_an_epoch(more, balance="images") == 9
        order = order_of(more, epoch=0, seed=0, count=14, balance="cases")
        names = [more[i].case.name for i in order]
        assert len(set(names[:7])) == len(set(names[7:])) == 7
        assert {more[i].z for i in order if more[i].case.name == more[0].case.name} == {0, 1}

    def test_epochs_and_seeds_differ_and_nothing_else_matters(self, scenes: list[Scene]) -> None:
        first = order_of(scenes, epoch=3, seed=1, count=14, balance="images")
        order_of(scenes, epoch=9, seed=9, count=5, balance="images")
        assert order_of(scenes, epoch=3, seed=1, count=14, balance="images") == first
        assert order_of(scenes, epoch=3, seed=1, count=7, balance="images") == first[:7]
        assert order_of(scenes, epoch=4, seed=1, count=14, balance="images") != first
        assert order_of(scenes, epoch=3, seed=2, count=14, balance="images") != first


class TestItems:
    def test_an_item_can_be_drawn_alone(self, scenes: list[Scene]) -> None:
        mix = [PromptRecipe(strategy="jitter", severity=0.2), PromptRecipe(strategy="jitter", severity=(0.0, 0.2))]
        places = [(0, 3), (1, 5), (2, 3)]
        together = training_items(scenes, places, mix, frame=FRAME, epoch=1, seed=0)
        for place, item in zip(reversed(places), reversed(together), strict=True):
            (alone,) = training_items(scenes, [place], mix, frame=FRAME, epoch=1, seed=0)
            assert alone.name == item.name
            assert alone.prompts == item.prompts
            assert np.array_equal(alone.target, item.target)

    def test_a_prompt_that_looks_at_the_image_gets_to_see_it_and_others_do_not(self, scenes: list[Scene]) -> None:
        seen: list[str] = []

        def pixels(scene: Scene) -> np.ndarray:
            seen.append(scene.name)
            return np.zeros(scene.shape, dtype=np.uint8)

        mix = [PromptRecipe(strategy="swin")]
        (item,) = training_items(scenes, [(0, 2)], mix, frame=FRAME, epoch=0, seed=0, pixels=pixels)
        assert [type(prompt) for prompt in item.prompts][:2] == [Box, Points]
        assert seen == [scenes[2].name]
        training_items(scenes, [(0, 2)], [STANDARD], frame=FRAME, epoch=0, seed=0, pixels=pixels)
        assert len(seen) == 1
        with pytest.raises(SettingError, match="swin looks at the image"):
            training_items(scenes, [(0, 2)], mix, frame=FRAME, epoch=0, seed=0)

    def test_the_reference_is_the_objects_and_the_tight_box_is_tight(self, scenes: list[Scene]) -> None:
        (item,) = training_items(scenes, [(0, 0)], [STANDARD], frame=FRAME, epoch=0, seed=0)
        mask = item.scene.mask(item.region)
        assert np.array_equal(item.target, FRAME.target(mask))
        assert item.tight.box is not None
        wanted = FRAME.prompts([Box.around(mask)], mask.shape).box
        assert wanted is not None
        assert np.array_equal(item.tight.box, wanted)

    def test_ingredients_come_in_their_shares(self, scenes: list[Scene]) -> None:
        mix = [
            PromptRecipe(strategy="standard", share=3.0),
            PromptRecipe(strategy="click"),
            PromptRecipe(strategy="jitter", share=0.0),
        ]
        rng = rng_for("shares")
        kinds = Counter(type(draw(scenes[0], mix, frame=FRAME, rng=rng).prompts[0]) for _ in range(200))
        assert kinds.keys() == {Box, Points}
        assert 130 <= kinds[Box] <= 170  # 150, and 6 is the standard deviation

    def test_prompts_lie_inside_their_view(self, scenes: list[Scene]) -> None:
        wide = PromptRecipe(strategy="expansion", severity=1.0)
        for place in range(20):
            (item,) = training_items(scenes, [(place, 0)], [wide], frame=FRAME, epoch=0, seed=0)
            (box,) = item.prompts
            assert isinstance(box, Box)
            rows, columns = item.scene.shape
            assert 0 <= box.x_min <= box.x_max <= columns - 1
            assert 0 <= box.y_min <= box.y_max <= rows - 1


class TestValidationItems:
    def test_every_prompt_asks_for_the_same_objects(self, scenes: list[Scene]) -> None:
        found = validation_items(
            scenes, [STANDARD, PromptRecipe(strategy="jitter", severity=0.1)], frame=FRAME, seed=0, objects=5
        )
        assert list(found) == ["standard", "jitter@0.1"]
        one, other = found.values()
        assert [item.name for item in one] == [item.name for item in other]
        assert Counter(item.scene.case.dataset for item in one) == {"squares": 5, "discs": 5}

    def test_many_scenes_before_many_objects_of_one(self, scenes: list[Scene]) -> None:
        found = validation_items(scenes, [STANDARD], frame=FRAME, seed=0, objects=4)["standard"]
        squares = [item.scene.name for item in found if item.scene.case.dataset == "squares"]
        assert len(set(squares)) == 4

    def test_without_scenes_there_are_none(self) -> None:
        assert validation_items([], [STANDARD], frame=FRAME, seed=0, objects=4) == {"standard": []}


def test_names_of_columns() -> None:
    assert named(STANDARD) == "standard"
    assert named(PromptRecipe(strategy="shrink", severity=0.1)) == "shrink@0.1"
    assert named(PromptRecipe(strategy="jitter", severity=(0.0, 0.25))) == "jitter@0-0.25"


class TestWhatIsNotLabelled:
    @pytest.fixture
    def half(self, tmp_path: Path) -> Scene:
        """An object in the left half; nobody labelled the right half."""
        path = tiny_training.phantoms(tmp_path, train=1, val=0)
        (case,) = open_dataset(path)
        scene = next(iter(sights_of(case, frame=FRAME, encoder_hash="e"))).scene
        labels = np.zeros(scene.shape, dtype=np.uint8)
        labels[5:15, 4:12] = 1
        labels[:, scene.shape[1] // 2 :] = 9
        packed = zlib.compress(labels.tobytes())
        regions = (Region("1", (1,)),)
        return replace(scene, case=replace(case, ignore=9), regions=regions, _packed=packed, _dtype=labels.dtype.str)

    def test_it_does_not_count(self, half: Scene) -> None:
        (item,) = training_items([half], [(0, 0)], [STANDARD], frame=FRAME, epoch=0, seed=0)
        assert item.judged is not None
        assert not item.judged[:10, 20:30].any()
        assert item.judged[:10, :12].all()
        assert item.judged[30:].all()  # beyond the image, where the answer is known: nothing

    def test_everything_counts_where_everything_is_labelled(self, scenes: list[Scene]) -> None:
        (item,) = training_items(scenes, [(0, 0)], [STANDARD], frame=FRAME, epoch=0, seed=0)
        assert item.judged is None


def test_two_cases_that_show_one_image_are_two_objects(scenes: list[Scene]) -> None:
    first = scenes[0]
    other = replace(first, case=replace(first.case, name="second reader"))
    items = training_items([first, other], [(0, 0), (0, 1)], [STANDARD], frame=FRAME, epoch=0, seed=0)
    assert items[0].scene.key == items[1].scene.key
    assert items[0].name != items[1].name


class TestPromptsThatDoNotExist:
    @pytest.fixture
    def full(self, scenes: list[Scene]) -> Scene:
        """An object that fills its image: there is no room for points beside it."""
        labels = np.ones(scenes[0].shape, dtype=np.uint8)
        packed = zlib.compress(labels.tobytes())
        return replace(scenes[0], regions=(Region("1", (1,)),), _packed=packed, _dtype=labels.dtype.str)

    def test_the_tight_box_stands_in(self, full: Scene) -> None:
        mix = [PromptRecipe(strategy="points-50+50")]
        (item,) = training_items([full], [(0, 0)], mix, frame=FRAME, epoch=0, seed=0)
        assert item.stands_in
        assert [type(prompt) for prompt in item.prompts] == [Box]

    def test_validation_leaves_the_object_out_of_all_prompts(self, full: Scene, scenes: list[Scene]) -> None:
        prompts = [STANDARD, PromptRecipe(strategy="points-50+50")]
        found = validation_items([full, *scenes[1:]], prompts, frame=FRAME, seed=0, objects=50)
        assert len(found["standard"]) == len(found["points-50+50"]) == 2 * len(scenes[1:])
        assert all(item.scene is not full for items in found.values() for item in items)
