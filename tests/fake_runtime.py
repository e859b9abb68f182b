"""A model whose masks can be worked out by hand, and that counts what it is asked."""

import os
import time
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import label as connected

from palpate.inference.folder_helpers import Loading
from palpate.inference.session import Session
from palpate.models.frame import Frame
from palpate.models.promptable import ImageEmbedding, LearnedClass, MaskPrediction, PromptBatch, PromptSupport

INSIDE = 10.0


@dataclass(eq=False)
class FakeRuntime:
    """It finds bright things: canvas pixels above one half.

    A box keeps the bright pixels inside it, edges included; a mask keeps those where its logits are positive; points
    keep the connected pieces that a positive point lies on, and drop those that a negative point lies on. The logits
    are +10 there and -10 elsewhere. The predicted IoU is 2 m - 1, where m is the mean brightness of what was found
    (1 for white, near 0 for middle grey), and 0 if nothing was.

    The default canvas has 64 pixels a side: an image of 64 x 64 is its own canvas.
    """

    frame: Frame = field(default_factory=lambda: Frame(size=64, mask_size=64))
    prompts: PromptSupport = field(
        default_factory=lambda: PromptSupport(trained=("box",), accepted=("points", "scribble", "mask"))
    )
    model: str = "fake"
    weights_hash: str = "0" * 64
    encoder_hash: str = "e" * 64
    encodes: int = 0
    batches: list[PromptBatch] = field(default_factory=list)

    @property
    def decodes(self) -> int:
        return len(self.batches)

    def describe(self) -> str:
        return "fake on paper"

    def encode(self, canvas: np.ndarray) -> ImageEmbedding:
        self.encodes += len(canvas)
        return ImageEmbedding(canvas.copy())

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        assert not multimask_output  # its answer is one; a model with three is in tests/tiny_networks.py
        self.batches.append(prompts)
        side = self.frame.size
        logits = np.full((len(prompts), 1, side, side), -INSIDE, dtype=np.float32)
        predicted_iou = np.zeros((len(prompts), 1), dtype=np.float32)
        for i, image in enumerate(prompts.image_index):
            brightness = embedding.features[image].mean(axis=0)
            found = _found(brightness > 0.5, prompts, i)
            logits[i, 0, found] = INSIDE
            if found.any():
                predicted_iou[i] = 2 * brightness[found].mean() - 1
        return MaskPrediction(logits, predicted_iou)


def _found(bright: np.ndarray, prompts: PromptBatch, i: int) -> np.ndarray:
    found = bright
    if prompts.boxes is not None:
        x_min, y_min, x_max, y_max = prompts.boxes[i]
        y, x = np.indices(bright.shape)
        found = found & (x >= x_min) & (x <= x_max) & (y >= y_min) & (y <= y_max)
    if prompts.masks is not None:
        found = found & (prompts.masks[i, 0] > 0)
    if prompts.points is not None:
        pieces, _ = connected(found)
        at = pieces[tuple(prompts.points[i].round().astype(int)[:, ::-1].T)]
        wanted = set(at[prompts.point_labels[i] == 1]) - {0}
        unwanted = set(at[prompts.point_labels[i] == 0])
        found = np.isin(pieces, list(wanted - unwanted))
    return found


@dataclass(eq=False)
class FakeFindingRuntime(FakeRuntime):
    """It finds two classes by itself: `dim` (label 1), above one quarter, and `bright` (label 4), above four fifths.

    So whatever is bright is dim as well, with logits of 2 and 5; elsewhere they are -10. The last row is not looked at:
    a white pixel there keeps the others as they are. What is drawn limits a class as it limits a mask of `FakeRuntime`.
    The object logit is +4 where anything was found and -4 where nothing was, unless `object_logits` says otherwise;
    then a class has its logits all the same.
    """

    classes: tuple[LearnedClass, ...] = (LearnedClass("dim", 1), LearnedClass("bright", 4))
    object_logits: dict[str, float] = field(default_factory=dict)
    asked: list[tuple[tuple[int, ...], PromptBatch | None]] = field(default_factory=list)

    def find(self, embedding: ImageEmbedding, classes: np.ndarray, drawn: PromptBatch | None = None) -> MaskPrediction:
        self.asked.append((tuple(classes.tolist()), drawn))
        side = self.frame.size
        logits = np.full((len(classes), 1, side, side), -INSIDE, dtype=np.float32)
        predicted_iou = np.zeros((len(classes), 1), dtype=np.float32)
        objects = np.full(len(classes), -4, dtype=np.float32)
        brightness = embedding.features[0].mean(axis=0)
        for i, number in enumerate(classes.tolist()):
            found = brightness > (0.25, 0.8)[number]
            found[-1] = False
            if drawn is not None:
                found = _found(found, drawn, i)
            if found.any():
                logits[i, 0, found] = (2, 5)[number]
                predicted_iou[i] = brightness[found].mean()
                objects[i] = 4
            objects[i] = self.object_logits.get(self.classes[number].name, objects[i])
        return MaskPrediction(logits, predicted_iou, objects)


@dataclass(frozen=True)
class FakeLoading(Loading):
    """How another process loads a session on `FakeFindingRuntime`, of these arguments.

    With the argument `slow`, it takes so many seconds to find anything; with `ends`, the process ends instead of
    finding anything in an image whose last row is white.
    """

    def __call__(self) -> Session:
        arguments = dict(self.arguments)
        runtime = _Helping(slow=arguments.pop("slow", 0), ends=arguments.pop("ends", False), **arguments)
        return Session(runtime)


@dataclass(eq=False)
class _Helping(FakeFindingRuntime):
    slow: float = 0
    ends: bool = False

    def find(self, embedding: ImageEmbedding, classes: np.ndarray, drawn: PromptBatch | None = None) -> MaskPrediction:
        time.sleep(self.slow)
        if self.ends and (embedding.features[..., -1, :] > 0.9).all():
            os._exit(1)
        return super().find(embedding, classes, drawn)
