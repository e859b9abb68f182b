"""`palpate evaluate compare RUN_A RUN_B`: did it get better?"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palpate.cli.terminal import reporting_errors, say_json
from palpate.errors import FormatError, SettingError

if TYPE_CHECKING:
    from palpate.evaluation.compare import Comparison

_KINDS = {".csv": "csv", ".md": "markdown", ".json": "json"}


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The folder of a finished run: the one before.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The folder of the run to hold against it.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the table: .csv, .md or .json.")] = None,
    measure: Annotated[
        str, typer.Option(help="dice, nsd, iou, hd95, assd, leak, miss, error or predicted_iou.")
    ] = "dice",
    by: Annotated[str, typer.Option(help="all: datasets together, each counting once; dataset: one by one.")] = "all",
    common: Annotated[
        bool, typer.Option("--common", help="Compare what both runs measured, where they did not measure the same.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="For the resampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Compare two runs prompt by prompt: paired differences by subject, 95 % intervals, and a sign-flip test."""
    with reporting_errors(as_json=as_json):
        if by not in ("all", "dataset"):
            raise SettingError(f"--by is all or dataset, not {by!r}")

        import numpy as np

        from palpate.evaluation import compare as comparing
        from palpate.evaluation.table import read_run
        from palpate.images.formats import check_writable, replacing

        if output is not None:
            check_writable(output, overwrite=overwrite, kinds=_KINDS)
        for folder in (run_a, run_b):
            if not folder.is_dir():
                raise FormatError(
                    f"there is no folder {folder}; pass the folders that two `palpate evaluate` wrote with --output"
                    if not folder.exists()
                    else f"{folder} is a file; pass the folder of a finished run"
                )
        found = comparing.compare(
            read_run(run_a),
            read_run(run_b),
            np.random.default_rng(seed),
            measure=measure,
            by="dataset" if by == "dataset" else "all",
            common_only=common,
        )
        if run_a.resolve() == run_b.resolve():
            note = f"Both runs are the same folder, {run_a}: every difference is zero and says nothing."
            found = replace(found, notes=(note, *found.notes))
        if output is not None:
            text = {".csv": found.csv, ".md": found.markdown}.get(output.suffix.lower())
            with replacing(output, overwrite=overwrite) as temporary:
                temporary.write_text(text() if text else comparing.json_text(found), encoding="utf-8", newline="")
        if as_json:
            say_json(found.json())
        else:
            _print_table(found)


def _print_table(comparison: Comparison) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from palpate.evaluation.compare import p_text, signed
    from palpate.evaluation.summary import label_of

    scale = comparison.scale
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{comparison.title}: B minus A")
    table.add_column("dataset", overflow="fold")
    table.add_column("prompt", overflow="fold")
    for heading in ("A", "B", "B - A [95 %]", "subjects", "+/-/=", "p", "p Holm"):
        table.add_column(heading, justify="right")
    for line in comparison.lines:
        result = line.result
        table.add_row(
            escape(line.dataset),
            escape(label_of(line.condition)),
            f"{result.a * scale:.1f}",
            f"{result.b * scale:.1f}",
            escape(signed(result.difference, scale=scale)),
            str(result.difference.subjects),
            f"{result.better}/{result.worse}/{result.equal}",
            p_text(result.p),
            p_text(line.p_adjusted),
        )
    # Wide enough for a log file, too, where there is no terminal to ask.
    console = Console(width=max(shutil.get_terminal_size((120, 24)).columns, 80), highlight=False)
    console.print(table)
    for note in comparison.notes:
        console.print(note, markup=False)
