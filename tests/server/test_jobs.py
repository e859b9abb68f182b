"""Work in the background: how far it is, how it ends, and that there is never too much of it."""

import logging
import threading
import time
from collections.abc import Generator

import pytest

from palpate.errors import SettingError
from palpate.server.jobs import Busy, Cancelled, Job, Jobs, Report, UnknownJob, Work


@pytest.fixture
def jobs() -> Generator[Jobs]:
    made = Jobs(max_running=2, kept=3)
    yield made
    assert made.close(seconds=20)


class Slow:
    """Work in a hundred parts that goes on when it is let, and notes what became of it."""

    def __init__(self) -> None:
        self.may_go_on, self.told, self.ended = threading.Semaphore(0), threading.Semaphore(0), ""

    def __call__(self, report: Report) -> str:
        try:
            for part in range(100):
                report.progress(part, 100, f"part {part}")
                self.told.release()
                while not self.may_go_on.acquire(timeout=0.01):
                    report.check()
        except Cancelled:
            self.ended = "cancelled"
            raise
        self.ended = "well"
        return "all parts"

    def go(self, parts: int) -> None:
        """Let it take so many parts, and wait until it has told of the next."""
        for _ in range(parts):
            self.may_go_on.release()
            assert self.told.acquire(timeout=20)


def begun(jobs: Jobs, kind: str = "propagate", **options: str) -> tuple[Slow, Job]:
    work = Slow()
    job = jobs.start(kind, work, **options)
    assert work.told.acquire(timeout=20)
    return work, job


class TestAJob:
    def test_tells_how_far_it_is_and_what_came_of_it(self, jobs: Jobs) -> None:
        work, job = begun(jobs, "propagate", case="abdomen")
        assert (job.kind, job.case, job.status) == ("propagate", "abdomen", "running")
        work.go(30)
        seen = jobs.get(job.id)
        assert (seen.done, seen.total, seen.status, seen.detail) == (30, 100, "running", "part 30")
        assert seen.seconds_left is not None
        for _ in range(70):
            work.may_go_on.release()
        ended = jobs.wait(job.id, 20)
        assert (ended.status, ended.detail, ended.seconds_left) == ("finished", "all parts", None)

    def test_ends_at_its_next_word_when_it_is_cancelled(self, jobs: Jobs) -> None:
        work, job = begun(jobs)
        work.go(2)
        assert jobs.cancel(job.id).status == "running"  # it has not heard of it yet
        ended = jobs.wait(job.id, 20)
        assert (ended.status, ended.done, work.ended) == ("cancelled", 2, "cancelled")
        assert jobs.cancel(job.id) == ended  # once more changes nothing

    def test_says_why_it_failed(self, jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
        def refused(_: Report) -> None:
            raise SettingError("there is no such axis")

        def broken(_: Report) -> None:
            raise ZeroDivisionError("division by zero")

        def too_large(_: Report) -> None:
            raise MemoryError

        with caplog.at_level(logging.CRITICAL, logger="palpate.server"):
            said = [jobs.wait(jobs.start("guess", work).id, 20) for work in (refused, broken, too_large)]
        assert [job.status for job in said] == ["failed"] * 3
        assert said[0].detail == "there is no such axis"
        assert said[1].detail == "ZeroDivisionError: division by zero"
        assert "not enough memory" in said[2].detail

    def test_guesses_the_time_from_the_speed_of_the_stretch_it_is_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        report = Report()
        for seconds, done, total in ((0, 0, 10), (50, 5, 10), (0, 0, 400), (10, 20, 400)):
            now[0] += seconds
            report.progress(done, total)
        assert report.now() == (20, 400, "", 190.0)  # two in a second, 380 to go
        now[0] += 15
        assert report.now()[3] == 175.0
        report.progress(21, 400, seconds_left=7)
        now[0] += 9
        assert report.now()[3] == 0.0

    def test_is_unknown_if_nobody_started_it(self, jobs: Jobs) -> None:
        for ask in (jobs.get, jobs.cancel, jobs.wait):
            with pytest.raises(UnknownJob, match=r"no job '\.\./x'"):
                ask("../x")


class TestHowMuchThereIs:
    def test_too_much_at_once_is_refused(self, jobs: Jobs) -> None:
        (one, first), _ = begun(jobs), begun(jobs, "guess")
        with pytest.raises(Busy, match=r"2 jobs are running \(guess, propagate\)") as refused:
            jobs.start("propagate", Slow())
        assert refused.value.retry_seconds > 0
        jobs.cancel(first.id)
        jobs.wait(first.id, 20)
        assert one.ended == "cancelled"
        begun(jobs)

    def test_some_kinds_are_alone(self, jobs: Jobs) -> None:
        _, job = begun(jobs, "teach", alone=True)
        with pytest.raises(Busy, match=r"\(teach\) already"):
            jobs.start("teach", Slow(), alone=True)
        begun(jobs, "guess", alone=True)
        assert [one.kind for one in jobs.running()] == ["teach", "guess"]
        assert [one.id for one in jobs.running("teach")] == [job.id]

    def test_those_that_ended_are_forgotten_after_a_while(self, jobs: Jobs) -> None:
        work: Work = lambda _: None  # noqa: E731
        ids = [jobs.wait(jobs.start("propagate", work, case=str(n)).id, 20).id for n in range(5)]
        _, running = begun(jobs)
        with pytest.raises(UnknownJob):
            jobs.get(ids[0])
        assert [jobs.get(job).case for job in ids[2:]] == ["2", "3", "4"]
        last = jobs.last("propagate")
        assert last is not None
        assert last.id == running.id
        by_case = jobs.last("propagate", case="4")
        assert by_case is not None
        assert by_case.id == ids[4]
        assert jobs.last("teach") is None

    def test_jobs_of_a_case_are_found(self, jobs: Jobs) -> None:
        _, job = begun(jobs, case="a")
        begun(jobs, case="b")
        assert [one.id for one in jobs.running("propagate", case="a")] == [job.id]
        assert jobs.running("teach", case="a") == []

    def test_many_at_once_keep_apart(self) -> None:
        many = Jobs(max_running=40, kept=100)

        def count(report: Report) -> str:
            for n in range(200):
                report.progress(n, 200)
            return threading.current_thread().name

        started: list[Job] = []
        starters = [threading.Thread(target=lambda: started.append(many.start("propagate", count))) for _ in range(30)]
        for thread in starters:
            thread.start()
        for thread in starters:
            thread.join()
        ended = [many.wait(job.id, 20) for job in started]
        assert len({job.id for job in ended}) == 30
        assert {(job.status, job.done) for job in ended} == {("finished", 199)}
        assert many.close()


class TestTheEnd:
    def test_closing_cancels_and_waits(self) -> None:
        jobs = Jobs()
        work, job = begun(jobs)
        assert jobs.close(seconds=20)
        assert work.ended == "cancelled"
        assert jobs.get(job.id).status == "cancelled"
        with pytest.raises(Busy, match="about to stop"):
            jobs.start("propagate", Slow())

    def test_what_does_not_listen_is_not_waited_for_for_ever(self) -> None:
        jobs, deaf = Jobs(), threading.Event()
        job = jobs.start("propagate", lambda _: str(deaf.wait(20)))
        assert not jobs.close(seconds=0.05)
        deaf.set()
        assert jobs.wait(job.id, 20).status == "finished"
