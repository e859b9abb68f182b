"""The prompt ablation runs from pictures to tables, and asks what the paper asked."""

import csv
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import trees
from phantoms import picture, two_organs


@pytest.fixture
def brains(tmp_path: Path) -> Path:
    """Four MR pictures of four people, two labels each; the last two are for testing."""
    rows = []
    for number, split in enumerate(("train", "val", "test", "test")):
        labels = np.kron(two_organs(), np.ones((4, 4), np.uint8))
        image = picture((labels == 1, 200), (labels == 2, 120 + number), background=10)
        trees.png(tmp_path / f"{number}.png", image)
        trees.png(tmp_path / f"{number}_labels.png", labels)
        rows.append(
            {
                "image": f"{number}.png",
                "label": f"{number}_labels.png",
                "dataset": "brats2023_brain_mr",
                "modality": "MR",
                "subject": f"s{number}",
                "split": split,
            }
        )
    trees.manifest(tmp_path, rows)
    return tmp_path


def test_every_row_of_the_papers_tables_is_a_strategy_of_ours(sam_ablations: ModuleType) -> None:
    from palpate.prompts.strategies import strategy

    rows = sam_ablations.expected()
    for domain in ("radiology", "pathology"):
        names = [row.strategy for row in rows if row.domain == domain]
        assert len(set(names)) == len(names) == 16
        assert all(strategy(name).name == name for name in names)
    # Their IoU lies below their Dice everywhere, as it must; a slip of the pen would show here.
    assert all(row.iou < row.dice for row in rows if not math.isnan(row.dice))


def test_labels_become_one_region_and_the_test_split_stays_unseen(
    sam_ablations: ModuleType, brains: Path, small_model: None, tmp_path: Path
) -> None:
    cases = sam_ablations.cases_of(sam_ablations.TARGETS["tumour"], brains)
    assert [region.values for region in cases[0].regions] == [(1, 2)]
    given = sam_ablations.Settings(brains, tmp_path / "out", tmp_path / "cache", epochs=1, steps=2, seeds=1, seed=0)
    jobs = [sam_ablations.Job("tumour"), *(sam_ablations.Job("tumour", name) for name in ("standard", "points-3"))]
    for job in jobs:
        sam_ablations.do(job, given)
    sam_ablations.write_results(given.out)
    with (given.out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    released = [row for row in rows if row["model"] == "released"]
    assert len(released) == 16 * 2  # strategies, and the two pictures of the test split
    assert {row["object"] for row in rows} == {"tumour"}
    assert {row["subject"] for row in rows} == {"s2", "s3"}
    assert {(row["strategy"], row["model"]) for row in rows} >= {("standard", "trained"), ("points-3", "trained")}
    run = (given.out / "runs" / "tumour-points-3" / "run.json").read_text()
    assert "2 images to train on" in run  # train and val; the paper has no validation data

    sam_ablations.write_tables(given.out)
    lines = (given.out / "tables.md").read_text().splitlines()
    box = next(line for line in lines if "`standard`" in line)
    assert "| 64.4 / 76.1 |" in box
    assert box.endswith("of 2 |")
    assert next(line for line in lines if "`points-100`" in line).count(" - ") == 3
    assert sorted(path.name for path in given.out.glob("*.svg")) == ["figure-10.svg", "figure-7.svg", "figure-9.svg"]


def test_a_finished_job_is_not_done_again(
    sam_ablations: ModuleType, brains: Path, small_model: None, tmp_path: Path
) -> None:
    given = sam_ablations.Settings(brains, tmp_path / "out", tmp_path / "cache", epochs=1, steps=1, seeds=1, seed=0)
    job = sam_ablations.Job("tumour", "box-5")
    sam_ablations.do(job, given)
    files = {path: path.stat().st_mtime_ns for path in given.out.rglob("*.*")}
    sam_ablations.do(job, given)
    assert {path: path.stat().st_mtime_ns for path in given.out.rglob("*.*")} == files


@pytest.mark.parametrize(
    ("strategy", "clicks"),
    [("standard", 2), ("box-20", 2), ("points-3", 3), ("box+points-10", 12), ("points-50+50", 100), ("centroid", 1)],
)
def test_effort_counts_clicks(sam_ablations: ModuleType, strategy: str, clicks: int) -> None:
    from tables import effort

    assert effort(strategy) == clicks


def test_gains_are_paired_by_object(sam_ablations: ModuleType, tmp_path: Path) -> None:
    lines = ["target,strategy,model,subject,case,object,seed,dice,iou"]
    for model, scores in (("released", (0.5, 0.9)), ("trained", (0.8, 0.8))):
        lines += [f"tumour,standard,{model},s,c{i},tumour,0,{score},{score / 2}" for i, score in enumerate(scores)]
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    sam_ablations.write_tables(tmp_path)
    row = next(line for line in (tmp_path / "tables.md").read_text().splitlines() if "`standard`" in line)
    # 50 and 90 become 80 and 80: +30 and -10, ten points on average, and one of two is better.
    assert "| 35.0 / 70.0 | 40.0 / 80.0 | +10.0 | 1 of 2 |" in row
