"""A user asks how good a model is, and what a careless box does to it: the real command line and weights."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from command_line import Run
from phantoms import disk, picture

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("weights")]

BOXES = ("--protocol", "standard,expansion,shrink", "--severity", 0.1, 0.25)


@pytest.fixture
def ultrasound(tmp_path: Path) -> Path:
    """A folder with images/ and labels/: four pictures of a bright ball, and of a small one beside it."""
    rng = np.random.default_rng(3)
    for folder in ("images", "labels"):
        (tmp_path / "us" / folder).mkdir(parents=True)
    for number in range(4):
        large = disk((120, 160), centre=(60 + 8 * number, 56), radius=24)
        small = disk((120, 160), centre=(135, 90), radius=4)
        image = picture((large, 190), (small, 150), background=40) + rng.integers(0, 25, (120, 160)).astype(np.uint8)
        Picture.fromarray(image).save(tmp_path / f"us/images/p{number}.png")
        Picture.fromarray(large.astype(np.uint8) + 2 * small.astype(np.uint8)).save(
            tmp_path / f"us/labels/p{number}.png"
        )
    return tmp_path / "us"


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_command_says_what_a_careless_box_costs(palpate: Run, ultrasound: Path) -> None:
    assert palpate("data", "check", ultrasound).status == 0
    answer = palpate("evaluate", ultrasound, *BOXES, "-o", "run", "--workers", 1)
    assert answer.status == 0, answer.err
    rows = _rows(Path("run"))
    assert len(rows) == 4 * 2 * (1 + 2 + 2)
    of = {(row["case"], row["object"], row["protocol"], row["severity"]): float(row["dice"]) for row in rows}
    large = [key[0] for key in of if key[1:] == ("1", "standard", "0")]
    assert all(of[case, "1", "standard", "0"] > 0.95 for case in large)
    # A box that cuts a quarter off every side leaves a quarter of a disk's box: about 2 * 0.32 / 1.32.
    assert all(of[case, "1", "shrink", "0.25"] < 0.7 for case in large)
    assert "standard" in answer.out
    report = Path("run/report.html").read_text()
    assert "palpate evaluate" in report
    assert json.loads(Path("run/run.json").read_text())["weights_hash"] in report
    assert "http" not in report.replace("http://www.w3.org/", "")  # an SVG's name space; nothing is fetched


def test_two_runs_are_compared_pair_by_pair(palpate: Run, ultrasound: Path) -> None:
    for name, protocol in (("a", "standard"), ("b", "standard")):
        palpate("evaluate", ultrasound, "--protocol", protocol, "-o", name, "--workers", 1)
    answer = palpate("evaluate", "compare", "a", "b", "--json")
    assert answer.status == 0, answer.err
    assert answer.json["comparisons"][0]["difference"] == 0


def test_processes_share_the_work_and_write_the_same_bytes(palpate: Run, ultrasound: Path) -> None:
    palpate("evaluate", ultrasound, *BOXES, "-o", "one", "--workers", 1)
    palpate("evaluate", ultrasound, *BOXES, "-o", "two", "--workers", 2)
    assert Path("one/results.csv").read_bytes() == Path("two/results.csv").read_bytes()


def test_a_dask_cluster_of_two_workers_writes_the_same_bytes(palpate: Run, ultrasound: Path) -> None:
    distributed = pytest.importorskip("distributed")
    palpate("evaluate", ultrasound, "--protocol", "standard,jitter", "--seeds", 2, "-o", "here", "--workers", 1)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        answer = palpate(
            *("evaluate", ultrasound, "--protocol", "standard,jitter", "--seeds", 2, "-o", "there"),
            *("--dask", cluster.scheduler_address),
        )
        done_by = len(cluster.scheduler_info["workers"])
    assert answer.status == 0, answer.err
    assert done_by == 2
    assert Path("here/results.csv").read_bytes() == Path("there/results.csv").read_bytes()


def test_a_dask_address_without_a_scheduler_is_an_error_not_a_wait(palpate: Run, ultrasound: Path) -> None:
    answer = palpate("evaluate", ultrasound, "-o", "run", "--dask", "tcp://127.0.0.1:9")
    assert answer.status == 2
    assert "no dask scheduler answers" in answer.err


def test_an_interrupted_evaluation_goes_on_where_it_was(ultrasound: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "palpate", "evaluate", str(ultrasound), "--workers", "2", "-o", "run"]
    boxes = [str(word) for word in BOXES]
    process = subprocess.Popen([*command, *boxes], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "run/parts").glob("*.json"))) < 2:  # settings.json, and the first case
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the run was quicker than the interruption")
    assert process.returncode == 130, said
    assert "goes on from there" in said
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/parts").glob("*.json")}
    assert not (tmp_path / "run/results.csv").exists()
    whole = subprocess.run([*command, *boxes], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    assert len(kept) >= 2
    assert len(_rows(tmp_path / "run")) == 4 * 2 * 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--protocol", "exapnsion"), "--list"),
        (("--severity", "10"), "fractions"),
        (("--severity", "much"), "fractions"),
        (("--dataset", "liver"), "liver"),
        (("--split", "test"), "split"),
        (("--volumes", "all"), "middle"),
        (("--objects", "0"), "at least 1"),
        (("--model", "sam9"), "sam9"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    palpate: Run, ultrasound: Path, arguments: tuple[str, ...], said: str
) -> None:
    answer = palpate("evaluate", ultrasound, "-o", "run", *arguments)
    assert answer.status in (1, 2)
    assert said in answer.err
    assert not Path("run").exists()


def test_the_list_of_protocols_needs_no_data(palpate: Run) -> None:
    answer = palpate("evaluate", "--list")
    assert answer.status == 0
    assert "missing-slices" in answer.out
    assert "arm-adaptive-bidirectional" in answer.out
