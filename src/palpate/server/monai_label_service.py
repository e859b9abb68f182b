"""What the routers of MONAI Label's REST share: the desk, the files they wrote, and how errors are told."""

import shutil
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from fastapi import HTTPException, Request, Response, UploadFile
from fastapi.routing import APIRoute
from pydantic import AfterValidator
from starlette.datastructures import UploadFile as AnyUpload

from palpate.errors import InputError, ModelError, PalpateError
from palpate.server.desk import CaseStatus, Desk, InUse, UnknownCase
from palpate.server.guard import TooLarge
from palpate.server.jobs import RETRY_SECONDS, Busy, Job, Jobs
from palpate.server.leases import Full, Gone, Taken
from palpate.server.monai_label_files import ServedImages
from palpate.server.monai_label_sessions import Sessions, UnknownSession
from palpate.server.uploads import IMAGE_SUFFIXES, MOST_FILES, TooMuch, checked_id, receive

UPLOAD_BYTES = 2**30
"""The most that a request may send."""

IMAGE_BYTES = 2 * 2**30
"""The most that an image which was sent may hold, unpacked."""

_LINES = 1000


def _promised(upload: AnyUpload) -> UploadFile:
    # FastAPI promises its own class in signatures and hands out the one beneath it.
    return UploadFile(upload.file, size=upload.size, filename=upload.filename, headers=upload.headers)


Upload = Annotated[UploadFile, AfterValidator(_promised)]
"""A file of a form."""


@runtime_checkable
class Teacher(Protocol):
    """What `/train/` speaks to; its jobs are of kind `teach`."""

    def teach(self) -> Job:
        """Begin to teach.

        Raises:
            InputError: too few cases are done. Busy: it is being taught already.
        """
        ...


class Service:
    """One desk for clients of MONAI Label. Files that are written for a while lie in `folder`, which goes with it."""

    def __init__(
        self,
        desk: Desk,
        *,
        token: str | None,
        teaching: Teacher | None,
        jobs: Jobs | None,
        upload_bytes: int,
        image_bytes: int,
    ) -> None:
        self.desk = desk
        self.token = token
        self.teaching = teaching
        self.jobs = jobs
        self.upload_bytes = upload_bytes
        self.image_bytes = image_bytes
        self.folder = Path(tempfile.mkdtemp(prefix="palpate-"))  # readable by its owner alone
        self.served = ServedImages(desk, self.folder)
        self.sessions = Sessions(self.folder, desk.session_for, image_bytes=image_bytes)
        self.lines: deque[str] = deque(maxlen=_LINES)
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def case(self, name: str) -> str:
        """The case that a client means: by its id, its file's name without the suffix, or its DICOM series.

        Raises:
            UnknownCase: there is none. InputError: not a name at all.
        """
        found = self.find(name)
        if found is None:
            raise UnknownCase(f"there is no image {name[:60]!r} in the folder; GET /datastore/?output=all lists them")
        return found

    def find(self, name: str) -> str | None:
        """As `case`, or None.

        Raises:
            InputError: not a name at all.
        """
        plain = checked_id(name)
        cases = [one.id for one in self.desk.cases()]
        for wanted in (plain, *(f"{plain}{suffix}" for suffix in IMAGE_SUFFIXES)):
            if wanted in cases:
                return wanted
        return next((case for case in cases if self.desk.entry(case).uid == plain), None)

    def status(self, case: str) -> CaseStatus:
        """What the desk says of a case."""
        return next(one for one in self.desk.cases() if one.id == case)

    def temporary(self) -> Path:
        """A new folder for one request."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def store(self, upload: UploadFile, path: Path) -> None:
        """Write an uploaded file.

        Raises:
            TooMuch: more than is taken.
        """
        receive(upload.file, path, most=self.upload_bytes)

    def route_class(self) -> type[APIRoute]:
        """Routes whose errors are told, whose bodies are bounded, and which leave a line in the log."""
        service = weakref.ref(self)

        class Told(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handle = super().get_route_handler()

                async def told(request: Request) -> Response:
                    here = service()
                    assert here is not None
                    start, status = time.perf_counter(), 500
                    try:
                        response = await handle(_bounded(request, here.upload_bytes))
                        status = response.status_code
                        return response
                    except PalpateError as error:
                        refused = refusal(error)
                        status = refused.status_code
                        raise refused from error
                    except HTTPException as error:
                        status = error.status_code
                        raise
                    finally:
                        seconds = time.perf_counter() - start
                        when = time.strftime("%Y-%m-%d %H:%M:%S")
                        here.lines.append(f"{when} {request.method} {request.url.path} {status} {seconds:.2f} s")

                return told

        return Told


def refusal(error: PalpateError) -> HTTPException:
    """An error of palpate as an answer."""
    if isinstance(error, Full | Busy | ModelError):
        status = 429 if isinstance(error, Busy) else 503
        return HTTPException(status, str(error), headers={"Retry-After": str(RETRY_SECONDS)})
    statuses: dict[type[PalpateError], int] = {
        UnknownCase: 404,
        UnknownSession: 404,
        TooMuch: 413,
        Taken: 409,
        Gone: 409,
        InUse: 409,
        InputError: 400,
    }
    status = next((status for kind, status in statuses.items() if isinstance(error, kind)), 507)
    return HTTPException(status, str(error))


class _ManyFiles(Request):
    """A request whose form may hold a series; it is the bytes of the whole that are bounded."""

    def form(self, **limits: Any) -> Any:
        """As any request's, whose forms hold a thousand files at most."""
        return super().form(**{**limits, "max_files": MOST_FILES})


def _bounded(request: Request, most: int) -> Request:
    """The request, whose body ends in an error where it becomes too long."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:
        raise HTTPException(413 if length.isdigit() else 400, f"a request may send {most} bytes at most")
    seen = 0

    async def read() -> Any:
        nonlocal seen
        try:
            message = await request.receive()
        except TooLarge as error:  # the guard's own limit; what reads bodies would take it for a damaged one
            raise HTTPException(413, f"a request may send {error} bytes at most") from None
        seen += len(message.get("body", b""))
        if seen > most:
            raise HTTPException(413, f"a request may send {most} bytes at most")
        return message

    return _ManyFiles(request.scope, read)
