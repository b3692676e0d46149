"""Cost models: TRL's RewardTrainer with the sign terms of safe-rlhf."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from trl import RewardTrainer

from shfcas.training.reward.collator import PairCollator


@dataclass
class CostCollator(PairCollator):
    """Batches of pairs with `signs`, shape (2 B,): +1 unsafe, -1 safe, 0 unknown; first the answers that cost more."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        signs = [[example["signs"][side] for example in examples] for side in (0, 1)]
        return {**batch, "signs": torch.tensor(signs, dtype=torch.float32).flatten()}


class CostTrainer(RewardTrainer):
    """Trains costs c that are higher for the less safe answer, above 0 for unsafe and below 0 for safe ones.

    The loss of a pair is that of Dai et al. 2023 (arXiv 2310.12773), where j are the answers with a safety label
    (s_j = +1 unsafe, -1 safe):

        -log sigmoid(c_rejected - c_chosen - margin) - sum_j log sigmoid(s_j c_j)
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        signs = inputs.pop("signs")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        known = signs != 0
        terms = logsigmoid(signs * outputs.logits.squeeze(-1).float())
        loss = loss - torch.where(known, terms, 0.0).sum() / (len(signs) // 2)
        return (loss, outputs) if return_outputs else loss
