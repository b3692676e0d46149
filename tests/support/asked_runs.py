"""Runs in which a person labels and compares: their configuration, a person who answers at once, and what came out."""

import json
from pathlib import Path
from typing import Any

import pytest

from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.human import HumanFeedback
from tests.support.interruption import Killed
from tests.support.queues import judged

HUMAN = """
feedback: human
human: {port: 0, repeat_share: 0}
"""


def better(first: str, second: str) -> str:
    """What the person answers: the longer one."""
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


def answer_through_store(monkeypatch: pytest.MonkeyPatch, killed_after: list[int]) -> None:
    """One person answers what is left, through the store. A number in the list kills the run after so many answers."""

    def wait(self: HumanFeedback, store: Store, items: Any, rows: int) -> None:
        for item in items:
            if item.id not in self._open(items, store.judgements(self.queue)):
                continue
            if killed_after and killed_after[0] == 0:
                killed_after.pop()
                raise Killed("while people answer")
            store.record(judged(item, "annotator", better(item.first_text, item.second_text)))
            if killed_after:
                killed_after[0] -= 1

    monkeypatch.setattr(HumanFeedback, "_wait", wait)


def outputs(run: Path) -> dict[str, str]:
    """The hash of each stage's output, and of each answer of people."""
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert {stage["state"] for stage in stages.values()} == {"done"}
    with Store(run / STORE, read_only=True) as store:
        answers = {f"answer to {j.item} by {j.annotator}": j.choice for j in store.judgements()}
        assert len(answers) == len(store.judgements())  # no comparison was asked twice
    return {name: stage["output"] for name, stage in stages.items()} | answers
