"""Ctrl-C at the right moment: between two changes of a run's state, never within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While the block lasts, Ctrl-C is only remembered, and `heed` raises it where nothing is half done.

    A second Ctrl-C is raised at once, wherever the program is; `at_once` says so, and what is in memory may then be
    half changed. Only the main thread is ever interrupted, so elsewhere there is nothing to hold back.
    """

    def __init__(self) -> None:
        self.came = False
        self.at_once = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        # Where Ctrl-C is ignored (a shell's background), it stays ignored.
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._before = signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def heed(self) -> None:
        """Raise the interrupt that came, if one did.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self.came:
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            self.at_once = True
            self._before(number, frame)
        self.came = True
