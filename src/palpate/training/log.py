"""The log of a run: a table, and the same for TensorBoard. Rows are added as they come and never written again."""

from __future__ import annotations

import csv
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from palpate.errors import OutputError


class Log:
    """RUN/log.csv and RUN/tensorboard.

    Of a table that is there, the first `length` bytes are kept: what a crash undid is in neither. A cell is empty where
    a row has no such value; numbers have six digits.

    Raises:
        OutputError: the folder cannot be written, or the disk is full; so does every method.
    """

    def __init__(self, folder: Path, columns: Sequence[str], *, length: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # a second to import

        self._columns = ("step", *columns)
        self._path = path = folder / "log.csv"
        with self._told():
            path.touch()
            os.truncate(path, min(length, path.stat().st_size))
            self._table = path.open("a", encoding="utf-8", newline="")
            for old in (folder / "tensorboard").glob("events.out.tfevents.*"):
                old.unlink()
            self._board = SummaryWriter(str(folder / "tensorboard"))
            rows = rows_of(path)
            if not path.stat().st_size:
                csv.writer(self._table, lineterminator="\n").writerow(self._columns)
            for row in rows:
                self._draw(row)

    def write(self, values: Mapping[str, float], *, step: int) -> None:
        """Add a row."""
        row = {name: f"{value:.6g}" for name, value in values.items()}
        with self._told():
            csv.DictWriter(self._table, self._columns, restval="", lineterminator="\n").writerow({**row, "step": step})
            self._table.flush()  # so that it can be followed
            self._draw({**row, "step": str(step)})

    def saved(self) -> int:
        """Let all rows reach the disk; how many bytes the table has."""
        with self._told():
            self._table.flush()
            os.fsync(self._table.fileno())
            self._board.flush()
            return os.fstat(self._table.fileno()).st_size

    def close(self) -> None:
        """Write out what is left."""
        with self._told():
            try:
                self._table.close()
            finally:
                self._board.close()

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"cannot write the log {self._path}: {error.strerror or error}; make room, or choose another folder"
            ) from error

    def _draw(self, row: Mapping[str, str]) -> None:
        for name, text in row.items():
            if name != "step" and text:
                tag = f"val/{name}" if name.startswith("dice") else name
                # The rounded number: the two must hold the same, also after a run was taken up again.
                self._board.add_scalar(tag, float(text), int(row["step"]))


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a log.csv, by the names of its columns."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
