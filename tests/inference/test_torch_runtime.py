from collections.abc import Callable

import numpy as np
import pytest
import torch

from palpate.errors import SettingError
from palpate.images import Image
from palpate.inference.runtimes import Runtime
from palpate.inference.runtimes.torch import TorchRuntime, choose_device
from palpate.inference.session import Session
from palpate.models.frame import Frame
from palpate.models.lite_medsam import LiteMedSAM, TinyViT
from palpate.models.promptable import ImageEmbedding, PromptBatch, PromptSupport
from palpate.models.sam import SamPromptDecoder
from palpate.prompts import Box, MaskPrompt, Points, Prompt, Scribble, Target

ALL_KINDS = PromptSupport(trained=("box",), accepted=("points", "scribble", "mask"))


@pytest.fixture(scope="module")
def runtime() -> TorchRuntime:
    """A LiteMedSAM of some thousand parameters with a canvas of 64 x 64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LiteMedSAM(
            Frame(size=64, mask_size=64),
            image_encoder=TinyViT(widths=(8, 32, 32, 32), depths=(1, 1, 1, 1), windows=(7, 5, 7), channels=32),
            prompt_decoder=SamPromptDecoder(canvas_size=64, grid_stride=4, channels=32, heads=2, mlp_channels=32),
        ).eval()
    return TorchRuntime(network, "tiny", "0" * 64, "e" * 64, ALL_KINDS, torch.device("cpu"))


@pytest.fixture
def session(runtime: TorchRuntime, rng: np.random.Generator) -> Session:
    made = Session(runtime, memory_bytes=1)
    made.set_image(Image(rng.integers(0, 256, (4, 50, 70), dtype=np.uint8)), axis="z")
    return made


class TestChoosingADevice:
    def test_the_cpu_is_always_there(self) -> None:
        assert choose_device("cpu") == torch.device("cpu")

    def test_without_an_accelerator_auto_is_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert choose_device() == torch.device("cpu")

    def test_with_one_auto_is_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert choose_device("auto") == torch.device("cuda")

    @pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x"])
    def test_a_name_that_is_none_gets_the_list(self, name: str) -> None:
        with pytest.raises(SettingError, match="choose auto, cpu, cuda, cuda:N or mps"):
            choose_device(name)

    def test_a_device_of_another_kind_is_refused(self) -> None:
        with pytest.raises(SettingError, match="device 'meta' is not supported"):
            choose_device("meta")

    @pytest.mark.parametrize(("name", "there"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
    def test_an_accelerator_that_is_not_there_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, name: str, there: int
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
        with pytest.raises(SettingError, match=f"no CUDA device '{name}' on this machine"):
            choose_device(name)

    def test_mps_is_refused_where_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(SettingError, match="no Apple MPS device"):
            choose_device("mps")


def test_it_is_a_runtime(runtime: TorchRuntime) -> None:
    assert isinstance(runtime, Runtime)
    assert runtime.frame == Frame(size=64, mask_size=64)
    assert runtime.describe() == f"torch {torch.__version__.split('+')[0]} on cpu, float32"


def test_arrays_go_in_and_come_out(runtime: TorchRuntime, rng: np.random.Generator) -> None:
    embedding = runtime.encode(rng.random((2, 3, 64, 64), dtype=np.float32))
    assert isinstance(embedding.features, np.ndarray)
    assert embedding.features.shape == (2, 32, 16, 16)
    boxes = np.array([[1, 2, 30, 40], [5, 5, 9, 9], [0, 0, 63, 63]], dtype=np.float32)
    prediction = runtime.decode(embedding, PromptBatch(np.array([0, 1, 1]), boxes=boxes))
    assert isinstance(prediction.logits, np.ndarray)
    assert prediction.logits.shape == (3, 1, 64, 64)
    assert prediction.predicted_iou.shape == (3, 1)
    assert prediction.logits.dtype == np.float32


def test_an_embedding_from_disk_gives_the_same_masks(
    runtime: TorchRuntime, rng: np.random.Generator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    embedding = runtime.encode(rng.random((1, 3, 64, 64), dtype=np.float32))
    path = tmp_path_factory.mktemp("embedding") / "features.npy"
    np.save(path, embedding.features)
    batch = PromptBatch(np.array([0]), boxes=np.array([[1, 2, 30, 40]], dtype=np.float32))
    from_disk = runtime.decode(ImageEmbedding(np.load(path, mmap_mode="r")), batch)
    assert np.array_equal(from_disk.logits, runtime.decode(embedding, batch).logits)


@pytest.mark.parametrize(
    "prompt",
    [
        lambda shape: Box(5, 5, 40, 40, z=1),
        lambda shape: Points([(10, 20), (30, 5)], [1, 0], z=1),
        lambda shape: Scribble(np.eye(*shape, dtype=bool), z=1),
        lambda shape: MaskPrompt(np.eye(*shape, dtype=bool), z=1),
    ],
    ids=["box", "points", "scribble", "mask"],
)
def test_every_prompt_goes_through_a_real_network(session: Session, prompt: Callable[[tuple], Prompt]) -> None:
    found = session.predict(prompt((50, 70)), z_range=(0, 3))
    assert found.labels.shape == (4, 50, 70)
    assert found.provenance.runtime.startswith("torch ")


def test_together_objects_get_what_each_gets_alone(session: Session) -> None:
    targets = [Target((Box(5 * i, 3 * i, 30 + 5 * i, 25 + 3 * i, z=i % 4),), i + 1) for i in range(6)]
    together = session.predict_all(targets)
    for target, item in zip(targets, together.objects, strict=True):
        alone = session.predict_all([target])
        assert item.predicted_iou == pytest.approx(alone.objects[0].predicted_iou, abs=1e-5)
    last = session.predict_all(targets[-1:])
    assert (together.labels == 6).sum() == pytest.approx(last.mask.sum(), abs=2)


def test_the_same_prompt_gives_the_same_mask(session: Session) -> None:
    first, second = (session.predict(Box(5, 5, 40, 40, z=2), z_range=(0, 3)) for _ in range(2))
    assert np.array_equal(first.labels, second.labels)
    assert first.predicted_iou == second.predicted_iou
