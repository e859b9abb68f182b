"""A small random SAM gives what transformers' own SamModel gives with the same weights."""

import pytest
import torch
from transformers.models.sam.configuration_sam import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.modeling_sam import SamModel

from palpate.models.promptable import PromptBatch
from palpate.models.sam_vit import SAM, from_segment_anything, from_transformers, to_segment_anything
from tiny_networks import tiny_sam

BOXES = torch.tensor([[3.0, 5, 40, 50], [10, 12, 30.5, 28]])
POINTS = torch.tensor([[[20.0, 22], [5, 60]], [[18, 16], [63, 0]]])
LABELS = torch.tensor([[1, 0], [1, 1]])


@pytest.fixture(scope="module")
def ours() -> SAM:
    return tiny_sam()


@pytest.fixture(scope="module")
def theirs(ours: SAM) -> SamModel:
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16,
            output_channels=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            window_size=3,
            global_attn_indexes=[1],
            num_pos_feats=16,
            mlp_dim=64,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    model = SamModel(config).eval()
    state = {
        name.replace("image_encoder.", "vision_encoder.").removeprefix("prompt_decoder."): tensor
        for name, tensor in ours.state_dict().items()
    }
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    model.load_state_dict(state)
    for block in model.mask_decoder.transformer.layers:
        for norm in (block.layer_norm1, block.layer_norm2, block.layer_norm3, block.layer_norm4):
            norm.eps = 1e-5  # as SAM was trained; see `SamPromptDecoder`
    return model


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", ["box", "points", "box and points"])
def test_masks_are_those_of_transformers(ours: SAM, theirs: SamModel, kind: str, *, multimask: bool) -> None:
    canvas = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    boxes = BOXES if "box" in kind else None
    points, labels = (POINTS, LABELS) if "points" in kind else (None, None)
    with torch.inference_mode():
        embedding = ours.encode(canvas)
        prompts = PromptBatch(torch.zeros(2, dtype=torch.long), boxes, points, labels)
        found = ours.decode(embedding, prompts, multimask_output=multimask)
        expected = theirs(
            pixel_values=canvas,
            input_boxes=None if boxes is None else boxes[None],
            input_points=None if points is None else points[None],
            input_labels=None if labels is None else labels[None],
            multimask_output=multimask,
        )
        features = theirs.vision_encoder(canvas).last_hidden_state
    assert features.std() > 0.1
    torch.testing.assert_close(embedding.features, features, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.logits, expected.pred_masks[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.predicted_iou, expected.iou_scores[0], rtol=0, atol=1e-4)


def test_a_mask_prompt_is_read_as_transformers_does(ours: SAM, theirs: SamModel) -> None:
    canvas = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    mask = 5 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        prompts = PromptBatch(torch.tensor([0]), BOXES[:1], masks=mask)
        found = ours.decode(ours.encode(canvas), prompts)
        without = ours.decode(ours.encode(canvas), PromptBatch(torch.tensor([0]), BOXES[:1]))
        expected = theirs(pixel_values=canvas, input_boxes=BOXES[None, :1], input_masks=mask, multimask_output=False)
    torch.testing.assert_close(found.logits, expected.pred_masks[0], rtol=0, atol=1e-4)
    assert (found.logits - without.logits).abs().max() > 1e-3


@pytest.mark.parametrize("leave_out", ["shared_image_embedding.", "prompt_encoder.shared_embedding.", "nothing"])
def test_a_model_saved_by_transformers_has_the_names_of_the_original(
    ours: SAM, theirs: SamModel, leave_out: str
) -> None:
    saved = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith(leave_out)}
    original = from_transformers(saved)
    expected = to_segment_anything(ours.state_dict())
    assert original.keys() == expected.keys()
    assert all(torch.equal(original[name], expected[name]) for name in expected)
    back = from_segment_anything(original)
    assert back.keys() == ours.state_dict().keys()
    assert "image_encoder.blocks.1.attn.rel_pos_h" in original
    assert "image_encoder.neck.3.weight" in original
