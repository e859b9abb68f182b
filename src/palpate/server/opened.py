"""An image that is worked on: its grid, and a session along each axis that was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from palpate.images.image import Image
from palpate.images.slices import slicing_axis
from palpate.inference.session import Session
from palpate.server.grid import RasGrid


class OpenImage:
    """One image and its sessions. Those who use a session hold `lock`: a session answers one question at a time."""

    def __init__(self, image: Image, make_session: Callable[[], Session]) -> None:
        self.image = image
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
        for images of this kind. Beside that one, the last other rule of each axis is kept.

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
                for other in [one for one in self._sessions if one[0] == axis and None not in (one[1], window)]:
                    del self._sessions[other]
                self._sessions[axis, window] = session
            return session
