"""Access control: requests from the served page only, with a token if the server listens on other hosts."""

import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, quote

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "whence_token"
MAX_BODY_BYTES = 13 * 2**20  # of a request: an image in base64, and settings
HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class RequestRefused(Exception):
    """A request that is rejected, with its HTTP status."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class SecurityMiddleware:
    """ASGI middleware in front of all routes.

    It rejects unknown host names (DNS rebinding), requests from other origins (CSRF) and large bodies, and requires `token`
    if the server listens on other hosts than this machine.
    """

    app: Any
    hosts: frozenset[str]  # with their ports
    token: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check_origin(scope, given)
            if self.token is not None and not self._knows_token(given):
                if self._brings_token(scope):
                    await _redirected(scope["path"], self.token, send)
                    return
                raise RequestRefused(401, "open the address that `whence serve` printed, with its token")
            await self.app(scope, _limit_body(receive, given), _with_headers(send))
        except RequestRefused as refusal:
            await _refused(refusal, send)

    def _check_origin(self, scope: Scope, given: Mapping[str, str]) -> None:
        if not self._is_own(given.get("host", "")):
            raise RequestRefused(421, "unknown host name")
        origin = given.get("origin")
        if origin is not None and origin.split("://", 1)[-1] != given.get("host"):
            raise RequestRefused(403, "requests from other origins are rejected")
        followed = (
            scope["method"] == "GET" and given.get("sec-fetch-mode") == "navigate" and not scope["path"].startswith("/api")
        )
        if given.get("sec-fetch-site", "none") not in ("same-origin", "none") and not followed:  # links to a page are allowed
            raise RequestRefused(403, "requests from other origins are rejected")
        if scope["method"] not in ("GET", "HEAD") and given.get("content-type", "").split(";")[0] != "application/json":
            raise RequestRefused(415, "expected content type application/json")

    def _is_own(self, name: str) -> bool:
        """Return whether a host is known; with a token also if it is an IP address, since DNS rebinding uses names."""
        return name in self.hosts or (self.token is not None and _is_address(name))

    def _knows_token(self, given: Mapping[str, str]) -> bool:
        cookies = (part.strip().partition("=") for part in given.get("cookie", "").split(";"))
        bearer = given.get("authorization", "").removeprefix("Bearer ")
        tokens = (bearer, *(value for name, _, value in cookies if name == COOKIE))
        return any(hmac.compare_digest(token.encode(), self._secret) for token in tokens)

    def _brings_token(self, scope: Scope) -> bool:
        brought = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return scope["method"] == "GET" and hmac.compare_digest(brought.encode(), self._secret)

    @property
    def _secret(self) -> bytes:
        return (self.token or "").encode()


def _is_address(name: str) -> bool:
    host = name[1 : name.index("]")] if name.startswith("[") and "]" in name else name.split(":")[0]
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


def _with_headers(send: Send) -> Send:
    async def with_headers(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}  # reports set their own policy
            message = message | {"headers": [*message["headers"], *((k, v) for k, v in HEADERS if k not in own)]}
        await send(message)

    return with_headers


def _limit_body(receive: Receive, given: Mapping[str, str]) -> Receive:
    """Limit the body of a request, whatever length its header states."""
    if given.get("content-length", "0").isdecimal() and int(given.get("content-length", "0")) > MAX_BODY_BYTES:
        raise RequestRefused(413, f"send at most {MAX_BODY_BYTES // 2**20} MiB")
    came = 0

    async def received() -> Any:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        if came > MAX_BODY_BYTES:
            raise RequestRefused(413, f"send at most {MAX_BODY_BYTES // 2**20} MiB")
        return message

    return received


async def _redirected(path: str, token: str, send: Send) -> None:
    cookie = f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
    path = "/" + quote(path.lstrip("/\\"))  # "//host" would lead to another host
    headers = [(b"location", path.encode()), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refused(refusal: RequestRefused, send: Send) -> None:
    body = str(refusal).encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *HEADERS]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
