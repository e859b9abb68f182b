"""`palpate data`: check a dataset, and split it by subject."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palpate.cli.terminal import FAILURE, counting, reporting_errors, say, say_json

if TYPE_CHECKING:
    from palpate.datasets import Case, Problem, Report

app = typer.Typer(help="Check labelled images, and split them by subject.", no_args_is_help=True)

_SHOWN = 5
"""Problems of one kind that are printed without --all."""

Data = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="A manifest.csv or its folder, an nnU-Net, npy or npz folder, or images."),
]
Labels = Annotated[Path | None, typer.Option(help="The folder of labels, where DATA is a folder of images.")]
Datasets = Annotated[list[str] | None, typer.Option(help="Only this dataset of DATA. Repeatable.")]
Channel = Annotated[int, typer.Option(min=0, help="Which channel of nnU-Net images.")]
SubjectPattern = Annotated[
    str | None, typer.Option(metavar="REGEX", help="Where a case's name says whose it is; its first group, if any.")
]


@app.command(no_args_is_help=True)
def check(
    data: Data,
    labels: Labels = None,
    dataset: Datasets = None,
    split: Annotated[str | None, typer.Option(help="Only this split: train, val or test.")] = None,
    channel: Channel = 0,
    subject_pattern: SubjectPattern = None,
    show_all: Annotated[bool, typer.Option("--all", help="Print every problem, not the first five of a kind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report missing pairs, grids that differ, damaged files, unexpected labels, and subjects that cross splits.

    The exit status is 0 if there are no errors, 1 if there are (warnings do not count), 2 if DATA is no dataset.
    """
    with reporting_errors(as_json=as_json):
        from palpate import datasets

        with counting("checking", "cases", enabled=not as_json) as advance:
            report = datasets.check(
                data,
                labels=labels,
                dataset=dataset,
                split=split,
                channel=channel,
                subject_pattern=subject_pattern,
                progress=advance,
            )
        if as_json:
            say_json(report.record())
        else:
            for line in _lines(report, most=None if show_all else _SHOWN):
                typer.echo(line)
        if report.errors:
            raise typer.Exit(FAILURE)


@app.command(no_args_is_help=True)
def split(
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="MANIFEST", help="The manifest.csv to write.")],
    labels: Labels = None,
    dataset: Datasets = None,
    channel: Channel = 0,
    train: Annotated[float, typer.Option(help="The share of cases to train on.")] = 0.7,
    val: Annotated[float, typer.Option(help="The share of cases to choose on.")] = 0.1,
    test: Annotated[float, typer.Option(help="The share of cases to report on.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same split.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave subjects where they are, and split the others.")] = False,
    subject_pattern: SubjectPattern = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a manifest that exists.")] = False,
) -> None:
    """Write a manifest with a `split` column that never parts the images of one subject.

    Slices named patient012_034.png:   palpate data split DATA -o manifest.csv --subject-pattern '(.+)_'
    """
    with reporting_errors(as_json=as_json):
        from palpate.images.formats import check_writable

        check_writable(output, overwrite=overwrite, kinds={".csv": "manifest"})
        import numpy as np

        from palpate import datasets

        cases = datasets.open_dataset(
            data, labels=labels, dataset=dataset, channel=channel, subject_pattern=subject_pattern
        )
        fractions = {"train": train, "val": val, "test": test}
        drawn = datasets.split(cases, fractions=fractions, rng=np.random.default_rng(seed), keep=keep)
        datasets.write_manifest(output, drawn, overwrite=overwrite)
        rows = _counts(drawn, [name for name, share in fractions.items() if share > 0])
        notes = _notes(rows)
        if as_json:
            say_json({"output": str(output), "seed": seed, "datasets": rows, "notes": notes})
        else:
            say(_table(rows))
            for note in notes:
                typer.echo(f"note: {note}")
            typer.echo(f"wrote {output}")


def _lines(report: Report, *, most: int | None) -> Iterable[str]:
    """The report for people: problems of a kind together, and a summary."""
    groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in report.problems:
        groups[problem.severity, problem.kind].append(problem)
    for (severity, kind), problems in groups.items():
        yield f"{severity}: {kind} ({len(problems)})"
        yield from (f"  {problem}" for problem in problems[:most])
        if most is not None and len(problems) > most:
            yield f"  and {len(problems) - most} more; --all shows them"
        yield ""
    facts = report.record()
    splits = ", ".join(f"{name} {count}" for name, count in facts["splits"].items()) or "no splits"
    yield (
        f"{_many(facts['cases'], 'case')} of {_many(facts['subjects'], 'subject')} in "
        f"{_many(len(facts['datasets']), 'dataset')} ({report.layout}; {splits}): "
        f"{_many(facts['errors'], 'error')}, {_many(facts['warnings'], 'warning')}"
    )


def _counts(cases: Sequence[Case], splits: list[str]) -> list[dict[str, Any]]:
    """Cases and subjects of every dataset, by split."""
    names = [*splits, *sorted({case.split for case in cases} - set(splits))]
    return [
        {
            "dataset": dataset,
            **{
                name: {
                    "cases": sum(case.dataset == dataset and case.split == name for case in cases),
                    "subjects": len({c.subject for c in cases if c.dataset == dataset and c.split == name}),
                }
                for name in names
            },
        }
        for dataset in sorted({case.dataset for case in cases})
    ]


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['dataset']} has no case in {name}: too few subjects for that share"
        for row in rows
        for name, count in row.items()
        if name != "dataset" and count["cases"] == 0
    ]


def _table(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    def told(row: dict[str, Any]) -> str:
        counts = {name: count for name, count in row.items() if name != "dataset"}
        return ", ".join(f"{name} {c['cases']} ({_many(c['subjects'], 'subject')})" for name, c in counts.items())

    return [(row["dataset"], told(row)) for row in rows]


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
