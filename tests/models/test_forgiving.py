"""Two decoders: what is drawn is answered by both, and the box grows as far as the taught one sees the object."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from palpate.errors import SettingError, WeightsError
from palpate.models import adapters, weights
from palpate.models.adapters import MOST_LOOKS, AdapterCard, Trained
from palpate.models.averaging import average
from palpate.models.forgiving import Forgiving, beside, require_one_decoder, united
from palpate.models.lite_medsam import LiteMedSAM
from palpate.models.promptable import ImageEmbedding, MaskPrediction, PromptableModel, PromptBatch
from tiny_networks import tiny_lite_medsam

Boxes = Sequence[Sequence[float]]
TINY_CANVAS = 64


class Told(nn.Module):
    """A model whose masks are rectangles: what `says` makes of the box."""

    def __init__(self, says: Callable[[list[int]], list[int]], *, iou: float, sure: float = 1.0) -> None:
        super().__init__()
        self.says, self.iou, self.sure, self.asked = says, iou, sure, list[list[list[float]]]()
        self.frame = tiny_lite_medsam().frame

    def encode(self, canvas: Tensor) -> ImageEmbedding:
        return ImageEmbedding(canvas)

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        assert prompts.boxes is not None
        self.asked.append(prompts.boxes.tolist())
        logits = torch.full((len(prompts), 3 if multimask_output else 1, TINY_CANVAS, TINY_CANVAS), -self.sure)
        for i, box in enumerate(prompts.boxes.tolist()):
            x0, y0, x1, y1 = self.says([int(each) for each in box])
            logits[i, :, y0 : y1 + 1, x0 : x1 + 1] = self.sure
        return MaskPrediction(logits, torch.full(logits.shape[:2], self.iou))


def as_it_is(box: list[int]) -> list[int]:
    return box


def wider(box: list[int]) -> list[int]:
    """Two pixels more at each side, but no more than the object has: 8 to 29."""
    return [max(8, box[0] - 2), max(8, box[1] - 2), min(29, box[2] + 2), min(29, box[3] + 2)]


def asked(boxes: Boxes, **more: bool) -> PromptBatch:
    return PromptBatch(torch.zeros(len(boxes), dtype=torch.int64), boxes=torch.tensor(boxes), **more)


NOWHERE = ImageEmbedding(torch.zeros(1, 1, 1, 1))


def test_the_box_grows_look_by_look_and_the_answers_are_averaged() -> None:
    base, taught = Told(as_it_is, iou=0.2), Told(wider, iou=0.8)
    model = Forgiving(base, taught, looks=3)
    found = model.decode(NOWHERE, asked([[14.0, 14.0, 23.0, 23.0]]))
    assert base.asked == [[[14, 14, 23, 23]]]
    assert taught.asked == [[[14, 14, 23, 23]], [[12, 12, 25, 25]], [[10, 10, 27, 27]]]
    logits = found.logits[0, 0]
    # Inside the given box all four say yes; then three, two and one of them do.
    assert [logits[18, x].item() for x in (14, 13, 11, 9, 7)] == [1.0, 0.5, 0.0, -0.5, -1.0]
    assert found.predicted_iou.item() == pytest.approx((0.2 + 3 * 0.8) / 4)
    assert model.frame is base.frame


def test_a_box_that_does_not_grow_is_not_asked_again_but_counts_as_often() -> None:
    taught = Told(wider, iou=0.8)
    model = Forgiving(Told(as_it_is, iou=0.2), taught, looks=4)
    boxes = [[8.0, 8.0, 29.0, 29.0], [11.0, 11.0, 26.0, 26.0], [14.0, 14.0, 23.0, 23.0]]
    together = model.decode(NOWHERE, asked(boxes))
    assert [len(each) for each in taught.asked] == [3, 2, 2, 1]
    for i, box in enumerate(boxes):
        alone = model.decode(NOWHERE, asked([box]))
        assert torch.equal(alone.logits[0], together.logits[i])
        torch.testing.assert_close(alone.predicted_iou[0], together.predicted_iou[i])
    assert together.predicted_iou[0].item() == pytest.approx((0.2 + 4 * 0.8) / 5)


def test_what_no_hand_drew_and_what_is_not_a_box_alone_is_for_the_released_decoder() -> None:
    base, taught = Told(as_it_is, iou=0.2), Told(wider, iou=0.8)
    model, box = Forgiving(base, taught, looks=2), [[14.0, 14.0, 23.0, 23.0]]
    where = torch.zeros(1, dtype=torch.int64)
    points = PromptBatch(
        where, boxes=torch.tensor(box), points=torch.tensor([[[20.0, 20.0]]]), point_labels=torch.tensor([[1]])
    )
    for batch, several in ((asked(box, exact=True), False), (points, False), (asked(box), True)):
        found = model.decode(NOWHERE, batch, multimask_output=several)
        assert found.predicted_iou.unique().tolist() == pytest.approx([0.2])
        assert found.logits.shape[1] == (3 if several else 1)
    assert not taught.asked


def test_what_came_in_stays_as_it_was() -> None:
    batch = asked([[14.0, 14.0, 23.0, 23.0]])
    Forgiving(Told(as_it_is, iou=0.2), Told(wider, iou=0.8), looks=3).decode(NOWHERE, batch)
    assert batch.boxes is not None
    assert batch.boxes.tolist() == [[14, 14, 23, 23]]


@pytest.mark.parametrize(("coarse", "expected"), [(1, [3, 2, 9, 8]), (4, [3, 2, 23, 15])])
def test_a_box_is_united_with_its_mask_in_pixels_of_the_canvas(coarse: int, expected: list[int]) -> None:
    # The mask's pixels 4..5 across and 2..3 down; four times as coarse they cover 16..23 and 8..15.
    logits = -torch.ones(2, 8, 8)
    logits[0, 2:4, 4:6] = 1
    boxes = torch.tensor([[3.0, 2.0, 9.0, 8.0], [1.0, 1.0, 2.0, 2.0]])
    found = united(boxes, logits, canvas=8 * coarse)
    assert found.tolist() == [expected, [1, 1, 2, 2]]  # of an empty mask nothing is learned


# --- As files ---------------------------------------------------------------------------------------------------------


def made(trained: Trained | None = None, *, looks: int = 0) -> tuple[LiteMedSAM, adapters.Adapter]:
    """A network, and an adapter that makes it answer another thing."""
    torch.manual_seed(0)
    network, taught = tiny_lite_medsam(), tiny_lite_medsam()
    taught.load_state_dict(network.state_dict())
    moving = adapters.trainable(taught, trained or Trained())
    with torch.no_grad():
        for parameter in moving.values():
            parameter += torch.randn_like(parameter) / 4
    about = AdapterCard("mine", "tiny", "0" * 64, trained or Trained(), ("box",), looks=looks)
    return network, adapters.extracted(taught, about)


def test_beside_its_base_model_it_shares_the_encoder_and_changes_nothing_of_it() -> None:
    network, adapter = made(looks=2)
    before = weights.content_hash(network.state_dict())
    model = beside(network, adapter)
    assert model.taught.get_submodule("image_encoder") is network.image_encoder
    assert weights.content_hash(network.state_dict()) == before
    assert weights.encoder_hash(model) == weights.encoder_hash(network)
    assert isinstance(model, PromptableModel)
    canvas = torch.rand(1, 3, TINY_CANVAS, TINY_CANVAS, generator=torch.Generator().manual_seed(0))
    batch = asked([[10.0, 10.0, 30.0, 30.0]])
    with torch.inference_mode():
        embedding = model.encode(canvas)
        assert torch.equal(embedding.features, network.encode(canvas).features)
        first = network.decode(embedding, batch).logits
        exact = model.decode(embedding, asked([[10.0, 10.0, 30.0, 30.0]], exact=True)).logits
        drawn = model.decode(embedding, batch).logits
    assert torch.equal(exact, first)
    assert not torch.equal(drawn, first)


def test_the_number_of_looks_is_part_of_what_is_hashed() -> None:
    network, adapter = made(looks=2)
    model = beside(network, adapter)
    two = weights.content_hash(model.added())
    model.looks = 3
    assert weights.content_hash(model.added()) != two


def test_an_adapter_that_changes_the_encoder_cannot_answer_beside_its_base() -> None:
    network, adapter = made(Trained(("last-blocks",)), looks=2)
    with pytest.raises(WeightsError, match="changes the image encoder"):
        beside(network, adapter)


def test_two_decoders_are_not_trained() -> None:
    network, adapter = made(looks=2)
    with pytest.raises(SettingError, match=r"add looks to the result with `palpate models average --looks`"):
        require_one_decoder(beside(network, adapter), "tiny-robust")
    require_one_decoder(network, "tiny")


@pytest.mark.parametrize("looks", [-1, MOST_LOOKS + 1])
def test_looks_have_bounds(looks: int) -> None:
    with pytest.raises(SettingError, match=f"looks must be 0 to {MOST_LOOKS}"):
        made(looks=looks)


def test_looks_are_not_averaged_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.safetensors"
    adapters.save(made(looks=2)[1], path)
    with pytest.raises(SettingError, match="give the adapters that it was made of"):
        average([path], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
