"""Exports as answers: written to a temporary folder, sent, and removed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from palpate.errors import InputError
from palpate.server.exporting import Finished, export


def download(kind: str, finished: Sequence[Finished]) -> FileResponse:
    """An export as a file to be saved.

    Raises:
        InputError: there is nothing to export. OutputError: it cannot be written as this kind.
    """
    if not finished:
        raise InputError("no case is done yet, so there is nothing to export; mark cases as done, or export one alone")
    folder = Path(tempfile.mkdtemp(prefix="palpate-export-"))
    try:
        stem = finished[0].case if len(finished) == 1 else "annotations"
        path = folder / f"{stem}-{kind}.zip"
        export(kind, finished, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return FileResponse(
        path,
        filename=path.name,
        media_type="application/zip",
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )
