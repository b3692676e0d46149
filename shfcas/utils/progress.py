"""Progress of long work: bars on a terminal, and log lines every half minute without one."""

import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tqdm.auto import tqdm

from shfcas.utils import distributed

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two log lines
PATIENT = 600.0  # the same while people are waited for
POLL = 1.0  # seconds between two looks at the clock
clock = time.monotonic
_open: "weakref.WeakSet[LoggedProgress]" = weakref.WeakSet()


def progress(
    items: Iterable[Any] | None = None,
    desc: str = "",
    total: int | None = None,
    *,
    initial: int = 0,
    every: float = EVERY,
) -> Any:
    """Returns a bar on a terminal, log lines elsewhere, and nothing in all processes but the first.

    Args:
        items: iterated over; None if `update` is called.
        desc: name of the work.
        total: number of steps; None takes the length of `items`, if it has one.
        initial: steps that were done before.
        every: seconds between two log lines.
    """
    if sys.stderr.isatty() or not distributed.is_main():
        hidden = not distributed.is_main()
        return tqdm(items, desc=desc, total=total, initial=initial, disable=hidden, leave=False)
    return LoggedProgress(items, desc, total, initial=initial, every=every)


def stage_progress(name: str) -> AbstractContextManager[Any]:
    """Returns a context in which log lines say that a stage is running, while no progress inside it is logged."""
    if sys.stderr.isatty() or not distributed.is_main():
        return nullcontext()
    return LoggedProgress(None, name, background=True)


class LoggedProgress:
    """Progress as log lines, with the interface of a tqdm bar; work that is done before the first is silent.

    A thread looks at the clock, so a line is written also while one step takes long.

    Args:
        items: see `progress`.
        desc: see `progress`.
        total: see `progress`.
        initial: see `progress`.
        every: see `progress`.
        background: write nothing while another progress is open.
    """

    def __init__(
        self,
        items: Iterable[Any] | None,
        desc: str,
        total: int | None = None,
        *,
        initial: int = 0,
        every: float = EVERY,
        background: bool = False,
    ) -> None:
        self.items, self.desc, self.n, self.initial = items, desc, initial, initial
        self.total = len(items) if total is None and hasattr(items, "__len__") else total  # type: ignore[arg-type]
        self.every, self.background = every, background
        self._started = self._logged = clock()
        self._lock, self._closed = threading.Lock(), threading.Event()
        if not background:
            _open.add(self)
        threading.Thread(target=_watch, args=(weakref.ref(self), self._closed), daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.items or ():
                yield item
                self.update()

    def __enter__(self) -> "LoggedProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Counts steps."""
        with self._lock:
            self.n += count
        self.look()

    def close(self) -> None:
        """Ends the log lines."""
        self._closed.set()
        _open.discard(self)

    def look(self) -> None:
        """Writes a line if the last one is old enough."""
        with self._lock:
            now = clock()
            if self._closed.is_set() or now - self._logged < self.every:
                return
            self._logged = now
            if self.background and len(_open):
                return
            line = self._line(now - self._started)
        logger.info("%s", line)

    def _line(self, seconds: float) -> str:
        done, parts = self.n - self.initial, []
        if self.n or self.total:
            count = f"{self.n:,} of {self.total:,} ({self.n / self.total:.0%})" if self.total else f"{self.n:,}"
            parts.append(count)
        if done > 0:
            rate = done / seconds
            parts.append(f"{rate:.3g} per second" if rate >= 0.1 else f"{duration(1 / rate)} each")
            if self.total:
                parts.append(f"{duration((self.total - self.n) / rate)} left")
        else:
            parts.append(f"running for {duration(seconds)}")
        return f"{self.desc}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Formats a time.

    >>> duration(42), duration(90), duration(7300)
    ('42 s', '1 min 30 s', '2 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _watch(reference: "weakref.ref[LoggedProgress]", closed: threading.Event) -> None:
    """Looks at the clock until the progress is closed, or forgotten because an error ended the work."""
    while not closed.wait(POLL):
        found = reference()
        if found is None:
            return
        found.look()
        del found


def trainer_progress(desc: str) -> Any:
    """Returns a transformers callback that shows the steps of a training stage."""
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = progress(desc=desc, total=state.max_steps, initial=state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    return Bar()


def rollout_log(desc: str, total: int) -> Any:
    """Returns a transformers callback that logs the metrics of each rollout where there is no terminal.

    Args:
        desc: name of the work.
        total: number of rollouts.
    """
    from transformers import TrainerCallback

    class Rows(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "rollout" not in logs or sys.stderr.isatty() or not distributed.is_main():
                return
            shown = {key: value for key, value in logs.items() if key.startswith(("objective/", "eval_", "policy/"))}
            values = ", ".join(f"{key} {value:.4g}" for key, value in shown.items() if isinstance(value, int | float))
            logger.info("%s rollout %d of %d: %s", desc, logs["rollout"] + 1, total, values)

    return Rows()
