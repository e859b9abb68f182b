"""A tiny Swin-LiteMedSAM, distilled from a tiny model: trained whole, with learned prompts, and asked by a session."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny_training
from torch import Tensor

import palpate
from palpate.images import Image
from palpate.inference import box_search
from palpate.models import adapters, catalogue
from palpate.models.cards import Trained
from palpate.models.weights import load_state, write_checkpoint
from palpate.prompts.types import Box, MaskPrompt, Points, Scribble
from palpate.training.distill import distill
from palpate.training.distill_recipe import DistillRecipe
from palpate.training.finetune import finetune
from palpate.training.learn_prompts import learn
from palpate.training.learn_recipe import LearnDataRecipe, LearnRecipe
from palpate.training.recipe import DataRecipe, PromptRecipe, Recipe


@pytest.fixture(scope="module", autouse=True)
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALPATE_HOME", str(tmp_path_factory.mktemp("home")))
        tiny_training.register()
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.phantoms(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def swin(known: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of stage 1."""
    recipe = DistillRecipe(
        student=tiny_training.SWIN, teacher="tiny", data=DataRecipe(path=str(data)), epochs=1, steps=1, batch=2
    )
    return distill(recipe, tmp_path_factory.mktemp("swin") / "swin.safetensors", device="cpu").path


def noise(*shape: int) -> Image:
    return Image(np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8))


@pytest.mark.parametrize("part", ["full", "decoder", "lora"])
def test_it_is_fine_tuned(part: str, swin: Path, data: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        model=tiny_training.SWIN,
        weights=str(swin),
        data=DataRecipe(path=str(data), flips=("x", "y")),
        trained=Trained((part,)),  # pyright: ignore[reportArgumentType]
        prompts=(PromptRecipe(strategy="standard"), PromptRecipe(strategy="swin-training")),
        epochs=1,
        steps=2,
        batch=2,
    )
    made = finetune(recipe, tmp_path / "run", device="cpu")
    names = adapters.read(made.adapter).tensors
    assert any("skip_neck" in name for name in names) == (part in ("full", "decoder"))
    session = palpate.load(tiny_training.SWIN, weights=swin, adapter=made.adapter, device="cpu")
    session.set_image(noise(28, 36))
    assert session.predict(Box(5, 5, 20, 20)).labels.shape == (28, 36)


def test_what_makes_skip_connections_is_trained_on_embeddings_that_were_made_once(
    swin: Path, data: Path, tmp_path: Path
) -> None:
    """Two checkpoints that differ in it alone share the cache."""
    card = catalogue.card(tiny_training.SWIN)
    state = load_state(swin, card)
    other = tmp_path / "other.safetensors"
    name = "mask_decoder.neck.0.weight"
    write_checkpoint({**state, name: state[name] + 1}, other, about={"layout": card.layout})
    encoded: list[int] = []
    for start in (swin, other):
        recipe = Recipe(
            model=tiny_training.SWIN,
            weights=str(start),
            data=DataRecipe(path=str(data)),
            trained=Trained(("decoder",)),
            prompts=(PromptRecipe(strategy="swin-training"),),
            epochs=1,
            steps=2,
            batch=2,
        )
        made = finetune(recipe, tmp_path / f"run-{start.stem}", device="cpu", cache=tmp_path / "cache")
        tensors = adapters.read(made.adapter).tensors
        assert any(name.startswith("replaced:skip_neck.") for name in tensors)
        encoded.append(len(list((tmp_path / "cache").rglob("*.*"))))
    assert encoded[0] == encoded[1] > 0
    # In use the adapter's own is what encodes, and has embeddings of its own.
    made = adapters.read(tmp_path / "run-swin" / "adapter.safetensors")
    moved = {name: tensor + 1 if "skip_neck" in name else tensor for name, tensor in made.tensors.items()}
    adapters.save(replace(made, tensors=moved), tmp_path / "moved.safetensors")
    hashes = {
        palpate.load(tiny_training.SWIN, weights=swin, adapter=adapter, device="cpu").runtime.encoder_hash
        for adapter in (None, tmp_path / "moved.safetensors")
    }
    assert len(hashes) == 2


def test_it_learns_prompts(swin: Path, data: Path, tmp_path: Path) -> None:
    recipe = LearnRecipe(
        model=tiny_training.SWIN,
        weights=str(swin),
        data=LearnDataRecipe(path=str(data), targets=("1", "2"), moves=1),
        steps=2,
        batch=2,
    )
    made = learn(recipe, tmp_path / "found.safetensors", device="cpu")
    session = palpate.load(auto=made.path, weights=swin, device="cpu")
    session.set_image(noise(28, 36))
    assert [one.name for one in session.find().objects] == ["1", "2"]


class TestASession:
    @pytest.fixture
    def session(self, swin: Path) -> palpate.Session:
        session = palpate.load(tiny_training.SWIN, weights=swin, device="cpu")
        session.set_image(noise(28, 36))
        return session

    def test_beside_a_box_points_and_scribbles_go_in_as_they_are(self, session: palpate.Session) -> None:
        stroke = np.zeros((28, 36), dtype=bool)
        stroke[10:14, 10:16] = True
        for more in (Points([(9, 9)]), Scribble(stroke)):
            assert not session.predict(Box(5, 5, 20, 20), more).notes

    def test_without_a_box_they_are_answered_by_the_best_one(self, session: palpate.Session) -> None:
        for alone in (Points([(9, 9)]), MaskPrompt(np.eye(28, 36, dtype=bool))):
            assert "answered by the box that fits it best" in " ".join(session.predict(alone).notes)

    def test_what_is_drawn_without_a_box_is_searched_for_as_for_any_model_of_boxes(
        self, session: palpate.Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The picture that the network takes for a scribble is no first guess at the object."""
        found: list[np.ndarray] = []
        search = box_search.best_box

        def spy(*args: Any, **kwargs: Any) -> np.ndarray:
            found.append(search(*args, **kwargs))
            return found[-1]

        monkeypatch.setattr("palpate.inference.session.best_box", spy)
        guess = np.zeros((28, 36), dtype=bool)
        guess[10:16, 12:20] = True
        session.predict(MaskPrompt(guess))
        x_min, y_min, x_max, y_max = found[0] * 36 / 32  # in pixels of the image
        assert 10 < x_min < 13
        assert 8 < y_min < 11
        assert 18 < x_max < 21
        assert 14 < y_max < 17

    def test_a_volume_is_followed_to_both_ends_and_each_slice_encoded_once(
        self, swin: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = palpate.load(tiny_training.SWIN, weights=swin, device="cpu", runtime="torch")
        encoded: list[bytes] = []

        network = cast("Any", session.runtime).network
        encode = network.encode

        def counted(canvases: Tensor) -> Any:
            encoded.extend(canvas.numpy().tobytes() for canvas in canvases)
            return encode(canvases)

        monkeypatch.setattr(network, "encode", counted)
        session.set_image(noise(5, 28, 36))
        for box in (Box(5, 5, 20, 20, z=2), Box(12, 8, 30, 24, z=1)):
            session.predict(box, z_range=(0, 4))
        assert len(encoded) == len(set(encoded)) == 5


def test_the_same_box_gives_the_same_mask(swin: Path) -> None:
    session = palpate.load(tiny_training.SWIN, weights=swin, device="cpu")
    found: list[np.ndarray] = []
    for _ in range(2):
        session.set_image(noise(28, 36))
        found.append(session.predict(Box(5, 5, 20, 20)).labels)
    assert np.array_equal(*found)
