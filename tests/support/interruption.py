"""A run that dies at a chosen point, played inside this process.

What a process killed by SIGKILL leaves behind is what it had written. So after the chosen point every further use of
the folder fails too, also the clean-up of `finally` clauses. Real kills are in the tests marked `system`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.copyfile", "shutil.rmtree"}
_armed: tuple[Path, str] | None = None
_dead = False


class Killed(BaseException):
    """The end of the process; a BaseException, as nothing may handle it."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Ends the run at the first change of the folder after the path is there. Python calls it before each change."""
    global _dead
    if _armed is None or not (event in CHANGES or (event == "open" and _writes(*arguments))):
        return
    folder, pattern = _armed
    paths = [Path(os.fsdecode(path)) for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
    if any(path.is_relative_to(folder) for path in paths):
        _dead = _dead or any(folder.glob(pattern))
        if _dead:
            raise Killed(f"{pattern}: before {event} of {paths[0]}")


def _writes(path: Any, mode: str | None, flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


sys.addaudithook(_audit)  # cannot be removed; it does nothing while no folder is armed


@contextmanager
def killed_at(folder: Path, pattern: str) -> Iterator[None]:
    """Expects that the block is killed as soon as a path of the folder matches the pattern.

    Raises:
        AssertionError: the block ended before.
    """
    global _armed, _dead
    _armed, _dead = (folder, pattern), False
    try:
        yield
    except Killed:
        return
    finally:
        _armed = None
    raise AssertionError(f"the run ended before {pattern} was there")
