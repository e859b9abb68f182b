"""A desk on a folder of phantoms, behind the whole application, with a model whose masks can be worked out by hand."""

import base64
import json
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from fastapi.testclient import TestClient

from fake_runtime import FakeFindingRuntime, FakeRuntime
from palpate.images.intensity import Intensity
from palpate.inference.session import Session
from palpate.server.app import make_app
from palpate.server.desk import Desk
from palpate.server.jobs import Jobs
from palpate.server.leases import Leases
from palpate.server.teaching import Teaching

TOKEN = "a-token-for-tests"

OBLIQUE = np.array([[0.1, 0.2, 2.9, -20], [-0.9, 0.1, 0.2, 50], [-0.1, -0.8, 0.3, 30], [0, 0, 0, 1.0]])
"""Axes that point back, down and right, all a little askew; voxels of 0.9 x 0.8 x 2.9 mm."""


def brick(path: Path, affine: np.ndarray = OBLIQUE, *, low: tuple[int, int, int] = (20, 10, 5)) -> np.ndarray:
    """A volume of 64 x 60 x 20 voxels with a bright brick of 20 x 20 x 10; the brick as a mask in the file's order."""
    volume = np.zeros((64, 60, 20), dtype=np.int16)
    volume[low[0] : low[0] + 20, low[1] : low[1] + 20, low[2] : low[2] + 10] = 200
    nibabel.Nifti1Image(volume, affine).to_filename(path)  # type: ignore[attr-defined]
    return volume > 0


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Window:
    """What one browser window knows: its lease, and the map that it puts together from patches."""

    client: TestClient
    case: str
    opened: dict[str, Any]
    shown: np.ndarray = field(init=False)
    state: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.shown = np.zeros(self.opened["image"]["shape"], dtype=np.uint8)
        self._take(self.opened)

    @property
    def headers(self) -> dict[str, str]:
        return {"x-palpate-lease": self.opened["lease"]}

    @property
    def plane(self) -> str:
        return self.opened["image"]["plane"]

    def post(self, verb: str, **asked: Any) -> Any:
        """Ask, whatever the answer."""
        return self.client.post(f"/api/v1/cases/{self.case}/{verb}", headers=self.headers, json=asked)

    def do(self, verb: str, **asked: Any) -> dict[str, Any]:
        """Change something, and show what changed."""
        answer = self.post(verb, revision=self.state["revision"], **asked)
        assert answer.status_code == 200, answer.text
        return self._take(answer.json())

    def catch_up(self) -> dict[str, Any]:
        """What changed since this window last looked."""
        path = f"/api/v1/cases/{self.case}/map?since={self.state['revision']}"
        return self._take(self.client.get(path, headers=self.headers).json())

    def carry(self, first: int, last: int, **asked: Any) -> dict[str, Any]:
        """Propagate, and wait for it."""
        asked = {"plane": self.plane, "first": first, "last": last, **asked}
        answer = self.post("propagate", revision=self.state["revision"], **asked)
        assert answer.status_code == 202, answer.text
        job = self.wait(answer.json()["job"])
        assert job["status"] == "finished", job
        return self.catch_up()

    def wait(self, job: dict[str, Any]) -> dict[str, Any]:
        """A job when it has ended."""
        for _ in range(600):
            job = self.client.get(f"/api/v1/jobs/{job['id']}").json()
            if job["status"] != "running":
                return job
            time.sleep(0.02)
        raise AssertionError(job)

    def _take(self, answer: dict[str, Any]) -> dict[str, Any]:
        self.state = answer["state"]
        if (patch := answer["patch"]) is not None:
            window, values = unpacked(patch)
            self.shown[window] = values
        return self.state


def unpacked(patch: dict[str, Any]) -> tuple[tuple[slice, ...], np.ndarray]:
    """Where a patch belongs in the RAS grid, and its values."""
    window = tuple(slice(low, high + 1) for low, high in zip(patch["from"], patch["to"], strict=True))
    data = np.frombuffer(zlib.decompress(base64.b64decode(patch["data"])), dtype=np.uint8)
    return window, data.reshape([part.stop - part.start for part in window], order="F")


@dataclass
class Office:
    """The application on a folder, and its parts."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    make_runtime: Callable[[], Any] = FakeRuntime
    max_open: int = 16
    token: str | None = TOKEN
    upload_bytes: int = 2**26
    intensity: Intensity | None = None
    finding: FakeFindingRuntime = field(default_factory=FakeFindingRuntime)

    def __post_init__(self) -> None:
        self.session = Session(self.make_runtime(), intensity=self.intensity)
        leases = Leases(most=self.max_open, clock=self.clock)
        learned = lambda sha256: self.teaching.session(sha256)  # noqa: E731
        self.desk = Desk(self.folder, self.session.sibling, learned=learned, leases=leases)
        self.jobs = Jobs()
        load = lambda path, tell: Session(self.findings.get(path.name, self.finding))  # noqa: E731
        self.findings: dict[str, FakeFindingRuntime] = {}  # of files that another one is loaded from
        self.teaching = Teaching(self.desk, self.desk.state / "learned", self.jobs, load=load)
        self.app = make_app(
            self.desk, self.jobs, self.teaching, self.session, token=self.token, upload_bytes=self.upload_bytes
        )
        self.client = self.another()

    def another(self, *, token: str | None = TOKEN) -> TestClient:
        """One more program that asks."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return TestClient(self.app, base_url="http://localhost:8000", headers=headers, raise_server_exceptions=False)

    def open(self, case: str, **asked: Any) -> Window:
        """A window on a case."""
        answer = self.client.post(f"/api/v1/cases/{case}/open", json=asked)
        assert answer.status_code == 200, answer.text
        return Window(self.client, case, answer.json())

    def learn(self, *classes: str) -> Path:
        """As if prompts had been learned from three cases, for the next time; their file."""
        folder = self.desk.state / "learned"
        folder.mkdir(exist_ok=True)
        path = folder / f"learned-{1 + len(list(folder.glob('*.json')))}.safetensors"
        path.write_bytes(path.name.encode())
        told = {"cases": ["a", "b", "c"], "classes": classes, "val_dice": None, "made_at": "2026-01-01T00:00:00+00:00"}
        path.with_suffix(".json").write_text(json.dumps(told), encoding="utf-8")
        return path

    def closed(self) -> None:
        """As after a proper end."""
        self.jobs.close()
        self.desk.close()


def box_around(mask: np.ndarray, plane: str, at: int | None = None) -> dict[str, Any]:
    """The tight box of a mask of the RAS grid on a plane, on its middle slice or another one."""
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    places = np.argwhere(mask)
    low, high = places.min(axis=0).tolist(), places.max(axis=0).tolist()
    low[axis] = high[axis] = (low[axis] + high[axis]) // 2 if at is None else at
    return {"kind": "box", "plane": plane, "from": low, "to": high}
