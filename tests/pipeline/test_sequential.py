"""Strategy auto: batches, their verdicts, when it stops, and a page whose queue grows."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shfcas.data.preferences import Preference, read_preferences
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.web.annotators import Annotators, add_annotators
from shfcas.feedback.web.server import running
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.run import run
from shfcas.pipeline.sequential import session
from shfcas.selection import Comparison, SelectionConfig, select
from shfcas.utils.config import build
from shfcas.utils.errors import NothingSelected, UsageError, UserError
from shfcas.utils.files import content_hash, read_json, read_jsonl
from tests.support import tiny
from tests.support.page_client import Client, answer_all

EQUAL = (0.5, 0.5)


def scored(prompts: int, seed: int, proxy: float, policy: float) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows whose rewards and policy scores have these correlations with the truth, and the truth, (prompts, 6)."""
    rng = np.random.default_rng(seed)
    truth, noise, other = rng.standard_normal((3, prompts, 6))

    def standard(values: np.ndarray) -> np.ndarray:
        return (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)

    reward = standard(proxy * truth + np.sqrt(1 - proxy**2) * noise)
    score = standard(policy * truth + np.sqrt(1 - policy**2) * other)
    rows = [
        {
            "prompt_id": str(i),
            "prompt": str(i),
            "completions": [f"answer {k}" for k in range(6)],
            "rewards": reward[i].tolist(),
            "pacs": (reward[i] - score[i]).tolist(),
        }
        for i in range(prompts)
    ]
    return rows, truth


class Truth:
    """A judge that knows the truth and remembers what it was asked."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth, self.batches, self.labels = truth, list[list[Comparison]](), list[Preference]()

    def __call__(self, batch: Sequence[Comparison], asked: Sequence[Comparison]) -> list[Preference]:
        self.batches.append(list(batch))
        assert [c for each in self.batches for c in each] == list(asked)
        for c in batch:
            values = self.truth[int(c.prompt_id)]
            best, worst = (c.first, c.second) if values[c.first] > values[c.second] else (c.second, c.first)
            found = {"prompt_id": c.prompt_id, "chosen_index": best, "rejected_index": worst}
            self.labels.append(Preference(c.prompt_id, "a", "b", **found))
        return self.labels


def asked_by(proxy: float, policy: float, seed: int, **settings: Any) -> tuple[Truth, list[Comparison], list[Any]]:
    rows, truth = scored(40, seed, proxy, policy)
    judge = Truth(truth)
    selection = SelectionConfig(strategy="auto", **{"budget": 80, **settings})
    asked, steps = session(rows, judge, selection=selection, trust=EQUAL, seed=seed)
    return judge, asked, steps


def test_it_begins_with_random_pairs_asks_none_twice_and_says_why_it_stops() -> None:
    judge, asked, steps = asked_by(0.6, 0.4, 0)
    assert all(c.audit for c in judge.batches[0]) and len(judge.batches[0]) == 8
    assert len({c.pair for c in asked}) == len(asked) <= 80
    assert steps[0].action == "audit" and steps[-1].action == "stop"
    assert steps[-1].not_asked == 80 - len(asked)
    assert f"{80 - len(asked)} labels not asked for" in steps[-1].text()
    again, _, _ = asked_by(0.6, 0.4, 0)
    assert again.batches == judge.batches


def test_a_lower_bar_asks_for_more_and_the_budget_is_never_exceeded() -> None:
    counts = [len(asked_by(0.5, 0.5, 1, worth=worth)[1]) for worth in (1.0, 0.005, 0.0)]
    assert counts[0] == 8 and counts == sorted(counts) and counts[2] == 80
    judge, asked, steps = asked_by(0.5, 0.5, 2, worth=0.0, budget=21, batch=5)
    assert [len(batch) for batch in judge.batches] == [5, 5, 5, 5, 1] and len(asked) == 21
    assert "the budget is spent" in steps[-1].text()


def test_ties_are_no_labels_and_end_with_the_budget() -> None:
    rows, _ = scored(20, 0, 0.5, 0.5)
    asked, steps = session(
        rows, lambda batch, asked: [], selection=SelectionConfig(strategy="auto", budget=24), trust=EQUAL, seed=0
    )
    assert len(asked) == 24 and [step.action for step in steps] == ["audit"] * 3 + ["stop"]


def test_equal_answers_leave_nothing_to_ask() -> None:
    rows, truth = scored(2, 0, 0.5, 0.5)
    same = [{**row, "completions": ["same"] * 6} for row in rows]
    with pytest.raises(NothingSelected, match="auto: no prompt has two different answers"):
        session(same, Truth(truth), selection=SelectionConfig(strategy="auto"), trust=EQUAL, seed=0)


def test_a_table_alone_cannot_be_selected_from() -> None:
    with pytest.raises(UserError, match="auto decides by the labels so far, and a table has none"):
        select(scored(3, 0, 0.5, 0.5)[0], SelectionConfig(strategy="auto"))


@pytest.fixture(scope="module")
def values(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("values")
    values = tiny.run_values(folder, tiny_models)
    return {
        **values,
        "preflight": None,
        "selection": {"strategy": "auto", "budget": 12, "batch": 4, "worth": 0.0},
        "reward": {**values["reward"], "refine": "arbitrate", "held_out": 0},
        "rl": {"algorithm": "best_of_n", "best_of_n": {"n": 2}},
        "human": {"port": 0, "repeat_share": 0},
    }


def test_it_needs_labels_that_arbitrate(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"refine: expected arbitrate with selection.strategy auto, got 'labels'"):
        build(RunConfig, {**values, "reward": {"refine": "labels"}})


def test_a_run_reports_each_decision_and_labels_what_it_asked(values: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run" / "round-1"
    run(build(RunConfig, {**values, "output": str(tmp_path / "run")}))
    queue, report = read_jsonl(folder / "queue.jsonl"), read_json(folder / "auto.json")
    assert len(queue) == 12 and report["steps"][-1]["action"] == "stop" and len(report["steps"]) >= 3
    assert report["summary"].endswith("the budget is spent; 0 labels not asked for")
    labels = read_preferences(folder / "preferences.jsonl")
    assert report["steps"][-1]["labels"] == len(labels) > 0
    before = content_hash(folder / "queue.jsonl")
    stricter = {**values["selection"], "worth": 1.0}
    run(build(RunConfig, {**values, "selection": stricter, "output": str(tmp_path / "run")}), approve=lambda plan: True)
    assert read_jsonl(folder / "queue.jsonl") == queue[: len(read_jsonl(folder / "queue.jsonl"))]
    assert len(read_jsonl(folder / "queue.jsonl")) < 12 and content_hash(folder / "queue.jsonl") != before


def test_the_queue_of_the_page_grows_batch_by_batch(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shfcas.feedback.human.QUIET_POLLS", 1)
    add_annotators(tmp_path, ["ada"])
    config = build(RunConfig, {**values, "feedback": "human", "output": str(tmp_path)})
    thread = threading.Thread(target=run, args=(config,), daemon=True)
    thread.start()
    addresses, answered, end = set(), 0, time.monotonic() + 300
    while answered < 12:
        assert thread.is_alive() and time.monotonic() < end
        if address := running(tmp_path):
            addresses.add(address)
            person = Client(address)
            person.sign_in(Annotators(tmp_path).tokens()["ada"])
            answered += answer_all(person, lambda task: "left")
        time.sleep(0.05)
    thread.join(timeout=300)
    assert not thread.is_alive() and len(addresses) == 1  # one page, kept open
    with Store(tmp_path / STORE) as store:
        assert len(store.items("round-1")) == len(store.judgements()) == 12
    assert len(read_preferences(tmp_path / "round-1" / "preferences.jsonl")) == 12
