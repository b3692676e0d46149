"""Demonstrations beside the rollouts: their likelihood is a term of the loss (PPO-ptx, Ouyang et al. 2022)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shfcas.data.chat import encode_demonstration
from shfcas.training.ppo.rollout import pad_rows, prompt_rows
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed


class Demonstrations:
    """Demonstrations as token ids. Which of them an optimizer step sees depends on the seed and its number alone.

    Args:
        rows: rows with `prompt` and `completion` (text).
        tokenizer: the policy's.
        end_ids: tokens that end an answer.
        context_length: maximum tokens of prompt and answer.
        seed: seed of their order.

    Raises:
        ValueError: there is none, or one is too long or refused by the template; the message names it.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], tokenizer: Any, *, end_ids: set[int], context_length: int, seed: int
    ) -> None:
        if not rows:
            raise ValueError("demonstrations: expected at least one for ptx_coef, got none")
        self.seed = derive_seed("ptx", seed)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(end_ids)
        self.rows: list[tuple[list[int], list[int]]] = []
        for index, row in enumerate(rows):
            try:
                pair = encode_demonstration(
                    tokenizer, row["prompt"], row["completion"], end_ids, row.get("completion_ids")
                )
            except UserError as error:
                raise ValueError(f"demonstration {index}: {error}") from error
            if (length := sum(map(len, pair))) > context_length:
                raise ValueError(
                    f"demonstration {index} has {length} tokens, more than the model's context of {context_length}"
                )
            self.rows.append(pair)

    def of_step(self, step: int, count: int) -> list[int]:
        """Returns the rows of optimizer step `step`, if each takes `count`: pieces of reshuffled passes."""
        return prompt_rows(step, count, len(self.rows), self.seed)

    def num_tokens(self, rows: Sequence[int]) -> int:
        """Returns the number of tokens of these answers, end tokens included."""
        return sum(len(self.rows[row][1]) for row in rows)

    def batch(self, rows: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Returns the model inputs of these rows: `input_ids`, `attention_mask` and `completion_mask`."""
        prompt_ids, prompt_mask = pad_rows([self.rows[row][0] for row in rows], self.pad_id, "left", device)
        answer_ids, mask = pad_rows([self.rows[row][1] for row in rows], self.pad_id, "right", device)
        return {
            "input_ids": torch.cat([prompt_ids, answer_ids], dim=1),
            "attention_mask": torch.cat([prompt_mask, mask], dim=1).long(),
            "completion_mask": mask,
        }
