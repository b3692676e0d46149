"""Engines that run tasks in this process or on a Ray cluster, with the same results."""

from collections.abc import Iterator
from contextlib import contextmanager

from shfcas.engines.protocol import ENGINES, Engine, RayConfig, Result, Task, Tick, Worker

__all__ = ["ENGINES", "Engine", "RayConfig", "Result", "Task", "Tick", "Worker", "open_engine"]


@contextmanager
def open_engine(name: str, settings: RayConfig) -> Iterator[Engine]:
    """Opens the engine with this name from `ENGINES`, and closes it at the end.

    Raises:
        UserError: the cluster is not reachable.
        ModuleNotFoundError: Ray is not installed.
    """
    if name == "local":
        from shfcas.engines.local import LocalEngine

        yield LocalEngine()
        return
    from shfcas.engines.ray import RayEngine

    with RayEngine(settings) as engine:
        yield engine
