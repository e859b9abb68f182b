"""From finished cases to first guesses: what is learned from, how it goes on by itself, and what comes of it."""

import json
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import dicom_phantoms
from fake_runtime import FakeFindingRuntime
from palpate.datasets import open_dataset
from palpate.errors import DatasetError, FormatError, InputError
from palpate.images import Image, read
from palpate.images.geometry import affine_from_spacing
from palpate.images.intensity import intensity_for, to_uint8
from palpate.inference.session import Session
from palpate.models.promptable import LearnedClass
from palpate.prompts import Box, Target
from palpate.server import teaching
from palpate.server.jobs import Busy, Job, Jobs
from palpate.server.taught_cases import write_cases, write_image
from palpate.server.teaching import ENOUGH, LEAST, Teaching
from phantoms import disk, picture, rectangle


@dataclass(frozen=True)
class Label:
    value: int
    name: str


@dataclass(frozen=True)
class Status:
    status: str
    labels: tuple[int, ...]


@dataclass
class SmallDesk:
    """As much of a desk as teaching asks for. Those cases are finished that have a label map."""

    images: dict[str, Image] = field(default_factory=dict)
    drawn: dict[str, np.ndarray] = field(default_factory=dict)
    names: tuple[Label, ...] = (Label(2, "large one"), Label(7, "a|b=c"), Label(9, "never drawn"))

    def image(self, case: str) -> Image:
        if case not in self.images:
            raise FormatError(f"{case} is damaged")
        return self.images[case]

    def labels_of(self, case: str) -> np.ndarray:
        return self.drawn[case]

    def labels(self) -> Sequence[Label]:
        return self.names

    def finished(self) -> list[str]:
        return sorted(self.drawn)

    def cases(self) -> list[Status]:
        return [
            Status("done", tuple(np.unique(self.drawn[case])[1:].tolist())) if case in self.drawn else Status("new", ())
            for case in self.images
        ]


@pytest.fixture
def jobs() -> Generator[Jobs]:
    made = Jobs()
    yield made
    assert made.close(seconds=120)


def pictures(folder: Path, *, finished: int, more: int = 0) -> SmallDesk:
    """A desk of pictures with a bright disk (label 2), of which some are finished."""
    desk, rng = SmallDesk(), np.random.default_rng(3)
    for number in range(finished + more):
        body = disk((60, 80), centre=(25 + 3 * number, 30), radius=12)
        pixels = picture((body, 190), background=40) + rng.integers(0, 25, (60, 80)).astype(np.uint8)
        Picture.fromarray(pixels).save(folder / f"p{number}.png")
        desk.images[f"p{number}"] = read(folder / f"p{number}.png")
        if number < finished:
            desk.drawn[f"p{number}"] = 2 * body.astype(np.uint8)
    return desk


def nothing_told(_done: int, _total: int) -> None:
    pass


class TestFinishedCasesAsADataset:
    def desk(self, folder: Path) -> SmallDesk:
        """One image of every kind that is written, or named, in a way of its own."""
        rng = np.random.default_rng(0)
        grey, volume = rng.integers(0, 255, (20, 30), dtype=np.uint8), rng.integers(-900, 900, (5, 20, 30))
        Picture.fromarray(grey).save(folder / "png.png")
        stack = [Picture.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)) for _ in range(3)]
        stack[0].save(folder / "tiff.tif", save_all=True, append_images=stack[1:])
        (folder / "tiff.json").write_text(json.dumps({"spacing": [3.0, 0.7, 0.7]}))
        np.savez(folder / "npz.npz", imgs=rng.integers(0, 255, (4, 20, 30), dtype=np.uint8))
        tilted = affine_from_spacing((0.8, 0.9, 4.0))
        tilted[:3, 1] += (0.1, 0.0, 0.2)  # oblique and sheared
        write_image(folder / "nifti", Image(volume.astype(np.int16), tilted))
        dicom_phantoms.write(dicom_phantoms.series(), folder / "series")
        desk = SmallDesk({name.split(".")[0]: read(folder / name) for name in _NAMES})
        desk.images["nowhere"] = Image(volume.astype(np.int64), tilted, modality="MR")
        desk.images["x-ray"] = Image(grey, modality="XR")
        desk.images["colours"] = Image(rng.integers(0, 255, (3, 20, 30, 3), dtype=np.uint8), colour=True)
        desk.images["ultrasound"] = Image(grey, modality="US")
        for number, (case, image) in enumerate(desk.images.items()):
            labels = np.zeros(image.shape, dtype=np.uint8)
            labels[..., 2:4, 2 : 5 + number] = 2
            labels[..., 4, 3] = 7 if number else 0
            desk.drawn[case] = labels
        return desk

    def test_every_image_and_label_map_comes_back_as_it_is_on_the_desk(self, tmp_path: Path) -> None:
        desk, told = self.desk(tmp_path), list[tuple[int, int]]()
        names = write_cases(desk, desk.finished(), tmp_path / "out", progress=lambda *pair: told.append(pair))
        assert names == {2: "large one", 7: "a|b=c"}  # and no label that is in none of them
        assert told == [(n, 9) for n in range(10)]
        cases = {case.subject: case for case in open_dataset(tmp_path / "out")}
        assert set(cases) == set(desk.images)
        for name, case in cases.items():
            found, image = case.read(), desk.images[name]
            assert np.array_equal(found.labels, desk.drawn[name]), name
            assert [(region.name, region.values) for region in case.regions] == [("large one", (2,)), ("a|b=c", (7,))]
            assert np.array_equal(found.image.array, image.array), name
            seen, shown = (to_uint8(one, intensity_for(one)) for one in (found.image, image))
            assert np.array_equal(seen, shown), name
            if name in ("nifti", "series", "nowhere"):
                assert np.allclose(found.image.affine, image.affine, atol=1e-4), name
        assert sorted(path.name for path in (tmp_path / "out/images").iterdir()) == [
            "colours.nii.gz",
            "nowhere.nii.gz",
            "series.nii.gz",
            "ultrasound.nii.gz",
            "x-ray.png",
        ]

    def test_what_was_there_before_goes(self, tmp_path: Path) -> None:
        desk = pictures(tmp_path, finished=3)
        write_cases(desk, ["p0", "p1", "p2"], tmp_path / "out", progress=nothing_told)
        write_cases(desk, ["p1"], tmp_path / "out", progress=nothing_told)
        assert [path.name for path in (tmp_path / "out/labels").iterdir()] == ["p1.png"]

    def test_nothing_drawn_is_nothing_to_learn(self, tmp_path: Path) -> None:
        desk = pictures(tmp_path, finished=3)
        desk.drawn = {case: np.zeros_like(labels) for case, labels in desk.drawn.items()}
        with pytest.raises(DatasetError, match="no label"):
            write_cases(desk, desk.finished(), tmp_path / "out", progress=nothing_told)


_NAMES = ("png.png", "tiff.tif", "npz.npz", "nifti.nii.gz", "series")


class TestBeforeAnythingIsLearned:
    def test_it_says_what_there_is_to_learn(self, tmp_path: Path, jobs: Jobs) -> None:
        status = Teaching(pictures(tmp_path, finished=4, more=2), tmp_path / "teaching", jobs).status()
        assert (status.finished, status.enough, status.least) == (4, ENOUGH, LEAST)
        assert status.classes == ("large one",)
        assert status.learned is None
        assert status.job is None

    @pytest.mark.parametrize(("finished", "said"), [(1, "1 case is finished"), (2, "finish 1 more")])
    def test_too_few_cases_are_refused(self, tmp_path: Path, jobs: Jobs, finished: int, said: str) -> None:
        with pytest.raises(InputError, match=said):
            Teaching(pictures(tmp_path, finished=finished), tmp_path / "teaching", jobs).teach()

    def test_there_is_nothing_to_guess_by(self, tmp_path: Path, jobs: Jobs) -> None:
        with pytest.raises(InputError, match="teach them first"):
            Teaching(pictures(tmp_path, finished=4), tmp_path / "teaching", jobs).guess(["p0"], lambda *_: None)

    def test_what_learning_cannot_do_is_said_in_its_words(self, tmp_path: Path, jobs: Jobs) -> None:
        teaching = Teaching(pictures(tmp_path, finished=3), tmp_path / "teaching", jobs, options=("--max-size", "much"))
        job = jobs.wait(teaching.teach().id, 120)
        assert job.status == "failed"
        assert "--max-size much" in job.detail
        assert teaching.status().job == job


def learned_before(folder: Path, *, number: int = 1) -> Path:
    """The files of a finished attempt, without what is in them."""
    folder.mkdir(exist_ok=True)
    path = folder / f"learned-{number}.safetensors"
    path.touch()
    record = {"cases": ["a", "b", "c"], "classes": ["dim", "bright"], "val_dice": 0.75, "made_at": "2026-01-01"}
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


class TestGuessing:
    """By a model that finds two classes in 64 x 64 pixels: dim (1), above one quarter, and bright (4)."""

    made: dict[str, tuple[np.ndarray, Mapping[int, str], float]]

    def guessed(self, case: str, labels: np.ndarray, names: Mapping[int, str], score: float) -> None:
        self.made[case] = (labels, names, score)

    def desk(self) -> SmallDesk:
        left, right = rectangle((64, 64), 5, 5, 20, 20), rectangle((64, 64), 30, 30, 50, 50)
        white = rectangle((64, 64), 63, 63, 63, 63)  # on the row that it does not look at: greys stay as they are
        both, dim, none = (
            picture(*bodies, (white, 255)) for bodies in (((left, 102), (right, 255)), ((left, 102),), ((left, 30),))
        )
        deep = Image(np.stack([dim] * 3), affine_from_spacing((1.0, 1.0, 5.0)), modality="photo")
        return SmallDesk({"both": Image(both), "dim": deep, "none": Image(none)})

    def teaching(self, folder: Path, jobs: Jobs, desk: SmallDesk | None = None) -> Teaching:
        self.made = {}
        learned_before(folder)
        loaded: list[Path] = []

        def load(path: Path, tell: object) -> Session:
            loaded.append(path)
            return Session(FakeFindingRuntime())

        return Teaching(desk or self.desk(), folder, jobs, load=load)

    def test_each_case_gets_what_was_found_in_it(self, tmp_path: Path, jobs: Jobs) -> None:
        teaching = self.teaching(tmp_path / "teaching", jobs)
        job = jobs.wait(teaching.guess(["both", "dim"], self.guessed).id, 20)
        assert (job.status, job.done, job.total) == ("finished", 2, 2)
        labels, names, score = self.made["both"]
        assert labels.dtype == np.uint8
        assert np.array_equal(np.unique(labels), [0, 1, 4])
        assert (labels[10, 10], labels[40, 40]) == (1, 4)
        assert names == {1: "dim", 4: "bright"}
        # The least sure: dim, whose predicted IoU is the mean brightness of all that is dim, bright pixels too.
        mean = (16**2 * 0.4 + 21**2) / (16**2 + 21**2)
        assert score == pytest.approx(mean / (1 + np.exp(-4)), abs=1e-3)
        labels, names, score = self.made["dim"]
        assert labels.shape == (3, 64, 64)
        assert names == {1: "dim"}
        assert score == pytest.approx(0.4 / (1 + np.exp(-4)), abs=1e-3)
        assert job.detail == "2 of 2 cases have a first guess; no bright was found in dim"

    def test_cases_without_and_damaged_ones_are_told(self, tmp_path: Path, jobs: Jobs) -> None:
        teaching = self.teaching(tmp_path / "teaching", jobs)
        job = jobs.wait(teaching.guess(["none", "broken", "both"], self.guessed).id, 20)
        assert job.status == "finished"
        assert set(self.made) == {"both"}
        assert job.detail == (
            "1 of 3 cases have a first guess; no dim was found in none; no bright was found in none; "
            "broken could not be looked at (broken is damaged)"
        )

    def test_it_can_be_cancelled_between_slices(self, tmp_path: Path, jobs: Jobs) -> None:
        desk, looked, go_on = self.desk(), threading.Event(), threading.Event()
        desk.images["deep"] = replace(desk.images["dim"], array=np.repeat(desk.images["dim"].array, 50, axis=0))

        class Slow(FakeFindingRuntime):
            slices = 0

            def find(self, *arguments: object, **options: object):
                type(self).slices += 1
                looked.set()
                assert go_on.wait(20)
                return super().find(*arguments, **options)  # pyright: ignore[reportArgumentType]

        learned_before(tmp_path)
        self.made = {}
        teaching = Teaching(desk, tmp_path, jobs, load=lambda *_: Session(Slow()))
        job = teaching.guess(["deep", "both"], self.guessed)
        assert looked.wait(20)
        with pytest.raises(Busy):
            teaching.guess(["both"], self.guessed)
        jobs.cancel(job.id)
        go_on.set()
        assert jobs.wait(job.id, 20).status == "cancelled"
        assert Slow.slices < 5
        assert not self.made

    def test_the_last_that_was_learned_is_used(self, tmp_path: Path, jobs: Jobs) -> None:
        teaching = self.teaching(tmp_path, jobs)
        learned_before(tmp_path, number=10)
        learned_before(tmp_path, number=11).unlink()  # somebody has removed it
        learned_before(tmp_path, number=12).with_suffix(".json").write_text("{")
        learned = teaching.learned()
        assert learned is not None
        assert learned.path.name == "learned-10.safetensors"
        assert (learned.cases, learned.classes, learned.val_dice) == (3, ("dim", "bright"), 0.75)


_SLEEPS = """
import signal, sys, time
import palpate.cli
from palpate.cli import alongside

def sleep(arguments):
    print("sleeping", flush=True)
    time.sleep(100)

signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
palpate.cli.main = sleep
alongside.main()
"""


def test_a_command_ends_when_nobody_holds_its_input_any_more() -> None:
    # It is held by the server, whose pipes are closed however it ends.
    command = [sys.executable, "-c", _SLEEPS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == b"sleeping"
            assert process.poll() is None
            _, said = process.communicate(timeout=60)  # closes its input
        finally:
            process.kill()
    assert b"KeyboardInterrupt" in said


QUICK = ("--moves", "0", "--threads", "1", "--batch", "1")


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.usefixtures("weights")
class TestALesson:
    """The process is stood for by one that writes a file at once."""

    @pytest.fixture(autouse=True)
    def process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def carried_out(arguments: Sequence[str], result: Path, report: object) -> None:
            result.write_bytes(result.name.encode())
            result.with_suffix(".run").mkdir(exist_ok=True)

        monkeypatch.setattr(teaching, "_carried_out", carried_out)

    def test_it_knows_the_classes_of_the_file_and_tells_which_are_not_in_it(self, tmp_path: Path, jobs: Jobs) -> None:
        desk = pictures(tmp_path, finished=3)
        desk.drawn["p0"][0, :9] = 7
        learning = Teaching(desk, tmp_path / "teaching", jobs, load=lambda path, tell: knowing("large one"))
        job = jobs.wait(learning.teach().id, 30)
        assert job.detail == "learned large one from 3 cases; nothing of a|b=c, which only cases held out show"
        assert learning.beside("large one").file == "learned-1.safetensors"
        with pytest.raises(InputError, match="only of large one"):
            learning.beside("a|b=c")

    def test_what_cannot_be_used_is_not_offered_and_the_lesson_before_stays(self, tmp_path: Path, jobs: Jobs) -> None:
        def load(path: Path, tell: object) -> Session:
            if path.stem == "learned-2":
                raise FormatError("it cannot be made ready")
            return knowing("large one")

        learning = Teaching(pictures(tmp_path, finished=3), tmp_path / "teaching", jobs, load=load)
        assert jobs.wait(learning.teach().id, 30).status == "finished"
        job = jobs.wait(learning.teach().id, 30)
        assert (job.status, job.detail) == ("failed", "it cannot be made ready")
        assert learning.beside("large one").file == "learned-1.safetensors"

    def test_while_it_is_made_ready_one_draws_beside_the_one_before(self, tmp_path: Path, jobs: Jobs) -> None:
        asked, read = threading.Event(), threading.Event()

        def load(path: Path, tell: object) -> Session:
            if path.stem == "learned-2":
                asked.set()
                assert read.wait(30)
            return knowing("large one")

        learning = Teaching(pictures(tmp_path, finished=3), tmp_path / "teaching", jobs, load=load)
        assert jobs.wait(learning.teach().id, 30).status == "finished"
        job = learning.teach()
        try:
            assert asked.wait(30)
            before = learning.beside("large one")
            assert before.file == "learned-1.safetensors"
            learning.session(before.sha256)
        finally:
            read.set()
        assert jobs.wait(job.id, 30).status == "finished"
        assert learning.beside("large one").file == "learned-2.safetensors"


def knowing(*classes: str) -> Session:
    """A session on what was learned of some classes."""
    return Session(FakeFindingRuntime(classes=tuple(LearnedClass(name, i) for i, name in enumerate(classes, 1))))


class TestTheWholeWay:
    """With the real weights and the real command, in a few steps: what is learned is not worth much."""

    def taught(self, desk: SmallDesk, folder: Path, jobs: Jobs, *, steps: int) -> Teaching:
        cache = folder.parent / "embeddings"
        return Teaching(desk, folder, jobs, steps=steps, device="cpu", cache=cache, options=QUICK)

    def test_finished_cases_become_guesses(self, tmp_path: Path, jobs: Jobs) -> None:
        desk = pictures(tmp_path, finished=5, more=1)
        teaching = self.taught(desk, tmp_path / "teaching", jobs, steps=8)
        job = teaching.teach()
        with pytest.raises(Busy, match="teach"):
            teaching.teach()
        job = jobs.wait(job.id, 300)
        assert job.status == "finished", job.detail
        assert job.detail.startswith("learned large one from 5 cases; Dice ")
        learned = teaching.learned()
        assert learned is not None
        assert (learned.path.name, learned.cases, learned.classes) == ("learned-1.safetensors", 5, ("large one",))
        assert learned.val_dice is not None
        assert teaching.status().learned == learned

        beside = teaching.beside("large one")
        assert beside.file == learned.path.name
        session = teaching.session(beside.sha256)
        session.set_image(desk.images["p5"])
        drawn = session.find_one(Target((Box(24, 14, 54, 44),), name=beside.name))
        assert drawn.provenance.mode == "semi-autonomous"
        assert drawn.objects[0].voxels

        made: dict[str, np.ndarray] = {}
        job = jobs.wait(teaching.guess(["p5"], lambda case, labels, *_: made.update({case: labels})).id, 300)
        assert job.status == "finished", job.detail
        assert "1 of 1 cases" in job.detail or "found in p5" in job.detail
        assert all(set(np.unique(labels).tolist()) == {0, 2} for labels in made.values())

    def test_a_run_that_was_cancelled_goes_on_where_it_was(self, tmp_path: Path, jobs: Jobs) -> None:
        desk = pictures(tmp_path, finished=3)
        teaching = self.taught(desk, tmp_path / "teaching", jobs, steps=2000)
        said = tmp_path / "teaching/learned-1.txt"
        for attempt in ("fresh", "resumed"):
            job = _until_step(jobs, teaching.teach().id)
            assert (job.total, job.detail.startswith("step ")) == (2000, True)
            assert job.seconds_left is None or job.seconds_left > 0
            assert ("going on after step" in said.read_text()) == (attempt == "resumed")
            jobs.cancel(job.id)
            assert jobs.wait(job.id, 120).status == "cancelled"
            assert "the same command goes on where it was" in said.read_text()
        assert teaching.learned() is None
        assert not (tmp_path / "teaching/learned-2.run").exists()


def _until_step(jobs: Jobs, job: str) -> Job:
    """The job when it has taken three more steps than when it was first heard of one."""
    pause, first = threading.Event(), None
    for _ in range(3000):
        now = jobs.get(job)
        assert now.status == "running", now.detail
        if now.total == 2000 and now.done:
            first = now.done if first is None else first
            if now.done >= first + 3:
                return now
        pause.wait(0.1)
    raise AssertionError("no step was taken in five minutes")
