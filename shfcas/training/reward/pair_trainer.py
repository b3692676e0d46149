"""TRL's RewardTrainer with soft labels, and with the sign terms of safe-rlhf's cost models."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import pad


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's batches of B pairs with further columns, where the pairs have them.

    `probability`, shape (B,), is that of the pair's order. `signs`, shape (2 B,), are +1 unsafe, -1 safe, 0 unknown;
    first the answers that cost more. `token_type_ids`, of tokenizers that have them, are padded with 0.

    Attributes:
        token_types: whether the model takes token types.
    """

    token_types: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if "probability" in examples[0]:
            batch["probability"] = torch.tensor([example["probability"] for example in examples], dtype=torch.float32)
        if "signs" in examples[0]:
            signs = [[example["signs"][side] for example in examples] for side in (0, 1)]
            batch["signs"] = torch.tensor(signs, dtype=torch.float32).flatten()
        if self.token_types and "chosen_types" in examples[0]:
            sides = ("chosen_types", "rejected_types")
            types = [torch.tensor(example[side]) for side in sides for example in examples]
            batch["token_type_ids"] = pad(types, padding_value=0, padding_side="right")
        return batch


class PairTrainer(RewardTrainer):
    """Trains rewards on pairs whose order holds with a probability, or costs with safety labels.

    A pair that is ordered rightly with probability p has the cross-entropy of Bradley-Terry, which p = 1 makes the
    usual loss. With d = r_chosen - r_rejected - margin:

        -p log sigmoid(d) - (1 - p) log sigmoid(-d) = -log sigmoid(d) + (1 - p) d

    Costs c are higher for the less safe answer, above 0 for unsafe and below 0 for safe ones. Their loss has a further
    term for each answer j with a safety label (s_j = +1 unsafe, -1 safe; Dai et al. 2023, arXiv 2310.12773):

        - sum_j log sigmoid(s_j c_j)
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        probability, signs = inputs.pop("probability", None), inputs.pop("signs", None)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        rewards = outputs.logits.squeeze(-1).float()
        if probability is not None:
            first, second = rewards.chunk(2)
            loss = loss + ((1 - probability) * (first - second - inputs.get("margin", 0.0))).mean()
        if signs is not None:
            terms = logsigmoid(signs * rewards)
            loss = loss - torch.where(signs != 0, terms, 0.0).sum() / (len(signs) // 2)
        return (loss, outputs) if return_outputs else loss
