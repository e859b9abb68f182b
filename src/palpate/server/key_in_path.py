"""The token as a part of the address, for programs that can be told an address and nothing else.

3D Slicer's MONAI Label extension downloads images without the login that it sends with everything else, and its older
versions know no login at all. So `http://127.0.0.1:8765/key/TOKEN` is an address under which all is the same, and which
carries its own permission.
"""

from __future__ import annotations

import hmac
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from palpate.server.guard import App, Receive, Scope, Send

PREFIX = "/key/"


class KeyInPath:
    """ASGI middleware in front of the guard: `/key/TOKEN/...` becomes `/...` with the token in its header.

    A wrong key is passed on as it is, and comes to nothing: no page has such an address.
    """

    def __init__(self, app: App, *, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        path = str(scope.get("path", ""))
        if scope["type"] == "http" and self._token and path.startswith(PREFIX):
            key, _, rest = path[len(PREFIX) :].partition("/")
            if hmac.compare_digest(key.encode(), self._token.encode()):
                send = _under(PREFIX + key, scope, send)
                others = [header for header in scope["headers"] if header[0].lower() != b"authorization"]
                headers = [*others, (b"authorization", f"Bearer {self._token}".encode())]
                scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode(), "headers": headers}
        await self._app(scope, receive, send)


def _under(prefix: str, scope: Scope, send: Send) -> Send:
    """Answers that lead to another address of this server lead to it with the key."""
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"), "")

    def kept(name: bytes, value: bytes) -> tuple[bytes, bytes]:
        if name.lower() != b"location":
            return name, value
        place = urlsplit(value.decode("latin-1"))
        if place.netloc not in ("", host) or not place.path.startswith("/"):
            return name, value
        # Without the host: a proxy may have spoken TLS with the client, which this server does not know.
        return name, place._replace(scheme="", netloc="", path=prefix + place.path).geturl().encode("latin-1")

    async def answer(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [kept(name, value) for name, value in message.get("headers", ())]}
        await send(message)

    return answer
