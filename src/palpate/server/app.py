"""The server put together: the core, the routers on it, the page, and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel

from palpate.errors import InputError, PalpateError
from palpate.inference.session import Session
from palpate.models import catalogue
from palpate.server import api, monai_label, nninteractive
from palpate.server.annotation import Behind
from palpate.server.desk import Desk, InUse, UnknownCase
from palpate.server.guard import App, Guard
from palpate.server.jobs import RETRY_SECONDS, Busy, Jobs, UnknownJob
from palpate.server.key_in_path import KeyInPath
from palpate.server.leases import Full, Gone, Taken
from palpate.server.teaching import Teaching
from palpate.server.uploads import TooMuch

PAGE = Path(__file__).parent / "page"

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""The names of this machine for itself."""

UPLOAD_BYTES = 2 * 2**30
"""The most that a program may upload at once: a large volume."""

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (UnknownCase, 404),
    (UnknownJob, 404),
    (Gone, 410),
    (Taken, 409),
    (InUse, 409),
    (Behind, 409),
    (Busy, 429),
    (Full, 503),
    (TooMuch, 413),
    (InputError, 422),
    (PalpateError, 409),
)


_PROBLEMS = {
    401: "The token is missing or wrong",
    404: "There is no such thing",
    409: "It cannot be done as things are: somebody else has the case, or there is nothing to undo",
    410: "The lease has ended; open the case again",
    413: "More than a request may send",
    422: "It makes no sense, on this image or at all",
    429: "Something else has to end first",
    503: "There is no room at the moment",
}


class Problem(BaseModel):
    """Why a question was not answered, in words that say what to do."""

    detail: str


def make_app(
    desk: Desk,
    jobs: Jobs,
    teaching: Teaching,
    session: Session,
    *,
    token: str | None,
    hosts: Sequence[str] = LOOPBACK,
    upload_bytes: int = UPLOAD_BYTES,
    loaded: dict[str, Any] | None = None,
) -> App:
    """An ASGI application on a desk.

    `session` is any session on the model, `loaded` what it was loaded with, for records; `hosts` are the names that the
    server may be asked under.
    """
    runtime = session.runtime

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        jobs.close()
        desk.close()

    app = FastAPI(
        title="palpate",
        version=version("palpate"),
        description="Annotate the images of a folder. Indices are voxels [i, j, k] of the image in closest-RAS order.",
        docs_url=None,  # its page would fetch scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        lifespan=lifespan,
        responses={status: {"model": Problem, "description": words} for status, words in _PROBLEMS.items()},
    )
    about = api.About(
        palpate=version("palpate"),
        model=runtime.model,
        runtime=runtime.describe(),
        prompts=tuple(
            kind
            for kind in ("box", "points", "scribble", "mask")
            if runtime.prompts.way(kind, beside_box=False) is not None
        ),
        made_by={
            "model": runtime.model,
            "weights_hash": runtime.weights_hash,
            "runtime": runtime.describe(),
            "load": loaded or {},
        },
        intensity=session.intensity,
    )
    app.include_router(api.router(desk, jobs, teaching, about))
    app.include_router(monai_label.router(desk, token=token, upload_bytes=upload_bytes, teaching=teaching, jobs=jobs))
    licence = next((card.licence for card in catalogue.CARDS if card.name == runtime.model.partition(" + ")[0]), "")
    app.include_router(
        nninteractive.router(desk.session_for, support=runtime.prompts, model=runtime.model, licence=licence)
    )

    @app.get("/", include_in_schema=False)
    def _page() -> FileResponse:  # pyright: ignore[reportUnusedFunction]
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/page/{path:path}", include_in_schema=False)
    def _file(path: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        wanted = _files().get(path)
        if wanted is None:
            return JSONResponse({"detail": f"the page has no file {path[:80]!r}"}, 404)
        return FileResponse(wanted, headers={"cache-control": "no-cache"})

    for kind in (PalpateError, MemoryError):
        app.add_exception_handler(kind, _told)
    app.add_exception_handler(RequestValidationError, _misunderstood)
    large = [(prefix, upload_bytes) for prefix in (*monai_label.LARGE_PATHS, *nninteractive.LARGE_PATHS)]
    guard = Guard(app, token=token, hosts=hosts, open_paths=("/healthz", *monai_label.OPEN_PATHS), large=large)
    return KeyInPath(guard, token=token)


def _files() -> dict[str, Path]:
    """The files of the page by their addresses: nothing else can be asked for."""
    return {
        path.relative_to(PAGE).as_posix(): path
        for path in PAGE.rglob("*")
        if path.is_file() and path.suffix in (".html", ".css", ".js", ".svg", ".png", ".txt", ".wasm")
    }


async def _told(_: Request, error: Exception) -> Response:
    headers: dict[str, str] = {}
    if isinstance(error, MemoryError):
        status, detail = 503, "there is not enough memory for this at the moment; close a case and try again"
    else:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        detail = str(error)
    if status in (429, 503):
        headers["retry-after"] = str(RETRY_SECONDS)
    return JSONResponse({"detail": detail}, status, headers)


async def _misunderstood(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{place}: {first['msg']}"}, 422)
