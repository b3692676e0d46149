"""Several processes that train one model, as `accelerate launch` starts them: who is who, and who writes."""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from shfcas.utils.errors import UserError

Item = TypeVar("Item")
TIMEOUT_MINUTES = 60  # that one process may wait for another


def count() -> int:
    """How many processes there are; 1 where nothing launched any."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the one that writes files and prints results."""
    return index() == 0


def start() -> None:
    """Connects the processes and gives each its GPU; does nothing where there is one process.

    Raises:
        UserError: the model is to be sharded, and there is no GPU. Accelerate would copy it instead, and not say so.
    """
    if count() == 1 or torch.distributed.is_initialized():
        return
    from datetime import timedelta

    from accelerate import DistributedType, PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=TIMEOUT_MINUTES))
    sharded = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "") == "true"]
    if sharded and state.distributed_type == DistributedType.MULTI_CPU:
        raise UserError(f"{sharded[0]} needs GPUs, and there is none; use configs/accelerate/cpu-gloo.yaml here")


def wait() -> None:
    """Returns when all processes have come here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's consecutive share of the items; shares differ by one at most, and may be empty."""
    return items[len(items) * index() // count() : len(items) * (index() + 1) // count()]


def gathered(items: Sequence[Item]) -> list[Item]:
    """All processes' items, those of the first one first."""
    if count() == 1:
        return list(items)
    from accelerate.utils import gather_object

    return gather_object(list(items))


def divided(name: str, value: int) -> int:
    """The part of a setting that falls to each process.

    Raises:
        UserError: it cannot be divided equally.
    """
    if value % count():
        raise UserError(
            f"{name}={value} cannot be shared by {count()} processes: make it a multiple of that, or launch others"
        )
    return value // count()


def lost(error: BaseException) -> bool:
    """Whether an error says no more than that another process has ended."""
    said: Any = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "remote process has terminated")
    return count() > 1 and isinstance(error, RuntimeError) and any(sign in said for sign in signs)
