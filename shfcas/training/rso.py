"""Statistical rejection sampling and preference optimisation (Liu et al. 2023, arXiv 2309.06657).

Candidate answers are thinned to a sample of the optimum of the KL-regularised objective, pi_ref exp(r / beta). The
reward model orders pairs of them, and DPO learns from those pairs. Nothing is sampled during training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shfcas.data.chat import encode_prompt, encode_sampled, end_token_ids
from shfcas.data.messages import plain_text
from shfcas.models.loading import context_length, load_policy
from shfcas.rewards.scorers import RewardScorer
from shfcas.selection.rejection import rejection_sample
from shfcas.training.lora import AdapterConfig, DefaultRates
from shfcas.training.pairs import PairSettings, candidates_row, max_length_option, train_on_pairs
from shfcas.utils.config import option
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed


@dataclass
class RSOConfig(PairSettings):
    """Rejection sampling of the candidates, then DPO."""

    RATES: ClassVar = DefaultRates(1e-4, 1e-6)

    num_samples: int = option(
        4,
        "candidates accepted per prompt (8 of 64 in Liu et al. 2023)",
        ge=2,
        remedy="a pair needs two answers",
        common=True,
    )
    rejection_beta: float = option(
        0.5, "beta of the target pi_ref exp(r / beta), in units of the reward (Liu et al. 2023)", gt=0
    )
    ranking: str = option(
        "first_round",
        "pairs of accepted answers: each answer in one pair, or a tournament in which winners meet again",
        ("first_round", "tournament"),
    )
    loss_type: str = option("sigmoid", "loss on log-ratios: sigmoid (DPO), or hinge (SLiC)", ("sigmoid", "hinge"))
    dpo_beta: float = option(
        0.05, "scale of the log-ratios in the loss (gamma in Liu et al. 2023; TRL's beta)", gt=0, common=True
    )
    num_train_epochs: float = option(3.0, "passes over the pairs", gt=0, common=True)
    learning_rate: float | None = RATES.option("peak learning rate, on a cosine schedule")
    batch_size: int = option(16, "pairs per optimizer step", ge=1, common=True)
    max_length: int | None = max_length_option()
    checkpoint_steps: int = option(0, "optimizer steps between resumable checkpoints (0: none)", ge=0)
    lora: AdapterConfig = option(AdapterConfig, "adapters")


def first_round(accepted: Sequence[int], rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Returns pairs of neighbours, each answer in at most one, as (better, worse); a tie makes no pair.

    >>> first_round([3, 0, 2, 1], [0.1, 0.2, 0.3, 0.4])
    [(3, 0), (2, 1)]
    """
    pairs = zip(accepted[::2], accepted[1::2], strict=False)
    return [(a, b) if rewards[a] > rewards[b] else (b, a) for a, b in pairs if rewards[a] != rewards[b]]


def tournament(accepted: Sequence[int], rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Returns the pairs of all rounds of a knock-out, as (better, worse); a tie makes no pair, and the first advances.

    >>> tournament([3, 0, 2, 1], [0.1, 0.2, 0.3, 0.4])
    [(3, 0), (2, 1), (3, 2)]
    """
    pairs: list[tuple[int, int]] = []
    while len(accepted) > 1:
        pairs += first_round(accepted, rewards)
        winners = [a if rewards[a] >= rewards[b] else b for a, b in zip(accepted[::2], accepted[1::2], strict=False)]
        accepted = winners + list(accepted[2 * len(winners) :])  # one without an opponent advances
    return pairs


RANKINGS = {"first_round": first_round, "tournament": tournament}


def encode_pair(
    tokenizer: Any, row: Mapping[str, Any], *, better: int, worse: int, limit: int, end_ids: set[int] | None = None
) -> dict[str, list[int]]:
    """Encodes a prompt and two of its answers as the policy sampled them, see `shfcas.data.chat.encode_sampled`.

    Args:
        tokenizer: the policy's.
        row: a row of a candidate table.
        better: position of the better answer.
        worse: position of the worse answer.
        limit: maximum tokens of prompt and answer.
        end_ids: tokens that end an answer; None takes those of the tokenizer and its template.

    Raises:
        UserError: an answer does not fit into `limit` tokens with its prompt.
    """
    prompt, ends = encode_prompt(tokenizer, row["prompt"]), end_ids or end_token_ids(None, tokenizer)

    def answer(i: int) -> list[int]:
        try:
            _, ids = encode_sampled(tokenizer, row, i, ends)
        except UserError as error:
            raise UserError(f"RSO: answer {i} of prompt {row['prompt_id']!r}: {error}") from error
        if len(prompt) + len(ids) > limit:
            raise UserError(
                f"RSO: answer {i} of prompt {row['prompt_id']!r} has {len(prompt) + len(ids)} tokens with its prompt, "
                f"more than {limit}: {plain_text(row['prompt'])[:60]!r}; raise max_length or sample shorter answers"
            )
        return ids

    return {"prompt_ids": prompt, "chosen_ids": answer(better), "rejected_ids": answer(worse)}


def train_rso(
    policy: str,
    candidates: Sequence[dict[str, Any]],
    *,
    reward: RewardScorer,
    settings: RSOConfig,
    output: Path,
    work_dir: Path,
    seed: int,
    metrics: Mapping[str, RewardScorer] | None = None,
    chat_template: str | None = None,
    reference: str | None = None,
) -> list[dict[str, Any]]:
    """Trains a policy on pairs of its own accepted answers and saves it in `output`.

    Args:
        policy: the policy that made the candidates.
        candidates: rows of a candidate table.
        reward: accepts and orders the answers.
        settings: see `RSOConfig`.
        output: the folder of the new policy.
        work_dir: checkpoints; training resumes from the newest complete one.
        seed: seed of the acceptance, the adapters and the order of the pairs.
        metrics: further scorers by name, measured on the candidates and not trained on.
        chat_template: for a policy without one, see `shfcas.models.loading.load_policy`.
        reference: the reference of the log-ratios; None is the policy.

    Returns:
        A first row about the candidates, with the names of a rollout's metrics, then TRL's rows, one per step.

    Raises:
        UserError: too few candidates, an answer that is too long, or no pair that the reward orders.
    """
    for row in candidates:
        if len(row["completions"]) < settings.num_samples:
            raise UserError(
                f"RSO: prompt {row['prompt_id']!r} has {len(row['completions'])} candidates, fewer than num_samples="
                f"{settings.num_samples}; sample more (sampling.num_completions) or accept fewer"
            )
    model, tokenizer = load_policy(policy, chat_template, settings.lora.base_dtype)
    first, rewards = candidates_row(reward, candidates, metrics)
    limit = min(settings.max_length or context_length(model), context_length(model))
    end_ids = end_token_ids(model, tokenizer)
    pairs, accepted_rewards = [], []
    for row, values in zip(candidates, rewards, strict=True):
        rng = np.random.default_rng(derive_seed("rso", seed, row["prompt_id"], bits=63))
        accepted = rejection_sample(values, settings.num_samples, settings.rejection_beta, rng)
        accepted_rewards += [values[i] for i in accepted]
        ordered = RANKINGS[settings.ranking](accepted, values)
        pairs += [
            encode_pair(tokenizer, row, better=better, worse=worse, limit=limit, end_ids=end_ids)
            for better, worse in ordered
        ]
    if not pairs:
        raise UserError("RSO: the reward orders no pair of accepted answers; are all rewards of a prompt alike?")
    first |= {"rso/accepted_scores": float(np.mean(accepted_rewards)), "rso/pairs": len(pairs)}
    history = train_on_pairs(
        model,
        tokenizer,
        pairs=pairs,
        settings=settings,
        beta=settings.dpo_beta,
        name="RSO",
        policy=policy,
        output=output,
        work_dir=work_dir,
        seed=seed,
        reference=reference,
    )
    return [dict(sorted(row.items())) for row in (first, *history)]
