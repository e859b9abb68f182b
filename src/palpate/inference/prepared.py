"""Models made ready for runtimes without PyTorch: their graphs, and what a session has to know of them.

    PALPATE_HOME/prepared/KEY/      KEY is the SHA-256 of the files it was made of, and of palpate's networks
        model.json                  hashes, frame, prompts, what goes in and out
        encoder.onnx                a canvas in, an embedding out
        decoder.onnx                for masks, scribbles and all that a model does not take as tokens alone
        tokens.onnx                 for points and boxes, where the decoder is SAM's; cheaper
        finder.onnx                 for classes that were learned, where nothing is drawn
        compiled/                   what OpenVINO keeps, so that it starts sooner the next time

This module does not import torch: a session on a model that is prepared starts without it. `preparing` makes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from palpate.models import catalogue
from palpate.models.catalogue import ModelCard
from palpate.models.derived import FromBox
from palpate.models.frame import Frame
from palpate.models.promptable import LearnedClass, PromptSupport

KEPT = 8
"""How many prepared models are kept; those that were used longest ago go. Each takes some five times its weights."""

ABOUT = "model.json"


@dataclass(frozen=True)
class Prepared:
    """A model's graphs in a folder. `name` is what results call it; `levels` is how many its decoder reads."""

    folder: Path
    name: str
    weights_hash: str
    encoder_hash: str
    frame: Frame
    prompts: PromptSupport
    levels: int
    from_box: FromBox | None
    classes: tuple[LearnedClass, ...]
    """What its `finder` looks for, where it has learned prompts."""
    no_point_after_box: bool
    """Whether a box, too, is followed by a token that says "no point" (SAM 2)."""


def folder_of(chosen: ModelCard, *, weights: Path | None = None, added: Path | None = None) -> Path | None:
    """Where the model lies, or would lie, when it is prepared; None where a file that it is made of is missing.

    `weights` is its checkpoint where it is not the released one; `added` is an adapter, or learned prompts.
    """
    files: list[tuple[str, Path]] = []
    base = chosen
    if weights is not None:
        files.append(("weights", weights))
    else:
        while base.made_from is not None:
            files.append(("released", base.made_from.adapter))
            base = base.made_from.base
        files.append(("weights", catalogue.stored(base.name)))
    if added is not None:
        files.append(("added", added))
    digest = hashlib.sha256(f"{chosen.name} {_code()}".encode())
    try:
        for role, path in files:
            with path.open("rb") as opened:
                digest.update(f" {role} {hashlib.file_digest(opened, 'sha256').hexdigest()}".encode())
    except OSError:
        return None
    return home() / digest.hexdigest()[:40]


def home() -> Path:
    """The folder of all prepared models; it may not exist."""
    return catalogue.home() / "prepared"


def find(chosen: ModelCard, *, weights: Path | None = None, added: Path | None = None) -> Prepared | None:
    """The model, if it is prepared; it counts as used now."""
    folder = folder_of(chosen, weights=weights, added=added)
    return None if folder is None else opened(folder)


def opened(folder: Path) -> Prepared | None:
    """What is prepared in a folder; None where that is nothing, or cannot be read."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        prepared = _read(folder, about)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):  # someone else's folder, or a disk that is read-only
        os.utime(folder / ABOUT)
    return prepared


def _read(folder: Path, about: Mapping[str, Any]) -> Prepared:
    prompts: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in about["prompts"].items()
    }
    return Prepared(
        folder=folder,
        name=about["name"],
        weights_hash=about["weights_hash"],
        encoder_hash=about["encoder_hash"],
        frame=Frame(**about["frame"]),
        prompts=PromptSupport(**prompts),
        levels=about["levels"],
        from_box=None if about["from_box"] is None else FromBox(**about["from_box"]),
        classes=tuple(LearnedClass(**one) for one in about["classes"]),
        no_point_after_box=about["no_point_after_box"],
    )


def forget_old(keep: int = KEPT) -> None:
    """Delete prepared models beyond so many, those used longest ago first."""
    found: list[tuple[float, Path]] = []
    for path in home().glob(f"*/{ABOUT}"):
        with suppress(OSError):  # another process deletes as well
            found.append((path.stat().st_mtime, path.parent))
    for _, folder in sorted(found, reverse=True)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1)
def _code() -> str:
    """A digest of the code that networks are made by: graphs of another palpate are not taken."""
    rooms = (Path(catalogue.__file__).parent, Path(__file__).parent)
    files = [path for room in rooms for path in sorted(room.glob("*.py"))]
    wanted = [path for path in files if path.parent == rooms[0] or path.name == "preparing.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in wanted)).hexdigest()[:16]


__all__ = ["ABOUT", "Prepared", "find", "folder_of", "forget_old", "home", "opened"]
