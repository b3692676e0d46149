"""Scores of the strategies that read rewards alone, against loops over pairs."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from shfcas.selection import SELECTABLE, Row, SelectionConfig
from tests.support.seed_numbers import number
from tests.support.selection_rows import full_table, row

SCORES: dict[str, Callable[[Row, int, int], float]] = {
    "reward_margin": lambda one, i, j: abs(one["rewards"][i] - one["rewards"][j]),
    "least_margin": lambda one, i, j: -abs(one["rewards"][i] - one["rewards"][j]),
    "reward_variance": lambda one, i, j: one["reward_variances"][i] + one["reward_variances"][j],
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_every_pair(name: str) -> None:
    for one in full_table(40):
        ranked = [*SELECTABLE[name].comparisons(one, {}, 6)]
        found = {(c.first, c.second): -priority[0] for priority, c in ranked}
        pairs = combinations(range(len(one["pacs"])), 2)
        assert found == pytest.approx({pair: SCORES[name](one, *pair) for pair in pairs}, abs=1e-12)
        assert {priority[2:] for priority, _ in ranked} == {(number("ties", 6, one["prompt_id"]), one["prompt_id"])}


@pytest.mark.parametrize("name", [name for name, strategy in SELECTABLE.items() if strategy.settings])
def test_a_strategy_called_alone_has_the_settings_of_the_configuration(name: str) -> None:
    draw = np.random.default_rng(0)
    bounds = {"kendall_threshold": 0.0, "pacs_threshold": 0.0}
    default = SelectionConfig()
    settings = {field: getattr(default, field) for field in SELECTABLE[name].settings}
    for i in range(20):
        rewards = draw.normal(size=12)
        columns = {"rewards": rewards.tolist(), "reward_variances": draw.exponential(size=12).tolist()}
        one = row(f"p{i}", draw.normal(size=12).tolist(), 0.5, **columns)
        alone = [*SELECTABLE[name].comparisons(one, bounds, 0)]
        assert alone == [*SELECTABLE[name].comparisons(one, bounds, 0, **settings)] and alone
