"""A server as `palpate serve` would run it, on a folder of small phantoms, for the tests of MONAI Label's REST."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fake_runtime import FakeRuntime
from palpate.images.formats.nifti import Nifti1Image
from palpate.inference.session import Session
from palpate.server import monai_label
from palpate.server.desk import Desk
from palpate.server.guard import App, Guard
from palpate.server.key_in_path import KeyInPath

TOKEN = "a-token-for-tests"
SHAPE = (40, 36, 24)
"""Of the phantoms, along the file's axes (i, j, k)."""
CENTRE = (26, 12, 9)
RADIUS_MM = 8.0

ORIENTATIONS = {
    "ras": np.diag([1.0, 1.0, 2.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 2.0, 1.0]),
    "lps": np.diag([-1.0, -1.0, 2.0, 1.0]),
    "sagittal": np.array([[0, 0, 2.0, -7], [-1.0, 0, 0, 30], [0, -1.0, 0, 12], [0, 0, 0, 1]]),
    "coronal": np.array([[1.0, 0, 0, 3], [0, 0, -2.0, 4], [0, 1.0, 0, -90], [0, 0, 0, 1]]),
    "thick_first": np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0], [2.5, 0, 0, -40], [0, 0, 0, 1]]),
    "oblique": None,
}
"""Where the axes of a file may point."""


def affine_of(orientation: str) -> np.ndarray:
    affine = ORIENTATIONS[orientation]
    if affine is not None:
        return np.array(affine, dtype=float)
    a, b = np.deg2rad(17), np.deg2rad(-28)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    oblique = np.eye(4)
    oblique[:3, :3] = about_z @ about_x @ np.diag([-1.0, 1.0, 2.0])
    oblique[:3, 3] = 20, -35, 11
    return oblique


def ball(affine: np.ndarray) -> np.ndarray:
    """In the file's order, [i, j, k]: the voxels whose centres are near the centre's, in millimetres."""
    ijk = np.moveaxis(np.indices(SHAPE), 0, -1)
    mm = (ijk - CENTRE) @ affine[:3, :3].T
    return np.linalg.norm(mm, axis=-1) <= RADIUS_MM


def save_phantom(path: Path, affine: np.ndarray, *, bright: int = 200, noise: int = 12) -> np.ndarray:
    """A bright ball on dark noise; the ball as a mask [i, j, k]."""
    mask = ball(affine)
    grey = np.random.default_rng(0).integers(0, noise, SHAPE).astype(np.int16)
    grey[mask] += bright
    volume = Nifti1Image(grey, affine)
    volume.set_sform(affine, 1)
    volume.set_qform(affine, 1)
    nib.save(volume, path)
    return mask


def desk_on(folder: Path, make_session: Callable[[], Session] | None = None) -> Desk:
    return Desk(folder, make_session or (lambda: Session(FakeRuntime())))


def app_on(desk: Desk, *, token: str | None = TOKEN, **settings: Any) -> App:
    app = FastAPI()
    app.include_router(monai_label.router(desk, token=token, **settings))
    large = [(prefix, 2**26) for prefix in monai_label.LARGE_PATHS]
    hosts = ("127.0.0.1", "testserver")
    return KeyInPath(Guard(app, token=token, hosts=hosts, open_paths=monai_label.OPEN_PATHS, large=large), token=token)


@contextmanager
def served(app: App) -> Generator[str]:
    """The address at which the app answers, on a real socket."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))  # pyright: ignore[reportArgumentType]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
        assert thread.is_alive(), "the server did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def client_on(desk: Desk, **settings: Any) -> TestClient:
    """A client in the same process, without a token."""
    return TestClient(app_on(desk, token=None, **settings), follow_redirects=False)  # pyright: ignore[reportArgumentType]
