"""Run directories with stages that write a text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shfcas.pipeline.run_directory import RunDirectory, StageContext

CONFIG: dict[str, Any] = {"rounds": 2, "ppo": {"learning_rate": 1e-5, "steps": 3}, "page": {"port": 80}}


class Maker:
    """Writes a text and counts how often it was called."""

    def __init__(self, text: str = "made") -> None:
        self.text, self.calls = text, 0
        self.context: StageContext | None = None

    def __call__(self, context: StageContext) -> None:
        self.calls += 1
        self.context = context
        context.output.write_text(self.text)


Open = Callable[..., RunDirectory]


def used(*names: str, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    """Parts of the configuration by their dotted names."""
    found = {}
    for name in names:
        value: Any = config
        for part in name.split("."):
            value = value[part]
        found[name] = value
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".hashes.json"}


def reopened(folder: Path) -> Open:
    """A function that opens a run directory; it closes the one that it opened before."""
    opened: list[RunDirectory] = []

    def open_again(config: dict = CONFIG, seed: int = 0, path: Path | None = None, **options: Any) -> RunDirectory:
        while opened:
            opened.pop()._lock.close()
        run = RunDirectory(path or folder, config, seed, **options)
        run.begin()
        opened.append(run)
        return run

    return open_again
