"""Distributed training: several processes, started by `accelerate launch`, that train one model."""

import os
from collections.abc import Sequence
from typing import TypeVar

import torch

from shfcas.utils.errors import UserError

Item = TypeVar("Item")
TIMEOUT_MINUTES = 60  # maximum wait for another process


def count() -> int:
    """Returns the number of processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Returns the rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Returns whether this is the main process, which writes files and prints results."""
    return index() == 0


def start() -> None:
    """Connects the processes and assigns each its GPU; does nothing for a single process.

    Raises:
        UserError: sharding was requested without a GPU. Accelerate would silently replicate the model instead.
    """
    if count() == 1 or torch.distributed.is_initialized():
        return
    from datetime import timedelta

    from accelerate import DistributedType, PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=TIMEOUT_MINUTES))
    sharded = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "") == "true"]
    if sharded and state.distributed_type == DistributedType.MULTI_CPU:
        raise UserError(f"{sharded[0]}: expected GPUs, got none; use configs/accelerate/cpu-gloo.yaml on a CPU")


def wait() -> None:
    """Waits until all processes have reached this call."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Returns this process's consecutive share of the items; shares differ by at most one item, and may be empty."""
    return items[len(items) * index() // count() : len(items) * (index() + 1) // count()]


def gather(items: Sequence[Item]) -> list[Item]:
    """Returns the items of all processes, in order of rank."""
    if count() == 1:
        return list(items)
    from accelerate.utils import gather_object

    return gather_object(list(items))


def per_process(name: str, value: int) -> int:
    """Returns a setting divided by the number of processes.

    Raises:
        UserError: the setting is not a multiple of the number of processes.
    """
    if value % count():
        raise UserError(
            f"{name}: expected a multiple of the number of processes, {count()}, got {value}; change either number"
        )
    return value // count()


def is_lost_peer(error: BaseException) -> bool:
    """Returns whether an error only reports that another process has ended."""
    message = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "remote process has terminated")
    return count() > 1 and isinstance(error, RuntimeError) and any(sign in message for sign in signs)
