"""Work on a dask cluster: what cannot begin is said at once, and workers that end stop nobody else."""

import os
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from clusters import local_cluster
from palpate.errors import PalpateError, SettingError
from palpate.inference import cluster
from palpate.inference.cluster import Like, Lost, for_elsewhere, on_cluster, unlike_versions
from palpate.inference.processes import kept_by_thread

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def two() -> Generator[str]:
    """The address of a cluster of two workers."""
    with local_cluster(2) as address:
        yield address


def ask(address: str, work: Any, items: Iterable[Any], told: list[str] | None = None) -> dict[int, Any]:
    several = list(items)
    tell = (told if told is not None else []).append
    with on_cluster(address, work, several, names=[f"item {one}" for one in several], tell=tell) as answers:
        return dict(answers)


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    if number == 2:
        raise PalpateError("two is wrong everywhere")
    return number


def end_once(mark: Path | int) -> int:
    """The first worker that is given a path ends."""
    if isinstance(mark, int):
        return mark
    if not mark.exists():
        mark.touch()
        os._exit(1)
    time.sleep(1)  # whoever waits looks round meanwhile
    return -1


def end_always(number: int) -> int:
    if number == 0:
        os._exit(1)
    return number


def note_start(mark: Path) -> int:
    mark.touch()
    time.sleep(0.5)
    return 0


def break_palpate() -> None:
    sys.modules["palpate.inference.environment"] = None  # type: ignore[assignment]


def other_torch() -> None:
    from palpate.inference import environment

    versions = {**environment.environment(), "torch": "1.0.0"}
    environment.environment = lambda: versions  # type: ignore[assignment]


def test_answers_come_with_the_number_of_their_item(two: str) -> None:
    assert ask(two, square, range(7)) == {number: number * number for number in range(7)}
    assert ask(two, square, []) == {}


def test_what_is_wrong_everywhere_stops_everything(two: str) -> None:
    with pytest.raises(PalpateError, match="two is wrong everywhere"):
        ask(two, refuse, range(5))


def test_an_interrupt_cancels_what_is_queued(two: str, tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(30)]

    def interrupted() -> None:
        with on_cluster(two, note_start, marks, names=[mark.name for mark in marks]) as answers:
            next(answers)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    time.sleep(1.5)  # long enough for six more
    begun = len(list(tmp_path.iterdir()))
    assert begun < 12
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == begun
    assert ask(two, square, [3]) == {0: 9}


def test_a_worker_that_ends_is_told_and_its_item_done_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_LOOK_SECONDS", 0.05)
    told: list[str] = []
    with local_cluster(2) as address:
        assert ask(address, end_once, [tmp_path / "mark", 1, 2, 3], told) == {0: -1, 1: 1, 2: 2, 3: 3}
    assert len([words for words in told if words.endswith("is gone; what it was at is done by others")]) == 1


def test_an_item_that_ends_every_worker_is_named_and_its_neighbours_are_done() -> None:
    told: list[str] = []
    # One worker, that is started again: whatever waits beside item 0 is suspected like it.
    with local_cluster(1, allowed_failures=0) as address:
        answers = ask(address, end_always, range(4), told)
    assert isinstance(answers.pop(0), Lost)
    assert answers == {1: 1, 2: 2, 3: 3}
    assert any(words.startswith("item 0: its workers ended") for words in told)


def test_where_all_workers_are_gone_for_long_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 1.0)
    told: list[str] = []
    with local_cluster(1) as address:

        def last_one_goes() -> None:
            with on_cluster(address, time.sleep, [0, 30], names=["a", "b"], tell=told.append) as answers:
                next(answers)
                with distributed.Client(address, set_as_default=False) as client:
                    while workers := list(client.nthreads()):  # one that still holds the first answer stays
                        client.retire_workers(workers)
                next(answers)

        with pytest.raises(PalpateError, match=r"lost all its workers; what was done is kept"):
            last_one_goes()
    assert "no worker is left; waiting 1 s for one to come back" in told


def test_no_scheduler_is_an_error_not_a_wait() -> None:
    with pytest.raises(SettingError, match=r"no dask scheduler answers at 'tcp://127.0.0.1:9'"):
        ask("tcp://127.0.0.1:9", square, [1])
    with pytest.raises(SettingError, match="no dask scheduler answers"):
        ask("nonsense://", square, [1])


def test_no_workers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 1)
    with (
        local_cluster(0) as address,
        pytest.raises(SettingError, match=r"has no workers; start some, with `dask worker"),
    ):
        ask(address, square, [1])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_torch, r"the worker tcp://\S+ has torch 1.0.0 \(here [\d.+a-z]+\); install the same on all machines"),
        (break_palpate, r"the worker tcp://\S+ cannot run this palpate \(.*install the same on all machines"),
    ],
)
def test_a_worker_with_other_versions_is_named(spoil: Any, said: str) -> None:
    with local_cluster(1) as address:
        with distributed.Client(address, set_as_default=False) as client:
            client.run(spoil)
        with pytest.raises(SettingError, match=said):
            ask(address, square, [1])


def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingError, match=r"pip install 'palpate\[dask\]'"):
        ask("tcp://127.0.0.1:9", square, [1])


def test_what_differs_is_said() -> None:
    assert unlike_versions({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert unlike_versions({"a": "1"}, {"a": "2", "b": "3"}) == (
        "has a 1 (here 2), b missing (here 3); install the same on all machines"
    )
    here = Like("0" * 64, "torch on cpu", {"a": "1"})
    assert "computes by torch on cuda" in Like("0" * 64, "torch on cuda", {"a": "1"}).differences(here)
    assert "has other weights (111111111111, here 000000000000)" in (
        Like("1" * 64, "torch on cpu", {"a": "1"}).differences(here)
    )


def test_paths_for_a_process_that_starts_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert for_elsewhere(Path("a.safetensors")) == tmp_path / "a.safetensors"
    assert for_elsewhere("run/adapter.safetensors") == str(tmp_path / "run/adapter.safetensors")
    assert for_elsewhere("lite-medsam") == "lite-medsam"
    assert for_elsewhere(None) is None


def test_a_thread_keeps_the_last_thing_it_made() -> None:
    made: list[str] = []

    def make() -> str:
        made.append("x")
        return "thing"

    for key in ("a", "a", "b", "a"):
        assert kept_by_thread(("test", key), make) == "thing"
    assert len(made) == 3
