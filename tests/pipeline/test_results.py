"""The table at the end of a run: paired differences, labels, and what is left out without gold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shfcas.data.candidates import CandidateTable, write_candidates
from shfcas.data.preferences import Preference, write_preferences
from shfcas.evaluation.statistics import bootstrap_interval
from shfcas.feedback.annotation.schema import make_items
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.results import results, table
from shfcas.selection import Comparison
from shfcas.utils.files import write_json, write_jsonl

PROMPTS = 20
BEFORE = np.linspace(0.0, 10.0, PROMPTS)  # prompts differ far more than rounds do
INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.6}


def candidates(gold: np.ndarray | None) -> CandidateTable:
    rows = []
    for k in range(PROMPTS):
        row: dict[str, Any] = {"prompt_id": f"p{k}", "prompt": f"question {k}", "completions": ["a", "b"]}
        rows.append(row if gold is None else {**row, "gold": [gold[k] - 1, gold[k] + 1]})
    return CandidateTable.from_rows(rows)


def finished(run: Path, golds: list[np.ndarray | None], labels: int = 3) -> RunConfig:
    """Files of a finished run with these gold rewards per round, five comparisons each and so many preferences."""
    stages = {}
    for number, gold in enumerate(golds):
        folder = run / f"round-{number}"
        folder.mkdir(parents=True)
        write_candidates(folder / "evaluation.parquet", candidates(gold))
        metrics: dict[str, Any] = {"kl": 0.25 * number}
        if gold is not None:
            metrics |= {"gold_reward": {"mean": float(gold.mean()), "low": 0.0, "high": 1.0}, "win_rate": INTERVAL}
            metrics["pair_accuracy"] = 0.6 + 0.1 * number
        write_json(folder / "metrics.json", metrics)
        queue = [vars(Comparison(f"p{k}", 0, 1)) for k in range(5)]
        write_jsonl(folder / "queue.jsonl", queue)
        write_preferences(folder / "preferences.jsonl", [Preference(f"question {k}", "a", "b") for k in range(labels)])
        stages |= {f"round-{number}/a": {"seconds": 60.0}, f"round-{number}/b": {"seconds": 30.0}}
    write_json(run / "manifest.json", {"stages": stages})
    return RunConfig(rounds=len(golds) - 1)


def test_differences_are_paired_over_prompts(tmp_path: Path) -> None:
    gains = np.random.default_rng(0).normal(0.5, 0.3, PROMPTS)
    config = finished(tmp_path, [BEFORE, BEFORE + gains, BEFORE + gains - gains.mean()])
    first, better, same = results(config, tmp_path)
    assert "difference" not in first and "labels" not in first
    low, high = bootstrap_interval(list(gains))
    assert better["difference"]["mean"] == pytest.approx(gains.mean())
    assert (better["difference"]["low"], better["difference"]["high"]) == pytest.approx((low, high))
    assert better["distinguishable"] and not same["distinguishable"]
    assert (better["accuracy_before"], better["accuracy_after"]) == pytest.approx((0.6, 0.7))
    assert better["labels"] == {"asked": 5, "answered": 5, "ties": 2, "budget": 100}
    assert better["minutes"] == 1.5
    text = table([first, better, same])
    assert [line.split()[0] for line in text.splitlines()] == ["round", "0", "1", "2"]
    assert [("not distinguishable" in line) for line in text.splitlines()] == [False, False, False, True]
    assert f"{gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]" in text


def test_without_gold_there_are_labels_kl_and_minutes(tmp_path: Path) -> None:
    config = finished(tmp_path, [None, None])
    text = table(results(config, tmp_path))
    head, first, second = (line.split() for line in text.splitlines())
    assert head == ["round", "asked", "answered", "ties", "budget", "KL", "minutes"]
    assert first == ["0", "-", "-", "-", "-", "0.00", "1.5"]
    assert second == ["1", "5", "5", "2", "100", "0.25", "1.5"]
    config.feedback = "none"
    assert table(results(config, tmp_path)).split()[:3] == ["round", "KL", "minutes"]


def test_a_judges_failures_are_no_answers(tmp_path: Path) -> None:
    config = finished(tmp_path, [None, None])
    config.feedback = "judge"
    write_json(tmp_path / "round-1" / "judge.json", {"ties": 0, "order_disagreements": 1, "failed": 1})
    assert results(config, tmp_path)[1]["labels"] == {"asked": 5, "answered": 4, "ties": 1, "budget": 100}


def test_comparisons_that_nobody_answered_are_no_ties(tmp_path: Path) -> None:
    config = finished(tmp_path, [None, None], labels=0)
    config.feedback = "human"
    queue = [Comparison(f"p{k}", 0, 1) for k in range(5)]
    with Store(tmp_path / STORE) as store:
        store.add_queue(make_items(queue, candidates(None), "round-1", 1), 0)
    assert results(config, tmp_path)[1]["labels"] == {"asked": 5, "answered": 0, "ties": 0, "budget": 100}
