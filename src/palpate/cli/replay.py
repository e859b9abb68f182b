"""`palpate replay RECORD`: make the masks of an annotation again, from what was drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from palpate.cli.terminal import counting, note, reporting_errors, say, say_json
from palpate.errors import InputError

DIFFERS = 3


def replay(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="The .prompts.json of an export.")],
    image: Annotated[Path, typer.Option(help="The image that it was drawn on.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where the label map goes; the suffix decides."),
    ] = None,
    series: Annotated[str | None, typer.Option(help="Which series, where IMAGE holds several.")] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the record's.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="The adapter file, where it is elsewhere now.")] = None,
    auto: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="What was learned, where objects were drawn beside it; give it once for each file that was used.",
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file to use instead of the known one.")] = None,
    runtime: Annotated[str, typer.Option(help="auto, openvino, onnxruntime or torch.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Make the masks of an annotation again, and say whether they are the same.

    palpate replay liver-042.prompts.json --image liver-042.nii.gz -o again.nii.gz

    The status is 0 where every voxel is the same, and 3 where some differ (another model, runtime or processor).
    """
    with reporting_errors(as_json=as_json):
        from palpate.images import read, write_mask
        from palpate.images.formats import Mask, check_writable
        from palpate.images.intensity import parse_intensity
        from palpate.inference.loading import load
        from palpate.inference.session import Session
        from palpate.server.opened import OpenImage
        from palpate.server.record import map_hash, replayed

        if output is not None:
            check_writable(output, overwrite=overwrite)
        content = _read(record)
        learned_files = _learned_files(content, auto or [])
        loaded = cast("dict[str, Any]", content.get("load") or {})
        made = None if loaded.get("adapter") is None else Path(str(loaded["adapter"]))
        opening = partial(
            load,
            weights=weights,
            runtime=runtime,
            precision=str(loaded.get("precision") or "float32"),
            tell=None if as_json else note,
        )
        session = opening(model or loaded.get("model"), adapter=adapter or made)
        if content.get("weights_hash") != session.runtime.weights_hash:
            note(f"the record was made by {content.get('model')} with other weights, so masks may differ")
        rule = None if loaded.get("window") is None else parse_intensity(str(loaded["window"]))

        @cache
        def loaded_once(sha256: str) -> Session:
            return opening(auto=learned_files[sha256])

        def on_learned(sha256: str) -> Session:
            return loaded_once(sha256).sibling()

        opened = OpenImage(read(image, series=series), lambda: session.sibling(intensity=rule), learned=on_learned)
        with counting("replaying", "actions", enabled=not as_json) as progress:
            labels = replayed(content, opened, progress=progress)
        same = map_hash(labels) == content.get("labels_sha256")
        names = {int(one["value"]): str(one["name"]) for one in content.get("labels", [])}
        if output is not None:
            write_mask(output, Mask(labels, opened.image.geometry, names), overwrite=overwrite)
        if as_json:
            say_json({"same": same, "output": None if output is None else str(output)})
        else:
            say([("same masks", "yes, every voxel" if same else "no"), ("made by", session.runtime.describe())])
        if not same:
            raise typer.Exit(DIFFERS)


def _learned_files(content: Mapping[str, Any], given: Sequence[Path]) -> dict[str, Path]:
    """The files of learned prompts that a record needs, by their SHA-256.

    Raises:
        InputError: one that it needs was not given, or what was given cannot be read.
    """
    from palpate.server.record import learned_in

    files: dict[str, Path] = {}
    for path in given:
        try:
            with path.open("rb") as stream:
                files[hashlib.file_digest(stream, "sha256").hexdigest()] = path
        except OSError as error:
            raise InputError(f"cannot read the learned prompts {path}: {error.strerror}") from error
    for sha256, name in learned_in(content).items():
        if sha256 not in files:
            raise InputError(
                f"objects of this record were drawn beside what was learned, which is not among the files given: "
                f"{name[:80]!r} with the SHA-256 {sha256[:12]}; give it with --auto (`palpate serve` keeps it in the "
                "folder .palpate/learned of its images)"
            )
    return files


def _read(path: Path) -> dict[str, Any]:
    from palpate.server.record import check_record

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the record {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    check_record(content)
    return cast("dict[str, Any]", content)
