"""Models made ready for runtimes without PyTorch: their graphs, and what a session has to know of them.

    PALPATE_HOME/prepared/KEY/      KEY is the SHA-256 of the files it was made of, and of what made it
        model.json                  hashes, frame, prompts, what goes in and out
        encoder.onnx                a canvas in, an embedding out
        decoder.onnx                for masks, scribbles and all that a model does not take as tokens alone
        tokens.onnx                 for points and boxes, where the decoder is SAM's; cheaper
        finder.onnx                 for classes that were learned, where nothing is drawn
        compiled/                   what OpenVINO keeps, so that it starts sooner the next time
        failed                      instead of all that: why it could not be made ready; counts for a day

This module does not import torch: a session on a model that is prepared starts without it. `preparing` makes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from palpate.errors import PalpateError
from palpate.models import catalogue
from palpate.models.catalogue import ModelCard
from palpate.models.derived import FromBox
from palpate.models.frame import Frame
from palpate.models.promptable import LearnedClass, PromptSupport

KEPT = 8
"""How many prepared models are kept; those that were used longest ago go. Each takes some three times its weights."""

ABOUT = "model.json"
HALF = ".half-"
"""How the names of folders begin that are being written."""
FAILED = "failed"
WEIGHTS = ".data"
"""What the name of a graph's file is continued by for its weights, where they lie beside it: one file holds 2 GB."""
_A_DAY = 24 * 3600


class Damaged(PalpateError):
    """A prepared graph is no longer what was compared with PyTorch."""


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
    graphs: Mapping[str, tuple[int, str]]
    """Size in bytes and SHA-256 of each graph's file."""
    classes: tuple[LearnedClass, ...]
    """What its `finder` looks for, where it has learned prompts."""
    no_point_after_box: bool
    """Whether a box, too, is followed by a token that says "no point" (SAM 2)."""

    def graph(self, name: str) -> Path:
        """The file of a graph, which is what was compared with PyTorch.

        Raises:
            KeyError: the model has no such graph.
            Damaged: it is gone, or was changed; then what is prepared counts no longer, and is made anew the next time.
            PalpateError: it cannot be read for another reason.
        """
        expected, path = self.graphs[name][1], self.folder / f"{name}.onnx"
        try:
            found = measured(path)[1]
        except FileNotFoundError as error:
            self._give_up()
            raise Damaged(f"{path} is gone ({error.strerror or error}); run it again, and it is made anew") from error
        except OSError as error:
            raise PalpateError(f"cannot read {path}: {error.strerror or error}") from error
        if found != expected:
            raise Damaged(
                f"{path} has changed since it was written; "
                + ("run it again, and it is made anew" if self._give_up() else "delete its folder, and it is made anew")
            )
        return path

    def _give_up(self) -> bool:
        """Nobody is to take the folder for a whole any more; false where that cannot be said there."""
        with suppress(OSError):
            (self.folder / ABOUT).unlink(missing_ok=True)
        return not (self.folder / ABOUT).exists()


def folder_of(chosen: ModelCard, title: str, *, weights: Path | None = None, added: Path | None = None) -> Path | None:
    """Where the model lies, or would lie, when it is prepared; None where a file that it is made of is missing.

    `title` is that of the engine which it is prepared for: another one, or another version, has to be compared anew.

    `weights` is its checkpoint where it is not the released one; `added` is an adapter, or learned prompts.
    """
    files: list[tuple[str, Path]] = []
    base = chosen
    if weights is not None:
        files.append(("own weights", weights))
    else:
        while base.made_from is not None:
            files.append(("released", base.made_from.adapter))
            base = base.made_from.base
        files.append(("weights", catalogue.stored(base.name)))
    if added is not None:
        files.append(("added", added))
    digest = hashlib.sha256(f"{chosen.name} {title} {_code()}".encode())
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


def find(chosen: ModelCard, title: str, *, weights: Path | None = None, added: Path | None = None) -> Prepared | None:
    """The model, if it is prepared for the engine of that title; it counts as used now."""
    folder = folder_of(chosen, title, weights=weights, added=added)
    return None if folder is None else opened(folder)


def failed(chosen: ModelCard, title: str, *, weights: Path | None = None, added: Path | None = None) -> str | None:
    """Why the model could not be made ready for that engine in the last day; None if it was not tried, or went well.

    Whoever did not ask for the engine need not wait for another try each time. After a day it is tried again, for the
    reason may have been a lack of memory.
    """
    folder = folder_of(chosen, title, weights=weights, added=added)
    if folder is None:
        return None
    try:
        note = folder / FAILED
        return note.read_text(encoding="utf-8") if time.time() - note.stat().st_mtime < _A_DAY else None
    except (OSError, ValueError):
        return None


def remember_failure(folder: Path, why: str) -> None:
    """Note that what belongs in a folder cannot be made, and why."""
    with suppress(OSError):  # then it is tried again each time
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILED).write_text(why, encoding="utf-8")


def opened(folder: Path) -> Prepared | None:
    """What is prepared in a folder; None where that is nothing, or cannot be read."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        prepared = _read(folder, about)
        sizes = {name: _size(folder / f"{name}.onnx") for name in prepared.graphs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, PalpateError):
        return None
    if sizes != {name: size for name, (size, _) in prepared.graphs.items()}:
        return None
    with suppress(OSError):  # someone else's folder, or a disk that is read-only
        os.utime(folder / ABOUT)
    return prepared


def measured(path: Path) -> tuple[int, str]:
    """The size of a graph's file in bytes, with that of its weights where they are in one beside it, and the SHA-256.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    for each in _files(path):
        with each.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return _size(path), digest.hexdigest()


def _files(path: Path) -> tuple[Path, ...]:
    weights = path.with_name(path.name + WEIGHTS)
    return (path, weights) if weights.exists() else (path,)


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in _files(path))


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
        graphs={name: (int(size), str(digest)) for name, (size, digest) in about["graphs"].items()},
        classes=tuple(LearnedClass(**one) for one in about["classes"]),
        no_point_after_box=about["no_point_after_box"],
    )


def forget_old(keep: int = KEPT) -> None:
    """Delete prepared models beyond so many, those used longest ago first, and what was never finished."""
    found: list[tuple[float, Path]] = []
    for path in home().glob(f"*/{ABOUT}"):
        with suppress(OSError):  # another process deletes as well
            if not path.parent.name.startswith(HALF):
                found.append((path.stat().st_mtime, path.parent))
    gone = [folder for _, folder in sorted(found, reverse=True)[keep:]]
    for folder in home().glob("*"):
        with suppress(OSError):
            # Never finished, failed, or given up as damaged.
            if folder.name.startswith(HALF) or not (folder / ABOUT).exists():
                told = folder / FAILED
                if time.time() - (told if told.exists() else folder).stat().st_mtime > _A_DAY:
                    gone.append(folder)
    for folder in gone:
        with suppress(OSError):
            (folder / ABOUT).unlink(missing_ok=True)  # first, so that nobody takes what is left for a whole
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1)
def _code() -> str:
    """A digest of what graphs are made by: those of another palpate, torch or transformers are not taken."""
    models, here = Path(catalogue.__file__).parent, Path(__file__).parent
    files = [*sorted(models.glob("*.py")), *(here / f"{name}.py" for name in ("export", "prepared", "preparing"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    digest.update(" ".join(version(package) for package in ("torch", "transformers")).encode())
    return digest.hexdigest()[:16]


__all__ = [
    "ABOUT",
    "HALF",
    "WEIGHTS",
    "Damaged",
    "Prepared",
    "failed",
    "find",
    "folder_of",
    "forget_old",
    "home",
    "measured",
    "opened",
    "remember_failure",
]
