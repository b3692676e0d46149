import math

import pytest
import torch
from torch import tensor

from shfcas.training.ppo.losses import (
    AdaptiveKLController,
    CostMultiplier,
    FixedKLController,
    clipped_policy_loss,
    clipped_value_loss,
    completion_mask,
    gae,
    kl_penalty,
    masked_mean,
    masked_whiten,
    token_rewards,
)

NAN = math.nan


def test_masked_mean() -> None:
    values, mask = tensor([[1.0, 2.0, NAN], [6.0, NAN, NAN]]), tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_mean(values, mask) == 3.0
    assert masked_mean(values, mask, count=9) == 1.0  # its part of a mean over nine tokens
    with pytest.raises(ValueError, match="expected at least one true entry"):
        masked_mean(values, torch.zeros(2, 3))


def test_masked_whiten() -> None:
    values, mask = tensor([[1.0, 3.0, 99.0], [5.0, 7.0, -99.0]]), tensor([[1, 1, 0], [1, 1, 0]])
    # mean 4, deviations -3 -1 1 3, variance (9 + 1 + 1 + 9) / 4 = 5
    expected = tensor([[-1.341641, -0.447214, 0.0], [0.447214, 1.341641, 0.0]])
    torch.testing.assert_close(masked_whiten(values, mask), expected)


def test_masked_whiten_that_keeps_the_mean() -> None:
    values, mask = tensor([[1.0, 3.0, 99.0], [5.0, 7.0, -99.0]]), tensor([[1, 1, 0], [1, 1, 0]])
    expected = tensor([[4 - 1.341641, 4 - 0.447214, 0.0], [4.447214, 5.341641, 0.0]])
    torch.testing.assert_close(masked_whiten(values, mask, keep_mean=True), expected)


def test_cost_multiplier() -> None:
    """Twice the rate from 2, by a mean cost 0.5 beyond its limit: log 2 + 0.1 * 2 * 0.5."""
    multiplier = CostMultiplier(2.0, limit=0.25, rate=0.1, highest=3.0)
    assert multiplier.combine(tensor([3.0, 0.0]), tensor([1.5, -3.0])).tolist() == [0.0, 2.0]
    multiplier.update(0.75)
    assert multiplier.value == pytest.approx(2 * math.exp(0.1))
    multiplier.update(0.25)
    assert multiplier.value == pytest.approx(2 * math.exp(0.1))  # at the limit it stays
    multiplier.update(-1.0)
    assert 1.5 < multiplier.value < 2
    multiplier.update(1e6)
    assert multiplier.value == 3.0


def test_masked_whiten_of_equal_values_is_zero() -> None:
    assert masked_whiten(torch.full((1, 3), 2.5), torch.ones(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("ids", "mask", "finished"),
    [
        ([5, 6, 0, 0], [1, 1, 1, 0], True),  # padded with the end token: only the first one counts
        ([5, 6, 7, 8], [1, 1, 1, 1], False),
        ([0, 0, 0, 0], [1, 0, 0, 0], True),
        ([5, 9, 0, 6], [1, 1, 0, 0], True),  # 9 ends it as well; what follows is not looked at
        ([5, 6, 7, 0], [1, 1, 1, 1], True),
    ],
)
def test_completion_mask(ids: list[int], mask: list[int], finished: bool) -> None:
    got_mask, got_finished = completion_mask(tensor([ids]), eos_ids=[0, 9])
    assert got_mask.tolist() == [[bool(m) for m in mask]]
    assert got_finished.tolist() == [finished]


def test_kl_penalty() -> None:
    logprobs, reference = tensor([-1.0, -2.0, -3.0]), tensor([-1.0, -1.0, -4.0])
    assert kl_penalty(logprobs, reference, "k1").tolist() == [0.0, -1.0, 1.0]
    # exp(1) - 1 - 1 = 0.718282 and exp(-1) - 1 + 1 = 0.367879
    torch.testing.assert_close(kl_penalty(logprobs, reference, "k3"), tensor([0.0, 0.718282, 0.367879]))
    with pytest.raises(ValueError, match="kl_estimator: expected one of k1, k3, got 'k2'"):
        kl_penalty(logprobs, reference, "k2")


def test_token_rewards_put_the_score_on_the_last_real_token() -> None:
    kl = tensor([[0.5, 1.0, 7.0], [0.1, 0.2, 0.3]])
    mask = tensor([[True, True, False], [True, True, True]])
    expected = tensor([[-0.05, 1.9, 0.0], [-0.01, -0.02, -1.03]])
    torch.testing.assert_close(token_rewards(kl, tensor([2.0, -1.0]), mask, kl_coef=0.1), expected)


def test_gae() -> None:
    # Row 0, gamma 0.5 and lambda 0.5: delta_2 = 4 - 3 = 1, delta_1 = 0 + 0.5*3 - 2 = -0.5,
    # delta_0 = 1 + 0.5*2 - 1 = 1; A_2 = 1, A_1 = -0.5 + 0.25*1 = -0.25, A_0 = 1 + 0.25*(-0.25) = 0.9375.
    # Row 1 ends after one token, whatever stands behind it: A_0 = 2 - 0.5.
    rewards = tensor([[1.0, 0.0, 4.0], [2.0, 50.0, NAN]])
    values = tensor([[1.0, 2.0, 3.0], [0.5, NAN, 60.0]])
    mask = tensor([[1, 1, 1], [1, 0, 0]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.9375, -0.25, 1.0], [1.5, 0.0, 0.0]]
    assert returns.tolist() == [[1.9375, 1.75, 4.0], [2.0, 0.0, 0.0]]


def test_gae_with_lambda_1_is_reward_to_go_minus_value() -> None:
    advantages, returns = gae(
        tensor([[1.0, 2.0, 4.0]]), tensor([[0.5, 0.5, 0.5]]), torch.ones(1, 3), gamma=1.0, lam=1.0
    )
    assert returns.tolist() == [[7.0, 6.0, 4.0]]
    assert advantages.tolist() == [[6.5, 5.5, 3.5]]


def test_clipped_policy_loss() -> None:
    ratio = tensor([[1.5, 1.5, 0.5, 0.5, 1.0, 8.0]])
    advantages = tensor([[1.0, -1.0, 1.0, -1.0, 2.0, 100.0]])
    mask = tensor([[1, 1, 1, 1, 1, 0]])
    # clip to [0.8, 1.2], the larger loss of: -1.5/-1.2, 1.5/1.2, -0.5/-0.8, 0.5/0.8, -2/-2
    loss, stats = clipped_policy_loss(ratio.log(), torch.zeros(1, 6), advantages, mask, cliprange=0.2)
    assert loss.item() == pytest.approx((-1.2 + 1.5 - 0.5 + 0.8 - 2.0) / 5)
    assert stats["clipfrac"].item() == pytest.approx(2 / 5)
    assert stats["ratio"].item() == pytest.approx(1.0)
    assert stats["ratio_square"].item() == pytest.approx((4 * 0.25 + 0.0) / 5)
    # log 1.5 = 0.405465, log 0.5 = -0.693147: (2 * 0.164402 + 2 * 0.480453) / 2 / 5
    assert stats["approxkl"].item() == pytest.approx(0.128971, abs=1e-6)


def test_clipped_policy_loss_has_no_gradient_where_it_is_clipped() -> None:
    logprobs = tensor([[1.5, 0.5, 1.5]]).log().requires_grad_()
    loss, _ = clipped_policy_loss(
        logprobs, torch.zeros(1, 3), tensor([[1.0, -1.0, -1.0]]), torch.ones(1, 3), cliprange=0.2
    )
    loss.backward()
    torch.testing.assert_close(logprobs.grad, tensor([[0.0, 0.0, 0.5]]))


def test_clipped_value_loss() -> None:
    # old value 0, return 1: moving to 0.1 is allowed, to 0.5 is held at 0.2, to -0.5 at -0.2 (no better)
    values, zeros, ones = tensor([[0.1, 0.5, -0.5, NAN]]), torch.zeros(1, 4), torch.ones(1, 4)
    loss, clipfrac = clipped_value_loss(values, zeros, ones, tensor([[1, 1, 1, 0]]), cliprange=0.2)
    assert loss.item() == pytest.approx(0.5 * (0.81 + 0.64 + 2.25) / 3)
    assert clipfrac.item() == pytest.approx(1 / 3)


def test_kl_controllers() -> None:
    fixed = FixedKLController(0.05)
    fixed.update(100.0, 64)
    assert fixed.value == 0.05
    adaptive = AdaptiveKLController(0.1, target=6.0, horizon=1000)
    adaptive.update(6.6, 100)  # 10 % too high: times 1 + 0.1 * 0.1
    assert adaptive.value == pytest.approx(0.101)
    adaptive.update(60.0, 100)  # far too high: the error counts as 0.2
    assert adaptive.value == pytest.approx(0.101 * 1.02)
    adaptive.update(0.0, 500)  # far too low: times 1 - 0.2 * 0.5
    assert adaptive.value == pytest.approx(0.101 * 1.02 * 0.9)
    short = AdaptiveKLController(0.1, target=6.0, horizon=10)
    short.update(0.0, 500)  # 50 horizons in one update: still at most 20 %
    assert short.value == pytest.approx(0.08)
