"""Addresses and keys of HTTP endpoints, and the retry policy; `http_client` sends the requests."""

import ipaddress
import logging
import math
import os
import random
import re
import socket
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from urllib.parse import urlsplit

from shfcas.utils.errors import UsageError, UserError

logger = logging.getLogger(__name__)

TEMPORARY = (408, 409, 425, 429)  # retried, as are all statuses from 500
LONGEST_BACKOFF = 60.0  # seconds between two attempts if the endpoint names no time
LONGEST_RETRY_AFTER = 600.0
SHORTEST_SECRET = 8
LONGEST_QUOTE = 200
HALF_A_CHARACTER = re.compile(r"(?:\\+(?:u[0-9a-f]{0,3})?|%[0-9a-f]?)?", re.IGNORECASE)


def check_base_url(url: str, where: str) -> str:
    """Returns the base address of an endpoint unchanged.

    Addresses end up in files, so they must not contain credentials.

    Args:
        url: the address.
        where: the setting or environment variable that holds it.

    Raises:
        UsageError: it is not an http or https address, or it contains credentials, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (a property that raises)
    except ValueError:
        raise UsageError(f"{where}: not an address; expected something like http://localhost:8000/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{where}: expected an address such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"{where}: leave names, passwords and queries out; the key is read from the environment")
    return url


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is this machine.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("example.com")
    (True, True, False)
    """
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(name))  # 127.1 and other forms that the system accepts
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified  # servers print 0.0.0.0 as their address


class Secret:
    """A key that is not shown by repr and can be removed from texts.

    A key shorter than 8 characters is not a secret. It is a word such as EMPTY, for servers that check no keys.

    Args:
        value: the key; empty if there is none.
    """

    __slots__ = ("_beginning", "_rest", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        # Each character may be percent-encoded, or escaped as in JSON, also within JSON within JSON.
        forms = [rf"(?:{re.escape(c)}|\\+(?:{re.escape(c)}|u{ord(c):04x})|%{ord(c):02x})" for c in value]
        first = "".join(forms[:SHORTEST_SECRET])
        self._beginning = re.compile(rf"(?<!\\){first}", re.IGNORECASE)
        self._rest = [re.compile(form, re.IGNORECASE) for form in forms[SHORTEST_SECRET:]]

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(***)" if self else "Secret()"

    def reveal(self) -> str:
        """Returns the key."""
        return self._value

    def hide(self, text: str) -> str:
        """Replaces the key in a text by three asterisks; also a part of it with which a text that was cut ends."""
        if len(self._value) < SHORTEST_SECRET:
            return text
        kept, position = "", 0
        while found := self._beginning.search(text, position):
            end = self._end(text, found.end())
            kept += text[position : found.start() if end else found.end()] + ("***" if end else "")
            position = end or found.end()
        return kept + text[position:]

    def _end(self, text: str, position: int) -> int | None:
        """Returns where the key ends whose first characters end at a position; None if others follow."""
        for form in self._rest:
            if not (found := form.match(text, position)):
                return len(text) if HALF_A_CHARACTER.fullmatch(text, position) else None
            position = found.end()
        return position


class Endpoint:
    """A base address with its key, which is read from the environment.

    Args:
        url: the base address, such as http://localhost:8000/v1.
        setting: the setting or environment variable that holds the address; errors name it.
        key_variable: the environment variable that holds the key.

    Attributes:
        url: the base address without a slash at the end.
        host: the host and port.
        root: the address without a path.
        key: the key; false if there is none.

    Raises:
        UserError: the address is not one, or the key contains characters that no header can carry.
    """

    def __init__(self, url: str, setting: str, key_variable: str) -> None:
        self.url = check_base_url(url, setting).rstrip("/")
        self.setting, self.key_variable = setting, key_variable
        parts = urlsplit(self.url)
        self.scheme, self.host, self.hostname = parts.scheme, parts.netloc, parts.hostname or ""
        self.root = f"{parts.scheme}://{parts.netloc}"
        key = os.environ.get(key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{key_variable}: expected printable ASCII characters, got others; set it again")
        self.key = Secret(key)
        if self.scheme == "http" and not is_loopback(self.hostname):
            _warn_unencrypted(self.host, f"{key_variable} and all texts" if self.key else "all texts")

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def authorization(self) -> dict[str, str]:
        """Returns the header with the key; empty if there is no key."""
        return {"Authorization": f"Bearer {self.key.reveal()}"} if self.key else {}

    def proxy(self) -> str | None:
        """Returns the address of the proxy that the environment names for this endpoint.

        A loopback address never has one, so that nothing sent to this machine leaves it.
        """
        from urllib.request import getproxies, proxy_bypass

        if is_loopback(self.hostname) or proxy_bypass(self.host):
            return None
        proxies = getproxies()
        url = proxies.get(self.scheme) or proxies.get("all")
        return f"http://{url}" if url and "://" not in url else url

    def quote(self, said: object) -> str:
        """Returns a text from outside on one short line, without the key and without control characters."""
        line = "".join(c for c in " ".join(str(said).split()) if c.isprintable())
        return self.key.hide(line)[:LONGEST_QUOTE]


@cache
def _warn_unencrypted(host: str, what: str) -> None:
    """Warns once per process and host."""
    logger.warning("%s go to %s unencrypted; use https, or a tunnel", what, host)


def is_temporary(status: int) -> bool:
    """Whether a request that got this status may succeed later."""
    return status in TEMPORARY or status >= 500


def backoff(first: float, attempt: int, rng: random.Random) -> float:
    """Returns the seconds to wait after a failed attempt.

    The wait doubles with each attempt, up to a minute. Up to a quarter is taken off at random, so that clients that
    failed together do not return together.

    Args:
        first: seconds after the first attempt.
        attempt: number of attempts so far, at least 1.
        rng: the source of the random part.
    """
    return min(first * 2.0 ** min(attempt - 1, 60), LONGEST_BACKOFF) * rng.uniform(0.75, 1)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a response asks to wait, whether it gives a number or a date; None without a request.

    >>> retry_after({"retry-after": "2"})
    2.0
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            # HTTP dates are in GMT, also in the form that does not say so.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
