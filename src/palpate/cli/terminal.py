"""How verbs speak: results on stdout, everything else on stderr, errors as one sentence and an exit status."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import typer

from palpate.errors import InputError, OutputError, PalpateError, SettingError

command_line: ContextVar[tuple[str, ...]] = ContextVar("command_line", default=())
"""The arguments of the command that is running, for records of what was done."""

USAGE, FAILURE, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141


@contextmanager
def reporting_errors(
    *, as_json: bool = False, kept: Callable[[], str] = lambda: "nothing was written"
) -> Generator[None]:
    """Turn what palpate raises into a sentence and an exit status: 2 for what you gave, 1 for the rest.

    With `as_json`, stdout gets {"error": {"type", "message"}} as well, so that a program always finds JSON there.
    `kept` says what an interruption leaves behind.
    """
    try:
        yield
    except PalpateError as error:
        typer.echo(f"error: {error}", err=True)
        if as_json:
            typer.echo(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
        raise typer.Exit(USAGE if isinstance(error, InputError | OutputError) else FAILURE) from None
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {kept()}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # `palpate models | head`: the reader has gone. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(BROKEN_PIPE) from None


def say(lines: list[tuple[str, str]]) -> None:
    """Two columns: what, and its value."""
    width = min(24, max(len(name) for name, _ in lines))
    for name, value in lines:
        typer.echo(f"{name:<{width}}  {value}")


def note(words: str) -> None:
    """Something that happened, and is no error."""
    typer.echo(f"note: {words}", err=True)


def say_json(content: dict[str, Any]) -> None:
    """One JSON document."""
    typer.echo(json.dumps(content, indent=2))


def separated(texts: Sequence[str] | None) -> list[str]:
    """The values of an option that may be repeated and may have commas in it.

    >>> separated(["a, b", "c"])
    ['a', 'b', 'c']
    """
    return [part.strip() for text in texts or () for part in text.split(",") if part.strip()]


def bytes_of(text: str, option: str) -> int:
    """A size in bytes, as people write it: 20GB, 500 MB, 1.5TB; without a unit it is bytes.

    Raises:
        SettingError: anything else, or nothing.
    """
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    size = int(float(match[1]) * units[match[2]]) if match else 0
    if size < 1:
        raise SettingError(f"cannot read {option} {text}; write a size such as 20GB")
    return size


def size_text(size: int) -> str:
    """Bytes as people write them: 4.2 MB.

    >>> size_text(4_200_000)
    '4.2 MB'
    """
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} bytes"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_who_works(workers: int | None, dask: str | None) -> None:
    """Refuse to be told twice.

    Raises:
        SettingError: processes of this machine and a cluster as well.
    """
    if workers is not None and dask is not None:
        raise SettingError(
            "--workers are processes of this machine, and with --dask the cluster works; give one of them"
        )


@contextmanager
def counting(words: str, unit: str, *, enabled: bool) -> Generator[Callable[[int, int], None] | None]:
    """A bar on stderr, to be told what is done and how much there is in all; none where nobody looks."""
    if not enabled or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
