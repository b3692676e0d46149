"""Stopwatch for nested parts; the time of a part excludes its inner parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time of a block to this name; afterwards, time counts for the outer name again."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def follow(self, owner: Any, function: str, name: str) -> None:
        """Adds the time of all further calls of an object's function or method to this name."""
        plain = getattr(owner, function)

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return plain(*args, **kwargs)

        setattr(owner, function, measured)

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
