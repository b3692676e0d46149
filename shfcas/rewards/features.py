"""Features of answers: what the last layer of a reward model reads."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from shfcas.data.chat import ModelInputs
from shfcas.rewards.scorers import Batch, ModelScorer
from shfcas.utils.errors import UserError
from shfcas.utils.progress import progress

REMEDY = "use refine: full in a comparison, or uncertainty: none for scoring"


def last_layer(name: str, model: Any) -> Any:
    """Returns the linear layer with one output that computes the score.

    Raises:
        UserError: there is none.
    """
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1]
    if not layers:
        raise UserError(f"{name} has no linear layer that computes its score; {REMEDY}")
    return layers[-1]


def rewards_and_features(
    name: str, scorer: ModelScorer, encoded: Sequence[ModelInputs], description: str | None = None
) -> tuple[list[float], np.ndarray]:
    """Computes the rewards of conversations, and the input of the last layer at the token of the score.

    Args:
        name: the model's name, for errors.
        scorer: the reward model.
        encoded: conversations as the inputs of the model.
        description: of a progress bar (None: no bar).

    Returns:
        The rewards, as `ModelScorer.score_inputs` returns them, and the features, shape (T, D), float32.

    Raises:
        UserError: the score is not linear in the input of the last layer.
    """
    layer, read = last_layer(name, scorer.model), []
    features = np.empty((len(encoded), layer.in_features), np.float32)
    rewards = [0.0] * len(encoded)
    hook = layer.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    try:
        batches: Iterable[Batch] = scorer.batches(encoded)
        if description:
            batches = progress(batches, description, -(-len(encoded) // scorer.batch_size))
        for batch, inputs, scores in batches:
            found = _at_score(name, layer, read[-1].float(), scores=scores, mask=inputs["attention_mask"])
            for same, vector, reward in zip(batch, found.cpu().numpy(), scores.tolist(), strict=True):
                features[same] = vector
                for i in same:
                    rewards[i] = reward
            read.clear()
    finally:
        hook.remove()
    return rewards, features


@torch.inference_mode()
def _at_score(name: str, layer: Any, hidden: torch.Tensor, *, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the inputs of the layer that give these scores, shape (B, D)."""
    linear = torch.nn.functional.linear(hidden, layer.weight.float(), layer.bias).squeeze(-1)
    if hidden.dim() == 3:  # the layer is applied to every token: find the token of the score
        away = (linear - scores.unsqueeze(1)).abs().masked_fill(mask == 0, torch.inf)
        place = torch.arange(len(scores), device=away.device), away.argmin(dim=1)
        hidden, linear = hidden[place], linear[place]
    if not torch.allclose(linear, scores, rtol=1e-3, atol=1e-3):
        raise UserError(f"{name}: its score is not the output of its last layer; {REMEDY}")
    return hidden
