"""Best-of-n: which answers are kept, what stays beside them, and what it costs."""

import math

import numpy as np
import pytest

from shfcas.data.candidates import CandidateTable
from shfcas.rewards.best_of_n import BestOfNConfig, best_of_n, keep_best, kl_bound
from shfcas.utils.errors import UserError


def test_the_best_of_every_group_is_kept_and_of_equal_ones_the_first() -> None:
    assert best_of_n([3.0, 1.0, 2.0, 0.0, 5.0, 5.0], 3) == [0, 4]
    assert best_of_n([3.0, 1.0], 1) == [0, 1]
    rewards = np.random.default_rng(0).normal(size=120)
    assert best_of_n(rewards.tolist(), 8) == (rewards.reshape(-1, 8).argmax(1) + 8 * np.arange(15)).tolist()


@pytest.mark.parametrize(
    ("rewards", "n", "message"),
    [
        ([1.0, 2.0, 3.0], 2, "expected a multiple of n=2 answers, got 3"),
        ([1.0], 0, "expected a multiple of n=0"),
        ([1.0, math.nan], 2, "got NaN"),
    ],
)
def test_what_has_no_best_is_an_error(rewards: list[float], n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        best_of_n(rewards, n)
    with pytest.raises(UserError, match="n: expected at least 2, got 1; with 1 there is nothing to choose from"):
        BestOfNConfig(n=1)


def test_a_table_keeps_all_that_is_known_about_the_kept_answers() -> None:
    rows = [
        {
            "prompt_id": f"p{k}",
            "prompt": "x",
            "topic": "food",
            "completions": [f"{k}.{i}" for i in range(4)],
            "logprobs": [-float(i) for i in range(4)],
            "base_logprobs": [-2.0 * i for i in range(4)],
            "num_tokens": [1, 2, 3, 4],
            "finished": [True, False, True, False],
        }
        for k in range(2)
    ]
    table = keep_best(CandidateTable.from_rows(rows, {"policy": "p"}), [[0, 1, 3, 2], [5, 1, 0, 9]], 2)
    assert table.column("completions") == [["0.1", "0.2"], ["1.0", "1.3"]]
    assert table.column("logprobs") == [[-1.0, -2.0], [0.0, -3.0]]
    assert table.column("base_logprobs") == [[-2.0, -4.0], [0.0, -6.0]]
    assert table.column("num_tokens") == [[2, 3], [1, 4]]
    assert table.column("finished") == [[False, True], [True, False]]
    assert table.column("topic") == ["food"] * 2
    assert table.metadata == {"policy": "p", "best_of_n": 2}
    table.checked("table")


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_bound_holds_by_enumeration_and_is_reached_without_ties(n: int) -> None:
    """The best of n draws over m answers has P(best is k) = F(k)^n - F(k - 1)^n in order of reward."""
    for m, reached in ((3, False), (100_000, True)):
        cumulative = np.arange(m + 1) / m
        best = np.diff(cumulative**n)
        kl = float(np.sum(best * np.log(np.maximum(best * m, 1e-300))))
        assert kl <= kl_bound(n) + 1e-12
        assert (kl_bound(n) - kl < 1e-3) == (reached or n == 1)
