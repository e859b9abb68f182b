"""An image that is worked on: its grid, and a session along each axis that was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from palpate.errors import InputError
from palpate.images.image import Image
from palpate.images.modality import with_modality
from palpate.images.slices import slicing_axis
from palpate.inference.session import Session
from palpate.server.grid import RasGrid

SESSION_BYTES = 2**26
"""What a session may keep of its image's embeddings in memory; the others go to a temporary file. A case that is open
has up to four sessions: one for each axis, and one by another window or beside what was learned."""


class OpenImage:
    """One image and its sessions. Those who use a session hold `lock`: a session answers one question at a time.

    `make_session` gives a new session on the model, `learned` one on what was learned, by the SHA-256 of its file.
    """

    def __init__(
        self, image: Image, make_session: Callable[[], Session], *, learned: Callable[[str], Session] | None = None
    ) -> None:
        self.image = with_modality(image)  # as the model sees it, so that the page shows the same
        self.grid = RasGrid.of(image.geometry)
        self.lock = threading.RLock()
        self._make_session = make_session
        self._learned = learned
        self._sessions: dict[tuple[int | None, str | None, str | None], Session] = {}

    @property
    def axis(self) -> int | None:
        """The array axis of acquisition; None for a picture."""
        return slicing_axis(self.image) if self.image.is_volume else None

    def session(self, axis: int | None = None, window: str | None = None, learned: str | None = None) -> Session:
        """A session set to this image, a volume cut along an axis of its array (None: that of acquisition).

        `window` is a rule of `palpate.images.intensity` by its name, for the model to see the image by; None: the one
        for images of this kind. `learned` is the SHA-256 of a file of learned prompts; None: the model alone. Beside
        those without either, one session is kept, the last.

        Raises:
            SettingError: no such rule. ImageError: nothing to see in the image, or by this rule.
            InputError: what was learned is not there.
        """
        if self.image.is_volume and axis is None:
            axis = self.axis
        with self.lock:
            key = axis, window, learned
            session = self._sessions.get(key)
            if session is None:
                session = self._make_session() if learned is None else self._on(learned)
                session.set_image(self.image, intensity=window, axis=None if axis is None else "zyx"[axis])
                if key[1:] != (None, None):
                    self._sessions = {one: kept for one, kept in self._sessions.items() if one[1:] == (None, None)}
                self._sessions[key] = session
            return session

    def _on(self, learned: str) -> Session:
        if self._learned is None:
            raise InputError("nothing was learned here; draw without it")
        return self._learned(learned)
