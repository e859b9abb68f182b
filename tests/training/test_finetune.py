"""One uninterrupted run in one process: what it learns, what it leaves behind, and what it refuses."""

import csv
import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tiny_training
import torch
from PIL import Image as PILImage

import palpate
from palpate.datasets import open_dataset
from palpate.errors import OutputError, SettingError
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.inference.runtimes.torch import TorchRuntime
from palpate.metrics import dice
from palpate.models import cards
from palpate.training.finetune import Event, Finetuned, finetune
from palpate.training.items import validation_items
from palpate.training.moving_weights import MovingWeights
from palpate.training.recipe import recipe_from
from palpate.training.run_folder import RunFolder
from palpate.training.student import Student

RecipeOf = Callable[..., dict[str, Any]]
SMALL_VALIDATION: dict[str, Any] = {"prompts": [{"strategy": "standard"}], "objects": 1}


def run(recipe: dict[str, Any], folder: Path, **more: Any) -> Finetuned:
    return finetune(recipe_from(recipe), folder, device="cpu", threads=1, **more)


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in log(folder) if row["loss"]]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


class TestLearning:
    def test_the_loss_goes_down(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        run(recipe_of(epochs=2, steps=15, prompts=[{"strategy": "standard"}]), tmp_path / "run")
        found = losses(tmp_path / "run")
        assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5])

    def test_an_encoder_that_moves_learns_and_keeps_its_statistics(
        self, tmp_path: Path, recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[bool, dict[str, torch.Tensor], int]] = []
        networks: list[torch.nn.Module] = []
        original, measured = MovingWeights.follow, Student.mask

        def validating(self: Student, *arguments: Any) -> Any:
            networks[:] = [self.network]
            return measured(self, *arguments)

        def watched(self: MovingWeights, step: int) -> None:
            original(self, step)
            (network,) = networks
            norms = {name: buffer.clone() for name, buffer in network.named_buffers() if "running_" in name}
            gc.collect()
            with_history = sum(type(o) is torch.Tensor and o.grad_fn is not None for o in gc.get_objects())
            seen.append((network.training, norms, with_history))

        monkeypatch.setattr(Student, "mask", validating)
        monkeypatch.setattr(MovingWeights, "follow", watched)
        recipe = recipe_of(trained=["full"], epochs=1, steps=3, validation=SMALL_VALIDATION)
        done = run(recipe, tmp_path / "run")
        before = {name: buffer for name, buffer in tiny_training.build().named_buffers() if "running_" in name}
        assert before
        for training, norms, with_history in seen:
            assert not training
            assert with_history == 0  # the graph of the step is gone, and with it its memory
            assert all(torch.equal(norms[name], buffer) for name, buffer in before.items())
        assert done.card.trained.moves_encoder
        assert done.steps == 3

    def test_a_moving_encoder_needs_no_cache(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        run(recipe_of(trained=["full"], epochs=1, steps=1, validation=SMALL_VALIDATION), tmp_path / "run",
            cache=tmp_path / "cache")  # fmt: skip
        assert EmbeddingCache(tmp_path / "cache").use().embeddings == 0

    def test_a_loss_that_is_no_number_is_told(
        self, tmp_path: Path, recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = recipe_of(optimiser={"rate": 1e30}, steps=4, validation=SMALL_VALIDATION)
        with pytest.raises(SettingError, match=r"no finite number any more \(at .*\); lower the rate"):
            run(recipe, tmp_path / "run")

    def test_without_a_better_one_it_stops_early(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        said: list[str] = []
        recipe = recipe_of(epochs=9, steps=1, patience=2, optimiser={"rate": 1e-12}, validation=SMALL_VALIDATION)
        done = run(recipe, tmp_path / "run", listener=lambda event: said.append(event.text))
        assert done.steps == 2
        assert said[-1].startswith("no better one came, so it stopped early; 2 steps")

    def test_without_validation_data_the_last_weights_are_the_result(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        recipe = recipe_of(validation={"every": 2, **SMALL_VALIDATION}, epochs=3, steps=1, data={"train": ""})
        cases = list(open_dataset(recipe["data"]["path"]))
        done = run(recipe, tmp_path / "run", cases=(cases, []))
        short = run({**recipe, "epochs": 2}, tmp_path / "short", cases=(cases, []))
        assert done.steps == 3
        one, other = (safetensors.numpy.load_file(each.adapter) for each in (done, short))
        assert any(not np.array_equal(one[name], other[name]) for name in one)
        assert [row["step"] for row in log(tmp_path / "run")] == ["1", "2", "3"]

    @pytest.mark.parametrize(
        ("changes", "rates"),
        [
            ({"schedule": "constant", "warmup": 2}, [0.005, 0.01, 0.01, 0.01]),
            # Half a cosine over four steps: 0.01 (1 + cos(pi k / 4)) / 2.
            ({"schedule": "cosine"}, [0.01, 0.00853553, 0.005, 0.00146447]),
        ],
    )  # fmt: skip
    def test_the_rate_follows_its_schedule(
        self, changes: dict[str, Any], rates: list[float], tmp_path: Path, recipe_of: RecipeOf
    ) -> None:
        run(recipe_of(epochs=4, steps=1, optimiser=changes, validation=SMALL_VALIDATION), tmp_path / "run")
        found = [float(row["rate"]) for row in log(tmp_path / "run") if row["rate"]]
        assert np.allclose(found, rates, rtol=1e-5, atol=0)

    def test_on_a_plateau_the_rate_is_halved(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        changes = {"schedule": "plateau", "plateau_patience": 0, "factor": 0.5}
        run(recipe_of(epochs=5, steps=1, optimiser=changes, validation=SMALL_VALIDATION), tmp_path / "run")
        measured = [float(row["dice"]) for row in log(tmp_path / "run") if row["dice"]][1:]
        best, rate, wanted = -1.0, 0.01, [0.01]
        for value in measured[:-1]:
            best, rate = (value, rate) if value > best * 1.0001 else (best, rate / 2)
            wanted.append(rate)
        assert wanted[-1] < 0.01
        assert np.allclose([float(row["rate"]) for row in log(tmp_path / "run") if row["rate"]], wanted, rtol=1e-5)


class TestTheCache:
    def test_a_frozen_encoder_sees_each_scene_once_ever(
        self, tmp_path: Path, recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[bytes] = []
        original = TorchRuntime.encode

        def counted(self: TorchRuntime, canvas: np.ndarray) -> Any:
            seen.extend(one.tobytes() for one in canvas)
            return original(self, canvas)

        monkeypatch.setattr(TorchRuntime, "encode", counted)
        cache = tmp_path / "cache"
        recipe = recipe_of(data={"flips": ["x", "y"], "crops": 2}, validation=SMALL_VALIDATION)
        run(recipe, tmp_path / "one", cache=cache)
        # Nine pictures in five views each; a crop without an object is no scene.
        assert 27 < len(seen) <= 45
        assert len(seen) == len(set(seen)) == EmbeddingCache(cache).use().embeddings
        once = len(seen)
        run({**recipe, "seed": 0, "trained": ["lora"]}, tmp_path / "two", cache=cache)
        assert len(seen) == once

    def test_a_bound_that_is_too_small_is_told_and_changes_nothing(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        recipe, said = recipe_of(validation=SMALL_VALIDATION), []
        small = run(
            recipe,
            tmp_path / "small",
            cache=tmp_path / "cache",
            cache_bytes=3 * 10_000,
            listener=lambda event: said.append(event.text),
        )
        large = run(recipe, tmp_path / "large")
        assert any("images will be encoded again and again: allow it more" in text for text in said)
        assert (tmp_path / "small" / "log.csv").read_text() == (tmp_path / "large" / "log.csv").read_text()
        one, other = (safetensors.numpy.load_file(each.adapter) for each in (small, large))
        assert all(np.array_equal(one[name], other[name]) for name in other)


class TestMixedPrecision:
    def test_embeddings_that_are_kept_stay_in_full_precision(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        recipe = recipe_of(epochs=1, steps=2, validation=SMALL_VALIDATION)
        run(recipe, tmp_path / "full", cache=tmp_path / "cache")
        wanted = {path.name: safetensors.numpy.load_file(path) for path in (tmp_path / "cache").rglob("*.safetensors")}

        pruned: list[Path] = []

        def prune(event: Event) -> None:
            if event.kind == "estimate":  # another run removes what this one will want again
                for path in (tmp_path / "cache").rglob("*.safetensors"):
                    path.unlink()
                    pruned.append(path)

        run({**recipe, "precision": "bf16-mixed"}, tmp_path / "mixed", cache=tmp_path / "cache", listener=prune)
        assert pruned
        again = {path.name: safetensors.numpy.load_file(path) for path in (tmp_path / "cache").rglob("*.safetensors")}
        assert again
        for name, arrays in again.items():
            for key, array in arrays.items():
                assert array.dtype == np.float32
                assert np.array_equal(array, wanted[name][key])

    def test_a_run_in_mixed_precision_is_taken_up_bit_by_bit(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        recipe = recipe_of(precision="bf16-mixed", validation=SMALL_VALIDATION)
        whole = run(recipe, tmp_path / "whole")

        def stop(event: Event) -> None:
            if event.kind == "step" and event.done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "halves", listener=stop, checkpoint_seconds=0.0)
        halves = run(recipe, tmp_path / "halves")
        first, second = (safetensors.numpy.load_file(one.adapter) for one in (whole, halves))
        assert all(np.array_equal(first[name], second[name]) for name in first)
        assert log(tmp_path / "whole") == log(tmp_path / "halves")


class TestTheCard:
    def test_the_last_epoch_is_measured_whatever_every_says(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        run(recipe_of(epochs=3, steps=1, validation={**SMALL_VALIDATION, "every": 5}), tmp_path / "run")
        assert [row["step"] for row in log(tmp_path / "run") if row["dice"]] == ["0", "3"]

    def test_it_knows_the_prompts_though_the_first_scene_has_no_room_for_them(
        self, tmp_path: Path, recipe_of: RecipeOf
    ) -> None:
        mix = [{"strategy": "points-50+50"}]
        recipe = recipe_of(epochs=1, steps=1, prompts=mix, validation=SMALL_VALIDATION)
        cases = list(open_dataset(recipe["data"]["path"]))
        full = tmp_path / "full.png"
        with PILImage.open(cases[0].label) as label:
            PILImage.fromarray(np.ones(label.size[::-1], dtype=np.uint8)).save(full)
        done = run(recipe, tmp_path / "run", cases=([replace(cases[0], label=full), *cases[1:6]], cases[6:]))
        assert done.card.prompts == ("box", "points")

    def test_half_precision_is_measured_as_it_is_kept(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        done = run(recipe_of(half=True, optimiser={"ema": 0.5}), tmp_path / "run")
        stored = safetensors.numpy.load_file(done.adapter)
        assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
        exact = run(recipe_of(optimiser={"ema": 0.5}), tmp_path / "exact")
        assert any(
            not np.array_equal(array, stored[name].astype(np.float32))
            for name, array in safetensors.numpy.load_file(exact.adapter).items()
        )

    def test_the_window_of_training_is_that_of_use(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        recipe = recipe_of(epochs=1, steps=1, data={"intensity": "0..255"}, validation=SMALL_VALIDATION)
        done = run(recipe, tmp_path / "run")
        session = palpate.load(str(done.adapter), device="cpu")
        image = open_dataset(recipe["data"]["path"])[0].read().image
        session.set_image(image)
        assert session.predict(palpate.Box(4, 4, 20, 20)).provenance.intensity.endswith("(0..255)")
        session.set_image(image, intensity="min-max")
        assert "0..255" not in session.predict(palpate.Box(4, 4, 20, 20)).provenance.intensity


class TestValidation:
    def test_it_is_the_dice_of_a_session_with_the_same_prompts(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        recipe = recipe_of(steps=10, validation={"objects": 3})
        done = run(recipe, tmp_path / "run")
        session = palpate.load(tiny_training.NAME, adapter=done.adapter, device="cpu")
        wanted = recipe_from(recipe)
        cases = [case for case in open_dataset(recipe["data"]["path"]) if case.split == "val"]
        scenes = [
            sight.scene
            for case in cases
            for sight in sights(case, wanted, session.runtime.frame, session.runtime.encoder_hash)
        ]
        items = validation_items(
            scenes, wanted.validation.prompts, frame=session.runtime.frame, seed=0, objects=wanted.validation.objects
        )
        for name, asked in items.items():
            by_dataset: dict[str, list[float]] = {}
            for item in asked:
                session.set_image(item.scene.case.read().image)
                found = session.predict(*item.prompts).mask
                value = dice(found, item.scene.mask(item.region))
                by_dataset.setdefault(item.scene.case.dataset, []).append(value)
            mean = np.mean([np.mean(values) for values in by_dataset.values()])
            assert abs(mean - done.card.metrics["val_dice"][name]) < 1e-9

    def test_samples_are_drawn_where_the_masks_are(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        run(recipe_of(epochs=1, validation={"overlays": 2}), tmp_path / "run")
        pictures = sorted((tmp_path / "run" / "overlays").iterdir())
        assert [path.name for path in pictures] == ["step-000000.png", "step-000002.png"]
        for path in pictures:
            with PILImage.open(path) as picture:
                assert min(picture.size) > 50


def sights(case: Any, recipe: Any, frame: Any, encoder_hash: str) -> Any:
    from palpate.training.scenes import sights_of

    data = recipe.data
    return sights_of(case, frame=frame, encoder_hash=encoder_hash, min_pixels=data.min_pixels)


class TestTheFolder:
    @pytest.fixture
    def done(self, tmp_path: Path, recipe_of: RecipeOf) -> Finetuned:
        return run(recipe_of(epochs=1, validation=SMALL_VALIDATION), tmp_path / "run", command="palpate finetune x")

    def test_the_record_says_what_was_run_and_what_came_of_it(self, done: Finetuned, home: Path) -> None:
        record = json.loads((done.folder / "run.json").read_text())
        assert record["command"] == "palpate finetune x"
        assert record["finished"]
        assert record["steps"] == 2
        settings = record["settings"]
        assert settings["weights_hash"] == tiny_training.card().content_sha256
        assert len(settings["data_sha256"]) == 64
        assert {"python", "torch", "palpate", "numpy"} <= settings["versions"].keys()
        assert str(home) not in json.dumps(settings)
        card = cards.adapter_card(done.adapter)
        assert card.base_sha256 == settings["weights_hash"]
        assert card.recipe == settings["recipe"]
        assert card.metrics == record["metrics"]
        assert card.command == record["command"]

    def test_tensorboard_holds_what_the_table_holds(self, done: Finetuned) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(done.folder / "tensorboard"))
        board.Reload()
        found = {
            (tag.removeprefix("val/"), event.step): event.value
            for tag in board.Tags()["scalars"]
            for event in board.Scalars(tag)
        }
        wanted = {
            (name, int(row["step"])): float(text)
            for row in log(done.folder)
            for name, text in row.items()
            if name != "step" and text
        }
        assert found.keys() == wanted.keys()
        assert all(abs(found[key] - wanted[key]) <= 1e-6 * abs(wanted[key]) for key in wanted)

    def test_a_finished_run_is_only_read(self, done: Finetuned, recipe_of: RecipeOf) -> None:
        before, events = contents(done.folder), []
        again = run(recipe_of(epochs=1, validation=SMALL_VALIDATION), done.folder, listener=events.append)
        assert contents(done.folder) == before
        assert again.steps == 2
        assert replace(again.card, command="") == replace(cards.adapter_card(done.adapter), command="")
        assert events[-1].kind == "finished"
        assert not any(event.kind == "step" for event in events)

    def test_another_recipe_is_refused_before_anything_is_encoded(
        self, done: Finetuned, recipe_of: RecipeOf, tmp_path: Path
    ) -> None:
        before = contents(done.folder)
        with pytest.raises(
            OutputError, match=r"differs in its recipe \(seed is 0 there and 1 here\); choose another folder"
        ):
            run(recipe_of(epochs=1, seed=1, validation=SMALL_VALIDATION), done.folder, cache=tmp_path / "cache")
        assert contents(done.folder) == before
        assert EmbeddingCache(tmp_path / "cache").use().embeddings == 0

    def test_overwriting_leaves_nothing_of_the_other_run(
        self, done: Finetuned, recipe_of: RecipeOf, tmp_path: Path
    ) -> None:
        (done.folder / "overlays").mkdir()
        (done.folder / "overlays" / "step-000007.png").write_bytes(b"old")
        other = recipe_of(epochs=1, seed=1, validation=SMALL_VALIDATION)
        run(other, done.folder, overwrite=True)
        run(other, tmp_path / "fresh")
        assert (done.folder / "log.csv").read_text() == (tmp_path / "fresh" / "log.csv").read_text()
        assert not list((done.folder / "overlays").iterdir())
        assert len(list((done.folder / "tensorboard").iterdir())) == 1

    def test_other_data_is_another_run(self, done: Finetuned, recipe_of: RecipeOf, tmp_path: Path) -> None:
        other = tiny_training.phantoms(tmp_path / "other", train=5)
        with pytest.raises(OutputError, match="differs in its data"):
            run(recipe_of(epochs=1, validation=SMALL_VALIDATION, data={"path": str(other)}), done.folder)

    def test_a_folder_of_something_else_is_refused(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.png").write_bytes(b"")
        with pytest.raises(OutputError, match="is not empty and holds no run"):
            run(recipe_of(), tmp_path / "photos")
        with pytest.raises(OutputError, match="is a file"):
            run(recipe_of(), tmp_path / "photos" / "cat.png")

    def test_two_processes_do_not_train_in_one_folder(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        first = RunFolder(tmp_path / "run")
        settings = {"recipe": "x"}
        first.prepare(settings, command="")
        second = RunFolder(tmp_path / "run")
        with pytest.raises(OutputError, match="another process is training"):
            second.prepare(settings, command="")
        first.release()
        second.prepare(settings, command="")
        second.release()

    def test_half_a_record_of_a_killed_process_is_no_obstacle(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".run-x81.json").write_text('{"comm')
        assert run(recipe_of(epochs=1, validation=SMALL_VALIDATION), tmp_path / "run").steps == 2


class TestParts:
    def test_the_teacher_answers_the_same_alone_and_in_company(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        students: list[Student] = []
        asked: list[Any] = []
        original = Student.taught

        def watched(self: Student, items: Any) -> Any:
            students.append(self)
            asked.append(items)
            return original(self, items)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Student, "taught", watched)
            run(
                recipe_of(loss={"preset": "bce+dice", "teacher": 1.0}, epochs=1, validation=SMALL_VALIDATION),
                tmp_path / "run",
            )
        pupil, items = students[-1], asked[-1]
        together = pupil.taught(items)
        pupil._taught.clear()
        alone = torch.cat([pupil.taught([item]) for item in reversed(items)]).flip(0)
        assert torch.equal(together, alone)

    def test_accumulated_batches_are_one_large_batch(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        # To the rounding of another order of sums.
        common: dict[str, Any] = {"epochs": 1, "steps": 3, "validation": SMALL_VALIDATION, "loss": "lite-medsam"}
        run(recipe_of(batch=4, **common), tmp_path / "one")
        run(recipe_of(batch=2, accumulate=2, **common), tmp_path / "two")
        assert np.allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), rtol=1e-4)

    def test_events_tell_how_far_it_is(self, tmp_path: Path, recipe_of: RecipeOf) -> None:
        events: list[Event] = []
        run(recipe_of(epochs=1, validation=SMALL_VALIDATION), tmp_path / "run", listener=events.append)
        kinds = [event.kind for event in events if event.kind != "embedding"]
        assert kinds == ["estimate", "validation", "step", "step", "validation", "finished"]
        steps = [event for event in events if event.kind == "step"]
        assert [(event.done, event.total) for event in steps] == [(1, 2), (2, 2)]
        assert all(np.isfinite(event.values["loss"]) for event in steps)
