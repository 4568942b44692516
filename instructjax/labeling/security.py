"""What stands between the desk and strangers: signed links, response headers, and limits on requests."""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

import itsdangerous
from etils import epath
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# No inline script or style, nothing from elsewhere, no frames, forms that lead only here.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # links carry tokens
    "cache-control": "no-store",
}
MAX_CLIENTS = 10_000  # whose rates are remembered


def read_secret(path: epath.Path) -> str:
    """Reads the secret that signs links and sessions; creates it, readable by this user only, if it is missing."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        secret = secrets.token_urlsafe(32)
        file.write(secret + "\n")
    return secret


def sign(secret: str, value: Any) -> str:
    """Signs the JSON value of an invitation, in characters that a link may have."""
    return str(itsdangerous.URLSafeSerializer(secret, salt="invitation").dumps(value))


def unsign(secret: str, token: str) -> Any:
    """Returns the value of an invitation; None if the signature is wrong."""
    try:
        return itsdangerous.URLSafeSerializer(secret, salt="invitation").loads(token)
    except itsdangerous.BadData:
        return None


def csrf_token(request: Request) -> str:
    """Returns the token that forms of this session carry; other sites cannot read it."""
    if "csrf" not in request.session:
        request.session["csrf"] = secrets.token_urlsafe(16)
    return str(request.session["csrf"])


def has_csrf_token(request: Request, form: Mapping[str, Any]) -> bool:
    """Returns whether a form carries the token of its session."""
    expected, found = request.session.get("csrf"), form.get("csrf")
    return (
        isinstance(expected, str) and isinstance(found, str) and hmac.compare_digest(expected.encode(), found.encode())
    )


class Headers:
    """ASGI middleware that adds HEADERS to every response."""

    def __init__(self, app: ASGIApp):
        """Takes the application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class RateLimit:
    """ASGI middleware that answers 429 to a client with too many requests: a token bucket per session, or address.

    Only signed sessions have a bucket of their own, so a stranger cannot ask for a new one.
    """

    def __init__(self, app: ASGIApp, rate: float, burst: int):
        """Takes the application, the requests per second that a client may make, and how many at once."""
        self._app, self._rate, self._burst = app, rate, burst
        self._buckets: dict[Any, tuple[float, float]] = {}  # client -> (requests left, the time of that number)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] == "http" and not self._allows(_client(scope)):
            response = PlainTextResponse("Too many requests. Wait a second and try again.", 429, {"retry-after": "1"})
            return await response(scope, receive, send)
        await self._app(scope, receive, send)

    def _allows(self, client: Any) -> bool:
        now = time.monotonic()
        left, since = self._buckets.pop(client, (float(self._burst), now))
        left = min(self._burst, left + (now - since) * self._rate)
        if len(self._buckets) >= MAX_CLIENTS:
            self._buckets.pop(next(iter(self._buckets)))  # of the client that has been silent for longest
        self._buckets[client] = (max(left - 1, 0.0), now)
        return left >= 1


def _client(scope: Scope) -> Any:
    session = scope.get("session", {})
    for name in ("labeler", "admin"):
        if name in session:
            return name, str(session[name])
    return (scope.get("client") or ("",))[0]
