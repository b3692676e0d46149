"""Arithmetic of PPO on token sequences, independent of models and trainers.

Tensors are (B, K): B completions, right-padded to K tokens. A mask is boolean (or 0/1) and true on real response
tokens, including the stop token. Values on padding never influence a result.

Sources: Schulman et al. 2016 (GAE, arXiv 1506.02438) and 2017 (PPO, 1707.06347); Ziegler et al. 2019 (KL
reward and its controller, 1909.08593); Stiennon et al. 2020 (2009.01325); Huang et al. 2024 (implementation
details, 2403.17031).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | float | None = None) -> Tensor:
    """Computes the mean of `values` where `mask` is true, as a scalar.

    Args:
        values: any shape.
        mask: the same shape.
        count: divisor, instead of the number of true entries. The mean over a batch processed in parts is the sum of
            the parts' means, each with the count of the whole batch.

    Raises:
        ValueError: the mask is empty and no count was given.
    """
    mask = mask.bool()
    if count is None:
        count = mask.sum()
        if count == 0:
            raise ValueError("masked_mean: mask: expected at least one true entry, got none")
    return values.masked_fill(~mask, 0.0).sum() / count


def masked_whiten(values: Tensor, mask: Tensor, epsilon: float = 1e-8, *, keep_mean: bool = False) -> Tensor:
    """Scales to (population) variance 1 over the masked entries, and to mean 0 unless it is kept; 0 elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + epsilon)
    return (whitened + mean if keep_mean else whitened).masked_fill(~mask.bool(), 0.0)


def completion_mask(completion_ids: Tensor, eos_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Marks the real tokens of completions: everything up to and including the first stop token.

    The result depends only on the stop ids, not on the padding id, which is often a stop id.

    Args:
        completion_ids: (B, K) token ids without the prompt.
        eos_ids: the ids that end a completion.

    Returns:
        `mask`, (B, K) bool, and `finished`, (B,) bool: whether a stop token was generated.
    """
    is_eos = torch.isin(completion_ids, torch.tensor(list(eos_ids), device=completion_ids.device))
    stops_before = is_eos.long().cumsum(dim=1) - is_eos.long()
    return stops_before == 0, is_eos.any(dim=1)


def last_token_index(mask: Tensor) -> Tensor:
    """Returns the (B,) index of each row's last real token; rows must be right-padded with at least one real token."""
    return mask.long().sum(dim=1) - 1


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Estimates KL(policy || reference) per token, from tokens sampled by the policy.

    With d = logprobs - ref_logprobs: `k1` is d, unbiased, negative on some tokens; `k3` is exp(-d) - 1 + d,
    unbiased, with lower variance and never negative (Schulman, "Approximating KL divergence", 2020). As part of the
    reward, only k1 gives an unbiased gradient of the KL.
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"kl_estimator: expected one of k1, k3, got {estimator!r}")


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Computes the reward of every token: minus the KL penalty, plus the completion's score on its last real token.

    Args:
        kl: (B, K) per-token KL estimate.
        scores: (B,) score of each completion.
        mask: (B, K).
        kl_coef: weight of the KL penalty.

    Returns:
        (B, K), 0 on padding. The last real token is the stop token, or the last token of a truncated completion.
    """
    rewards = (-kl_coef * kl).masked_fill(~mask.bool(), 0.0)
    return rewards.scatter_add(1, last_token_index(mask)[:, None], scores.to(rewards.dtype)[:, None])


@dataclass(frozen=True)
class RewardMoments:
    """Count, mean and sum of squared deviations of all rewards so far, with pairwise updates (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def updated(self, scores: Tensor) -> "RewardMoments":
        """Returns the moments including these (N,) scores."""
        scores = scores.double()
        mean, squares = scores.mean().item(), scores.var(correction=0).item() * len(scores)
        count, difference = self.count + len(scores), mean - self.mean
        return RewardMoments(
            count,
            self.mean + difference * len(scores) / count,
            self.squares + squares + difference**2 * self.count * len(scores) / count,
        )

    def normalize(self, scores: Tensor) -> Tensor:
        """Subtracts the mean and divides by the (population) standard deviation; 0 while all scores are equal."""
        return (scores - self.mean) / (math.sqrt(self.squares / max(1, self.count)) + 1e-8)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Computes generalised advantage estimates (Schulman et al. 2016, eq. 16); episodes end with the last real token.

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    return_t = A_t + V_t

    Args:
        rewards: (B, K).
        values: (B, K), V_t is the value of the prefix from which token t was sampled.
        mask: (B, K).
        gamma: discount per token.
        lam: 1 gives Monte Carlo returns minus the value, 0 the one-step temporal difference.

    Returns:
        advantages and returns, (B, K), 0 on padding.
    """
    padding = ~mask.bool()
    rewards, values = rewards.masked_fill(padding, 0.0), values.masked_fill(padding, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = advantage = delta + gamma * lam * advantage
        next_value = values[:, t]
    return advantages, advantages + values


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    cliprange: float,
    dual_clip: float | None = None,
    count: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes PPO's clipped surrogate loss (Schulman et al. 2017, eq. 7), averaged over real tokens.

    Args:
        logprobs: (B, K) under the policy in training.
        old_logprobs: (B, K) under the policy that sampled.
        advantages: (B, K).
        mask: (B, K).
        cliprange: the ratio is clipped to [1 - cliprange, 1 + cliprange].
        dual_clip: bound of the ratio where the advantage is negative (Ye et al. 2020, arXiv 1912.09729, eq. 5), where
            plain PPO has none; None: no bound.
        count: see `masked_mean`.

    Returns:
        The loss and, detached, `approxkl` (half the mean squared log-ratio), `clipfrac` (fraction of tokens where the
        clipped term is the larger loss), `ratio` (mean) and `ratio_square` (mean of (ratio - 1)^2, which gives the
        ratio's variance without cancellation).
    """
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask.bool(), 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    worst = torch.maximum(plain, clipped)
    if dual_clip is not None:
        worst = torch.where(advantages < 0, torch.minimum(worst, -dual_clip * advantages), worst)
    loss = masked_mean(worst, mask, count)
    with torch.no_grad():
        stats = {
            "approxkl": masked_mean(0.5 * log_ratio**2, mask, count),
            "clipfrac": masked_mean((clipped > plain).float(), mask, count),
            "ratio": masked_mean(ratio, mask, count),
            "ratio_square": masked_mean((ratio - 1.0) ** 2, mask, count),
        }
    return loss, stats


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    cliprange: float,
    count: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes half the squared error of the values, clipped to `cliprange` of the old values (Huang et al. 2024).

    Returns:
        The loss, averaged over real tokens, and the detached fraction of tokens where the clipped error is larger.
    """
    kept = old_values + (values - old_values).clamp(-cliprange, cliprange)
    plain, clipped = (values - returns) ** 2, (kept - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(plain, clipped), mask, count)
    return loss, masked_mean((clipped > plain).float(), mask, count).detach()


class CostMultiplier:
    """Lagrange multiplier of a limit on the mean cost of answers (Dai et al. 2023, arXiv 2310.12773).

    Args:
        value: the first multiplier.
        limit: limit of the mean cost.
        rate: after a rollout, log(value) changes by rate * value * (mean cost - limit).
        highest: highest multiplier.
    """

    def __init__(self, value: float, *, limit: float, rate: float, highest: float) -> None:
        self.value, self.limit, self.rate, self.highest = value, limit, rate, highest

    def combine(self, scores: Tensor, costs: Tensor) -> Tensor:
        """Returns (scores - value * costs) / (1 + value), whose scale does not grow with the multiplier."""
        return (scores - self.value * costs) / (1.0 + self.value)

    def update(self, cost: float) -> None:
        """Updates the multiplier with the mean cost of a rollout."""
        change = self.rate * self.value * (cost - self.limit)
        self.value = self.highest if change > 50 else min(self.highest, self.value * math.exp(change))


class KLController(Protocol):
    """Protocol of controllers, which hold the weight of the KL penalty and update it after each rollout."""

    value: float

    def update(self, kl: float, num_samples: int) -> None:
        """Updates the weight with the mean sequence KL of `num_samples` completions."""


class FixedKLController:
    """Constant KL coefficient."""

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, kl: float, num_samples: int) -> None:
        """Does nothing."""


class AdaptiveKLController:
    """KL coefficient controlled so that the sequence KL approaches `target` (Ziegler et al. 2019, 2.2).

    After `num_samples` completions of mean KL `kl`, the coefficient is multiplied by
    1 + clip(kl / target - 1, -0.2, 0.2) * min(1, num_samples / horizon). So one update changes it by at most 20 %, as
    in the source, also where a run has few updates.

    Args:
        value: the first coefficient.
        target: sequence KL in nats.
        horizon: number of completions over which the coefficient reacts.
    """

    def __init__(self, value: float, target: float, horizon: float) -> None:
        self.value = value
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, num_samples: int) -> None:
        """Updates the coefficient with one measurement."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * min(1.0, num_samples / self.horizon)
