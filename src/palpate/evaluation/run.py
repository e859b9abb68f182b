"""A whole evaluation: cases in parallel, resumable, and the same table every time.

The unit of work is a case. Each finished case is a file in `RUN/parts`, so that an interrupted run goes on where it
stopped; the table is put together at the end, in the order of the cases, whoever measured them. Every worker computes
with one thread: sums in another order would change the last digits, and with them, now and then, a pixel.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import get_ident
from typing import Any

from palpate.datasets.case import Case
from palpate.errors import DatasetError, OutputError, PalpateError, SettingError
from palpate.evaluation.measure import Plan, measure_case
from palpate.evaluation.table import Row, Run, read_run, results_csv, times_csv
from palpate.images.formats import replacing
from palpate.inference.session import Session, load

PACKAGES = ("palpate", "torch", "transformers", "numpy", "scipy")


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, as in `palpate.load`; every worker loads its own."""

    name: str = "lite-medsam"
    weights: Path | None = None
    device: str = "auto"

    def load(self) -> Session:
        """A session on it.

        Raises:
            ModelError, SettingError: see `palpate.load`.
        """
        return load(self.name, weights=self.weights, device=self.device)


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
    workers: int = 1,
    dask: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Measure these cases and write `results.csv`, `times.csv` and `run.json` into a folder.

    A folder with an unfinished run of the same settings is taken up where it stopped, and one with a finished run is
    only read. `model` may be a session, which then does all the work itself; with a choice, `workers` processes share
    the cases, or the workers of the dask cluster at address `dask`, who must see the same paths.

    Raises:
        OutputError: the folder holds a run of other settings, or cannot be written.
        DatasetError: no cases, two of the same name, or cases that could not be measured (the others are kept).
        PalpateError: the model cannot be loaded.
    """
    folder = Path(folder)
    _check_cases(cases)
    session = model if isinstance(model, Session) else model.load()
    settings = _settings(session, plan, cases)
    parts = _prepare(folder, settings, overwrite=overwrite)
    if (folder / "results.csv").is_file() and (folder / "run.json").is_file():
        return read_run(folder)
    fingerprints = {case: content_hash(case) for case in cases}
    open_cases = [case for case in cases if _finished(parts, case, fingerprints[case]) is None]
    done, failures = len(cases) - len(open_cases), list[Failure]()
    if progress is not None:
        progress(done, len(cases))
    # The largest first, so that no worker is left alone with a long one at the end.
    open_cases.sort(key=lambda case: -_size(case.image))
    with _answers(open_cases, plan, model, session, workers=workers, dask=dask) as answers:
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
    rows = [row for case in cases for row in _finished(parts, case, fingerprints[case]) or ()]
    record = {
        "command": command,
        **_record(session, plan, cases, rows),
        "data_sha256": _digest(sorted(f"{case.dataset}/{case.name} {fingerprints[case]}" for case in cases)),
        "settings": settings,
    }
    _write(folder / "times.csv", times_csv(rows))
    _write(folder / "run.json", json.dumps(record, indent=2) + "\n")
    _write(folder / "results.csv", results_csv(rows))  # last: with it the run is finished
    shutil.rmtree(parts, ignore_errors=True)
    return read_run(folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def content_hash(case: Case) -> str:
    """SHA-256 over the case's files, so that a changed image is measured again."""
    digest = hashlib.sha256()
    for path in dict.fromkeys((case.image, case.label, *case.scribbles)):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
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
    """Everything that decides the table."""
    runtime = session.runtime
    return {
        "model": runtime.model,
        "weights_hash": runtime.weights_hash,
        "runtime": runtime.describe(),
        "palpate": version("palpate"),
        "plan": json.loads(json.dumps(asdict(plan))),
        "cases": _digest(f"{case.dataset}/{case.name} {case.subject}" for case in cases),
    }


def _prepare(folder: Path, settings: dict[str, Any], *, overwrite: bool) -> Path:
    """The folder of finished parts, after making sure that the run's folder belongs to these settings."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder for the run")
    started, finished = folder / "parts" / "settings.json", folder / "run.json"
    if overwrite:
        for name in ("results.csv", "times.csv", "run.json"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "parts", ignore_errors=True)
    elif finished.is_file() or started.is_file():
        try:
            text = (finished if finished.is_file() else started).read_text(encoding="utf-8")
            before = json.loads(text)["settings"]
        except (ValueError, KeyError, TypeError):
            before = {}
        changed = sorted(key for key in {*settings, *before} if settings.get(key) != before.get(key))
        if changed:
            raise OutputError(
                f"{folder} holds a run with another {', '.join(changed)}; choose another folder, or pass --overwrite "
                "to replace it"
            )
        if finished.is_file() and (folder / "results.csv").is_file():
            return folder / "parts"
    elif folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty and holds no run; choose an empty or a new folder")
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write in {folder}: {error.strerror or error}; choose another place") from error
    if not started.is_file():
        _write(started, json.dumps({"settings": settings}, indent=2) + "\n")
    return folder / "parts"


def _part(parts: Path, case: Case) -> Path:
    return parts / f"{_digest([case.dataset, case.name])[:32]}.json"


def _finished(parts: Path, case: Case, fingerprint: str) -> tuple[Row, ...] | None:
    try:
        kept = json.loads(_part(parts, case).read_text(encoding="utf-8"))
        if kept["sha256"] == fingerprint:
            return tuple(Row(**values) for values in kept["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or cut off: measured again
    return None


def _keep(parts: Path, case: Case, fingerprint: str, rows: Sequence[Row]) -> None:
    content = {"case": f"{case.dataset}/{case.name}", "sha256": fingerprint, "rows": [asdict(row) for row in rows]}
    _write(_part(parts, case), json.dumps(content))


def _write(path: Path, text: str) -> None:
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


Answer = tuple[Row, ...] | Failure


@contextmanager
def _answers(
    cases: Sequence[Case],
    plan: Plan,
    model: ModelChoice | Session,
    session: Session,
    *,
    workers: int,
    dask: str | None,
) -> Generator[Iterator[tuple[Case, Answer]]]:
    """Cases with their rows as they come; everything that was started is stopped when the block is left."""
    if workers < 1:
        raise SettingError(f"{workers} workers cannot work; give at least 1")
    if dask is not None:
        if isinstance(model, Session):
            raise SettingError("a session cannot travel to the workers of a cluster; give a ModelChoice instead")
        with _on_cluster(dask, cases, plan, model, session.runtime.weights_hash) as answers:
            yield answers
    elif workers > 1 and len(cases) > 1 and isinstance(model, ModelChoice):
        with _in_processes(min(workers, len(cases)), cases, plan, model) as answers:
            yield answers
    else:
        with _one_thread():
            yield ((case, _measured(session, case, plan)) for case in cases)


def _measured(session: Session, case: Case, plan: Plan) -> Answer:
    try:
        return tuple(measure_case(session, case, plan))
    except PalpateError as error:
        return Failure(case, str(error))


@contextmanager
def _one_thread() -> Generator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _in_processes(
    workers: int, cases: Sequence[Case], plan: Plan, model: ModelChoice
) -> Generator[Iterator[tuple[Case, Answer]]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    context = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
    others = set(multiprocessing.active_children())
    with _quick_memory():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_serve_parent)
        futures = {pool.submit(_measure_in_worker, model, case, plan): case for case in cases}
        try:
            yield ((futures[future], future.result()) for future in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _serve_parent() -> None:
    """Leave interrupts to the first process, and end when it ends, however it ends."""
    import multiprocessing
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process decides
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # it was killed: nobody is left to work for

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _quick_memory() -> Generator[None]:
    """Settings that processes read when they start: let glibc keep freed memory, and idle threads sleep.

    A network's activations are freed and wanted again at once; handing them back to the system in between costs more
    than computing them.
    """
    wanted = {
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "MALLOC_TOP_PAD_": str(2**28),
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _on_cluster(
    address: str, cases: Sequence[Case], plan: Plan, model: ModelChoice, weights_hash: str
) -> Generator[Iterator[tuple[Case, Answer]]]:
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise SettingError("--dask needs an extra package; install it with: pip install 'palpate[dask]'") from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise SettingError(f"no dask scheduler answers at {address!r} ({error}); start one or correct --dask") from None
    try:
        futures = client.map(
            _measure_on_cluster,
            list(cases),
            plan=plan,
            model=model,
            weights_hash=weights_hash,
            pure=False,
            key=[f"palpate-{_digest([case.dataset, case.name])[:16]}-{os.getpid()}" for case in cases],
        )
        asked = dict(zip([future.key for future in futures], cases, strict=True))
        yield ((asked[future.key], future.result()) for future in as_completed(futures))
    finally:
        client.close()


def _measure_on_cluster(case: Case, *, plan: Plan, model: ModelChoice, weights_hash: str) -> Answer:
    session = _session_of_thread(model, get_ident())
    if session.runtime.weights_hash != weights_hash:
        return Failure(case, f"a worker has other weights for {model.name}; fetch the same on all machines")
    with _one_thread():
        return _measured(session, case, plan)


def _measure_in_worker(model: ModelChoice, case: Case, plan: Plan) -> Answer:
    session = _session_of_thread(model, get_ident())
    with _one_thread():
        return _measured(session, case, plan)


@lru_cache(maxsize=8)
def _session_of_thread(model: ModelChoice, _thread: int) -> Session:
    """A worker's session, loaded once; threads do not share one, because a session has one image at a time."""
    return model.load()


def _record(session: Session, plan: Plan, cases: Sequence[Case], rows: Sequence[Row]) -> dict[str, Any]:
    runtime = session.runtime
    notes = _left_out(plan, rows)
    if plan.in_pixels:
        notes.append(f"distances in pixels, not mm, for {', '.join(plan.in_pixels)}")
    return {
        "seed": plan.seed,
        "seeds": plan.seeds,
        "model": runtime.model,
        "weights_hash": runtime.weights_hash,
        "runtime": runtime.describe(),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": f"{platform.machine()}, {platform.system()}",
        "cases": len(cases),
        "objects": len({row.key[:4] for row in rows}),
        "protocols": [asdict(one) for one in plan.protocols],
        "notes": notes,
    }


def _left_out(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """Which protocols could not be asked everywhere: not all prompts exist for all objects."""

    def prompted(of: Iterable[Row]) -> set[tuple[str, ...]]:
        # Clicks are scored on one slice, and volumes perhaps slice by slice: `1@17` is object 1.
        return {(row.dataset, row.case, row.object.partition("@")[0]) for row in of}

    everything, notes = prompted(rows), list[str]()
    for one in plan.protocols:
        count = len(prompted(row for row in rows if row.protocol == one.name))
        if count == 0:
            notes.append(f"no rows of {one.name}: it applies to none of these cases")
        elif count < len(everything):
            notes.append(
                f"{one.name} was asked for {count} of {len(everything)} objects; the others have no such prompt"
            )
    return notes


def _versions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
