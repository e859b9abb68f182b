"""However much is being computed: a program that lives is heard, and work can be cancelled."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from desks import TOKEN, Office, brick
from nninteractive_server import served

MANY = 60
"""More than there are threads for requests."""

BOX = {"kind": "box", "plane": "axial", "from": [15, 5, 9], "to": [45, 35, 9]}


def test_they_wait_for_no_thread(tmp_path: Path) -> None:
    brick(tmp_path / "a.nii", np.diag([1, 1, 3, 1.0]))
    office = Office(tmp_path)
    with (
        served(office.app) as address,
        httpx.Client(base_url=address, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30) as client,
        ThreadPoolExecutor(MANY) as many,
    ):
        lease = {"x-palpate-lease": client.post("/api/v1/cases/a.nii/open", json={}).json()["lease"]}
        connected = {"x-lease-token": client.post("/claim").json()["lease_token"]}

        def ask() -> int:
            headers = {"authorization": f"Bearer {TOKEN}", **lease}
            return httpx.post(
                f"{address}/api/v1/cases/a.nii/preview", headers=headers, json={"prompt": BOX}, timeout=60
            ).status_code

        with office.desk.annotation("a.nii").opened.lock:  # as somebody does who asked before
            waiting = [many.submit(ask) for _ in range(MANY)]
            assert no_thread_is_left(client)
            assert client.post("/api/v1/cases/a.nii/heartbeat", headers=lease).status_code == 200
            assert client.get("/healthz").status_code == 200
            assert client.get("/api/v1/jobs/none").status_code == 404
            assert client.post("/api/v1/jobs/none/cancel").status_code == 404
            assert client.post("/heartbeat", headers=connected).status_code == 200
            assert client.get("/lease_status", headers=connected).status_code == 200
        assert {one.result() for one in waiting} == {200}
    office.closed()


def no_thread_is_left(client: httpx.Client) -> bool:
    """Whether, before long, a question that needs a thread waits."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            client.get("/api/v1/about", timeout=0.5)
        except httpx.ReadTimeout:
            return True
    return False
