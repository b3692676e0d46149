"""Tokens drawn from one stream of random numbers a row, so that what a row says depends on no other row."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


class SeededChoice:
    """Draws each row's next token from that row's own random stream and keeps its log-probability.

    It stands last among the logits processors of a greedy `generate`: the drawn token is the only finite score.

    Args:
        seeds: one a row.
        length: tokens that may be drawn for a row.
        warper: turns scores into those that are drawn from, such as `transformers.LogitsProcessorList`; the
            log-probabilities kept in `logprobs`, one (B,) tensor a token, are those before it.
    """

    def __init__(self, seeds: Sequence[int], length: int, warper: Callable[[Any, Any], Any]) -> None:
        self.uniforms = torch.from_numpy(np.stack([np.random.default_rng(seed).random(length) for seed in seeds]))
        self.warper = warper
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> torch.Tensor:
        scores = scores.float()
        uniform = self.uniforms[:, len(self.logprobs)].to(scores.device)
        # Inverse of the cumulative distribution: one uniform number a row, whatever the vocabulary.
        cumulative = self.warper(input_ids, scores).softmax(-1).cumsum(-1)
        total = cumulative[:, -1:]
        target = (uniform[:, None] * total.double()).to(total.dtype)
        # Rounding may carry the target up to the total, where no token would be found.
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
        choice = torch.searchsorted(cumulative, target, right=True)
        chosen = scores.gather(-1, choice)
        self.logprobs.append((chosen - scores.logsumexp(-1, keepdim=True)).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter_(-1, choice, 0.0)
