"""A user asks how good a model is, and what a careless box does to it: the real command line and weights."""

import contextlib
import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from command_line import Run
from palpate.models.catalogue import card
from palpate.models.promptable import LearnedClass
from phantoms import disk, picture
from tiny_learned import learned_file

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("weights")]


def _ultrasound(folder: Path, *, pictures: int) -> Path:
    """A folder with images/ and labels/: pictures of a bright ball, and of a small one beside it."""
    rng = np.random.default_rng(3)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(pictures):
        large = disk((120, 160), centre=(60 + 8 * number, 56), radius=24)
        small = disk((120, 160), centre=(135, 90), radius=4)
        image = picture((large, 190), (small, 150), background=40) + rng.integers(0, 25, (120, 160)).astype(np.uint8)
        labels = large.astype(np.uint8) + 2 * small.astype(np.uint8)
        Picture.fromarray(image).save(folder / f"images/p{number}.png")
        Picture.fromarray(labels).save(folder / f"labels/p{number}.png")
    return folder


@pytest.fixture
def ultrasound(tmp_path: Path) -> Path:
    return _ultrasound(tmp_path / "us", pictures=2)


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_command_says_what_a_careless_box_costs(palpate: Run, ultrasound: Path) -> None:
    assert palpate("data", "check", ultrasound).status == 0
    boxes = ("--protocol", "standard,shrink", "--severity", 0.1, 0.25)
    answer = palpate("evaluate", ultrasound, *boxes, "-o", "run", "--workers", 1)
    assert answer.status == 0, answer.err
    rows = _rows(Path("run"))
    assert len(rows) == 2 * 2 * (1 + 2)
    of = {(row["case"], row["object"], row["protocol"], row["severity"]): float(row["dice"]) for row in rows}
    for case in ("p0", "p1"):
        assert of[case, "1", "standard", "0"] > 0.95
        # A quarter off every side of a disk's box leaves a square of a radius a side: 1 / pi of the disk.
        assert of[case, "1", "shrink", "0.25"] < 0.7
    assert "standard" in answer.out
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "palpate evaluate" in report
    assert json.loads(Path("run/run.json").read_text(encoding="utf-8"))["weights_hash"] in report
    assert "data:image" in report  # the worst cases
    addresses = set(re.findall(r"https?://[^\s\"'<]+", report))
    assert {address.split("/")[2] for address in addresses} <= {"www.w3.org"}  # an SVG's name space; nothing is fetched

    assert palpate("evaluate", ultrasound, *boxes, "-o", "run", "--workers", 1, "--worst", 0).status == 0
    assert "data:image" not in Path("run/report.html").read_text(encoding="utf-8")

    shutil.copytree("run", "again")
    answer = palpate("evaluate", "compare", "run", "again", "--json")
    assert answer.status == 0, answer.err
    assert all(line["difference"] == 0 for line in answer.json["lines"])


def test_processes_and_a_dask_cluster_of_two_write_the_same_bytes(palpate: Run, ultrasound: Path) -> None:
    distributed = pytest.importorskip("distributed")
    learned_file(
        Path("disks.safetensors"), card("lite-medsam"), classes=[LearnedClass("disk", 1), LearnedClass("spot", 2)]
    )
    drawn = ("--protocol", "standard,jitter,learned", "--severity", 0.1, "--seeds", 2)
    asked = ("evaluate", ultrasound, "--auto", "disks.safetensors", *drawn, "--worst", 0)
    assert palpate(*asked, "-o", "one", "--workers", 1).status == 0
    assert palpate(*asked, "-o", "two", "--workers", 2).status == 0
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert len(cluster.scheduler_info["workers"]) == 2
        answer = palpate(*asked, "-o", "dask", "--dask", cluster.scheduler_address)
    assert answer.status == 0, answer.err
    counted = Counter(row["protocol"] for row in _rows(Path("one")))
    assert counted == {"standard": 2 * 2, "jitter": 2 * 2 * 2, "learned": 2 * 2}
    for name, file in itertools.product(("two", "dask"), ("results.csv", "presence.csv")):
        assert Path(name, file).read_bytes() == Path("one", file).read_bytes()


def test_a_dask_address_without_a_scheduler_is_an_error_not_a_wait(palpate: Run, ultrasound: Path) -> None:
    answer = palpate("evaluate", ultrasound, "-o", "run", "--dask", "tcp://127.0.0.1:9")
    assert answer.status == 2
    assert "no dask scheduler answers" in answer.err


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """By Ctrl-C after the first case, by kill -9 after the next, and then to its end."""
    folder = _ultrasound(tmp_path / "us", pictures=4)
    asked = (str(folder), "--protocol", "standard", "--workers", "2", "--worst", "0", "-o", "run")
    command = [sys.executable, "-m", "palpate", "evaluate", *asked]
    kept: dict[Path, int] = {}
    for end in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 240
            wanted = max(2, len(kept) + 1)  # settings.json, and a case more than before
            while len(_parts(tmp_path)) < wanted:
                assert process.poll() is None, "the run ended before it could be stopped"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(process.pid, end)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
        if end == signal.SIGINT:
            assert process.returncode == 130, said
            assert "measured cases are kept" in said
        assert not (tmp_path / "run/results.csv").exists()
        # What was done is not done again, which would give the files new times.
        parts = _parts(tmp_path)
        assert parts.items() >= kept.items()
        kept = parts
    rest = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    again: dict[Path, int] = {}
    while rest.poll() is None:
        for path in kept:
            with contextlib.suppress(FileNotFoundError):  # the parts go when the table is written
                again[path] = path.stat().st_mtime_ns
        time.sleep(0.02)
    assert rest.communicate()[1] == ""
    assert again == kept
    assert len(_rows(tmp_path / "run")) == 4 * 2


def _parts(folder: Path) -> dict[Path, int]:
    """The cases that were measured, and the settings, with the times of their files."""
    return {path: path.stat().st_mtime_ns for path in (folder / "run/parts").glob("*.json")}


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


@pytest.mark.real_data
def test_a_published_number_can_be_made_again(palpate: Run, data_root: Path) -> None:
    published = Path(__file__).parents[2] / "docs/results/robustness-lite-medsam/boxes/results.csv"
    with published.open(newline="") as file:
        wanted = {
            (row["case"], row["object"]): float(row["dice"])
            for row in csv.DictReader(file)
            if row["dataset"] == "isic2017_dermoscopy" and row["protocol"] == "standard"
        }
    asked = ("--dataset", "isic2017_dermoscopy", "--split", "test", "--protocol", "standard", "--worst", 0)
    answer = palpate("evaluate", data_root, *asked, "-o", "run", "--workers", 1)
    assert answer.status == 0, answer.err
    found = {(row["case"], row["object"]): float(row["dice"]) for row in _rows(Path("run"))}
    assert found.keys() == wanted.keys()
    # Another processor may turn a pixel at the border.
    assert all(abs(found[key] - wanted[key]) < 1e-3 for key in wanted)
