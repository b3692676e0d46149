"""Which comparisons are asked for, from a table small enough to follow by hand."""

import argparse
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shfcas.data.shards import TableRows
from shfcas.pipeline.demonstrations import BootstrapConfig
from shfcas.selection import Comparison, SelectionConfig, select, threshold
from shfcas.utils.config import build
from shfcas.utils.errors import UserError
from shfcas.utils.flags import add_flags, from_flags
from tests.support.selection_rows import TABLE, asked, config, row


def test_shf_cas_takes_prompts_first_then_their_answers() -> None:
    # low is out by its distance, though its answers have the greatest PACS. high: answers 0, 2, 3, 4 pass, so
    # 0 meets 3 and 4 meets 2; mid: answers 1 and 2 pass. high and mid take turns, high first.
    assert asked(TABLE, config()) == [("high", 0, 3), ("mid", 2, 1), ("high", 4, 2)]


def test_the_overvalued_answer_comes_first_and_each_answer_is_asked_about_once() -> None:
    comparisons = select(TABLE, config(pacs_threshold="0"))
    for prompt in TABLE[1:]:
        pairs = [c for c in comparisons if c.prompt_id == prompt["prompt_id"]]
        gaps = [prompt["pacs"][c.first] - prompt["pacs"][c.second] for c in pairs]
        assert gaps == sorted(gaps, reverse=True)
        assert min(gaps) > 0
        assert max(Counter(i for c in pairs for i in (c.first, c.second)).values()) == 1


def test_the_budget_cuts_the_least_wanted() -> None:
    everything = asked(TABLE, config())
    for budget in (1, 2, 3):
        assert asked(TABLE, config(budget=budget)) == everything[:budget]
    assert asked(TABLE, config(budget=1000)) == everything


def test_a_budget_covers_all_prompts_before_it_returns_to_one() -> None:
    rows = [row(f"p{i}", [2.0, -2.0, 1.0, -1.0], 0.5 + i / 10) for i in range(4)]
    assert [c[0] for c in asked(rows, config(budget=6))] == ["p3", "p2", "p1", "p0", "p3", "p2"]


def test_prompts_are_asked_about_by_distance_and_then_by_their_mean_pacs() -> None:
    rows = [row("mild", [1.5, -1.5], 0.6), row("far", [1.0, -1.0], 0.9), row("wild", [2.0, -2.0], 0.6)]
    assert [c[0] for c in asked(rows, config())] == ["far", "wild", "mild"]


def test_the_order_of_the_table_does_not_matter() -> None:
    rows = [row(name, [2.0, -2.0], 0.6) for name in ("b", "a", "c")]
    for strategy in ("shf_cas", "mean_pacs"):
        assert [c[0] for c in asked(rows, config(strategy))] == ["a", "b", "c"]
        assert asked(rows[::-1], config(strategy)) == asked(rows, config(strategy))


@pytest.mark.parametrize(
    ("kendall", "prompts"),
    [("q0", {"low", "mid", "high"}), ("q0.5", {"mid", "high"}), ("q1", {"high"}), ("0.2", {"low", "mid", "high"})],
)
def test_a_quantile_is_taken_over_the_prompts(kendall: str, prompts: set) -> None:
    assert {c[0] for c in asked(TABLE, config(kendall_threshold=kendall))} == prompts


def test_the_quantile_of_pacs_is_taken_over_the_answers_of_the_chosen_prompts() -> None:
    # abs(PACS) of mid and high, sorted: 0.1 0.4 0.5 1.0 1.0 1.5 2.0 2.0 2.5; the median is 1.0. With low's it is 1.25.
    assert asked(TABLE, config(pacs_threshold="q0.5")) == asked(TABLE, config(pacs_threshold="1.0"))
    # The third quartile is 2.0: mid keeps one answer, which has nobody to meet.
    assert asked(TABLE, config(pacs_threshold="q0.75")) == [("high", 0, 3)]


@pytest.mark.parametrize(
    ("text", "expected"), [("0.5", 0.5), (2, 2.0), ("q0.5", 2.0), ("q0", 1.0), (" q1 ", 4.0), ("q0.25", 1.5)]
)
def test_thresholds_are_numbers_or_quantiles(text: Any, expected: float) -> None:
    assert threshold(text, np.array([1.0, 4.0, 2.0])) == expected


@pytest.mark.parametrize("text", ["much", "q", "q1.5", "q-0.1", "50%", "qnan", "nan"])
def test_other_thresholds_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"threshold: expected a number .* or a quantile from q0 to q1, got '{text}'"):
        threshold(text, np.array([1.0]))


def test_thresholds_come_as_numbers_or_text_from_yaml_and_from_flags(tmp_path: Path) -> None:
    file = tmp_path / "select.yaml"
    file.write_text("kendall_threshold: 0.5\npacs_threshold: 1\nmean_pacs_threshold: '0.25'\n")
    parser = argparse.ArgumentParser()
    add_flags(parser, SelectionConfig)
    chosen = from_flags(SelectionConfig, parser.parse_args(["--mean_pacs_threshold", "q0.9"]), str(file))
    assert (chosen.kendall_threshold, chosen.pacs_threshold, chosen.mean_pacs_threshold) == (0.5, 1.0, "q0.9")
    assert asked(TABLE, chosen) == asked(TABLE, config())
    flags = parser.parse_args(["--kendall_threshold", "0.5", "--pacs_threshold", "1"])
    assert asked(TABLE, from_flags(SelectionConfig, flags)) == asked(TABLE, config())
    assert build(SelectionConfig, {"kendall_threshold": "auto"}).kendall_threshold == "auto"
    assert build(BootstrapConfig, {"threshold": 0.7}).threshold == 0.7


def test_mean_pacs_asks_for_every_pair_of_prompts_above_the_threshold() -> None:
    # Means of abs(PACS): low 2, high 1.4, mid 1.
    low = [("low", 0, 1), ("low", 0, 2), ("low", 1, 2)]
    high = [("high", i, j) for i in range(5) for j in range(i + 1, 5)]
    assert asked(TABLE, config("mean_pacs")) == low + high  # mid does not exceed 1.0, it equals it
    assert asked(TABLE, config("mean_pacs", mean_pacs_threshold="1.5")) == low
    assert asked(TABLE, config("mean_pacs", mean_pacs_threshold="q0.5", budget=2)) == low[:2]


def test_random_draws_without_replacement_and_follows_its_seed() -> None:
    everything = {(r["prompt_id"], i, j) for r in TABLE for j in range(len(r["pacs"])) for i in range(j)}
    drawn = asked(TABLE, config("random"), seed=1)
    assert len(drawn) == len(everything) == 19
    assert set(drawn) == everything
    assert asked(TABLE, config("random"), seed=1) == drawn
    assert asked(TABLE, config("random"), seed=2) != drawn
    assert asked(TABLE, config("random", seed=1), seed=2) == drawn


def test_random_is_uniform_over_pairs() -> None:
    counts = Counter(asked(TABLE, config("random", budget=1), seed)[0] for seed in range(1900))
    assert len(counts) == 19
    # chi-squared with 18 degrees of freedom exceeds 42.3 once in a thousand; the seeds are fixed
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 42.3


USELESS = {
    "degenerate": row("x", [0.0, 0.0], 1.0, degenerate=True),
    "no number": row("x", [math.nan, math.nan], math.nan),
    "infinite": row("x", [math.inf, -math.inf], 1.0),
    "one answer": row("x", [5.0], 1.0),
}


@pytest.mark.parametrize("useless", USELESS.values(), ids=USELESS.keys())
@pytest.mark.parametrize("strategy", ["shf_cas", "mean_pacs", "random"])
def test_prompts_whose_conflict_means_nothing_are_never_selected(strategy: str, useless: dict) -> None:
    settings = config(strategy, kendall_threshold="q0", mean_pacs_threshold="q0")
    assert set(asked([useless, *TABLE], settings)) == set(asked(TABLE, settings))
    with pytest.raises(UserError, match=r"nothing from 1 prompts \(1 of them degenerate.*lower thresholds do not help"):
        select([useless], settings)


@pytest.mark.parametrize("strategy", ["shf_cas", "mean_pacs", "random"])
def test_answers_with_the_same_text_are_never_compared(strategy: str) -> None:
    twins = row("twins", [3.0, -3.0, 2.0, -2.0], 1.0, completions=["same", "same", "x", "y"])
    chosen = asked([twins], config(strategy))
    assert chosen
    assert not {("twins", 0, 1), ("twins", 1, 0)} & set(chosen)
    with pytest.raises(UserError, match="selected nothing"):
        select([{**twins, "completions": ["same"] * 4}], config(strategy))


def test_the_budget_is_spent_on_what_remains_after_twins_are_dropped() -> None:
    twins = row("twins", [3.0, -3.0, 2.0, -2.0], 1.0, completions=["same", "same", "x", "y"])
    assert asked([twins], config(budget=1)) == [("twins", 2, 3)]


def test_thresholds_that_nothing_passes_say_so() -> None:
    for change in ({"kendall_threshold": "0.95"}, {"pacs_threshold": "9"}):
        with pytest.raises(UserError, match=r"shf_cas selected nothing from 3 prompts \(0 of them degenerate"):
            select(TABLE, config(**change))
    with pytest.raises(UserError, match="mean_pacs selected nothing"):
        select(TABLE, config("mean_pacs", mean_pacs_threshold="9"))
    with pytest.raises(UserError, match="selected nothing from 0 prompts"):
        select([], config())


def test_settings_that_do_not_exist_are_named() -> None:
    with pytest.raises(UserError, match=r"strategy: expected one of shf_cas, kendall, pacs, mean_pacs, .*, got 'best'"):
        select(TABLE, config("best"))
    for budget in (0, -1):
        with pytest.raises(UserError, match=f"budget: expected at least 1, got {budget}"):
            select(TABLE, config(budget=budget))


def test_a_queue_row_is_a_comparison() -> None:
    assert select(TABLE, config(budget=1))[0].to_row() == {"prompt_id": "high", "first": 0, "second": 3}
    assert Comparison("a", 0, 1, audit=True).to_row() == {"prompt_id": "a", "first": 0, "second": 1, "audit": True}
    assert Comparison("a", 0, 1) == Comparison("a", 0, 1)


@pytest.mark.parametrize("strategy", ["shf_cas", "mean_pacs", "random"])
def test_files_and_their_order_do_not_matter(strategy: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = []
    for i in range(300):
        pacs = draw.standard_normal(2 + i % 5).round(1)
        rows.append(row(f"p{i}", pacs.tolist(), float(draw.integers(0, 11)) / 10, degenerate=i % 50 == 0))
    settings = config(strategy, kendall_threshold="q0.6", pacs_threshold="q0.3", mean_pacs_threshold="q0.5", budget=90)
    expected = asked(rows, settings)
    assert len(expected) == 90
    shuffled = [rows[i] for i in draw.permutation(300)]
    for number, (begin, end) in enumerate(pairwise((0, 10, 11, 200, 300))):
        path = tmp_path / str(number) / "part.parquet"
        path.parent.mkdir()
        pq.write_table(pa.Table.from_pylist(shuffled[begin:end]), path, row_group_size=37)
    assert asked(TableRows([str(tmp_path)]), settings) == expected
