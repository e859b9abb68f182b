"""Checkpoints that survive a power cut: written beside, flushed to the disk, renamed, and the last two are kept."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from palpate.errors import OutputError

KEPT = 2


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state after `step` steps; older checkpoints than the last two go.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    path = folder / f"step-{step:08d}.pt"
    half = folder / f".{path.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with half.open("wb") as stream:
                torch.save(dict(state), stream)
                stream.flush()
                os.fsync(stream.fileno())
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
        _flush(folder)
        for old in _checkpoints(folder)[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError.
        raise OutputError(f"cannot write a checkpoint into {folder} ({error}); make room and run it again") from error
    return path


def latest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None; a damaged one is passed over for the one before."""
    for path in reversed(_checkpoints(folder)):
        with suppress(OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, BadZipFile):
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict):
                return state
    return None


def clear(folder: Path) -> None:
    """Remove all checkpoints, and the folder if nothing else is in it."""
    for path in (*_checkpoints(folder), *folder.glob(".step-*.part")):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-" + "[0-9]" * 8 + ".pt"))


def _flush(folder: Path) -> None:
    """Let the renaming itself reach the disk (POSIX; elsewhere folders cannot be opened)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
