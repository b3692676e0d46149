"""Groups of prompts: a column of the table, or clusters of the prompts' embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from shfcas.data.messages import plain_text
from shfcas.models.loading import load_reward_model
from shfcas.rewards.scorers import ensemble_members, padded, reward_max_length
from shfcas.utils.callables import is_callable_name
from shfcas.utils.errors import UserError
from shfcas.utils.progress import progress

CLUSTERS = (2, 4, 8)  # numbers of clusters to choose from
BATCH = 64


def groupings_of(
    rows: Sequence[dict[str, Any]], reward_model: str, group_by: str | None, seed: int
) -> Mapping[str, list[str]]:
    """Returns ways to group the prompts, from which the labels choose by evidence.

    Args:
        rows: rows with `prompt`.
        reward_model: the model whose encoder embeds the prompts. A reward function embeds none.
        group_by: a column of the rows; None clusters the embeddings.
        seed: seed of the clusters.

    Returns:
        By the grouping's name, the group of each row. Empty if there is nothing to group by.

    Raises:
        UserError: the rows have no column of that name.
    """
    if group_by is not None:
        if any(row.get(group_by) is None for row in rows):
            raise UserError(
                f"reward.second_opinion.group_by: expected a column of all prompts, got {group_by}, which some lack"
            )
        return {group_by: [str(row[group_by]) for row in rows]}
    if is_callable_name(reward_model):
        return {}
    vectors = text_embeddings(reward_model, [plain_text(row["prompt"]) for row in rows])
    return {f"{count} clusters": clusters(vectors, count, seed) for count in CLUSTERS if count < len(rows)}


def clusters(vectors: np.ndarray, count: int, seed: int) -> list[str]:
    """Returns the k-means cluster of each vector, by name."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=10, random_state=seed).fit_predict(vectors)
    return [f"cluster {number + 1} of {count}" for number in found]


def nearest_groups(
    rows: Sequence[dict[str, Any]], groups: Sequence[str], prompts: Sequence[Any], reward_model: str
) -> list[str]:
    """Returns for each of further prompts the group of the row whose prompt is most similar.

    Args:
        rows: rows with `prompt`, at least one.
        groups: the group of each row.
        prompts: text or messages.
        reward_model: the model whose encoder embeds the prompts; similarity is the cosine of their embeddings.
    """
    texts = [plain_text(prompt) for prompt in (*(row["prompt"] for row in rows), *prompts)]
    unique = list(dict.fromkeys(texts))
    vectors = text_embeddings(reward_model, unique)
    place = {text: number for number, text in enumerate(unique)}
    known, asked = vectors[[place[t] for t in texts[: len(rows)]]], vectors[[place[t] for t in texts[len(rows) :]]]
    return [groups[int(np.argmax(known @ vector))] for vector in asked]


@torch.inference_mode()
def text_embeddings(reward_model: str, texts: Sequence[str]) -> np.ndarray:
    """Returns the mean last hidden state of each text in a reward model's encoder, of length 1, shape (n, D).

    An ensemble embeds with its first member.
    """
    members = ensemble_members(reward_model)
    model, tokenizer = load_reward_model(members[0] if members else reward_model)
    encoder, limit = getattr(model, model.base_model_prefix), reward_max_length(model, tokenizer)
    ids = [tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    vectors: list[Any] = [None] * len(ids)
    for start in progress(range(0, len(ids), BATCH), "embedding"):
        batch = order[start : start + BATCH]
        inputs = padded([ids[i] for i in batch], tokenizer.pad_token_id, model.device)
        hidden, mask = encoder(**inputs).last_hidden_state.float(), inputs["attention_mask"][..., None]
        means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        for i, vector in zip(batch, means.cpu().numpy(), strict=True):
            vectors[i] = vector
    return np.stack(vectors)
