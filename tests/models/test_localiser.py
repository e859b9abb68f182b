"""Where things are, on a map; and the box that follows from it."""

import math

import pytest
import torch

from palpate.errors import SettingError
from palpate.models.localiser import Localiser, peak_boxes
from palpate.models.prompt_predictor import Items


def tiny(**changes: int) -> Localiser:
    torch.manual_seed(0)
    return Localiser(**{"classes": 3, "tokens": 4, "channels": 8, "hidden": 16, **changes}).eval()


@pytest.mark.parametrize("shape", [(64, 64), (32, 32), (7, 9)])
def test_a_logit_for_every_class_and_cell(shape: tuple[int, int]) -> None:
    assert tiny().maps(torch.randn(2, 8, *shape)).shape == (2, 3, *shape)


def test_an_item_gets_the_map_of_its_class_on_its_image() -> None:
    localiser = tiny()
    torch.nn.init.normal_(localiser.out.weight)
    features = torch.randn(2, 8, 16, 16)
    items = Items(torch.tensor([1, 0]), torch.tensor([2, 0]))
    said = localiser(features, items=items)
    maps = localiser.maps(features)
    assert said.mask_logits.shape == (2, 1, 64, 64)
    finer = torch.nn.functional.interpolate(maps[[1, 0], [2, 0]][:, None], scale_factor=4, mode="bilinear")
    assert torch.allclose(said.mask_logits, finer, atol=1e-5)
    assert torch.equal(said.boxes, peak_boxes(said.mask_logits))
    assert torch.equal(said.tokens, localiser.class_tokens[[2, 0]])


def test_it_knows_no_more_of_the_scale_of_its_input_than_it_was_told() -> None:
    localiser = tiny()
    torch.nn.init.normal_(localiser.out.weight)
    features = torch.randn(1, 8, 16, 16)
    maps = localiser.maps(features)
    localiser.mean.fill_(3.0)
    localiser.scale.fill_(10.0)
    assert torch.allclose(localiser.maps(features * 10 + 3), maps, atol=1e-4)


def test_a_new_one_finds_nothing() -> None:
    assert not bool(tiny().maps(torch.randn(1, 8, 16, 16)).any())


def test_the_heaviest_part_gives_the_box_up_to_its_last_pixel() -> None:
    maps = torch.full((1, 1, 8, 8), -9.0)
    maps[0, 0, 1:3, 2:6] = 0.5  # 8 cells of 0.5
    maps[0, 0, 6, 6] = 3.0  # one of 3
    assert peak_boxes(maps).tolist() == [[0.25, 0.125, 0.375, 0.125]]


@pytest.mark.parametrize("height", [5.0, 0.0, -3.0, -800.0])
def test_the_box_holds_what_is_nearly_as_likely_as_the_likeliest_place(height: float) -> None:
    maps = torch.full((1, 1, 8, 8), height - 8.0)
    maps[0, 0, 2:4, 4:8] = height - 1.0
    maps[0, 0, 2, 5] = height
    assert peak_boxes(maps).tolist() == [[0.5, 0.25, 0.375, 0.125]]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_where_training_went_wrong_the_box_is_the_whole_canvas(wrong: float) -> None:
    assert peak_boxes(torch.full((1, 1, 8, 8), wrong)).tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_points_choose_the_part_that_most_of_them_lie_on() -> None:
    maps = torch.full((3, 1, 8, 8), -9.0)
    maps[:, 0, 1:3, 2:6] = 0.5
    maps[:, 0, 6, 6] = 0.1
    on_small, beside = torch.tensor([[0.8, 0.8], [0.85, 0.76], [0.4, 0.2]]), torch.tensor([[0.0, 1.0]])
    small, heavy = [0.75, 0.75, 0.0, 0.0], [0.25, 0.125, 0.375, 0.125]
    assert peak_boxes(maps, [on_small, beside, torch.zeros(0, 2)]).tolist() == [small, heavy, heavy]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(SettingError, match="at least one class"):
        tiny(classes=0)
    with pytest.raises(SettingError, match="at least 2 tokens"):
        tiny(tokens=1)


def test_it_looks_at_where_cells_lie_only_if_it_was_trained_so() -> None:
    localiser = tiny()
    torch.nn.init.normal_(localiser.out.weight)
    localiser.scales = torch.nn.ModuleList([torch.nn.Identity()] * 3)  # convolutions see the image's edge
    everywhere_alike = torch.ones(1, 8, 16, 16)
    assert localiser.maps(everywhere_alike).std(dim=(2, 3)).max().item() > 0.01
    localiser.placed.fill_(0.0)
    assert localiser.maps(everywhere_alike).std(dim=(2, 3)).max().item() < 1e-5


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no Apple GPU, which has no double precision")
def test_boxes_come_from_any_device() -> None:
    maps = torch.full((1, 1, 8, 8), -9.0, device="mps")
    maps[0, 0, 2:4, 4:8] = 1.0
    assert peak_boxes(maps).tolist() == [[0.5, 0.25, 0.375, 0.125]]
