"""Who may ask, from where, and how much: before anything else happens."""

import json
from pathlib import Path

import pytest

from desks import TOKEN, Office, brick

TRAVERSALS = (
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "C:%5Cwindows%5Cwin.ini",
    "%5C%5Chost%5Cshare",
    "brick.nii.gz%00.png",
    "brick.nii.gz/../../../etc/passwd",
    ".palpate/journal.sqlite",
    "%c0%ae%c0%ae/etc/passwd",
    "x" * 5000,
)


@pytest.fixture
def office(tmp_path: Path):
    folder = tmp_path / "scans"
    folder.mkdir()
    brick(folder / "brick.nii.gz")
    (tmp_path / "secret.txt").write_text("nobody's business", encoding="utf-8")
    office = Office(folder)
    yield office
    office.closed()


def test_without_the_token_nothing_is_told(office: Office) -> None:
    stranger = office.another(token=None)
    for path in ("/", "/api/v1/cases", "/api/v1/openapi.json", "/page/main.js", "/info/", "/capabilities"):
        answer = stranger.get(path)
        assert answer.status_code == 401, path
        assert "palpate serve" in answer.json()["detail"]
    for wrong in ("x", TOKEN[:-1], TOKEN + "x", "", "\x7f"):
        assert office.another(token=wrong).get("/api/v1/cases").status_code == 401
    assert stranger.get(f"/api/v1/cases?token={TOKEN}").status_code == 401  # only the page's own address carries it


def test_the_address_with_the_token_becomes_a_cookie(office: Office) -> None:
    browser = office.another(token=None)
    answer = browser.get(f"/?token={TOKEN}&case=brick.nii.gz", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?case=brick.nii.gz"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert browser.get("/api/v1/cases").status_code == 200
    assert browser.get("/?token=wrong", follow_redirects=False).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1.nip.io"]
)
def test_another_name_for_this_machine_is_refused(office: Office, host: str) -> None:
    assert office.client.get("/api/v1/cases", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:9", "[::1]:8000", "LOCALHOST"])
def test_the_names_of_this_machine_are_known(office: Office, host: str) -> None:
    assert office.client.get("/api/v1/cases", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9999", "http://localhost"])
def test_pages_of_other_origins_may_not_ask(office: Office, origin: str) -> None:
    headers = {"origin": origin, "host": "localhost:8000"}
    assert office.client.get("/api/v1/cases", headers=headers).status_code == 403
    assert office.client.options("/api/v1/cases", headers=headers).status_code == 403


def test_the_page_itself_may_ask_and_nobody_is_invited(office: Office) -> None:
    headers = {"origin": "http://localhost:8000", "host": "localhost:8000"}
    answer = office.client.get("/api/v1/cases", headers=headers)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out_of_the_folder(office: Office, path: str, tmp_path: Path) -> None:
    before = {item for item in tmp_path.rglob("*") if ".palpate" not in item.parts}
    for address in (
        f"/page/{path}",
        f"/api/v1/cases/{path}/image.nii",
        f"/api/v1/cases/{path}/export/nifti",
        f"/api/v1/jobs/{path}",
        f"/api/v1/export/{path}",
        f"/{path}",
    ):
        answer = office.client.get(address)
        assert 400 <= answer.status_code < 500, address
        assert b"root:" not in answer.content
        assert b"nobody's business" not in answer.content
    answer = office.client.post(f"/api/v1/cases/{path}/open", json={})
    assert 400 <= answer.status_code < 500
    assert {item for item in tmp_path.rglob("*") if ".palpate" not in item.parts} == before


def test_more_than_a_request_may_send_is_refused_stated_or_not(office: Office) -> None:
    large = {"name": "x" * 2_000_000}
    assert office.client.post("/api/v1/labels", json=large).status_code == 413
    answer = office.client.post("/api/v1/labels", content=(b"[" for _ in range(2**21)))  # no length is stated
    assert answer.status_code == 413
    assert "bytes at most" in answer.json()["detail"]
    assert office.client.post("/api/v1/labels", headers={"content-length": "-5"}, content=b"").status_code == 400


def test_deep_and_odd_json_is_an_error_of_whoever_sends_it(office: Office) -> None:
    window = office.open("brick.nii.gz")
    for body in (
        b"[" * 50_000,
        b'{"revision": 1e999}',
        b"\xff\xfe",
        b'{"revision": NaN}',
        json.dumps([1] * 9).encode(),
    ):
        answer = office.client.post(
            "/api/v1/cases/brick.nii.gz/prompts",
            content=body,
            headers={**window.headers, "content-type": "application/json"},
        )
        assert 400 <= answer.status_code < 500, body[:20]
