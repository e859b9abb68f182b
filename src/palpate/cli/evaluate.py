"""`palpate evaluate DATA`: how good a model is on these images, and what an imperfect prompt does to it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palpate.cli.terminal import bytes_of, command_line, cores, note, reporting_errors, say, say_json, separated
from palpate.errors import SettingError
from palpate.models import DEFAULT

if TYPE_CHECKING:
    from palpate.evaluation.measure import Plan
    from palpate.evaluation.run import Progress

_FILES = (("table", "results.csv"), ("summary", "summary.csv"), ("report", "report.html"))


def evaluate(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="A manifest.csv or its folder, an nnU-Net, npy or npz folder, or images."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="RUN", help="The run's folder.")] = None,
    labels: Annotated[Path | None, typer.Option(help="The folder of labels, where DATA is a folder of images.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Only this dataset of DATA. Repeatable.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split: train, val or test.")] = None,
    channel: Annotated[int, typer.Option(help="Which channel of nnU-Net images.")] = 0,
    cases: Annotated[int | None, typer.Option(help="At most so many cases a dataset, drawn at random.")] = None,
    objects: Annotated[int | None, typer.Option(help="At most so many objects a case, drawn at random.")] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="What is asked, with commas between; --list shows all. Default: standard,expansion,shrink; with "
            "--auto learned,box+learned,standard."
        ),
    ] = None,
    severity: Annotated[
        list[str] | None, typer.Option(metavar="S...", help="How wrong, as fractions: --severity 0.05 0.1 0.25.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of protocols that draw at random.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The number of the first repetition.")] = 0,
    volumes: Annotated[
        str,
        typer.Option(help="Prompt an object's middle slice and carry on (middle), every-slice, or one-slice alone."),
    ] = "middle",
    score: Annotated[
        str, typer.Option(help="Score objects of volumes as a whole (volume), or slice by slice.")
    ] = "volume",
    without: Annotated[
        int, typer.Option(min=0, help="With learned and one-slice: how many slices without a class to ask for it.")
    ] = 1,
    clicks: Annotated[int, typer.Option(min=1, help="How many clicks the click protocols go up to.")] = 20,
    tolerance: Annotated[float, typer.Option(help="NSD tolerance in mm; in pixels where there is no spacing.")] = 2.0,
    nsd: Annotated[str, typer.Option(help="NSD of contours, or as the CVPR 2024 challenge has it.")] = "contour",
    window: Annotated[
        str | None, typer.Option(help="How values become grey, as in predict: a CT window's name, LEVEL/WIDTH, ...")
    ] = None,
    in_pixels: Annotated[
        list[str] | None, typer.Option(help="A dataset whose spacing is not to be believed. Repeatable.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"A name from `palpate models`, or an adapter file (default: {DEFAULT}).")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file to use instead of the known one.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="What `palpate finetune` made, to put on the model.")] = None,
    auto: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `palpate learn` made: its classes are measured.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    runtime: Annotated[
        str, typer.Option(help="What computes: torch, openvino, onnxruntime, or auto as in `palpate predict`.")
    ] = "torch",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16: what does it do to your masks?")
    ] = "float32",
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep embeddings here, for runs that share an encoder.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What the cache may take (default: as before, at first 20GB).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at work, one thread each (default: one a core).")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Let a dask cluster work: tcp://host:8786.")
    ] = None,
    worst: Annotated[
        int, typer.Option(min=0, help="How many of the worst cases to show in the report; 0 keeps images out of it.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of other settings.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="Show the protocols and stop.")] = False,
) -> None:
    """Measure a model on labelled images, with perfect and imperfect prompts.

    Tight, loose and cut:   palpate evaluate DATA --protocol standard,expansion,shrink --severity 0.05 0.1 0.25 -o run/

    Part of a manifest:     palpate evaluate manifest.csv --dataset liver_ct --split test -o run/

    Learned prompts:        palpate evaluate DATA --auto liver.safetensors -o run/

    Two runs, compared:     palpate evaluate compare run-a/ run-b/

    RUN gets results.csv (one row a prompt), times.csv, cases.csv, summary.csv, summary.md and report.html; with --auto
    also presence.csv (how sure the model was of each class on each slice), and modalities.md where the data say what
    each image is. Stopped by Ctrl-C or a power cut, the same command goes on where it was.
    """
    with reporting_errors(as_json=as_json, kept=lambda: _kept(output)):
        if list_all:
            _print_protocols()
            return
        if data is None or output is None:
            raise SettingError("say what to evaluate on and where to write: palpate evaluate DATA -o RUN")
        size = None if max_size is None else bytes_of(max_size, "--max-size")
        if size is not None and cache is None:
            raise SettingError("--max-size bounds a cache; say which one: --cache FOLDER")
        from palpate.datasets import open_dataset
        from palpate.evaluation.presence import presence_summary
        from palpate.evaluation.results import some_cases, write_results
        from palpate.evaluation.run import ModelChoice, evaluate

        plan = _plan(
            _protocols(protocol, auto),
            severity,
            seeds=seeds,
            seed=seed,
            objects=objects,
            volumes=volumes,
            score=score,
            without=without,
            clicks=clicks,
            tolerance=tolerance,
            nsd=nsd,
            in_pixels=in_pixels,
            window=window,
        )
        found = open_dataset(data, labels=labels, dataset=separated(dataset) or None, split=split, channel=channel)
        chosen = list(found) if cases is None else some_cases(found, most=cases, seed=seed)
        choice = ModelChoice(model, weights, device, adapter, cache, size, auto, runtime, precision)
        with _progress(enabled=not as_json) as advance:
            run = evaluate(
                chosen,
                plan,
                output,
                model=choice,
                command=shlex.join(["palpate", *command_line.get()]),
                data=str(data),
                workers=workers or cores(),
                dask=dask,
                overwrite=overwrite,
                progress=advance,
                tell=note,
            )
        if sys.stderr.isatty():
            typer.echo("writing the summary and the report ...", err=True)
        summary = write_results(run, chosen, plan, choice.load, worst=worst)
        if not as_json:
            for written in filter(Path.is_file, (run.folder / name for name in ("summary.md", "modalities.md"))):
                typer.echo(written.read_text(encoding="utf-8"))
            for words in run.record["notes"]:
                typer.echo(f"note: {words}")
            say([(name, str(run.folder / file)) for name, file in _FILES])
        if as_json:
            there = [vars(line) for line in presence_summary(run.presence)]
            found = {"presence": there} if there else {}
            say_json({"run": str(run.folder), "record": run.record, "summary": [vars(row) for row in summary], **found})


def _protocols(asked: list[str] | None, auto: Path | None) -> list[str]:
    """The names of the protocols, each once, or the usual ones."""
    usual = ["standard", "expansion", "shrink"] if auto is None else ["learned", "box+learned", "standard"]
    return list(dict.fromkeys(separated(asked))) or usual


def _plan(
    names: list[str],
    severity: list[str] | None,
    *,
    seeds: int,
    seed: int,
    objects: int | None,
    volumes: str,
    score: str,
    without: int,
    clicks: int,
    tolerance: float,
    nsd: str,
    in_pixels: list[str] | None,
    window: str | None,
) -> Plan:
    from palpate.evaluation import measure, protocols
    from palpate.images.intensity import parse_intensity

    try:
        severities = [float(text) for text in separated(severity)]
    except ValueError:
        raise SettingError(
            f"cannot read --severity {' '.join(severity or ())}; give fractions such as 0.05 0.1"
        ) from None
    if severity and not severities:
        raise SettingError("--severity came without numbers; give fractions such as 0.05 0.1")
    if objects is not None and objects < 1:
        raise SettingError(f"--objects {objects} leaves nothing to measure; give at least 1")
    if not 0 < tolerance < float("inf"):
        raise SettingError(f"an NSD tolerance of {tolerance:g} makes no sense; give a positive number of mm")
    if window is not None:
        parse_intensity(window)  # a name that does not exist is told before anything is read
    return measure.Plan(
        intensity=window,
        protocols=tuple(protocols.protocol(name, severities) for name in names),
        seeds=seeds,
        seed=seed,
        objects=objects,
        volumes=_one_of(volumes, "--volumes", ("middle", "every-slice", "one-slice")),  # pyright: ignore[reportArgumentType]
        score=_one_of(score, "--score", ("volume", "slice")),  # pyright: ignore[reportArgumentType]
        without=without,
        clicks=clicks,
        tolerance=tolerance,
        nsd=_one_of(nsd, "--nsd", ("contour", "challenge")),  # pyright: ignore[reportArgumentType]
        in_pixels=tuple(separated(in_pixels)),
    )


def _one_of(value: str, option: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise SettingError(f"{option} is {' or '.join(choices)}, not {value!r}")
    return value


def _kept(folder: Path | None) -> str:
    """What an interruption leaves behind."""
    parts = len(list((folder / "parts").glob("[0-9a-f]" * 32 + ".json"))) if folder else 0
    return f"{parts} measured cases are kept, and the same command goes on from there"


def _print_protocols() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from palpate.evaluation.protocols import all_protocols

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("protocol", "what is asked", "severities", "random", "source"):
        table.add_column(heading, overflow="fold")
    for one in all_protocols():
        severities = " ".join(f"{value:g}" for value in one.severities) if one.uses_severity else ""
        table.add_row(one.name, one.says, severities, "yes" if one.random else "", one.source)
    Console(width=140, highlight=False, markup=False).print(table)


@contextmanager
def _progress(*, enabled: bool) -> Generator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("cases,"))
    times = (TimeElapsedColumn(), TextColumn("so far,"), TimeRemainingColumn(), TextColumn("to go"))
    console = Console(stderr=True)
    with Progress(*columns, *times, console=console, disable=not (enabled and sys.stderr.isatty())) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
