"""The pixels of scenes, read again where they are needed again; those used lately stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock

import numpy as np
from jaxtyping import UInt8

from palpate.datasets.case import Case
from palpate.training.scenes import Scene, Sight

PICTURE_BYTES = 10**9
"""How much memory the pixels of scenes may take, where the encoder moves and needs them again and again."""


class Pictures:
    """The pixels of any scene that `sights` gives for its case."""

    def __init__(self, sights: Callable[[Case], Iterable[Sight]]) -> None:
        self._sights = sights
        self._held: dict[tuple[object, ...], np.ndarray] = {}
        self._looking = Lock()

    def __call__(self, scene: Scene) -> UInt8[np.ndarray, "row column *colour"]:
        """The scene's image. Any thread may ask."""
        with self._looking:
            return self._of(scene)

    def _of(self, scene: Scene) -> np.ndarray:
        if scene.identity not in self._held:
            for sight in self._sights(scene.case):
                # A copy: a slice would keep its whole volume in memory.
                self._held[sight.scene.identity] = sight.pixels.copy()
        found = self._held.pop(scene.identity)
        self._held[scene.identity] = found
        held = sum(picture.nbytes for picture in self._held.values())
        while held > PICTURE_BYTES and len(self._held) > 1:
            held -= self._held.pop(next(iter(self._held))).nbytes
        return found
