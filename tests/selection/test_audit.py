"""The audit: random pairs within the budget, for every strategy, over files and shards, and invisible to annotators."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.data.candidates import CandidateTable
from shfcas.data.shards import TableRows
from shfcas.engines.local import LocalEngine
from shfcas.feedback import read_queue
from shfcas.feedback.annotation.schema import make_items
from shfcas.selection import SELECTABLE, Comparison, SelectionConfig, select, select_with_report
from shfcas.selection.audit import audit_count, interleave
from shfcas.selection.sharded import select_table
from shfcas.utils.errors import NothingSelected, UserError
from shfcas.utils.files import write_jsonl
from tests.support.selection_rows import TABLE, config, full_table

ROWS = full_table(60)


def settings(strategy: str = "random", **values: Any) -> SelectionConfig:
    return SelectionConfig(strategy, **{"budget": 20, "pacs_threshold": "q0.1", "mean_pacs_threshold": "q0.1"} | values)


@pytest.mark.parametrize("strategy", SELECTABLE)
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_share_is_random_pairs_and_the_rest_is_the_strategy_s(strategy: str, share: float) -> None:
    found = select_with_report(ROWS, settings(strategy, audit_share=share), seed=3)
    asked = found.comparisons
    audit = [c for c in asked if c.audit]
    assert len(asked) == 20 and found.report["audits"] == len(audit) == 20 * share and found.report["shortfall"] is None
    assert len({c.pair for c in asked}) == 20  # no pair twice, in either order
    # The audit is what the strategy `random` asks first, among the prompts that this strategy can use.
    usable = [r for r in ROWS if not r["degenerate"]]
    random = select(usable, settings(budget=len(audit)), seed=3)
    assert {c.pair for c in audit} == {c.pair for c in random}
    # The rest are the most wanted comparisons that the audit does not ask anyway.
    wanted = [c for c in select(ROWS, settings(strategy, budget=60), seed=3) if c.pair not in {a.pair for a in audit}]
    if strategy != "arbiter":  # which chooses within its pool, without the audit's pairs
        assert [c for c in asked if not c.audit] == wanted[: 20 - len(audit)]


def test_without_an_audit_nothing_changes() -> None:
    found = select_with_report(ROWS, settings("shf_cas"))
    assert "audits" not in found.report and not any(c.audit for c in found.comparisons)
    assert found == select_with_report(ROWS, settings("shf_cas", audit_share=0.02))  # rounded to none


def test_both_parts_are_spread_evenly() -> None:
    asked = select(ROWS, settings("pacs", budget=40, audit_share=0.3))
    for end in range(1, 41):
        assert abs(sum(c.audit for c in asked[:end]) - 0.3 * end) <= 1
    assert asked[0].audit
    assert interleave([], []) == []
    assert [audit_count(budget, 0.5) for budget in (1, 2, 3)] == [1, 1, 2]


def test_the_audit_is_uniform_over_pairs() -> None:
    counts = Counter(
        next(c for c in select(TABLE, config(budget=2, audit_share=0.5), seed) if c.audit).pair for seed in range(950)
    )
    assert len(counts) == 19
    assert sum((n - 50) ** 2 / 50 for n in counts.values()) < 42.3  # chi-squared, 18 degrees, 1 in 1000


def test_a_strategy_that_finds_too_little_says_so_and_the_audit_remains() -> None:
    found = select_with_report(TABLE, config(budget=10, audit_share=0.5, kendall_threshold="2"))
    assert [c.audit for c in found.comparisons] == [True] * 5
    assert found.report["shortfall"].startswith("5 of 10 comparisons: kendall_threshold 2")
    with pytest.raises(NothingSelected):
        select(TABLE, config(budget=10, kendall_threshold="2"))
    with pytest.raises(NothingSelected):
        select([], config(budget=10, audit_share=0.5))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_none_and_all(share: float) -> None:
    with pytest.raises(UserError, match="audit_share: expected at least 0 and at most 1"):
        settings(audit_share=share)


@pytest.mark.parametrize("strategy", ["shf_cas", "bald", "rso", "arbiter"])
@pytest.mark.parametrize("diversity", ["none", "k_centre"])
def test_files_order_and_shards_do_not_matter(strategy: str, diversity: str, tmp_path: Path) -> None:
    rows = [{**r, "prompt": f"about {i % 7}"} for i, r in enumerate(ROWS)]
    chosen = settings(strategy, audit_share=0.4, diversity=diversity, diversity_pool=2)
    expected = select_with_report(rows, chosen)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    pq.write_table(pa.Table.from_pylist(shuffled[:25]), tmp_path / "0.parquet", row_group_size=5)
    pq.write_table(pa.Table.from_pylist(shuffled[25:]), tmp_path / "1.parquet", row_group_size=8)
    assert select_with_report(TableRows([str(tmp_path)]), chosen) == expected
    assert select_table([str(tmp_path)], chosen, seed=0, engine=LocalEngine(), shard_rows=10) == expected


def test_a_queue_file_keeps_the_mark_and_annotators_do_not_see_it(tmp_path: Path) -> None:
    asked = select(TABLE, config(budget=4, audit_share=0.5))
    write_jsonl(tmp_path / "queue.jsonl", [c.to_row() for c in asked])
    assert read_queue(tmp_path / "queue.jsonl") == asked
    write_jsonl(tmp_path / "old.jsonl", [{"prompt_id": "low", "first": 0, "second": 1}])
    assert read_queue(tmp_path / "old.jsonl") == [Comparison("low", 0, 1)]
    candidates = CandidateTable.from_rows([{**r, "prompt": r["prompt_id"]} for r in TABLE])
    plain = [Comparison(c.prompt_id, c.first, c.second) for c in asked]
    assert make_items(asked, candidates, "round-1", 1) == make_items(plain, candidates, "round-1", 1)
