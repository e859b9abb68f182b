"""The command line. One file a verb; what they import is imported when they run, so that --help is quick."""

from __future__ import annotations

import re
import signal
import sys
from typing import Annotated

import typer

from palpate.cli import data, info, models, predict

app = typer.Typer(
    name="palpate",
    help="Promptable segmentation of medical images: a box, a click or a scribble gives a mask on the image's grid.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("predict", no_args_is_help=True)(predict.predict)
app.command("info", no_args_is_help=True)(info.info)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")


def _show_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"palpate {version('palpate')}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """What holds for every verb."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the entry point of `palpate`."""
    # A batch system's polite kill is treated like Ctrl-C, so that temporary files go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(joined_points(sys.argv[1:] if arguments is None else arguments))


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
