"""Logged completions: one file of JSON lines per rollout, and a table for trackers that support one."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shfcas.utils.files import to_json

FOLDER = "completions"
TRACKERS = ("wandb", "trackio")


def write_samples(output_dir: Path, rollout: int, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `completions/00007.jsonl` for rollout 7; a repeated rollout replaces its file."""
    path = output_dir / FOLDER / f"{rollout:05d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def track_samples(report_to: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Logs the rows as table `completions` to wandb and trackio, if the trainer reports to them."""
    trackers = [importlib.import_module(name) for name in TRACKERS if name in report_to]
    if not trackers:
        return
    import pandas

    text = ("prompt", "completion")
    table = pandas.DataFrame([row | {name: _plain(row[name]) for name in text} for row in rows])
    for tracker in trackers:
        tracker.log({"completions": tracker.Table(dataframe=table)})


def _plain(text: Any) -> str:
    """Converts messages to text, since tables cannot contain lists."""
    return text if isinstance(text, str) else "\n".join(f"{m['role']}: {m['content']}" for m in text)
