"""A limit on how much the page's server logs, so that nobody can fill the disk with errors that they cause."""

import logging
import threading
import time
from collections.abc import Callable

MOST, SECONDS = 20, 60.0


class LogLimit(logging.Filter):
    """Filter that lets a message through at most `most` times within `seconds`, then counts those left out.

    Messages are told apart by their template, not by their values. Debug messages, which are off unless asked for,
    always pass.

    Args:
        most: messages of one kind per interval.
        seconds: length of the interval.
        clock: returns the time in seconds.
    """

    KINDS = 1000

    def __init__(self, most: int = MOST, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most, self._seconds, self._clock = most, seconds, clock
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}  # begin of the interval, messages since then

    def filter(self, record: logging.LogRecord) -> bool:
        """Says whether a message is logged, and adds the number of those left out before it."""
        if record.levelno < logging.WARNING:
            return True
        kind, now = (record.name, str(record.msg)[:200]), self._clock()
        with self._lock:
            begin, count = self._kinds.get(kind, (now, 0))
            left_out = 0
            if now >= begin + self._seconds:
                begin, count, left_out = now, 0, max(0, count - self._most)
            if kind not in self._kinds and len(self._kinds) >= self.KINDS:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[kind] = (begin, count + 1)
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more like this)", ()
        return count < self._most


_LIMITED = (
    "uvicorn.error",
    "shfcas.feedback.web.security",
    "shfcas.feedback.web.app",
    "shfcas.feedback.web.connections",
)
_LIMIT = LogLimit()


def limit_logs() -> None:
    """Limits the messages that requests can cause; a second call changes nothing."""
    for name in _LIMITED:
        logging.getLogger(name).addFilter(_LIMIT)
