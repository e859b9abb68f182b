"""The command line. One file a verb; what they import is imported when they run, so that --help is quick."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from palpate.cli.terminal import command_line
from palpate.inference.processes import be_quick

_HELP = "Promptable segmentation of medical images: a box, a click or a scribble gives a mask on the image's grid."
_VERBS = ("predict", "serve", "replay", "evaluate", "finetune", "learn", "distill", "embed", "export", "info")
"""Each is a function in a module of its name."""
_COMPARE = "evaluate compare"
_GROUPS = ("data", "models")
"""Verbs that have verbs: each is an `app` in a module of its name."""


def _program(wanted: Sequence[str] = (*_VERBS, _COMPARE, *_GROUPS)) -> typer.Typer:
    """The command line with these verbs, by default with all."""
    app = typer.Typer(
        name="palpate",
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(options)
    for name in wanted:
        word = name.split()[-1]
        module = import_module(f"palpate.cli.{word}")
        if name in _GROUPS:
            app.add_typer(module.app, name=name)
        else:
            app.command(name, no_args_is_help=True, hidden=name == _COMPARE)(getattr(module, word))
    return app


def _show_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"palpate {version('palpate')}")
        raise typer.Exit
    return wanted


def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """What holds for every verb."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the entry point of `palpate`."""
    be_quick()
    # A batch system's polite kill is treated like Ctrl-C, so that temporary files go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = sys.argv[1:] if arguments is None else arguments
    command_line.set(tuple(given))
    words = _two_words(joined_severities(joined_points(given)))
    # To import and build the other verbs takes longer than to parse the one that is wanted.
    is_one = bool(words) and words[0] in (*_VERBS, _COMPARE, *_GROUPS)
    (_program(words[:1]) if is_one else _program())(words)


def _two_words(arguments: list[str]) -> list[str]:
    """`evaluate compare A B` as one verb: the parser cannot have both a verb's argument and a verb beneath it."""
    return [_COMPARE, *arguments[2:]] if arguments[:2] == ["evaluate", "compare"] else arguments


def joined_severities(arguments: list[str]) -> list[str]:
    """`--severity 0.05 0.1` as one argument, `--severity 0.05,0.1`: the parser knows no options of any length.

    >>> joined_severities(["--severity", "0.05", "-0.1", "-o", "run"])
    ['--severity=0.05,-0.1', '-o', 'run']
    """
    joined: list[str] = []
    gathering = False
    for argument in arguments:
        is_first = gathering and joined[-1].endswith("=")  # whatever it is, so that a word is told to be no number
        if (is_first and not argument.startswith("-")) or (
            gathering and re.fullmatch(r"-?[\d.]+(e-?\d+)?%?", argument)
        ):
            joined[-1] += argument if is_first else f",{argument}"
            continue
        gathering = argument.startswith("--severity=")
        if argument == "--severity":
            argument, gathering = "--severity=", True
        joined.append(argument)
    return joined


def joined_points(arguments: list[str]) -> list[str]:
    """`--point X Y` as one argument, `--point "X Y"`: the parser knows no repeatable option of two values.

    >>> joined_points(["--point", "120", "80:-", "-o", "m.png"])
    ['--point', '120 80:-', '-o', 'm.png']
    """
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] == "--point" and rest:
            x = rest.pop(0)
            # `--point 120,80 -o` is whole, and in `--point 120 -o` the second number was forgotten.
            whole = re.search(r"[\s,]", x) or not rest or re.match(r"-[^\d.]", rest[0])
            joined.append(x if whole else f"{x} {rest.pop(0)}")
    return joined
