"""What our SAM 2 answers is what transformers' own answers, with the same random weights; none are needed."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import Sam2Model

from palpate.models.promptable import MaskPrediction, PromptBatch
from palpate.models.sam2 import SAM2
from tiny_sam2 import CHANNELS, SIDE, reference, tiny_sam2

SIDES = (SIDE, SIDE // 2)  # as 1024 and 512: grids of 32, 16, 8 cells and of half as many
IMAGES, EACH = 2, 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=SIDES)
def pair(request: pytest.FixtureRequest) -> tuple[SAM2, Sam2Model]:
    ours = tiny_sam2(request.param)
    return ours, reference(ours)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def canvases(side: int) -> Tensor:
    return 2 * draw(IMAGES, 3, side, side, seed=9) - 1


def prompts(side: int, *, box: bool = False, points: int = 0, mask: bool = False) -> dict[str, Tensor]:
    """Three objects on each of two images, as transformers takes them: (image, object, ...)."""
    made: dict[str, Tensor] = {}
    if box:
        made["boxes"] = draw(IMAGES, EACH, 2, 2, seed=2).sort(dim=2).values.flatten(2) * side
    if points:
        made["points"] = draw(IMAGES, EACH, points, 2, seed=3) * side
        made["labels"] = (draw(IMAGES, EACH, points, seed=4) > 0.5).long()
    if mask:
        made["masks"] = 20 * draw(IMAGES, EACH, 1, side // 4, side // 4, seed=5) - 10
    return made


def theirs_of(model: Sam2Model, side: int, made: dict[str, Tensor], *, multimask_output: bool) -> MaskPrediction:
    """transformers' answers; its objects share one mask prompt, so those with a mask are asked one by one."""
    columns = [[j] for j in range(EACH)] if "masks" in made else [list(range(EACH))]
    found = [
        model(
            pixel_values=canvases(side),
            input_boxes=made["boxes"][:, some] if "boxes" in made else None,
            input_points=made["points"][:, some] if "points" in made else None,
            input_labels=made["labels"][:, some] if "labels" in made else None,
            input_masks=made["masks"][:, some[0]] if "masks" in made else None,
            multimask_output=multimask_output,
        )
        for some in columns
    ]
    return MaskPrediction(
        torch.cat([one.pred_masks for one in found], dim=1).flatten(0, 1),
        torch.cat([one.iou_scores for one in found], dim=1).flatten(0, 1),
        torch.cat([one.object_score_logits for one in found], dim=1).flatten(0, 1)[:, 0],
    )


def ours_of(model: SAM2, side: int, made: dict[str, Tensor], *, multimask_output: bool) -> MaskPrediction:
    flat = {name: values.flatten(0, 1) for name, values in made.items()}
    batch = PromptBatch(
        image_index=torch.arange(IMAGES).repeat_interleave(EACH),
        boxes=flat.get("boxes"),
        points=flat.get("points"),
        point_labels=flat.get("labels"),
        masks=flat.get("masks"),
    )
    return model.decode(model.encode(canvases(side)), batch, multimask_output=multimask_output)


def assert_the_same(ours: MaskPrediction, theirs: MaskPrediction) -> None:
    for mine, other in (
        (ours.logits, theirs.logits),
        (ours.predicted_iou, theirs.predicted_iou),
        (ours.object_logits, theirs.object_logits),
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)


KINDS = {
    "box": {"box": True},
    "one point": {"points": 1},
    "points": {"points": 4},
    "points and box": {"points": 3, "box": True},
    "box and mask": {"box": True, "mask": True},
    "everything": {"points": 2, "box": True, "mask": True},
}


def test_the_embedding_is_that_of_transformers(pair: tuple[SAM2, Sam2Model]) -> None:
    ours, theirs = pair
    side = ours.frame.size
    found = ours.encode(canvases(side))
    s0, s1, features = theirs.get_image_embeddings(canvases(side))
    assert found.features.shape == (IMAGES, CHANNELS, side // 16, side // 16)
    assert [level.shape[1:] for level in found.levels] == [
        (CHANNELS // 4, side // 8, side // 8),
        (CHANNELS // 8, side // 4, side // 4),
    ]
    for mine, other in zip((found.features, *found.levels), (features, s1, s0), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("multimask_output", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_scores_are_those_of_transformers(
    pair: tuple[SAM2, Sam2Model], kind: str, multimask_output: bool
) -> None:
    ours, theirs = pair
    side = ours.frame.size
    made = prompts(side, **KINDS[kind])
    found = ours_of(ours, side, made, multimask_output=multimask_output)
    assert_the_same(found, theirs_of(theirs, side, made, multimask_output=multimask_output))
    assert found.logits.shape == (IMAGES * EACH, 3 if multimask_output else 1, side // 4, side // 4)
    assert found.logits.std() > 0.1  # else being the same would mean nothing


@pytest.mark.parametrize("multimask_output", [False, True])
def test_a_mask_alone_is_no_token_as_in_sam2s_own_predictor(
    pair: tuple[SAM2, Sam2Model], multimask_output: bool
) -> None:
    # Sam2Model would put two "not a point" tokens beside it; its mask decoder can do without.
    ours, theirs = pair
    side = ours.frame.size
    masks = prompts(side, mask=True)["masks"][:, 0]
    s0, s1, features = theirs.get_image_embeddings(canvases(side))
    _, dense = theirs.get_prompt_embeddings(input_masks=masks)
    logits, ious, _, object_logits = theirs.mask_decoder(
        image_embeddings=features,
        image_positional_embeddings=theirs.get_image_wide_positional_embeddings().repeat(IMAGES, 1, 1, 1),
        sparse_prompt_embeddings=torch.zeros(IMAGES, 1, 0, CHANNELS),
        dense_prompt_embeddings=dense,
        multimask_output=multimask_output,
        high_resolution_features=[s0, s1],
    )
    found = ours.decode(
        ours.encode(canvases(side)),
        PromptBatch(torch.arange(IMAGES), masks=masks),
        multimask_output=multimask_output,
    )
    assert_the_same(found, MaskPrediction(logits[:, 0], ious[:, 0], object_logits[:, 0, 0]))


def test_a_box_is_two_points_and_one_that_is_none(pair: tuple[SAM2, Sam2Model]) -> None:
    # SAM 2's own predictor gives corners as points labelled 2 and 3, before all other points, and pads at the end.
    ours, theirs = pair
    side = ours.frame.size
    made = prompts(side, box=True, points=2)
    corners = made["boxes"].unflatten(2, (2, 2))
    as_points = {
        "points": torch.cat([corners, made["points"]], dim=2),
        "labels": torch.cat([torch.tensor([2, 3]).expand(IMAGES, EACH, 2), made["labels"]], dim=2),
    }
    assert_the_same(
        ours_of(ours, side, made, multimask_output=True),
        theirs_of(theirs, side, as_points, multimask_output=True),
    )


@pytest.mark.parametrize("loudness", [1.0, 300.0])
def test_a_single_mask_that_is_not_stable_gives_way_as_in_transformers(
    pair: tuple[SAM2, Sam2Model], loudness: float
) -> None:
    ours, theirs = pair
    side = ours.frame.size
    made = prompts(side, box=True)
    last = (
        ours.prompt_decoder.mask_decoder.output_hypernetworks_mlps[0].proj_out,
        theirs.mask_decoder.output_hypernetworks_mlps[0].proj_out,
    )
    kept = [(layer.weight.clone(), layer.bias.clone()) for layer in last]
    for layer in last:  # louder logits of the single mask: fewer of them near zero
        layer.weight.mul_(loudness)
        layer.bias.mul_(loudness)
    try:
        found = ours_of(ours, side, made, multimask_output=False)
        theirs_found = theirs_of(theirs, side, made, multimask_output=False)
        ours.prompt_decoder.dynamic_multimask = False
        single = ours_of(ours, side, made, multimask_output=False)
        three = ours_of(ours, side, made, multimask_output=True)
    finally:
        ours.prompt_decoder.dynamic_multimask = True
        for layer, (weight, bias) in zip(last, kept, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    torch.testing.assert_close(found.logits / loudness, theirs_found.logits / loudness, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.predicted_iou, theirs_found.predicted_iou, rtol=0, atol=1e-4)
    gave_way = ~torch.isclose(found.predicted_iou[:, 0], single.predicted_iou[:, 0], rtol=0, atol=1e-7)
    assert gave_way.any() == (loudness == 1.0)
    best = three.predicted_iou.amax(1)
    torch.testing.assert_close(found.predicted_iou[gave_way, 0], best[gave_way], rtol=0, atol=1e-7)
