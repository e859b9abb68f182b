import math

import numpy as np
import pytest
import torch
from torch import nn

from palpate.errors import SettingError
from palpate.models.prompt_predictor import Items, LearnedPrompts, PromptPredictor, sine_1d, sine_2d


def tiny(**changes: object) -> PromptPredictor:
    torch.manual_seed(0)
    settings = {"classes": 3, "tokens": 5, "channels": 32, "heads": 2, "mlp_channels": 16, **changes}
    return PromptPredictor(**settings).eval()  # pyright: ignore[reportArgumentType]


def parameters(predictor: PromptPredictor) -> int:
    return sum(p.numel() for name, p in predictor.named_parameters() if name != "queries")


class TestItsSize:
    def test_linear_is_the_papers(self) -> None:
        assert parameters(PromptPredictor(classes=2)) == 1_896_389

    @pytest.mark.parametrize(
        ("levels", "scale", "expected"),
        [
            ((64, 32), 1, 5_080_517),
            ((768, 768), 4, 5_449_157),
            ((1024, 1024), 4, 5_580_229),
            ((1280, 1280), 4, 5_711_301),
            ((320, 320), 4, 5_219_781),
        ],
        ids=["sam2", "vit-b", "vit-l", "vit-h", "tiny-vit"],
    )
    def test_high_res_is_that_of_the_authors_code(self, levels: tuple[int, int], scale: int, expected: int) -> None:
        predictor = PromptPredictor(classes=1, variant="high-res", level_channels=levels, mask_scale=scale)
        assert parameters(predictor) == expected

    def test_queries_are_one_row_of_tokens_a_class(self) -> None:
        queries = PromptPredictor(classes=7).queries
        assert queries.shape == (7, 10, 256)
        assert float(queries.detach().std()) == pytest.approx(1 / 16, rel=0.05)


class TestWhatItSays:
    def test_each_item_has_a_box_free_tokens_and_a_mask_of_four_times_the_grid(self) -> None:
        said = tiny()(torch.randn(2, 32, 8, 8), items=Items.every(2, 3), dense=torch.zeros(1, 32))
        assert said.boxes.shape == (6, 4)
        assert said.tokens.shape == (6, 3, 32)
        assert said.mask_logits.shape == (6, 1, 32, 32)
        assert bool(((said.boxes > 0) & (said.boxes < 1)).all())

    def test_boxes_are_corner_and_size(self) -> None:
        boxes = torch.tensor([[0.25, 0.5, 0.5, 0.125]])
        said = LearnedPrompts(boxes, torch.zeros(1, 8, 4), torch.zeros(1, 1, 4, 4))
        assert said.corners().tolist() == [[0.25, 0.5, 0.75, 0.625]]

    def test_the_finest_level_decides_how_fine_the_mask_is(self) -> None:
        predictor = tiny(variant="high-res", level_channels=(16, 8), mask_scale=1)
        levels = [torch.randn(2, 16, 8, 8), torch.randn(2, 8, 16, 16)]
        said = predictor(torch.randn(2, 32, 4, 4), levels, items=Items.every(2, 3), dense=torch.zeros(1, 32))
        assert said.mask_logits.shape == (6, 1, 16, 16)

    def test_items_do_not_see_one_another(self) -> None:
        predictor, features, dense = tiny(), torch.randn(2, 32, 8, 8), torch.zeros(1, 32)
        together = predictor(features, items=Items.every(2, 3), dense=dense)
        alone = predictor(features, items=Items(torch.tensor([1]), torch.tensor([2])), dense=dense)
        assert torch.allclose(alone.mask_logits[0], together.mask_logits[5], atol=1e-5)
        assert torch.allclose(alone.boxes[0], together.boxes[5], atol=1e-5)

    def test_every_class_looks_for_something_else(self) -> None:
        said = tiny()(torch.randn(1, 32, 8, 8), items=Items.every(1, 3), dense=torch.zeros(1, 32))
        assert not torch.allclose(said.boxes[0], said.boxes[1], atol=1e-4)

    def test_every_weight_learns(self) -> None:
        predictor = tiny(variant="high-res", level_channels=(16, 8), mask_scale=1)
        levels = [torch.randn(1, 16, 8, 8), torch.randn(1, 8, 16, 16)]
        said = predictor(torch.randn(1, 32, 4, 4), levels, items=Items.every(1, 3), dense=torch.zeros(1, 32))
        (said.boxes.sum() + said.tokens.sum() + said.mask_logits.sum()).backward()
        # A key's bias adds the same to all scores of a query, which the softmax takes away again.
        still = {
            name
            for name, p in predictor.named_parameters()
            if (p.grad is None or not bool(p.grad.abs().max() > 0)) and not name.endswith("k_proj.bias")
        }
        assert not still


class TestPositions:
    def test_tokens_are_counted_in_sines_and_cosines(self) -> None:
        row = sine_1d(10, 256)[3].numpy()
        expected = [f(3 / 10000 ** (2 * (i // 2) / 256)) for i, f in enumerate([math.sin, math.cos] * 128)]
        assert np.allclose(row, expected, atol=1e-5)

    def test_cells_are_counted_from_one_to_two_pi_rows_first(self) -> None:
        grid = sine_2d(4, 8, 64).unflatten(0, (4, 8)).numpy()
        assert np.allclose(grid[1, 5, :2], [math.sin(2 / 4 * 2 * math.pi), math.cos(2 / 4 * 2 * math.pi)], atol=1e-4)
        x = 6 / 8 * 2 * math.pi
        assert np.allclose(grid[1, 5, 32:34], [math.sin(x), math.cos(x)], atol=1e-4)
        slower = x / 10000 ** (2 / 32)
        assert np.allclose(grid[1, 5, 34:36], [math.sin(slower), math.cos(slower)], atol=1e-4)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"classes": 0}, "at least one class"),
            ({"tokens": 1}, "at least 2 tokens"),
            ({"variant": "high-res"}, "two levels"),
            ({"level_channels": (8, 8)}, "two levels"),
        ],
    )
    def test_it_says_what_it_needs(self, changes: dict[str, object], said: str) -> None:
        with pytest.raises(SettingError, match=said):
            tiny(**changes)

    def test_missing_levels_are_told(self) -> None:
        predictor = tiny(variant="high-res", level_channels=(16, 8), mask_scale=1)
        with pytest.raises(SettingError, match="looks at 2 levels, got 0"):
            predictor(torch.randn(1, 32, 4, 4), items=Items.every(1, 3), dense=torch.zeros(1, 32))


def test_two_way_blocks_have_sams_epsilon() -> None:
    norms = [m for b in tiny().blocks for m in b.children() if isinstance(m, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-5] * 4
