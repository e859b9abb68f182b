"""With the released weights, our LiteMedSAM says what the original said on a picture that needs no file.

The numbers were taken once from the original network in float32 on a CPU. Two runs of that network on a busy machine
have differed by 2e-4 in the embedding; hence the tolerances.
"""

import pytest
import torch
from torch import Tensor

from palpate.models import weights
from palpate.models.catalogue import card, stored
from palpate.models.lite_medsam import LiteMedSAM
from palpate.models.promptable import ImageEmbedding, PromptableModel, PromptBatch

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(
        not stored("lite-medsam").exists(), reason="no LiteMedSAM weights; palpate models get lite-medsam"
    ),
]

BOX = (65.0, 85.0, 175.0, 175.0)


@pytest.fixture(scope="module")
def model() -> LiteMedSAM:
    model = weights.load("lite-medsam").model
    assert isinstance(model, LiteMedSAM)
    return model


@pytest.fixture(scope="module")
def disc() -> Tensor:
    """An ellipse, 100 pixels wide and 80 high, around (120, 130)."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    return ((x - 120) / 50) ** 2 + ((y - 130) / 40) ** 2 < 1


@pytest.fixture(scope="module")
def canvas(disc: Tensor) -> Tensor:
    """The ellipse, bright, under stripes that differ from channel to channel."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    stripes = torch.stack([((x * (c + 1) + 3 * y) % 32) / 31 for c in range(3)])
    return (0.2 + 0.6 * disc + 0.2 * stripes)[None]


@pytest.fixture(scope="module")
def embedding(model: LiteMedSAM, canvas: Tensor) -> ImageEmbedding:
    with torch.inference_mode():
        return model.encode(canvas)


def near(values: Tensor, expected: list[float] | float, *, within: float) -> None:
    torch.testing.assert_close(values, torch.tensor(expected), rtol=0, atol=within)


def test_the_picture_is_the_one_the_numbers_were_taken_from(canvas: Tensor, disc: Tensor) -> None:
    near(canvas.min(), 0.2, within=1e-6)
    near(canvas.max(), 1.0, within=1e-6)
    near(canvas.mean(), 0.357285, within=1e-5)
    assert disc.sum() == 6257


def test_the_embedding(embedding: ImageEmbedding) -> None:
    features = embedding.features
    near(features.mean(), -0.00232164, within=1e-4)
    near(features.std(), 0.109404, within=1e-4)
    near(features[0, 0, 0, :4], [-0.0132396, -0.0069696, -0.0313945, -0.0298553], within=1e-3)
    near(features[0, 100, 32, 30:34], [-0.0631100, -0.0230152, -0.0105745, -0.1278013], within=1e-3)
    near(features[0, 255, 63, 63], 0.1114137, within=1e-3)


def test_the_tokens_of_a_box(model: LiteMedSAM) -> None:
    with torch.inference_mode():
        sparse, dense = model.prompt_decoder.prompt_encoder(None, None, torch.tensor([[BOX]]), None)
    assert sparse.shape == (1, 1, 2, 256)
    near(sparse[0, 0, 0, :4], [0.8006653, 0.8246652, -0.9552751, -0.1137981], within=1e-5)
    near(sparse[0, 0, 1, :4], [-0.6491976, -0.5116674, 0.7118731, 0.4417195], within=1e-5)
    near(dense[0, :4, 0, 0], [0.0080641, 0.0108693, 0.0070622, 0.0051970], within=1e-6)


def test_the_mask_of_a_box(model: LiteMedSAM, embedding: ImageEmbedding, disc: Tensor) -> None:
    with torch.inference_mode():
        prediction = model.decode(embedding, PromptBatch(torch.tensor([0]), boxes=torch.tensor([BOX])))
    logits = prediction.logits[0, 0]
    near(logits.mean(), -22.3778, within=5e-3)
    near(logits.min(), -41.1384, within=2e-2)
    near(logits.max(), 14.2314, within=1e-2)
    near(logits[130, 120], 12.3247, within=1e-2)
    near(logits[5, 5], -31.6092, within=1e-2)
    near(prediction.predicted_iou[0, 0], 0.971686, within=1e-4)
    mask = logits > 0
    assert abs(int(mask.sum()) - 6327) <= 2
    near(2 * (mask & disc).sum() / (mask.sum() + disc.sum()), 0.99412, within=1e-4)


def test_the_robust_model_is_what_its_card_says_and_forgives_a_box_that_cuts(
    model: LiteMedSAM, embedding: ImageEmbedding, disc: Tensor
) -> None:
    loaded = weights.load("lite-medsam-robust")
    assert loaded.weights_hash == card("lite-medsam-robust").content_sha256
    assert loaded.encoder_hash == weights.encoder_hash(model)  # what was encoded for one is good for the other
    # A quarter of its length cut off at every side of the ellipse.
    cut = PromptBatch(torch.tensor([0]), boxes=torch.tensor([[95.0, 110.0, 145.0, 150.0]]))

    def dice(network: PromptableModel, batch: PromptBatch) -> float:
        with torch.inference_mode():
            mask = network.decode(embedding, batch).logits[0, 0] > 0
        return float(2 * (mask & disc).sum() / (mask.sum() + disc.sum()))

    assert dice(loaded.model, PromptBatch(torch.tensor([0]), boxes=torch.tensor([BOX]))) > 0.97
    assert dice(loaded.model, cut) > dice(model, cut) + 0.1
