"""Swin-LiteMedSAM as a promptable model, with a tiny network."""

from typing import Any

import numpy as np
import pytest
import torch

from palpate.errors import ImageError, PromptError
from palpate.models.catalogue import SWIN_LITE_MEDSAM
from palpate.models.frame import SWIN_LITE_MEDSAM_FRAME, CanvasPrompt, Frame
from palpate.models.lite_medsam import TinyViT
from palpate.models.promptable import ImageEmbedding, MaskPrediction, PromptBatch
from palpate.models.sam import SamPromptDecoder
from palpate.models.swin_lite_medsam import FromBox, SkipPromptDecoder, SwinLiteMedSAM
from palpate.prompts.types import Box, Points, Scribble
from tiny_networks import tiny_swin_lite_medsam

BOXES = np.array([[4, 6, 40, 44], [20, 10, 60, 30], [5, 5, 5, 5], [0, 0, 63, 63]], dtype=np.float32)


def canvases(count: int) -> torch.Tensor:
    """Noise; the last 14 columns are padding."""
    canvas = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
    canvas[..., 50:] = 0
    return canvas


def asked(model: SwinLiteMedSAM, embedding: ImageEmbedding, *places: int, **parts: Any) -> MaskPrediction:
    with torch.inference_mode():
        return model.decode(embedding, PromptBatch(np.array(places), **parts))


def embedded(model: SwinLiteMedSAM, count: int = 1) -> ImageEmbedding:
    with torch.inference_mode():
        return model.encode(canvases(count))


class TestEncoding:
    def test_an_embedding_holds_what_the_decoder_reads(self) -> None:
        embedding = embedded(tiny_swin_lite_medsam(), 2)
        assert embedding.features.shape == (2, 32, 16, 16)
        assert [level.shape for level in embedding.levels] == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 1, 64, 64)]
        assert bool(embedding.levels[-1][..., :50].all())
        assert not bool(embedding.levels[-1][..., 50:].any())

    def test_images_do_not_see_one_another(self) -> None:
        model = tiny_swin_lite_medsam()
        together, alone = embedded(model, 2), model.encode(canvases(2)[1:])
        for both, one in zip((together.features, *together.levels), (alone.features, *alone.levels), strict=True):
            torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)

    def test_another_canvas_is_refused(self) -> None:
        with pytest.raises(ImageError, match=r"\(image, 3, 64, 64\)"):
            tiny_swin_lite_medsam().encode(torch.zeros(1, 3, 32, 64))


class TestKeepingMaps:
    def test_answers_are_the_same_and_skip_connections_get_gradients(self) -> None:
        model = tiny_swin_lite_medsam()
        usual = asked(model, embedded(model, 2), 0, 1, boxes=BOXES[:2])
        model.keep_maps = True
        kept = embedded(model, 2)
        torch.testing.assert_close(asked(model, kept, 0, 1, boxes=BOXES[:2]).logits, usual.logits)
        whole = ImageEmbedding(kept.features.clone(), tuple(level.clone() for level in kept.levels))
        model.decode(whole, PromptBatch(np.array([0]), boxes=BOXES[:1])).logits.sum().backward()
        assert model.skip_neck is not None
        assert all(parameter.grad is not None for parameter in model.skip_neck.parameters())


class TestDecoding:
    def test_many_boxes_on_many_images_in_one_call_are_each_as_if_alone(self) -> None:
        """The authors' code has one box a call."""
        model = tiny_swin_lite_medsam()
        embedding = embedded(model, 2)
        model.prompt_decoder.objects_at_once = 3
        together = asked(model, embedding, 0, 1, 0, 1, boxes=BOXES)
        assert together.logits.shape == (4, 1, 64, 64)
        for i, image in enumerate((0, 1, 0, 1)):
            alone = asked(model, embedding, image, boxes=BOXES[i : i + 1])
            torch.testing.assert_close(together.logits[i], alone.logits[0], rtol=1e-3, atol=1e-4)

    def test_no_box_gives_no_mask(self) -> None:
        model = tiny_swin_lite_medsam()
        assert asked(model, embedded(model), boxes=np.zeros((0, 4), dtype=np.float32)).logits.shape == (0, 1, 64, 64)

    def test_three_candidates_if_asked(self) -> None:
        model = tiny_swin_lite_medsam()
        batch = PromptBatch(np.array([0]), boxes=BOXES[:1])
        with torch.inference_mode():
            three = model.decode(embedded(model), batch, multimask_output=True)
        assert three.logits.shape == (1, 3, 64, 64)
        assert three.predicted_iou.shape == (1, 3)

    def test_masks_are_made_from_the_encoders_maps_as_well(self) -> None:
        model = tiny_swin_lite_medsam()
        embedding = embedded(model)
        as_it_is = asked(model, embedding, 0, boxes=BOXES[:1]).logits
        for number in (0, 1):
            levels = [level.clone() for level in embedding.levels]
            levels[number] += 1
            changed = asked(model, ImageEmbedding(embedding.features, tuple(levels)), 0, boxes=BOXES[:1]).logits
            assert not torch.allclose(as_it_is, changed, atol=1e-4)

    @pytest.mark.parametrize("given", [2, 1], ids=["levels of each object", "levels once for all"])
    def test_upscaling_is_that_of_convolutions_on_maps_side_by_side(self, given: int) -> None:
        """As the authors write it: the transformer's cells before the skip connection, what is upscaled before fine."""
        decoder, rng = tiny_swin_lite_medsam().prompt_decoder, torch.Generator().manual_seed(0)
        assert isinstance(decoder, SkipPromptDecoder)
        embedding = embedded(tiny_swin_lite_medsam())
        fine, skip = (torch.rand((given, *level.shape[1:]), generator=rng) for level in embedding.levels[:2])
        cells, tokens = torch.rand((2, 256, 32), generator=rng), torch.rand((2, 3, 32), generator=rng)
        with torch.inference_mode():
            found = decoder._masks(cells, tokens, slice(1, None), [fine, skip])
            x = cells.transpose(1, 2).reshape(2, 32, 16, 16)
            for name, beside in (("upscaling1", skip), ("upscaling2", fine)):
                side_by_side = torch.cat([x, beside.expand(2, -1, -1, -1)], dim=1)
                x = decoder.mask_decoder.get_submodule(name)(side_by_side)
            networks = list(decoder.mask_decoder.output_hypernetworks_mlps)[1:]
            weights = torch.stack([network(tokens[:, i]) for i, network in enumerate(networks)], dim=1)
            wanted = torch.einsum("omc,ocyx->omyx", weights, x)
        assert wanted.std() > 1e-3
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

    def test_nothing_to_go_by_is_refused(self) -> None:
        model = tiny_swin_lite_medsam()
        with pytest.raises(PromptError, match="at least one"):
            asked(model, embedded(model), 0)

    def test_in_half_precision(self) -> None:
        model = tiny_swin_lite_medsam().bfloat16()
        found = asked(model, model.encode(canvases(1)), 0, boxes=BOXES[:1])
        assert bool(torch.isfinite(found.logits).all())


class TestWhatIsMadeFromABox:
    def test_the_sign_of_nought_does_not_count(self) -> None:
        model = tiny_swin_lite_medsam()
        embedding, box = embedded(model), np.array([[0.0, 0.0, 40.0, 44.0]], dtype=np.float32)
        negative = box * np.array([-1, 1, 1, 1], dtype=np.float32)
        assert torch.equal(
            asked(model, embedding, 0, boxes=box).logits, asked(model, embedding, 0, boxes=negative).logits
        )

    def test_the_same_box_gives_the_same_mask_whatever_else_is_asked(self) -> None:
        model = tiny_swin_lite_medsam()
        embedding = embedded(model)
        first = asked(model, embedding, 0, boxes=BOXES[:1]).logits
        asked(model, embedding, 0, 0, boxes=BOXES[1:3])
        assert torch.equal(asked(model, embedding, 0, boxes=BOXES[:1]).logits, first)

    def test_another_seed_draws_anew(self) -> None:
        model = tiny_swin_lite_medsam()
        embedding = embedded(model)
        first = asked(model, embedding, 0, boxes=BOXES[:1]).logits
        model.from_box = FromBox(seed=1)
        assert not torch.equal(asked(model, embedding, 0, boxes=BOXES[:1]).logits, first)

    def test_four_points_and_a_scribble_go_in_beside_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_swin_lite_medsam()
        seen: dict[str, Any] = {}
        embeddings = SamPromptDecoder.prompt_embeddings

        def spy(decoder: SamPromptDecoder, **parts: Any) -> Any:
            seen.update(parts)
            return embeddings(decoder, **parts)

        monkeypatch.setattr(SamPromptDecoder, "prompt_embeddings", spy)
        asked(model, embedded(model), 0, boxes=BOXES[:1])
        x_min, y_min, x_max, y_max = BOXES[0]
        points, scribble = seen["points"][0], seen["masks"][0, 0]
        assert points.shape == (4, 2)
        assert seen["point_labels"].tolist() == [[1, 1, 1, 1]]
        assert bool(((points >= torch.tensor([x_min, y_min])) & (points <= torch.tensor([x_max, y_max]))).all())
        assert scribble.unique().tolist() == [0, 1]
        rows, columns = np.nonzero(scribble.numpy())
        assert rows.min() >= y_min
        assert rows.max() <= y_max
        assert columns.min() >= x_min
        assert columns.max() <= x_max

    @pytest.mark.parametrize(
        ("parts", "points", "scribble"),
        [
            ({}, 4, True),
            ({"points": np.full((1, 2, 2), 20.0), "point_labels": np.ones((1, 2))}, 2, True),
            ({"masks": np.ones((1, 1, 64, 64))}, 4, False),
        ],
    )
    def test_what_a_person_gives_takes_the_place_of_what_would_be_made(
        self, parts: dict[str, Any], points: int, scribble: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny_swin_lite_medsam()
        batches: list[PromptBatch] = []
        decode = SamPromptDecoder.decode

        def spy(decoder: SamPromptDecoder, embedding: ImageEmbedding, prompts: PromptBatch, **how: Any) -> Any:
            batches.append(prompts)
            return decode(decoder, embedding, prompts, **how)

        monkeypatch.setattr(SamPromptDecoder, "decode", spy)
        asked(model, embedded(model), 0, boxes=BOXES[:1], **parts)
        assert batches[0].points is not None
        assert batches[0].masks is not None
        assert batches[0].points.shape == (1, points, 2)
        assert bool(batches[0].masks.mean() < 0.5) == scribble

    @pytest.mark.parametrize("switches", [{"points": False}, {"scribble": False}, {"points": False, "scribble": False}])
    def test_each_can_be_left_out(self, switches: dict[str, bool]) -> None:
        model = tiny_swin_lite_medsam()
        embedding = embedded(model)
        whole = asked(model, embedding, 0, boxes=BOXES[:1]).logits
        model.from_box = FromBox(**switches)
        assert not torch.equal(asked(model, embedding, 0, boxes=BOXES[:1]).logits, whole)


class TestTheRowsOfTableFive:
    @pytest.mark.parametrize("encoder", ["swin", "tinyvit"])
    @pytest.mark.parametrize("skip", [True, False])
    def test_every_encoder_goes_with_and_without_skip_connections(self, encoder: Any, skip: bool) -> None:
        with torch.device("meta"):
            model = SwinLiteMedSAM.untrained(SWIN_LITE_MEDSAM_FRAME, encoder=encoder, skip=skip)
            embedding = model.encode(torch.zeros(1, 3, 256, 256))
        assert isinstance(model.image_encoder, TinyViT) == (encoder == "tinyvit")
        assert isinstance(model.prompt_decoder, SkipPromptDecoder) == skip
        assert len(embedding.levels) == (3 if skip else 1)


def test_training_with_points_does_not_make_lone_points_trained() -> None:
    taught = SWIN_LITE_MEDSAM.prompts.also_trained_with(("box", "points", "scribble", "mask"))
    assert taught.way("points", beside_box=True) == "trained"
    assert taught.way("points", beside_box=False) == "through-boxes"
    assert taught.way("mask", beside_box=False) == "trained"


class TestTheFrame:
    frame = Frame(size=64, mask_size=64, mask_prompt="picture")

    def test_a_scribble_is_a_picture(self) -> None:
        stroke = np.zeros((128, 128), dtype=bool)
        stroke[60, 20:100] = True  # half a canvas pixel wide
        prompt = self.frame.prompts([Box(10, 10, 110, 110), Scribble(stroke)], (128, 128))
        assert prompt.points is None
        assert prompt.mask is not None
        assert np.argwhere(prompt.mask[0]).tolist() == [[30, column] for column in range(10, 50)]
        assert set(np.unique(prompt.mask)) == {0, 1}

    def test_two_strokes_are_one_picture_and_what_lies_beside_becomes_points(self) -> None:
        on, beside = np.zeros((2, 64, 64), dtype=bool)
        on[10, 10:20] = True
        beside[40, 40:50] = True
        other = np.roll(on, 8, axis=0)
        prompt = self.frame.prompts([Scribble(on, beside), Scribble(other)], (64, 64))
        assert prompt.mask is not None
        assert np.array_equal(prompt.mask[0] > 0, on | other)
        assert prompt.point_labels is not None
        assert set(prompt.point_labels) == {0}

    def test_points_stay_points(self) -> None:
        prompt = self.frame.prompts([Points([(3, 4)])], (64, 64))
        assert isinstance(prompt, CanvasPrompt)
        assert prompt.mask is None
