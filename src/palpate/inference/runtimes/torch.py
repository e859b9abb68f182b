"""The runtime that is always there: PyTorch, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, Int64

from palpate.errors import SettingError
from palpate.inference.runtimes.engines import Precision
from palpate.models.frame import Frame
from palpate.models.learned import Finder
from palpate.models.prompt_predictor import Items
from palpate.models.promptable import (
    ImageEmbedding,
    LearnedClass,
    MaskPrediction,
    PromptableModel,
    PromptBatch,
    PromptSupport,
)


@dataclass(frozen=True, eq=False)
class TorchRuntime:
    """A torch model in evaluation mode. In less than float32 it is torch's autocast that decides what is rounded.

    `encoder_hash` has to be that of the precision; see `hash_on`.
    """

    network: PromptableModel
    model: str
    weights_hash: str
    encoder_hash: str
    prompts: PromptSupport
    device: torch.device
    precision: Precision = "float32"

    @property
    def frame(self) -> Frame:
        """How the model sees an image."""
        return self.network.frame

    def describe(self) -> str:
        """What computes, where and how precisely."""
        return f"torch {torch.__version__.split('+')[0]} on {self.device}, {self.precision}"

    def encode(self, canvas: Float32[np.ndarray, "image 3 row column"]) -> ImageEmbedding:
        """Embed canvases."""
        with torch.inference_mode(), self._exact():
            embedding = self.network.encode(torch.from_numpy(canvas).to(self.device))
        return ImageEmbedding(_array(embedding.features), tuple(_array(level) for level in embedding.levels))

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """One mask an object, or the model's three candidates."""
        with torch.inference_mode(), self._exact():
            prediction = self.network.decode(self._held(embedding), prompts, multimask_output=multimask_output)
        present = prediction.object_logits
        return MaskPrediction(
            _array(prediction.logits),
            _array(prediction.predicted_iou),
            None if present is None else _array(present),
        )

    @contextmanager
    def _exact(self) -> Generator[None]:
        if self.precision == "float32":
            with _full_precision():
                yield
        else:
            with torch.autocast(self.device.type, getattr(torch, self.precision)):
                yield

    def _held(self, embedding: ImageEmbedding) -> ImageEmbedding:
        return ImageEmbedding(
            self._tensor(embedding.features), tuple(self._tensor(level) for level in embedding.levels)
        )

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        # Embeddings that were kept on disk are read-only maps, which torch may not share.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)


@dataclass(frozen=True, eq=False)
class FindingTorchRuntime(TorchRuntime):
    """A torch model with learned prompts for some classes."""

    finder: Finder = field(kw_only=True)
    classes: tuple[LearnedClass, ...] = field(kw_only=True)

    def find(
        self, embedding: ImageEmbedding, classes: Int64[np.ndarray, " item"], drawn: PromptBatch | None = None
    ) -> MaskPrediction:
        """One mask an item, and whether its class is there at all."""
        logits: list[np.ndarray] = []
        ious: list[np.ndarray] = []
        objects: list[np.ndarray] = []
        with torch.inference_mode(), self._exact():
            features, levels = self.finder.held(self._held(embedding))
            for start in range(0, len(classes), _CLASSES_AT_ONCE):
                some = slice(start, start + _CLASSES_AT_ONCE)
                chosen = torch.from_numpy(classes[some]).to(self.device)
                items = Items(torch.zeros_like(chosen), chosen)
                learned = self.finder.learned(features, levels, items)
                beside = None if drawn is None else _some(drawn, some)
                learned = learned if beside is None else self.finder.aimed(learned, beside)
                found = self.finder.answered(features, levels, items, learned=learned, drawn=beside)
                logits.append(_array(found.logits)[:, None])
                ious.append(_array(found.predicted_iou)[:, None])
                objects.append(_array(found.object_logits))
        return MaskPrediction(np.concatenate(logits), np.concatenate(ious), np.concatenate(objects))


_CLASSES_AT_ONCE = 4
"""Each class has a copy of the image's cells, which of SAM 2's finest level takes 64 MiB, several times over."""


def _some(prompts: PromptBatch, some: slice) -> PromptBatch:
    """Prompts in NumPy arrays, some of them."""

    def at(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[some]

    return PromptBatch(
        prompts.image_index[some],
        at(prompts.boxes),
        at(prompts.points),
        at(prompts.point_labels),
        at(prompts.masks),
    )


def _full_precision() -> AbstractContextManager[None]:
    # Newer NVIDIA cards shorten float32 to 10 bits of mantissa in convolutions (TF32) unless told not to; the float32
    # that `describe` states, and that every number was measured in, would not be true.
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)


def choose_device(name: str = "auto") -> torch.device:
    """The torch device of that name; `auto` takes CUDA where there is one, else the CPU.

    Apple's MPS is taken only when named: for networks this small it is not reliably faster.

    Raises:
        SettingError: a device that does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingError(f"there is no device {name!r}; choose auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"no CUDA device {name!r} on this machine; choose cpu, or auto to take what is there")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingError("no Apple MPS device on this machine; choose cpu, or auto to take what is there")
    if device.type not in ("cpu", "cuda", "mps"):
        raise SettingError(f"device {name!r} is not supported; choose auto, cpu, cuda, cuda:N or mps")
    return device


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
