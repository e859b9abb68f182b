"""`palpate evaluate --auto`: learned prompts on a tiny network, through the real command line."""

import csv
import hashlib
from pathlib import Path

import pytest
from torch import nn

from command_line import Run
from palpate.models.catalogue import ModelCard
from palpate.models.learned import Finder
from palpate.models.promptable import LearnedClass
from tiny_learned import learned_file

QUICK = ("--workers", 1, "--worst", 1, "--cases", 2)


@pytest.fixture
def disks(tiny: ModelCard, tmp_path: Path) -> Path:
    """Learned prompts for the large disk of `pictures`."""
    return learned_file(tmp_path / "disks.safetensors", tiny, classes=[LearnedClass("disk", 1)])


def test_a_file_of_learned_prompts_is_measured_by_itself_and_with_boxes(
    palpate: Run, pictures: Path, disks: Path
) -> None:
    asked = ("evaluate", pictures, "--auto", disks, "--cache", "cache", *QUICK)
    answer = palpate(*asked, "-o", "run")
    assert answer.status == 0, answer.err
    with Path("run/results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["object"], row["protocol"]) for row in rows] == 2 * [
        ("1", "learned"),
        ("1", "box+learned"),
        ("1", "standard"),
    ]
    with Path("run/presence.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [(one["slice"], one["class"], one["present"]) for one in found] == [("", "disk", "yes")] * 2
    assert "| disk | 2 | 0 | n/a |" in Path("run/summary.md").read_text(encoding="utf-8")
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert '<h2 id="presence">' in report
    assert "<td>disk</td><td>2</td><td>0</td><td>n/a</td>" in report
    assert "2 objects called 2 left out: none of what was learned (disk)" in answer.out
    assert len(list(Path("cache").rglob("*.safetensors"))) == 2
    again = palpate(*asked, "-o", "run", "--json")
    assert again.status == 0, again.err
    assert again.json["record"]["auto"] == {
        "file": "disks.safetensors",
        "sha256": hashlib.sha256(disks.read_bytes()).hexdigest(),
    }
    assert again.json["presence"][0]["present"] == 2


def test_two_runs_of_learned_prompts_are_compared(
    palpate: Run, pictures: Path, disks: Path, tiny: ModelCard, tmp_path: Path
) -> None:
    def other(finder: Finder, network: nn.Module) -> None:
        finder.predictor.queries.add_(1.0)

    second = learned_file(tmp_path / "other.safetensors", tiny, classes=[LearnedClass("disk", 1)], change=other)
    for name, file in (("a", disks), ("b", second)):
        asked = ("evaluate", pictures, "--auto", file, "--protocol", "learned", *QUICK, "--json", "-o", name)
        assert palpate(*asked).status == 0
    answer = palpate("evaluate", "compare", "a", "b", "--json")
    assert answer.status == 0, answer.err
    assert [line["protocol"] for line in answer.json["lines"]] == ["learned"]
    # Another file is another run.
    mixed = palpate("evaluate", pictures, "--auto", second, "--protocol", "learned", *QUICK, "-o", "a")
    assert mixed.status == 2
    assert "another weights_hash" in mixed.err


def test_learned_protocols_need_what_was_learned(palpate: Run, pictures: Path, tiny: ModelCard) -> None:
    answer = palpate("evaluate", pictures, "--model", tiny.name, "--protocol", "box+learned", *QUICK, "-o", "run")
    assert answer.status == 2
    assert "--auto FILE" in answer.err
    assert not Path("run").exists()
