"""What clients of HTTP endpoints have in common: which failures pass, how long to wait, what may be said of them."""

import random
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from shfcas.utils.errors import UsageError

WORTH_ANOTHER = (408, 409, 425, 429)  # and all from 500
LONGEST_WAIT = 60.0  # seconds between two attempts, where the endpoint names no time
LONGEST_RETRY_AFTER = 600.0
SHORTEST_SECRET = 8


def check_base_url(url: str, where: str) -> str:
    """Returns the address of an endpoint if it is one, and without credentials, which would end up in files.

    Raises:
        UsageError: it is not.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (a property that raises)
    except ValueError:
        raise UsageError(f"{where}: not an address; expected something like http://localhost:8000/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{where}: expected an address such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"{where}: leave names, passwords and queries out; the key is read from OPENAI_API_KEY")
    return url


def is_unencrypted(parts: SplitResult) -> bool:
    """Whether what is sent to an address can be read on its way."""
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def pause(first: float, attempt: int) -> float:
    """Seconds before another attempt: twice as long each time, and not the same for all who wait."""
    return min(first * 2**attempt, LONGEST_WAIT) * random.uniform(0.75, 1)


def hidden(text: str, key: str) -> str:
    """A text without the key. A short one is no secret but a word such as EMPTY, as servers without keys want it."""
    return text.replace(key, "***") if len(key) >= SHORTEST_SECRET else text


def words(said: object, key: str) -> str:
    """What somebody else said, on one line, short, without the key and without control characters."""
    line = " ".join(hidden(str(said), key).split())
    return "".join(c for c in line if c.isprintable())[:200] or type(said).__name__


def retry_after(headers: Any) -> float | None:
    """The seconds that a response asks to wait, given as a number or as a date; None if it does not ask.

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
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
