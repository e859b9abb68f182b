"""`palpate export`: files that run without PyTorch, and mistakes in a sentence."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from command_line import Run

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
PAGE = Path(__file__).parents[2] / "docs/how-to/export.md"


def test_a_model_and_an_adapter_of_it_become_files(palpate: Run, trained: Path) -> None:
    answer = palpate("export", "tiny", "-o", "plain", "--json")
    assert answer.status == 0, answer.err
    assert len(answer.json["files"]) == 7
    assert max(one["logits"] for one in answer.json["parity"]) < 1e-4
    adapter = trained / "run" / "adapter.safetensors"
    taught = palpate("export", adapter, "-o", "taught", "--format", "onnx")
    assert taught.status == 0, taught.err
    assert "ONNX Runtime" in taught.out
    assert "beside PyTorch: features differ by" in taught.out
    both = [json.loads(Path(name, "model.json").read_text())["weights_hash"] for name in ("plain", "taught")]
    assert both[0] != both[1]


def test_the_pages_program_runs_as_written(palpate: Run, tiny: object) -> None:
    """With the tiny model's canvas in the place of LiteMedSAM's."""
    assert palpate("export", "tiny", "-o", "lite-medsam-files", "--format", "onnx").status == 0
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    names: dict[str, np.ndarray] = {}
    size = json.loads(Path("lite-medsam-files/model.json").read_text())["frame"]["size"]
    assert size == 64
    exec(found[1].replace("256", str(size)), names)
    assert names["masks"].shape == (2, 64, 64)
    assert names["predicted_iou"].shape == (2, 4)


def test_mistakes_are_one_sentence(palpate: Run, tiny: object) -> None:
    Path("there").mkdir()
    for arguments, words in (
        (("tiny",), "-o DIR"),
        (("tiny", "-o", "x", "--format", "tflite"), "no format 'tflite'"),
        (("tinny", "-o", "x"), "did you mean 'tiny'?"),
        (("tiny", "-o", "there"), "choose a new folder"),
        (("lite-medsam-half", "-o", "x"), "palpate distill --student lite-medsam-half"),
    ):
        answer = palpate("export", *arguments)
        assert answer.status in (1, 2), (arguments, answer.err)
        assert words in answer.err, (arguments, answer.err)
        assert "Traceback" not in answer.err
    assert not Path("x").exists()
