"""Images take only so much memory together: what nobody uses goes first, then whoever comes has to wait."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai_label_server import affine_of, client_on, desk_on, save_phantom
from PIL import Image as Picture

from desks import Office, brick
from palpate.errors import FormatError
from palpate.images import read
from palpate.server import desk as desk_module
from palpate.server.leases import Full
from palpate.server.monai_label_sessions import SPARED_SECONDS, Sessions, UnknownSession

BRICK = 64 * 60 * 20 * 2
"""The bytes of a brick's image."""

BALL = 40 * 36 * 24 * 2


def office_of(folder: Path, *, image_bytes: int) -> Office:
    office = Office(folder)
    office.desk._image_bytes = image_bytes  # pyright: ignore[reportPrivateUsage]
    return office


def opening(office: Office, case: str) -> Any:
    return office.client.post(f"/api/v1/cases/{case}/open", json={})


class TestCases:
    def test_a_case_waits_until_there_is_room_beside_those_that_are_open(self, tmp_path: Path) -> None:
        for name in "abc":
            brick(tmp_path / f"{name}.nii")
        office = office_of(tmp_path, image_bytes=2 * BRICK)
        window = office.open("a.nii")
        office.open("b.nii")
        answer = opening(office, "c.nii")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "no room for c.nii" in answer.json()["detail"]
        assert office.desk.leases.held() == {"a.nii", "b.nii"}
        assert office.desk.status("c.nii").status == "untouched"
        window.post("close")
        assert opening(office, "c.nii").status_code == 200
        office.closed()

    def test_what_a_header_claims_is_refused_before_it_is_read(self, tmp_path: Path) -> None:
        brick(tmp_path / "a.nii")
        brick(tmp_path / "cut.nii")
        (tmp_path / "cut.nii").write_bytes((tmp_path / "cut.nii").read_bytes()[:50_000])  # reading would say so
        office = office_of(tmp_path, image_bytes=BRICK)
        office.open("a.nii")
        assert opening(office, "cut.nii").status_code == 503
        office.closed()

    def test_what_says_nothing_beforehand_is_refused_when_it_was_read(self, tmp_path: Path) -> None:
        brick(tmp_path / "a.nii")
        Picture.fromarray(np.zeros((400, 400), np.uint8)).save(tmp_path / "b.png")
        office = office_of(tmp_path, image_bytes=BRICK + 10_000)
        window = office.open("a.nii")
        assert opening(office, "b.png").status_code == 503
        assert office.desk.status("b.png").status == "untouched"
        window.post("close")
        assert opening(office, "b.png").status_code == 200
        office.closed()

    def test_one_image_may_always_be_opened(self, tmp_path: Path) -> None:
        brick(tmp_path / "a.nii")
        brick(tmp_path / "b.nii")
        office = office_of(tmp_path, image_bytes=1)
        office.open("a.nii").post("close")
        office.open("b.nii")
        assert list(office.desk._used) == ["b.nii"]  # pyright: ignore[reportPrivateUsage]
        office.closed()

    def test_those_that_are_being_read_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        brick(tmp_path / "a.nii")
        brick(tmp_path / "b.nii")
        office = office_of(tmp_path, image_bytes=BRICK)
        begun, on = threading.Event(), threading.Event()

        def slowly(path: Path, *, series: str | None = None) -> Any:
            begun.set()
            assert on.wait(20)
            return read(path, series=series)

        monkeypatch.setattr(desk_module, "read", slowly)
        first = threading.Thread(target=office.desk.opened, args=("a.nii",))
        first.start()
        assert begun.wait(20)
        with pytest.raises(Full):
            office.desk.opened("b.nii")
        on.set()
        first.join()
        office.desk.opened("b.nii")
        office.closed()


class TestSessions:
    """Three balls of which two fit."""

    @pytest.fixture
    def now(self) -> list[float]:
        return [0.0]

    @pytest.fixture
    def sessions(self, tmp_path: Path, now: list[float]):
        images = tmp_path / "images"
        images.mkdir()
        desk = desk_on(images)
        most = 2 * BALL + 1000
        yield Sessions(tmp_path, desk.session_for, most_bytes=most, image_bytes=2**26, clock=lambda: now[0])
        desk.close()

    def begin(self, sessions: Sessions, tmp_path: Path, name: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        save_phantom(folder / "0.nii.gz", affine_of("ras"))
        return sessions.create([("0.nii.gz", folder / "0.nii.gz")], folder, uncompress=False).id

    def test_the_longest_unused_ends_for_a_new_one(self, sessions: Sessions, tmp_path: Path, now: list[float]) -> None:
        first, second = (self.begin(sessions, tmp_path, name) for name in "ab")
        now[0] = SPARED_SECONDS + 10
        sessions.get(first)
        third = self.begin(sessions, tmp_path, "c")
        with pytest.raises(UnknownSession):
            sessions.get(second)
        assert not (tmp_path / "b").exists()
        assert (sessions.get(first).id, sessions.get(third).id) == (first, third)

    def test_those_in_use_are_left_alone(self, sessions: Sessions, tmp_path: Path, now: list[float]) -> None:
        kept = [self.begin(sessions, tmp_path, name) for name in "ab"]
        now[0] = SPARED_SECONDS - 10
        with pytest.raises(Full, match="leave no room"):
            self.begin(sessions, tmp_path, "c")
        assert not (tmp_path / "c").exists()
        assert [sessions.get(one).id for one in kept] == kept

    def test_what_is_no_image_ends_no_session(self, sessions: Sessions, tmp_path: Path, now: list[float]) -> None:
        kept = [self.begin(sessions, tmp_path, name) for name in "ab"]
        now[0] = SPARED_SECONDS + 10
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "0.png").write_bytes(b"no picture")
        with pytest.raises(FormatError):
            sessions.create([("0.png", tmp_path / "c" / "0.png")], tmp_path / "c", uncompress=False)
        assert [sessions.get(one).id for one in kept] == kept

    def test_those_that_are_sent_for_one_answer_count_while_it_is_made(
        self, sessions: Sessions, tmp_path: Path, now: list[float]
    ) -> None:
        save_phantom(tmp_path / "sent.nii.gz", affine_of("ras"))
        self.begin(sessions, tmp_path, "a")
        with sessions.passing(tmp_path / "sent.nii.gz"):
            with pytest.raises(Full, match="leave no room"):
                self.begin(sessions, tmp_path, "b")
            with pytest.raises(Full, match="leave no room"), sessions.passing(tmp_path / "sent.nii.gz"):
                pass
        kept = self.begin(sessions, tmp_path, "b")
        now[0] = SPARED_SECONDS + 10
        sessions.get(kept)
        with sessions.passing(tmp_path / "sent.nii.gz"):
            assert sessions.get(kept)
            assert not (tmp_path / "a").exists()

    def test_one_image_may_always_be_sent(self, tmp_path: Path) -> None:
        images = tmp_path / "images"
        images.mkdir()
        desk = desk_on(images)
        sessions = Sessions(tmp_path, desk.session_for, most_bytes=1, image_bytes=2**26)
        self.begin(sessions, tmp_path, "a")
        with pytest.raises(Full):
            self.begin(sessions, tmp_path, "b")
        desk.close()

    def test_a_client_hears_when_to_ask_again(self, tmp_path: Path) -> None:
        images = tmp_path / "images"
        images.mkdir()
        save_phantom(tmp_path / "sent.nii.gz", affine_of("lps"))
        desk = desk_on(images)
        client = client_on(desk)
        answers = [
            client.put("/session/", files={"files": ("a.nii.gz", (tmp_path / "sent.nii.gz").read_bytes())})
            for _ in range(9)
        ]
        assert [answer.status_code for answer in answers] == [200] * 8 + [503]
        assert int(answers[-1].headers["retry-after"]) > 0
        desk.close()
