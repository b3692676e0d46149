"""Start of a training command as several processes, one per GPU: `--processes 4`, or `--processes auto`."""

import os
import sys
from collections.abc import Sequence

import torch

from shfcas.utils import distributed
from shfcas.utils.config import unexpected
from shfcas.utils.errors import UsageError

FLAG = "--processes"


def requested(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes the flag out of a command's arguments; returns its value, None without it, and the other arguments."""
    rest: list[str] = []
    value, values = None, iter(arguments)
    for argument in values:
        name, equals, given = argument.partition("=")
        if name != FLAG:
            rest.append(argument)
            continue
        value = given if equals else next(values, None)
        if value is None:
            raise UsageError(f"{FLAG}: expected a number, or auto")
    return value, rest


def number(value: str) -> int:
    """Returns the number of processes; `auto` is one per visible GPU, at least one."""
    if value == "auto":
        return max(1, torch.cuda.device_count())
    if not value.isdecimal() or int(value) < 1:
        raise unexpected(FLAG.lstrip("-"), "a number from 1, or auto", value)
    return int(value)


def start(name: str, arguments: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Returns the command's arguments, or replaces this process by a launcher of several that run it.

    Args:
        name: the command.
        arguments: its arguments.
        commands: the commands that run as several processes.

    Raises:
        UsageError: the command is not one of them, or the flag's value is not a number.
    """
    value, rest = requested(arguments)
    if value is None:
        return rest
    if name not in commands:
        raise UsageError(f"{FLAG}: expected one of the commands {', '.join(commands)}, got {name}")
    count = number(value)
    if count == 1 or distributed.count() > 1:
        return rest
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "shfcas"]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.execv(sys.executable, [sys.executable, *launcher, name, *rest])
