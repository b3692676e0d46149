"""Kendall distances beyond chance: p-values against all orders and scipy, and the rate of false discoveries."""

import logging
from collections import Counter
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.stats import false_discovery_control, kendalltau

from shfcas.selection import SelectionConfig, select, select_with_report
from shfcas.selection.false_discovery import (
    benjamini_hochberg,
    disagrees,
    kendall_bound,
    kendall_cases,
    kendall_report,
    pvalue,
)
from shfcas.utils.errors import UserError
from tests.support.selection_rows import row


def inversions(order: tuple[int, ...]) -> int:
    return sum(order[i] > order[j] for j in range(len(order)) for i in range(j))


def prompt(name: str, answers: int, discordant: int, **columns: Any) -> dict[str, Any]:
    pacs = np.linspace(1.5, -1.5, answers).tolist()
    return row(name, pacs, discordant / (answers * (answers - 1) // 2), **columns)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_small_rows_against_all_orders(n: int) -> None:
    counts = Counter(map(inversions, permutations(range(n))))
    pairs = n * (n - 1) // 2
    for discordant in range(pairs + 1):
        expected = Fraction(sum(times for k, times in counts.items() if k >= discordant), counts.total())
        assert pvalue(n, discordant / pairs) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("n", "tolerance"), [(8, 1e-12), (33, 1e-12), (40, 0.006)])
def test_against_scipy(n: int, tolerance: float) -> None:
    draw = np.random.default_rng(n)
    for mix in np.linspace(0, 2, 20):
        x = draw.permutation(n)
        y = (draw.permutation(n) - mix * x).argsort().argsort()
        test = kendalltau(x, y, method="exact", alternative="less")
        assert pvalue(n, (1 - test.statistic) / 2) == pytest.approx(test.pvalue, abs=tolerance)


def test_ties_make_the_test_stricter() -> None:
    draw = np.random.default_rng(0)
    values = []
    for _ in range(4000):
        x, y = draw.integers(0, 4, 6), draw.integers(0, 4, 6)
        discordant = sum((x[i] - x[j]) * (y[i] - y[j]) < 0 for j in range(6) for i in range(j))
        values.append(pvalue(6, discordant / 15))
    for level in (0.02, 0.1, 0.3):
        assert np.mean(np.array(values) <= level) < level


def test_step_up_against_scipy() -> None:
    draw = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5):
        p = np.where(draw.random(200) < share, draw.random(200) / 500, draw.random(200)).round(3)
        for level in (0.01, 0.05, 0.2):
            rejected = false_discovery_control(p) <= level
            largest, count = benjamini_hochberg(Counter(p.tolist()), level)
            assert count == rejected.sum()
            assert largest == (p[rejected].max() if count else -1)


def test_the_false_discovery_rate_is_kept() -> None:
    draw = np.random.default_rng(0)
    n, shares, powers = 8, [], []
    for _ in range(150):
        rows = []
        for i in range(120):
            order = tuple(draw.permutation(n)) if i >= 30 else tuple(np.arange(n) * -1.0 + draw.normal(0, 2, n))
            rows.append(prompt("real" if i < 30 else "chance", n, inversions(order)))
        found = kendall_report(kendall_cases(rows), 0.2)
        chosen = [r for r in rows if found["chosen"] and r["kendall_distance"] >= found["distances"][n]]
        assert len(chosen) == found["chosen"] and found["expected_false_discovery_rate"] <= 0.2
        shares.append(sum(r["prompt_id"] == "chance" for r in chosen) / max(1, len(chosen)))
        powers.append(sum(r["prompt_id"] == "real" for r in chosen) / 30)
    assert 0.05 < np.mean(shares) <= 0.2  # Benjamini and Hochberg: at most 0.2 * 90 / 120, and p-values are coarse
    assert np.mean(powers) > 0.4


ROWS = [
    prompt("reversed-8", 8, 28),  # p = 1 / 8!
    prompt("high-8", 8, 25),
    prompt("even-8", 8, 14),
    prompt("reversed-4", 4, 6),  # p = 1 / 24
    prompt("high-4", 4, 5),  # p = 4 / 24
    prompt("even-4", 4, 3),
]


def automatic(level: float = 0.1, strategy: str = "kendall") -> SelectionConfig:
    return SelectionConfig(
        strategy=strategy, kendall_threshold="auto", false_discovery_rate=level, pacs_threshold="0", pairing="extreme"
    )


@pytest.mark.parametrize("strategy", ["shf_cas", "kendall"])
def test_auto_chooses_prompts_beyond_chance(strategy: str, caplog: pytest.LogCaptureFixture) -> None:
    # p: 1/40320, 111/40320 (1 + 7 + 27 + 76 orders with at most 3 inversions), 1/24 <= 0.1 * 3/6, 4/24 > 0.1 * 4/6.
    with caplog.at_level(logging.INFO):
        selection = select_with_report(ROWS, automatic(strategy=strategy))
    assert {c.prompt_id for c in selection.comparisons} == {"reversed-8", "high-8", "reversed-4"}
    report = selection.report["kendall"]
    assert report["prompts"] == 6 and report["chosen"] == 3
    assert report["largest_pvalue"] == selection.report["bounds"]["kendall_pvalue"] == pytest.approx(1 / 24)
    assert report["smallest_pvalue"] == pytest.approx(1 / 40320)
    assert report["expected_false_discovery_rate"] == pytest.approx(6 * (1 / 24) / 3)
    assert report["false_discovery_rate"] == 0.1
    assert report["distances"] == {4: 1.0, 8: pytest.approx(25 / 28)}
    assert "3 of 6 prompts disagree more than chance; expected false-discovery rate 0.0833, at most 0.1" in caplog.text
    assert "4: 1.000, 8: 0.893" in caplog.text


def test_a_stricter_level_chooses_fewer() -> None:
    assert {c.prompt_id for c in select(ROWS, automatic(0.04))} == {"reversed-8", "high-8"}
    assert {c.prompt_id for c in select(ROWS, automatic(0.0002))} == {"reversed-8"}
    assert {c.prompt_id for c in select(ROWS, automatic(0.3))} == {"reversed-8", "high-8", "reversed-4", "high-4"}


def test_degenerate_prompts_are_not_tested() -> None:
    useless = [prompt(f"x{i}", 8, 14, degenerate=True) for i in range(100)]
    assert select([*useless, *ROWS], automatic()) == select(ROWS, automatic())


def test_a_quantile_of_pacs_is_taken_over_the_prompts_that_auto_chose() -> None:
    settings = SelectionConfig(kendall_threshold="auto", pacs_threshold="q0.9")
    # 20 values of abs(PACS), two each of 1.5, 15/14 ..., and of the four answers; the level is 1.5.
    assert [(c.prompt_id, c.first, c.second) for c in select(ROWS, settings)] == [
        ("reversed-4", 0, 3),
        ("reversed-8", 0, 7),
        ("high-8", 0, 7),
    ]


@pytest.mark.parametrize("strategy", ["shf_cas", "kendall"])
def test_where_nothing_is_beyond_chance_it_says_so(strategy: str) -> None:
    with pytest.raises(
        UserError,
        match=r"auto: none of 2 prompts disagrees more than chance at a false-discovery rate of 0.1 \(smallest "
        r"p-value 0.17\); raise false_discovery_rate, sample more answers per prompt, or set a number or a quantile",
    ):
        select(ROWS[4:], automatic(strategy=strategy))


def test_equality_with_the_level_is_enough() -> None:
    assert benjamini_hochberg(Counter([0.5]), 0.5) == (0.5, 1)
    assert benjamini_hochberg(Counter([0.25, 0.5, 1.0, 1.0]), 0.25) == (-1.0, 0)  # 4 p: 1 > 0.25, 2 > 0.5
    assert benjamini_hochberg(Counter([0.125, 0.25, 0.25, 1.0]), 0.375) == (0.25, 3)  # 0.5 > 0.375, 1 <= 1.125
    assert benjamini_hochberg(Counter(), 0.5) == (-1.0, 0)


def test_a_p_value_equal_to_the_bound_passes() -> None:
    one = prompt("a", 4, 5)
    assert disagrees(one, {"kendall_pvalue": pvalue(4, 5 / 6)})
    assert not disagrees(one, {"kendall_pvalue": pvalue(4, 5 / 6) * 0.999})
    assert disagrees(one, {"kendall_threshold": 5 / 6}) and not disagrees(one, {"kendall_threshold": 0.84})


def test_cases_count_equal_prompts_once() -> None:
    cases = kendall_cases([*ROWS, prompt("again", 4, 6), prompt("other", 5, 6)])
    assert cases[4, 1.0] == 2 and cases[5, 0.6] == 1 and cases[8, 1.0] == 1
    assert cases.total() == 8 and len(cases) == 7


def test_a_report_by_hand() -> None:
    # 4 answers: 1 / 24 three times, 4 / 24 twice; 3 answers: 1 / 6 five times, 1 twice.
    cases = Counter({(4, 1.0): 3, (4, 5 / 6): 2, (3, 1.0): 5, (3, 0.0): 2})
    found = kendall_report(cases, 0.2)
    # 12 / 24 <= 0.2 * 3, and 12 / 6 <= 0.2 * 10.
    assert found == {
        "false_discovery_rate": 0.2,
        "expected_false_discovery_rate": pytest.approx(12 / 6 / 10),
        "prompts": 12,
        "chosen": 10,
        "largest_pvalue": pytest.approx(1 / 6),
        "smallest_pvalue": pytest.approx(1 / 24),
        "distances": {3: 1.0, 4: 5 / 6},
    }
    assert [*found["distances"]] == [3, 4]
    none = {
        "false_discovery_rate": 0.01,
        "expected_false_discovery_rate": 0.0,
        "prompts": 12,
        "chosen": 0,
        "largest_pvalue": -1.0,
        "smallest_pvalue": pytest.approx(1 / 24),
        "distances": {},
    }
    assert kendall_report(cases, 0.01) == none
    assert kendall_report(Counter(), 0.01) == none | {"prompts": 0, "smallest_pvalue": 1.0}


def test_the_bound_is_the_largest_chosen_p_value_and_the_log_says_which_distances_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cases = Counter({(4, 1.0): 3, (4, 5 / 6): 2, (3, 1.0): 5, (3, 0.0): 2})
    with caplog.at_level(logging.INFO):
        bound, report = kendall_bound(cases, 0.2)
    assert bound == {"kendall_pvalue": pytest.approx(1 / 6)} and report == kendall_report(cases, 0.2)
    assert caplog.messages == [
        "kendall_threshold auto: 10 of 12 prompts disagree more than chance; expected false-discovery rate 0.2, at "
        "most 0.2; least Kendall distance by number of answers: 3: 1.000, 4: 0.833"
    ]
