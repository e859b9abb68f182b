"""`palpate export`: files that run without PyTorch, and mistakes in a sentence."""

import json
import re
from pathlib import Path
from typing import Any

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
    both = [
        json.loads(Path(name, "model.json").read_text(encoding="utf-8"))["weights_hash"] for name in ("plain", "taught")
    ]
    assert both[0] != both[1]


def test_the_pages_program_runs_as_written(palpate: Run, tiny: object) -> None:
    """With the tiny model's canvas in the place of LiteMedSAM's."""
    assert palpate("export", "tiny", "-o", "lite-medsam-files", "--format", "onnx").status == 0
    (program, _) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, np.ndarray] = {}
    size = json.loads(Path("lite-medsam-files/model.json").read_text(encoding="utf-8"))["frame"]["size"]
    assert size == 64
    exec(program.replace("256", str(size)), names)
    assert names["masks"].shape == (2, 64, 64)
    assert names["predicted_iou"].shape == (2, 4)


def learned(base: Any) -> Path:
    """A file of learned prompts; made where they are needed, as they take torch."""
    from tiny_learned import learned_file

    return learned_file(Path("nodule.safetensors"), base)


def test_learned_prompts_become_a_finder_and_the_pages_program_asks_it(palpate: Run, tiny: Any) -> None:
    file = learned(tiny)
    answer = palpate("export", "--auto", file, "-o", "nodule-files", "--json")
    assert answer.status == 0, answer.err
    assert {"finder.onnx", "finder.xml", "finder.bin"} <= set(answer.json["files"])
    assert max(one["logits"] for one in answer.json["parity"]) < 1e-4
    assert palpate("export", file, "-o", "same", "--format", "onnx").status == 0
    both = [json.loads(Path(name, "model.json").read_text(encoding="utf-8")) for name in ("nodule-files", "same")]
    assert both[0]["weights_hash"] == both[1]["weights_hash"] == answer.json["weights_hash"]
    assert [one["name"] for one in both[0]["learned"]["classes"]] == ["liver", "spleen"]
    (_, program) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {"onnxruntime": onnxruntime, "np": np, "canvas": np.zeros((1, 3, 64, 64), np.float32)}
    exec(program, names)
    assert names["mask"].shape == (64, 64)


def test_mistakes_with_learned_prompts_are_one_sentence(palpate: Run, tiny: Any, trained: Path) -> None:
    file, adapter = learned(tiny), trained / "run" / "adapter.safetensors"
    for arguments, words in (
        (("--auto", file, "--adapter", adapter), "no adapter goes on top"),
        (("lite-medsam", "--auto", file), "was learned on tiny, not on lite-medsam"),
        ((file, "--auto", file), "give one of them"),
        ((adapter, "--auto", file), "give one of them"),
        (("--auto", adapter), "holds no learned prompts"),
        (("--auto", "nowhere.safetensors"), "there is no file nowhere.safetensors"),
        ((), "a model of `palpate models`, or --auto FILE"),
    ):
        answer = palpate("export", *arguments, "-o", "x")
        assert answer.status in (1, 2), (arguments, answer.err)
        assert words in answer.err, (arguments, answer.err)
        assert "Traceback" not in answer.err
    assert not Path("x").exists()


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
