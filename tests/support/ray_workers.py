"""Workers that write a file for each task, and die, wait or fail where a test wants it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shfcas.utils.errors import UserError
from shfcas.utils.files import atomic_file


class Writer:
    """Writes a file for each task, and says which process did; waits or dies where it is told to.

    Args:
        folder: where the files are written, and the attempts noted.
        before: what is done before a task's file is written.
    """

    def __init__(self, folder: Path, before: Callable[[Path, int], None]) -> None:
        self.folder, self.before = folder, before

    def __call__(self, task: int, tick: Callable[[int], Any]) -> int:
        attempt = self.folder / f"attempt-{task}-{os.getpid()}"
        attempt.touch(exist_ok=False)
        with atomic_file(self.folder / f"task-{task}") as partial_file:
            partial_file.write_text(f"half of {task}")
            self.before(self.folder, task)
            partial_file.write_text(f"all of {task}")
        tick(10)
        return os.getpid()


def nothing(folder: Path, task: int) -> None:
    pass


def die_once(folder: Path, task: int) -> None:
    if task == 3 and len([*folder.glob("attempt-3-*")]) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def always_die(folder: Path, task: int) -> None:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for_go(folder: Path, task: int) -> None:
    """All but the first two tasks wait, so that what is killed is at work."""
    while task > 1 and not (folder / "go").exists():
        time.sleep(0.02)


class Refusing:
    def __call__(self, task: int, tick: Any) -> None:
        raise UserError(f"row {task}, column prompt: empty")


class Broken:
    def __init__(self) -> None:
        import a_module_that_nobody_has  # noqa: F401
