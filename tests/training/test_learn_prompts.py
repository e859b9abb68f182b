"""Learning prompts from six phantoms, with a tiny model."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny_training
import torch
from PIL import Image

from palpate.errors import DatasetError, OutputError, SettingError
from palpate.models import cards, learned
from palpate.models.weights import load
from palpate.training import learn_prompts
from palpate.training.learn_prompts import LearnedFrom, learn
from palpate.training.learn_recipe import PEFT, LearnDataRecipe, LearnRecipe, MixRecipe
from palpate.training.recipe import OptimiserRecipe
from palpate.training.task import Event


@pytest.fixture(scope="module", autouse=True)
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tiny model, and a cache that all tests share: every view is encoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALPATE_HOME", str(tmp_path_factory.mktemp("home")))
        tiny_training.register()
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.phantoms(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(known: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> LearnedFrom:
    """A run of the usual recipe, from beginning to end."""
    output = tmp_path_factory.mktemp("whole") / "found.safetensors"
    return learn(recipe(data), output, device="cpu", command="as typed")


def recipe(data: Path, *, about: dict[str, Any] | None = None, **changes: Any) -> LearnRecipe:
    settings = {
        "model": tiny_training.NAME,
        "data": LearnDataRecipe(path=str(data), **{"val": "val", "moves": 2, "targets": ("1", "2"), **(about or {})}),
        "steps": 4,
        "overlays": 2,
        "batch": 4,
        "validate_every": 2,
        "tokens": 4,
        **changes,
    }
    return LearnRecipe(**settings)


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one).values(), tensors(other).values(), strict=True))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


class TestWhatComesOfIt:
    def test_a_file_with_a_card(self, whole: LearnedFrom) -> None:
        card = cards.learned_card(whole.path)
        assert (card.name, card.base, card.images) == ("found", "tiny", 6)
        assert [(one.name, one.value) for one in card.classes] == [("1", 1), ("2", 2)]
        assert set(card.metrics["val_dice"]) == {"mean", "1", "2"}
        assert card.data == "6 images to learn from (discs 3, squares 3), 3 to validate with"
        assert card.command == "as typed"
        run = whole.path.with_suffix(".run")
        assert (run / "log.csv").is_file()
        assert list((run / "overlays").glob("*.png"))

    @pytest.mark.parametrize("peft", ["none", "decoder", "lora", "adapter"])
    def test_the_file_makes_the_base_model_what_it_became(self, peft: str, data: Path, tmp_path: Path) -> None:
        """The file goes onto a freshly loaded base model, and changes of it what was trained."""
        made = learn(recipe(data, about={"val": ""}, trained=PEFT[peft]), tmp_path / "f.safetensors", device="cpu")
        network = load("tiny").model
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}  # pyright: ignore[reportAttributeAccessIssue]
        finder = learned.put_on(network, learned.read(made.path))  # pyright: ignore[reportArgumentType]
        moved = [n for n, t in network.state_dict().items() if n in before and not torch.equal(before[n], t)]  # pyright: ignore[reportAttributeAccessIssue]
        assert bool(moved) == (peft in ("decoder", "lora"))
        assert not any(name.startswith("image_encoder") for name in moved)
        found, _ = finder.find(network.encode(torch.rand(2, 3, 32, 32)))
        assert found.logits.shape == (4, 32, 32)
        assert found.object_logits.shape == (4,)

    def test_the_loss_falls(self, data: Path, tmp_path: Path) -> None:
        made = learn(
            recipe(
                data,
                about={"targets": ("1",), "val": ""},
                steps=30,
                validate_every=30,
                optimiser=OptimiserRecipe(rate=3e-3, schedule="cosine"),
            ),
            tmp_path / "f.safetensors",
            device="cpu",
        )
        with (tmp_path / "f.run" / "log.csv").open() as stream:
            losses = [float(row["loss"]) for row in csv.DictReader(stream) if row["loss"]]
        assert len(losses) == made.steps == 30
        assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:4])

    def test_a_localiser_learns_what_is_bright(self, data: Path, tmp_path: Path) -> None:
        made = learn(
            recipe(data, about={"targets": ("1",), "val": ""}, steps=40, validate_every=40),
            tmp_path / "f.safetensors",
            device="cpu",
        )
        network = load("tiny").model
        finder = learned.put_on(network, learned.read(made.path))  # pyright: ignore[reportArgumentType]
        canvas = torch.full((1, 3, 32, 32), 0.1)
        canvas[..., 8:16, 8:16] = 1.0
        map_of = finder.predictor.maps(network.encode(canvas).features)[0, 0]  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert map_of[2:4, 2:4].mean() > map_of[5:, 5:].mean() + 0.5
        # One class: views are mirrored, so where something lies says nothing.
        assert float(tensors(made.path)["predictor.placed"]) == 0

    def test_several_classes_are_told_apart_by_where_they_lie(self, whole: LearnedFrom) -> None:
        assert float(tensors(whole.path)["predictor.placed"]) == 1

    def test_how_often_it_asked_for_what_is_there_is_known_where_there_was_a_choice(
        self, whole: LearnedFrom, tmp_path: Path
    ) -> None:
        """Every picture of `whole` shows both classes."""
        path = tiny_training.phantoms(tmp_path / "data")
        first = tmp_path / "data" / "l" / "0.png"
        labels = np.array(Image.open(first))
        Image.fromarray(np.where(labels == 2, 0, labels).astype(np.uint8)).save(first)
        made = learn(recipe(path, about={"val": ""}, steps=1), tmp_path / "f.safetensors", device="cpu")
        assert float(tensors(made.path)["presumed"]) == pytest.approx(np.log(0.85 / 0.15))
        assert float(tensors(whole.path)["presumed"]) == 0

    @pytest.mark.parametrize("variant", ["linear", "high-res"])
    def test_the_papers_predictors_are_learned_with_their_own_settings(
        self, variant: str, data: Path, tmp_path: Path
    ) -> None:
        made = learn(recipe(data, variant=variant, steps=2), tmp_path / "f.safetensors", device="cpu")
        assert made.card.recipe["optimiser"]["rate"] == 5e-4
        assert "predictor.queries" in tensors(made.path)

    @pytest.mark.parametrize("loss", ["paper", "code"])
    def test_every_loss_gives_numbers(self, loss: str, data: Path, tmp_path: Path) -> None:
        from palpate.training.learning_losses import LEARNING_LOSSES

        made = learn(recipe(data, loss=LEARNING_LOSSES[loss]), tmp_path / "f.safetensors", device="cpu")
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors(made.path).values())

    def test_high_res_looks_at_the_encoders_last_stages(self, data: Path, tmp_path: Path) -> None:
        made = learn(recipe(data, variant="high-res"), tmp_path / "f.safetensors", device="cpu")
        assert "predictor.channel_adapters.1.weight" not in tensors(made.path)  # 32 channels, as all the tiny model has
        assert "predictor.blocks.2.layer_norm1.weight" in tensors(made.path)

    def test_without_validation_the_last_weights_are_kept(self, data: Path, tmp_path: Path) -> None:
        made = learn(recipe(data, about={"val": ""}), tmp_path / "f.safetensors", device="cpu")
        assert made.steps == 4
        assert "val_dice" not in made.card.metrics or not made.card.metrics["val_dice"]

    def test_what_it_does_not_believe_in_counts_as_not_found(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answered = learned.Finder.answered

        def everywhere(believed: float) -> float:
            """The validation Dice of a model that always says that its whole image is the object."""

            def answer(finder: learned.Finder, *args: Any, **kwargs: Any) -> learned.Found:
                found = answered(finder, *args, **kwargs)
                if finder.training:
                    return found
                return replace(
                    found,
                    logits=torch.ones_like(found.logits),
                    object_logits=torch.full_like(found.object_logits, believed),
                )

            monkeypatch.setattr(learned.Finder, "answered", answer)
            output = tmp_path / f"{believed}.safetensors"
            return learn(recipe(data), output, device="cpu").card.metrics["val_dice"]["mean"]

        assert everywhere(0.5) > 0
        assert everywhere(-0.5) == 0

    def test_how_long_it_learns_goes_by_how_many_images_there_are(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(learn_prompts, "usual_steps", lambda images: images // 2)
        made = learn(recipe(data, about={"val": ""}, steps=None), tmp_path / "f.safetensors", device="cpu")
        assert (made.card.images, made.steps, made.card.recipe["steps"]) == (6, 3, 3)


class TestRepeating:
    def test_the_same_seed_gives_the_same_bits(self, whole: LearnedFrom, data: Path, tmp_path: Path) -> None:
        again = learn(recipe(data), tmp_path / "a.safetensors", device="cpu").path
        other = learn(recipe(data, seed=1, steps=1), tmp_path / "b.safetensors", device="cpu").path
        assert same(whole.path, again)
        assert not torch.equal(tensors(again)["predictor.into.weight"], tensors(other)["predictor.into.weight"])

    @pytest.mark.parametrize("at", [1, 3])
    def test_a_run_that_was_interrupted_ends_with_the_same_bits(
        self, at: int, whole: LearnedFrom, data: Path, tmp_path: Path
    ) -> None:
        def interrupt(event: Event) -> None:
            if event.kind == "step" and event.done == at:
                raise KeyboardInterrupt

        output = tmp_path / "b.safetensors"
        with pytest.raises(KeyboardInterrupt):
            learn(recipe(data), output, device="cpu", listener=interrupt)
        assert not output.exists()
        assert same(whole.path, learn(recipe(data), output, device="cpu").path)

    def test_a_finished_run_is_not_repeated_and_another_not_overwritten(self, whole: LearnedFrom, data: Path) -> None:
        events: list[Event] = []
        learn(recipe(data), whole.path, device="cpu", listener=events.append)
        assert not [event for event in events if event.kind == "step"]
        with pytest.raises(OutputError, match="differs in its recipe"):
            learn(recipe(data, tokens=5), whole.path, device="cpu")


class TestTheMix:
    def test_every_kind_of_prompt_goes_through(self, data: Path, tmp_path: Path) -> None:
        always = MixRecipe(learned=1.0, points=1.0, box=1.0, mask=1.0)
        made = learn(recipe(data, mix=always), tmp_path / "f.safetensors", device="cpu")
        assert np.isfinite(made.card.metrics["val_dice"]["mean"])

    def test_drawn_prompts_alone_leave_the_predictor_still(self, data: Path, tmp_path: Path) -> None:
        """With the decoder frozen, only the object token and head learn from a person's boxes."""
        alone = MixRecipe(learned=0.0, points=0.0, box=1.0, mask=0.0)
        changes: dict[str, Any] = {
            "mix": alone,
            "trained": None,
            "variant": "linear",
            "optimiser": OptimiserRecipe(rate=1e-3, weight_decay=0.0),
            "about": {"targets": ("1",), "val": ""},
        }
        one = learn(recipe(data, steps=1, **changes), tmp_path / "a.safetensors", device="cpu").path
        more = learn(recipe(data, steps=4, **changes), tmp_path / "b.safetensors", device="cpu").path
        same = {name: torch.equal(tensors(one)[name], tensors(more)[name]) for name in tensors(one)}
        assert same["predictor.queries"]
        assert not same["object_head.layers.2.weight"]


class TestWhatIsRefused:
    def test_a_target_that_is_nowhere(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"'liver'; there are: 1, 2"):
            learn(recipe(data, about={"targets": ("liver",)}), tmp_path / "f.safetensors", device="cpu")

    def test_more_shots_than_images(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="40 images are asked for and 6 are there"):
            learn(recipe(data, about={"shots": 40}), tmp_path / "f.safetensors", device="cpu")

    def test_an_encoder_that_moves(self, data: Path) -> None:
        from palpate.models.cards import Trained

        with pytest.raises(SettingError, match="keeps the image encoder"):
            recipe(data, trained=Trained(("full",)))


@pytest.mark.parametrize("variant", ["localiser", "linear"])
def test_a_rate_that_is_too_high_is_told(data: Path, tmp_path: Path, variant: str) -> None:
    wild = recipe(data, variant=variant, optimiser=OptimiserRecipe(rate=1e30))
    with pytest.raises(SettingError, match=r"no finite number any more.*lower the rate"):
        learn(wild, tmp_path / "found.safetensors", device="cpu")
