"""What a session runs on: the model's verbs over NumPy arrays, whatever computes them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from palpate.models.frame import Frame
from palpate.models.promptable import ImageEmbedding, LearnedClass, MaskPrediction, PromptBatch, PromptSupport


@runtime_checkable
class Runtime(Protocol):
    """A model that is ready to run. Arrays go in and come out as NumPy, so sessions know no framework."""

    @property
    def model(self) -> str:
        """The model's name in the catalogue."""
        ...

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights' content, stated in every result."""
        ...

    @property
    def encoder_hash(self) -> str:
        """SHA-256 of the encoder's part of the weights: equal encoders give equal embeddings, whatever decodes them."""
        ...

    @property
    def frame(self) -> Frame:
        """How the model sees an image."""
        ...

    @property
    def prompts(self) -> PromptSupport:
        """Which prompts the model takes."""
        ...

    def describe(self) -> str:
        """What computes, where and how precisely, for people: `torch 2.13.0 on cpu, float32`."""
        ...

    def encode(self, canvas: Float32[np.ndarray, "image 3 row column"]) -> ImageEmbedding:
        """Embed canvases; slow."""
        ...

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """One mask an object, or the model's three candidates; fast."""
        ...


@runtime_checkable
class FindingRuntime(Runtime, Protocol):
    """A model that has learned where its classes are: it finds them without a prompt, or with one beside its own."""

    @property
    def classes(self) -> tuple[LearnedClass, ...]:
        """What it looks for, in the order of the classes' numbers."""
        ...

    def find(
        self, embedding: ImageEmbedding, classes: Int64[np.ndarray, " item"], drawn: PromptBatch | None = None
    ) -> MaskPrediction:
        """One mask an item, and whether its class is there at all (`object_logits`).

        `classes` are numbers from 0. Prompt i of `drawn`, where there is one, goes in beside what was learned of item
        i; all lie on the embedding's image 0.
        """
        ...
