"""Models as ONNX and OpenVINO files: run by the real runtimes, beside PyTorch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from palpate.errors import OutputError, PalpateError, SettingError
from palpate.inference import export as exporting
from palpate.inference.export import Exported, Format, Graph, export, gather_weights, write_onnx
from palpate.inference.prepared import measured
from palpate.inference.runtimes.engines import OnnxRuntime, OpenVINO
from palpate.models.cards import LearnedCard, Variant
from palpate.models.catalogue import LITE_MEDSAM, SAM2_1_TINY, SWIN_LITE_MEDSAM, ModelCard
from palpate.models.learned import Finder, finder_for
from palpate.models.localiser import Localiser
from palpate.models.prompt_predictor import Items
from palpate.models.promptable import ImageEmbedding, PromptBatch
from palpate.models.weights import Loaded
from tiny_learned import CLASSES
from tiny_networks import tiny_lite_medsam, tiny_mobile_sam, tiny_sam, tiny_swin_lite_medsam
from tiny_sam2 import tiny_sam2

onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
BOTH: tuple[Format, ...] = ("onnx", "openvino")


def loaded(network: Any, card: ModelCard = LITE_MEDSAM) -> Loaded:
    return Loaded(network, "h" * 64, "e" * 64, card.prompts)


def learned_prompts(network: Any, variant: Variant) -> tuple[Finder, LearnedCard]:
    """A finder with random weights, also where untrained ones would be zero."""
    about = LearnedCard("abdomen", "base", "", CLASSES, variant, 4, None, 10, intensity="window:40:400")
    if variant == "high-res" and hasattr(network, "keep_levels"):
        network.keep_levels = True
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    finder = finder_for(network, about).eval()
    finder.presumed.fill_(0.5)
    if isinstance(finder.predictor, Localiser):
        torch.nn.init.normal_(finder.predictor.out.weight)
        torch.nn.init.normal_(finder.predictor.marks)
    torch.random.set_rng_state(state)
    return finder, about


def opened(path: Path, name: Format) -> Any:
    """What answers feeds by the file of a format, as a program that knows it from its manual would."""
    if name == "onnx":
        session = onnxruntime.InferenceSession(str(path.with_suffix(".onnx")))
        inputs = {item.name for item in session.get_inputs()}
        outputs = [item.name for item in session.get_outputs()]

        def by_onnx(feeds: Any) -> Any:
            found = session.run(None, {key: x for key, x in feeds.items() if key in inputs})
            return dict(zip(outputs, found, strict=True))

        return by_onnx
    compiled = openvino.Core().compile_model(path.with_suffix(".xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = set().union(*(item.get_names() for item in compiled.inputs))

    def run(feeds: Any) -> Any:
        found = compiled({key: x for key, x in feeds.items() if key in inputs})
        return {key: np.array(found[item]) for item in compiled.outputs for key in item.get_names()}

    return run


class Shared(NamedTuple):
    """A network, and what its export in both formats made where."""

    network: Any
    made: Exported
    folder: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Shared]:
    """A tiny network's export, which takes seconds, once for all that only look at it."""
    cards = {tiny_swin_lite_medsam: SWIN_LITE_MEDSAM, tiny_sam2: SAM2_1_TINY}
    done: dict[Any, Shared] = {}

    def once(make: Any) -> Shared:
        if make not in done:
            network, card = make(), cards.get(make, LITE_MEDSAM)
            folder = tmp_path_factory.mktemp(make.__name__) / "out"
            done[make] = Shared(network, export(loaded(network, card), card, folder, formats=BOTH), folder)
        return done[make]

    return once


@pytest.mark.parametrize("make", [tiny_lite_medsam, tiny_mobile_sam, tiny_sam, tiny_swin_lite_medsam, tiny_sam2])
def test_both_formats_answer_as_pytorch_does(make: Any, exported: Callable[[Any], Shared]) -> None:
    made = exported(make).made
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


@pytest.mark.parametrize("name", BOTH)
def test_sam2_answers_one_mask_three_candidates_and_whether_there_is_anything(
    name: Format, exported: Callable[[Any], Shared]
) -> None:
    """For other numbers of objects and tokens than the graph was made with, and a mask alone, which is no token."""
    network, _, folder = exported(tiny_sam2)
    canvas = np.random.default_rng(0).random((1, 3, 128, 128), dtype=np.float32)
    known = opened(folder / "encoder", name)({"canvas": canvas})
    embedding = ImageEmbedding(known["features"], (known["level1"], known["level2"]))
    decoder = opened(folder / "decoder", name)
    rng = np.random.default_rng(1)
    fallen_back = 0
    for objects, points, box, mask in (
        (5, 0, True, False),
        (1, 1, False, False),
        (2, 3, True, True),
        (2, 0, False, True),
    ):
        corners = rng.uniform(0, 128, (objects, 2, 2)).astype(np.float32)
        clicks = rng.uniform(0, 128, (objects, points, 2)).astype(np.float32)
        kinds = rng.integers(0, 2, (objects, points))
        guess = rng.normal(0, 5, (objects, 1, 32, 32)).astype(np.float32)
        places, labels = [clicks], [kinds]
        if box:
            places, labels = [*places, corners], [*labels, np.tile([2, 3], (objects, 1))]
        if box or points:
            places, labels = [*places, np.zeros((objects, 1, 2))], [*labels, np.full((objects, 1), -1)]
        found = decoder(
            {
                **known,
                "coordinates": np.concatenate(places, axis=1).astype(np.float32),
                "labels": np.concatenate(labels, axis=1).astype(np.float32),
                "mask": guess,
                "has_mask": np.full(objects, float(mask), np.float32),
            }
        )
        batch = PromptBatch(
            np.zeros(objects, dtype=int),
            corners.reshape(objects, 4) if box else None,
            clicks if points else None,
            kinds if points else None,
            guess if mask else None,
        )
        with torch.inference_mode():
            one, three = (network.decode(embedding, batch, multimask_output=three) for three in (False, True))
        for key in ("logits", "predicted_iou"):
            wanted = torch.cat([getattr(one, key), getattr(three, key)], dim=1)
            np.testing.assert_allclose(found[key], wanted, rtol=1e-4, atol=2e-3 if key == "logits" else 1e-4)
        assert one.object_logits is not None
        np.testing.assert_allclose(found["object_logits"], one.object_logits, atol=1e-4)
        # Close and not equal: some processors round four masks at once otherwise than three.
        same = torch.isclose(one.logits, three.logits, rtol=1e-4, atol=1e-4)
        fallen_back += int(same.flatten(2).all(dim=2).any(dim=1).sum())
    assert fallen_back  # some single masks were not stable


@pytest.mark.parametrize("variant", ["localiser", "linear", "high-res"])
@pytest.mark.parametrize("make", [tiny_lite_medsam, tiny_sam2])
def test_learned_prompts_find_any_number_of_classes(make: Any, variant: Variant, tmp_path: Path) -> None:
    network = make()
    finder, about = learned_prompts(network, variant)
    with_finder = loaded(network)._replace(finder=finder)
    made = export(with_finder, LITE_MEDSAM, tmp_path / "out", formats=BOTH, learned=about)
    assert {"finder.onnx", "finder.xml", "finder.bin"} <= set(made.files)
    assert all(max(one.features, one.logits) < 1e-4 for one in made.parity)
    side = network.frame.size
    canvas = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
    with torch.inference_mode():
        features, levels = finder.held(network.encode(torch.from_numpy(canvas)))
    for name in BOTH:
        known = opened(tmp_path / "out/encoder", name)({"canvas": canvas})
        run = opened(tmp_path / "out/finder", name)
        for classes in ([1], [0, 1], [1, 0, 0, 1, 1]):
            found = run({**known, "classes": np.array(classes)})
            items = Items(torch.zeros(len(classes), dtype=torch.long), torch.tensor(classes))
            with torch.inference_mode():
                learned = finder.learned(features, levels, items)
                wanted = finder.answered(features, levels, items, learned=learned)
            np.testing.assert_allclose(found["logits"][:, 0], wanted.logits, rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(found["predicted_iou"][:, 0], wanted.predicted_iou, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found["object_logits"], wanted.object_logits, rtol=1e-4, atol=1e-4)


def test_what_was_learned_is_told_beside_the_finder(tmp_path: Path) -> None:
    network = tiny_lite_medsam()
    finder, about = learned_prompts(network, "high-res")
    with_finder = loaded(network)._replace(finder=finder)
    export(with_finder, LITE_MEDSAM, tmp_path / "out", formats=("onnx",), learned=about)
    told = json.loads((tmp_path / "out" / "model.json").read_text())
    assert told["learned"]["classes"] == [{"name": "liver", "value": 1}, {"name": "spleen", "value": 4}]
    assert (told["learned"]["name"], told["learned"]["intensity"]) == ("abdomen", "window:40:400")
    assert told["finder"]["inputs"]["classes"] == ["item"]
    assert told["finder"]["outputs"]["logits"] == ["item", 1, 64, 64]
    assert "level1" not in told["decoder"]["inputs"]  # only the finder looks at it
    for part in ("encoder", "decoder", "finder"):
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / f"{part}.onnx"))
        for way, items in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert {item.name: list(item.shape) for item in items} == told[part][way]


@pytest.mark.parametrize(("make", "after_box"), [(tiny_lite_medsam, False), (tiny_sam2, True)])
def test_whether_a_box_is_followed_by_no_point(make: Any, after_box: bool, exported: Callable[[Any], Shared]) -> None:
    about = json.loads((exported(make).folder / "model.json").read_text())
    assert about["prompts"]["no_point_after_box"] is after_box


def test_what_goes_in_and_out_is_told_beside_them(exported: Callable[[Any], Shared]) -> None:
    folder = exported(tiny_swin_lite_medsam).folder
    about = json.loads((folder / "model.json").read_text())
    assert (about["model"], about["licence"], about["weights_hash"]) == ("swin-lite-medsam", "MIT", "h" * 64)
    assert about["frame"]["size"] == 64
    for part in ("encoder", "decoder"):
        session = onnxruntime.InferenceSession(str(folder / f"{part}.onnx"))
        for way, items in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert {item.name: list(item.shape) for item in items} == about[part][way]


def test_files_that_answer_otherwise_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = exporting._opened_by_onnxruntime  # pyright: ignore[reportPrivateUsage]

    def off(library: Any, path: Path) -> Any:
        answer = usual(library, path)

        def run(feeds: Any) -> Any:
            return {name: array * 1.01 for name, array in answer(feeds).items()}

        return run

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


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    def again() -> None:
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=("onnx",), overwrite=True)

    out = tmp_path / "out"
    out.mkdir()
    (out / "model.json").write_text('{"model": "mine"}')  # as other programs call theirs
    (out / "weights.bin").write_text("precious")
    with pytest.raises(OutputError, match="is no earlier export; choose a new folder"):
        again()
    assert {path.name for path in out.iterdir()} == {"model.json", "weights.bin"}
    shutil.rmtree(out)
    again()
    (out / "notes.txt").write_text("precious")
    with pytest.raises(OutputError, match=r"holds notes\.txt, which no export wrote"):
        again()
    assert (out / "notes.txt").read_text() == "precious"
    (out / "notes.txt").unlink()
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(OutputError, match="is no folder"):
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "link", formats=("onnx",), overwrite=True)
    again()
    assert list(tmp_path.glob(".out-*")) == []


def test_an_earlier_export_stays_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(loaded(tiny_lite_medsam()), LITE_MEDSAM, out, formats=("onnx",))
    before = (out / "model.json").read_bytes()
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, out, formats=("onnx",), overwrite=True)
    assert (out / "model.json").read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_weights_in_many_files_as_torch_writes_large_models_become_one(tmp_path: Path) -> None:
    network, rows = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)), torch.ones(2, 64)
    with torch.inference_mode():
        graph = Graph("x", network, {"rows": rows}, {"found": network(rows)})
    path = tmp_path / "x.onnx"
    write_onnx(graph, path)
    small = path.stat().st_size
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    several = {other.name for other in tmp_path.iterdir()}
    assert len(several) == 5
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in several:
        (tmp_path / name).rename(kept / name)
    gather_weights(kept / "x.onnx", threshold=0)
    size, digest = measured(kept / "x.onnx")
    for name in ("x.onnx", "x.onnx.data"):
        (kept / name).rename(tmp_path / name)
    assert size > small - 500
    for engine in (OpenVINO(), OnnxRuntime()):
        np.testing.assert_allclose(
            engine.open(path)({"rows": rows.numpy()})["found"], graph.outputs["found"].numpy(), atol=1e-5
        )
    with (tmp_path / "x.onnx.data").open("r+b") as file:
        file.write(b"!")
    assert measured(path)[0] == size
    assert measured(path)[1] != digest


@pytest.mark.parametrize("name", BOTH)
def test_a_graph_of_more_than_one_file_is_kept_whole(
    name: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting._write_onnx

    def write_large(graph: Graph, path: Path) -> None:
        write(graph, path)
        # As torch does where one file would be too large.
        onnx.save_model(
            onnx.load(path), path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=1024
        )

    monkeypatch.setattr(exporting, "_write_onnx", write_large)
    for overwrite in (False, True):
        made = export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=(name,), overwrite=overwrite)
        graphs = ("decoder", "encoder")
        kinds = {"onnx": ("onnx", "onnx.data"), "openvino": ("bin", "xml")}[name]
        assert made.files == (*(f"{graph}.{kind}" for graph in graphs for kind in kinds), "model.json")
        assert max(one.logits for one in made.parity) < 1e-3


def test_an_earlier_export_stays_though_the_new_one_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(loaded(tiny_lite_medsam()), LITE_MEDSAM, out, formats=("onnx",))
    before = (out / "model.json").read_bytes()
    replace = Path.replace

    def interrupt(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, out, formats=("onnx",), overwrite=True)
    assert (out / "model.json").read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_into_the_current_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    export(loaded(tiny_lite_medsam()), LITE_MEDSAM, out, formats=("onnx",))
    monkeypatch.chdir(out)
    made = export(loaded(tiny_lite_medsam()), LITE_MEDSAM, ".", formats=("openvino",), overwrite=True)
    assert "encoder.xml" in made.files
    assert list(tmp_path.iterdir()) == [out]


def test_what_a_runtime_cannot_run_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(library: Any, path: Path) -> None:
        raise RuntimeError("Exception from src/core.cpp:1:\n\nSoftmax has no primitive\n")

    monkeypatch.setattr(exporting, "_opened_by_openvino", fail)
    with pytest.raises(PalpateError, match=r"OpenVINO .* cannot run the openvino files \(encoder: Softmax has no"):
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=("openvino",))
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_it_is_said_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(exporting, "import_module", missing)
    with pytest.raises(SettingError, match=r"pip install 'palpate\[export\]'"):
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=("onnx",))


def test_answers_that_are_no_numbers_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = exporting._opened_by_onnxruntime  # pyright: ignore[reportPrivateUsage]

    def off(library: Any, path: Path) -> Any:
        answer = usual(library, path)

        def run(feeds: Any) -> Any:
            return {name: array * np.nan for name, array in answer(feeds).items()}

        return run

    monkeypatch.setattr(exporting, "_opened_by_onnxruntime", off)
    with pytest.raises(PalpateError, match="differs from PyTorch"):
        export(loaded(tiny_lite_medsam()), LITE_MEDSAM, tmp_path / "out", formats=("onnx",))
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_of_another_kind(tmp_path: Path) -> None:
    network = tiny_lite_medsam()
    network.prompt_decoder = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(SettingError, match="cannot be exported"):
        export(loaded(network), LITE_MEDSAM, tmp_path / "out", formats=("onnx",))
