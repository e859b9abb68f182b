"""What was done to each case, so that nothing is lost when the power goes.

A SQLite database in write-ahead mode: an action is in it before its answer goes out, so at most the one that was
under way is missing. Each row holds what came of the action, not only what was asked: the draft as it was then, and the
pixels of the label map that changed, before and after. So undoing, redoing and opening a case again need no model, and
give the very same masks.

The history of a case is a line: what is undone is kept until something else is done, and even then it stays in the
database, as `dropped`.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, UInt8

from palpate.errors import OutputError

VERSION = 2
"""Of the database's tables. A newer one is refused, rather than misread."""

WHOLE = ("guess", "import")
"""The kinds of action that put a label map in place of the whole one that was there."""

_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS labels (
  value INTEGER PRIMARY KEY CHECK (value BETWEEN 1 AND 254),
  name TEXT NOT NULL, colour TEXT NOT NULL, locked INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS cases (
  name TEXT PRIMARY KEY, image TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS actions (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('done', 'undone', 'dropped')), kind TEXT NOT NULL,
  agreement REAL, used TEXT NOT NULL, body TEXT NOT NULL, draft TEXT, draft_mask BLOB, place TEXT, before BLOB,
  after BLOB, made_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS actions_of_a_case ON actions (name, state, number, kind, agreement);
"""


@dataclass(frozen=True, eq=False)
class Patch:
    """A part of a label map, before and after; `start` is its first index in array order, as (z, y, x) or (y, x)."""

    start: tuple[int, ...]
    before: UInt8[np.ndarray, "..."]
    after: UInt8[np.ndarray, "..."]

    @property
    def window(self) -> tuple[slice, ...]:
        """Where it lies in the map."""
        return tuple(slice(low, low + extent) for low, extent in zip(self.start, self.after.shape, strict=True))

    @classmethod
    def between(cls, before: np.ndarray, after: np.ndarray) -> Patch | None:
        """What differs, cut to its bounding box; None if nothing does."""
        window = bounds(before != after)
        if window is None:
            return None
        return cls(tuple(part.start for part in window), before[window].copy(), after[window].copy())


@dataclass(frozen=True, eq=False)
class Action:
    """One thing that was done: its kind, what was asked (`body`), the draft afterwards, and the pixels that changed.

    `draft` is JSON and `mask` the draft's mask; both None where nothing was being drawn afterwards.
    """

    number: int
    kind: str
    body: Mapping[str, Any]
    draft: Mapping[str, Any] | None
    mask: Bool[np.ndarray, "..."] | None
    patch: Patch | None
    made_at: float


class Journal:
    """The database of one folder. Its verbs may be called from any thread.

    Raises:
        OutputError: the file cannot be opened or written, is damaged, or was made by a newer palpate.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._closed = False
        with self._telling():
            self._base = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        try:
            self._make_ready()
        except BaseException:
            self._base.close()
            raise

    def _make_ready(self) -> None:
        with self._telling():
            # Before anything is written: a newer journal stays as it is.
            if self._base.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone():
                version = self.setting("version", str(VERSION))
                if version != str(VERSION):
                    raise OutputError(
                        f"{self.path} was made by another palpate (its journal is of version {version}, this one's of "
                        f"{VERSION}); update palpate to open it, or keep annotations elsewhere with --state FOLDER"
                    )
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")  # a power cut takes nothing that was answered
            self._base.execute("PRAGMA foreign_keys=ON")
            self._base.executescript(_TABLES)
            self._base.execute("INSERT OR IGNORE INTO about VALUES ('version', ?)", (str(VERSION),))

    def close(self) -> None:
        """Write everything into the one file, and let it go."""
        with self._lock, self._telling():
            if not self._closed:
                self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._base.close()
            self._closed = True

    # What is known of the folder.

    def setting(self, key: str, default: str) -> str:
        """A setting of the folder."""
        with self._lock, self._telling():
            row = self._base.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return default if row is None else str(row[0])

    def set_setting(self, key: str, value: str) -> None:
        """Keep a setting of the folder."""
        self._write(
            "INSERT INTO about VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value
        )

    def labels(self) -> list[tuple[int, str, str, bool]]:
        """Value, name, colour and lock of each label, by value."""
        with self._lock, self._telling():
            rows = self._base.execute("SELECT value, name, colour, locked FROM labels ORDER BY value").fetchall()
        return [(int(value), str(name), str(colour), bool(locked)) for value, name, colour, locked in rows]

    def set_label(self, value: int, name: str, colour: str, *, locked: bool) -> None:
        """Make a label, or change it."""
        self._write(
            "INSERT INTO labels VALUES (?, ?, ?, ?) ON CONFLICT (value) DO UPDATE SET "
            "name = excluded.name, colour = excluded.colour, locked = excluded.locked",
            value,
            name,
            colour,
            int(locked),
        )

    def drop_label(self, value: int) -> None:
        """Forget a label."""
        self._write("DELETE FROM labels WHERE value = ?", value)

    def set_case(self, case: str, *, image: str = "", done: bool | None = None) -> None:
        """Note what is known of a case; what is None stays."""
        self._write(
            "INSERT INTO cases (name, image, done) VALUES (?, ?, coalesce(?, 0)) "
            "ON CONFLICT (name) DO UPDATE SET image = CASE excluded.image WHEN '' THEN image ELSE excluded.image END, "
            "done = coalesce(?, done)",
            case,
            image,
            done,
            done,
        )

    def cases(self, only: str | None = None) -> dict[str, tuple[bool, float | None, int, str]]:
        """Of each case that is known, or of one: whether it is done, its agreement, how many actions, the last kind.

        The agreement is the lowest of the objects that were accepted since the labels were last put as a whole; where
        none was, it is that of the labels as they were put.
        """
        with self._lock, self._telling():
            rows = self._base.execute(
                "WITH known AS (SELECT a.name, count(*) AS actions, max(a.number) AS last, "
                "max(CASE WHEN a.kind = 'accept' THEN a.number END) AS accepted, "
                f"coalesce(max(CASE WHEN a.kind IN {WHOLE} THEN a.number END), 0) AS put "
                "FROM cases c JOIN actions a ON a.name = c.name AND a.state = 'done' "
                f"{'' if only is None else 'WHERE c.name = ? '}GROUP BY a.name) "
                "SELECT c.name, c.done, CASE WHEN k.accepted > k.put THEN (SELECT min(agreement) FROM actions "
                "WHERE name = c.name AND state = 'done' AND number > k.put AND kind = 'accept') "
                "ELSE (SELECT agreement FROM actions WHERE number = k.put) END, "
                "coalesce(k.actions, 0), coalesce((SELECT kind FROM actions WHERE number = k.last), '') "
                f"FROM cases c LEFT JOIN known k ON k.name = c.name {'' if only is None else 'WHERE c.name = ?'}",
                () if only is None else (only, only),
            ).fetchall()
        return {
            str(name): (bool(done), agreement, int(count), str(kind)) for name, done, agreement, count, kind in rows
        }

    def image_of(self, case: str) -> str | None:
        """The hash of the image that a case was begun on; None where nothing was done to it."""
        with self._lock, self._telling():
            row = self._base.execute(
                "SELECT image FROM cases WHERE name = ? "
                "AND EXISTS (SELECT 1 FROM actions WHERE actions.name = cases.name)",
                (case,),
            ).fetchone()
        return str(row[0]) if row is not None and row[0] else None

    def used_labels(self, case: str) -> set[int]:
        """The labels that a case has, or may have again when something is redone."""
        with self._lock, self._telling():
            rows = self._base.execute(
                "SELECT used FROM actions WHERE name = ? AND state != 'dropped' AND used != ''", (case,)
            ).fetchall()
        return {int(value) for (used,) in rows for value in used.split(",")}

    # What was done to a case.

    def add(
        self,
        case: str,
        kind: str,
        body: Mapping[str, Any],
        *,
        draft: Mapping[str, Any] | None,
        mask: Bool[np.ndarray, "..."] | None,
        patch: Patch | None,
    ) -> int:
        """Keep an action; what was undone before is dropped. The number of the action.

        `body` may have the `agreement` of what came of it.
        """
        drawn, packed = (None, None) if mask is None else _packed(mask)
        content = None if draft is None else json.dumps({**draft, "place": drawn})
        place = None if patch is None else json.dumps([list(patch.start), list(patch.after.shape)])
        blobs = (None, None) if patch is None else (_squeezed(patch.before), _squeezed(patch.after))
        used = "" if patch is None else ",".join(str(value) for value in np.unique(patch.after).tolist() if value)
        with self._lock, self._telling():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                self._base.execute("UPDATE actions SET state = 'dropped' WHERE name = ? AND state = 'undone'", (case,))
                number = self._base.execute(
                    "INSERT INTO actions "
                    "(name, state, kind, agreement, body, draft, draft_mask, place, before, after, used, made_at) "
                    "VALUES (?, 'done', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(case, kind, body.get("agreement"), json.dumps(body)),
                        *(content, packed, place, *blobs, used, time()),
                    ),
                ).lastrowid
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:  # a full disk has taken it back already
                    self._base.execute("ROLLBACK")
                raise
        assert number is not None
        return number

    def kinds(self, case: str) -> tuple[str | None, str | None]:
        """The kinds of the action that would be undone, and of the one that would be redone."""
        undo, redo = self.next_ones(case)
        return undo and undo[0], redo and redo[0]

    def next_ones(self, case: str) -> tuple[tuple[str, Mapping[str, Any]] | None, tuple[str, Mapping[str, Any]] | None]:
        """Kind and body of the action that would be undone, and of the one that would be redone."""
        with self._lock, self._telling():
            undo, redo = (
                self._base.execute(
                    f"SELECT kind, body FROM actions WHERE name = ? AND state = ? ORDER BY number {order} LIMIT 1",
                    (case, state),
                ).fetchone()
                for state, order in (("done", "DESC"), ("undone", "ASC"))
            )
        return undo and (str(undo[0]), _body(undo[1])), redo and (str(redo[0]), _body(redo[1]))

    def last_done(self, case: str, *, shape: tuple[int, ...], before: int | None = None) -> Action | None:
        """The last action that is not undone, or the last of those before the number of one."""
        earlier = "" if before is None else f"AND number < {int(before)} "
        return self._one(f"state = 'done' {earlier}ORDER BY number DESC", case, shape)

    def next_undone(self, case: str, *, shape: tuple[int, ...]) -> Action | None:
        """The action that would be redone."""
        return self._one("state = 'undone' ORDER BY number", case, shape)

    def set_undone(self, number: int, *, undone: bool) -> None:
        """Mark an action as undone, or as done again."""
        self._write("UPDATE actions SET state = ? WHERE number = ?", "undone" if undone else "done", number)

    def done(self, case: str, *, shape: tuple[int, ...]) -> Generator[Action]:
        """All actions that are not undone, first to last."""
        number = 0
        while action := self._one(f"state = 'done' AND number > {int(number)} ORDER BY number", case, shape):
            number = action.number
            yield action

    def _one(self, condition: str, case: str, shape: tuple[int, ...]) -> Action | None:
        with self._lock, self._telling():
            row = self._base.execute(
                "SELECT number, kind, body, draft, draft_mask, place, before, after, made_at FROM actions "
                f"WHERE name = ? AND {condition} LIMIT 1",
                (case,),
            ).fetchone()
        try:
            return None if row is None else _action(row, shape)
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"an action on {case} in the journal {self.path} is damaged, or the image has another shape than then "
                f"({error}); put the image or a copy of the journal back, or begin anew with --state FOLDER"
            ) from error

    def _write(self, command: str, *values: object) -> None:
        with self._lock, self._telling():
            self._base.execute(command, values)

    @contextmanager
    def _telling(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(
                f"the journal {self.path} cannot be used ({error}); see that the disk has room and the file is "
                "writable, or keep it elsewhere with --state FOLDER"
            ) from error


def bounds(mask: Bool[np.ndarray, "..."]) -> tuple[slice, ...] | None:
    """The smallest window that holds everything in a mask; None if it is empty."""
    window: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not len(found):
            return None
        window.append(slice(int(found[0]), int(found[-1]) + 1))
        # What is left to look at gets smaller with each axis: only the first looks at all of a volume.
        mask = mask[(*(slice(None) for _ in range(axis)), window[-1])]
    return tuple(window)


def _body(content: str) -> Mapping[str, Any]:
    """What was asked, to be told; one that is damaged says so when it is undone or redone (`Journal._one`)."""
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}


def _action(row: tuple[Any, ...], shape: tuple[int, ...]) -> Action:
    number, kind, body, content, packed, place, before, after, made_at = row
    draft: dict[str, Any] | None = None if content is None else json.loads(content)
    mask = None
    if draft is not None:
        mask = _unpacked(draft.pop("place"), packed, shape)
    patch = None
    if place is not None:
        start, extent = json.loads(place)
        if len(start) != len(shape) or any(low + n > end for low, n, end in zip(start, extent, shape, strict=True)):
            raise ValueError("what it changed lies outside the image")
        patch = Patch(tuple(start), _spread(before, extent), _spread(after, extent))
    return Action(int(number), str(kind), json.loads(body), draft, mask, patch, float(made_at))


def _packed(mask: Bool[np.ndarray, "..."]) -> tuple[list[list[int]] | None, bytes]:
    window = bounds(mask)
    if window is None:
        return None, b""
    return [[part.start, part.stop] for part in window], zlib.compress(np.packbits(mask[window]).tobytes(), 1)


def _unpacked(place: list[list[int]] | None, packed: bytes, shape: tuple[int, ...]) -> Bool[np.ndarray, "..."]:
    mask = np.zeros(shape, dtype=bool)
    if place is not None:
        window = tuple(slice(low, high) for low, high in place)
        if len(window) != len(shape) or any(part.stop > end for part, end in zip(window, shape, strict=True)):
            raise ValueError("what was drawn lies outside the image")
        part = mask[window]
        bits = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
        part[...] = np.unpackbits(bits, count=part.size).astype(bool).reshape(part.shape)
    return mask


def _squeezed(values: UInt8[np.ndarray, "..."]) -> bytes:
    return zlib.compress(np.ascontiguousarray(values).tobytes(), 1)


def _spread(blob: bytes, extent: list[int]) -> UInt8[np.ndarray, "..."]:
    return np.frombuffer(zlib.decompress(blob), dtype=np.uint8).reshape(extent)
