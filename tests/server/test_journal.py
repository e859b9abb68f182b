"""What was done is on the disk before it is answered, whatever happens then."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from palpate.errors import OutputError
from palpate.server.journal import VERSION, Journal, Patch, bounds

SHAPE = (3, 4, 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with closing(Journal(path)) as journal:
        yield journal


def note(journal: Journal, number: int, *, case: str = "liver") -> int:
    """Keep an action that says its number, and puts it into one voxel."""
    before = np.zeros(SHAPE, dtype=np.uint8)
    after = before.copy()
    after[number % 3, number % 4, number % 5] = number % 254 + 1
    patch = Patch.between(before, after)
    return journal.add(case, "stroke", {"number": number}, draft=None, mask=None, patch=patch)


def numbers(journal: Journal, case: str = "liver") -> list[int]:
    return [action.body["number"] for action in journal.done(case, shape=SHAPE)]


# What is kept -----------------------------------------------------------------------------------------------------


def test_an_action_comes_back_as_it_was(path: Path):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1, 2, 3] = mask[0, 0, 4] = True
    patch = Patch((1, 0, 2), np.full((1, 2, 2), 7, dtype=np.uint8), np.arange(4, dtype=np.uint8).reshape(1, 2, 2))
    with closing(Journal(path)) as journal:
        number = journal.add("liver", "box", {"a": [1, 0.1]}, draft={"steps": [], "x": 1 / 3}, mask=mask, patch=patch)
    with closing(Journal(path)) as journal:
        (action,) = journal.done("liver", shape=SHAPE)
    assert (action.number, action.kind, action.body) == (number, "box", {"a": [1, 0.1]})
    assert action.draft == {"steps": [], "x": 1 / 3}
    np.testing.assert_array_equal(action.mask, mask)
    assert action.patch is not None
    assert action.patch.start == patch.start
    np.testing.assert_array_equal(action.patch.before, patch.before)
    np.testing.assert_array_equal(action.patch.after, patch.after)
    assert action.patch.window == (slice(1, 2), slice(0, 2), slice(2, 4))


def test_an_empty_mask_is_not_the_same_as_none(journal: Journal):
    journal.add("liver", "box", {}, draft={"steps": []}, mask=np.zeros(SHAPE, dtype=bool), patch=None)
    journal.add("liver", "discard", {}, draft=None, mask=None, patch=None)
    drawn, nothing = journal.done("liver", shape=SHAPE)
    assert drawn.mask is not None
    assert not drawn.mask.any()
    assert nothing.mask is nothing.draft is nothing.patch is None


@given(arrays(bool, array_shapes(min_dims=2, max_dims=3, max_side=9)))
def test_bounds_are_the_smallest_window(mask: np.ndarray):
    window = bounds(mask)
    if window is None:
        assert not mask.any()
        return
    rest = mask.copy()
    rest[window] = False
    assert not rest.any()
    for axis in range(mask.ndim):
        inside = np.moveaxis(mask[window], axis, 0)
        assert inside[0].any()
        assert inside[-1].any()


@given(st.data())
def test_a_patch_leads_from_one_map_to_the_other_and_back(data: st.DataObject):
    shape = data.draw(array_shapes(min_dims=2, max_dims=3, max_side=5))
    before, after = (data.draw(arrays(np.uint8, shape, elements=st.integers(0, 3))) for _ in range(2))
    patch = Patch.between(before, after)
    if patch is None:
        np.testing.assert_array_equal(before, after)
        return
    there = before.copy()
    there[patch.window] = patch.after
    np.testing.assert_array_equal(there, after)
    there[patch.window] = patch.before
    np.testing.assert_array_equal(there, before)


def test_settings_labels_and_cases_are_kept(path: Path):
    with closing(Journal(path)) as journal:
        assert journal.setting("policy", "keep") == "keep"
        journal.set_setting("policy", "overwrite")
        journal.set_label(2, "spleen", "#00ff00", locked=False)
        journal.set_label(1, "liver", "#ff0000", locked=False)
        journal.set_label(2, "spleen", "#00ff00", locked=True)
        journal.set_label(3, "wrong", "#0000ff", locked=False)
        journal.drop_label(3)
        journal.set_case("a", image="a.nii.gz")
        journal.set_case("a", done=True)
        journal.set_case("a", image="")
        journal.set_case("b", done=True)
        journal.set_case("b", done=False)
        note(journal, 0, case="b")
        for agreement in (0.5, 0.4, None):
            body = {} if agreement is None else {"agreement": agreement}
            journal.add("b", "accept", body, draft=None, mask=None, patch=None)
    with closing(Journal(path)) as journal:
        assert journal.setting("policy", "keep") == "overwrite"
        assert journal.labels() == [(1, "liver", "#ff0000", False), (2, "spleen", "#00ff00", True)]
        assert journal.cases() == {"a": (True, None, 0, ""), "b": (False, 0.4, 4, "accept")}
        rows = journal._base.execute("SELECT image FROM cases WHERE name = 'a'").fetchall()
        assert rows == [("a.nii.gz",)]


@pytest.mark.parametrize("value", [0, 255, -1])
def test_a_label_has_a_value_that_a_map_can_hold(journal: Journal, value: int):
    with pytest.raises(OutputError):
        journal.set_label(value, "liver", "#ff0000", locked=False)


def test_it_is_written_ahead_and_to_the_disk(journal: Journal):
    assert journal._base.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._base.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


# Undone and done again --------------------------------------------------------------------------------------------


def test_what_is_undone_can_be_redone_until_something_else_is_done(journal: Journal):
    first, second, third = (note(journal, number) for number in range(3))
    assert journal.kinds("liver") == ("stroke", None)
    for number in (third, second):
        journal.set_undone(number, undone=True)
    assert numbers(journal) == [0]
    assert journal.kinds("liver") == ("stroke", "stroke")
    last, following = journal.last_done("liver", shape=SHAPE), journal.next_undone("liver", shape=SHAPE)
    assert last is not None
    assert following is not None
    assert (last.number, following.number) == (first, second)
    journal.set_undone(second, undone=False)
    assert numbers(journal) == [0, 1]
    before = journal.last_done("liver", shape=SHAPE, before=second)
    assert before is not None
    assert before.number == first
    assert journal.last_done("liver", shape=SHAPE, before=first) is None


def test_what_is_dropped_stays_in_the_database(journal: Journal):
    dropped = [note(journal, number) for number in (0, 1)]
    note(journal, 7, case="spleen")
    for number in reversed(dropped):
        journal.set_undone(number, undone=True)
    note(journal, 2)
    assert numbers(journal) == [2]
    assert journal.next_undone("liver", shape=SHAPE) is None
    rows = journal._base.execute("SELECT number, body FROM actions WHERE state = 'dropped' ORDER BY number").fetchall()
    assert [(number, json.loads(body)["number"]) for number, body in rows] == [(dropped[0], 0), (dropped[1], 1)]
    assert numbers(journal, "spleen") == [7]


def test_labels_that_may_come_back_are_in_use(journal: Journal):
    def paint(value: int) -> int:
        after = np.zeros(SHAPE, dtype=np.uint8)
        after[0, 0, 0] = value
        patch = Patch.between(np.zeros(SHAPE, dtype=np.uint8), after)
        return journal.add("liver", "accept", {}, draft=None, mask=None, patch=patch)

    number = paint(5)
    assert journal.used_labels("liver") == {5}
    journal.set_undone(number, undone=True)
    assert journal.used_labels("liver") == {5}
    paint(6)
    assert journal.used_labels("liver") == {6}
    assert journal.used_labels("spleen") == set()


# When the power goes ----------------------------------------------------------------------------------------------

_STREAM = """
import sys
from pathlib import Path
sys.path[:0] = {folders!r}
from palpate.server.journal import Journal
from test_journal import note
journal = Journal(Path({path!r}))
for number in range(200):
    note(journal, number)
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 120])
def test_a_process_that_is_killed_loses_nothing_that_was_answered(path: Path, after: int):
    program = _STREAM.format(folders=[str(Path(__file__).parent)], path=str(path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told: list[int] = []
        for line in process.stdout:
            told.append(int(line))
            if len(told) == after:
                process.send_signal(signal.SIGKILL)
                break
        told += [int(line) for line in process.stdout]  # what it said before it heard
    assert process.returncode == -signal.SIGKILL
    with closing(Journal(path)) as journal:
        kept = numbers(journal)
        assert kept[: len(told)] == told == list(range(len(told)))
        assert len(kept) - len(told) in (0, 1)
        labels, wanted = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
        for action in journal.done("liver", shape=SHAPE):
            assert action.patch is not None
            labels[action.patch.window] = action.patch.after
        for number in kept:
            wanted[number % 3, number % 4, number % 5] = number % 254 + 1
        np.testing.assert_array_equal(labels, wanted)
        assert note(journal, 200) > 0  # and it goes on


def test_two_threads_may_add_to_two_cases(journal: Journal):
    def add(case: str) -> None:
        for number in range(50):
            note(journal, number, case=case)

    threads = [threading.Thread(target=add, args=(case,)) for case in ("liver", "spleen")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(journal, "liver") == numbers(journal, "spleen") == list(range(50))


# What cannot be used ----------------------------------------------------------------------------------------------

_WAY_OUT = r"--state FOLDER"


def test_a_text_is_no_journal_and_stays_as_it_is(path: Path):
    path.write_text("Dear diary, " * 500, encoding="utf-8")
    with pytest.raises(OutputError, match=_WAY_OUT):
        Journal(path)
    assert path.read_text(encoding="utf-8") == "Dear diary, " * 500


def test_a_damaged_file_is_told(path: Path):
    with closing(Journal(path)) as journal:
        for number in range(60):
            note(journal, number)
    content = bytearray(path.read_bytes())
    content[200:] = os.urandom(len(content) - 200)
    path.write_bytes(content)
    with pytest.raises(OutputError, match=_WAY_OUT):
        Journal(path)


@pytest.mark.parametrize("column", ["after", "before", "body", "place", "draft", "draft_mask"])
def test_a_damaged_action_is_told(journal: Journal, column: str):
    number = note(journal, 0)
    mask = np.ones(SHAPE, dtype=bool)
    journal.add("liver", "box", {}, draft={"steps": []}, mask=mask, patch=None)
    where = "number != ?" if column.startswith("draft") else "number = ?"
    journal._base.execute(f"UPDATE actions SET {column} = ? WHERE {where}", (b"[1", number))
    with pytest.raises(OutputError, match=r"damaged.*--state FOLDER"):
        list(journal.done("liver", shape=SHAPE))


def test_an_image_that_has_become_another_is_told(journal: Journal):
    note(journal, 59)  # the voxel (2, 3, 4)
    with pytest.raises(OutputError, match="put the image or a copy of the journal back"):
        list(journal.done("liver", shape=(2, 4, 5)))
    with pytest.raises(OutputError, match="another shape"):
        list(journal.done("liver", shape=(4, 5)))
    journal.add("spleen", "box", {}, draft={"steps": []}, mask=np.ones(SHAPE, dtype=bool), patch=None)
    with pytest.raises(OutputError, match="another shape"):
        list(journal.done("spleen", shape=(2, 4, 5)))


@pytest.mark.parametrize("version", ["1", "1000", "a new one"])
def test_a_journal_of_another_palpate_is_refused_and_stays_as_it_is(path: Path, version: str):
    assert version != str(VERSION)
    with closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL, more TEXT)")
        base.execute("INSERT INTO about VALUES ('version', ?, '')", (version,))
        base.commit()
    content = path.read_bytes()
    with pytest.raises(OutputError, match="update palpate"):
        Journal(path)
    assert path.read_bytes() == content


def test_a_folder_that_is_none_is_told(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "nowhere" / "journal.sqlite", tmp_path / "file" / "journal.sqlite", tmp_path):
        with pytest.raises(OutputError, match=_WAY_OUT):
            Journal(path)


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path):
    folder = tmp_path / "shelf"
    folder.mkdir()
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(OutputError, match=_WAY_OUT):
            Journal(folder / "journal.sqlite")
    finally:
        folder.chmod(0o755)


def test_a_journal_that_cannot_be_written_any_more_is_told(journal: Journal):
    note(journal, 0)
    journal._base.execute("PRAGMA query_only = 1")
    for write in (lambda: note(journal, 1), lambda: journal.set_undone(1, undone=True)):
        with pytest.raises(OutputError, match=r"writable, or keep it elsewhere with --state FOLDER"):
            write()
    journal._base.execute("PRAGMA query_only = 0")
    note(journal, 2)
    assert numbers(journal) == [0, 2]


def fill(journal: Journal) -> tuple[int, str]:
    """Add maps that cannot be packed until there is no more room: how many were answered, and what is told."""
    rng = np.random.default_rng(0)
    for number in range(1000):
        after = rng.integers(1, 255, (1, 64, 64), dtype=np.uint8)
        patch = Patch((0, 0, 0), np.zeros_like(after), after)
        try:
            journal.add("liver", "stroke", {"number": number}, draft=None, mask=None, patch=patch)
        except OutputError as error:
            return number, str(error)
    raise AssertionError("there was room without end")


def test_a_full_database_is_told_and_keeps_what_it_has(path: Path):
    with closing(Journal(path)) as journal:
        journal._base.execute("PRAGMA max_page_count = 60")
        done, told = fill(journal)
        assert done > 5
        assert "full" in told  # the reason, not what happened while it was taken back
        assert "see that the disk has room" in told
        assert [action.body["number"] for action in journal.done("liver", shape=(1, 64, 64))] == list(range(done))
        journal._base.execute("PRAGMA max_page_count = 600")
        note(journal, done)  # there is room again
    with closing(Journal(path)) as journal:
        assert len(list(journal.done("liver", shape=(3, 64, 64)))) == done + 1


def test_a_full_disk_is_told_and_keeps_what_it_has():
    # Not in pytest's folder: killed at a bad moment, the disk stays mounted, and pytest could never clear that up.
    disk = Path(tempfile.mkdtemp(prefix="palpate-disk-"))
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        with closing(Journal(disk / "journal.sqlite")) as journal:
            filling = disk / "other.bin"
            filling.write_bytes(bytes(200_000))
            done, told = fill(journal)
            assert done > 1
            assert "see that the disk has room" in told
            filling.unlink()
            note(journal, done)
        with closing(Journal(disk / "journal.sqlite")) as journal:
            assert len(list(journal.done("liver", shape=(3, 64, 64)))) == done + 1
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OutputError, match=_WAY_OUT):
            Journal(disk / "journal.sqlite")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()


def test_a_closed_journal_is_told(path: Path):
    journal = Journal(path)
    journal.close()
    with pytest.raises(OutputError):
        note(journal, 0)
    assert sorted(other.name for other in path.parent.iterdir()) == ["journal.sqlite"]
