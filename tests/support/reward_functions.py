"""Reward functions that a test names."""

import asyncio
from typing import Any

calls: list[list[str]] = []


def counting(prompts: list, completions: list, **columns: Any) -> list[float]:
    """How many answers the call has."""
    calls.append(completions)
    return [float(len(completions))] * len(completions)


class Gate:
    """Opens when so many wait for it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.waiting: list[asyncio.Future[None]] = []

    async def passed(self) -> None:
        self.waiting.append(asyncio.get_running_loop().create_future())
        if len(self.waiting) == self.count:
            for future in self.waiting:
                future.set_result(None)
        await self.waiting[-1]


gates: dict[str, Gate] = {}


async def gated(prompts: list, completions: list, gate: list, **columns: Any) -> list[float]:
    """Ends when the gate opens."""
    await gates[gate[0]].passed()
    return [1.0] * len(completions)


def picky(prompts: list, completions: list, **columns: Any) -> list[float | None]:
    """Fails in several ways."""
    if "boom" in completions:
        raise RuntimeError("no boom, please")
    return [None if text == "none" else float("nan") if text == "nan" else 1.0 for text in completions]
