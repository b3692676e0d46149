"""PPO's formulas on random numbers, against the same formulas written out one token at a time."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from shfcas.training.ppo import losses

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
GARBAGE = float("nan")  # what padding may hold, where the mask alone is to decide


def numbers(seed: int, scale: float = 1.0) -> Tensor:
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=MASK.shape) * scale).float()
    return values.masked_fill(MASK == 0, GARBAGE)


def tokens() -> list[tuple[int, int]]:
    return [(int(row), int(t)) for row, t in MASK.nonzero().tolist()]


@pytest.mark.parametrize("count", [None, 16.0])
@pytest.mark.parametrize("cliprange", [0.2, 0.05])
def test_the_policy_loss_token_by_token(count: float | None, cliprange: float) -> None:
    logprobs, old, advantages = numbers(0, 0.3), numbers(1, 0.3), numbers(2)
    loss, stats = losses.clipped_policy_loss(
        logprobs, old, advantages.nan_to_num(7.0), MASK, cliprange=cliprange, count=count
    )
    ratios = {at: math.exp(logprobs[at] - old[at]) for at in tokens()}
    plain = {at: -float(advantages[at]) * ratio for at, ratio in ratios.items()}
    clipped = {at: -float(advantages[at]) * min(max(r, 1 - cliprange), 1 + cliprange) for at, r in ratios.items()}
    n = count or len(ratios)
    assert float(loss) == pytest.approx(sum(max(plain[at], clipped[at]) for at in ratios) / n, abs=1e-6)
    assert float(stats["approxkl"]) == pytest.approx(sum(0.5 * math.log(r) ** 2 for r in ratios.values()) / n, abs=1e-6)
    assert float(stats["clipfrac"]) == pytest.approx(sum(clipped[at] > plain[at] for at in ratios) / n, abs=1e-6)
    assert float(stats["ratio"]) == pytest.approx(sum(ratios.values()) / n, abs=1e-6)
    assert float(stats["ratio_square"]) == pytest.approx(sum((r - 1) ** 2 for r in ratios.values()) / n, abs=1e-6)
    assert 0 < float(stats["clipfrac"]) < 1


@pytest.mark.parametrize("count", [None, 16.0])
def test_the_value_loss_token_by_token(count: float | None) -> None:
    values, old, returns = numbers(3), numbers(4), numbers(5)
    loss, share = losses.clipped_value_loss(values, old, returns, MASK, cliprange=0.4, count=count)
    kept = {at: float(old[at]) + min(max(float(values[at] - old[at]), -0.4), 0.4) for at in tokens()}
    plain = {at: float(values[at] - returns[at]) ** 2 for at in tokens()}
    clipped = {at: (kept[at] - float(returns[at])) ** 2 for at in tokens()}
    n = count or len(kept)
    assert float(loss) == pytest.approx(0.5 * sum(max(plain[at], clipped[at]) for at in kept) / n, abs=1e-6)
    assert float(share) == pytest.approx(sum(clipped[at] > plain[at] for at in kept) / n, abs=1e-6)
    changes = [float(values[at] - old[at]) for at in tokens()]
    assert min(changes) < -0.4 and max(changes) > 0.4  # both bounds matter


def test_moments_are_those_of_all_scores_together() -> None:
    parts = [np.random.default_rng(k).normal(3.0 * k, 1.0 + k, size=size) for k, size in enumerate((5, 1, 8))]
    moments = losses.RewardMoments()
    for k, part in enumerate(parts):
        moments = moments.updated(torch.from_numpy(part))
        whole = np.concatenate(parts[: k + 1])
        assert (moments.count, moments.mean) == (len(whole), pytest.approx(whole.mean()))
        assert moments.squares == pytest.approx(((whole - whole.mean()) ** 2).sum(), abs=1e-9)
    scores = torch.tensor([0.0, 5.0])
    assert moments.normalize(scores).tolist() == pytest.approx((scores.numpy() - whole.mean()) / whole.std(), abs=1e-5)


def test_moments_of_one_score_and_of_equal_scores() -> None:
    assert losses.RewardMoments().updated(torch.tensor([2.0])) == losses.RewardMoments(1, 2.0, 0.0)
    one = losses.RewardMoments(1, 2.0, 4.0)
    assert one.normalize(torch.tensor([4.0])).item() == pytest.approx(1.0)
    assert losses.RewardMoments(0, 0.0, 4.0).normalize(torch.tensor([4.0])).item() == pytest.approx(2.0)
    equal = losses.RewardMoments().updated(torch.full((3,), 1.5))
    assert equal.normalize(torch.full((2,), 1.5)).tolist() == [0.0, 0.0]
    assert abs(equal.normalize(torch.tensor([1.5 + 1e-8], dtype=torch.float64)).item()) == pytest.approx(1.0, abs=1e-6)


def test_moments_are_computed_in_double_precision() -> None:
    scores = torch.full((4,), 1e4) + torch.tensor([0.001, 0.002, 0.003, 0.004])
    exact = scores.double().numpy()
    moments = losses.RewardMoments().updated(scores)
    assert moments.squares == pytest.approx(((exact - exact.mean()) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0)])
def test_advantages_token_by_token(gamma: float, lam: float) -> None:
    rewards, values = numbers(6), numbers(7)
    advantages, returns = losses.gae(rewards, values, MASK, gamma=gamma, lam=lam)
    for row in range(3):
        length = int(MASK[row].sum())
        deltas = [
            float(rewards[row, t])
            + (gamma * float(values[row, t + 1]) if t + 1 < length else 0)
            - float(values[row, t])
            for t in range(length)
        ]
        for t in range(length):
            expected = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length))
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-5)
            assert float(returns[row, t]) == pytest.approx(expected + float(values[row, t]), abs=1e-5)
        assert not advantages[row, length:].any() and not returns[row, length:].any()
    one = losses.gae(rewards[:, :1], values[:, :1], MASK[:, :1], gamma=gamma, lam=lam)[0]
    assert one == pytest.approx(rewards[:, :1] - values[:, :1])


def test_scores_of_another_precision_reach_the_last_token() -> None:
    kl, scores = torch.ones(3, 4), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    rewards = losses.token_rewards(kl, scores, MASK, 0.5)
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [[-0.5, -0.5, 0.5, 0.0], [1.5, 0.0, 0.0, 0.0], [-0.5, -0.5, -0.5, 2.5]]
