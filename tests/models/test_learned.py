"""Learned prompts and a person's go into one decoder by one rule; and the file that holds them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from palpate.errors import OutputError, SettingError, WeightsError
from palpate.models import cards
from palpate.models.adapters import trainable
from palpate.models.cards import LearnedCard, Trained, Variant
from palpate.models.learned import Finder, Learned, finder_for, put_on, read, save, tensors_of
from palpate.models.localiser import peak_boxes
from palpate.models.prompt_predictor import Items, LearnedPrompts
from palpate.models.promptable import LearnedClass, PromptBatch
from tiny_networks import tiny_lite_medsam, tiny_mobile_sam, tiny_sam
from tiny_sam2 import tiny_sam2

BASES = {"lite-medsam": tiny_lite_medsam, "mobile-sam": tiny_mobile_sam, "sam": tiny_sam, "sam2": tiny_sam2}
CLASSES = (LearnedClass("liver", 1), LearnedClass("spleen", 4))


def card(**changes: Any) -> LearnedCard:
    settings = {
        "name": "organs",
        "base": "tiny",
        "base_sha256": "",
        "classes": CLASSES,
        "variant": "linear",
        "tokens": 4,
        "trained": None,
        "images": 10,
        **changes,
    }
    return LearnedCard(**settings)


def ready(base: str, **changes: Any) -> tuple[nn.Module, Finder, Any]:
    """A base model, a finder on it, and the embedding of two images, with levels."""
    network = BASES[base]()
    if hasattr(network, "keep_levels"):
        network.keep_levels = True  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    torch.manual_seed(1)
    finder = finder_for(network, card(**changes)).eval()
    side = network.frame.size
    with torch.no_grad():
        embedding = network.encode(torch.rand(2, 3, side, side))
    return network, finder, embedding


def boxes(items: int, side: int) -> PromptBatch:
    corners = np.tile(np.array([0.2, 0.3, 0.7, 0.6], dtype=np.float32) * side, (items, 1))
    return PromptBatch(image_index=np.arange(items), boxes=corners)


class TestEveryBase:
    @pytest.mark.parametrize("variant", ["localiser", "linear", "high-res"])
    @pytest.mark.parametrize("base", sorted(BASES))
    def test_every_class_on_every_image_has_a_mask_and_a_score(self, base: str, variant: str) -> None:
        network, finder, embedding = ready(base, variant=variant)
        with torch.no_grad():
            found, said = finder.find(embedding)
        grid = network.frame.mask_size  # pyright: ignore[reportAttributeAccessIssue]
        assert found.logits.shape == (4, grid, grid)
        assert found.object_logits.shape == found.predicted_iou.shape == (4,)
        assert said.mask_logits.shape == (4, 1, grid, grid)

    @pytest.mark.parametrize("base", sorted(BASES))
    def test_the_learned_box_is_two_tokens(self, base: str) -> None:
        _, finder, embedding = ready(base)
        features, levels = finder.held(embedding)
        items = Items.every(2, 2)
        said = finder.learned(features, levels, items)
        sparse, _ = finder._embedded(said, None)  # pyright: ignore[reportPrivateUsage]
        assert sparse is not None
        assert sparse.shape[1] == 4  # two of the box, two free ones

    @pytest.mark.parametrize("base", sorted(BASES))
    def test_what_a_person_draws_alone_is_what_the_base_model_answers(self, base: str) -> None:
        network, finder, embedding = ready(base)
        features, levels = finder.held(embedding)
        drawn = boxes(2, network.frame.size)  # pyright: ignore[reportAttributeAccessIssue]
        items = Items(torch.arange(2), torch.zeros(2, dtype=torch.long))
        if base == "sam2":
            network.prompt_decoder.dynamic_multimask = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        with torch.no_grad():
            found = finder.answered(features, levels, items, drawn=drawn)
            usual = network.decode(embedding, drawn)  # pyright: ignore[reportCallIssue]
        # An object token that is asked besides changes what the others attend to, but for SAM 2, which always has one.
        if base == "sam2":
            assert torch.allclose(found.logits, usual.logits[:, 0], atol=1e-4)
            assert torch.allclose(found.object_logits, usual.object_logits, atol=1e-4)
        assert found.logits.shape == usual.logits[:, 0].shape


class TestTheRule:
    def test_learned_tokens_stand_before_a_persons(self) -> None:
        network, finder, embedding = ready("lite-medsam")
        features, levels = finder.held(embedding)
        said = finder.learned(features, levels, Items.every(2, 2))
        drawn = boxes(4, network.frame.size)  # pyright: ignore[reportAttributeAccessIssue]
        own, _ = finder._embedded(said, None)  # pyright: ignore[reportPrivateUsage]
        hers, _ = finder._embedded(None, drawn)  # pyright: ignore[reportPrivateUsage]
        both, _ = finder._embedded(said, drawn)  # pyright: ignore[reportPrivateUsage]
        assert own is not None
        assert hers is not None
        assert both is not None
        assert torch.equal(both, torch.cat([own, hers], dim=1))

    def test_a_persons_mask_takes_the_place_of_the_learned_one(self) -> None:
        _, finder, embedding = ready("lite-medsam")
        features, levels = finder.held(embedding)
        items = Items(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
        said = finder.learned(features, levels, items)
        masks = np.random.default_rng(0).normal(size=(1, 1, 64, 64)).astype(np.float32)
        drawn = PromptBatch(image_index=np.zeros(1, dtype=np.int64), masks=masks)
        _, hers = finder._embedded(None, drawn)  # pyright: ignore[reportPrivateUsage]
        _, both = finder._embedded(said, drawn)  # pyright: ignore[reportPrivateUsage]
        _, own = finder._embedded(said, None)  # pyright: ignore[reportPrivateUsage]
        assert torch.equal(both, hers)
        assert not torch.allclose(own, hers)

    @pytest.mark.parametrize("base", sorted(BASES))
    def test_a_localiser_asks_by_its_box_and_the_tokens_of_the_class(self, base: str) -> None:
        _, finder, embedding = ready(base, variant="localiser")
        features, levels = finder.held(embedding)
        items = Items.every(2, 2)
        said = finder.learned(features, levels, items)
        sparse, dense = finder._embedded(said, None)  # pyright: ignore[reportPrivateUsage]
        usual = PromptBatch(np.arange(4), boxes=(said.corners() * finder.decoder.canvas_size).numpy())
        boxed, no_mask = finder._embedded(None, usual)  # pyright: ignore[reportPrivateUsage]
        assert sparse is not None
        assert boxed is not None
        assert torch.allclose(sparse[:, :2], boxed[:, :2], atol=1e-5)  # unmarked, as nothing was learned yet
        assert torch.equal(sparse[:, 2:], finder.predictor.class_tokens[items.class_index])  # pyright: ignore[reportArgumentType, reportIndexIssue]
        assert torch.equal(dense.expand_as(no_mask), no_mask)

    def test_a_persons_box_takes_the_place_of_a_guessed_one(self) -> None:
        network, finder, embedding = ready("lite-medsam", variant="localiser")
        features, levels = finder.held(embedding)
        said = finder.learned(features, levels, Items.every(2, 2))
        drawn = boxes(4, network.frame.size)  # pyright: ignore[reportAttributeAccessIssue]
        hers, _ = finder._embedded(None, drawn)  # pyright: ignore[reportPrivateUsage]
        both, _ = finder._embedded(said, drawn)  # pyright: ignore[reportPrivateUsage]
        assert hers is not None
        assert both is not None
        assert torch.equal(both, torch.cat([said.tokens, hers], dim=1))

    def test_a_click_says_which_of_two_places_is_meant(self) -> None:
        _, finder, _ = ready("lite-medsam", variant="localiser")
        maps = torch.full((2, 1, 16, 16), -9.0)
        maps[:, 0, 2:10, 2:10] = 2.0  # heavy
        maps[:, 0, 12:14, 8:14] = 1.0
        said = LearnedPrompts(peak_boxes(maps), torch.zeros(2, 2, 32), maps)
        size = finder.decoder.canvas_size
        clicks = np.array([[[0.6, 0.8], [0.2, 0.2]], [[0.6, 0.8], [0.2, 0.2]]], dtype=np.float32) * size
        labels = np.array([[1, 0], [0, 1]])  # yes and no, no and yes
        aimed = finder.aimed(said, PromptBatch(np.arange(2), points=clicks, point_labels=labels))
        assert aimed.boxes.tolist() == [[0.5, 0.75, 0.3125, 0.0625], [0.125, 0.125, 0.4375, 0.4375]]

    def test_the_map_has_a_say_in_whether_anything_is_there_once_it_is_trained(self) -> None:
        _, finder, embedding = ready("lite-medsam", variant="localiser")
        features, levels = finder.held(embedding)
        items = Items.every(2, 2)
        said = finder.learned(features, levels, items)
        high = torch.zeros_like(said.mask_logits)
        high[:, 0, 3, 5] = torch.tensor([7.0, 1.0, 3.0, 5.0])
        said = replace(said, mask_logits=high)
        with torch.no_grad():
            heads = finder.train().answered(features, levels, items, learned=said).object_logits
            both = finder.eval().answered(features, levels, items, learned=said).object_logits
        assert torch.allclose(both, (heads + torch.tensor([7.0, 1.0, 3.0, 5.0])) / 2)

    @pytest.mark.parametrize("variant", ["localiser", "linear"])
    def test_how_often_training_asked_for_what_is_there_does_not_count(self, variant: Variant) -> None:
        _, finder, embedding = ready("lite-medsam", variant=variant)
        with torch.no_grad():
            before = finder.find(embedding)[0].object_logits
            finder.presumed.fill_(1.5)
            after = finder.find(embedding)[0].object_logits
        assert torch.allclose(after, before - 1.5)

    def test_items_are_answered_alike_however_many_go_together(self) -> None:
        _, finder, embedding = ready("lite-medsam")
        with torch.no_grad():
            one_by_one, _ = finder.find(embedding)
            finder.decoder.objects_at_once = 8
            together, _ = finder.find(embedding)
        assert torch.allclose(one_by_one.logits, together.logits, atol=1e-4)

    def test_nothing_to_go_by_is_refused(self) -> None:
        _, finder, embedding = ready("lite-medsam")
        features, levels = finder.held(embedding)
        with pytest.raises(SettingError, match="nothing to go by"):
            finder.answered(features, levels, Items.every(2, 2))

    def test_sam2_keeps_its_fallback_for_people(self) -> None:
        network, finder, embedding = ready("sam2")
        finder.find(embedding)
        assert network.prompt_decoder.dynamic_multimask  # pyright: ignore[reportAttributeAccessIssue]


class TestTheFile:
    def test_it_comes_back_as_it_was(self, tmp_path: Path) -> None:
        _, finder, embedding = ready("lite-medsam", variant="localiser")
        path = tmp_path / "organs.safetensors"
        save(tensors_of(finder, tiny_lite_medsam(), card(variant="localiser"), {}), path)
        again = put_on(tiny_lite_medsam(), read(path))
        with torch.no_grad():
            assert torch.equal(again.find(embedding)[0].logits, finder.find(embedding)[0].logits)
        assert read(path).card == card(variant="localiser")

    def test_a_file_that_does_not_know_what_was_presumed_presumes_nothing(self, tmp_path: Path) -> None:
        _, finder, _ = ready("lite-medsam", variant="localiser")
        path = tmp_path / "organs.safetensors"
        save(tensors_of(finder, tiny_lite_medsam(), card(variant="localiser"), {}), path)
        older = read(path)
        del older.tensors["presumed"]
        assert float(put_on(tiny_lite_medsam(), older).presumed) == 0

    def test_the_decoder_becomes_what_it_was_trained_to_be(self, tmp_path: Path) -> None:
        trained = Trained(("lora", "mask-head"), rank=2, alpha=2)
        network = tiny_lite_medsam()
        torch.manual_seed(1)
        finder = finder_for(network, card(trained=trained)).eval()
        moving = trainable(network, trained)
        with torch.no_grad():
            for parameter in moving.values():
                parameter.add_(0.1)
            embedding = network.encode(torch.rand(1, 3, 64, 64))
        save(tensors_of(finder, network, card(trained=trained), {}), tmp_path / "f.safetensors")
        fresh = tiny_lite_medsam()
        again = put_on(fresh, read(tmp_path / "f.safetensors"))
        with torch.no_grad():
            assert torch.allclose(again.find(embedding)[0].logits, finder.find(embedding)[0].logits, atol=1e-4)

    def test_another_base_model_is_refused_and_left_as_it_was(self) -> None:
        _, finder, _ = ready("lite-medsam", variant="high-res")
        made = tensors_of(finder, tiny_lite_medsam(), card(variant="linear"), {})
        network = tiny_lite_medsam()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(WeightsError, match="do not fit the model"):
            put_on(network, made)
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())

    def test_numbers_that_are_none_are_neither_written_nor_read(self, tmp_path: Path) -> None:
        _, finder, _ = ready("lite-medsam")
        made = tensors_of(finder, tiny_lite_medsam(), card(), {})
        broken = Learned(made.card, {**made.tensors, "predictor.queries": torch.full((2, 4, 32), torch.nan)})
        with pytest.raises(OutputError, match="not finite"):
            save(broken, tmp_path / "f.safetensors")
        assert not (tmp_path / "f.safetensors").exists()
        with pytest.raises(WeightsError, match="not finite"):
            put_on(tiny_lite_medsam(), broken)

    def test_files_of_another_kind_or_time_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="`palpate learn` makes one"):
            cards.learned_card(tmp_path / "nowhere.safetensors")
        safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
        assert not cards.is_learned(tmp_path / "other.safetensors")
        with pytest.raises(WeightsError, match="holds no learned prompts"):
            cards.learned_card(tmp_path / "other.safetensors")
        (tmp_path / "cut.safetensors").write_bytes(b"\x10")
        with pytest.raises(WeightsError, match="cut short"):
            cards.learned_card(tmp_path / "cut.safetensors")
        _, finder, _ = ready("lite-medsam")
        path = tmp_path / "f.safetensors"
        save(tensors_of(finder, tiny_lite_medsam(), card(), {}), path)
        with safe_open(path, "pt") as opened:
            content = json.loads(opened.metadata()["palpate_learned_prompts"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        newer = json.dumps({**content, "format": 99, "what nobody knows": 1})
        safetensors.torch.save_file(tensors, path, metadata={"palpate_learned_prompts": newer})
        with pytest.raises(WeightsError, match="newer palpate"):
            cards.learned_card(path)
