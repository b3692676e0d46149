"""Frozen reward models: features (the input of the last layer), and the last layer as a head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shfcas.compare.heads import Head
from shfcas.data.chat import model_inputs
from shfcas.data.messages import Completion, Prompt
from shfcas.data.preferences import Preference
from shfcas.models.loading import has_trained_head, load_reward_model, save_model
from shfcas.models.resolve import is_cost_model
from shfcas.rewards.features import last_layer, rewards_and_features
from shfcas.rewards.scorers import ENSEMBLE_FILE, ModelScorer, ensemble_members, reward_max_length
from shfcas.training.reward.data import encode_pairs
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_json


class FrozenModel:
    """Reward model split into features and a head: the last linear layer, and its input at the end of each text.

    The reward of an ensemble is the mean of its members. So its features are the concatenated features of the members,
    and its head is their concatenated heads, divided by their number. The head of a cost model is negated. An
    additional backbone is a member with zero weights: it adds features, but no reward.

    Args:
        name: a model with a trained head, or the folder of an ensemble.
        cost_model: lower is better.
        backbone: the model before reward training; its features keep distinctions that the proxy learned to ignore.

    Raises:
        UserError: the model's score is not linear in the input of its last layer.
    """

    def __init__(self, name: str, cost_model: bool = False, backbone: str | None = None) -> None:
        self.members = []
        for member in ensemble_members(name) or [name]:
            if not has_trained_head(member):
                raise UserError(f"{member} has no trained reward head; train one with: shfcas train-reward")
            model, tokenizer = load_reward_model(member, torch.float32)
            self.members.append((member, model, tokenizer))
        self.signs = [-1 if cost_model or is_cost_model(name) else 1 for name, _, _ in self.members]
        count = len(self.members)
        heads = [last_layer(name, model).weight.detach().double().flatten() for name, model, _ in self.members]
        heads = [sign * weight / count for sign, weight in zip(self.signs, heads, strict=True)]
        if backbone:
            model, tokenizer = load_reward_model(backbone, torch.float32)
            self.members.append((backbone, model, tokenizer))
            self.signs.append(1)
            heads.append(torch.zeros_like(last_layer(backbone, model).weight, dtype=torch.float64).flatten())
        self.head = Head(torch.cat(heads).cpu().numpy())

    def features(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Computes the features of answers, shape (T, D), float32."""
        each = [
            member_features(name, model, tokenizer=tokenizer, prompts=prompts, completions=completions)
            for name, model, tokenizer in self.members
        ]
        return np.concatenate(each, axis=1)

    def differences(self, preferences: Sequence[Preference]) -> tuple[np.ndarray, np.ndarray]:
        """Computes feature differences, chosen minus rejected, shape (n, D), and margins, shape (n,).

        Pairs longer than the model's limit lose the beginning of their prompt, as in training.
        """
        used = list(preferences)
        for _, model, tokenizer in self.members:
            _, used = encode_pairs(used, tokenizer, reward_max_length(model, tokenizer))
        prompts = [p.prompt for p in used]
        found = self.features(prompts * 2, [*(p.chosen for p in used), *(p.rejected for p in used)])
        return found[: len(used)] - found[len(used) :], np.array([p.margin or 0.0 for p in used])

    def save(self, output: Path, head: Head) -> None:
        """Saves the model, or the ensemble, with another head."""
        several = len(self.members) > 1
        place = 0
        for number, ((name, model, tokenizer), sign) in enumerate(zip(self.members, self.signs, strict=True)):
            layer = last_layer(name, model)
            weight = head.weight[place : place + layer.in_features] * sign * len(self.members)
            place += layer.in_features
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight).reshape(layer.weight.shape))
            save_model(output / f"member-{number}" if several else output, model, tokenizer)
        if several:
            members = [f"member-{number}" for number in range(len(self.members))]
            write_json(output / ENSEMBLE_FILE, {"members": members})


def member_features(
    name: str, model: Any, *, tokenizer: Any, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> np.ndarray:
    """Computes the input of one model's last layer for each answer, shape (T, D)."""
    scorer = ModelScorer(model, tokenizer)
    encoded = [
        model_inputs(tokenizer, p, c, scorer.max_length, cut=True) for p, c in zip(prompts, completions, strict=True)
    ]
    return rewards_and_features(name, scorer, encoded, "features")[1]
