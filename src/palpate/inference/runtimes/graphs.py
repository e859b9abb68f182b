"""The runtime on prepared graphs: no PyTorch in it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int64

from palpate.errors import PromptError
from palpate.inference.prepared import Prepared
from palpate.inference.runtimes import FindingRuntime
from palpate.inference.runtimes.engines import Answer, Engine, hash_in
from palpate.models.frame import Frame
from palpate.models.promptable import ImageEmbedding, LearnedClass, MaskPrediction, PromptBatch, PromptSupport

OBJECTS_AT_ONCE = 8
"""More in a call are not cheaper, and each takes some 60 MB while it is decoded."""

CLASSES_AT_ONCE = 4
"""Each class has a copy of the image's cells."""


class GraphRuntime:
    """A prepared model on an engine.

    The encoder is opened at once, so that an engine that cannot run it is found out; the decoder beside it, in a thread
    of its own, and the one for masks when the first mask is given.
    """

    def __init__(self, prepared: Prepared, engine: Engine) -> None:
        self.prepared = prepared
        self._engine = engine
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="palpate-open")
        self._tokens: Future[Answer] | None = None
        if (prepared.folder / "tokens.onnx").is_file() and not (prepared.from_box and prepared.from_box.scribble):
            self._tokens = self._opener.submit(engine.open, prepared.folder / "tokens.onnx")
        self._encoder = engine.open(prepared.folder / "encoder.onnx")

    @property
    def model(self) -> str:
        """The model's name in the catalogue, and its adapter's."""
        return self.prepared.name

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights' content."""
        return self.prepared.weights_hash

    @property
    def encoder_hash(self) -> str:
        """SHA-256 of the encoder's weights; another in a lower precision, whose embeddings are others."""
        return hash_in(self._engine.precision, self.prepared.encoder_hash)

    @property
    def frame(self) -> Frame:
        """How the model sees an image."""
        return self.prepared.frame

    @property
    def prompts(self) -> PromptSupport:
        """Which prompts the model takes."""
        return self.prepared.prompts

    def describe(self) -> str:
        """What computes, where and how precisely."""
        return self._engine.title

    def encode(self, canvas: Float32[np.ndarray, "image 3 row column"]) -> ImageEmbedding:
        """Embed canvases, one after the other."""
        found = [self._encoder({"canvas": canvas[i : i + 1]}) for i in range(len(canvas))]
        names = ("features", *(f"level{number}" for number in range(1, self.prepared.levels + 1)))
        features, *levels = (np.concatenate([one[name] for one in found]) for name in names)
        return ImageEmbedding(features, tuple(levels))

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """One mask an object, or the model's three candidates."""
        if self.prepared.from_box is not None:
            prompts = self.prepared.from_box.completed(prompts, embedding.levels[-1][:, 0] > 0)
        coordinates, labels = self._as_tokens(prompts)
        by_tokens = prompts.masks is None and self._tokens is not None
        answer = self._token_decoder() if by_tokens else self._decoder
        wanted = slice(1, 4) if multimask_output else slice(0, 1)
        logits: list[np.ndarray] = []
        ious: list[np.ndarray] = []
        objects: list[np.ndarray] = []
        order: list[np.ndarray] = []
        for image in np.unique(prompts.image_index):
            members = np.flatnonzero(prompts.image_index == image)
            shown = {"features": embedding.features[image : image + 1]}
            shown |= {f"level{n}": level[image : image + 1] for n, level in enumerate(embedding.levels, start=1)}
            for start in range(0, len(members), OBJECTS_AT_ONCE):
                some = members[start : start + OBJECTS_AT_ONCE]
                feeds = {"coordinates": coordinates[some], "labels": labels[some], **shown}
                if not by_tokens:
                    feeds |= self._masks(prompts, some)
                found = answer(feeds)
                logits.append(found["logits"][:, wanted])
                ious.append(found["predicted_iou"][:, wanted])
                if "object_logits" in found:
                    objects.append(found["object_logits"])
                order.append(some)
        if not order:
            side, count = self._mask_side, wanted.stop - wanted.start
            return MaskPrediction(np.zeros((0, count, side, side), np.float32), np.zeros((0, count), np.float32))
        back = np.argsort(np.concatenate(order))
        return MaskPrediction(
            np.concatenate(logits)[back],
            np.concatenate(ious)[back],
            np.concatenate(objects)[back] if objects else None,
        )

    def open_all(self) -> None:
        """Open what would be opened when it is first needed, so that all of it is compiled and kept."""
        if self._tokens is not None:
            self._tokens.result()
        _ = self._decoder

    def _as_tokens(self, prompts: PromptBatch) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates and labels as `palpate.models.graphs` tells them."""
        objects = len(prompts)
        has_points = prompts.points is not None and prompts.points.shape[1] > 0
        if prompts.boxes is None and not has_points and prompts.masks is None:
            raise PromptError("a batch without box, points or mask says nothing; give each object at least one")
        places: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        if prompts.points is not None and has_points:
            places.append(prompts.points)
            labels.append(np.asarray(prompts.point_labels))
        if prompts.boxes is not None:
            places.append(prompts.boxes.reshape(objects, 2, 2))
            labels.append(np.tile(np.array([2, 3], dtype=np.float32), (objects, 1)))
        if (has_points and prompts.boxes is None) or (places and self.prepared.no_point_after_box):
            places.append(np.zeros((objects, 1, 2)))
            labels.append(np.full((objects, 1), -1))
        if not places:
            return np.zeros((objects, 0, 2), np.float32), np.zeros((objects, 0), np.float32)
        return np.concatenate(places, axis=1).astype(np.float32), np.concatenate(labels, axis=1).astype(np.float32)

    def _masks(self, prompts: PromptBatch, some: np.ndarray) -> dict[str, np.ndarray]:
        if prompts.masks is not None:
            return {"mask": prompts.masks[some].astype(np.float32), "has_mask": np.ones(len(some), np.float32)}
        shape = (len(some), 1, self._mask_side, self._mask_side)
        return {"mask": np.zeros(shape, np.float32), "has_mask": np.zeros(len(some), np.float32)}

    @property
    def _mask_side(self) -> int:
        return self.frame.mask_size

    def _token_decoder(self) -> Answer:
        assert self._tokens is not None
        return self._tokens.result()

    @cached_property
    def _decoder(self) -> Callable[..., dict[str, np.ndarray]]:
        return self._engine.open(self.prepared.folder / "decoder.onnx")


class FindingGraphRuntime(GraphRuntime):
    """A prepared model with learned prompts. Where something is drawn beside them, torch answers (`beside`)."""

    def __init__(self, prepared: Prepared, engine: Engine, *, beside: Callable[[], FindingRuntime]) -> None:
        super().__init__(prepared, engine)
        self._load_beside = beside
        self._finder = engine.open(prepared.folder / "finder.onnx")

    @property
    def classes(self) -> tuple[LearnedClass, ...]:
        """What it looks for, in the order of the classes' numbers."""
        return self.prepared.classes

    def find(
        self, embedding: ImageEmbedding, classes: Int64[np.ndarray, " item"], drawn: PromptBatch | None = None
    ) -> MaskPrediction:
        """One mask an item, and whether its class is there at all."""
        if drawn is not None:
            return self._beside.find(embedding, classes, drawn)
        shown = {"features": embedding.features[:1]}
        shown |= {f"level{n}": level[:1] for n, level in enumerate(embedding.levels, start=1)}
        some = range(0, len(classes), CLASSES_AT_ONCE)
        found = [self._finder({"classes": classes[start : start + CLASSES_AT_ONCE], **shown}) for start in some]
        names = ("logits", "predicted_iou", "object_logits")
        return MaskPrediction(*(np.concatenate([one[name] for one in found]) for name in names))

    @cached_property
    def _beside(self) -> FindingRuntime:
        return self._load_beside()


__all__ = ["FindingGraphRuntime", "GraphRuntime"]
