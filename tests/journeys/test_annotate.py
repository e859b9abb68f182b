"""A user annotates a folder: the real server, the real model; the power goes, and nothing is lost."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest

from command_line import Run
from palpate.metrics import dice
from serving import Serving, serving

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("weights")]

CASE = "scan.nii.gz"
BOX = {"kind": "box", "plane": "axial", "from": [24, 20, 7], "to": [56, 48, 7]}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A ball in a volume whose axes point right, front and up, so that the file's voxels are those of the RAS grid."""
    folder = tmp_path / "scans"
    folder.mkdir()
    i, j, k = np.indices((96, 72, 15))
    inside = (i - 40) ** 2 + (j - 34) ** 2 + ((k - 7) * 3.5) ** 2 <= 15**2
    noise = np.random.default_rng(3).normal(0, 8, inside.shape)
    values = np.where(inside, 160, 20) + noise
    image = nibabel.Nifti1Image(values.astype(np.int16), np.diag([1.0, 1.0, 3.5, 1.0]))  # type: ignore[attr-defined]
    image.to_filename(folder / CASE)
    nibabel.Nifti1Image(inside.astype(np.uint8), image.affine).to_filename(tmp_path / "truth.nii.gz")  # type: ignore[attr-defined]
    return folder


def opened(server: Serving) -> dict[str, Any]:
    answer = server.client.post(f"/api/v1/cases/{CASE}/open", json={})
    assert answer.status_code == 200, answer.text
    server.client.headers["x-palpate-lease"] = answer.json()["lease"]
    return answer.json()


def done(server: Serving, verb: str, **asked: Any) -> dict[str, Any]:
    answer = server.client.post(f"/api/v1/cases/{CASE}/{verb}", json={"revision": 0, **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


def carried(server: Serving, **asked: Any) -> None:
    answer = server.client.post(f"/api/v1/cases/{CASE}/propagate", json={"revision": 0, "plane": "axial", **asked})
    job = answer.json()["job"]
    while job["status"] == "running":
        job = server.client.get(f"/api/v1/jobs/{job['id']}").json()
    assert job["status"] == "finished", job


def test_a_case_is_drawn_and_kept_through_a_power_cut_and_made_again(scans: Path, palpate: Run, tmp_path: Path) -> None:
    with serving(scans) as server:
        opened(server)
        done(server, "prompts", prompt=BOX)
        carried(server, first=6, last=8)
        before = server.client.get(f"/api/v1/cases/{CASE}/map").json()
        server.kill()

    with serving(scans) as server:
        again = opened(server)
        assert again["patch"]["data"] == before["patch"]["data"]
        assert again["state"]["draft"] == before["state"]["draft"]
        done(server, "accept", label=1)
        done(server, "stroke", tool="brush", plane="axial", path=[[70, 50, 7], [75, 50, 7]], radius_mm=2, label=1)
        done(server, "undo")
        state = done(server, "stroke", tool="eraser", plane="coronal", path=[[40, 34, 8]], radius_mm=3, label=1)
        assert state["state"]["labels"][0]["voxels"] > 1000
        done(server, "done", done=True)
        answer = server.client.get("/api/v1/export/nifti")
        assert answer.status_code == 200, answer.text

    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "out")
    (mask,) = (tmp_path / "out").rglob("*.nii.gz")
    (record,) = (tmp_path / "out").rglob("*.prompts.json")
    exported = nibabel.load(mask)  # type: ignore[attr-defined]
    image = nibabel.load(scans / CASE)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(exported.affine, image.affine)
    truth = np.asarray(nibabel.load(tmp_path / "truth.nii.gz").dataobj) > 0  # type: ignore[attr-defined]
    found = np.asarray(exported.dataobj)
    assert dice(found[..., 6:9] > 0, truth[..., 6:9]) > 0.9
    assert not found[..., :6].any()

    answer = palpate("replay", record, "--image", scans / CASE, "-o", "again.nii.gz", "--json")
    assert answer.status == 0, answer.err
    assert answer.json["same"] is True
    np.testing.assert_array_equal(np.asarray(nibabel.load("again.nii.gz").dataobj), found)  # type: ignore[attr-defined]

    content = json.loads(record.read_text(encoding="utf-8"))
    for step in content["actions"][0]["steps"]:
        step["box"][0] += 20
    Path("other.json").write_text(json.dumps(content), encoding="utf-8")
    answer = palpate("replay", "other.json", "--image", scans / CASE)
    assert answer.status == 3
    assert "same masks  no" in answer.out


def test_the_server_says_where_it_is_and_lets_only_its_user_in(scans: Path) -> None:
    with serving(scans) as server:
        words = "".join(server.said)
        assert re.search(r"images +1 in", words)
        assert "lite-medsam" in words
        assert f"{server.address}/?token=" in words
        stranger = httpx.get(f"{server.address}/api/v1/cases")
        assert stranger.status_code == 401


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no folder nowhere"),
        ([".", "--no-token", "--host", "0.0.0.0"], "--no-token lets everybody in"),
        ([".", "--no-token", "--token", "12345678"], "exclude each other"),
        ([".", "--token", "123"], "soon guessed"),
        ([".", "--model", "nothing"], "nothing"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(palpate: Run, arguments: list[str], words: str) -> None:
    answer = palpate("serve", *arguments, "--no-browser")
    assert answer.status in (1, 2)
    assert words in answer.err


def test_a_record_of_something_else_is_refused(palpate: Run, scans: Path) -> None:
    Path("list.json").write_text("[]", encoding="utf-8")
    Path("empty.json").write_text("{}", encoding="utf-8")
    for path, words in (("list.json", "no record"), ("empty.json", "no record"), ("none.json", "cannot read")):
        answer = palpate("replay", path, "--image", scans / CASE)
        assert answer.status == 2
        assert words in answer.err
