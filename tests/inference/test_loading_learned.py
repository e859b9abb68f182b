"""Learned prompts as a user meets them: `palpate.load(auto=...)`, on tiny networks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import palpate
import tiny_sam2
from palpate.errors import SettingError, UnknownModel, WeightsError
from palpate.images.intensity import AsIs, Percentiles
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.models import adapters, catalogue, weights
from palpate.models.cards import AdapterCard, Trained
from palpate.models.catalogue import ModelCard, card, stored
from palpate.models.learned import Finder
from palpate.models.promptable import LearnedClass
from palpate.models.sam import to_segment_anything
from palpate.models.sam2 import to_sam2
from palpate.models.weights import content_hash
from phantoms import disk, picture
from tiny_learned import learned_file, say_there
from tiny_networks import tiny_lite_medsam

IMAGE = palpate.Image(picture((disk((64, 48), centre=(25, 28), radius=15), 200), background=40))
BOX = palpate.Box(10, 12, 41, 44)
TURNED = "prompt_decoder.mask_decoder.output_hypernetworks_mlps.0.proj_out"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """A catalogue of two tiny models, whose weights are here; this is the first, the other is a SAM 2."""
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "home"))
    state = {n: t.contiguous() for n, t in to_segment_anything(tiny_lite_medsam().state_dict()).items()}
    frame = tiny_lite_medsam().frame
    known = replace(
        card("lite-medsam"), name="tiny", build=tiny_lite_medsam, frame=frame, content_sha256=content_hash(state)
    )
    monkeypatch.setattr(catalogue, "CARDS", (known, tiny_sam2.card()))
    stored("tiny").parent.mkdir(parents=True)
    safetensors.torch.save_file(state, stored("tiny"))
    stored(tiny_sam2.NAME).parent.mkdir(parents=True, exist_ok=True)
    theirs = to_sam2(tiny_sam2.tiny_sam2().state_dict())
    safetensors.torch.save_file({n: t.clone().contiguous() for n, t in theirs.items()}, stored(tiny_sam2.NAME))
    return known


def session_on(path: Path, **settings: object) -> palpate.Session:
    session = palpate.load(auto=path, device="cpu", **settings)  # type: ignore[arg-type]
    session.set_image(IMAGE)
    return session


def test_the_file_names_its_base_model_and_its_classes(tiny: ModelCard, tmp_path: Path) -> None:
    session = session_on(learned_file(tmp_path / "abdomen.safetensors", tiny))
    found = session.find()
    assert found.provenance.model == "tiny + abdomen"
    assert [(item.label, item.name) for item in found.objects] == [(1, "liver"), (4, "spleen")]
    assert found.labels.shape == (64, 48)
    assert all(item.object_probability == pytest.approx(0.95, abs=0.02) for item in found.objects)
    assert set(np.unique(found.labels)) <= {0, 1, 4}
    with pytest.raises(SettingError, match="learned on tiny, not on lite-medsam"):
        palpate.load("lite-medsam", auto=tmp_path / "abdomen.safetensors")


def test_a_class_that_is_not_there_is_empty(tiny: ModelCard, tmp_path: Path) -> None:
    def never(finder: Finder, network: nn.Module) -> None:
        say_there(finder, network, -3.0)

    found = session_on(learned_file(tmp_path / "none.safetensors", tiny, change=never)).find()
    assert not found.labels.any()
    assert [note.split(" (")[0] for note in found.notes] == ["liver is not there", "spleen is not there"]


def test_what_is_drawn_goes_in_beside_what_was_learned(tiny: ModelCard, tmp_path: Path) -> None:
    session = session_on(learned_file(tmp_path / "a.safetensors", tiny))
    alone = session.find_each()
    box, point = palpate.Target((BOX,), name="liver"), palpate.Target((palpate.Points([(25, 28)]),), name="liver")
    for target in (box, point):
        liver, spleen = session.find_each([target], mode="semi-autonomous")
        assert liver.objects[0].predicted_iou != alone[0].objects[0].predicted_iou
        # Two classes at once and one alone differ in the last bit.
        assert spleen.objects[0].predicted_iou == pytest.approx(alone[1].objects[0].predicted_iou, abs=1e-5)
        assert (spleen.labels == alone[1].labels).mean() > 0.999
        assert liver.objects[0].predicted_iou != session.predict_all([box]).objects[0].predicted_iou


def test_without_changes_in_the_decoder_manual_prompts_are_answered_as_ever(tiny: ModelCard, tmp_path: Path) -> None:
    session, plain = session_on(learned_file(tmp_path / "a.safetensors", tiny)), palpate.load("tiny", device="cpu")
    plain.set_image(IMAGE)
    by_find = session.find([palpate.Target((BOX,))], mode="manual")
    assert np.array_equal(by_find.labels, plain.predict(BOX).labels)
    # Yet they are no longer the same weights: there are more of them.
    assert by_find.provenance.weights_hash != plain.runtime.weights_hash
    assert session.runtime.encoder_hash == plain.runtime.encoder_hash


def test_what_training_changed_in_the_decoder_moves_all_answers(tiny: ModelCard, tmp_path: Path) -> None:
    def turned(finder: Finder, network: nn.Module) -> None:
        network.get_parameter(f"{TURNED}.weight").neg_()
        network.get_parameter(f"{TURNED}.bias").neg_()

    kept = session_on(learned_file(tmp_path / "kept.safetensors", tiny, trained=Trained()))
    moved = session_on(learned_file(tmp_path / "moved.safetensors", tiny, trained=Trained(), change=turned))
    assert np.array_equal(moved.predict(BOX).mask, ~kept.predict(BOX).mask)
    assert np.array_equal(moved.find_each()[0].mask, ~kept.find_each()[0].mask)
    assert moved.runtime.weights_hash != kept.runtime.weights_hash


@pytest.mark.parametrize("base", ["tiny", tiny_sam2.NAME])
@pytest.mark.parametrize("variant", ["linear", "high-res"])
def test_both_variants_work_on_both_kinds_of_models(tiny: ModelCard, tmp_path: Path, base: str, variant: str) -> None:
    classes = tuple(LearnedClass(f"vertebra {i}", i + 1) for i in range(6))
    path = learned_file(tmp_path / "a.safetensors", card(base), variant=variant, classes=classes)
    found = session_on(path).find()
    # More classes than are looked for at once.
    assert len(found.objects) == 6
    assert len({item.object_probability for item in found.objects}) == 6


def test_embeddings_with_levels_have_keys_of_their_own(tiny: ModelCard, tmp_path: Path) -> None:
    linear = learned_file(tmp_path / "linear.safetensors", tiny)
    fine = learned_file(tmp_path / "fine.safetensors", tiny, variant="high-res")
    cache = EmbeddingCache(tmp_path / "cache")
    palpate.load("tiny", device="cpu", cache=cache).set_image(IMAGE)
    assert cache.use().embeddings == 1
    session_on(linear, cache=cache).find()
    assert cache.use().embeddings == 1
    first = session_on(fine, cache=cache).find()
    assert cache.use().embeddings == 2
    again = session_on(fine, cache=cache).find()
    assert cache.use().embeddings == 2
    assert np.array_equal(again.labels, first.labels)


def test_sam2_needs_no_other_embeddings(tiny: ModelCard, tmp_path: Path) -> None:
    path = learned_file(tmp_path / "a.safetensors", card(tiny_sam2.NAME), variant="high-res")
    plain = palpate.load(tiny_sam2.NAME, device="cpu")
    assert session_on(path).runtime.encoder_hash == plain.runtime.encoder_hash


def test_a_network_that_keeps_levels_says_so_in_its_hash() -> None:
    network = tiny_lite_medsam()
    before = weights.encoder_hash(network)
    network.keep_levels = True
    assert weights.encoder_hash(network) != before


def test_images_are_shown_by_the_rule_they_were_learned_with(tiny: ModelCard, tmp_path: Path) -> None:
    path = learned_file(tmp_path / "a.safetensors", tiny, intensity="10..60")
    made = session_on(path).find().provenance
    assert "10" in made.intensity
    assert made.intensity_origin == "card"
    assert (
        session_on(path).find().provenance.intensity
        != session_on(learned_file(tmp_path / "b.safetensors", tiny)).find().provenance.intensity
    )


def test_an_image_that_does_not_say_what_it_is_is_what_was_learned_from(tiny: ModelCard, tmp_path: Path) -> None:
    session = session_on(learned_file(tmp_path / "a.safetensors", tiny, modality="MR"))
    values = np.arange(64 * 48, dtype=np.int16).reshape(64, 48)
    session.set_image(palpate.Image(values))
    made = session.find().provenance
    assert (made.modality, made.intensity) == ("MR", str(Percentiles()))
    assert (made.modality_origin, made.intensity_origin) == ("card", "image")
    session.set_image(palpate.Image(values, modality="CT", modality_origin="header"))
    made = session.find().provenance
    assert (made.modality, made.modality_origin) == ("CT", "header")
    session.set_image(palpate.Image(values), modality="PET", intensity="min-max")
    made = session.find().provenance
    assert (made.modality, made.modality_origin, made.intensity_origin) == ("PET", "given", "given")


def test_a_picture_of_8_bits_is_shown_as_it_is_whatever_was_learned_from(tiny: ModelCard, tmp_path: Path) -> None:
    session = session_on(learned_file(tmp_path / "a.safetensors", tiny, modality="MR"))
    assert np.array_equal(session.slices[0], IMAGE.array)
    assert session.find().provenance.intensity == str(AsIs())


def test_what_was_learned_from_counts_more_than_a_guess(tiny: ModelCard, tmp_path: Path) -> None:
    session = session_on(learned_file(tmp_path / "a.safetensors", tiny, modality="MR"))
    session.set_image(palpate.Image(np.arange(-1000, 64 * 48 - 1000, dtype=np.int16).reshape(64, 48)))
    assert session.find().provenance.modality == "MR"


class TestWhatIsRefused:
    def test_prompts_that_were_learned_on_other_weights(self, tiny: ModelCard, tmp_path: Path) -> None:
        path = learned_file(tmp_path / "a.safetensors", replace(tiny, content_sha256="f" * 64))
        with pytest.raises(WeightsError, match="made from other weights of tiny"):
            palpate.load(auto=path, device="cpu")

    def test_a_base_model_that_nobody_knows(self, tiny: ModelCard, tmp_path: Path) -> None:
        path = learned_file(tmp_path / "a.safetensors", replace(tiny, name="huge"))
        with pytest.raises(UnknownModel, match="no model is called 'huge'"):
            palpate.load(auto=path, device="cpu")

    def test_a_file_that_is_an_adapter_and_one_that_is_not_there(self, tiny: ModelCard, tmp_path: Path) -> None:
        network = tiny_lite_medsam()
        adapters.trainable(network, Trained())
        about = AdapterCard("adapter", "tiny", tiny.content_sha256 or "", Trained(), ("box",))
        adapters.save(adapters.extracted(network, about), tmp_path / "adapter.safetensors")
        with pytest.raises(WeightsError, match="holds no learned prompts"):
            palpate.load(auto=tmp_path / "adapter.safetensors", device="cpu")
        with pytest.raises(WeightsError, match="`palpate learn` makes one"):
            palpate.load(auto=tmp_path / "nothing.safetensors", device="cpu")

    def test_an_adapter_on_top(self, tiny: ModelCard, tmp_path: Path) -> None:
        path = learned_file(tmp_path / "a.safetensors", tiny)
        with pytest.raises(SettingError, match="no adapter goes on top"):
            palpate.load(auto=path, adapter=path, device="cpu")


def test_loading_does_not_roll_anybodys_dice(tiny: ModelCard, tmp_path: Path) -> None:
    path = learned_file(tmp_path / "a.safetensors", tiny)
    torch.manual_seed(3)
    palpate.load(auto=path, device="cpu")
    after = torch.rand(1)
    torch.manual_seed(3)
    palpate.load("tiny", device="cpu")
    assert torch.equal(after, torch.rand(1))
