"""`palpate replay` of objects that were drawn beside what was learned, on tiny networks."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as Picture

from command_line import Run
from phantoms import disk, picture

if TYPE_CHECKING:
    from palpate.models.catalogue import ModelCard


@pytest.fixture
def auto(tiny: "ModelCard", tmp_path: Path) -> Path:
    from tiny_learned import learned_file

    return learned_file(tmp_path / "learned-1.safetensors", tiny)


@pytest.fixture
def record(auto: Path, tmp_path: Path) -> Path:
    """Of a picture with two objects: the one was drawn beside what was learned of the spleen, the other was not."""
    from palpate import load
    from palpate.prompts import Box, Target
    from palpate.server.desk import Desk
    from palpate.server.draft import Beside
    from palpate.server.record import record_of

    (tmp_path / "scans").mkdir()
    pixels = picture((disk((40, 56), centre=(20, 25), radius=10), 200), background=40)
    Picture.fromarray(pixels).save(tmp_path / "scans" / "p0.png")
    sha256 = hashlib.sha256(auto.read_bytes()).hexdigest()
    session, learned = load("tiny", runtime="torch"), load(auto=auto, runtime="torch")
    desk = Desk(tmp_path / "scans", session.sibling, learned=lambda _: learned.sibling())
    annotation = desk.annotation("p0.png")
    for label, beside in ((2, Beside("spleen", auto.name, sha256)), (1, None)):
        annotation.prompt(None, Target((Box(12, 8, 40, 33),)), learned=beside)
        annotation.accept(label, rules=desk.rules())
    made: dict[str, Any] = {"weights_hash": session.runtime.weights_hash, "load": {"model": "tiny"}}
    told = record_of(annotation, image_name="p0.png", names={1: "liver", 2: "spleen"}, made_by=made)
    assert [label["value"] for label in told["labels"]] == [1, 2]  # both found something, and not the same
    path = tmp_path / "p0.prompts.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    desk.close()
    return path


def test_the_same_masks_come_of_it(palpate: Run, record: Path, auto: Path) -> None:
    scan = record.parent / "scans" / "p0.png"
    answer = palpate(
        "replay", record, "--image", scan, "--auto", auto, "--runtime", "torch", "-o", "again.png", "--json"
    )
    assert (answer.status, answer.err) == (0, "")
    assert answer.json == {"same": True, "output": "again.png"}


def test_without_the_file_it_says_which_one_is_needed(palpate: Run, record: Path, auto: Path, tmp_path: Path) -> None:
    scan = record.parent / "scans" / "p0.png"
    other = tmp_path / "learned-2.safetensors"
    other.write_bytes(auto.read_bytes() + b" ")
    for given in ((), ("--auto", other)):
        answer = palpate("replay", record, "--image", scan, *given, "--runtime", "torch")
        assert answer.status == 2
        assert "'learned-1.safetensors'" in answer.err
        assert "--auto" in answer.err
    answer = palpate("replay", record, "--image", scan, "--auto", "nowhere.safetensors")
    assert answer.status == 2
    assert "cannot read the learned prompts nowhere.safetensors" in answer.err
