"""Models as ONNX and OpenVINO files: run by the real runtimes, beside PyTorch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from palpate.errors import OutputError, PalpateError, SettingError
from palpate.inference import export as exporting
from palpate.inference.export import Format, export
from palpate.models.catalogue import LITE_MEDSAM, SAM2_1_TINY, SWIN_LITE_MEDSAM, ModelCard
from palpate.models.promptable import ImageEmbedding, PromptBatch
from palpate.models.weights import Loaded
from tiny_networks import tiny_lite_medsam, tiny_mobile_sam, tiny_sam, tiny_swin_lite_medsam

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
BOTH: tuple[Format, ...] = ("onnx", "openvino")


def loaded(network: Any, card: ModelCard = LITE_MEDSAM) -> Loaded:
    return Loaded(network, "h" * 64, "e" * 64, card.prompts)


@pytest.mark.parametrize("make", [tiny_lite_medsam, tiny_mobile_sam, tiny_sam, tiny_swin_lite_medsam])
def test_both_formats_answer_as_pytorch_does(make: Any, tmp_path: Path) -> None:
    made = export(loaded(make()), SWIN_LITE_MEDSAM, tmp_path / "out", formats=BOTH)
    assert made.files == (
        *("decoder.bin", "decoder.onnx", "decoder.xml", "encoder.bin", "encoder.onnx", "encoder.xml", "model.json"),
    )
    assert [one.runtime.split()[0] for one in made.parity] == ["ONNX", "OpenVINO"]
    assert all(max(one.features, one.logits) < 1e-4 for one in made.parity)


@pytest.mark.parametrize("make", [tiny_lite_medsam, tiny_swin_lite_medsam])
def test_the_decoder_takes_any_number_of_objects_and_points(make: Any, tmp_path: Path) -> None:
    """By hand, as a program without PyTorch would: for boxes, for points alone, and for a first guess."""
    network = make()
    network.from_box = getattr(network, "from_box", None) and type(network.from_box)(points=False, scribble=False)
    export(loaded(network), LITE_MEDSAM, tmp_path / "out", formats=("onnx",))
    encoder, decoder = (
        onnxruntime.InferenceSession(str(tmp_path / "out" / f"{part}.onnx")) for part in ("encoder", "decoder")
    )
    canvas = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    names = [item.name for item in encoder.get_outputs()]
    known = dict(zip(names, encoder.run(None, {"canvas": canvas}), strict=True))
    wanted = {item.name for item in decoder.get_inputs()}

    def asked(coordinates: Any, labels: Any, mask: Any = None) -> Any:
        count = len(coordinates)
        feeds = {
            "coordinates": np.asarray(coordinates, np.float32),
            "labels": np.asarray(labels, np.float32),
            "mask": np.zeros((count, 1, 64, 64), np.float32) if mask is None else mask,
            "has_mask": np.full(count, 0.0 if mask is None else 1.0, np.float32),
        }
        return decoder.run(None, {**feeds, **{name: known[name] for name in wanted & set(known)}})[0]

    embedding = ImageEmbedding(known["features"], tuple(known[name] for name in names[1:]))

    def by_pytorch(count: int, *, three: bool = False, **parts: Any) -> Any:
        batch = PromptBatch(np.zeros(count, dtype=int), **parts)
        with torch.inference_mode():
            return network.prompt_decoder.decode(embedding, batch, multimask_output=three).logits.numpy()

    boxes = np.array([[4, 6, 40, 44], [20, 10, 60, 30], [0, 0, 63, 63], [5, 5, 9, 9]], dtype=np.float32)
    found = asked(boxes.reshape(4, 2, 2), [[2, 3]] * 4)
    np.testing.assert_allclose(found[:, :1], by_pytorch(4, boxes=boxes), atol=1e-4)
    np.testing.assert_allclose(found[:, 1:], by_pytorch(4, boxes=boxes, three=True), atol=1e-4)

    points = np.array([[[10, 12], [50, 40], [30, 20]]], dtype=np.float32)
    labels = np.array([[1, 0, 1]])
    padded = np.concatenate([points, np.zeros((1, 1, 2), np.float32)], axis=1)
    np.testing.assert_allclose(
        asked(padded, [[1, 0, 1, -1]])[:, :1], by_pytorch(1, points=points, point_labels=labels), atol=1e-4
    )

    guess = np.random.default_rng(1).normal(size=(1, 1, 64, 64)).astype(np.float32)
    both = asked(np.concatenate([points, boxes[:1].reshape(1, 2, 2)], axis=1), [[1, 0, 1, 2, 3]], guess)
    np.testing.assert_allclose(
        both[:, :1], by_pytorch(1, boxes=boxes[:1], points=points, point_labels=labels, masks=guess), atol=1e-4
    )


def test_what_goes_in_and_out_is_told_beside_them(tmp_path: Path) -> None:
    export(loaded(tiny_swin_lite_medsam(), SWIN_LITE_MEDSAM), SWIN_LITE_MEDSAM, tmp_path / "out", formats=("onnx",))
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (about["model"], about["licence"], about["weights_hash"]) == ("swin-lite-medsam", "MIT", "h" * 64)
    assert about["frame"]["size"] == 64
    for part in ("encoder", "decoder"):
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / f"{part}.onnx"))
        for way, items in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert {item.name: list(item.shape) for item in items} == about[part][way]


def test_files_that_answer_otherwise_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = exporting._opened_by_onnxruntime  # pyright: ignore[reportPrivateUsage]

    def off(library: Any, path: Path) -> Any:
        answer = usual(library, path)
        return lambda feeds: {name: array * 1.01 for name, array in answer(feeds).items()}

    monkeypatch.setattr(exporting, "_opened_by_onnxruntime", off)
    with pytest.raises(PalpateError, match=r"differs from PyTorch by 0\.01"):
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=("onnx",))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    (own / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="choose a new folder"):
            export(loaded(tiny_lite_medsam()), LITE_MEDSAM, own, formats=("onnx",), overwrite=overwrite)
    assert (own / "thesis.txt").read_text() == "precious"
    export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=("onnx",))
    with pytest.raises(OutputError, match="--overwrite replaces it"):
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=("onnx",))
    made = export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=("openvino",), overwrite=True)
    assert "encoder.onnx" not in made.files  # of the earlier export, or on the way
    assert "encoder.xml" in made.files


def test_without_the_package_it_is_said_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(exporting, "import_module", missing)
    with pytest.raises(SettingError, match=r"pip install 'palpate\[export\]'"):
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=("onnx",))


def test_a_decoder_of_another_kind(tmp_path: Path) -> None:
    from tiny_sam2 import card

    with pytest.raises(SettingError, match="cannot be exported"):
        export(loaded(card().build(), SAM2_1_TINY), SAM2_1_TINY, tmp_path / "out", formats=("onnx",))
