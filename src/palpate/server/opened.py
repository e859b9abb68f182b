"""An image that is worked on: its grid, and a session along each axis that was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from palpate.images.image import Image
from palpate.images.modality import with_modality
from palpate.images.slices import slicing_axis
from palpate.inference.session import Session
from palpate.server.grid import RasGrid


class OpenImage:
    """One image and its sessions. Those who use a session hold `lock`: a session answers one question at a time."""

    def __init__(self, image: Image, make_session: Callable[[], Session]) -> None:
        self.image = with_modality(image)  # as the model sees it, so that the page shows the same
        self.grid = RasGrid.of(image.geometry)
        self.lock = threading.RLock()
        self._make_session = make_session
        self._sessions: dict[tuple[int | None, str | None], Session] = {}

    @property
    def axis(self) -> int | None:
        """The array axis of acquisition; None for a picture."""
        return slicing_axis(self.image) if self.image.is_volume else None

    def session(self, axis: int | None = None, window: str | None = None) -> Session:
        """A session set to this image, a volume cut along an axis of its array (None: that of acquisition).

        `window` is a rule of `palpate.images.intensity` by its name, for the model to see the image by; None: the one
        for images of this kind. Beside those, one session by another rule is kept, the last.

        Raises:
            SettingError: no such rule. ImageError: nothing to see in the image, or by this rule.
        """
        if self.image.is_volume and axis is None:
            axis = self.axis
        with self.lock:
            session = self._sessions.get((axis, window))
            if session is None:
                session = self._make_session()
                session.set_image(self.image, intensity=window, axis=None if axis is None else "zyx"[axis])
                for other in [one for one in self._sessions if window is not None and one[1] is not None]:
                    del self._sessions[other]
                self._sessions[axis, window] = session
            return session
