from collections import Counter
from csv import DictReader
from pathlib import Path

import pytest

import trees
from palpate.datasets import open_dataset
from palpate.errors import DatasetError


@pytest.mark.real_data
def test_the_real_manifest_has_its_splits(data_root: Path) -> None:
    with (data_root / "manifest.csv").open(newline="") as file:
        rows = list(DictReader(file))
    cases = open_dataset(data_root)
    assert Counter(case.split for case in cases) == Counter(row["split"] for row in rows)
    assert [case.subject for case in cases] == [row["subject"] for row in rows]
    assert sum(len(case.scribbles) for case in cases) == sum(
        len(row["scribbles"].split(";")) * (row["scribbles"] != "") for row in rows
    )
    assert len({(case.dataset, case.name) for case in cases}) == len(rows)
    assert len(open_dataset(data_root, dataset=["drive_vessels"], split="test")) == 5


def test_what_has_no_known_layout_is_told_what_there_could_be(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DatasetError, match=r"notes.txt(.|\n)*manifest.csv(.|\n)*dataset.json(.|\n)*gts"):
        open_dataset(tmp_path)


def test_missing_files_stop_an_evaluation_unless_allowed(tmp_path: Path) -> None:
    trees.two_folders(tmp_path)
    (tmp_path / "labels" / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"palpate data check(.|\n)*b.png has no label"):
        open_dataset(tmp_path)
    assert [case.name for case in open_dataset(tmp_path, allow_missing=True)] == ["a"]
