"""SAM 2 as a promptable model, and in the rooms above: adapters, training, sessions, the cache of embeddings."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image as PILImage
from torch import Tensor

import tiny_sam2
from palpate import Box, Image, Points
from palpate.datasets import open_dataset
from palpate.errors import ImageError, PromptError, WeightsError
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.inference.runtimes.torch import TorchRuntime
from palpate.inference.session import Session
from palpate.models import adapters, catalogue, sam2, weights
from palpate.models.cards import AdapterCard, Trained
from palpate.models.promptable import ImageEmbedding, PromptableModel, PromptBatch, PromptSupport
from palpate.models.sam2 import SAM2, to_sam2
from palpate.models.weights import content_hash, encoder_hash
from palpate.training.finetune import finetune
from palpate.training.recipe import recipe_from
from phantoms import picture, rectangle
from tiny_sam2 import CHANNELS, SIDE

MASK = SIDE // 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> SAM2:
    return tiny_sam2.tiny_sam2()


@pytest.fixture(scope="module")
def seen(model: SAM2) -> ImageEmbedding:
    with torch.inference_mode():
        return model.encode(draw(2, 3, SIDE, SIDE, seed=7))


def batch(objects: int, *, box: bool = False, points: int = 0, mask: bool = False) -> PromptBatch:
    return PromptBatch(
        image_index=torch.arange(objects) % 2,
        boxes=draw(objects, 2, 2, seed=2).sort(dim=1).values.reshape(objects, 4) * SIDE if box else None,
        points=draw(objects, points, 2, seed=3) * SIDE if points else None,
        point_labels=(draw(objects, points, seed=4) > 0.5).long() if points else None,
        masks=20 * draw(objects, 1, MASK, MASK, seed=5) - 10 if mask else None,
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
    "everything": {"points": 2, "box": True, "mask": True},
}


class TestModel:
    def test_it_keeps_the_contract(self, model: SAM2) -> None:
        assert isinstance(model, PromptableModel)

    @pytest.mark.parametrize(
        ("kind", "tokens"),
        [("box", 3), ("one point", 2), ("points", 5), ("points and box", 6), ("mask", 0), ("everything", 5)],
    )
    def test_a_prompt_makes_as_many_tokens_as_in_sam2s_own_predictor(self, model: SAM2, kind: str, tokens: int) -> None:
        made = batch(1, **KINDS[kind])
        with torch.inference_mode():
            sparse, _ = model.prompt_decoder.prompt_embeddings(
                boxes=made.boxes, points=made.points, point_labels=made.point_labels, masks=made.masks
            )
        assert (0 if sparse is None else sparse.shape[1]) == tokens

    @pytest.mark.parametrize("at_once", [1, 2, 8])
    @pytest.mark.parametrize("kind", KINDS)
    def test_many_objects_are_what_each_would_be_alone(
        self, model: SAM2, seen: ImageEmbedding, monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int
    ) -> None:
        monkeypatch.setattr(sam2, "OBJECTS_AT_ONCE_ON_CPU", at_once)
        prompts = batch(5, **KINDS[kind])
        with torch.inference_mode():
            together = model.decode(seen, prompts)
            alone = [model.decode(seen, some(prompts, slice(i, i + 1))) for i in range(5)]
        for name in ("logits", "predicted_iou", "object_logits"):
            each = torch.cat([getattr(one, name) for one in alone])
            torch.testing.assert_close(getattr(together, name), each, rtol=1e-6, atol=1e-4)

    def test_all_three_maps_follow_the_image_index(self, model: SAM2, seen: ImageEmbedding) -> None:
        prompts = batch(1, box=True)
        other = PromptBatch(image_index=torch.tensor([1]), boxes=prompts.boxes)
        swapped = ImageEmbedding(seen.features.flip(0), tuple(level.flip(0) for level in seen.levels))
        with torch.inference_mode():
            here, there = model.decode(seen, prompts).logits, model.decode(seen, other).logits
            assert torch.equal(model.decode(swapped, other).logits, here)
            for level in (0, 1):  # each of the two fine levels is read
                mixed = [seen.levels[0], seen.levels[1]]
                mixed[level] = mixed[level].flip(0)
                assert not torch.allclose(
                    model.decode(ImageEmbedding(seen.features, tuple(mixed)), prompts).logits, here, atol=1e-3
                )
        assert not torch.allclose(here, there, atol=1e-3)

    def test_whether_there_is_an_object_is_told_for_each(self, model: SAM2, seen: ImageEmbedding) -> None:
        with torch.inference_mode():
            found = model.decode(seen, batch(3, box=True)).object_logits
        assert found.shape == (3,)
        assert len(found.unique()) == 3

    def test_predicted_iou_is_a_share(self, model: SAM2, seen: ImageEmbedding) -> None:
        loud = copy.deepcopy(model)
        with torch.inference_mode():
            loud.prompt_decoder.mask_decoder.iou_prediction_head.proj_out.weight.mul_(50)
            found = loud.decode(seen, batch(4, points=1), multimask_output=True).predicted_iou
        assert found.min() < 0.05
        assert found.max() > 0.95
        assert 0 <= found.min() <= found.max() <= 1

    def test_no_objects_give_no_masks(self, model: SAM2, seen: ImageEmbedding) -> None:
        found = model.decode(seen, batch(0, box=True), multimask_output=True)
        assert found.logits.shape == (0, 3, MASK, MASK)
        assert found.predicted_iou.shape == (0, 3)
        assert found.object_logits.shape == (0,)

    def test_numpy_and_whole_numbers_are_taken(self, model: SAM2, seen: ImageEmbedding) -> None:
        prompts = batch(2, points=2)
        plain = PromptBatch(
            image_index=prompts.image_index.numpy().astype("int32"),
            points=prompts.points.round().to(torch.int16).numpy(),
            point_labels=prompts.point_labels.float().numpy(),
        )
        rounded = PromptBatch(prompts.image_index, points=prompts.points.round(), point_labels=prompts.point_labels)
        held = ImageEmbedding(seen.features.numpy(), tuple(level.numpy() for level in seen.levels))
        with torch.inference_mode():
            assert torch.equal(model.decode(held, plain).logits, model.decode(seen, rounded).logits)

    def test_a_canvas_of_another_size_is_refused(self, model: SAM2) -> None:
        with pytest.raises(ImageError, match=rf"\(image, 3, {SIDE}, {SIDE}\), got \(1, 3, 64, 64\)"):
            model.encode(torch.zeros(1, 3, 64, 64))

    def test_another_models_embedding_is_refused(self, model: SAM2, seen: ImageEmbedding) -> None:
        with pytest.raises(ImageError, match="two fine levels, got 0"):
            model.decode(ImageEmbedding(seen.features), batch(1, box=True))

    def test_a_batch_without_any_prompt_is_refused(self, model: SAM2, seen: ImageEmbedding) -> None:
        with pytest.raises(PromptError, match="at least one"):
            model.decode(seen, batch(2))
        no_points = PromptBatch(torch.zeros(1), points=torch.zeros(1, 0, 2), point_labels=torch.zeros(1, 0))
        with pytest.raises(PromptError, match="at least one"):
            model.decode(seen, no_points)

    @pytest.mark.parametrize(
        ("prompts", "complaint"),
        [
            (PromptBatch(torch.tensor([2]), torch.zeros(1, 4)), r"image_index must lie in 0\.\.1"),
            (PromptBatch(torch.tensor([0]), torch.zeros(2, 4)), r"boxes .* \(1, 4\), got \(2, 4\)"),
            (PromptBatch(torch.tensor([0]), torch.full((1, 4), torch.nan)), "boxes must be finite"),
            (PromptBatch(torch.tensor([0]), points=torch.zeros(1, 2, 2)), "go together"),
            (
                PromptBatch(torch.tensor([0]), points=torch.zeros(1, 2, 2), point_labels=torch.tensor([[1, 2]])),
                r"got \[1, 2\]",
            ),
            (
                PromptBatch(torch.tensor([0]), masks=torch.zeros(1, 1, SIDE, SIDE)),
                rf"masks .* \(1, 1, {MASK}, {MASK}\)",
            ),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(
        self, model: SAM2, seen: ImageEmbedding, prompts: PromptBatch, complaint: str
    ) -> None:
        with pytest.raises(PromptError, match=complaint):
            model.decode(seen, prompts)

    def test_positions_keep_full_precision_under_autocast(self, model: SAM2) -> None:
        prompts = batch(1, box=True)
        with torch.inference_mode():
            exact, _ = model.prompt_decoder.prompt_embeddings(boxes=prompts.boxes)
            grid = model.prompt_decoder.grid_positions()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                held, _ = model.prompt_decoder.prompt_embeddings(boxes=prompts.boxes)
                rounded, _ = model.prompt_decoder.prompt_encoder(None, None, prompts.boxes[:, None], None)
                captured: list[Tensor] = []
                hook = model.prompt_decoder.mask_decoder.transformer.register_forward_pre_hook(
                    lambda _module, _args, given: captured.append(given["image_positional_embeddings"]),
                    with_kwargs=True,
                )
                found = model.decode(model.encode(draw(1, 3, SIDE, SIDE)), prompts)
                hook.remove()
        assert not torch.equal(exact, rounded[:, 0])  # what would happen
        assert torch.equal(exact, held)
        assert torch.equal(captured[0], grid)
        assert found.logits.shape == (1, 1, MASK, MASK)

    def test_nothing_trains_the_random_directions_of_positions(self, model: SAM2) -> None:
        assert not [name for name, _ in model.named_parameters() if "positional_embedding" in name]
        assert [name for name in model.state_dict() if "positional_embedding" in name] == [
            "prompt_decoder.prompt_encoder.shared_embedding.positional_embedding"
        ]

    def test_attention_is_chosen_so_that_it_is_fast(self, model: SAM2) -> None:
        assert model.prompt_decoder.mask_decoder.config._attn_implementation == "sdpa"
        assert model.image_encoder.trunk.config._attn_implementation == "sdpa"

    def test_the_single_mask_never_gives_way_where_gradients_flow(self, model: SAM2, seen: ImageEmbedding) -> None:
        held = ImageEmbedding(seen.features.clone(), tuple(level.clone() for level in seen.levels))
        prompts = batch(3, box=True)
        with torch.no_grad():
            best = model.decode(held, prompts)
        trained = model.decode(held, prompts)
        switched_off = copy.deepcopy(model)
        switched_off.prompt_decoder.dynamic_multimask = False
        with torch.no_grad():
            single = switched_off.decode(held, prompts)
        torch.testing.assert_close(trained.logits.detach(), single.logits, rtol=1e-6, atol=1e-4)
        assert not torch.allclose(best.logits, single.logits, atol=1e-2)


MOVING = {
    "decoder": (Trained(("decoder",)), ("prompt_decoder.mask_decoder.",)),
    "prompt encoder": (Trained(("prompt-encoder",)), ("prompt_decoder.prompt_encoder.",)),
    "biases and norms": (Trained(("bias-norm",)), ("prompt_decoder.mask_decoder.",)),
    "biases and norms, both": (
        Trained(("bias-norm",), where=("decoder", "encoder")),
        ("prompt_decoder.mask_decoder.", "image_encoder."),
    ),
    "lora": (Trained(("lora",)), ("prompt_decoder.mask_decoder.",)),
    "lora, both": (
        Trained(("lora",), where=("decoder", "encoder")),
        ("prompt_decoder.mask_decoder.", "image_encoder.trunk."),
    ),
    "bottlenecks, both": (
        Trained(("adapter",), where=("decoder", "encoder"), width=4),
        ("prompt_decoder.mask_decoder.", "image_encoder.trunk."),
    ),
    "last blocks": (
        Trained(("last-blocks",), blocks=2),
        ("image_encoder.trunk.blocks.4.", "image_encoder.trunk.blocks.5.", "image_encoder.neck."),
    ),
    "full": (Trained(("full",)), ("prompt_decoder.", "image_encoder.")),
}


def answers(network: SAM2) -> Tensor:
    """All that the network says to a box, a point and a mask on two random canvases."""
    embedding = network.encode(draw(2, 3, SIDE, SIDE, seed=7))
    found = network.decode(embedding, batch(2, box=True, points=1, mask=True))
    assert found.object_logits is not None
    return torch.cat([found.logits.flatten(), found.predicted_iou.flatten(), found.object_logits])


@pytest.mark.parametrize("choice", MOVING)
def test_an_adapter_learns_and_comes_back_onto_a_fresh_model(model: SAM2, choice: str) -> None:
    trained, places = MOVING[choice]
    network = copy.deepcopy(model)
    torch.manual_seed(3)
    moving = adapters.trainable(network, trained)
    assert all(name.startswith(places) for name in moving)
    assert all(any(name.startswith(place) for name in moving) for place in places)
    assert trained.moves_encoder == any(name.startswith("image_encoder.") for name in moving)
    network.prompt_decoder.objects_at_once = 2
    optimiser = torch.optim.SGD(moving.values(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (-answers(network).abs().mean()).backward()
        for parameter in moving.values():
            if parameter.grad is not None and parameter.grad.norm() > 0:
                parameter.grad /= parameter.grad.norm()
        optimiser.step()
    kept = AdapterCard("mine", "tiny", "0" * 64, trained, ("box",))
    fresh = copy.deepcopy(model)
    with torch.inference_mode():
        before = answers(fresh)
    adapters.applied(fresh, adapters.extracted(network, kept))
    with torch.inference_mode():
        after, meant = answers(fresh), answers(network)
    torch.testing.assert_close(after, meant, rtol=1e-6, atol=1e-4)  # logits of hundreds
    assert not torch.allclose(after, before, atol=1e-2)
    same = encoder_hash(fresh) == encoder_hash(model)
    assert same != trained.moves_encoder  # embeddings may be kept exactly as long as the encoder stands still


def test_lora_goes_beside_queries_and_values_of_all_seven_attentions(model: SAM2) -> None:
    network = copy.deepcopy(model)
    moving = adapters.trainable(network, Trained(("lora",)))
    layers = {name.partition(".lora_")[0] for name in moving}
    assert len(layers) == 7 * 2
    assert {layer.rpartition(".")[2] for layer in layers} == {"q_proj", "v_proj"}


def test_the_levels_belong_to_the_encoder(model: SAM2) -> None:
    # If they moved with the decoder, embeddings that were kept would be those of another model, under the same name.
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.image_encoder.conv_s0.weight.add_(1)
    assert encoder_hash(changed) != encoder_hash(model)
    decoder = adapters.trainable(copy.deepcopy(model), Trained(("decoder", "prompt-encoder")))
    assert not [name for name in decoder if "conv_s" in name or "no_mem" in name]


# --- Files ------------------------------------------------------------------------------------------------------------


def memory() -> dict[str, Tensor]:
    """What a file holds for videos."""
    return {
        "maskmem_tpos_enc": torch.ones(7, 1, 1, 8),
        "memory_attention.norm.weight": torch.ones(32),
        "no_obj_embed_spatial": torch.ones(1, 8),
    }


def test_all_files_with_the_same_weights_are_the_same_model(tmp_path: Path, model: SAM2) -> None:
    image = {name: tensor.clone() for name, tensor in to_sam2(model.state_dict()).items()}
    torch.save({"model": image | memory()}, tmp_path / "released.pt")
    safetensors.torch.save_file(image, tmp_path / "image_part.safetensors")
    theirs = tiny_sam2.reference(copy.deepcopy(model), shaken=False).state_dict()
    safetensors.torch.save_file({name: t.clone() for name, t in theirs.items()}, tmp_path / "transformers.safetensors")
    found = [weights.load(tiny_sam2.card(), weights=path) for path in sorted(tmp_path.iterdir())]
    assert len(found) == 3
    assert {one.weights_hash for one in found} == {content_hash(image)}
    assert {one.encoder_hash for one in found} == {encoder_hash(model)}


def test_what_is_kept_of_a_released_file_is_its_image_part(
    tmp_path: Path, model: SAM2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "home"))
    image = to_sam2(model.state_dict())
    torch.save({"model": image | memory()}, tmp_path / "released.pt")
    kept = weights.add(tiny_sam2.card(), tmp_path / "released.pt")
    assert safetensors.torch.load_file(kept).keys() == image.keys()
    assert weights.load(tiny_sam2.card()).weights_hash == content_hash(image)


@pytest.mark.parametrize("name", ["sam2.1-tiny", "sam2-tiny", "medsam2"])
def test_the_file_of_another_size_is_refused(tmp_path: Path, model: SAM2, name: str) -> None:
    torch.save({"model": to_sam2(model.state_dict())}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=rf"of a size that was never released; {name} needs its own weights"):
        weights.load(name, weights=tmp_path / "other.pt")


# --- The rooms above --------------------------------------------------------------------------------------------------


def session(model: SAM2, **options: Any) -> Session:
    prompts = PromptSupport(trained=("box", "points"), accepted=("mask",))
    runtime = TorchRuntime(model, "tiny", "0" * 64, encoder_hash(model), prompts, torch.device("cpu"))
    return Session(runtime, **options)


SHAPE = (60, 90)
SCENE = picture((rectangle(SHAPE, 20, 10, 55, 40), 255))


@pytest.mark.parametrize("prompt", [Box(20, 10, 55, 40), Points([(30, 25)]), Points([(30, 25), (80, 50)], [1, 0])])
def test_a_session_answers_a_box_and_points(model: SAM2, prompt: Box | Points) -> None:
    made = session(model)
    made.set_image(Image(SCENE))
    found = made.predict(prompt)
    assert found.mask.shape == SHAPE
    # What a session does, by hand.
    canvas_prompt = model.frame.prompts([prompt], SHAPE)
    one = {name: None if part is None else torch.from_numpy(part)[None] for name, part in vars(canvas_prompt).items()}
    with torch.inference_mode():
        embedding = model.encode(torch.from_numpy(model.frame.canvas(made.slices[0]))[None])
        answer = model.decode(
            embedding, PromptBatch(torch.tensor([0]), one["box"], one["points"], one["point_labels"], one["mask"])
        )
    expected = model.frame.image(answer.logits[0, 0].numpy(), SHAPE) > 0
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(np.asarray(found.mask), expected)


def test_the_cache_keeps_all_three_maps(model: SAM2, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    answers: list[np.ndarray] = []
    for network in (model, _that_must_not_encode(model)):
        made = session(network, cache=cache)
        made.set_image(Image(SCENE))
        answers.append(np.asarray(made.predict(Box(20, 10, 55, 40)).mask))
    assert cache.use().embeddings == 1
    assert np.array_equal(*answers)
    (path,) = tmp_path.glob("*/*.safetensors")
    kept = safetensors.torch.load_file(path)
    assert [tuple(kept[name].shape) for name in sorted(kept)] == [
        (1, CHANNELS, SIDE // 16, SIDE // 16),
        (1, CHANNELS // 4, SIDE // 8, SIDE // 8),
        (1, CHANNELS // 8, SIDE // 4, SIDE // 4),
    ]


def _that_must_not_encode(model: SAM2) -> SAM2:
    idle = copy.deepcopy(model)

    def refuse(*_: object) -> None:
        raise AssertionError("an image that is in the cache was encoded again")

    idle.encode = refuse
    return idle


def phantoms(folder: Path, count: int = 3) -> Path:
    lines = ["image,label,subject"]
    for number in range(count):
        labels = rectangle((40, 50), 8 + 3 * number, 6, 30 + 3 * number, 30).astype(np.uint8)
        PILImage.fromarray(np.where(labels, 220, 40).astype(np.uint8)).save(folder / f"{number}.png")
        PILImage.fromarray(labels).save(folder / f"{number}_label.png")
        lines.append(f"{number}.png,{number}_label.png,s{number}")
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("parts", [("decoder", "prompt-encoder"), ("full",)], ids=["frozen encoder", "all of it"])
def test_training_teaches_it_from_kept_embeddings_or_through_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(catalogue, "CARDS", (*catalogue.CARDS, tiny_sam2.card()))
    state = to_sam2(tiny_sam2.tiny_sam2().state_dict())
    path = catalogue.stored(tiny_sam2.NAME)
    path.parent.mkdir(parents=True)
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    recipe: dict[str, Any] = {
        "model": tiny_sam2.NAME,
        "trained": {"parts": list(parts)},
        "epochs": 1,
        "steps": 2,
        "batch": 2,
        "data": {"path": str(phantoms(tmp_path)), "train": ""},
        "validation": {"overlays": 0},
    }
    cache = tmp_path / "cache"
    cases = (list(open_dataset(recipe["data"]["path"])), [])  # nothing to validate with: the last weights are kept
    done = finetune(recipe_from(recipe), tmp_path / "run", device="cpu", threads=1, cache=cache, cases=cases)
    assert done.steps == 2
    learned = adapters.read(done.adapter)
    names = {name.partition(":")[2] for name in learned.tensors}
    frozen = "full" not in parts
    assert any(name.startswith("image_encoder.") for name in names) != frozen
    assert learned.card.base_sha256 == content_hash(state)
    before = tiny_sam2.tiny_sam2().state_dict()
    moved = {name for name in names if not torch.equal(learned.tensors[f"replaced:{name}"], before[name])}
    assert "prompt_decoder.mask_decoder.upscale_conv2.weight" in moved
    if frozen:
        kept = [EmbeddingCache(cache).get(file.stem) for file in cache.glob("*/*.safetensors")]
        assert len(kept) == 3
        assert all(one is not None and len(one.levels) == 2 for one in kept)
    else:
        assert {"image_encoder.conv_s0.weight", "image_encoder.no_mem_embed"} <= moved
    # Folded in, it is a file of SAM 2 again: the part for images.
    whole = tmp_path / "whole.safetensors"
    merged = weights.merge(done.adapter, whole)
    assert safetensors.torch.load_file(whole).keys() == state.keys()
    put_on = weights.load(tiny_sam2.NAME, adapter=done.adapter)
    assert merged == put_on.weights_hash == weights.load(tiny_sam2.NAME, weights=whole).weights_hash
    assert put_on.prompts.trained == ("box", "points")
