"""A server that speaks nnInteractive's protocol on a fake model, for tests: in a thread, or without a network."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from fake_runtime import FakeRuntime
from palpate.errors import InputError, PalpateError
from palpate.images.image import Image
from palpate.inference.session import Session
from palpate.server import nninteractive
from palpate.server.leases import Full, Gone
from palpate.server.opened import OpenImage

# As `palpate.server.app` has it for all routers.
_STATUS: tuple[tuple[type[Exception], int], ...] = ((Gone, 410), (Full, 503), (InputError, 422), (PalpateError, 409))


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float | int = 0

    def __call__(self) -> float | int:
        return self.now


@dataclass
class Opener:
    """Opens what is uploaded, and remembers it."""

    make_session: Callable[[], Session] = field(default=lambda: Session(FakeRuntime()))
    opened: list[OpenImage] = field(default_factory=list)

    def __call__(self, image: Image) -> OpenImage:
        opened = OpenImage(image, self.make_session)
        self.opened.append(opened)
        return opened


def app_on(opener: Callable[[Image], OpenImage], **settings: Any) -> FastAPI:
    """The router alone, with the statuses that the whole application gives its errors."""
    app = FastAPI()
    app.include_router(nninteractive.router(opener, **settings))

    async def told(_: Request, error: Exception) -> JSONResponse:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        headers = {"retry-after": "5"} if status == 503 else {}
        return JSONResponse({"detail": str(error)}, status, headers)

    async def misunderstood(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    app.add_exception_handler(PalpateError, told)
    app.add_exception_handler(RequestValidationError, misunderstood)
    return app


@contextmanager
def served(app: Any) -> Generator[str]:
    """The address of an application on a free loopback port, for as long as it is needed."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the server ended before it had started"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def ball(shape: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> np.ndarray:
    """Voxels whose centres lie within `radius` of `centre`, both in the order of the axes."""
    far = np.indices(shape) - np.array(centre).reshape(3, 1, 1, 1)
    return (far**2).sum(axis=0) <= radius**2


def block(shape: tuple[int, int, int], *bounds: tuple[int, int]) -> np.ndarray:
    """A body with the same cut on every slice, whichever way it is cut; half-open bounds for each axis."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*pair) for pair in bounds)] = True
    return mask


def grey(body: np.ndarray) -> np.ndarray:
    """An image [1, x, y, z] of a white body on black."""
    return np.where(body, np.uint8(255), np.uint8(0))[None]
