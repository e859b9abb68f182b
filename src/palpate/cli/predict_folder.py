"""`palpate predict FOLDER --auto FILE`: every image of a folder without a prompt, and a table: where to look first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from palpate.cli.terminal import FAILURE, check_who_works, counting, note, say, say_json
from palpate.errors import OutputError

if TYPE_CHECKING:
    from palpate.inference.folder import Result
    from palpate.inference.folder_images import Skipped
    from palpate.inference.session import Session

_SHOWN = 5
"""How many images to look at first, and how many failed ones, are told; the table has all."""

_PICTURES = (".png", ".jpg", ".jpeg")


def is_folder(image: Path, output: Path | None) -> bool:
    """Whether masks go into a folder: unless the output has the name of a mask, or there is one image and no output."""
    from palpate.images.formats import suffix_of

    if output is None:
        return image.is_dir()
    return output.is_dir() or not suffix_of(output)


def kept(*, overwrite: bool) -> str:
    """What an interruption leaves behind."""
    again = "the same command without --overwrite" if overwrite else "the same command"
    return f"the masks that are done are kept, and {again} goes on with the rest"


def predict_folder(
    image: Path,
    output: Path | None,
    *,
    series: str | None,
    load: Mapping[str, Any],
    look: Mapping[str, Any],
    mask_format: str,
    previews: Path | None,
    workers: int | None = None,
    dask: str | None = None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Segment all images in a folder (or one) and say what to look at. `load` and `look` go to `load` and `Choices`.

    Without `workers` and `dask`, this process does it, with all its threads.
    """
    check_who_works(workers, dask)
    if output is None:
        raise OutputError("say which folder the masks go into: -o masks/")
    if previews is not None and not previews.is_dir() and previews.suffix.lower() in _PICTURES:
        raise OutputError(
            f"each image gets a preview, and {previews.name} has the name of one picture; give --preview a folder"
        )
    from palpate.inference.folder import find_in
    from palpate.inference.folder_helpers import Helpers, Loading
    from palpate.inference.folder_images import Entry, images_in
    from palpate.inference.folder_masks import Choices
    from palpate.inference.folder_table import SCORES

    choices = Choices(**look, volume_suffix=f".{mask_format.removeprefix('.')}")
    skipped: list[Skipped] = []
    if series is not None or not image.is_dir():
        entries = [Entry(image, image.resolve().name, series)]
    else:
        entries, skipped = images_in(image, leave_out=[output, *([previews] if previews else [])])
    from palpate.inference.loading import load as load_session
    from palpate.inference.runtimes.graphs import GraphRuntime

    shared = workers is not None or dask is not None
    arguments = {**load, "threads": 1} if shared else load
    ready = load_session(**arguments, tell=note)
    for text in ready.notes:
        note(text)
    # Helpers compute by what this process came to compute by, or not at all.
    arguments = {**arguments, "runtime": ready.runtime.engine if isinstance(ready.runtime, GraphRuntime) else "torch"}
    helpers = Helpers(Loading(arguments), workers or 1, dask, tell=note) if shared else None
    with counting("segmenting", "images", enabled=not as_json) as advance:
        result = find_in(
            ready,
            entries,
            output,
            choices=choices,
            previews=previews,
            overwrite=overwrite,
            helpers=helpers,
            progress=advance,
        )
    if as_json:
        say_json(
            {
                "model": ready.runtime.model,
                "weights_hash": ready.runtime.weights_hash,
                "output": str(output),
                "scores": str(output / SCORES),
                "records": [vars(row) for row in result.rows],
                "skipped": [vars(one) for one in skipped],
                "moved": [str(path) for path in result.moved],
            }
        )
    else:
        say(_lines(ready, result, skipped, output / SCORES))
    for row in result.failed:
        typer.echo(f"error: {row.image}: {row.error}", err=True)
    if result.failed:
        raise typer.Exit(FAILURE)


def masks_of(session: Session, output: Path, *, overwrite: bool) -> dict[int, Path]:
    """The path of each label's mask beside `output`, all of them free to be written.

    That they are neither the image's own files nor the preview is for the caller to check.
    """
    from palpate.images.formats import check_writable
    from palpate.inference.folder_names import named_masks

    paths = named_masks(output, session)
    for path in paths.values():
        check_writable(path, overwrite=overwrite)
    return paths


def _lines(session: Session, result: Result, skipped: list[Skipped], scores: Path) -> list[tuple[str, str]]:
    made = session.runtime
    counts = [f"{result.now} segmented"]
    counts += [f"{result.before} were done before"] if result.before else []
    counts += [f"{len(result.failed)} failed"] if result.failed else []
    lines = [
        ("model", f"{made.model} (weights {made.weights_hash[:12]}), {made.describe()}"),
        ("images", ", ".join(counts)),
    ]
    absent = [row for row in result.rows if not row.present and not row.error]
    lines += [("not there", f"{name} in {count}") for name, count in _counted(absent)]
    present = [row for row in result.rows if row.present]
    lines += [
        ("look first at", f"{row.image}: {row.class_name}, score {row.score or 0:.2f}") for row in present[:_SHOWN]
    ]
    lines += [
        ("moved aside", f"{count} older file{'s' if count > 1 else ''} of images that failed, into {folder}")
        for folder, count in Counter(path.parent for path in result.moved).items()
    ]
    lines += [("skipped", f"{one.name}: {one.reason}") for one in skipped]
    return [*lines, ("wrote", str(scores))]


def _counted(rows: list[Any]) -> list[tuple[str, str]]:
    """Of each class, in how many images it is not."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.class_name] = counts.get(row.class_name, 0) + 1
    return [(name, f"{count} image{'s' if count > 1 else ''}") for name, count in counts.items()]
