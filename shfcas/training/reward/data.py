"""Preferences for the training of reward models: held out by prompt, weighted, encoded."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from shfcas.data.chat import TooLong, model_inputs
from shfcas.data.messages import prompt_key
from shfcas.data.preferences import Preference
from shfcas.utils.config import fingerprint
from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)


def held_out_prompts(preferences: Sequence[Preference], share: float, seed: int) -> set[str]:
    """Returns keys of the prompts to hold out: this share of the prompts of each source and round.

    A prompt counts for the round and source where it first appears. Which prompts are held out depends only on the seed
    and their texts. So a prompt that is held out in one round stays held out when pairs of later rounds join, and no
    model is measured on pairs that an earlier round trained on. Shares are rounded down: among fewer than 1 / share
    prompts, none is held out. Soft labels do not count: nothing is measured on them.
    """
    first: dict[str, tuple[int, str]] = {}
    for p in preferences:
        if p.probability is not None:
            continue
        key, stratum = prompt_key(p.prompt), (p.round, p.source)
        first[key] = min(stratum, first.get(key, stratum))
    apart: set[str] = set()
    for stratum in set(first.values()):
        keys = sorted((key for key, where in first.items() if where == stratum), key=lambda k: fingerprint([seed, k]))
        apart.update(keys[: int(share * len(keys) + 1e-9)])
    return apart


def split(preferences: Sequence[Preference], apart: set[str]) -> tuple[list[Preference], list[Preference]]:
    """Returns the pairs to train on, and the pairs of the held-out prompts."""
    parts: tuple[list[Preference], list[Preference]] = ([], [])
    for p in preferences:
        parts[prompt_key(p.prompt) in apart].append(p)
    return parts


def replayed(preferences: Sequence[Preference], share: float, seed: int) -> list[Preference]:
    """Returns the pairs with only a share of the original ones, drawn at random; labels and soft labels all stay."""
    original = [i for i, p in enumerate(preferences) if p.round == 0 and p.probability is None]
    order = sorted(original, key=lambda i: fingerprint([seed, i]))
    dropped = set(order[round(share * len(order)) :])
    return [p for i, p in enumerate(preferences) if i not in dropped]


def weighted(preferences: Sequence[Preference], new_pair_weight: int) -> list[Preference]:
    """Returns the pairs with those of a round repeated: TRL's trainer has no other weights."""
    return [*preferences, *[p for p in preferences if p.round > 0 and p.probability is None] * (new_pair_weight - 1)]


def encode_pairs(
    preferences: Sequence[Preference],
    tokenizer: Any,
    max_length: int,
    objective: str = "reward",
    *,
    too_long: str = "cut",
    counts: Counter[tuple[str, str]] | None = None,
) -> tuple[list[dict[str, Any]], list[Preference]]:
    """Encodes pairs as rows for TRL's trainer; returns the rows and their pairs.

    The trainer raises the output for `chosen_ids` above that for `rejected_ids`. A cost has to be higher for the
    rejected answer, so the objective `cost` swaps the two. Their `signs` are +1 for unsafe, -1 for safe and 0 for
    unknown. A pair without a margin has margin 0 where others have one, and a pair without a probability has 1.

    Args:
        preferences: the pairs. One that the tokenizer's template refuses is left out.
        tokenizer: the reward model's.
        max_length: maximum tokens of prompt and answer.
        objective: `reward` or `cost`.
        too_long: `cut` the beginning of a longer pair's prompt, `floor` (leave the pair out), or raise an `error`.
        counts: gets the number of pairs by ("too_long" or "refused", source).
    """
    with_margin = any(p.margin is not None for p in preferences)
    soft = any(p.probability is not None for p in preferences)
    counts = Counter() if counts is None else counts
    encoded, used = [], []
    for p in preferences:
        sides = [p.rejected, p.chosen] if objective == "cost" else [p.chosen, p.rejected]
        try:
            inputs = [model_inputs(tokenizer, p.prompt, answer, max_length) for answer in sides]
        except TooLong:
            counts["too_long", p.source] += 1
            if too_long == "error":
                raise
            if too_long == "floor":
                continue
            inputs = [model_inputs(tokenizer, p.prompt, answer, max_length, cut=True) for answer in sides]
        except UserError as error:
            if not counts["refused", p.source]:
                logger.warning("a pair is left out: %s", error)
            counts["refused", p.source] += 1
            continue
        row: dict[str, Any] = {"chosen_ids": inputs[0]["input_ids"], "rejected_ids": inputs[1]["input_ids"]}
        if "token_type_ids" in inputs[0]:
            row |= {"chosen_types": inputs[0]["token_type_ids"], "rejected_types": inputs[1]["token_type_ids"]}
        if objective == "cost":
            row["signs"] = [_sign(p.rejected_safe), _sign(p.chosen_safe)]
        if with_margin:
            row["margin"] = p.margin or 0.0
        if soft:
            row["probability"] = 1.0 if p.probability is None else p.probability
        encoded.append(row)
        used.append(p)
    return encoded, used


def _sign(safe: bool | None) -> int:
    return 0 if safe is None else -1 if safe else 1
