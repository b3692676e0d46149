"""How well rewards order judged pairs: intervals, ties, groups and calibration, against hand-made numbers and scipy."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from shfcas.data.preferences import Preference
from shfcas.rewards.metrics import accuracy, calibration, pair_report
from shfcas.utils.statistics import wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (3, 10), (0, 40), (40, 40), (61, 100)])
def test_the_interval_is_wilsons(successes: int, trials: int) -> None:
    found = wilson_interval(successes, trials)
    exact = binomtest(successes, trials).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert (found["mean"], found["count"]) == (successes / trials, trials)


def test_a_tie_is_half_a_success() -> None:
    found = accuracy(np.array([1.0, 0.0, -2.0, 0.0]))
    assert (found["mean"], found["count"]) == (0.5, 4)
    assert found == wilson_interval(2, 4)


def test_a_model_that_is_as_often_right_as_it_says_is_calibrated() -> None:
    lead = math.log(3)  # 75 % sure
    found = calibration(np.array([lead, lead, lead, -lead]))
    assert found["expected_error"] == pytest.approx(0)
    (only,) = found["bins"]
    assert (only["confidence"], only["mean"], only["count"]) == (pytest.approx(0.75), 0.75, 4)


def test_the_expected_error_weighs_each_bin_by_its_pairs() -> None:
    sure, unsure = math.log(9), math.log(1.5)  # 90 % and 60 %
    found = calibration(np.array([sure, -sure, unsure, unsure, unsure, unsure]))
    assert [(round(b["confidence"], 6), b["mean"], b["count"]) for b in found["bins"]] == [(0.6, 1.0, 4), (0.9, 0.5, 2)]
    assert found["expected_error"] == pytest.approx((4 * 0.4 + 2 * 0.4) / 6)


def test_extreme_differences_fall_into_the_last_bin() -> None:
    found = calibration(np.array([800.0, 0.0]))
    assert [b["confidence"] for b in found["bins"]] == [0.5, 1.0]
    assert found["bins"][0]["mean"] == 0.5


def test_a_report_tells_sources_and_rounds_apart() -> None:
    pairs = [
        Preference("a", "x", "y"),
        Preference("b", "x", "y"),
        Preference("c", "x", "y", source="gold", round=1, margin=0.5),
        Preference("d", "x", "y", source="human", round=2),
    ]
    report = pair_report(pairs, [1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 1.0, 0.0])
    assert report["accuracy"]["mean"] == 2.5 / 4 and report["ties"] == 1
    assert {k: (v["mean"], v["count"]) for k, v in report["by_source"].items()} == {
        "original": (0.5, 2),
        "gold": (1.0, 1),
        "human": (0.5, 1),
    }
    assert {k: v["count"] for k, v in report["by_round"].items()} == {"0": 2, "1": 1, "2": 1}
    by_hand = [math.log1p(math.exp(-d)) for d in (1.0, -1.0, 1.0 - 0.5, 0.0)]
    assert report["loss"] == pytest.approx(sum(by_hand) / 4)
