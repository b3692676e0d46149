"""Token sampling with one random stream per row, so that a row does not depend on other rows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


class SeededChoice:
    """Logits processor that samples each row's next token from its own random stream and keeps its log-probability.

    It must be the last logits processor of a greedy `generate`: the sampled token gets the only finite score.

    Attributes:
        logprobs: one (B,) tensor per token, log-probabilities before the warper.

    Args:
        seeds: one per row.
        length: maximum tokens per row.
        warper: maps scores to the scores to sample from, such as `transformers.LogitsProcessorList`.
    """

    def __init__(self, seeds: Sequence[int], length: int, warper: Callable[[Any, Any], Any]) -> None:
        self.uniforms = torch.from_numpy(np.stack([np.random.default_rng(seed).random(length) for seed in seeds]))
        self.warper = warper
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> torch.Tensor:
        scores = scores.float()
        uniform = self.uniforms[:, len(self.logprobs)].to(scores.device)
        # Inverse transform sampling: one uniform number per row, for any vocabulary size.
        cumulative = self.warper(input_ids, scores).softmax(-1).cumsum(-1)
        total = cumulative[:, -1:]
        target = (uniform[:, None] * total.double()).to(total.dtype)
        # Rounding may raise the target to the total, where searchsorted finds no token.
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
        choice = torch.searchsorted(cumulative, target, right=True)
        chosen = scores.gather(-1, choice)
        self.logprobs.append((chosen - scores.logsumexp(-1, keepdim=True)).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter_(-1, choice, 0.0)
