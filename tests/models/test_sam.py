import pytest
import torch
from torch import Tensor
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from palpate.errors import PromptError
from palpate.models import sam
from palpate.models.promptable import ImageEmbedding, PromptBatch
from palpate.models.sam import SamPromptDecoder, from_segment_anything, to_segment_anything

SIZE, GRID, CHANNELS = 64, 16, 32


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def decoder() -> SamPromptDecoder:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        decoder = SamPromptDecoder(canvas_size=SIZE, grid_stride=4, channels=CHANNELS, heads=2, mlp_channels=32)
    return decoder.eval()


@pytest.fixture
def reference(decoder: SamPromptDecoder) -> SamModel:
    """transformers' own SAM with the same weights, and the epsilon that SAM was trained with."""
    model = SamModel(
        SamConfig(
            vision_config=SamVisionConfig(
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                global_attn_indexes=[],
                image_size=SIZE,
                patch_size=4,
                output_channels=CHANNELS,
                num_pos_feats=CHANNELS // 2,
            ),
            prompt_encoder_config=SamPromptEncoderConfig(hidden_size=CHANNELS, image_size=SIZE, patch_size=4),
            mask_decoder_config=SamMaskDecoderConfig(
                hidden_size=CHANNELS,
                num_attention_heads=2,
                mlp_dim=32,
                iou_head_hidden_dim=CHANNELS,
                layer_norm_eps=1e-5,
            ),
        )
    ).eval()
    model.prompt_encoder.load_state_dict(decoder.prompt_encoder.state_dict())
    model.mask_decoder.load_state_dict(decoder.mask_decoder.state_dict())
    model.shared_image_embedding.positional_embedding.data = (
        decoder.prompt_encoder.shared_embedding.positional_embedding.clone()
    )
    return model


def embedding(images: int = 2) -> ImageEmbedding:
    return ImageEmbedding(features=draw(images, CHANNELS, GRID, GRID, seed=7))


def batch(objects: int, *, box: bool = False, points: int = 0, mask: bool = False) -> PromptBatch:
    corners = draw(objects, 2, 2, seed=2).sort(dim=1).values.reshape(objects, 4) * SIZE
    labels = (draw(objects, points, seed=4) > 0.5).long()
    return PromptBatch(
        image_index=torch.arange(objects) % 2,
        boxes=corners if box else None,
        points=draw(objects, points, 2, seed=3) * SIZE if points else None,
        point_labels=labels if points else None,
        masks=20 * draw(objects, 1, SIZE, SIZE, seed=5) - 10 if mask else None,
    )


def some(prompts: PromptBatch, rows: slice) -> PromptBatch:
    parts = (prompts.image_index, prompts.boxes, prompts.points, prompts.point_labels, prompts.masks)
    return PromptBatch(*(None if part is None else part[rows] for part in parts))


KINDS = {
    "box": {"box": True},
    "one point": {"points": 1},
    "points": {"points": 4},
    "points and box": {"points": 3, "box": True},
    "mask": {"mask": True},
    "box and mask": {"box": True, "mask": True},
    "everything": {"points": 2, "box": True, "mask": True},
}


@pytest.mark.parametrize("multimask_output", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_transformers_sam(
    decoder: SamPromptDecoder, reference: SamModel, kind: str, multimask_output: bool
) -> None:
    seen, prompts = embedding(), batch(3, **KINDS[kind])
    with torch.inference_mode():
        ours = decoder.decode(seen, prompts, multimask_output=multimask_output)
        for i in range(3):
            one = some(prompts, slice(i, i + 1))
            theirs = reference(
                image_embeddings=seen.features[one.image_index],
                input_boxes=None if one.boxes is None else one.boxes[:, None],
                input_points=None if one.points is None else one.points[:, None],
                input_labels=None if one.point_labels is None else one.point_labels[:, None],
                input_masks=one.masks,
                multimask_output=multimask_output,
            )
            torch.testing.assert_close(ours.logits[i], theirs.pred_masks[0, 0], rtol=0, atol=1e-4)
            torch.testing.assert_close(ours.predicted_iou[i], theirs.iou_scores[0, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "tokens"), [("box", 2), ("one point", 2), ("points", 5), ("points and box", 5), ("everything", 4)]
)
def test_a_prompt_makes_as_many_tokens_as_sam_was_trained_on(
    decoder: SamPromptDecoder, monkeypatch: pytest.MonkeyPatch, kind: str, tokens: int
) -> None:
    counted: list[int] = []
    attend = decoder.mask_decoder.transformer.forward

    def count(*, point_embeddings: Tensor, **others: object) -> object:
        counted.append(point_embeddings.shape[2] - 5)  # one token of its own for the IoU, four for masks
        return attend(point_embeddings=point_embeddings, **others)

    monkeypatch.setattr(decoder.mask_decoder.transformer, "forward", count)
    with torch.inference_mode():
        decoder.decode(embedding(), batch(1, **KINDS[kind]))
    assert counted == [tokens]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multimask", [False, True])
def test_masks_are_those_of_transformers_own_decoder(decoder: SamPromptDecoder, kind: str, multimask: bool) -> None:
    seen, prompts = embedding(), batch(2, **KINDS[kind])
    with torch.inference_mode():
        found = decoder.decode(seen, prompts, multimask_output=multimask)
        sparse, dense = decoder.prompt_encoder(
            input_points=None if prompts.points is None else prompts.points[:, None],
            input_labels=None if prompts.point_labels is None else prompts.point_labels[:, None],
            input_boxes=None if prompts.boxes is None else prompts.boxes[:, None],
            input_masks=prompts.masks,
        )
        logits, ious = decoder.mask_decoder(
            image_embeddings=seen.features[prompts.image_index],
            image_positional_embeddings=decoder.grid_positions().expand(2, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense.expand(2, -1, -1, -1),
            multimask_output=multimask,
        )
    torch.testing.assert_close(found.logits, logits[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.predicted_iou, ious[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_many_objects_are_what_each_would_be_alone(
    decoder: SamPromptDecoder, monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int
) -> None:
    monkeypatch.setattr(sam, "OBJECTS_AT_ONCE", at_once)
    monkeypatch.setattr(sam, "OBJECTS_AT_ONCE_ON_CPU", at_once)
    seen, prompts = embedding(), batch(5, **KINDS[kind])
    with torch.inference_mode():
        together = decoder.decode(seen, prompts)
        alone = [decoder.decode(seen, some(prompts, slice(i, i + 1))) for i in range(5)]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        together.predicted_iou, torch.cat([one.predicted_iou for one in alone]), rtol=0, atol=1e-5
    )


def test_one_objects_mask_prompt_does_not_leak_into_another(
    decoder: SamPromptDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam, "OBJECTS_AT_ONCE_ON_CPU", 8)
    seen, prompts = embedding(), batch(3, box=True, mask=True)
    masks = prompts.masks.clone()
    masks[1] = -masks[1]
    changed = PromptBatch(prompts.image_index, prompts.boxes, masks=masks)
    with torch.inference_mode():
        moved = (decoder.decode(seen, prompts).logits - decoder.decode(seen, changed).logits).abs().amax((1, 2, 3))
    assert moved[0] < 1e-5
    assert moved[2] < 1e-5
    assert moved[1] > 1e-3


def test_features_follow_the_image_index(decoder: SamPromptDecoder) -> None:
    seen, prompts = embedding(), batch(1, box=True)
    swapped = ImageEmbedding(features=seen.features.flip(0))
    other = PromptBatch(image_index=torch.tensor([1]), boxes=prompts.boxes)
    with torch.inference_mode():
        assert torch.equal(decoder.decode(seen, prompts).logits, decoder.decode(swapped, other).logits)


def test_numpy_and_whole_numbers_are_taken(decoder: SamPromptDecoder) -> None:
    seen, prompts = embedding(), batch(2, points=2)
    plain = PromptBatch(
        image_index=prompts.image_index.numpy().astype("int32"),
        points=prompts.points.round().to(torch.int16).numpy(),
        point_labels=prompts.point_labels.float().numpy(),
    )
    rounded = PromptBatch(prompts.image_index, points=prompts.points.round(), point_labels=prompts.point_labels)
    with torch.inference_mode():
        assert torch.equal(decoder.decode(seen, plain).logits, decoder.decode(seen, rounded).logits)


def test_no_objects_give_no_masks(decoder: SamPromptDecoder) -> None:
    prediction = decoder.decode(embedding(), batch(0, box=True), multimask_output=True)
    assert prediction.logits.shape == (0, 3, SIZE, SIZE)
    assert prediction.predicted_iou.shape == (0, 3)


def test_a_batch_without_any_prompt_is_refused(decoder: SamPromptDecoder) -> None:
    with pytest.raises(PromptError, match="at least one"):
        decoder.decode(embedding(), batch(2))
    no_points = PromptBatch(torch.zeros(1), points=torch.zeros(1, 0, 2), point_labels=torch.zeros(1, 0))
    with pytest.raises(PromptError, match="at least one"):
        decoder.decode(embedding(), no_points)


@pytest.mark.parametrize(
    ("prompts", "complaint"),
    [
        (PromptBatch(torch.tensor([2]), torch.zeros(1, 4)), r"image_index must lie in 0\.\.1"),
        (PromptBatch(torch.tensor([-1]), torch.zeros(1, 4)), r"image_index must lie in 0\.\.1"),
        (PromptBatch(torch.tensor([0]), torch.zeros(2, 4)), r"boxes .* \(1, 4\), got \(2, 4\)"),
        (PromptBatch(torch.tensor([0]), torch.full((1, 4), torch.nan)), "boxes must be finite"),
        (PromptBatch(torch.tensor([0]), points=torch.zeros(1, 2, 2)), "go together"),
        (
            PromptBatch(torch.tensor([0]), points=torch.zeros(1, 2, 2), point_labels=torch.zeros(1, 3)),
            r"point_labels .* \(1, 2\), got \(1, 3\)",
        ),
        (
            PromptBatch(torch.tensor([0]), points=torch.zeros(1, 2, 2), point_labels=torch.tensor([[1, 2]])),
            r"got \[1, 2\]",
        ),
        (PromptBatch(torch.tensor([0]), masks=torch.zeros(1, 1, 16, 16)), r"masks .* \(1, 1, 64, 64\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(decoder: SamPromptDecoder, prompts: PromptBatch, complaint: str) -> None:
    with pytest.raises(PromptError, match=complaint):
        decoder.decode(embedding(), prompts)


def test_positions_keep_full_precision_under_autocast(decoder: SamPromptDecoder) -> None:
    seen, prompts = embedding(), batch(1, box=True)
    with torch.inference_mode():
        exact, _ = decoder.prompt_encoder(None, None, prompts.boxes[:, None], None)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded, _ = decoder.prompt_encoder(None, None, prompts.boxes[:, None], None)
            logits = decoder.decode(seen, prompts).logits
        captured: list[Tensor] = []
        decoder.prompt_encoder.register_forward_hook(lambda _module, _inputs, output: captured.append(output[0]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoder.decode(seen, prompts)
    assert logits.shape == (1, 1, SIZE, SIZE)
    assert not torch.equal(exact, rounded)  # what would happen
    assert torch.equal(exact, captured[0])


def test_two_way_blocks_have_the_epsilon_sam_was_trained_with(decoder: SamPromptDecoder) -> None:
    epsilons = {
        name: module.eps
        for name, module in decoder.mask_decoder.transformer.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
    }
    assert len(epsilons) == 2 * 4 + 1
    assert set(epsilons.values()) == {1e-5}
    assert decoder.mask_decoder.upscale_layer_norm.eps == 1e-6


def test_the_attention_is_chosen_so_that_transformers_does_not_warn(decoder: SamPromptDecoder) -> None:
    assert decoder.mask_decoder.config._attn_implementation == "sdpa"


def test_nothing_trains_the_random_directions_of_positions(decoder: SamPromptDecoder) -> None:
    assert not [name for name, _ in decoder.named_parameters() if "positional_embedding" in name]
    assert "prompt_encoder.shared_embedding.positional_embedding" in decoder.state_dict()


def test_names_go_to_segment_anything_and_come_back(decoder: SamPromptDecoder) -> None:
    ours = {f"prompt_decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    ours["image_encoder.neck.0.weight"] = torch.zeros(1)
    theirs = to_segment_anything(ours)
    assert "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias" in theirs
    assert "mask_decoder.transformer.layers.1.norm4.weight" in theirs
    assert "prompt_encoder.mask_downscaling.6.weight" in theirs
    assert "image_encoder.neck.0.weight" in theirs
    assert list(from_segment_anything(theirs)) == list(ours)
