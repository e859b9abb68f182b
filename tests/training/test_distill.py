"""Distilling from six phantoms: a tiny model's encoder, and a tiny Swin, learn the embeddings of a tiny model."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny_training
import torch
from PIL import Image
from torch import Tensor, nn

from palpate.errors import OutputError, SettingError
from palpate.models import catalogue
from palpate.models.frame import Frame
from palpate.models.lite_medsam import LiteMedSAM, TinyViT
from palpate.models.sam import SamPromptDecoder
from palpate.models.swin_lite_medsam import SwinEncoder, SwinLiteMedSAM
from palpate.models.weights import load
from palpate.training.data import cases_for
from palpate.training.distill import Distilled, distill, read_about
from palpate.training.distill_recipe import DistillRecipe, read_distill_recipe
from palpate.training.recipe import DataRecipe, OptimiserRecipe, PromptRecipe, ValidationRecipe
from palpate.training.task import Event


@pytest.fixture(scope="module", autouse=True)
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALPATE_HOME", str(tmp_path_factory.mktemp("home")))
        tiny_training.register()
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.phantoms(tmp_path_factory.mktemp("data"))


def recipe(path: Path, *, about: dict[str, Any] | None = None, **changes: Any) -> DistillRecipe:
    settings = {
        "student": tiny_training.SWIN,
        "teacher": tiny_training.NAME,
        "data": DataRecipe(path=str(path), **(about or {})),
        "optimiser": OptimiserRecipe(rate=2e-3, schedule="constant"),
        "validation": ValidationRecipe(prompts=(PromptRecipe(strategy="standard"),), objects=2, overlays=1),
        "epochs": 2,
        "steps": 3,
        "batch": 2,
        "calibrated": 4,
        **changes,
    }
    return DistillRecipe(**settings)


def losses(output: Path) -> list[float]:
    with (output.with_suffix(".run") / "log.csv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream) if row["loss"]]


def tensors(model: str, path: Path) -> dict[str, Tensor]:
    return dict(cast("nn.Module", load(model, weights=path).model).state_dict())


def from_teacher(path: Path, picture: Path) -> float:
    """How far the embeddings of a picture are from the teacher's."""
    student, teacher = load(tiny_training.SWIN, weights=path).model, load("tiny").model
    canvas = torch.from_numpy(teacher.frame.canvas(np.asarray(Image.open(picture))))[None]
    with torch.inference_mode():
        found, wanted = (cast("Tensor", model.encode(canvas).features) for model in (student, teacher))
    return float((found - wanted).abs().mean())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def made(known: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    """A run of the usual recipe, from beginning to end."""
    output = tmp_path_factory.mktemp("made") / "student.safetensors"
    return distill(recipe(data), output, device="cpu", command="as typed")


class TestWhatComesOfIt:
    def test_a_checkpoint_that_loads_like_any_other(self, made: Distilled) -> None:
        network = load(tiny_training.SWIN, weights=made.path).model
        assert network.encode(torch.rand(1, 3, 32, 32)).features.shape == (1, 32, 8, 8)

    def test_it_says_how_it_was_made(self, made: Distilled) -> None:
        about = read_about(made.path)
        assert about == json.loads(json.dumps(made.about))
        assert (about["student"], about["teacher"], about["command"]) == ("tiny-swin", "tiny", "as typed")
        assert set(about["metrics"]["val_dice"]) == {"mean", "standard"}
        assert about["recipe"]["data"]["path"] == ""
        run = made.path.with_suffix(".run")
        assert list((run / "overlays").glob("*.png"))

    def test_of_a_student_with_the_same_decoder_nothing_is_left_to_learn(self, data: Path, tmp_path: Path) -> None:
        made = distill(recipe(data, student="tiny"), tmp_path / "f.safetensors", device="cpu")
        student, teacher = tensors("tiny", made.path), tensors("tiny", catalogue.stored("tiny"))
        moved = {name.split(".")[0] for name in student if not torch.equal(student[name], teacher[name])}
        assert moved == {"image_encoder"}
        assert made.ready

    def test_what_the_teachers_decoder_lacks_is_told(self, made: Distilled) -> None:
        assert not made.ready
        left = {re.sub(r"\.\d+\..*", "", name) for name in made.about["left_random"]}
        at = "prompt_decoder.mask_decoder"
        assert left == {f"{at}.upscaling1", f"{at}.upscaling2", "skip_neck"}
        student, teacher = tensors(tiny_training.SWIN, made.path), tensors("tiny", catalogue.stored("tiny"))
        attention = [name for name in student if "mask_decoder.transformer" in name]
        assert attention
        assert all(torch.equal(student[name], teacher[name]) for name in attention)

    def test_a_student_from_random_weights_begins_with_the_teachers_neck(self, data: Path, tmp_path: Path) -> None:
        hardly = recipe(data, epochs=1, optimiser=OptimiserRecipe(rate=1e-12, schedule="constant"))
        made = distill(hardly, tmp_path / "f.safetensors", device="cpu")
        student, teacher = tensors(tiny_training.SWIN, made.path), tensors("tiny", catalogue.stored("tiny"))
        neck = [name for name in student if name.startswith("image_encoder.neck.")]
        alike = [name for name in neck if student[name].shape == teacher[name].shape]
        assert "image_encoder.neck.3.weight" in alike
        for name in alike:
            torch.testing.assert_close(student[name], teacher[name], rtol=0, atol=1e-6)

    def test_a_student_that_was_trained_keeps_its_decoder(self, made: Distilled, data: Path, tmp_path: Path) -> None:
        before = tensors(tiny_training.SWIN, made.path)
        further = recipe(data, start=str(made.path), epochs=1)
        cases = (cases_for(further.data, seed=0)[0], [])  # not validated, so that the last weights are kept
        again = distill(further, tmp_path / "f.safetensors", cases=cases, device="cpu")
        after = tensors(tiny_training.SWIN, again.path)
        assert again.ready
        assert {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])} == {"image_encoder"}


class TestLearning:
    def test_pictures_without_any_object_are_learned_from_as_well(self, tmp_path: Path) -> None:
        path = tiny_training.phantoms(tmp_path / "data")
        for number in range(5):
            Image.fromarray(np.zeros((28, 36), dtype=np.uint8)).save(tmp_path / "data" / "l" / f"{number}.png")
        said: list[Event] = []
        distill(recipe(path, epochs=1), tmp_path / "f.safetensors", device="cpu", listener=said.append)
        assert any("6 views" in event.text for event in said if event.kind == "estimate")

    def test_a_cache_that_is_too_small_is_told(self, data: Path, tmp_path: Path) -> None:
        said: list[Event] = []
        small = {"cache": tmp_path / "cache", "cache_bytes": 1}
        output = tmp_path / "f.safetensors"
        distill(recipe(data, epochs=1), output, device="cpu", listener=said.append, **small)
        assert any("--max-size" in event.text for event in said if event.kind == "estimate")
        assert len(losses(output)) == 3

    @pytest.mark.parametrize("error", ["l1", "mse"])
    def test_the_embeddings_come_nearer(self, error: str, data: Path, tmp_path: Path) -> None:
        output = tmp_path / "f.safetensors"
        distill(recipe(data, error=error, epochs=1, steps=30), output, device="cpu")
        found = losses(output)
        assert sum(found[-5:]) < 0.8 * sum(found[:5])

    @pytest.mark.parametrize("seed", range(4))
    def test_what_is_kept_is_nearer_than_the_start_even_where_the_decoder_makes_nothing_of_it(
        self, seed: int, data: Path, tmp_path: Path
    ) -> None:
        """The tiny teacher is random itself: at some seeds the untrained student has the higher Dice."""
        changes: dict[str, Any] = {"seed": seed, "epochs": 2, "steps": 15}
        made = distill(recipe(data, **changes), tmp_path / "f.safetensors", device="cpu")
        still = OptimiserRecipe(rate=1e-30, weight_decay=0.0, schedule="constant")
        start = distill(recipe(data, **changes, optimiser=still), tmp_path / "s.safetensors", device="cpu")
        picture = data.parent / "i" / "8.png"  # of val
        assert from_teacher(made.path, picture) < 0.9 * from_teacher(start.path, picture)
        metrics = made.about["metrics"]
        assert metrics["best_step"] > 0
        assert metrics["val_error"] < 0.7 * metrics["val_error_before"]
        with (tmp_path / "f.run" / "log.csv").open() as stream:
            logged = {int(row["step"]): float(row["val error"]) for row in csv.DictReader(stream) if row["val error"]}
        assert logged[metrics["best_step"]] == pytest.approx(min(logged.values()))
        assert logged[metrics["best_step"]] == pytest.approx(metrics["val_error"], rel=1e-4)

    def test_or_what_the_decoder_makes_most_of(self, data: Path, tmp_path: Path) -> None:
        made = distill(recipe(data, best_by="dice", epochs=3), tmp_path / "f.safetensors", device="cpu")
        with (tmp_path / "f.run" / "log.csv").open() as stream:
            logged = {int(row["step"]): float(row["dice"]) for row in csv.DictReader(stream) if row["dice"]}
        assert logged[made.about["metrics"]["best_step"]] == max(logged.values())

    @pytest.mark.parametrize(
        ("start", "best_by", "by_error"),
        [("random", None, True), ("teacher", None, False), ("released", None, False), ("teacher", "error", True)],
    )
    def test_what_chooses_follows_from_the_start(self, start: str, best_by: Any, by_error: bool) -> None:
        asked = DistillRecipe(data=DataRecipe(path="x"), start=start, best_by=best_by)
        assert asked.chooses_by_error == by_error

    def test_a_student_that_is_the_teacher_has_nothing_to_learn(self, data: Path, tmp_path: Path) -> None:
        output = tmp_path / "f.safetensors"
        distill(recipe(data, student="tiny", start="released", epochs=1, steps=1), output, device="cpu")
        assert losses(output)[0] < 1e-5

    def test_flips_and_crops_are_views_as_well(self, data: Path, tmp_path: Path) -> None:
        said: list[Event] = []
        more = {"flips": ("x", "y"), "crops": 1}
        distill(recipe(data, about=more, epochs=1), tmp_path / "f.safetensors", device="cpu", listener=said.append)
        assert any("24 views" in event.text for event in said if event.kind == "estimate")

    def test_a_teacher_that_stretches_is_shown_images_with_the_students_padding(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stretching = replace(
            catalogue.card("tiny"), name="wide", frame=replace(catalogue.card("tiny").frame, fit="stretch")
        )
        monkeypatch.setattr(catalogue, "CARDS", (*catalogue.CARDS, stretching))
        catalogue.stored("wide").write_bytes(catalogue.stored("tiny").read_bytes())
        output = tmp_path / "f.safetensors"
        distill(recipe(data, student="tiny", teacher="wide", start="released", epochs=1, steps=1), output, device="cpu")
        assert losses(output)[0] < 1e-5


class TestStartingFromTheTeacher:
    def test_it_has_the_teachers_layers_and_learns_the_rest(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def half() -> LiteMedSAM:
            model = tiny_training.build()
            sizes: dict[str, Any] = {"widths": (8, 32, 32, 32), "depths": (1, 1, 1, 1), "windows": (7, 5, 7)}
            model.image_encoder = TinyViT(**sizes, channels=32, shrunk=2)
            return model

        card = replace(catalogue.card("tiny"), name="tiny-half", build=half, layout="lite-medsam-half")
        monkeypatch.setattr(catalogue, "CARDS", (*catalogue.CARDS, card))
        still = OptimiserRecipe(rate=1e-30, weight_decay=0.0, schedule="constant")
        asked = recipe(data, student="tiny-half", start="teacher", optimiser=still, epochs=1, steps=1)
        made = distill(asked, tmp_path / "f.safetensors", device="cpu")
        assert asked.follows_batches
        assert made.ready
        student, teacher = tensors("tiny-half", made.path), tensors("tiny", catalogue.stored("tiny"))
        own = {"image_encoder.lateral.weight", "image_encoder.lateral.bias"}
        assert set(student) - set(teacher) == own
        for name, tensor in teacher.items():
            if not re.search(r"running_|num_batches", name):  # the statistics are those of half the canvas
                torch.testing.assert_close(student[name], tensor, msg=name)

    def test_two_that_have_little_in_common(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="tiny-swin cannot start from tiny"):
            distill(recipe(data, start="teacher"), tmp_path / "f.safetensors", device="cpu")
        assert not list(tmp_path.iterdir())


class TestBatchStatistics:
    def test_they_are_those_of_the_weights_that_are_kept(self, data: Path, tmp_path: Path) -> None:
        """Of the first layer they can be had by hand: it is a matrix, and sees pixels alone."""
        made = distill(recipe(data, calibrated=1000), tmp_path / "f.safetensors", device="cpu")
        state, frame = tensors(tiny_training.SWIN, made.path), catalogue.card(tiny_training.SWIN).frame
        canvases = [frame.canvas(np.asarray(Image.open(data.parent / "i" / f"{number}.png"))) for number in range(6)]
        weight = state["image_encoder.patch_embed.seq.0.c.weight"][..., 0, 0]
        seen = torch.einsum("oi,nihw->o", weight, torch.from_numpy(np.stack(canvases))) / (6 * 32 * 32)
        torch.testing.assert_close(state["image_encoder.patch_embed.seq.0.bn.running_mean"], seen)

    def test_small_batches_leave_no_trace(self, data: Path, tmp_path: Path) -> None:
        """With a rate of almost nothing, the statistics do not depend on what the steps were shown."""
        still = OptimiserRecipe(rate=1e-30, weight_decay=0.0, schedule="constant")
        few, many = (
            distill(recipe(data, optimiser=still, epochs=1, steps=n), tmp_path / f"{n}.safetensors", device="cpu").path
            for n in (1, 5)
        )
        assert same(tensors(tiny_training.SWIN, few), tensors(tiny_training.SWIN, many))

    def test_of_a_trained_student_they_stay(self, data: Path, tmp_path: Path) -> None:
        made = distill(recipe(data, student="tiny", start="released"), tmp_path / "f.safetensors", device="cpu")
        student, teacher = tensors("tiny", made.path), tensors("tiny", catalogue.stored("tiny"))
        running = [name for name in student if "running" in name]
        assert running
        assert all(torch.equal(student[name], teacher[name]) for name in running)


class TestRepeating:
    def test_interrupted_and_taken_up_again_it_is_the_same_run(self, data: Path, tmp_path: Path) -> None:
        whole = distill(recipe(data), tmp_path / "whole.safetensors", device="cpu").path

        def stop(event: Event) -> None:
            if event.kind == "step" and event.done == 4:
                raise KeyboardInterrupt

        cut = tmp_path / "cut.safetensors"
        with pytest.raises(KeyboardInterrupt):
            distill(recipe(data), cut, device="cpu", checkpoint_seconds=0.0, listener=stop)
        assert not cut.exists()
        said: list[Event] = []
        distill(recipe(data), cut, device="cpu", listener=said.append)
        assert any(event.kind == "resumed" for event in said)
        assert same(tensors(tiny_training.SWIN, whole), tensors(tiny_training.SWIN, cut))

    def test_a_finished_run_is_not_repeated(self, data: Path, tmp_path: Path) -> None:
        output = tmp_path / "f.safetensors"
        first = distill(recipe(data), output, device="cpu")
        written = output.stat().st_mtime_ns
        again = distill(recipe(data), output, device="cpu")
        assert output.stat().st_mtime_ns == written
        assert (again.about, again.steps) == (json.loads(json.dumps(first.about)), first.steps)

    def test_another_recipe_is_another_run(self, data: Path, tmp_path: Path) -> None:
        output = tmp_path / "f.safetensors"
        distill(recipe(data, epochs=1), output, device="cpu")
        with pytest.raises(OutputError, match="differs in"):
            distill(recipe(data, epochs=1, error="mse"), output, device="cpu")

    @pytest.mark.slow
    def test_two_processes_do_what_one_does(self, data: Path, tmp_path: Path) -> None:
        kept = recipe(data, batch_norm="kept", epochs=1)
        cases = (cases_for(kept.data, seed=0)[0], [])  # not validated, so that the last weights are kept
        one = distill(kept, tmp_path / "one.safetensors", cases=cases, device="cpu", threads=1).path
        two = distill(
            kept,
            tmp_path / "two.safetensors",
            cases=cases,
            device="cpu",
            devices=2,
            threads=1,
            listener=tiny_training.Listener(),
        ).path
        # Adam moves weights that hardly matter by a whole step whichever way rounding points: losses are compared.
        assert losses(two) == pytest.approx(losses(one), rel=1e-4)
        assert len(losses(two)) == 3

    @pytest.mark.slow
    def test_two_processes_that_normalise_by_their_own_views_make_one_checkpoint(
        self, data: Path, tmp_path: Path
    ) -> None:
        """Not what one process makes, whose batches are twice as large; but of use, and the same in both."""
        asked = recipe(data, epochs=1, steps=15, batch=4)
        how: dict[str, Any] = {"device": "cpu", "devices": 2, "threads": 1, "listener": tiny_training.Listener()}
        made = distill(asked, tmp_path / "two.safetensors", **how)
        metrics = read_about(made.path)["metrics"]
        assert metrics["best_step"] == 15
        assert metrics["val_error"] < 0.9 * metrics["val_error_before"]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors(tiny_training.SWIN, made.path).values())


class TestWhatIsRefused:
    @pytest.mark.parametrize("role", ["start", "teacher_weights"])
    def test_a_result_that_would_replace_what_is_learned_from(self, role: str, data: Path, tmp_path: Path) -> None:
        own = tmp_path / "mine.safetensors"
        own.write_bytes(catalogue.stored("tiny").read_bytes())
        with pytest.raises(OutputError, match="would replace what is learned from"):
            distill(recipe(data, student="tiny", **{role: str(own)}), own, device="cpu", overwrite=True)
        assert own.is_file()

    def test_embeddings_of_another_shape(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def narrow() -> SwinLiteMedSAM:
            return SwinLiteMedSAM(
                Frame(size=32, mask_size=32),
                image_encoder=SwinEncoder(widths=(8, 16, 16, 32, 32), heads=(1,) * 4, pairs=(1,) * 4, channels=16),
                prompt_decoder=SamPromptDecoder(canvas_size=32, grid_stride=4, channels=16, heads=2, mlp_channels=32),
            )

        other = replace(catalogue.card(tiny_training.SWIN), name="narrow", build=narrow)
        monkeypatch.setattr(catalogue, "CARDS", (*catalogue.CARDS, other))
        with pytest.raises(SettingError, match=r"\(16, 8, 8\), and tiny of \(32, 8, 8\)"):
            distill(recipe(data, student="narrow"), tmp_path / "f.safetensors", device="cpu")

    def test_a_section_that_says_something_keeps_the_rest(self, tmp_path: Path) -> None:
        (tmp_path / "r.toml").write_text(
            '[data]\npath = "x"\n[optimiser]\nschedule = "cosine"\n[validation]\nobjects = 6\n'
        )
        read = read_distill_recipe(tmp_path / "r.toml")
        usual = DistillRecipe(data=DataRecipe(path="x"))
        assert read.optimiser == usual.optimiser.model_copy(update={"schedule": "cosine"})
        assert read.validation == usual.validation.model_copy(update={"objects": 6})
        assert [prompt.strategy for prompt in read.validation.prompts] == ["standard"]
        changed = read_distill_recipe(tmp_path / "r.toml", changes={"optimiser.warmup": 3})
        assert (changed.optimiser.rate, changed.optimiser.warmup) == (2e-4, 3)

    def test_a_recipe_with_a_slip(self, tmp_path: Path) -> None:
        (tmp_path / "r.toml").write_text('teecher = "tiny"\n[data]\npath = "x"\n')
        with pytest.raises(SettingError, match="teecher"):
            read_distill_recipe(tmp_path / "r.toml")

    def test_paths_are_looked_up_beside_the_recipe(self, tmp_path: Path) -> None:
        (tmp_path / "r.toml").write_text('start = "mine.pth"\nteacher_weights = "t.pth"\n[data]\npath = "x"\n')
        read = read_distill_recipe(tmp_path / "r.toml")
        assert read.start == str(tmp_path / "mine.pth")
        assert read.teacher_weights == str(tmp_path / "t.pth")
        assert read.data.path == str(tmp_path / "x")
        assert not read.follows_batches
