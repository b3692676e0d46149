"""The strategy `arbiter`: its design against brute force over the whole table, groups, and tables in parts."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import zscore

from shfcas.data.shards import TableRows
from shfcas.engines.local import LocalEngine
from shfcas.rewards.arbiter import PRIOR_SD, SPREAD
from shfcas.selection import SelectionConfig, columns_to_read, select, select_with_report
from shfcas.selection.design import Scores, arbiter, first_belief, gap_moments, moment_matrix
from shfcas.selection.protocol import Comparison
from shfcas.selection.sharded import select_table
from shfcas.utils.errors import UserError
from tests.support.selection_rows import row


def scored(prompts: int, answers: int = 5, seed: int = 0, topics: str = "ab") -> list[dict[str, Any]]:
    """Prompts with rewards and policy scores, and the conflicts that follow from them."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(prompts):
        rewards, scores = draw.standard_normal((2, answers))
        pacs = (zscore(rewards) - zscore(scores)).tolist()
        rows.append(row(f"p{i}", pacs, 0.5, rewards=rewards.tolist(), scores=scores.tolist(), topic=topics[i % 2]))
    return rows


def features(rows: list[dict[str, Any]], groups: str) -> tuple[list[tuple[str, int, int]], np.ndarray]:
    """All pairs with the arbiter's features, from the policy's own scores instead of PACS."""
    keys, found = [], []
    for r in rows:
        reward, policy = zscore(r["rewards"]), zscore(r["scores"])
        for i, j in combinations(range(len(reward)), 2):
            keys.append((r["prompt_id"], i, j))
            own = [(reward[i] - reward[j]) * (r["topic"] == group) for group in groups]
            found.append([reward[i] - reward[j], policy[i] - policy[j], *own])
    return keys, np.array(found)


@pytest.mark.parametrize("groups", ["", "ab"])
def test_each_choice_shrinks_the_variance_of_all_verdicts_most(groups: str) -> None:
    rows = scored(8)
    keys, x = features(rows, groups)
    prior = np.diag([PRIOR_SD**-2, PRIOR_SD**-2, *[SPREAD**-2] * len(groups)])
    odds = x @ np.array([0.5, 0.5, *[0.0] * len(groups)])
    weight = np.exp(odds) / (1 + np.exp(odds)) ** 2

    def variance(chosen: list[int]) -> float:
        covariance = np.linalg.inv(prior + sum(weight[i] * np.outer(x[i], x[i]) for i in chosen))
        return float(np.mean([f @ covariance @ f for f in x]))

    asked = select(rows, SelectionConfig("arbiter", budget=12, group_by="topic" if groups else None))
    chosen = [keys.index((c.prompt_id, c.first, c.second)) for c in asked]
    for step in range(12):
        turns = Counter(keys[i][0] for i in chosen[:step])
        fewest = min(turns[r["prompt_id"]] for r in rows)
        candidates = [i for i in range(len(x)) if i not in chosen[:step] and turns[keys[i][0]] == fewest]
        best = min(candidates, key=lambda i: variance([*chosen[:step], i]))
        assert variance(chosen[: step + 1]) == pytest.approx(variance([*chosen[:step], best]), rel=1e-9)


def test_moments_are_those_of_all_pairs_in_whatever_order() -> None:
    rows = scored(50)
    _, x = features(rows, "ab")
    moments = gap_moments(rows, "topic")
    np.testing.assert_allclose(moment_matrix(moments, "ab"), x.T @ x / len(x), atol=1e-6)
    assert gap_moments(rows[::-1], "topic") == moments
    assert first_belief(moments).groups == ("a", "b") and first_belief(gap_moments(rows, None)).groups == ()


def test_gaps_are_differences_of_z_scores() -> None:
    (one,) = scored(1)
    found = Scores.of_row(one, "topic").gaps(Comparison("p0", 3, 1))
    reward, policy = zscore(one["rewards"]), zscore(one["scores"])
    assert found.reward == pytest.approx(reward[3] - reward[1])
    assert found.policy == pytest.approx(policy[3] - policy[1])
    assert found.group == "a" and Scores.of_row(one, None).group == ""


def test_the_pool_begins_with_open_conflicts_and_the_design_balances_it() -> None:
    rows = scored(200)
    by_id = {r["prompt_id"]: r for r in rows}

    def opposed(comparisons: list[Comparison]) -> float:
        found = [Scores.of_row(by_id[c.prompt_id], None).gaps(c) for c in comparisons]
        return float(np.mean([g.reward * g.policy < 0 for g in found]))

    asked = select(rows, SelectionConfig("arbiter", budget=50))
    assert len({c.prompt_id for c in asked}) == 50  # prompts take turns
    first = [min(arbiter(r, {}, 0))[1] for r in rows]
    assert opposed(first) > 0.8
    assert 0.2 < opposed(asked) < 0.8  # conflicts tell the sources apart, agreement measures their common trust


def test_every_group_is_asked_about() -> None:
    rows = scored(100)
    rows = [{**r, "topic": "rare" if i < 10 else "common"} for i, r in enumerate(rows)]
    topic = {r["prompt_id"]: r["topic"] for r in rows}
    shares = {
        group_by: np.mean([topic[c.prompt_id] == "rare" for c in select(rows, SelectionConfig("arbiter", 20, **group))])
        for group_by, group in (("none", {}), ("topic", {"group_by": "topic"}))
    }
    assert 0 < shares["topic"] < 0.5


def test_a_small_pool_costs_little() -> None:
    rows = scored(300)
    _, x = features(rows, "")
    by_key = {key: f for key, f in zip(*features(rows, ""), strict=True)}

    def variance(pool: int) -> float:
        asked = select(rows, SelectionConfig("arbiter", 40, arbiter_pool=pool))
        chosen = np.array([by_key[c.prompt_id, c.first, c.second] for c in asked])
        q = 1 / (1 + np.exp(-chosen.sum(axis=1) / 2))
        covariance = np.linalg.inv(np.eye(2) / PRIOR_SD**2 + (chosen * (q * (1 - q))[:, None]).T @ chosen)
        return float(np.einsum("ij,jk,ik->i", x, covariance, x).mean())

    assert len(select(rows, SelectionConfig("arbiter", 40, arbiter_pool=2))) == 40  # never smaller than the budget
    assert variance(3000) <= variance(200) < 1.25 * variance(3000)


def test_a_tableful_is_asked_when_the_budget_allows_it() -> None:
    rows = scored(3)
    found = select_with_report(rows, SelectionConfig("arbiter", 100))
    assert len({c.pair for c in found.comparisons}) == 30
    assert found.report["shortfall"].startswith("30 of 100 comparisons")


def test_files_order_and_shards_do_not_matter(tmp_path: Path) -> None:
    rows = scored(60)
    chosen = SelectionConfig("arbiter", 25, group_by="topic", audit_share=0.4, arbiter_pool=60)
    expected = select_with_report(rows, chosen)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert select_with_report(shuffled, chosen) == expected
    pq.write_table(pa.Table.from_pylist(shuffled[:7]), tmp_path / "0.parquet")
    pq.write_table(pa.Table.from_pylist(shuffled[7:]), tmp_path / "1.parquet", row_group_size=8)
    stored = TableRows([str(tmp_path)])
    stored.columns = columns_to_read(chosen, stored.schema.names)
    assert stored.columns == ["prompt_id", "pacs", "degenerate", "rewards", "topic", "completions"]
    assert select_with_report(stored, chosen) == expected
    assert select_table([str(tmp_path)], chosen, seed=0, engine=LocalEngine(), shard_rows=10) == expected


def test_a_missing_group_is_named() -> None:
    rows = scored(4)
    chosen = SelectionConfig("arbiter", 4, group_by="theme")
    with pytest.raises(UserError, match="strategy arbiter: the table has no column theme; it has completions, "):
        select(rows, chosen)
    with pytest.raises(UserError, match="prompt 'p0', column topic: null; set a value"):
        select([{**rows[0], "topic": None}], SelectionConfig("arbiter", 4, group_by="topic"))
    assert select(rows, SelectionConfig("random", 4, group_by="theme"))  # no other strategy reads it
