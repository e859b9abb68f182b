"""A whole evaluation: cases in parallel, resumable, and the same table every time.

The unit of work is a case. Each finished case is a file in `RUN/parts`, so that an interrupted run goes on where it
stopped; the table is put together at the end, in the order of the cases, whoever measured them. Every worker computes
with one thread: sums in another order would change the last digits, and with them, now and then, a pixel.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from palpate.datasets.case import Case
from palpate.errors import DatasetError, OutputError, PalpateError, SettingError
from palpate.evaluation.found import classes_of, finding_runtime, region_of
from palpate.evaluation.measure import Measured, Plan, measure_case
from palpate.evaluation.modalities import CaseTime, cases_csv
from palpate.evaluation.protocols import LEARNED_KINDS
from palpate.evaluation.table import Presence, Row, Run, object_name, presence_csv, read_run, results_csv, times_csv
from palpate.images.formats import replacing
from palpate.inference.cluster import Like, Lost, Tell, for_elsewhere, on_cluster
from palpate.inference.embedding_cache import EmbeddingCache
from palpate.inference.environment import environment
from palpate.inference.loading import load
from palpate.inference.processes import kept_by_thread, one_thread, quick_memory, serve_parent
from palpate.inference.runtimes import Runtime
from palpate.inference.session import Session
from palpate.models.promptable import LearnedClass


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, as in `palpate.load`; every worker loads its own.

    `auto` is a file of learned prompts. `cache` is a folder of embeddings and `cache_bytes` its new bound, if it is to
    have one.
    """

    name: str | None = None
    weights: Path | None = None
    device: str = "auto"
    adapter: Path | None = None
    cache: Path | None = None
    cache_bytes: int | None = None
    auto: Path | None = None
    runtime: str = "torch"
    """Not auto: what is measured shall not depend on what happens to be installed."""
    precision: str = "float32"

    def load(self) -> Session:
        """A session on it.

        Raises:
            ModelError, SettingError: see `palpate.load`.
        """
        cache = None if self.cache is None else EmbeddingCache(self.cache, max_bytes=self.cache_bytes)
        return load(
            self.name,
            weights=self.weights,
            device=self.device,
            adapter=self.adapter,
            auto=self.auto,
            cache=cache,
            runtime=self.runtime,
            precision=self.precision,
        )


@dataclass(frozen=True)
class Failure:
    """A case that could not be measured."""

    case: Case
    reason: str


Progress = Callable[[int, int], None]
"""Called with cases done and cases in all."""


def evaluate(
    cases: Sequence[Case],
    plan: Plan,
    folder: str | Path,
    *,
    model: ModelChoice | Session,
    command: str = "",
    data: str = "",
    workers: int = 1,
    dask: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Run:
    """Measure these cases and write `results.csv`, `times.csv`, `cases.csv` and `run.json` into a folder.

    A folder with an unfinished run of the same settings is taken up where it stopped, and one with a finished run of
    the same settings and data is only read. With `overwrite`, a run of other settings or data is replaced; its table
    stays until the new one is whole.

    `model` may be a session, which then does all the work itself; with a choice, `workers` processes share the cases,
    or the workers of the dask cluster at address `dask`, who must see the same paths; `tell` is told of those that end.
    `command` and `data` are what was typed, for the record.

    Raises:
        OutputError: the folder holds a run of other settings or data, or something else, or cannot be written.
        DatasetError: no cases, two of the same name, or cases that could not be measured (the others are kept).
        PalpateError: the model cannot be loaded, or workers died.
    """
    folder = Path(folder)
    _check_cases(cases)
    session = model if isinstance(model, Session) else model.load()
    fingerprints = {case: content_hash(case) for case in cases}
    if any(one.kind in LEARNED_KINDS for one in plan.protocols):
        finding_runtime(session)  # told now, and not once for every case
    settings = _settings(session, plan, cases)
    content = _digest(f"{case.dataset}/{case.name} {fingerprints[case]}" for case in cases)
    if _is_finished(folder, settings, content):
        return read_run(folder)
    parts = _prepare(folder, settings, overwrite=overwrite)
    open_cases = [case for case in cases if _finished(parts, case, fingerprints[case]) is None]
    done, failures = len(cases) - len(open_cases), list[Failure]()
    if progress is not None:
        progress(done, len(cases))
    # The largest first, so that no worker is left alone with a long one at the end.
    open_cases.sort(key=lambda case: -_size(case.image))
    with _answers(open_cases, plan, model, session, workers=workers, dask=dask, tell=tell) as answers:
        for case, answer in answers:
            if isinstance(answer, Failure):
                failures.append(answer)
            else:
                _keep(parts, case, fingerprints[case], answer)
            done += 1
            if progress is not None:
                progress(done, len(cases))
    if failures:
        listed = "; ".join(f"{item.case.dataset}/{item.case.name}: {item.reason}" for item in failures[:5])
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise DatasetError(
            f"{len(failures)} of {len(cases)} cases could not be measured ({listed}{more}); `palpate data check` says "
            "what is wrong with them. The others are kept: mend these, or leave them out, and run the command again"
        )
    measured = {case: found for case in cases if (found := _finished(parts, case, fingerprints[case])) is not None}
    rows = [row for case in cases for row in measured[case].rows]
    presence = [one for case in cases for one in measured[case].presence]
    if not rows:
        raise DatasetError(
            f"none of the {len(cases)} cases holds an object that could be prompted, so nothing was measured; "
            "`palpate data check` says which labels are empty"
        )
    record = {
        "command": command,
        **_record(session, plan, cases, rows, left_out=[name for case in cases for name in measured[case].left_out]),
        **({} if isinstance(model, Session) or model.auto is None else {"auto": _about(model.auto)}),
        "data": data,
        "data_sha256": content,
        "units": _units(measured),
        "settings": settings,
    }
    _write(folder / "times.csv", times_csv(rows))
    _write(folder / "cases.csv", cases_csv(_time(case, measured[case]) for case in cases))
    if presence:
        _write(folder / "presence.csv", presence_csv(presence))
    else:
        (folder / "presence.csv").unlink(missing_ok=True)  # of a run that this one replaces
    _write(folder / "run.json", json.dumps(record, indent=2) + "\n")
    _write(folder / "results.csv", results_csv(rows))  # last: with it the run is finished
    _clear(parts)
    return read_run(folder)


def _about(auto: Path) -> dict[str, str]:
    """Which file of learned prompts it was."""
    with auto.open("rb") as stream:
        return {"file": auto.name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def content_hash(case: Case) -> str:
    """SHA-256 over all that the case is made of, so that what changed is measured again.

    Raises:
        DatasetError: a file of the case cannot be read.
    """
    digest = hashlib.sha256(case.identity().encode())
    for path in case.files():
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise DatasetError(f"cannot read {path} of {case.name}: {error.strerror or error}") from None
    return digest.hexdigest()


def _check_cases(cases: Sequence[Case]) -> None:
    if not cases:
        raise DatasetError("there are no cases to evaluate; check --dataset and --split, or the folder")
    seen: set[tuple[str, str]] = set()
    for case in cases:
        if (case.dataset, case.name) in seen:
            raise DatasetError(f"two cases of {case.dataset} are called {case.name}; give each its own name")
        seen.add((case.dataset, case.name))


def _settings(session: Session, plan: Plan, cases: Sequence[Case]) -> dict[str, Any]:
    """Everything that decides the table, but for the data."""
    runtime = session.runtime
    classes = [[one.name, one.value] for one in classes_of(session)]
    asked = json.loads(json.dumps(asdict(plan)))
    if not any(one.kind == "learned" for one in plan.protocols):
        del asked["without"]  # it decides nothing then
    return {
        "model": runtime.model,
        "weights_hash": runtime.weights_hash,
        **({"classes": classes} if classes else {}),
        "runtime": runtime.describe(),
        "versions": environment(),
        "plan": asked,
        "cases": _digest(f"{case.dataset}/{case.name} {case.subject}" for case in cases),
    }


def _is_finished(folder: Path, settings: dict[str, Any], content: str) -> bool:
    """Whether this very run lies there, whole."""
    if (folder / "parts" / "settings.json").exists() or not (folder / "results.csv").is_file():
        return False
    record = _read_json(folder / "run.json")
    return record.get("settings") == settings and record.get("data_sha256") == content


def _prepare(folder: Path, settings: dict[str, Any], *, overwrite: bool) -> Path:
    """The folder of finished parts, those of another run removed if that is allowed; its table stays where it is."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder for the run")
    parts = folder / "parts"
    unfinished, finished = _read_json(parts / "settings.json"), _read_json(folder / "run.json")
    before = (unfinished or finished).get("settings")
    if before is None and folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty and holds no run; choose an empty or a new folder")
    if before is not None and not (unfinished and before == settings):
        if not overwrite:
            raise OutputError(
                f"{folder} holds a run with {_differences(before, settings)}; choose another folder, or pass "
                "--overwrite to replace it"
            )
        _clear(parts)
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write in {folder}: {error.strerror or error}; choose another place") from error
    if not (parts / "settings.json").is_file():
        _write(parts / "settings.json", json.dumps({"settings": settings}, indent=2) + "\n")
    return parts


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, what another run was asked otherwise."""
    found: list[str] = []
    for key in sorted({*before, *now}):
        was, wanted = before.get(key), now.get(key)
        if was == wanted:
            continue
        if key == "plan" and isinstance(was, dict) and isinstance(wanted, dict):
            found += [f"other {name}" for name in sorted({*was, *wanted}) if was.get(name) != wanted.get(name)]
        else:
            found.append("other cases, or other subjects for them" if key == "cases" else f"another {key}")
    return ", ".join(found) or "other data: images, labels or their description changed since"


def _clear(parts: Path) -> None:
    """Remove what a run has put there, and the folder if that was all."""
    for path in (*parts.glob("[0-9a-f]" * 32 + ".json"), parts / "settings.json"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        parts.rmdir()


def _read_json(path: Path) -> dict[str, Any]:
    """What a file of ours holds; nothing if it is not there or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _part(parts: Path, case: Case) -> Path:
    return parts / f"{_digest([case.dataset, case.name])[:32]}.json"


def _finished(parts: Path, case: Case, fingerprint: str) -> Measured | None:
    kept = _read_json(_part(parts, case))
    if kept.get("sha256") != fingerprint:
        return None  # not there, cut off, or of what the case was before: measured again
    rows = tuple(Row(**values) for values in kept["rows"])
    presence = tuple(Presence(**values) for values in kept.get("presence", ()))
    times = float(kept.get("reading", 0)), float(kept.get("encoding", 0))
    return Measured(rows, kept["unit"], presence, tuple(kept.get("left_out", ())), *times)


def _keep(parts: Path, case: Case, fingerprint: str, found: Measured) -> None:
    rows = [asdict(row) for row in found.rows]
    content = {"case": f"{case.dataset}/{case.name}", "sha256": fingerprint, "unit": found.unit, "rows": rows}
    content |= {"presence": [asdict(one) for one in found.presence], "left_out": list(found.left_out)}
    content |= {"reading": found.reading, "encoding": found.encoding}
    _write(_part(parts, case), json.dumps(content))


def _time(case: Case, found: Measured) -> CaseTime:
    return CaseTime(case.dataset, case.subject, case.name, case.kind, found.reading, found.encoding)


def _units(measured: Mapping[Case, Measured]) -> dict[str, str]:
    """The unit of distances in each dataset: mm, pixels, or mixed."""
    found: dict[str, str] = {}
    for case, one in measured.items():
        found[case.dataset] = one.unit if found.get(case.dataset, one.unit) == one.unit else "mixed"
    return found


def _write(path: Path, text: str) -> None:
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


Answer = Measured | Failure


@contextmanager
def _answers(
    cases: Sequence[Case],
    plan: Plan,
    model: ModelChoice | Session,
    session: Session,
    *,
    workers: int,
    dask: str | None,
    tell: Tell | None,
) -> Generator[Iterator[tuple[Case, Answer]]]:
    """Cases with their rows as they come; everything that was started is stopped when the block is left."""
    if workers < 1:
        raise SettingError(f"{workers} workers cannot work; give at least 1")
    if dask is not None:
        if isinstance(model, Session):
            raise SettingError("a session cannot travel to the workers of a cluster; give a ModelChoice instead")
        with _on_cluster(dask, cases, plan, model, session.runtime, tell) as answers:
            yield answers
    elif workers > 1 and len(cases) > 1 and isinstance(model, ModelChoice):
        with _in_processes(min(workers, len(cases)), cases, plan, model) as answers:
            yield answers
    else:
        with one_thread():
            yield ((case, _measured(session, case, plan)) for case in cases)


def _measured(session: Session, case: Case, plan: Plan) -> Answer:
    try:
        return measure_case(session, case, plan)
    except PalpateError as error:
        return Failure(case, str(error))
    except (OSError, MemoryError) as error:
        return Failure(case, f"{type(error).__name__}: {error}")


@contextmanager
def _in_processes(
    workers: int, cases: Sequence[Case], plan: Plan, model: ModelChoice
) -> Generator[Iterator[tuple[Case, Answer]]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    others = set(multiprocessing.active_children())
    with quick_memory():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=serve_parent)
        futures = {pool.submit(_measure_in_worker, model, case, plan): case for case in cases}
        try:
            yield ((futures[future], future.result()) for future in as_completed(futures))
        except BrokenProcessPool:
            raise PalpateError(
                f"one of {workers} processes ended. In a script of your own, the call must stand under "
                "`if __name__ == '__main__':`, because every process reads the script; else memory may have run out, "
                "and fewer workers (--workers) need less. What was measured is kept: run it again"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _on_cluster(
    address: str, cases: Sequence[Case], plan: Plan, model: ModelChoice, runtime: Runtime, tell: Tell | None
) -> Generator[Iterator[tuple[Case, Answer]]]:
    there = ModelChoice(**{one.name: for_elsewhere(getattr(model, one.name)) for one in fields(model)})
    work = partial(_measure_on_cluster, plan=plan, model=there, like=Like.of(runtime))
    names = [f"{case.dataset}/{case.name}" for case in cases]
    elsewhere = [case.resolved() for case in cases]  # workers may have been started in another folder
    with on_cluster(address, work, elsewhere, names=names, tell=tell) as answers:
        yield (
            (cases[number], Failure(cases[number], found.reason) if isinstance(found, Lost) else found)
            for number, found in answers
        )


def _measure_on_cluster(case: Case, *, plan: Plan, model: ModelChoice, like: Like) -> Answer:
    session = like.loaded(model, model.load, lambda made: made.runtime)
    with one_thread():
        return _measured(session, case, plan)


def _measure_in_worker(model: ModelChoice, case: Case, plan: Plan) -> Answer:
    session = kept_by_thread(model, model.load)
    with one_thread():
        return _measured(session, case, plan)


def _record(
    session: Session, plan: Plan, cases: Sequence[Case], rows: Sequence[Row], *, left_out: Sequence[str]
) -> dict[str, Any]:
    runtime = session.runtime
    classes = classes_of(session)
    asked = any(one.kind == "learned" for one in plan.protocols)
    notes = [
        *_about_cases(cases, rows, learned=bool(classes), asked=asked),
        *_left_out(plan, rows),
        *_about_classes(classes, cases, left_out),
    ]
    if plan.in_pixels:
        notes.append(f"distances in pixels, not mm, for {', '.join(plan.in_pixels)}")
    return {
        "seed": plan.seed,
        "seeds": plan.seeds,
        "model": runtime.model,
        "weights_hash": runtime.weights_hash,
        "runtime": runtime.describe(),
        "versions": dict(environment()),
        "machine": f"{platform.machine()}, {platform.system()}",
        "cases": len(cases),
        "objects": len(_prompted(rows)),
        "protocols": [asdict(one) for one in plan.protocols],
        "notes": notes,
    }


def _about_cases(cases: Sequence[Case], rows: Sequence[Row], *, learned: bool, asked: bool) -> list[str]:
    """What a reader should know of the cases before believing the intervals."""
    notes: list[str] = []
    measured = {(row.dataset, row.case) for row in rows}
    if empty := [case.name for case in cases if (case.dataset, case.name) not in measured]:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        notes.append(
            f"{len(empty)} of {len(cases)} cases hold no object{' that was learned' if learned else ''} and count "
            f"{'in presence.csv alone' if asked else 'nowhere'}: {', '.join(empty[:3])}{more}"
        )
    if len(cases) > 1 and len({case.subject for case in cases}) == len(cases):
        notes.append(
            "every case is taken for a subject of its own; if some are of one person, intervals are too short and "
            "tests too sure: say whose they are in a manifest"
        )
    return notes


def _about_classes(classes: Sequence[LearnedClass], cases: Sequence[Case], left_out: Sequence[str]) -> list[str]:
    """Which objects were not asked for, because they were not learned, and which go by their label value alone."""
    notes: list[str] = []
    known = ", ".join(one.name for one in classes)
    for name in sorted(set(left_out)):
        count = left_out.count(name)
        notes.append(
            f"{count} object{'s' if count > 1 else ''} called {name} left out: none of what was learned ({known})"
        )
    taken = {
        (region.name, one.name)
        for case in cases
        for one in classes
        if (region := region_of(case, one, classes)) is not None and case.regions
        if region.name.casefold() != one.name.casefold()
    }
    notes += [f"{region} was taken for {name}, whose label value it has" for region, name in sorted(taken)]
    return notes


def _prompted(rows: Iterable[Row]) -> set[tuple[str, str, str]]:
    """The objects in these rows; where slices are scored, `1@17` is object 1."""
    return {(row.dataset, row.case, object_name(row)) for row in rows}


def _left_out(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """Which protocols could not be asked everywhere: not all prompts exist for all objects."""
    everything, notes = _prompted(rows), list[str]()
    for one in plan.protocols:
        count = len(_prompted(row for row in rows if row.protocol == one.name))
        if count == 0:
            notes.append(f"no rows of {one.name}: it applies to none of these cases")
        elif count < len(everything):
            notes.append(
                f"{one.name} was asked for {count} of {len(everything)} objects; the others have no such prompt"
            )
    return notes


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
