"""How verbs speak: results on stdout, everything else on stderr, errors as one sentence and an exit status."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import typer

from palpate.errors import InputError, OutputError, PalpateError

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


def say_json(content: dict[str, Any]) -> None:
    """One JSON document."""
    typer.echo(json.dumps(content, indent=2))
