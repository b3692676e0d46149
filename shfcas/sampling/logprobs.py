"""Log-probabilities of given completions, from one forward pass."""

import inspect
from typing import Any

import torch

from shfcas.ops.logprobs import token_logprobs


@torch.inference_mode()
def response_logprobs(
    model: Any, sequences: torch.Tensor, prompt_mask: torch.Tensor, chunk_size: int = 16
) -> torch.Tensor:
    """Computes the log-probability, at temperature 1, of every response token of a left-padded batch.

    Args:
        model: a causal language model.
        sequences: (B, P + T) token ids, prompts of width P and responses of width T.
        prompt_mask: (B, P), 0 where the prompt is padding.
        chunk_size: sequences per forward pass; limits the memory of the logits.

    Returns:
        (B, T) float32. The caller must mask positions after an end token.
    """
    length = sequences.shape[1] - prompt_mask.shape[1]
    mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(sequences), length)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    accepted = inspect.signature(model.forward).parameters
    keep = {"logits_to_keep": length + 1} if "logits_to_keep" in accepted else {}
    rows = []
    for start in range(0, len(sequences), chunk_size):
        part = slice(start, start + chunk_size)
        # Architectures with relative positions take no position ids.
        where = {"position_ids": positions[part]} if "position_ids" in accepted else {}
        output = model(input_ids=sequences[part], attention_mask=mask[part], **where, **keep)
        rows.append(token_logprobs(output.logits[:, -length - 1 : -1], sequences[part, -length:]))
    return torch.cat(rows)
