"""`palpate serve`: under which names it answers, and that there is one for a folder."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from command_line import Run
from desks import TOKEN, Office, brick
from fake_runtime import FakeRuntime
from palpate.cli import serve
from palpate.errors import OutputError, SettingError
from palpate.inference.session import Session


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("annotate.example.org", "annotate.example.org"),
        ("Radiology-3", "radiology-3"),
        ("192.168.1.20", "192.168.1.20"),
        ("2001:DB8::0:1", "[2001:db8::1]"),
        ("[fd00::1]", "[fd00::1]"),
    ],
)
def test_a_name_is_taken_as_browsers_write_it(given: str, host: str) -> None:
    assert serve.host_names([given]) == [host]


@pytest.mark.parametrize(
    "given",
    [
        "",
        "example.org:8000",
        "http://example.org",
        "example.org/palpate",
        "*.example.org",
        "*",
        "a b",
        ".example.org",
        "example..org",
        "-x.org",
        "0.0.0.0",
        "::",
        "192.168.1",
        "192.168.1.256",
        "192.168.1.20:8000",
        "[fd00::1]:8000",
        "fe80::1%eth0",
        "user@example.org",
        "müller.de",
        "x" * 64,
        ".".join(["x" * 60] * 5),
    ],
)
def test_what_is_no_name_of_one_server_is_refused(given: str) -> None:
    with pytest.raises(SettingError, match="--allow-host"):
        serve.host_names([given])


def test_it_answers_under_the_names_that_were_allowed(
    tmp_path: Path, palpate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    brick(tmp_path / "a.nii")
    asked: dict[str, int] = {}

    def run(self: Any, sockets: object) -> None:
        for host in ("annotate.example.org", "10.1.2.3:8000", "localhost", "evil.example"):
            client = TestClient(self.config.app, headers={"authorization": f"Bearer {TOKEN}", "host": host})
            asked[host] = client.get("/api/v1/cases").status_code

    monkeypatch.setattr("uvicorn.Server.run", run)
    monkeypatch.setattr("palpate.inference.loading.load", lambda *_, **__: Session(FakeRuntime()))
    more = ("--allow-host", "annotate.example.org", "--allow-host", "10.1.2.3", "--token", TOKEN)
    answer = palpate("serve", tmp_path, "--port", 0, "--no-browser", *more)
    assert answer.status == 0, answer.err
    assert asked == {"annotate.example.org": 200, "10.1.2.3:8000": 200, "localhost": 200, "evil.example": 421}


def test_names_for_others_and_no_token_exclude_each_other(tmp_path: Path, palpate: Run) -> None:
    answer = palpate("serve", tmp_path, "--no-token", "--allow-host", "annotate.example.org")
    assert answer.status != 0
    assert "leave --allow-host out, or the token in" in answer.err


@pytest.mark.parametrize("reached", ["127.0.0.2", "[fd00::1]"])
def test_it_answers_under_the_address_at_which_it_was_reached(tmp_path: Path, reached: str) -> None:
    """As with `--host 0.0.0.0`; the client that stands in for a network says where it asked."""
    office = Office(tmp_path)
    client = TestClient(office.app, base_url=f"http://{reached}:8000", headers={"authorization": f"Bearer {TOKEN}"})
    assert client.get("/api/v1/cases").status_code == 200
    for other in ("127.0.0.3", "[fd00::2]", "evil.example", "testserver"):
        assert client.get("/api/v1/cases", headers={"host": other}).status_code == 421
    named = TestClient(office.app, base_url="http://evil.example", headers={"authorization": f"Bearer {TOKEN}"})
    assert named.get("/api/v1/cases").status_code == 421
    office.closed()


def test_one_folder_has_one_server(tmp_path: Path) -> None:
    first = serve.only_one(tmp_path)
    assert first is not None
    with pytest.raises(OutputError, match="another `palpate serve`"):
        serve.only_one(tmp_path)
    os.close(first)
    second = serve.only_one(tmp_path)
    assert second is not None
    os.close(second)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts no open files")
def test_many_files_may_be_open(tmp_path: Path, palpate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    found: list[int] = []
    monkeypatch.setattr(
        "uvicorn.Server.run", lambda *_, **__: found.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    )
    monkeypatch.setattr("palpate.inference.loading.load", lambda *_, **__: Session(FakeRuntime()))
    try:
        assert palpate("serve", tmp_path, "--port", 0, "--no-browser").status == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found == [min(serve.OPEN_FILES, before[1])]
