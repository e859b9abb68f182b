"""Checkpoints that survive a power cut: written beside, flushed to the disk, renamed, and the last two are kept.

FOLDER/step-00001200-9f0c21d4e6a8b357.pt       the step, and the first 16 digits of the file's own SHA-256
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from palpate.errors import OutputError

KEPT = 2


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state after `step` steps; older checkpoints than the last two go.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    half = folder / f".step-{step:08d}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with half.open("wb") as stream:
                torch.save(dict(state), stream)
                stream.flush()
                os.fsync(stream.fileno())
            path = folder / f"step-{step:08d}-{_digest(half)}.pt"
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
        _flush(folder)
        # Also what a process that was killed left half written.
        same = [old for old in _checkpoints(folder) if old.name[:13] == path.name[:13] and old != path]
        for old in (*same, *folder.glob(".step-*.part")):
            old.unlink(missing_ok=True)
        for old in _checkpoints(folder)[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError.
        raise OutputError(f"cannot write a checkpoint into {folder} ({error}); make room and run it again") from error
    return path


def exist(folder: Path) -> bool:
    """Whether there are checkpoints, sound or not."""
    return bool(_checkpoints(folder))


def latest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is sound, or None; a damaged one is passed over for the one before."""
    for path in reversed(_checkpoints(folder)):
        with suppress(OSError):
            # torch itself reads flipped bits without a word.
            if _digest(path) == path.stem[-16:]:
                return torch.load(path, map_location="cpu", weights_only=True)
    return None


def clear(folder: Path) -> None:
    """Remove all checkpoints, and the folder if nothing else is in it."""
    for path in (*_checkpoints(folder), *folder.glob(".step-*.part")):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-" + "[0-9]" * 8 + "-" + "[0-9a-f]" * 16 + ".pt"))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _flush(folder: Path) -> None:
    """Let the renaming itself reach the disk (POSIX; elsewhere folders cannot be opened)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
