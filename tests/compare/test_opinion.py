"""Heads on soft labels: the loss by hand, labels as arbiters, and the arms without labels."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from shfcas.compare import Bench, HeadFit, judge
from shfcas.compare.opinion import RefineOpinion
from shfcas.rewards.arbiter import prior_arbiter
from shfcas.selection import Comparison
from tests.support.benches_of_answers import FEATURES, bench, proxy


def opinion(made: Bench, **options: object) -> RefineOpinion:
    pool, held_out = made.pool.features, made.held_out.features
    assert pool is not None and held_out is not None
    earlier = np.random.default_rng(5).normal(size=(30, FEATURES))
    fit = HeadFit(pool, earlier, centre=proxy(), l2=1.0)
    return RefineOpinion(made.pool, held_out, fit, **options)  # type: ignore[arg-type]


def test_a_soft_head_is_the_optimum() -> None:
    draw = np.random.default_rng(0)
    features, old, new = draw.normal(size=(60, 4)), draw.normal(size=(20, 4)), draw.normal(size=(15, 4))
    weights, probability = draw.uniform(0.5, 2, size=15), draw.uniform(0, 1, size=15)
    fit = HeadFit(features, old, l2=0.7).joined(new)
    earlier, sure = np.concatenate([np.full(20, 0.4), weights]), np.ones(20)
    head = fit(new[:0], earlier=earlier, probability=np.concatenate([sure, probability]))
    scale = features.std(axis=0)

    def loss(w: np.ndarray) -> float:
        total = 0.35 * float(w @ w)
        for x in old:
            total += 0.4 * math.log1p(math.exp(-float(x / scale @ w)))
        for x, a, p in zip(new, weights, probability, strict=True):
            right = 1 / (1 + math.exp(-float(x / scale @ w)))
            total -= a * (p * math.log(right) + (1 - p) * math.log(1 - right))
        return total

    best = minimize(loss, np.zeros(4), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 9999})
    assert head.weight == pytest.approx(best.x / scale, abs=1e-4)


def test_without_labels_the_trust_is_the_prior_and_a_knowing_policy_helps() -> None:
    made = bench(informed=3.0)
    before = np.nanmean(made.held_out.pair_accuracy(made.held_out.rewards))
    alone = opinion(made, arbitrate=False, trust=(0.0, 1.0))
    assert alone.arbiter([]).mean.tolist() == [0.0, 1.0]
    assert opinion(made).arbiter([]).mean.tolist() == prior_arbiter().mean.tolist()
    after = np.nanmean(made.held_out.pair_accuracy(alone([], 0)))
    assert before < 0.55 and after > 0.75


def test_labels_say_where_the_reward_model_is_wrong() -> None:
    made = bench(informed=0.3)
    queue = [Comparison(row["prompt_id"], 0, 1) for row in made.pool.rows]
    labels = judge(made, queue)
    found = opinion(made, group_by="topic")
    trust = {row["group"]: row for row in found.arbiter(labels).trust() if row["source"] == "reward model"}
    assert trust["food"]["low"] > 0 > trust["travel"]["high"]
    plain, by_topic = opinion(made), np.nanmean(made.held_out.pair_accuracy(found(labels, 0)))
    assert by_topic > 0.8 > np.nanmean(made.held_out.pair_accuracy(plain([], 0)))


def test_labels_are_also_pairs_and_earlier_pairs_may_be_kept() -> None:
    made = bench()
    labels = judge(made, [Comparison(made.pool.rows[0]["prompt_id"], 0, 1)])
    heavy = opinion(made, arbitrate=False, label_weight=1000.0)
    features = made.pool.features
    assert features is not None
    gap = features[labels[0].chosen] - features[labels[0].rejected]
    assert heavy.head(labels)(gap[None])[0] > heavy.head([])(gap[None])[0]
    assert not np.allclose(opinion(made).head([]).weight, opinion(made, earlier=1.0).head([]).weight)
