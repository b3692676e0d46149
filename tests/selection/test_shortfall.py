"""Selections that are smaller than the budget: the cause, and a remedy that fits it."""

from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.conflicts.columns import add_conflicts
from shfcas.data.candidates import CandidateTable, write_candidates
from shfcas.selection import SelectionConfig, select_with_report
from shfcas.selection.shortfall import reason, shortfall


@pytest.mark.parametrize(
    ("settings", "degenerate", "expected"),
    [
        ({}, 0, "kendall_threshold q0.5 and pacs_threshold q0.5 leave no more; lower the thresholds"),
        (
            {"pacs_threshold": "q0"},
            10,
            "kendall_threshold q0.5 leave no more; lower the threshold; 10 of 100 prompts are degenerate (",
        ),
        ({"kendall_threshold": "auto"}, 0, "lower the thresholds, or raise false_discovery_rate"),
        ({"strategy": "random"}, 0, "the table has no more pairs of different answers; sample more answers per prompt"),
        ({"kendall_threshold": "q0", "pacs_threshold": 0}, 0, "the table has no more pairs of different answers"),
        ({}, 100, "every prompt is degenerate (all rewards or all log-probabilities equal"),
    ],
)
def test_the_remedy_fits_the_cause(settings: dict, degenerate: int, expected: str) -> None:
    found = shortfall(896, 100, degenerate, SelectionConfig(budget=5000, **settings))
    assert found is not None and found.startswith("896 of 5,000 comparisons: ") and expected in found
    assert ("do not help" in found) == (degenerate == 100)
    assert "\n" not in found


def test_a_budget_that_is_spent_needs_no_word() -> None:
    assert shortfall(5000, 100, 0, SelectionConfig(budget=5000)) is None


def rows(prompts: int) -> list[dict]:
    return [
        {
            "prompt_id": f"p{k}",
            "prompt": f"question {k}",
            "completions": ["a", "b"],
            "logprobs": [-1.0, -2.0],
            "rewards": [0.0, 1.0 + k],
        }
        for k in range(prompts)
    ]


def test_select_reports_and_logs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = add_conflicts(CandidateTable.from_rows(rows(3)), "logprob")
    settings = SelectionConfig(strategy="random", budget=3)
    assert select_with_report(table.rows(), settings).report["shortfall"] is None
    write_candidates(tmp_path / "c.parquet", table)
    flags = ["--strategy", "random", "--budget", "9", "--output", str(tmp_path / "q.jsonl")]
    assert main(["select", str(tmp_path / "c.parquet"), *flags]) == 0
    assert "3 of 9 comparisons: the table has no more pairs of different answers" in capsys.readouterr().err


EQUAL = "all rewards or all log-probabilities equal, a value not a number, or one answer"
DEGENERATE = f"; 1,234 of 2,000 prompts are degenerate ({EQUAL})"


@pytest.mark.parametrize(
    ("settings", "degenerate", "expected"),
    [
        (
            {},
            0,
            "kendall_threshold q0.5 and pacs_threshold q0.5 leave no more; lower the thresholds",
        ),
        (
            {"kendall_threshold": " 0.25 ", "pacs_threshold": 0},
            1234,
            f"kendall_threshold 0.25 leave no more; lower the threshold{DEGENERATE}",
        ),
        (
            {"kendall_threshold": "auto", "pacs_threshold": "q0"},
            0,
            "kendall_threshold auto leave no more; lower the threshold, or raise false_discovery_rate",
        ),
        (
            {"kendall_threshold": " auto ", "pacs_threshold": 2.5},
            1234,
            "kendall_threshold auto and pacs_threshold 2.5 leave no more; lower the thresholds, or raise "
            f"false_discovery_rate{DEGENERATE}",
        ),
        (
            {"strategy": "kendall", "kendall_threshold": -1},
            1234,
            "the table has no more pairs of different answers; sample more answers per prompt, or add prompts"
            f"{DEGENERATE}",
        ),
        (
            {"strategy": "random"},
            2000,
            f"every prompt is degenerate ({EQUAL}), so lower thresholds do not help; check the reward model, or sample "
            "answers that differ more",
        ),
    ],
)
def test_the_whole_sentence(settings: dict, degenerate: int, expected: str) -> None:
    assert reason(2000, degenerate, SelectionConfig(**settings)) == expected
    found = shortfall(1000, 2000, degenerate, SelectionConfig(budget=5001, **settings))
    assert found == f"1,000 of 5,001 comparisons: {expected}"


def test_an_empty_table_is_not_degenerate() -> None:
    assert reason(0, 0, SelectionConfig("random")).startswith("the table has no more pairs of different answers")


def test_more_than_the_budget_is_no_shortfall() -> None:
    assert shortfall(101, 10, 10, SelectionConfig(budget=100)) is None
    assert shortfall(99, 10, 10, SelectionConfig(budget=100)) is not None
