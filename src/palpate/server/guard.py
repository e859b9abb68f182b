"""What stands before every answer: who may ask, from where, and how much.

The server is for one person on one machine, and a browser runs other people's pages. So every request must name this
server as its host (against DNS rebinding), a page of another origin is refused, and everything but a health check needs
the token that is in the address which `palpate serve` prints. The token becomes a cookie that scripts cannot read and
other sites do not send.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "palpate_token"

BODY_BYTES = 2**20
"""The most that a request may send, where nothing else is said."""

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The least that the page works with."""

_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)


class Guard:
    """ASGI middleware.

    - `token`: what must come as cookie, as `Authorization: Bearer`, or once as `?token=`; None lets everybody in.
    - `hosts`: the names under which this server may be asked, without ports; beside them, it may be under the address
      at which it was reached: nobody else's page can have that one.
    - `open_paths`: paths, or prefixes of them that end in a slash, that need no token.
    - `large`: prefixes of paths whose bodies may be larger, with the most they may send.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str | None,
        hosts: Sequence[str],
        open_paths: Sequence[str] = (),
        large: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = {host.lower() for host in hosts}
        self._open = tuple(open_paths)
        self._large = tuple(large)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse to."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks websockets
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = _host(headers.get("host", ""))
        if host not in self._hosts and host != _reached_at(scope):
            await _refuse(send, 421, f"this server does not answer for {headers.get('host', 'no host')[:80]!r}")
            return
        origin = headers.get("origin")
        if origin is not None and _place(origin) != headers.get("host"):
            await _refuse(send, 403, "pages of other origins may not ask this server")
            return
        path = str(scope["path"])
        if not self._may(path, scope, headers):
            await _refuse(send, 401, "the token is missing or wrong; open the address that `palpate serve` printed")
            return
        if self._token and path == "/" and "token" in parse_qs(scope["query_string"].decode("latin-1")):
            await self._remember(scope, headers, send)
            return
        most = next((size for prefix, size in self._large if path.startswith(prefix)), BODY_BYTES)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            await _refuse(
                send, 413 if length.isdecimal() else 400, f"a request to {path[:80]} may send {most} bytes at most"
            )
            return
        reading = _Bounded(receive, most)
        try:
            await self._app(scope, reading, _with_headers(send, reading))
        except TooLarge:
            if not reading.refused:
                await _refuse(send, 413, reading.detail)

    def _may(self, path: str, scope: Scope, headers: MutableMapping[str, str]) -> bool:
        if self._token is None or any(path == o or (o.endswith("/") and path.startswith(o)) for o in self._open):
            return True
        given = ""
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = credentials.strip()
        elif path == "/" and (asked := parse_qs(scope["query_string"].decode("latin-1")).get("token")):
            given = asked[0]
        else:
            cookies = SimpleCookie()
            try:
                cookies.load(headers.get("cookie", ""))
            except CookieError:
                return False
            name = _cookie(headers.get("host", ""))
            if name in cookies:
                given = cookies[name].value
        return hmac.compare_digest(given.encode(), self._token.encode())

    async def _remember(self, scope: Scope, headers: MutableMapping[str, str], send: Send) -> None:
        """The token leaves the address bar for a cookie."""
        rest = parse_qs(scope["query_string"].decode("latin-1"))
        rest.pop("token")
        where = "/" + (f"?{urlencode(rest, doseq=True)}" if rest else "")
        cookie = f"{_cookie(headers.get('host', ''))}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        sent = [(b"location", where.encode()), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 303, "headers": [*sent, *_HEADERS]})
        await send({"type": "http.response.body", "body": b""})


class TooLarge(Exception):
    """More came than a request may send."""


class _Bounded:
    """What a request sends, up to a limit: a length that was stated may be a lie, or none is."""

    def __init__(self, receive: Receive, most: int) -> None:
        self.over = self.refused = False
        self.detail = f"a request here may send {most} bytes at most"
        self._receive, self._most, self._seen = receive, most, 0

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._most:
            self.over = True
            raise TooLarge(self.detail)
        return message


def _with_headers(send: Send, reading: _Bounded) -> Send:
    async def answer(message: MutableMapping[str, Any]) -> None:
        if reading.over:  # whoever read it may have taken this for a mistake in what was sent
            if not reading.refused and message["type"] == "http.response.start":
                reading.refused = True
                await _refuse(send, 413, reading.detail)
            return
        if message["type"] == "http.response.start":
            named = {name for name, _ in message["headers"]}
            message = {**message, "headers": [*message["headers"], *(one for one in _HEADERS if one[0] not in named)]}
        await send(message)

    return answer


def _host(header: str) -> str:
    """The name in a Host header, without the port."""
    if header.startswith("["):
        return header.partition("]")[0].lower() + "]"
    return header.partition(":")[0].lower()


def _reached_at(scope: Scope) -> str | None:
    """The address of this machine that a request came to, as a Host header has it; None where it is not known."""
    try:
        address = ip_address(str((scope.get("server") or ("",))[0]).partition("%")[0])
    except ValueError:  # a name, where no network lies between
        return None
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return f"[{address}]" if isinstance(address, IPv6Address) else str(address)


def _place(origin: str) -> str | None:
    """The name and port in an Origin header; None where it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _cookie(host: str) -> str:
    """What the cookie is called: browsers keep one jar for all ports, and two servers must not share a cookie."""
    port = host.rpartition("]")[2].partition(":")[2]
    return f"{COOKIE}_{port}" if port.isdecimal() else COOKIE


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
