"""What the demo measures and says: known answers, rules of the conclusion, tables and figure."""

import math
from typing import Any

import numpy as np
import pytest

from shfcas.conflicts.columns import add_conflicts
from shfcas.data.candidates import CandidateTable
from shfcas.demo import labels
from shfcas.demo.conclusion import conclude
from shfcas.demo.figure import labels_figure
from shfcas.demo.labels import BUDGETS, LABEL_FREE, REFINED, Pool, accuracy_against_labels
from shfcas.demo.page import text
from shfcas.demo.scores import what_scores_know
from shfcas.selection import SelectionConfig

BLIND = ("travel", "film")
SELECTION = SelectionConfig(kendall_threshold="q0.3", pacs_threshold="q0")


def worded(truth: float, number: int) -> str:
    return "good " * max(0, round(3 * truth)) + "bad " * max(0, round(-3 * truth)) + str(number)


def made(prompts: int = 24, answers: int = 6, seed: int = 0) -> tuple[CandidateTable, list[list[float]]]:
    """A policy that knows gold, and a reward model that is wrong on the blind topics; texts say how good they are."""
    draw, rows, gold = np.random.default_rng(seed), [], []
    for i in range(prompts):
        topic = ("food", "travel", "film", "sport")[i % 4]
        truth = draw.normal(size=answers)
        sign = -1.0 if topic in BLIND else 1.0
        rows.append(
            {
                "prompt_id": f"p{i}",
                "prompt": f"how was the {topic}?",
                "topic": topic,
                "completions": [
                    "good " * max(0, round(3 * t)) + "bad " * max(0, round(-3 * t)) + f"{k}"
                    for k, t in enumerate(truth)
                ],
                "num_tokens": [3] * answers,
                "logprobs": draw.normal(size=answers).tolist(),
                "contrast_review": (truth + 0.3 * draw.normal(size=answers)).tolist(),
                "rewards": (sign * truth + 0.3 * draw.normal(size=answers)).tolist(),
            }
        )
        gold.append(truth.tolist())
    return add_conflicts(CandidateTable.from_rows(rows), "contrast"), gold


def test_a_score_that_knows_finds_the_blind_topics_and_noise_does_not() -> None:
    table, gold = made(64)

    def worse(part: CandidateTable) -> CandidateTable:
        values = [[-v for v in row] for row in part.column("contrast_review")]
        return CandidateTable(part.table.drop_columns(["contrast_review"]), part.metadata).with_columns(
            contrast_mood=values
        )

    rows = {row["score"]: row for row in what_scores_know(table, gold, worse, BLIND)}
    assert [*rows] == ["logprob", "mean_logprob", "contrast", "mood"]
    assert rows["contrast"]["correlation"]["low"] > 0.8 and rows["contrast"]["finds_blind"]["low"] > 0.9
    assert abs(rows["logprob"]["correlation"]["mean"]) < 0.25
    assert rows["logprob"]["finds_blind"]["low"] < 0.5 < rows["logprob"]["finds_blind"]["high"]
    assert rows["mood"]["prompts"] == 16 and rows["mood"]["correlation"]["high"] < 0


def test_accuracy_against_labels(tiny_models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "SPLITS", 3)
    monkeypatch.setattr(labels, "BUDGETS", (4, 8))
    table, gold = made()
    rows = accuracy_against_labels(Pool(table, gold, tiny_models["reward_model"]), BLIND, SELECTION, 0)
    found = {(row["strategy"], row["arm"], row["budget"]): row for row in rows}
    assert len(found) == len(rows) == 3 + 2 * 2 * 2
    assert found["none", "policy_alone", 0]["mean"] > found["none", "reward_alone", 0]["mean"] + 0.1
    assert found["shf_cas", "arbiter", 8]["mean"] > found["none", "reward_alone", 0]["mean"] + 0.1
    random, conflict = (found[strategy, "arbiter", 8]["mean"] for strategy in ("random", "shf_cas"))
    assert found["shf_cas", "arbiter", 8]["vs_random"]["mean"] == pytest.approx(conflict - random)
    assert "vs_random" not in found["random", "arbiter", 8]
    again = accuracy_against_labels(Pool(table, gold, tiny_models["reward_model"]), BLIND, SELECTION, 0)
    assert again == rows


def interval(mean: float, half: float = 0.05, name: str = "mean") -> dict[str, float]:
    return {name: mean, "low": mean - half, "high": mean + half}


def results(gain: float = 0.2, contrast: float = 0.8, free: float = 0.6) -> dict[str, Any]:
    """Results of a demo that was never run."""
    found: list[dict[str, Any]] = [
        {"strategy": "none", "arm": arm, "budget": 0, **interval(free)} for arm in LABEL_FREE
    ]
    for strategy in ("random", "shf_cas"):
        for arm in REFINED:
            for budget in BUDGETS:
                row = {"strategy": strategy, "arm": arm, "budget": budget, **interval(0.62)}
                found.append(row | ({"vs_random": interval(gain)} if strategy == "shf_cas" else {}))
    policy = {"gold_reward": interval(0.3), "kl": 0.5, "difference": interval(0.1)}
    names = ("base policy", "biased proxy", "second opinion, no labels", "SHF-CAS labels as arbiters")
    scores = [("logprob", 0.49), ("mean_logprob", 0.5), ("contrast", contrast), ("mood", 0.7)]
    return {
        "scores": [
            {"score": s, "name": s, "correlation": interval(0.3), "finds_blind": interval(v, name="value")}
            for s, v in scores
        ],
        "labels": found,
        "reward_models": [{"arm": "biased proxy", **{part: interval(0.5) for part in ("all", "sound", "blind")}}],
        "policies": [{"policy": name, **policy, "difference_to_biased": interval(gain)} for name in names],
        "asked": {"random": {"comparisons": 24, "blind": 9}, "shf_cas": {"comparisons": 24, "blind": 17}},
        "seconds": 350,
    }


def test_the_conclusion_follows_the_numbers() -> None:
    first, second = conclude(results())
    assert first.startswith("Conflicts of the contrast find the blind topics (AUROC 0.80), and those of the log-prob")
    assert "do not clearly find them (0.49)" in first and "clearly better than random ones" in first
    assert "2.0 points above the best arm without labels" in first
    assert second.count("clearly better than PPO on the biased proxy (+0.20 [+0.15, +0.25])") == 2
    first, second = conclude(results(gain=-0.2, contrast=0.3, free=0.7))
    assert "contrast avoid the blind topics" in first and "clearly worse than random ones" in first
    assert "8.0 points below the best arm without labels" in first
    assert second.count("clearly worse than") == 2
    assert conclude(results(gain=0.01))[1].count("not distinguishable from") == 2


def test_the_tables_have_every_number() -> None:
    shown = results()
    lines = text(shown | {"conclusion": conclude(shown)}).splitlines()
    assert lines[0].startswith("Conflicts of the contrast find")
    assert any(line.split("  ")[0] == "policy alone" and "0.600" in line for line in lines)
    assert sum("labels as arbiters" in line and line.count("0.620") == len(BUDGETS) for line in lines) == 2
    assert any("+0.10 [+0.05, +0.15]" in line for line in lines)
    assert "comparisons about blind topics: random 9 of 24, SHF-CAS 17 of 24" in lines
    assert lines[-1] == "all stages took 5.8 minutes"


def test_the_figure_is_the_same_for_the_same_numbers() -> None:
    rows = results()["labels"]
    svg = labels_figure(rows)
    assert svg == labels_figure(rows) and svg.startswith("<svg")
    assert svg != labels_figure([row | {"mean": row["mean"] + 0.01} for row in rows])
    assert not math.isnan(rows[0]["mean"])
