"""Termination by a signal: SIGTERM and SIGHUP end a command as Ctrl-C does, after its clean-up."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shfcas.utils import distributed

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
REPEAT_SECONDS = 10.0  # a signal that follows another one sooner does not interrupt the clean-up


class Stopped(KeyboardInterrupt):
    """Interruption by a signal other than Ctrl-C's.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """Returns the exit code of a command that a signal ended: 128 and the number of the signal."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises `Stopped` in the block on SIGTERM and SIGHUP, unless the process was started to ignore them.

    Several processes of one training are left alone: whoever started them ends all at once when one of them fails, and
    one that waits for the others in a collective operation would never see an exception.
    """
    if threading.current_thread() is not threading.main_thread() or distributed.count() > 1:
        yield
        return
    process, last = os.getpid(), -REPEAT_SECONDS

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != process:  # a forked child ends as it would without this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        before, last = last, time.monotonic()
        if last >= before + REPEAT_SECONDS:
            raise Stopped(number)

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    replaced = {number: handler for number, handler in handlers.items() if handler == signal.SIG_DFL}
    for number in replaced:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
