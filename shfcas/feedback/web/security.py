"""Security of the page: which requests pass, and the headers of every reply."""

import ipaddress
import json
import logging
import re
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.utils.listening import reached_from_here_alone

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_PATH = re.compile(r"(?<![\w.~-])(?:\.{0,2}/|~/)(?:[^\s/'\"]+/)*([^\s/'\"]+)")
# Characters that move a terminal's cursor, change its colours, or reverse the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Refused(HTTPException):
    """Refusal of a request.

    Attributes:
        status_code: HTTP status.
        detail: one line for the annotator.
        code: name of the case, where the page's script has to tell cases apart.
    """

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.code = code


def error_response(error: HTTPException) -> Response:
    """Returns `{"error": message}` with the error's status and headers, and with its code if it has one."""
    code = getattr(error, "code", "")
    return json_response(
        {"error": error.detail} | ({"code": code} if code else {}), error.status_code, dict(error.headers or {})
    )


def without_paths(text: str, folder: Path) -> str:
    """Returns a message with names of files instead of their paths, which are nobody's business on the page.

    >>> without_paths("/home/my runs/one/feedback.sqlite: locked; see '/etc/x.md'", Path("/home/my runs/one"))
    "feedback.sqlite: locked; see 'x.md'"
    """
    for known in (str(folder.resolve()), str(folder)):
        text = text.replace(f"{known}/", "").replace(known, "the run") if len(known) > 1 else text
    return _PATH.sub(r"\1", text)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns JSON in ASCII, which keeps any text intact: control characters, and half a surrogate pair."""
    return Response(json.dumps(value, allow_nan=False), status, headers, media_type="application/json")


def printable(text: str) -> str:
    r"""Escapes characters that a terminal would obey or disguise, for the log.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Guard:
    """Outermost layer of the application, with the rules for all requests.

    A page of another site must neither read nor change anything here, even if its name resolves to this machine (DNS
    rebinding). So `Host` must be one of our names. Requests that change something, or read from `/api/`, must come
    from our own page (`Origin`, `Sec-Fetch-Site`).

    Args:
        app: the application.
        settings: host and address, which give our names, and the path behind a proxy.
    """

    def __init__(self, app: ASGIApp, settings: HumanConfig) -> None:
        self._app = app
        self._root = settings.root
        self._own_origin = _origin(settings.address) if settings.address else None
        self._names = _LOOPBACK | {settings.host.lower()}
        self._any_number = not reached_from_here_alone(settings.host)
        if self._any_number:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        if settings.address:
            self._names.add((urlsplit(settings.address).hostname or "").lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request: checks it, limits its body, adds headers, logs it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._root and (scope["path"] == self._root or scope["path"].startswith(f"{self._root}/")):
            scope = {**scope, "path": scope["path"][len(self._root) :], "raw_path": b""}  # the proxy left it there
        begin, status, received = time.perf_counter(), 0, 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BYTES:
                raise _too_large()
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope)
            if not scope["path"]:
                return await RedirectResponse(f"{self._root}/", 308)(scope, receive, send_with_headers)
            await self._app(scope, receive_limited, send_with_headers)
        except Refused as refused:
            await error_response(refused)(scope, receive, send_with_headers)
        except Exception:
            logger.error("%s", printable(traceback.format_exc().rstrip()))
            if not status:
                failure = HTTPException(500, "the server failed; its log says why")
                await error_response(failure)(scope, receive, send_with_headers)
        finally:
            # Without the query string: someone may have pasted a token there.
            path, taken = printable(scope["path"]), 1e3 * (time.perf_counter() - begin)
            logger.debug("%s %s %d, %.1f ms", scope["method"], path, status, taken)

    def _check(self, scope: Scope) -> None:
        headers, method = Headers(scope=scope), scope["method"]
        if int(headers.get("content-length", "0")) > MAX_BYTES:  # h11 has checked that it is a number
            raise _too_large()
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise Refused(421, "this server does not have that name")
        site, changes = headers.get("sec-fetch-site"), method not in ("GET", "HEAD")
        if (changes or scope["path"].startswith("/api/")) and site not in (None, "same-origin", "none"):
            raise Refused(403, "only the page itself may request that")
        origin = headers.get("origin")
        if origin is None:
            if changes and site != "same-origin":
                raise Refused(403, "a request that changes something must have an Origin header")
        elif changes and origin != self._own_origin and not _same_place(origin, host):
            raise Refused(403, "only the page itself may change something")

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        return name in self._names or (self._any_number and _is_number(name))


def _too_large() -> Refused:
    return Refused(413, f"body: expected at most {MAX_BYTES:,} bytes", headers={"Connection": "close"})


def _is_number(name: str) -> bool:
    """Checks for a numeric address, which no name server can redirect to another machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _same_place(origin: str, host: str) -> bool:
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and place.lower() == host.lower()


class FailedSignIns:
    """Counter of failed sign-ins by address and in all, which limits their rate.

    Args:
        most: maximum number of failures of one address within `seconds`.
        most_in_all: maximum number of failures of all addresses within `seconds`.
        seconds: how long a failure counts.
        clock: returns the time in seconds.
    """

    KEPT = 1024  # addresses; beyond that, the oldest is dropped

    def __init__(
        self,
        most: int = 10,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        most_in_all: int = 60,
    ) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._all: deque[float] = deque(maxlen=most_in_all)
        self._lock = threading.Lock()
        self._failures: dict[str, list[float]] = {}

    def check(self, address: str) -> None:
        """Checks the number of recent failures of an address.

        Raises:
            Refused: there are too many.
        """
        with self._lock:
            recent = self._recent(address)
            if len(recent) >= self._most:
                wait = max(1, round(recent[0] + self._seconds - self._clock()))
                raise Refused(429, f"too many wrong tokens; wait {wait} s", headers={"Retry-After": str(wait)})

    def check_all(self) -> None:
        """Checks the number of recent failures of all addresses.

        Raises:
            Refused: there are too many.
        """
        with self._lock:
            if len(self._all) == self._all.maxlen and self._all[0] > (now := self._clock()) - self._seconds:
                wait = max(1, round(self._all[0] + self._seconds - now))
                message = f"too many wrong tokens from everywhere; wait {wait} s"
                raise Refused(429, message, headers={"Retry-After": str(wait)})

    def failed(self, address: str) -> None:
        """Counts one more failure."""
        with self._lock:
            self._all.append(self._clock())
            recent = self._recent(address)
            self._failures.pop(address, None)
            self._failures[address] = [*recent, self._clock()]
            if len(self._failures) > self.KEPT:
                del self._failures[next(iter(self._failures))]

    def _recent(self, address: str) -> list[float]:
        now = self._clock()
        return [time for time in self._failures.get(address, []) if time > now - self._seconds]
