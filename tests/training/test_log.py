"""What a run writes while it runs, and that a full disk is one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from palpate.errors import OutputError
from palpate.training.log import Log, rows_of
from palpate.training.overlays import draw_samples

FULL_DISK = """
import resource, sys
from pathlib import Path
from palpate.errors import OutputError
from palpate.training.log import Log

folder = Path(sys.argv[1])
log = Log(folder, ["loss"])
log.write({"loss": 0.25}, step=1)
# No file may grow beyond its first byte; Python ignores the signal that would come with it.
resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
attempts = {
    "write": lambda: log.write({"loss": 0.5}, step=2),
    "saved": log.saved,
    "close": log.close,
    "begin": lambda: Log(folder / "new", ["loss"]).close(),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except OutputError as error:
        print(name, error)
"""


def test_rows_come_back_and_what_a_crash_undid_does_not(tmp_path: Path) -> None:
    log = Log(tmp_path, ["dice", "loss"])
    log.write({"loss": 0.25}, step=1)
    length = log.saved()
    log.write({"dice": 1 / 3, "loss": 0.5}, step=2)
    log.close()
    assert rows_of(tmp_path / "log.csv")[1] == {"step": "2", "dice": "0.333333", "loss": "0.5"}
    Log(tmp_path, ["dice", "loss"], length=length).close()
    assert rows_of(tmp_path / "log.csv") == [{"step": "1", "dice": "", "loss": "0.25"}]


def test_a_full_disk_is_told_by_every_method(tmp_path: Path) -> None:
    """In a process of its own: TensorBoard writes from a thread, whose complaints pytest would hear."""
    (tmp_path / "new").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", FULL_DISK, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    assert [line.split()[0] for line in said] == ["write", "saved", "close", "begin"]
    assert all(
        "cannot write the log" in line and line.endswith("; make room, or choose another folder") for line in said
    )
    assert [row["step"] for row in rows_of(tmp_path / "log.csv")] == ["1"]


def test_a_folder_for_samples_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "overlays").touch()
    with pytest.raises(OutputError, match="overlays"):
        draw_samples([], tmp_path / "overlays" / "step-000001.png")
