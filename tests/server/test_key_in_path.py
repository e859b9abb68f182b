"""The address that carries the token, as programs use it that know nothing else."""

from pathlib import Path

import httpx
import pytest

from desks import TOKEN, Office, brick
from nninteractive_server import served


@pytest.fixture
def address(tmp_path: Path):
    brick(tmp_path / "a.nii")
    office = Office(tmp_path)
    with served(office.app) as address:
        yield address
    office.closed()


@pytest.mark.parametrize("path", ["info", "datastore?output=all", "auth"])
def test_without_the_last_slash_a_program_is_led_on_with_its_key(address: str, path: str) -> None:
    answer = httpx.get(f"{address}/key/{TOKEN}/{path}", follow_redirects=True)
    assert answer.status_code == 200, answer.text
    assert answer.history
    before, _, query = path.partition("?")
    assert str(answer.url) == f"{address}/key/{TOKEN}/{before}/" + (f"?{query}" if query else "")


def test_what_is_sent_is_sent_on(address: str, tmp_path: Path) -> None:
    sent = {"files": ("a.nii", (tmp_path / "a.nii").read_bytes())}
    answer = httpx.put(f"{address}/key/{TOKEN}/session", files=sent, follow_redirects=True)
    assert answer.status_code == 200, answer.text
    assert answer.history


def test_the_page_keeps_it_too(address: str) -> None:
    answer = httpx.get(f"{address}/key/{TOKEN}/?token={TOKEN}&case=a.nii")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/key/{TOKEN}/?case=a.nii")


def test_with_another_key_nothing_is_told(address: str) -> None:
    for path in ("info", "info/"):
        answer = httpx.get(f"{address}/key/{TOKEN[:-1]}/{path}", follow_redirects=True)
        assert answer.status_code == 401
