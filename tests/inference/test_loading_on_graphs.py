"""`palpate.load` on runtimes without PyTorch: real OpenVINO and ONNX Runtime on tiny networks, beside PyTorch."""

import locale
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import palpate
import tiny_sam2
from palpate.errors import PalpateError, PromptError, SettingError, WeightsError
from palpate.inference import prepared, preparing
from palpate.inference.export import Graph, write_onnx
from palpate.inference.runtimes import engines
from palpate.inference.runtimes.engines import OpenVINO
from palpate.inference.runtimes.graphs import OBJECTS_AT_ONCE, FindingGraphRuntime, GraphRuntime
from palpate.models import adapters, catalogue
from palpate.models.cards import AdapterCard, Trained
from palpate.models.catalogue import ModelCard, card, stored
from palpate.models.folded import attended
from palpate.models.promptable import ImageEmbedding, PromptBatch, PromptSupport
from palpate.models.sam import to_segment_anything
from palpate.models.sam2 import to_sam2
from palpate.models.swin_lite_medsam import to_authors
from palpate.models.weights import content_hash
from phantoms import disk, picture
from tiny_learned import learned_file
from tiny_networks import tiny_lite_medsam, tiny_sam, tiny_swin_lite_medsam

pytest.importorskip("openvino")

IMAGE = palpate.Image(picture((disk((64, 48), centre=(25, 28), radius=15), 200), background=40))
BOX = palpate.Box(10, 12, 41, 44)
EVERYTHING = PromptSupport(trained=("box", "points", "mask"), best_of_three=True)


def tiny_card(
    name: str, make: Callable[[], nn.Module], restore: Callable[..., Any], prompts: PromptSupport
) -> ModelCard:
    state = {n: t.clone().contiguous() for n, t in restore(make().state_dict()).items()}
    path = stored(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, path)
    like = "swin-lite-medsam" if "swin" in name else "lite-medsam"
    return replace(
        card(like),
        name=name,
        build=make,
        frame=make().frame,
        prompts=prompts,
        content_sha256=content_hash(state),
        unused=(),
        **({} if name != "tiny-sam" else {"rename": card("sam-vit-b").rename, "restore": card("sam-vit-b").restore}),
    )


def cards() -> tuple[ModelCard, ...]:
    theirs = to_sam2(tiny_sam2.tiny_sam2().state_dict())
    stored(tiny_sam2.NAME).parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({n: t.clone().contiguous() for n, t in theirs.items()}, stored(tiny_sam2.NAME))
    return (
        tiny_card("tiny", tiny_lite_medsam, to_segment_anything, EVERYTHING),
        tiny_card("tiny-swin", tiny_swin_lite_medsam, to_authors, card("swin-lite-medsam").prompts),
        tiny_sam2.card(),
    )


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[ModelCard, ...]]:
    """A home with tiny models, of which `tiny` is prepared for OpenVINO; and their cards."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALPATE_HOME", str(home))
        known = cards()
        patch.setattr(catalogue, "CARDS", known)
        palpate.load("tiny", runtime="openvino")
    return home, known


@pytest.fixture
def catalog(ready: tuple[Path, tuple[ModelCard, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of tiny models, whose weights are here, and nothing is prepared."""
    torch.set_num_threads(1)
    shutil.copytree(ready[0] / "weights", tmp_path / "home" / "weights")
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(catalogue, "CARDS", ready[1])


@pytest.fixture
def catalog_of_prepared(catalog: None, ready: tuple[Path, tuple[ModelCard, ...]]) -> None:
    """The same, and `tiny` is prepared."""
    shutil.copytree(ready[0] / "prepared", prepared.home())


def released_adapter() -> Path:
    made_from = card("lite-medsam-robust").made_from
    assert made_from is not None
    return made_from.adapter


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def prompts_of(kind: str, rng: np.random.Generator, *, count: int, side: int, mask_side: int) -> PromptBatch:
    boxes = np.sort(rng.uniform(0, side, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
    points = rng.uniform(0, side, (count, 3, 2)).astype(np.float32)
    labels = np.tile(np.float32([1, 1, 0]), (count, 1))
    masks = rng.normal(size=(count, 1, mask_side, mask_side)).astype(np.float32)
    wanted = kind.split("+")
    return PromptBatch(
        np.zeros(count, dtype=np.int64),
        boxes if "box" in wanted else None,
        points if "points" in wanted else points[:, :1] if "point" in wanted else None,
        labels if "points" in wanted else labels[:, :1] if "point" in wanted else None,
        masks if "mask" in wanted else None,
    )


@pytest.mark.usefixtures("catalog")
@pytest.mark.parametrize("name", ["tiny", "tiny-swin", tiny_sam2.NAME])
def test_every_kind_and_number_of_prompts_is_answered_as_by_torch(name: str, rng: np.random.Generator) -> None:
    graph, exact = (palpate.load(name, runtime=runtime).runtime for runtime in ("openvino", "torch"))
    assert isinstance(graph, GraphRuntime)
    assert (graph.model, graph.frame, graph.prompts) == (exact.model, exact.frame, exact.prompts)
    assert graph.weights_hash == exact.weights_hash
    assert graph.encoder_hash != exact.encoder_hash  # embeddings of the one are not taken for those of the other
    canvas = graph.frame.canvas(np.asarray(IMAGE.array))[None]
    embedding, wanted = graph.encode(canvas), exact.encode(canvas)
    assert len(embedding.levels) == len(wanted.levels)
    for found, known in zip((embedding.features, *embedding.levels), (wanted.features, *wanted.levels), strict=True):
        np.testing.assert_allclose(found, known, atol=1e-4 * np.abs(known).max())
    for kind in ("box", "point", "points", "box+points", "mask", "box+mask", "points+box+mask"):
        for count in (1, 3):
            several = kind == "point"
            asked = prompts_of(kind, rng, count=count, side=graph.frame.size, mask_side=graph.frame.mask_size)
            answer = graph.decode(wanted, asked, multimask_output=several)
            known = exact.decode(wanted, asked, multimask_output=several)
            assert answer.logits.shape == known.logits.shape, kind
            np.testing.assert_allclose(
                answer.logits, known.logits, atol=1e-4 * np.abs(known.logits).max(), err_msg=kind
            )
            np.testing.assert_allclose(answer.predicted_iou, known.predicted_iou, atol=1e-4, err_msg=kind)
            assert (answer.object_logits is None) == (known.object_logits is None)


@pytest.mark.usefixtures("catalog_of_prepared")
def test_objects_on_several_images_keep_their_order(rng: np.random.Generator) -> None:
    graph, exact = (palpate.load("tiny", runtime=runtime).runtime for runtime in ("openvino", "torch"))
    embedding = ImageEmbedding(rng.normal(size=(2, 32, 16, 16)).astype(np.float32))
    count = 2 * OBJECTS_AT_ONCE + 3
    asked = prompts_of("box", rng, count=count, side=64, mask_side=64)
    asked = replace(asked, image_index=rng.integers(0, 2, count))
    answer, known = graph.decode(embedding, asked), exact.decode(embedding, asked)
    np.testing.assert_allclose(answer.logits, known.logits, atol=1e-4 * np.abs(known.logits).max())
    none = replace(asked, image_index=asked.image_index[:0], boxes=asked.boxes[:0])
    assert graph.decode(embedding, none).logits.shape == exact.decode(embedding, none).logits.shape == (0, 1, 64, 64)
    assert graph.decode(embedding, none, multimask_output=True).predicted_iou.shape == (0, 3)


@pytest.mark.usefixtures("catalog_of_prepared")
def test_several_threads_may_ask_one_runtime(rng: np.random.Generator) -> None:
    graph = palpate.load("tiny", runtime="openvino").runtime
    embeddings = [ImageEmbedding(rng.normal(size=(1, 32, 16, 16)).astype(np.float32)) for _ in range(8)]
    asked = prompts_of("box", rng, count=2, side=64, mask_side=64)
    alone = [graph.decode(embedding, asked).logits for embedding in embeddings]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            together = list(threads.map(lambda one: graph.decode(one, asked).logits, embeddings))
            np.testing.assert_array_equal(together, alone)


@pytest.mark.usefixtures("weights")
def test_ctrl_c_does_no_harm_after_the_last_session_has_gone() -> None:
    """With OpenVINO let go, it ended the process with a segmentation fault."""
    script = """
import gc, signal, palpate
palpate.load("lite-medsam", runtime="openvino")
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


@pytest.mark.usefixtures("catalog_of_prepared")
def test_a_runtime_can_be_sent_to_another_process(rng: np.random.Generator) -> None:
    graph = palpate.load("tiny", runtime="openvino").runtime
    there = pickle.loads(pickle.dumps(graph))
    canvas = graph.frame.canvas(np.asarray(IMAGE.array))[None]
    np.testing.assert_array_equal(there.encode(canvas).features, graph.encode(canvas).features)


@pytest.mark.usefixtures("catalog_of_prepared")
def test_prompts_that_make_no_sense_are_refused_as_by_torch(rng: np.random.Generator) -> None:
    graph, exact = (palpate.load("tiny", runtime=runtime).runtime for runtime in ("openvino", "torch"))
    embedding = ImageEmbedding(rng.normal(size=(1, 32, 16, 16)).astype(np.float32))
    good = prompts_of("box+points+mask", rng, count=2, side=64, mask_side=64)
    assert good.boxes is not None
    wrong = (
        replace(good, boxes=np.full_like(good.boxes, np.nan)),
        replace(good, boxes=good.boxes[:1]),
        replace(good, point_labels=np.full((2, 3), 7, np.float32)),
        replace(good, point_labels=None),
        replace(good, masks=np.zeros((2, 1, 32, 32), np.float32)),
        replace(good, image_index=np.array([0, 1])),
        replace(good, image_index=np.array([0, -1])),
        PromptBatch(np.zeros(2, dtype=np.int64)),
    )
    for prompts in wrong:
        messages: list[str] = []
        for runtime in (graph, exact):
            with pytest.raises(PromptError) as refused:
                runtime.decode(embedding, prompts)
            messages.append(str(refused.value).split(", got")[0])
        assert messages[0] == messages[1]


@pytest.mark.usefixtures("catalog_of_prepared")
def test_embeddings_that_may_not_be_written_to_are_taken(rng: np.random.Generator) -> None:
    """Those of a cache are maps of files."""
    graph = palpate.load("tiny", runtime="openvino").runtime
    features = rng.normal(size=(1, 32, 16, 16)).astype(np.float32)
    asked = prompts_of("box", rng, count=1, side=64, mask_side=64)
    before = graph.decode(ImageEmbedding(features), asked)
    features.setflags(write=False)
    np.testing.assert_array_equal(graph.decode(ImageEmbedding(features), asked).logits, before.logits)


@pytest.mark.usefixtures("catalog_of_prepared")
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_session_gives_the_mask_that_it_gives_on_torch(runtime: str) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    results: list[palpate.Segmentation] = []
    for name in (runtime, "torch"):
        session = palpate.load("tiny", runtime=name)
        session.set_image(IMAGE)
        results.append(session.predict(BOX))
    found, exact = results
    np.testing.assert_array_equal(found.mask, exact.mask)
    assert found.provenance.weights_hash == exact.provenance.weights_hash
    assert found.provenance.runtime.endswith(" on cpu, float32")
    assert found.provenance.runtime.startswith({"openvino": "OpenVINO 2", "onnxruntime": "ONNX Runtime 1"}[runtime])


class TestBeingPrepared:
    @pytest.mark.usefixtures("catalog")
    def test_it_is_done_once_and_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        palpate.load("tiny", runtime="openvino", tell=said.append)
        assert len(said) == 1
        assert said[0].startswith("making tiny ready for OpenVINO")
        monkeypatch.setattr(preparing, "prepare", lambda *_, **__: pytest.fail("prepared again"))
        again = palpate.load("tiny", runtime="openvino", tell=said.append)
        again.set_image(IMAGE)
        assert again.predict(BOX).mask.shape == (64, 48)
        assert len(said) == 1

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_what_openvino_compiled_is_kept(self) -> None:
        runtime = palpate.load("tiny", runtime="openvino").runtime
        assert isinstance(runtime, GraphRuntime)
        assert list((runtime.prepared.folder / "compiled").rglob("*.blob"))

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_other_weights_are_another_model(self, tmp_path: Path) -> None:
        first = palpate.load("tiny", runtime="openvino").runtime
        state = {n: t.clone() for n, t in safetensors.torch.load_file(stored("tiny")).items()}
        state["mask_decoder.iou_token.weight"] += 1
        own = tmp_path / "own.safetensors"
        safetensors.torch.save_file(state, own)
        second = palpate.load("tiny", weights=own, runtime="openvino").runtime
        assert second.weights_hash != first.weights_hash
        assert second.encoder_hash == first.encoder_hash
        assert len(list(prepared.home().iterdir())) == 2

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_damaged_weights_are_found_out_though_a_good_model_is_prepared(self) -> None:
        palpate.load("tiny", runtime="openvino")
        state = {n: t.clone() for n, t in safetensors.torch.load_file(stored("tiny")).items()}
        state["mask_decoder.iou_token.weight"] += 1
        safetensors.torch.save_file(state, stored("tiny"))
        with pytest.raises(WeightsError, match="have changed since they were published"):
            palpate.load("tiny", runtime="openvino")

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_a_folder_that_cannot_be_read_is_made_again(self) -> None:
        folder = palpate.load("tiny", runtime="openvino").runtime.prepared.folder  # type: ignore[attr-defined]
        (folder / "model.json").write_text("{")
        session = palpate.load("tiny", runtime="openvino")
        session.set_image(IMAGE)
        assert session.predict(BOX).mask.shape == (64, 48)

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_weights_of_ones_own_do_not_vouch_for_released_ones(self, tmp_path: Path) -> None:
        """Own weights are taken as they are; where the released ones should be, the same file is refused."""
        state = {n: t.clone() for n, t in safetensors.torch.load_file(stored("tiny")).items()}
        state["mask_decoder.iou_token.weight"] += 1
        own = tmp_path / "own.safetensors"
        safetensors.torch.save_file(state, own)
        palpate.load("tiny", weights=own, runtime="openvino")
        shutil.copy(own, stored("tiny"))
        with pytest.raises(WeightsError, match="have changed since they were published"):
            palpate.load("tiny", runtime="openvino")

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_a_graph_that_is_gone_or_cut_short_is_made_again(self) -> None:
        for harm in (Path.unlink, lambda path: path.write_bytes(b"onnx")):
            folder = palpate.load("tiny", runtime="openvino").runtime.prepared.folder  # type: ignore[attr-defined]
            harm(folder / "tokens.onnx")
            session = palpate.load("tiny", runtime="openvino")
            session.set_image(IMAGE)
            assert session.predict(BOX).mask.shape == (64, 48)

    @pytest.mark.usefixtures("catalog_of_prepared")
    @pytest.mark.parametrize("runtime", ["openvino", "auto"])
    def test_a_graph_that_was_changed_does_not_run_and_is_made_again(
        self, runtime: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PALPATE_RUNTIME", raising=False)
        made = palpate.load("tiny", runtime="openvino").runtime.prepared  # type: ignore[attr-defined]
        change(made.folder / "encoder.onnx")
        told: list[str] = []
        session = palpate.load("tiny", device="cpu", runtime=runtime, tell=told.append)
        assert len(told) == 1
        assert "making tiny ready" in told[0]
        session.set_image(IMAGE)
        result = session.predict(BOX)
        assert result.provenance.runtime.startswith("OpenVINO")
        assert not result.notes
        assert made.graph("encoder").is_file()

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_a_changed_graph_that_nobody_may_replace_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PALPATE_RUNTIME", raising=False)
        monkeypatch.setattr(prepared.Prepared, "_give_up", lambda self: False)  # a folder to read only
        monkeypatch.setattr("palpate.inference.loading.is_installed", lambda name: name == "openvino")
        change(palpate.load("tiny", runtime="openvino").runtime.prepared.graph("encoder"))  # type: ignore[attr-defined]
        with pytest.raises(PalpateError, match="has changed since it was written; delete its folder"):
            palpate.load("tiny", runtime="openvino")
        session = palpate.load("tiny", device="cpu")
        session.set_image(IMAGE)
        result = session.predict(BOX)
        assert result.provenance.runtime.startswith("torch")
        assert len(result.notes) == 1
        assert "has changed since it was written" in result.notes[0]

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_a_graph_that_a_model_never_had_does_no_harm(self) -> None:
        made = palpate.load("tiny", runtime="openvino").runtime.prepared  # type: ignore[attr-defined]
        with pytest.raises(KeyError):
            made.graph("finder")
        assert prepared.opened(made.folder) is not None

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_one_that_is_opened_later_and_was_changed_is_made_again_the_next_time(
        self, rng: np.random.Generator
    ) -> None:
        runtime = palpate.load("tiny", runtime="openvino").runtime
        change(runtime.prepared.folder / "decoder.onnx")  # type: ignore[attr-defined]
        asked = prompts_of("mask", rng, count=1, side=64, mask_side=64)
        embedding = ImageEmbedding(rng.normal(size=(1, 32, 16, 16)).astype(np.float32))
        with pytest.raises(PalpateError, match="has changed since it was written; run it again"):
            runtime.decode(embedding, asked)
        again = palpate.load("tiny", runtime="openvino").runtime
        assert again.decode(embedding, asked).logits.shape == (1, 1, 64, 64)

    @pytest.mark.usefixtures("catalog_of_prepared")
    def test_what_goes_while_a_session_lasts_is_told(self, rng: np.random.Generator) -> None:
        runtime = palpate.load("tiny", runtime="openvino").runtime
        shutil.rmtree(runtime.prepared.folder)  # type: ignore[attr-defined]
        embedding = ImageEmbedding(rng.normal(size=(1, 32, 16, 16)).astype(np.float32))
        asked = prompts_of("box", rng, count=1, side=64, mask_side=64)
        assert runtime.decode(embedding, asked).logits.shape == (1, 1, 64, 64)
        with pytest.raises(PalpateError, match=r"is gone .*; run it again"):
            runtime.decode(embedding, prompts_of("mask", rng, count=1, side=64, mask_side=64))

    @pytest.mark.usefixtures("catalog")
    def test_what_was_never_finished_goes_after_a_day(self) -> None:
        for name, age in ((".half-old", 2 * 24 * 3600), ("damaged", 2 * 24 * 3600), (".half-new", 60)):
            (prepared.home() / name).mkdir(parents=True)
            os.utime(prepared.home() / name, (time.time() - age,) * 2)
        prepared.forget_old()
        assert [path.name for path in prepared.home().iterdir()] == [".half-new"]

    @pytest.mark.usefixtures("catalog")
    def test_nothing_is_left_of_one_that_failed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preparing, "FAR", 0)
        with pytest.raises(PalpateError, match="differs from PyTorch by"):
            palpate.load("tiny", runtime="openvino")
        assert [path.name for path in prepared.home().glob("*/*")] == ["failed"]

    @pytest.mark.usefixtures("catalog")
    def test_what_failed_is_tried_again_after_a_day_or_when_it_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("palpate.inference.loading.is_installed", lambda name: name == "openvino")
        monkeypatch.setenv("PALPATE_RUNTIME", "auto")
        usual, tries = preparing.prepare, list[str]()

        def counted(*arguments: Any, **settings: Any) -> Any:
            tries.append("again")
            return usual(*arguments, **settings)

        monkeypatch.setattr(preparing, "prepare", counted)
        with monkeypatch.context() as patch:
            patch.setattr(preparing, "FAR", 0)
            notes = [palpate.load("tiny", device="cpu").notes for _ in range(3)]
        assert len(tries) == 1
        assert notes[0] == notes[1] == notes[2]
        assert "differs from PyTorch by" in notes[2][0]
        (note,) = prepared.home().glob("*/failed")
        os.utime(note, (time.time() - 2 * 24 * 3600,) * 2)
        assert palpate.load("tiny", device="cpu").runtime.describe().startswith("OpenVINO")
        assert (len(tries), note.exists()) == (2, False)

    @pytest.mark.usefixtures("catalog")
    def test_who_asks_for_the_engine_has_another_try(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(preparing, "FAR", 0)
            with pytest.raises(PalpateError, match="differs"):
                palpate.load("tiny", runtime="openvino")
        assert palpate.load("tiny", runtime="openvino").runtime.describe().startswith("OpenVINO")

    @pytest.mark.usefixtures("catalog")
    def test_processes_that_start_together_make_it_once(self) -> None:
        fcntl = pytest.importorskip("fcntl")
        prepared.home().parent.mkdir(parents=True, exist_ok=True)
        said: list[str] = []
        waits = threading.Event()

        def tell(words: str) -> None:
            said.append(words)
            waits.set()

        with ThreadPoolExecutor(1) as pool:
            with prepared.home().with_suffix(".lock").open("a") as other:
                fcntl.flock(other, fcntl.LOCK_EX)  # as another process would
                session = pool.submit(palpate.load, "tiny", runtime="openvino", tell=tell)
                assert waits.wait(30)
                assert said == ["another process is making a model ready; waiting for it"]
                assert not prepared.home().exists()
            assert session.result().runtime.describe().startswith("OpenVINO")

    @pytest.mark.usefixtures("catalog")
    def test_those_used_longest_ago_go(self) -> None:
        for number in range(4):
            folder = prepared.home() / f"model-{number}"
            folder.mkdir(parents=True)
            (folder / "model.json").write_text("{}")
            os.utime(folder / "model.json", (number, 10 - number))
        prepared.forget_old(keep=2)
        assert sorted(path.name for path in prepared.home().iterdir()) == ["model-0", "model-1"]

    @pytest.mark.usefixtures("catalog")
    def test_an_adapter_is_part_of_it(self, tmp_path: Path) -> None:
        network = tiny_lite_medsam()
        trained = Trained(("mask-head",))
        adapters.trainable(network, trained)
        with torch.no_grad():
            network.prompt_decoder.mask_decoder.upscale_conv1.weight.add_(0.05)
        made = AdapterCard("mine", "tiny", card("tiny").content_sha256 or "", trained, prompts=("box",))
        path = tmp_path / "mine.safetensors"
        adapters.save(adapters.extracted(network, made), path)
        masks: dict[str, np.ndarray] = {}
        for runtime in ("openvino", "torch"):
            session = palpate.load(adapter=path, runtime=runtime)
            assert session.runtime.model == "tiny + mine"
            session.set_image(IMAGE)
            masks[runtime] = session.predict(BOX).mask
        np.testing.assert_array_equal(masks["openvino"], masks["torch"])


@pytest.mark.usefixtures("catalog_of_prepared")
class TestChoosing:
    def test_auto_is_openvino_on_a_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PALPATE_RUNTIME", raising=False)
        monkeypatch.setattr("palpate.inference.loading.has_cuda", lambda: False)
        assert palpate.load("tiny").runtime.describe().startswith("OpenVINO")

    def test_with_a_cuda_device_it_is_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PALPATE_RUNTIME", raising=False)
        monkeypatch.setattr("palpate.inference.loading.has_cuda", lambda: True)
        assert palpate.load("tiny").runtime.describe().startswith("torch")
        assert palpate.load("tiny", device="cpu").runtime.describe().startswith("OpenVINO")

    def test_without_openvino_it_is_onnx_runtime_and_without_both_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("onnxruntime")
        monkeypatch.delenv("PALPATE_RUNTIME", raising=False)
        monkeypatch.setattr("palpate.inference.loading.is_installed", lambda name: name == "onnxruntime")
        assert palpate.load("tiny", device="cpu").runtime.describe().startswith("ONNX Runtime")
        monkeypatch.setattr("palpate.inference.loading.is_installed", lambda _: False)
        assert palpate.load("tiny", device="cpu").runtime.describe().startswith("torch")

    def test_an_engine_that_fails_is_told_in_one_line_and_torch_takes_over(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: OpenVINO, path: Path) -> None:
            raise RuntimeError("Exception from src/core.cpp:1:\n\nSoftmax has no primitive\n\n")

        monkeypatch.delenv("PALPATE_RUNTIME", raising=False)
        monkeypatch.setattr(OpenVINO, "open", fail)
        monkeypatch.setattr("palpate.inference.loading.is_installed", lambda name: name == "openvino")
        session = palpate.load("tiny", device="cpu")
        session.set_image(IMAGE)
        result = session.predict(BOX)
        assert result.provenance.runtime.startswith("torch")
        assert result.notes == ("openvino cannot run tiny (Softmax has no primitive), so something slower computes",)
        with pytest.raises(PalpateError, match=r"openvino cannot run tiny .* choose torch"):
            palpate.load("tiny", device="cpu", runtime="openvino")

    def test_missing_weights_are_told_as_ever(self) -> None:
        stored("tiny").unlink()
        with pytest.raises(WeightsError, match="palpate models get"):
            palpate.load("tiny", runtime="openvino")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"runtime": "tensorrt"}, "no runtime 'tensorrt'; choose auto, openvino, onnxruntime, torch"),
            ({"precision": "int8"}, "no precision 'int8'; choose float32, bfloat16, float16"),
            ({"runtime": "openvino", "device": "cuda"}, "openvino runs on the CPU here, not on cuda"),
            ({"runtime": "onnxruntime", "precision": "bfloat16"}, "computes in float32 here"),
        ],
    )
    def test_what_there_is_not_is_refused(self, settings: dict[str, str], message: str) -> None:
        with pytest.raises(SettingError, match=message):
            palpate.load("tiny", **settings)  # type: ignore[arg-type]

    def test_an_unknown_name_in_the_environment_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PALPATE_RUNTIME", "fast")
        with pytest.raises(SettingError, match="it is in PALPATE_RUNTIME"):
            palpate.load("tiny")

    def test_an_engine_that_is_not_installed_is_named_with_the_way_to_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "is_installed", lambda _: False)
        with pytest.raises(SettingError, match="pip install openvino"):
            palpate.load("tiny", runtime="openvino")


@pytest.mark.usefixtures("catalog_of_prepared")
@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_lower_precision_has_embeddings_of_its_own(runtime: str) -> None:
    if runtime == "openvino" and "bfloat16" not in engines.precisions():
        pytest.skip("this processor has no bfloat16")
    exact, rounded = (palpate.load("tiny", runtime=runtime, precision=p).runtime for p in ("float32", "bfloat16"))
    assert exact.weights_hash == rounded.weights_hash
    assert exact.encoder_hash != rounded.encoder_hash
    assert rounded.describe().endswith("bfloat16")
    box = prompts_of("box", np.random.default_rng(0), count=1, side=64, mask_side=64)
    logits = rounded.decode(ImageEmbedding(np.ones((1, 32, 16, 16), np.float32)), box).logits
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    canvas = exact.frame.canvas(np.asarray(IMAGE.array))[None]
    first, second = exact.encode(canvas).features, rounded.encode(canvas).features
    apart = np.abs(first - second).max() / np.abs(first).max()
    assert 1e-5 < apart < 0.1
    assert second.dtype == np.float32


@pytest.mark.usefixtures("catalog_of_prepared")
@pytest.mark.parametrize("order", [("float32", "lower", "float32"), ("lower", "float32", "lower")])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_what_was_compiled_in_one_precision_is_not_taken_for_another(precision: str, order: tuple[str, ...]) -> None:
    if precision not in engines.precisions():
        pytest.skip(f"this processor has no {precision}")
    canvas = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    shutil.rmtree(next(prepared.home().glob("*/compiled")))
    found: dict[str, list[np.ndarray]] = {"float32": [], "lower": []}
    for which in order:  # the third time it is what was kept
        session = palpate.load("tiny", runtime="openvino", precision="float32" if which == "float32" else precision)
        found[which].append(session.runtime.encode(canvas).features)
    exact = palpate.load("tiny", runtime="torch").runtime.encode(canvas).features
    scale = np.abs(exact).max()
    assert all(np.abs(one - exact).max() < 1e-5 * scale for one in found["float32"])
    assert all(np.abs(one - exact).max() > 1e-4 * scale for one in found["lower"])


@pytest.mark.usefixtures("catalog")
class TestLearnedPrompts:
    def test_classes_are_found_as_by_torch(self, tmp_path: Path) -> None:
        path = learned_file(tmp_path / "organs.safetensors", card("tiny"))
        found, exact = (palpate.load(auto=path, runtime=runtime) for runtime in ("openvino", "torch"))
        assert isinstance(found.runtime, FindingGraphRuntime)
        assert (found.runtime.model, found.runtime.weights_hash) == (exact.runtime.model, exact.runtime.weights_hash)
        for session in (found, exact):
            session.set_image(IMAGE)
        one, other = found.find(), exact.find()
        np.testing.assert_array_equal(one.labels, other.labels)
        assert [item.name for item in one.objects] == ["liver", "spleen"]
        for mine, theirs in zip(one.objects, other.objects, strict=True):
            assert mine.object_probability == pytest.approx(theirs.object_probability, abs=1e-4)

    def test_what_nobody_asks_for_is_not_opened(self, tmp_path: Path) -> None:
        path = learned_file(tmp_path / "organs.safetensors", card("tiny"))
        session = palpate.load(auto=path, runtime="openvino")
        session.set_image(IMAGE)
        session.find()
        assert set(session.runtime._opened) == {"encoder", "finder"}  # type: ignore[attr-defined]

    def test_what_is_drawn_beside_them_counts(self, tmp_path: Path) -> None:
        path = learned_file(tmp_path / "organs.safetensors", card("tiny"))
        maps: list[np.ndarray] = []
        for runtime in ("openvino", "torch"):
            session = palpate.load(auto=path, runtime=runtime)
            session.set_image(IMAGE)
            maps.append(session.find([palpate.Target((BOX,), name="liver")], mode="semi-autonomous").labels)
        np.testing.assert_array_equal(*maps)


def test_the_cheaper_order_of_sums_gives_the_same(rng: np.random.Generator) -> None:
    decoder = tiny_sam().prompt_decoder
    transformer = decoder.mask_decoder.transformer
    tokens = torch.from_numpy(rng.normal(size=(3, 7, 32)).astype(np.float32))
    cells = torch.from_numpy(rng.normal(size=(1, 64, 32)).astype(np.float32))
    positions = torch.from_numpy(rng.normal(size=(1, 64, 32)).astype(np.float32))
    with torch.inference_mode():
        found = attended(transformer, tokens, cells, positions)
        as_image = cells.transpose(1, 2).reshape(1, 32, 8, 8).expand(3, -1, -1, -1)
        known = transformer(
            point_embeddings=tokens[:, None],
            image_embeddings=as_image,
            image_positional_embeddings=positions.transpose(1, 2).reshape(1, 32, 8, 8).expand(3, -1, -1, -1),
            attention_similarity=None,
            target_embedding=None,
        )
    for mine, theirs in zip(found, known, strict=True):
        torch.testing.assert_close(mine, theirs[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("kind", ["", "--adapter", "--auto"])
def test_a_prepared_model_predicts_without_torch(kind: str, tmp_path: Path) -> None:
    """The real model and the real command line, in a process that says what it imported."""
    from PIL import Image as Picture

    image, extra = tmp_path / "scan.png", tmp_path / "extra.safetensors"
    Picture.fromarray(np.asarray(IMAGE.array)).save(image)
    arguments = ["predict", str(image), "-o", str(tmp_path / "mask.png")]
    if kind != "--auto":
        arguments += ["--box", "10", "12", "41", "44"]
    if kind == "--auto":
        arguments += [kind, str(learned_file(extra, card("lite-medsam")))]
        palpate.load(auto=extra, runtime="openvino")
    elif kind == "--adapter":
        shutil.copyfile(released_adapter(), extra)
        arguments += [kind, str(extra)]
        palpate.load(adapter=extra, runtime="openvino")
    else:
        palpate.load("lite-medsam", runtime="openvino")
    script = f"""
import sys
from palpate.cli import main
try:
    main({[*arguments, "--runtime", "openvino"]!r})
except SystemExit as stop:
    assert not stop.code, stop.code
assert "torch" not in sys.modules
assert "scipy" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "OpenVINO" in done.stdout
    assert (tmp_path / "mask.png").is_file()


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core, or nobody says which"
)
def test_threads_of_processes_that_were_allowed_few_are_not_all_bound_to_the_first_core(tmp_path: Path):
    rows = torch.zeros(1024, 1024)
    write_onnx(Graph("product", nn.Linear(1024, 1024), {"x": rows}, {"y": rows}), tmp_path / "product.onnx")
    script = f"""
import os, threading
from pathlib import Path
import numpy as np
from palpate.inference.runtimes.engines import OpenVINO
run, over = OpenVINO(threads=1).open(Path({str(tmp_path / "product.onnx")!r})), threading.Event()
def work():
    for _ in range(50):
        run({{"x": np.zeros((1024, 1024), np.float32)}})
    over.set()
threading.Thread(target=work).start()
least = []
while not over.wait(0.002):  # it is only bound while it works
    least.append(min(len(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")))
assert len(least) > 10
print(min(least))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(os.sched_getaffinity(0))


class TestLocale:
    """OpenVINO takes the locale "C" while it compiles, and leaves it so where that fails."""

    @pytest.fixture(autouse=True)
    def utf8(self):
        before = locale.setlocale(locale.LC_ALL)
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
        yield
        locale.setlocale(locale.LC_ALL, before)

    def test_a_graph_that_cannot_be_opened_leaves_the_locale(self, tmp_path: Path):
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"not a graph")
        with pytest.raises(RuntimeError):
            OpenVINO().open(broken)
        assert locale.getencoding() == "UTF-8"

    def test_a_compiler_that_forgets_the_locale_is_set_right(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        class Forgetful:
            def compile_model(self, *_: object) -> None:
                locale.setlocale(locale.LC_ALL, "C")
                assert locale.getencoding() != "UTF-8"
                raise RuntimeError("out of memory")

        monkeypatch.setattr(engines, "openvino_core", Forgetful)
        with pytest.raises(RuntimeError, match="out of memory"):
            OpenVINO().open(tmp_path / "any.onnx")
        assert locale.getencoding() == "UTF-8"
