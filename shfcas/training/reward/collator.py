"""Batches of pairs with everything that the tokenizer made."""

from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import pad


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's batches with `token_type_ids`, padded with 0, for a model that takes them.

    Attributes:
        token_types: whether the model takes them.
    """

    token_types: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if not self.token_types or "chosen_types" not in examples[0]:
            return batch
        sides = ("chosen_types", "rejected_types")
        types = [torch.tensor(example[side]) for side in sides for example in examples]
        return {**batch, "token_type_ids": pad(types, padding_value=0, padding_side="right")}
