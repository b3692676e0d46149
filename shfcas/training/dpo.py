"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) on labelled pairs of answers.

Labels are pairs anyway, so a policy can learn from them without a reward model. Or the reward model orders the best and
the worst of each prompt's candidates; over several rounds, that is iterative DPO on the policy's own answers (Xiong et
al. 2023, arXiv 2312.11456; Guo et al. 2024, arXiv 2402.04792).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shfcas.data.chat import encode_demonstration, encode_prompt, encode_sampled, end_token_ids, following_text
from shfcas.data.messages import plain_text
from shfcas.data.preferences import Preference
from shfcas.models.loading import context_length, load_policy
from shfcas.rewards.scorers import RewardScorer
from shfcas.training.lora import AdapterConfig, DefaultRates
from shfcas.training.pairs import PairSettings, candidates_row, max_length_option, train_on_pairs
from shfcas.utils.config import option
from shfcas.utils.errors import UserError

LABELS, ALL, REWARD = "labels", "all", "reward"


@dataclass
class DPOConfig(PairSettings):
    """DPO on pairs of answers."""

    RATES: ClassVar = DefaultRates(1e-4, 1e-6)

    pairs: str = option(
        LABELS,
        "what is learned from: labels (those of all rounds so far), all (the original preferences too), or reward (the "
        "best and the worst of each prompt's candidates, as the reward model orders them)",
        (LABELS, ALL, REWARD),
        common=True,
    )
    loss_type: str = option(
        "sigmoid", "loss on log-ratios: sigmoid (DPO), or ipo (Azar et al. 2023, arXiv 2310.12036)", ("sigmoid", "ipo")
    )
    beta: float = option(
        0.1,
        "scale of the log-ratios in the loss: a larger one stays closer (0.1: Rafailov et al. 2023)",
        gt=0,
        common=True,
    )
    num_train_epochs: float = option(3.0, "passes over the pairs", gt=0, common=True)
    learning_rate: float | None = RATES.option("peak learning rate, on a cosine schedule")
    batch_size: int = option(16, "pairs per optimizer step", ge=1, common=True)
    max_length: int | None = max_length_option()
    checkpoint_steps: int = option(0, "optimizer steps between resumable checkpoints (0: none)", ge=0)
    lora: AdapterConfig = option(AdapterConfig, "adapters")


class PairEncoder:
    """Tokens of pairs, those that were sampled where they are known.

    Args:
        tokenizer: the policy's.
        candidates: rows of a candidate table; an answer in it has the tokens that were sampled.
        end_ids: tokens that end an answer.
        limit: maximum tokens of prompt and answer.
    """

    def __init__(self, tokenizer: Any, candidates: Sequence[dict[str, Any]], *, end_ids: set[int], limit: int) -> None:
        self.tokenizer, self.end_ids, self.limit = tokenizer, end_ids, limit
        self.candidates = {row["prompt_id"]: row for row in candidates}

    def encode(self, preference: Preference) -> dict[str, list[int]]:
        """Returns `prompt_ids`, `chosen_ids` and `rejected_ids`.

        Raises:
            UserError: an answer is too long, has several turns, or its template refuses it.
        """
        return {
            "prompt_ids": encode_prompt(self.tokenizer, preference.prompt),
            "chosen_ids": self._answer(preference, preference.chosen),
            "rejected_ids": self._answer(preference, preference.rejected),
        }

    def _answer(self, preference: Preference, answer: Any) -> list[int]:
        about = f"{plain_text(preference.prompt)[:60]!r}"
        if not isinstance(answer, str):
            raise UserError(f"DPO: an answer to {about} has several turns; give answers of one turn")
        row = self.candidates.get(preference.prompt_id)
        try:
            if row is not None and row["prompt"] == preference.prompt and answer in row["completions"]:
                place = row["completions"].index(answer)
                prompt_ids, ids = encode_sampled(self.tokenizer, row, place, self.end_ids)
            else:
                # Answers of a table lost the white space in front of them.
                text = following_text(preference.prompt, answer) if preference.chosen_index >= 0 else answer
                prompt_ids, ids = encode_demonstration(self.tokenizer, preference.prompt, text, self.end_ids)
        except UserError as error:
            raise UserError(f"DPO: an answer to {about}: {error}") from error
        if (length := len(prompt_ids) + len(ids)) > self.limit:
            raise UserError(
                f"DPO: an answer to {about} has {length} tokens with its prompt, more than {self.limit}; raise "
                "max_length, or leave the pair out"
            )
        return ids


def best_and_worst(row: dict[str, Any], rewards: Sequence[float]) -> Preference | None:
    """Returns the pair of a prompt's answers with the highest and the lowest reward, the first of equal ones.

    None if all rewards, or both texts, are alike.
    """
    best, worst = int(np.argmax(rewards)), int(np.argmin(rewards))
    texts = row["completions"]
    if rewards[best] == rewards[worst] or texts[best] == texts[worst]:
        return None
    return Preference(row["prompt"], texts[best], texts[worst], prompt_id=row["prompt_id"], chosen_index=best,
                      rejected_index=worst)  # fmt: skip


def train_dpo(
    policy: str,
    preferences: Sequence[Preference],
    *,
    candidates: Sequence[dict[str, Any]],
    settings: DPOConfig,
    output: Path,
    work_dir: Path,
    seed: int,
    reward: RewardScorer | None = None,
    metrics: Mapping[str, RewardScorer] | None = None,
    chat_template: str | None = None,
    reference: str | None = None,
) -> list[dict[str, Any]]:
    """Trains a policy on pairs of answers and saves it in `output`.

    Args:
        policy: the policy to start from.
        preferences: the pairs; not used with `pairs: reward`.
        candidates: rows of a candidate table, which may be empty. Answers in it have the tokens that were sampled.
        settings: see `DPOConfig`.
        output: the folder of the new policy.
        work_dir: checkpoints; training resumes from the newest complete one.
        seed: seed of the adapters and the order of the pairs.
        reward: orders the candidates with `pairs: reward`, and otherwise is only measured on them; None measures
            nothing.
        metrics: further scorers by name, measured on the candidates.
        chat_template: for a policy without one, see `shfcas.models.loading.load_policy`.
        reference: the reference of the log-ratios; None is the policy.

    Returns:
        A first row, which describes the candidates where there is a reward, with the names of a rollout's metrics. Then
        TRL's rows, one per step.

    Raises:
        UserError: there is no pair, a pair is a soft label, or an answer is too long.
    """
    model, tokenizer = load_policy(policy, chat_template, settings.lora.base_dtype)
    first: dict[str, float] = {"rollout": 0}
    if reward is not None and candidates:
        first, rewards = candidates_row(reward, candidates, metrics)
        if settings.pairs == REWARD:
            made = (best_and_worst(row, values) for row, values in zip(candidates, rewards, strict=True))
            preferences = [pair for pair in made if pair is not None]
    if any(pair.probability is not None for pair in preferences):
        raise UserError("DPO: expected verdicts, got soft labels (a column probability); leave them out")
    pairs = [pair for pair in preferences if not pair.is_tie]
    if not pairs:
        raise UserError("DPO: expected pairs to learn from, got none; label some, or set pairs to another source")
    end_ids, context = end_token_ids(model, tokenizer), context_length(model)
    limit = min(settings.max_length or context, context)
    encoder = PairEncoder(tokenizer, candidates, end_ids=end_ids, limit=limit)
    history = train_on_pairs(
        model,
        tokenizer,
        pairs=[encoder.encode(pair) for pair in pairs],
        settings=settings,
        beta=settings.beta,
        name="DPO",
        policy=policy,
        output=output,
        work_dir=work_dir,
        seed=seed,
        reference=reference,
    )
    return [dict(sorted(row.items())) for row in (first | {"dpo/pairs": len(pairs)}, *history)]
