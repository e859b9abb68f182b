from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from any_masks import masks
from palpate.errors import PromptError, SettingError
from palpate.prompts import Box, MaskPrompt, Points, Prompt, Scribble, Target
from palpate.prompts.strategies import STRATEGIES, Strategy, strategy
from phantoms import disk, empty, picture, rectangle, ring

SEVERE = [known for known in STRATEGIES if known.uses_severity]
# Every positive point of these lies on the mask, whatever its shape.
ON_THE_MASK = ("points-", "box+points-", "quadrants", "click")
COUNTS = {"points-3": 3, "points-10": 10, "points-50": 50, "points-100": 100, "swin": 4, "swin-independent": 4} | {
    "swin-training": 4,
    "swin-training-independent": 4,
    "box-centre": 1,
    "centroid": 1,
    "click": 1,
    "points-50+50": 100,
}

every = pytest.mark.parametrize("known", STRATEGIES, ids=[known.name for known in STRATEGIES])
seeds = st.integers(0, 2**32 - 1)


def shown(known: Strategy, mask: np.ndarray, *, seed: int = 0, severity: float | None = None) -> tuple[Prompt, ...]:
    """The prompts on slice 7, on an image where the object is grey on black."""
    level = known.default_severities[-1] if severity is None else severity
    return known.draw(mask, severity=level, rng=np.random.default_rng(seed), z=7, pixels=picture((mask, 120)))


def points_of(prompts: tuple[Prompt, ...]) -> list[Points]:
    return [prompt for prompt in prompts if isinstance(prompt, Points)]


def same(first: tuple[Prompt, ...], second: tuple[Prompt, ...]) -> bool:
    def told(prompt: Prompt) -> object:
        if isinstance(prompt, MaskPrompt):
            return prompt.mask.tolist(), prompt.z
        return prompt.positive.tolist() if isinstance(prompt, Scribble) else prompt

    return [told(prompt) for prompt in first] == [told(prompt) for prompt in second]


def has_no_place_for_negatives(known: Strategy, mask: np.ndarray) -> bool:
    return known.name.endswith("50+50") and bool(mask.all())


@every
class TestEveryStrategy:
    @given(mask=masks(), seed=seeds)
    def test_it_prompts_on_the_image_and_on_its_slice(self, known: Strategy, mask: np.ndarray, seed: int) -> None:
        if has_no_place_for_negatives(known, mask):
            with pytest.raises(PromptError, match="leaves no background"):
                shown(known, mask, seed=seed)
            return
        prompts = shown(known, mask, seed=seed)
        shape = mask.shape[0], mask.shape[1]
        assert Target(prompts).z == 7
        assert [prompt.inside(shape) for prompt in prompts] == list(prompts)

    @given(mask=masks(), seed=seeds)
    def test_the_same_dice_give_the_same_prompts(self, known: Strategy, mask: np.ndarray, seed: int) -> None:
        if not has_no_place_for_negatives(known, mask):
            assert same(shown(known, mask, seed=seed), shown(known, mask, seed=seed))

    @given(mask=masks(), seed=seeds)
    def test_points_lie_where_their_labels_say(self, known: Strategy, mask: np.ndarray, seed: int) -> None:
        if has_no_place_for_negatives(known, mask):
            return
        for points in points_of(shown(known, mask, seed=seed)):
            for (x, y), label in zip(points.coordinates, points.labels, strict=True):
                if label == 0 or known.name.startswith(ON_THE_MASK):
                    assert mask[int(y), int(x)] == label

    def test_it_draws_as_many_points_as_its_name_says(self, known: Strategy) -> None:
        prompts = points_of(shown(known, disk((64, 64), centre=(30, 30), radius=12)))
        count = COUNTS.get(known.name.removeprefix("box+"))
        assert count is None or [len(points.coordinates) for points in prompts] == [count]

    def test_it_uses_dice_only_if_it_says_so(self, known: Strategy) -> None:
        mask = ring((64, 64), centre=(30, 30), outer=20, inner=9)
        draws = [shown(known, mask, seed=seed) for seed in range(20)]
        assert known.random == (not all(same(draws[0], other) for other in draws))

    def test_it_follows_severity_only_if_it_says_so(self, known: Strategy) -> None:
        mask = disk((64, 64), centre=(30, 30), radius=20)
        assert known.uses_severity != same(shown(known, mask, severity=0), shown(known, mask, severity=0.2))
        assert (known.default_severities == (0.0,)) != known.uses_severity

    def test_it_looks_at_the_image_only_if_it_says_so(self, known: Strategy) -> None:
        mask = disk((64, 64), centre=(30, 30), radius=20)
        level, rng = known.default_severities[0], np.random.default_rng(0)
        if known.needs_pixels:
            with pytest.raises(PromptError, match="pass the slice as `pixels`"):
                known.draw(mask, severity=level, rng=rng)
        else:
            assert same(known.draw(mask, severity=level, rng=rng, z=7), shown(known, mask, severity=level))

    def test_no_prompt_fits_an_empty_mask(self, known: Strategy) -> None:
        with pytest.raises(PromptError, match="empty mask; skip the slice or pass another label"):
            shown(known, np.zeros((9, 9), dtype=bool))

    def test_it_stands_in_the_documentation(self, known: Strategy) -> None:
        page = Path(__file__).parents[2] / "docs" / "reference" / "strategies.md"
        rows = [line.split("|") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
        row = {cells[1].strip(" `"): cells for cells in rows}[known.name]
        assert row[2].strip() == known.says
        assert row[4].strip().startswith(known.source)


def test_names_are_easily_typed_and_unique() -> None:
    names = [known.name for known in STRATEGIES]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-+") for name in names)
    assert [strategy(name) for name in names] == list(STRATEGIES)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        SettingError, match=r"no strategy is called 'tight'; choose one of standard, expansion, shrink,"
    ):
        strategy("tight")


@pytest.mark.parametrize("known", SEVERE, ids=[known.name for known in SEVERE])
@given(mask=masks(), seed=seeds)
def test_without_severity_nothing_is_wrong(known: Strategy, mask: np.ndarray, seed: int) -> None:
    right = MaskPrompt(mask, z=7) if known.name == "mask-rough" else Box.around(mask, z=7)
    assert same(shown(known, mask, seed=seed, severity=0), (right,))


@pytest.mark.parametrize("percent", [5, 10, 20])
def test_grown_boxes_grow_by_their_percentage(percent: int) -> None:
    # 20 columns and 10 rows: 10 % is 2 columns and 1 row a side.
    mask = rectangle((60, 60), 20, 30, 39, 39)
    x, y = 20 * percent / 100, 10 * percent / 100
    (box,) = shown(strategy(f"box-{percent}"), mask)
    assert isinstance(box, Box)
    assert np.allclose([box.x_min, box.y_min, box.x_max, box.y_max], [20 - x, 30 - y, 39 + x, 39 + y])
    draws = [shown(strategy(f"box-random-{percent}"), mask, seed=seed)[0] for seed in range(200)]
    moved = np.array([20 - draw.x_min for draw in draws if isinstance(draw, Box)])
    assert moved.min() >= 0
    assert x * 0.9 < moved.max() <= x


def test_the_box_goes_with_its_points() -> None:
    mask = disk((64, 64), centre=(30, 30), radius=12)
    box, points = shown(strategy("box+points-10"), mask, seed=3)
    assert box == Box.around(mask, z=7)
    assert (points,) == shown(strategy("points-10"), mask, seed=3)


class TestSwin:
    def test_at_inference_only_the_box_of_the_mask_is_seen(self) -> None:
        pixels = picture((disk((96, 96), centre=(48, 48), radius=30), 90))
        hollow, full = ring((96, 96), centre=(48, 48), outer=20, inner=15), disk((96, 96), centre=(48, 48), radius=20)
        for name in ("swin", "swin-independent"):
            first, second = (
                strategy(name).draw(mask, severity=0, rng=np.random.default_rng(5), pixels=pixels)
                for mask in (hollow, full)
            )
            assert same(first, second)

    def test_it_shows_a_box_four_points_and_a_stroke(self) -> None:
        mask = disk((256, 256), centre=(120, 120), radius=60)
        for name in ("swin", "swin-training"):
            box, points, scribble = shown(strategy(name), mask)
            assert isinstance(box, Box)
            assert isinstance(points, Points)
            assert isinstance(scribble, Scribble)

    def test_colour_images_do(self) -> None:
        mask = disk((64, 64), centre=(30, 30), radius=20)
        grey = picture((mask, 90))
        colours = np.stack([grey, grey, grey], axis=-1)
        first, second = (
            strategy("swin").draw(mask, severity=0, rng=np.random.default_rng(5), pixels=pixels)
            for pixels in (grey, colours)
        )
        assert same(first, second)

    def test_too_small_for_a_stroke_there_is_none(self) -> None:
        mask = rectangle((256, 256), 40, 40, 41, 41)
        assert [type(prompt) for prompt in shown(strategy("swin"), mask)] == [Box, Points]

    @given(mask=masks(), seed=seeds)
    def test_in_training_points_lie_on_the_mask_or_in_the_middle_of_the_box(self, mask: np.ndarray, seed: int) -> None:
        box, points = shown(strategy("swin-training"), mask, seed=seed)[:2]
        assert isinstance(box, Box)
        assert isinstance(points, Points)
        middle = (int(box.x_min) + int(box.x_max)) // 2, (int(box.y_min) + int(box.y_max)) // 2
        assert all(mask[int(y), int(x)] or (x, y) == middle for x, y in points.coordinates)

    def test_in_training_parts_may_be_left_out_and_the_box_may_cut(self) -> None:
        mask = disk(radius=20, shape=(64, 64), centre=(32, 32))
        tight = Box.around(mask)
        kinds = {
            "swin-training": (Box, Points, Scribble),
            "swin-training-adaptive": (Box, Points, Scribble),
            "swin-training-box": (Box,),
            "swin-training-points": (Box, Points),
            "swin-training-scribble": (Box, Scribble),
        }
        boxes: dict[str, list[Box]] = {}
        for name, expected in kinds.items():
            for seed in range(30):
                prompts = shown(strategy(name), mask, seed=seed)
                assert tuple(map(type, prompts)) == expected, name
                assert isinstance(prompts[0], Box)
                boxes.setdefault(name, []).append(prompts[0])
        cuts = {name: any(box.x_min > tight.x_min for box in drawn) for name, drawn in boxes.items()}
        assert cuts == {name: name == "swin-training-adaptive" for name in kinds}

    def test_only_the_independent_draw_leaves_a_ring(self) -> None:
        mask = ring((64, 64), centre=(32, 32), outer=28, inner=25)

        def on_it(name: str) -> float:
            drawn = [points_of(shown(strategy(name), mask, seed=seed))[0].coordinates for seed in range(100)]
            return float(np.mean([mask[int(y), int(x)] for points in drawn for x, y in points]))

        assert on_it("swin-training") == 1
        assert on_it("swin-training-independent") < 0.6

    def test_an_image_of_another_slice_is_refused(self) -> None:
        mask = disk((64, 64), centre=(30, 30), radius=20)
        with pytest.raises(PromptError, match="pass the same slice of both"):
            strategy("swin").draw(mask, severity=0, rng=np.random.default_rng(0), pixels=picture((empty((9, 9)), 1)))


def test_a_click_goes_to_the_deepest_pixel() -> None:
    # Seven columns 10..16 and seven rows 4..10.
    assert shown(strategy("click"), rectangle((20, 30), 10, 4, 16, 10)) == (Points([(13, 7)], z=7),)


def test_a_mask_prompt_is_the_mask_and_stays_so() -> None:
    mask = ring((20, 30), centre=(12, 9), outer=7, inner=3)
    reference = mask.copy()
    (prompt,) = shown(strategy("mask"), mask)
    mask[:] = False
    assert isinstance(prompt, MaskPrompt)
    assert np.array_equal(prompt.mask, reference)
