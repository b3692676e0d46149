"""Conclusion of a run: what its rounds changed, what was labelled, and what it took."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.data.candidates import CandidateTable, read_candidates
from shfcas.evaluation.statistics import mean_with_interval
from shfcas.feedback.label_counts import label_counts
from shfcas.utils.files import read_object
from shfcas.utils.numbers import interval

BASE = "round-0/evaluation.parquet"
MEASURES = {"gold": "gold reward", "rewards": "proxy reward"}


def conclusion(run: Path, config: Mapping[str, Any], done: Sequence[str], seconds: float) -> dict[str, Any]:
    """Returns the conclusion of a run or of the demo's arms.

    Args:
        run: the run directory.
        config: its configuration.
        done: names of the finished stages.
        seconds: time of all stages.

    Returns:
        `sentences`: one per arm about its last policy. `labels`: per queue `name`, `asked`, `answered`, `ties` and
        `budget`. `minutes`. `judge`: `cost`, None if it is unknown, and `tokens`; None if no language model was asked.
    """
    return {
        "sentences": _sentences(run, done),
        "labels": _labels(run, config, done),
        "minutes": seconds / 60,
        "judge": _judge(run, done),
    }


def difference(before: CandidateTable, after: CandidateTable, column: str) -> dict[str, Any] | None:
    """Compares the rewards of two policies on the same prompts.

    Args:
        before: answers of the first policy.
        after: answers of the second one.
        column: `gold` or `rewards`.

    Returns:
        The mean over the shared prompts of the difference of mean rewards with its 95 % interval (`mean`, `low`,
        `high`), the number of `prompts`, and whether the interval excludes zero (`distinguishable`). None if a table
        lacks the column, or they share no prompt.
    """
    if column not in before or column not in after:
        return None
    old, new = _means(before, column), _means(after, column)
    shared = [prompt for prompt in new if prompt in old]
    if not shared:
        return None
    found = mean_with_interval([new[prompt] - old[prompt] for prompt in shared])
    return {**found, "prompts": len(shared), "distinguishable": not found["low"] <= 0 <= found["high"]}


def describe(label: str, found: Mapping[str, Any], measure: str) -> str:
    """Says how the rewards of a policy compare with those of the base policy."""
    where = f"(95 %, paired over {found['prompts']} held-out prompts)"
    if not found["distinguishable"]:
        return (
            f"After {label}, the policy's {measure} is not distinguishable from the base policy's: difference "
            f"{interval(found, sign=True)} {where}."
        )
    side = "higher" if found["mean"] > 0 else "lower"
    size = found if found["mean"] > 0 else {"mean": -found["mean"], "low": -found["high"], "high": -found["low"]}
    return f"After {label}, the policy's {measure} is {interval(size)} {side} than the base policy's {where}."


def label_of(stage: str) -> str:
    """Returns a label such as `random, round 1` for `random/round-1/policy`."""
    return stage.rpartition("/")[0].replace("/", ", ").replace("round-", "round ").replace("_", " ")


def _means(table: CandidateTable, column: str) -> dict[str, float]:
    return {
        prompt: float(np.mean(rewards))
        for prompt, rewards in zip(table.column("prompt_id"), table.column(column), strict=True)
    }


def _sentences(run: Path, done: Sequence[str]) -> list[str]:
    """Compares the last policy of each arm with the base policy."""
    stages = [name for name in done if name.endswith("/evaluation.parquet")]
    if BASE not in stages:
        return []
    base = read_candidates(run / BASE)
    last: dict[str, tuple[int, str]] = {}
    for name in stages:
        arm, _, number = name.removesuffix("/evaluation.parquet").rpartition("round-")
        if name != BASE and int(number) > last.get(arm, (0, ""))[0]:
            last[arm] = (int(number), name)
    measure = "gold" if "gold" in base else "rewards"
    sentences = []
    for _, name in last.values():
        found = difference(base, read_candidates(run / name), measure)
        if found is not None:
            sentences.append(describe(label_of(name), found, MEASURES[measure]))
    if sentences and measure == "rewards":
        sentences.append("A higher proxy reward is no evidence of better answers; a gold reward or people can tell.")
    return sentences


def _labels(run: Path, config: Mapping[str, Any], done: Sequence[str]) -> list[dict[str, Any]]:
    feedback = config.get("feedback", "none")
    found = []
    for name in done:
        folder = (run / name).parent
        if name.endswith("/queue.jsonl") and (folder / "preferences.jsonl").exists():
            counts = label_counts(run, folder, feedback, config["selection"]["budget"])
            found.append({"name": label_of(name), **counts})
    return found


def _judge(run: Path, done: Sequence[str]) -> dict[str, Any] | None:
    """Adds up the costs and the tokens of language models, of all rounds."""
    folders = dict.fromkeys((run / name).parent for name in done)
    reports = [read_object(folder / "judge.json") for folder in folders if (folder / "judge.json").exists()]
    compared = [read_object(folder / "win_rate.json") for folder in folders if (folder / "win_rate.json").exists()]
    reports += [found["report"] for found in compared if found.get("report")]
    if not reports:
        return None
    costs = [report["cost"] for report in reports]
    tokens = sum(report["input_tokens"] + report["output_tokens"] for report in reports)
    return {"cost": None if None in costs else sum(costs), "tokens": tokens}
