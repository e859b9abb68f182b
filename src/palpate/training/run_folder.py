"""The folder of a run: what lies where, what it was run with, and that nobody else is writing into it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from palpate.errors import OutputError
from palpate.images.formats import replacing
from palpate.training import checkpoint


class RunFolder:
    """RUN. Its settings are everything that decides the weights; a run is taken up only with the same ones.

    `result` is the file that comes of it, RUN/adapter.safetensors unless another is given.
    """

    def __init__(self, path: Path, *, result: Path | None = None) -> None:
        self.path = path
        self.result = result or path / "adapter.safetensors"
        self.checkpoints = path / "checkpoints"
        self.overlays = path / "overlays"
        self._lock: int | None = None

    def check(self, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Refuse a folder that holds something else. Settings that are not known yet may be left out.

        Raises:
            OutputError: it is a file, holds another run that may not be replaced, or what is no run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; give a folder for the run")
        before = self._settings()
        # A process that was killed may have left the half of a record, whose name begins with a dot.
        if before is None and self.path.is_dir() and any(item.name[0] != "." for item in self.path.iterdir()):
            raise OutputError(f"{self.path} is not empty and holds no run; choose an empty or a new folder")
        if before is None and not overwrite and self.result.exists():
            raise OutputError(f"{self.result} is there already; choose another name, or replace it with --overwrite")
        differing = self._differing(settings)
        if differing and not overwrite:
            what = ", ".join(map(_in_words, differing))
            there = (before or {}).get("recipe")
            changed = _what_differs(there, settings.get("recipe")) if "recipe" in differing else []
            how = f" ({'; '.join(changed[:5])})" if changed else ""
            raise OutputError(
                f"{self.path} holds a run that differs in {what}{how}; choose another folder, or replace it with "
                "--overwrite"
            )

    def finished(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The record of a finished run with these settings, or None."""
        record = self._record()
        if record.get("finished") and record.get("settings") == settings and self.result.is_file():
            return record
        return None

    def prepare(self, settings: Mapping[str, Any], *, command: str) -> None:
        """Make the folder, remove what another run left there, and write down what is run.

        Raises:
            OutputError: another process is at work there, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if self._differing(settings):
                checkpoint.clear(self.checkpoints)
                self.result.unlink(missing_ok=True)
                (self.path / "log.csv").unlink(missing_ok=True)
                for picture in self.overlays.glob("step-*.png"):
                    picture.unlink()
        except OSError as error:
            raise OutputError(f"cannot write in {self.path}: {error.strerror or error}") from error
        self.record({"command": command, "settings": settings, "finished": False})

    def record(self, content: Mapping[str, Any]) -> None:
        """Write run.json, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with replacing(self.path / "run.json", overwrite=True) as temporary:
            temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")

    def release(self) -> None:
        """Let other processes in again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _settings(self) -> Mapping[str, Any] | None:
        return self._record().get("settings")

    def _differing(self, settings: Mapping[str, Any]) -> list[str]:
        before = self._settings()
        return [] if before is None else [name for name in settings if before.get(name) != settings[name]]

    def _record(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _take_lock(self) -> None:
        """On the folder itself, so that no file is left; it ends with the process, however that ends."""
        try:
            import fcntl
        except ImportError:  # Windows: folders cannot be locked
            return
        with suppress(OSError):
            self._lock = os.open(self.path, os.O_RDONLY)
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise OutputError(
                f"another process is training in {self.path}; wait for it, or choose another folder"
            ) from None
        except OSError:  # a network share without locks
            self.release()


def _what_differs(before: Any, now: Any, path: str = "") -> list[str]:
    """The places in nested settings where two runs differ, with both values where they are short."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        return [
            line
            for name in names
            for line in _what_differs(before.get(name), now.get(name), f"{path}.{name}" if path else str(name))
        ]
    if before == now:
        return []
    short = max(len(str(before)), len(str(now))) <= 40
    return [f"{path} is {before} there and {now} here" if short else path]


def _in_words(setting: str) -> str:
    words = {"weights_hash": "the base model's weights", "data_sha256": "its data", "recipe": "its recipe"}
    return words.get(setting, f"the number of {setting}" if setting in ("processes", "threads") else f"its {setting}")
