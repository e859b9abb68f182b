"""What `palpate finetune`, `learn` and `distill` have in common: flags, how the work begins, and how it is told."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from palpate.cli.terminal import bytes_of, command_line, cores, separated
from palpate.errors import SettingError
from palpate.inference.processes import leads
from palpate.models import DEFAULT

if TYPE_CHECKING:
    from palpate.training.task import Event

_SECONDS_BETWEEN_LINES = 30.0
"""How often a log file, which has no bar, is told how far the work is."""

# --- Flags ------------------------------------------------------------------------------------------------------------

Labels = Annotated[Path | None, typer.Option(help="The folder of labels, where DATA is a folder of images.")]
Datasets = Annotated[list[str] | None, typer.Option(help="Only these datasets of DATA. Repeatable, or commas.")]
Window = Annotated[
    str | None, typer.Option(help="How values become grey: a CT window's name, LEVEL/WIDTH, min-max or as-is.")
]
Model = Annotated[str | None, typer.Option(help=f"A name from `palpate models` (default: {DEFAULT}).")]
Weights = Annotated[Path | None, typer.Option(help="A checkpoint file to use instead of the known one.")]
Precision = Annotated[str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.")]
Seed = Annotated[int | None, typer.Option(help="The number that all that is drawn follows from.")]
RunFolder = Annotated[
    Path | None, typer.Option(metavar="RUN", help="The folder of the log (default: FILE with .run at the end).")
]
Cache = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where embeddings are kept (default: beside the weights).")
]
MaxSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="What the cache may take (default: as before, at first 20GB).")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Devices = Annotated[int, typer.Option(help="How many GPUs, or processes on the CPU, of each machine.")]
Nodes = Annotated[int, typer.Option(help="How many machines.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON at the end, and no progress.")]


# --- Their values -----------------------------------------------------------------------------------------------------


def several(texts: list[str] | None) -> list[str] | None:
    """The values of an option that may be repeated and may have commas in it; None if it was not given."""
    return None if texts is None else separated(texts)


def text_of(path: Path | None) -> str | None:
    """A path as recipes hold it."""
    return None if path is None else str(path)


def slices_of(text: str) -> int | str:
    """The value of `--slices-per-volume`: a number, or all.

    Raises:
        SettingError: anything else.
    """
    if text == "all":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise SettingError(f"cannot read --slices-per-volume {text}; give a number of 1 or more, or all")
    return int(text)


# --- The work ---------------------------------------------------------------------------------------------------------


Made = TypeVar("Made")


class Work(NamedTuple):
    """Where the work is done, as the flags of the same names say."""

    cache: Path | None
    max_size: str | None
    device: str
    devices: int
    nodes: int
    threads: int | None


def done(work_at: Callable[..., Made], *given: object, work: Work, told: bool, overwrite: bool) -> Made | None:
    """What comes of the work; None on a process that does not lead. With `told`, stderr is told how it goes."""
    cache_bytes = None if work.max_size is None else bytes_of(work.max_size, "--max-size")
    # Several processes of a machine share its cores; all of them at once would wait for each other.
    threads = work.threads or (max(1, cores() // work.devices) if work.devices > 1 else None)
    teller = Teller()
    try:
        made = work_at(
            *given,
            cache=work.cache,
            cache_bytes=cache_bytes,
            device=work.device,
            devices=work.devices,
            nodes=work.nodes,
            threads=threads,
            command=shlex.join(["palpate", *command_line.get()]),
            overwrite=overwrite,
            listener=teller if told else None,
        )
    finally:
        teller.close()
    return made if leads() else None


class Teller:
    """Tells on stderr how a run goes: a bar where there is a terminal, a line now and then where there is none.

    It can be sent to another process until it is called for the first time.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._begun = self._said = 0.0

    def __call__(self, event: Event) -> None:
        """Tell one event."""
        if event.kind in ("embedding", "step"):
            self._count(event)
            return
        if self._bar is not None:
            self._bar.console.print(event.text, highlight=False, markup=False)
        else:
            typer.echo(event.text, err=True)
        if event.kind == "finished":
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _count(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind != self._stage or event.done == 0:
            self._stage, self._begun, self._said = event.kind, now, now
            if sys.stderr.isatty():
                self._new_bar("encoding" if event.kind == "embedding" else "training")
        seconds = event.values.get("seconds_left")
        if seconds is None and event.done:
            seconds = (now - self._begun) / event.done * (event.total - event.done)
        left = "" if seconds is None else f"{_duration(seconds)} to go"
        if self._bar is not None:
            loss = event.text if event.kind == "step" else "images"
            self._bar.update(self._task, completed=event.done, total=event.total, said=loss, left=left)
        elif now - self._said > _SECONDS_BETWEEN_LINES and event.done:
            self._said = now
            what = f"step {event.done} of {event.total}, {event.text}"
            if event.kind == "embedding":
                what = f"encoded {event.done} of {event.total} images"
            typer.echo(f"{what}, {left}", err=True)

    def _new_bar(self, words: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.close()
        fields = (TextColumn("{task.fields[said]}"), TextColumn("{task.fields[left]}"))
        columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), *fields)
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(words, total=None, said="", left="")
        self._bar.start()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
