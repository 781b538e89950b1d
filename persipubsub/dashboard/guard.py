"""Who may read and change: the checks of each request, and the headers of each response.

A page of another site can send requests to an address of this machine, and, with a name that it lets point here (DNS
rebinding), read the answers. So the name in the address must be known, and a change needs a token that only this
dashboard's own page has.
"""

import dataclasses
import hmac
import ipaddress
import json
import re
from typing import Any, FrozenSet, Optional

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options":
    "nosniff",
    "X-Frame-Options":
    "DENY",
    "Referrer-Policy":
    "no-referrer",
    "Cross-Origin-Opener-Policy":
    "same-origin",
    "Cross-Origin-Resource-Policy":
    "same-origin",
    "Permissions-Policy":
    "camera=(), geolocation=(), microphone=()",
    "Cache-Control":
    "no-store",
}
LOCAL_NAMES = frozenset({"localhost"})


class JsonResponse(Response):
    """A value as JSON, all ASCII: also a name with half of a character in it can be sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of a value."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def refusal(status: int, text: str) -> Response:
    """Return the response to a request that is refused."""
    return JsonResponse({"error": text}, status)


@dataclasses.dataclass(frozen=True)
class Guard:
    """Decides about requests."""

    #: Names besides addresses and localhost by which the dashboard is reached.
    hosts: FrozenSet[str]
    #: None if nothing needs it.
    token: Optional[str]
    #: Whether reading needs it as well.
    private: bool
    #: Whether anything may be changed.
    changes: bool

    def refuses(self, request: Request) -> Optional[Response]:
        """Return the refusal of a request that comes from another site, or by an unknown name; None otherwise."""
        headers = request.headers
        host = headers.get("host", "")
        if not self._is_known(host):
            return refusal(421, f"The name {host!r} is not known. Use the address, or start with --allow-host.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return refusal(403, "The request comes from another site.")
        # A link on another site may lead here.
        follows_link = headers.get("sec-fetch-dest") == "document" and request.method == "GET"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not follows_link:
            return refusal(403, "The request comes from another site.")
        return None

    def may_read(self, request: Request) -> bool:
        """Return whether a request may read."""
        return not self.private or self.has_token(request)

    def has_token(self, request: Request) -> bool:
        """Return whether a request has the token, compared in constant time."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return (self.token is not None and scheme.lower() == "bearer"
                and hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.token.encode()))

    def _is_known(self, host: str) -> bool:
        """Return whether a Host header is an address, which nobody can rebind, or a name that was allowed."""
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+))(?::[0-9]{1,5})?", host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower().rstrip(".")
        if name in LOCAL_NAMES or name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class Guarded:
    """The application behind the checks that every request has to pass, and with headers on every response."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._guard.refuses(Request(scope)) if scope["type"] == "http" else None
        await (self._app if refused is None else refused)(scope, receive, send_with_headers)
