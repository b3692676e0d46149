"""What a policy has become, in numbers worked out by hand."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from shfcas.conflicts.columns import add_conflicts
from shfcas.data.candidates import CandidateTable
from shfcas.evaluation.metrics import detection, grouped, summarize, win_rate
from shfcas.evaluation.statistics import auroc, bootstrap_interval, mean_with_interval, t_interval
from shfcas.utils.errors import UserError


def table(rewards: list, logprobs: list, **columns: list) -> CandidateTable:
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": "how?",
            "completions": ["x"] * len(r),
            "rewards": r,
            "logprobs": p,
            "num_tokens": list(range(1, len(r) + 1)),
            "finished": [True] + [False] * (len(r) - 1),
            **{name: values[i] for name, values in columns.items()},
        }
        for i, (r, p) in enumerate(zip(rewards, logprobs, strict=True))
    ]
    return add_conflicts(CandidateTable.from_rows(rows))


def test_win_rate_counts_all_pairs_and_half_of_the_ties() -> None:
    # 1 beats 0, ties with 1; 2 beats both: 3.5 of 4
    assert win_rate([[1.0, 2.0], [0.0]], [[0.0, 1.0], [1.0, 2.0, 3.0]]) == [0.875, 0.0]
    assert win_rate([[1.0, 5.0]], [[1.0, 5.0]]) == [0.5]
    with pytest.raises(ValueError, match="shorter"):
        win_rate([[1.0], [2.0]], [[1.0]])


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([4, 3, 2, 1], [True, True, False, False], 1.0),
        ([4, 3, 2, 1], [False, False, True, True], 0.0),
        ([4, 3, 2, 1], [True, False, True, False], 0.75),
        ([1, 1, 1], [True, False, False], 0.5),
        ([2, 1, 1], [False, True, False], 0.25),
        ([math.nan, 1, math.nan, 0], [True, True, False, False], 0.25),  # 1 > 0 alone
    ],
)
def test_auroc_by_hand(scores: list, labels: list, expected: float) -> None:
    assert auroc(scores, labels) == expected


def test_auroc_of_many_answers_fits_into_memory() -> None:
    """A matrix of positives by negatives would have 16 million numbers, 128 MB of them."""
    scores, labels = np.arange(8000), np.arange(8000) % 2 == 1
    tracemalloc.start()
    try:
        assert auroc(scores, labels) == 0.5 * (1 + 1 / 4000)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_auroc_of_one_class_is_undefined(labels: list) -> None:
    assert math.isnan(auroc([1, 2], labels))
    assert math.isnan(auroc([], []))


def test_the_interval_follows_its_seed_and_holds_the_mean() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 400).tolist()
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    assert (low, high) != bootstrap_interval(values, seed=2)
    # the normal interval: 1.96 standard errors to each side
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(values) / 20, rel=0.1)
    assert low < np.mean(values) < high
    wide, narrow = bootstrap_interval(values, level=0.99), bootstrap_interval(values, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_scipys_up_to_the_noise_of_the_draws(level: float) -> None:
    values = np.random.default_rng(4).exponential(size=200)
    options = {"n_resamples": 20_000, "confidence_level": level, "method": "percentile", "rng": 5}
    expected = scipy.stats.bootstrap((values,), np.mean, **options).confidence_interval
    # the standard error of the mean is 0.07, that of a quantile of 2,000 resamples some 0.004
    assert bootstrap_interval(values.tolist(), level=level) == pytest.approx(tuple(expected), abs=0.015)


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_intervals_over_few_seeds_cover_what_they_say(shape: str) -> None:
    """95 % of 4,000 intervals hold the true mean, up to 1.1 points, three standard errors of the simulation.

    For a skewed distribution Student's interval may lack two points more. The percentile bootstrap, for comparison,
    covers 80 % with four seeds.
    """
    rng = np.random.default_rng(7)
    for seeds in (4, 10, 20):
        draws = rng.normal(size=(4_000, seeds)) if shape == "normal" else rng.gamma(4.0, size=(4_000, seeds)) - 4.0
        found = [t_interval(values) for values in draws]
        coverage = np.mean([interval["low"] <= 0 <= interval["high"] for interval in found])
        assert coverage == pytest.approx(0.95, abs=0.011 if shape == "normal" else 0.031), seeds
    draws = rng.normal(size=(400, 4))
    assert np.mean([low <= 0 <= high for low, high in map(bootstrap_interval, draws)]) < 0.88


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered")
def test_the_interval_of_too_little_and_of_nan() -> None:
    assert bootstrap_interval([1.5]) == (1.5, 1.5)
    assert all(map(math.isnan, [*bootstrap_interval([]), *bootstrap_interval([1.0, math.nan])]))


def test_the_interval_of_a_constant_has_no_width() -> None:
    assert mean_with_interval([2.5] * 4) == {"mean": 2.5, "low": 2.5, "high": 2.5}


def test_detection_finds_the_reward_models_errors_by_hand() -> None:
    rising, falling = [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]
    logprobs = [-3.0, -2.0, -1.0]
    # The policy agrees with gold; the reward does on p0 and is turned round on p1. There PACS is -2z, 0, 2z with
    # z = 1.22: exactly the two outer answers are wrong by more than 1.
    found = detection(table([rising, falling], [logprobs] * 2), [rising, rising])
    assert found == {"pacs_auroc": 1.0, "kendall_auroc": 1.0}
    # With a policy that follows the wrong reward, conflict points at the wrong prompt.
    misled = detection(table([rising, falling], [logprobs[::-1], logprobs[::-1]]), [rising, rising])
    assert misled["kendall_auroc"] == 0.0


def test_detection_leaves_out_prompts_that_say_nothing() -> None:
    rising, falling, flat, logprobs = [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0] * 3, [-3.0, -2.0, -1.0]
    known = detection(table([rising, falling], [logprobs] * 2), [rising, rising])
    # p2's rewards and p3's gold are all alike
    more = detection(table([rising, falling, flat, falling], [logprobs] * 4), [rising, rising, rising, flat])
    assert more == known


def test_detection_without_errors_is_undefined() -> None:
    rising = [1.0, 2.0, 3.0]
    found = detection(table([rising], [[-3.0, -2.0, -1.0]]), [rising])
    assert all(map(math.isnan, found.values()))


def test_the_summary_by_hand() -> None:
    made = table([[0.0, 2.0], [4.0, 6.0]], [[-1.0, -5.0], [-5.0, -1.0]], base_logprobs=[[-2.0, -5.0], [-6.0, -3.0]])
    metrics = summarize(made, gold=[[1.0, 2.0], [3.0, 4.0]], before=[[0.0, 0.0], [5.0, 5.0]])
    assert (metrics["prompts"], metrics["answers"]) == (2, 4)
    assert metrics["gold_reward"]["mean"] == 2.5
    assert metrics["proxy_reward"]["mean"] == 3.0
    assert metrics["win_rate"]["mean"] == 0.5
    assert metrics["kl"] == pytest.approx((1 + 0 + 1 + 2) / 4)
    assert metrics["kendall_distance"] == 0.5
    assert metrics["mean_abs_pacs"] == pytest.approx(1.0)
    assert metrics["mean_length"] == 1.5
    assert metrics["finished"] == 0.5


def test_prompts_count_alike_however_many_answers_they_have() -> None:
    made = table([[0.0, 0.0, 0.0], [4.0]], [[-1.0, -2.0, -3.0], [-1.0]])
    assert summarize(made, gold=[[1.0, 1.0, 1.0], [3.0]])["gold_reward"]["mean"] == 2.0


def test_the_base_policy_has_no_divergence_and_no_win_rate_without_a_rival() -> None:
    metrics = summarize(table([[0.0, 1.0]], [[-1.0, -2.0]]), gold=[[1.0, 2.0]])
    assert metrics["kl"] == 0.0
    assert "win_rate" not in metrics


def test_rows_are_grouped_by_a_column() -> None:
    rows = [{"topic": "food"}, {"topic": 3}, {"topic": "food"}]
    assert grouped(rows, "topic") == {"food": [0, 2], "3": [1]}
    with pytest.raises(UserError, match="group_by: expected a column of the prompts, got area"):
        grouped(rows, "area")
