"""Counters of the server in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ANSWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts of values up to each bound, and their sum.

    Args:
        bounds: upper bounds in ascending order.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, text: str) -> Iterable[str]:
        """Returns the histogram as lines of the format."""
        yield from _head(name, text, "histogram")
        total = 0
        for bound, count in zip([*self.bounds, "+Inf"], self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum}"
        yield f"{name}_count {total}"


class Metrics:
    """Counters of requests, answers and rewards. Its methods may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds, self._together = Histogram(SECONDS), Histogram(ANSWERS)
        self._answers, self._sum, self._squares = 0, 0.0, 0.0

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request by the path of its dialect and its status."""
        with self._lock:
            self._requests[path, status] += 1
            self._seconds.add(seconds)

    def together(self, answers: int) -> None:
        """Counts answers that are scored together."""
        with self._lock:
            self._together.add(answers)

    def rewards(self, rewards: Iterable[float | None]) -> None:
        """Counts rewards."""
        with self._lock:
            for reward in rewards:
                if reward is not None:
                    self._answers += 1
                    self._sum += reward
                    self._squares += reward * reward

    def text(self, waiting: int, too_long: int) -> str:
        """Returns all counters.

        Args:
            waiting: answers that wait or are being scored.
            too_long: answers so far that were longer than a model's limit.
        """
        with self._lock:
            lines = list(_head("shfcas_requests_total", "Requests by path and status.", "counter"))
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'shfcas_requests_total{{path="{path}",status="{status}"}} {count}')
            lines += self._seconds.lines("shfcas_request_seconds", "Seconds from request to reply.")
            lines += self._together.lines("shfcas_answers_together", "Answers that were scored together.")
            for name, text, value in (
                ("shfcas_rewards_total", "Rewards sent.", self._answers),
                ("shfcas_rewards_sum", "Sum of the rewards sent; with the total, their mean.", self._sum),
                ("shfcas_rewards_squares", "Sum of their squares, for the standard deviation.", self._squares),
                ("shfcas_too_long_total", "Answers beyond a model's limit.", too_long),
                ("shfcas_waiting_answers", "Answers that wait or are being scored.", waiting),
            ):
                lines += [*_head(name, text, "counter" if name.endswith("_total") else "gauge"), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
