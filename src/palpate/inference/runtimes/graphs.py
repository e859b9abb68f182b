"""The runtime on prepared graphs: no PyTorch in it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from palpate.errors import PalpateError, PromptError
from palpate.inference.prepared import Prepared
from palpate.inference.runtimes import FindingRuntime
from palpate.inference.runtimes.engines import Answer, Engine, EngineName, hash_on, in_short
from palpate.models.frame import Frame
from palpate.models.promptable import ImageEmbedding, LearnedClass, MaskPrediction, PromptBatch, PromptSupport

OBJECTS_AT_ONCE = 8
"""More in a call are not cheaper (`benchmarks/roads.py`), and each takes some 30 MB while OpenVINO decodes it."""

CLASSES_AT_ONCE = 4
"""Each class has a copy of the image's cells."""


class GraphRuntime:
    """A prepared model on an engine; several threads may use it, and take turns.

    What is needed for every image is opened at once, so that an engine that cannot run it is found out; what only some
    prompts need, when the first of them comes.
    """

    def __init__(self, prepared: Prepared, engine: Engine) -> None:
        self.prepared = prepared
        self._engine = engine
        self._opened: dict[str, Answer] = {}
        self._opening = threading.Lock()
        # A scribble made of each box is a mask; then no prompt is tokens alone.
        always_masks = prepared.from_box is not None and prepared.from_box.scribble
        self._by_tokens = "tokens" in prepared.graphs and not always_masks
        for graph in dict.fromkeys(("encoder", self._usual)):
            self._opened[graph] = engine.open(prepared.graph(graph))

    @property
    def _usual(self) -> str:
        """What answers most prompts."""
        return "tokens" if self._by_tokens else "decoder"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.prepared, self._engine)

    def answer(self, graph: str) -> Answer:
        """What runs a graph, which is opened where it was not.

        Raises:
            PalpateError: it cannot be opened any more.
        """
        with self._opening:
            if graph not in self._opened:
                path = self.prepared.graph(graph)
                try:
                    self._opened[graph] = self._engine.open(path)
                except Exception as error:
                    raise PalpateError(
                        f"{self._engine.title} could not open {path} ({in_short(error)}); choose the runtime torch"
                    ) from error
            return self._opened[graph]

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
        """SHA-256 of the encoder's weights and of what computes; see `hash_on`."""
        return hash_on(self._engine.name, self._engine.precision, self.prepared.encoder_hash)

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

    @property
    def engine(self) -> EngineName:
        """What computes, by the name that chooses it."""
        return self._engine.name

    def encode(self, canvas: Float32[np.ndarray, "image 3 row column"]) -> ImageEmbedding:
        """Embed canvases, one after the other."""
        encode = self.answer("encoder")
        found = [encode({"canvas": canvas[i : i + 1]}) for i in range(len(canvas))]
        names = ("features", *(f"level{number}" for number in range(1, self.prepared.levels + 1)))
        features, *levels = (np.concatenate([one[name] for one in found]) for name in names)
        return ImageEmbedding(features, tuple(levels))

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """One mask an object, or the model's three candidates."""
        prompts = _checked(prompts, images=len(embedding), mask_size=self.frame.mask_size)
        if self.prepared.from_box is not None:
            prompts = self.prepared.from_box.completed(prompts, embedding.levels[-1][:, 0] > 0)
        coordinates, labels = self._as_tokens(prompts)
        by_tokens = prompts.masks is None and self._by_tokens
        answer = self.answer("tokens" if by_tokens else "decoder")
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
            side, count = self.frame.mask_size, wanted.stop - wanted.start
            return MaskPrediction(np.zeros((0, count, side, side), np.float32), np.zeros((0, count), np.float32))
        back = np.argsort(np.concatenate(order))
        return MaskPrediction(
            np.concatenate(logits)[back],
            np.concatenate(ious)[back],
            np.concatenate(objects)[back] if objects else None,
        )

    def open_all(self) -> None:
        """Open what would be opened when it is first needed, so that all of it is compiled and kept."""
        for graph in self.prepared.graphs:
            self.answer(graph)

    def _as_tokens(self, prompts: PromptBatch) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates and labels as `palpate.models.graphs` tells them."""
        objects = len(prompts)
        has_points = prompts.points is not None
        places: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        if prompts.points is not None:
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
        shape = (len(some), 1, self.frame.mask_size, self.frame.mask_size)
        return {"mask": np.zeros(shape, np.float32), "has_mask": np.zeros(len(some), np.float32)}


class FindingGraphRuntime(GraphRuntime):
    """A prepared model with learned prompts. Where something is drawn beside them, torch answers (`beside`)."""

    def __init__(self, prepared: Prepared, engine: Engine, beside: Callable[[], FindingRuntime]) -> None:
        self._load_beside = beside
        super().__init__(prepared, engine)

    @property
    def _usual(self) -> str:
        """What answers where nothing is drawn."""
        return "finder"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.prepared, self._engine, self._load_beside)

    def describe(self) -> str:
        """What computes, where and how precisely."""
        drawn = self.__dict__.get("_beside")
        return super().describe() + ("" if drawn is None else f"; with drawn prompts {drawn.describe()}")

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
        find = self.answer("finder")
        found = [find({"classes": classes[start : start + CLASSES_AT_ONCE], **shown}) for start in some]
        names = ("logits", "predicted_iou", "object_logits")
        return MaskPrediction(*(np.concatenate([one[name] for one in found]) for name in names))

    @cached_property
    def _beside(self) -> FindingRuntime:
        return self._load_beside()


def _checked(prompts: PromptBatch, *, images: int, mask_size: int) -> PromptBatch:
    """The batch in single precision, looked over as `palpate.models.prompt_tensors` does.

    Raises:
        PromptError: it holds no prompt at all, or its parts do not fit together.
    """

    def floats(values: object) -> np.ndarray | None:
        return None if values is None else np.asarray(values, dtype=np.float32)

    objects, image_index = len(prompts), np.asarray(prompts.image_index)
    boxes, points, labels, masks = map(floats, (prompts.boxes, prompts.points, prompts.point_labels, prompts.masks))
    if points is not None and points.ndim == 3 and points.shape[1] == 0:
        points, labels = None, None  # no points are no prompt: one lone "not a point" was never trained
    if boxes is None and points is None and masks is None:
        raise PromptError("a batch without box, points or mask says nothing; give each object at least one")
    if (points is None) != (labels is None):
        raise PromptError("points and point_labels go together; label 1 is on the object, 0 beside it")
    if objects and (image_index.min() < 0 or image_index.max() >= images):
        raise PromptError(f"image_index must lie in 0..{images - 1}, got {image_index.tolist()}")
    count = 0 if points is None or points.ndim < 2 else points.shape[1]
    expected: list[tuple[str, np.ndarray | None, tuple[int, ...]]] = [
        ("boxes", boxes, (objects, 4)),
        ("points", points, (objects, count, 2)),
        ("point_labels", labels, (objects, count)),
        ("masks", masks, (objects, 1, mask_size, mask_size)),
    ]
    for name, values, shape in expected:
        if values is not None and values.shape != shape:
            raise PromptError(f"{name} of {objects} objects must have shape {shape}, got {values.shape}")
        if values is not None and not np.isfinite(values).all():
            raise PromptError(f"{name} must be finite numbers")
    if labels is not None and not np.isin(labels, (0, 1)).all():
        raise PromptError(f"point_labels are 1 (on the object) or 0 (beside it), got {np.unique(labels).tolist()}")
    return PromptBatch(image_index, boxes, points, labels, masks)


__all__ = ["FindingGraphRuntime", "GraphRuntime"]
