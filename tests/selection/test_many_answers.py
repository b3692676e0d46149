"""Prompts with very many answers: time grows with their number, and what would grow with its square is refused."""

import time

import numpy as np
import pytest

from shfcas.conflicts.columns import add_conflicts
from shfcas.data.candidates import CandidateTable
from shfcas.selection import SELECTABLE, Row, SelectionConfig, select
from shfcas.selection.pairing import MOST_ANSWERS, opposed_pairs
from shfcas.utils.errors import UserError
from tests.support.selection_rows import row

PAIRED = ("shf_cas", "kendall", "pacs")
LINEAR = (*PAIRED, "double_thompson", "rso")


def crowded(answers: int) -> Row:
    rng = np.random.default_rng(answers)
    members = rng.standard_normal((answers, 3))
    columns = {"rewards": members.mean(axis=1).tolist(), "reward_variances": members.var(axis=1, ddof=1).tolist()}
    pacs = rng.standard_normal(answers).tolist()
    return row("a", pacs, 0.5, **columns, member_rewards=members.tolist())


@pytest.mark.parametrize("pairing", ["extreme", "adjacent", "random"])
@pytest.mark.parametrize("strategy", PAIRED)
def test_each_answer_costs_the_same(strategy: str, pairing: str) -> None:
    """A hundred times the answers; quadratic time would be ten thousand times as long."""
    few, many = crowded(300), crowded(30_000)
    config = SelectionConfig(strategy=strategy, pairing=pairing, budget=100, kendall_threshold="0", pacs_threshold="0")
    spent = []
    for table in (few, many):
        began = time.process_time()
        assert len(select([table], config)) == 100
        spent.append(time.process_time() - began)
    assert spent[1] < max(1000 * spent[0], 10.0)


def test_opposed_pairs_take_answers_from_both_ends() -> None:
    for answers in range(2, 8):
        one = crowded(answers)
        order = sorted(range(answers), key=one["pacs"].__getitem__)
        found = [(c.first, c.second) for c in opposed_pairs(one, list(range(answers)))]
        assert found == [(order[-1 - k], order[k]) for k in range(answers // 2)]


@pytest.mark.parametrize("strategy", [name for name in SELECTABLE if name not in LINEAR])
def test_too_many_pairs_are_refused_before_they_fill_the_memory(strategy: str) -> None:
    config = SelectionConfig(strategy=strategy, budget=10, mean_pacs_threshold="0")
    message = r"prompt 'a': expected at most 4,096 answers .*, got 100,000 with 4,999,950,000 pairs; use strategy"
    with pytest.raises(UserError, match=message):
        select([crowded(100_000)], config)


@pytest.mark.parametrize(
    "change", [{"strategy": "shf_cas", "pairing": "all"}, {"strategy": "shf_cas", "audit_share": 0.5}]
)
def test_all_pairs_of_other_settings_are_refused_too(change: dict) -> None:
    config = SelectionConfig(budget=10, kendall_threshold="0", pacs_threshold="0", **change)
    with pytest.raises(UserError, match="expected at most 4,096 answers"):
        select([crowded(MOST_ANSWERS + 1)], config)


@pytest.mark.parametrize("strategy", ["double_thompson", "rso"])
def test_strategies_without_all_pairs_take_many_answers(strategy: str) -> None:
    assert select([crowded(20_000)], SelectionConfig(strategy=strategy, budget=2))


def test_scores_of_many_answers_take_linear_memory() -> None:
    one = crowded(200_000)
    given = {"prompt_id": "a", "prompt": "p", "completions": [str(i) for i in range(200_000)]}
    table = CandidateTable.from_rows([{**given, "rewards": one["rewards"], "logprobs": one["pacs"]}])
    scored = add_conflicts(table)
    assert len(scored.column("pacs")[0]) == 200_000 and not scored.column("degenerate")[0]
