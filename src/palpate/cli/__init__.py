"""The command line. One file a verb; what they import is imported when they run, so that --help is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from palpate.cli import info, models, predict

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
app.add_typer(models.app, name="models")


def _show_version(wanted: bool) -> None:
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
    app(joined_points(sys.argv[1:] if arguments is None else arguments))


def joined_points(arguments: list[str]) -> list[str]:
    """`--point X Y` as one argument, `--point "X Y"`: the parser knows no repeatable option of two values.

    >>> joined_points(["--point", "120", "80:-", "-o", "m.png"])
    ['--point', '120 80:-', '-o', 'm.png']
    """
    joined: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        joined.append(argument)
        if argument == "--point":
            x = next(rest, None)
            y = next(rest, None) if x is not None and " " not in x else None
            joined += [" ".join(value for value in (x, y) if value is not None)] if x is not None else []
    return joined
