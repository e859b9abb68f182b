"""`palpate predict --runtime`, `palpate models prepare`: what computes, as a user meets it."""

from pathlib import Path

import numpy as np
import pytest

from command_line import Run
from palpate.inference import prepared

pytest.importorskip("openvino")

ADAPTER = "run/adapter.safetensors"
BOX = ("--box", 7, 9, 25, 27)


@pytest.mark.usefixtures("tiny")
def test_a_prepared_model_gives_the_mask_that_torch_gives(palpate: Run, pictures: Path) -> None:
    first = palpate("models", "prepare", "tiny", "--runtime", "openvino")
    assert (first.status, first.err) == (0, "")
    assert "ready for OpenVINO" in first.out
    again = palpate("models", "prepare", "tiny", "--runtime", "openvino", "--json")
    assert again.json["model"] == "tiny"
    assert Path(again.json["folder"]).parent == prepared.home()
    assert again.json["bytes"] == sum(path.stat().st_size for path in prepared.home().rglob("*") if path.is_file())
    assert "was ready" in palpate("models", "prepare", "tiny", "--runtime", "openvino").out

    asked = ("predict", pictures / "images/p0.png", *BOX, "--model", "tiny", "--json", "-o")
    quick = palpate(*asked, "quick.npz", "--runtime", "openvino")
    exact = palpate(*asked, "exact.npz", "--runtime", "torch")
    assert quick.err == exact.err == ""
    assert quick.json["runtime"].startswith("OpenVINO")
    assert exact.json["runtime"].startswith("torch")
    assert np.array_equal(np.load("quick.npz")["segs"], np.load("exact.npz")["segs"])


@pytest.mark.usefixtures("trained")
def test_a_model_that_is_not_ready_is_said_to_be_made_so(palpate: Run, pictures: Path) -> None:
    asked = ("predict", pictures / "images/p0.png", *BOX, "--adapter", ADAPTER, "--overwrite", "-o", "mask.png")
    first = palpate(*asked, "--runtime", "openvino")
    assert first.status == 0
    assert first.err.startswith("making tiny ready for OpenVINO")
    assert palpate(*asked, "--runtime", "openvino").err == ""


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which model"),
        (["tiny", "--runtime", "torch"], "nothing has to be prepared for torch"),
        (["tiny"], "PALPATE_RUNTIME says so"),
        (["tiny", "--runtime", "onnx"], "choose auto, openvino, onnxruntime, torch"),
        (["tiny", "--precision", "int8"], "choose float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_prepared_is_told(
    palpate: Run, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALPATE_RUNTIME", "torch")
    answer = palpate("models", "prepare", *arguments)
    assert answer.status == 2
    assert message in answer.err
