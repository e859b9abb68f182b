"""From the finished cases to first guesses for the others: prompts are learned in the background, and used.

What is learned is what `palpate learn` makes, in a process of its own: the server keeps answering, the process can be
stopped at any time, and the next attempt goes on where it was if nothing has changed since.

    FOLDER/cases/                   the finished cases as a dataset
    FOLDER/learned-3.safetensors    what was learned the third time
    FOLDER/learned-3.json           from which cases, when, and how well it did on those held out
    FOLDER/learned-3.run/           the record of the run, as `palpate learn` keeps it
    FOLDER/learned-3.txt            what the process said
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from palpate.errors import InputError, OutputError, PalpateError
from palpate.images.formats import replacing
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.inference.runtimes import FindingRuntime
from palpate.inference.segmentation import Segmentation
from palpate.inference.session import Session
from palpate.server.draft import Beside
from palpate.server.jobs import Cancelled, Job, Jobs, Report
from palpate.server.opened import SESSION_BYTES
from palpate.server.taught_cases import LabelledCases, write_cases

ENOUGH = 10
"""From so many finished cases on it is offered, as in the tutorial on labelling ten."""

LEAST = 3
"""With fewer it is refused. Two images show one difference, and whatever else they have in common would be learned for
the thing itself; a third is the least that can contradict them."""

MEASURED_FROM = 5
"""From so many cases on some are held out, to choose weights with and to measure. Of fewer, none can be spared."""

HELD_OUT = 0.2
"""As large a share of the cases is held out."""

_GRACE_SECONDS = 30.0
"""To write down where it is takes a process that was asked to stop a moment, or seconds on a slow disk."""

_LOOK_SECONDS = 0.3

_KEPT = 2
"""So many of what was learned stay in memory: the last one, and the one before, which an open object may be beside."""

_TOLD = 5
"""So many cases are named in a sentence; the rest is counted."""

Guessed = Callable[[str, UInt8[np.ndarray, "..."], Mapping[int, str], float], None]
"""Takes a first guess: the case, its label map in array order, the names of the labels in it, and a score of 0 to 1."""

Load = Callable[[Path, Callable[[str], None]], Session]
"""A session on what was learned, by its file; the function is told what takes a while."""


@runtime_checkable
class Listed(Protocol):
    """What a list of cases says of one."""

    @property
    def status(self) -> str:
        """`done`, or something else."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """The values in its label map."""
        ...


@runtime_checkable
class TaughtDesk(LabelledCases, Protocol):
    """A desk that something can be learned from."""

    def cases(self) -> Sequence[Listed]:
        """All cases."""
        ...

    def finished(self) -> Sequence[str]:
        """The names of those that are done."""
        ...


@dataclass(frozen=True)
class Learned:
    """What was learned: its file, from how many cases, what it finds, and when it was made (ISO 8601, UTC).

    `val_dice` is the mean Dice over classes on the cases held out; None where none was. `sha256` is that of the file.
    """

    path: Path
    sha256: str
    cases: int
    classes: tuple[str, ...]
    val_dice: float | None
    made_at: str


@dataclass(frozen=True)
class TeachingStatus:
    """How things stand: `classes` are in the finished cases, and `job` teaches or guesses now, or did so last."""

    finished: int
    enough: int
    least: int
    classes: tuple[str, ...]
    learned: Learned | None
    job: Job | None


class Teaching:
    """Learning from a desk's finished cases, and guessing at the others.

    - `folder` is where it all lies, in the desk's state.
    - `model` is the base model (default: palpate's), `weights` a checkpoint file of it, `device` as everywhere;
      `runtime` and `precision` are those of `palpate.load`, for what was learned.
    - `cache` is a folder of embeddings, which learning fills (default: the usual one) and guessing reads.
    - `steps` of learning, and further `options` of `palpate learn`; what it does by itself unless given.
    - `load` opens what was learned; the default is `palpate.load`.
    """

    def __init__(
        self,
        desk: TaughtDesk,
        folder: Path,
        jobs: Jobs,
        *,
        model: str | None = None,
        weights: Path | None = None,
        device: str = "auto",
        runtime: str = "auto",
        precision: str = "float32",
        cache: Path | None = None,
        steps: int | None = None,
        options: Sequence[str] = (),
        load: Load | None = None,
    ) -> None:
        self._desk, self._folder, self._jobs = desk, folder, jobs
        self._model, self._weights, self._device, self._cache = model, weights, device, cache
        self._steps, self._options = steps, tuple(options)
        self._runtime, self._precision = runtime, precision
        self._load = load or self._loaded
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}
        self._sessions: dict[str, Session] = {}
        self._hashes: dict[tuple[Path, int], str] = {}

    def status(self) -> TeachingStatus:
        """How things stand."""
        done = [case for case in self._desk.cases() if case.status == "done"]
        held = {value for case in done for value in case.labels}
        names = tuple(label.name for label in self._desk.labels() if label.value in held)
        now = [*self._jobs.running("teach"), *self._jobs.running("guess")]
        last = [job for job in (self._jobs.last("guess"), self._jobs.last("teach")) if job is not None]
        return TeachingStatus(len(done), ENOUGH, LEAST, names, self.learned(), (now or last or [None])[0])

    def learned(self) -> Learned | None:
        """What was learned last."""
        for number in sorted(self._numbers(), reverse=True):
            found = self._record(number)
            if found is not None:
                return found
        return None

    def beside(self, name: str) -> Beside:
        """What was learned last of a class, for prompts to go in beside it.

        Raises:
            InputError: nothing was learned so far, or not of this class.
        """
        learned = self.learned()
        if learned is None:
            raise InputError("nothing was learned yet; finish some cases and teach them first, or draw without it")
        if name not in learned.classes:
            raise InputError(
                f"nothing was learned of {name[:70]!r}, only of {', '.join(learned.classes)}; choose one of these, or "
                "draw without what was learned"
            )
        return Beside(name, learned.path.name, learned.sha256)

    def ready(self, sha256: str) -> None:
        """Read what was learned, unless it is in memory; raises what `session` does."""
        self._opened(sha256, lambda _: None)

    def session(self, sha256: str, *, tell: Callable[[str], None] | None = None) -> Session:
        """A new session on what was learned, by the SHA-256 of its file; the model is read where it was not yet.

        Raises:
            InputError: no such file is kept here.
        """
        return self._opened(sha256, tell or (lambda _: None)).sibling(memory_bytes=SESSION_BYTES)

    def _opened(self, sha256: str, tell: Callable[[str], None], path: Path | None = None) -> Session:
        """The session on a file (None: one that was kept) which others are siblings of."""
        with self._lock:
            turn = self._turns.setdefault(sha256, threading.Lock())
        with turn:  # whoever asks for another one does not wait until this is read
            with self._lock:
                session = self._sessions.pop(sha256, None)
            session = session or self._load(path or self._kept(sha256), tell)
            with self._lock:
                self._sessions[sha256] = session  # those used last, at the end
                for other in list(self._sessions)[:-_KEPT]:
                    del self._sessions[other]
            return session

    def _kept(self, sha256: str) -> Path:
        for number in sorted(self._numbers(), reverse=True):
            learned = self._record(number)
            if learned is not None and learned.sha256 == sha256:
                return learned.path
        raise InputError(
            f"the learned prompts that this was drawn beside are gone (SHA-256 {sha256[:12]}): a file "
            "learned-....safetensors, or the .json of its name, is missing in the folder `learned` of what the server "
            "keeps; put it back, or undo the object and draw it anew"
        )

    def teach(self) -> Job:
        """Learn from the cases that are finished now, in the background.

        Raises:
            InputError: too few are finished. Busy: it is being learned already, or too much else is running.
        """
        cases = list(self._desk.finished())
        if len(cases) < LEAST:
            are = "case is" if len(cases) == 1 else "cases are"
            raise InputError(
                f"{len(cases)} {are} finished, and at least {LEAST} are needed to learn from; finish "
                f"{LEAST - len(cases)} more, {ENOUGH} for guesses that are worth correcting"
            )
        return self._jobs.start("teach", lambda report: self._teach(cases, report), alone=True)

    def guess(self, cases: Sequence[str], guessed: Guessed) -> Job:
        """Look for what was learned in these cases, in the background, and hand each that shows any of it to `guessed`.

        The score of a guess is the lowest of its objects' (`SegmentedObject.score`). Cases without any of the classes,
        and those that cannot be read, are named in the job's last word; they do not end it.

        Raises:
            InputError: nothing was learned so far. Busy: guesses are being made already, or too much is running.
        """
        learned = self.learned()
        if learned is None:
            raise InputError("nothing was learned yet; finish some cases and teach them first")
        chosen = list(cases)
        return self._jobs.start("guess", lambda report: self._guess(learned, chosen, guessed, report), alone=True)

    # Learning.

    def _teach(self, cases: Sequence[str], report: Report) -> str:
        data = self._folder / "cases"
        report.progress(0, 0, "collecting the finished cases")
        names = write_cases(self._desk, cases, data, progress=report.progress)
        number = self._next()
        path = self._path(number)
        arguments = ["learn", str(data), "-o", str(path), "--overwrite", "--device", self._device]
        arguments += [] if self._model is None else ["--model", self._model]
        arguments += [] if self._weights is None else ["--weights", str(self._weights)]
        arguments += [] if self._cache is None else ["--cache", str(self._cache)]
        arguments += [] if self._steps is None else ["--steps", str(self._steps)]
        arguments += ["--held-out", str(HELD_OUT)] if len(cases) >= MEASURED_FROM else []
        _carried_out([*arguments, *self._options], path, report)
        # It is not offered before it can be used: whoever draws meanwhile does so beside what was learned before.
        report.progress(0, 0, "making it ready")
        runtime = self._opened(self._hash(path), report.say, path).runtime
        assert isinstance(runtime, FindingRuntime)
        learned = self._keep(number, cases, tuple(one.name for one in runtime.classes))
        measured = "" if learned.val_dice is None else f"; Dice {learned.val_dice:.2f} on those held out"
        absent = [name for name in names.values() if name not in learned.classes]
        nothing = f"; nothing of {', '.join(absent)}, which only cases held out show" if absent else ""
        return f"learned {', '.join(learned.classes)} from {len(cases)} cases{measured}{nothing}"

    def _keep(self, number: int, cases: Sequence[str], classes: tuple[str, ...]) -> Learned:
        path = self._path(number)
        measured = _measured(path.with_suffix(".run"))
        made_at = datetime.now(UTC).isoformat(timespec="seconds")
        record: dict[str, Any] = {"cases": list(cases), "classes": list(classes), "val_dice": measured}
        with replacing(path.with_suffix(".json"), overwrite=True) as temporary:
            temporary.write_text(json.dumps({**record, "made_at": made_at}, indent=2) + "\n", encoding="utf-8")
        return Learned(path, self._hash(path), len(cases), classes, measured, made_at)

    def _record(self, number: int) -> Learned | None:
        path = self._path(number)
        try:
            told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            of = len(told["cases"]), tuple(told["classes"]), told["val_dice"], told["made_at"]
            return Learned(path, self._hash(path), *of)
        except (OSError, ValueError, KeyError, TypeError):  # it was never finished, or somebody has changed it
            return None

    def _hash(self, path: Path) -> str:
        # How things stand is asked for every second.
        key = path, path.stat().st_mtime_ns
        if key not in self._hashes:
            with path.open("rb") as stream:
                self._hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._hashes[key]

    def _next(self) -> int:
        """The number of an attempt that never came to its end, which is then taken up, or the next one."""
        last = max(self._numbers(), default=0)
        return last + 1 if last == 0 or self._record(last) is not None else last

    def _numbers(self) -> set[int]:
        if not self._folder.is_dir():
            return set()
        found = (re.fullmatch(r"learned-(\d{1,9})\.(run|safetensors)", path.name) for path in self._folder.iterdir())
        return {int(match[1]) for match in found if match}

    def _path(self, number: int) -> Path:
        return self._folder / f"learned-{number}.safetensors"

    # Guessing.

    def _guess(self, learned: Learned, cases: Sequence[str], guessed: Guessed, report: Report) -> str:
        report.progress(0, len(cases), "loading what was learned")
        session = self.session(learned.sha256, tell=report.say)
        made: list[str] = []
        absent: dict[str, list[str]] = {}
        failed: dict[str, str] = {}
        for number, case in enumerate(cases):
            report.progress(number, len(cases), f"looking at {case}")
            try:
                found = self._found(session, case, report)
                there = [one for one in found.objects if one.voxels]
                if there:
                    names = {one.label: one.name for one in there}
                    guessed(case, found.labels.astype(np.uint8), names, float(min(one.score for one in there)))
                    made.append(case)
            except PalpateError as error:  # also of keeping it: a label may be locked
                failed[case] = str(error)
                continue
            for one in found.objects:
                if not one.voxels:
                    absent.setdefault(one.name, []).append(case)
        report.progress(len(cases), len(cases))
        said = [f"{len(made)} of {len(cases)} cases have a first guess"]
        said += [f"no {name} was found in {_listed(where)}" for name, where in absent.items()]
        said += [f"{case} could not be looked at ({why})" for case, why in list(failed.items())[:_TOLD]]
        return "; ".join(said)

    def _found(self, session: Session, case: str, report: Report) -> Segmentation:
        session.set_image(self._desk.image(case))
        return session.find(progress=lambda _done, _total: report.check())

    def _loaded(self, path: Path, tell: Callable[[str], None]) -> Session:
        from palpate.inference.loading import load

        cache = None if self._cache is None else EmbeddingCache(self._cache)
        return load(
            auto=path,
            weights=self._weights,
            device=self._device,
            runtime=self._runtime,
            precision=self._precision,
            cache=cache,
            tell=tell,
        )


# The process.

_STEPS = re.compile(r"(?:, (?=\d+ steps of )|^going on after step \d+ of )(\d+)", re.MULTILINE)
"""Where a run says how many steps it takes: `12 views of 4 images, 250 steps of 2 items: about ...`."""


def _carried_out(arguments: Sequence[str], result: Path, report: Report) -> None:
    """Run palpate with these arguments to its end, telling how far it is."""
    said = result.with_suffix(".txt")
    try:
        with said.open("w", encoding="utf-8") as stream:
            print("palpate", shlex.join(arguments), file=stream, flush=True)
            process = subprocess.Popen(
                [sys.executable, "-m", "palpate.cli.alongside", *arguments],
                stdin=subprocess.PIPE,  # while it is open, the process is wanted
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the server's terminal is the server's
            )
    except OSError as error:
        raise OutputError(f"cannot start learning in {result.parent}: {error.strerror or error}") from error
    try:
        report.progress(0, 0, "looking at the images")
        progress = _Progress(said, result.with_suffix(".run"))
        while process.poll() is None:
            if report.wait(_LOOK_SECONDS):
                raise Cancelled
            progress.tell(report)
    finally:
        _stopped(process)
    if process.returncode:
        raise PalpateError(_why(said, process.returncode))


def _stopped(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, as with Ctrl-C, and end it if it does not."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _measured(run: Path) -> float | None:
    """The Dice on the cases held out, by the record of the run; the file has it, too, but takes torch to read."""
    try:
        return json.loads((run / "run.json").read_text(encoding="utf-8"))["metrics"]["val_dice"]["mean"]
    except (OSError, ValueError, KeyError, TypeError):  # nothing was held out
        return None


class _Progress:
    """What a run says, and what its log shows, as the progress of a job."""

    def __init__(self, said: Path, run: Path) -> None:
        self._said, self._log = said, run / "log.csv"
        self._total = 0

    def tell(self, report: Report) -> None:
        """Say what is new."""
        words = _end_of(self._said)
        # Before the first step it says how many there are; a log that lies there until then is another run's.
        if not self._total and (found := _STEPS.search(words)):
            self._total = int(found[1])
        if self._total:
            step = _last_step(self._log)
            report.progress(step, self._total, f"step {step} of {self._total}")
            return
        for match in re.finditer(r"^encoded (\d+) of (\d+) images", words, re.MULTILINE):
            report.progress(int(match[1]), int(match[2]), "encoding images")


def _last_step(log: Path) -> int:
    """The number of the last whole row; 0 if there is none."""
    rows = [line for line in _end_of(log).splitlines(keepends=True) if line.endswith("\n")]
    first = rows[-1].partition(",")[0] if rows else ""
    return int(first) if first.isdecimal() else 0


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4096))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _why(said: Path, status: int) -> str:
    """Why a run failed, from what it said."""
    lines = _end_of(said).splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if told:
        return told[-1]
    if status < 0:
        return (
            f"learning was stopped from outside (signal {-status}), perhaps for want of memory; teach once more, and "
            "it goes on where it was"
        )
    return f"learning failed ({lines[-1] if lines else f'status {status}'}); {said} holds all that it said"


def _listed(cases: Sequence[str]) -> str:
    more = len(cases) - _TOLD
    return ", ".join(cases[:_TOLD]) + (f" and {more} more" if more > 0 else "")
