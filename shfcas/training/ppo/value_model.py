"""A value function with a model of its own: a sequence classifier that reads the policy's tokens."""

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from shfcas.models.loading import has_trained_head, load_policy, load_reward_model
from shfcas.training.ppo.value_head import LanguageModel, causal_lm, hidden_states, is_peft_model


def make_value_model(
    value_model: Any, policy: LanguageModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> nn.Module:
    """The value model to train, in place where a model was given.

    A sequence classifier with one output starts from its `score` head, in float32: a reward model then begins by
    rating every prefix as if it were an answer (Stiennon et al. 2020). Any other model gets a head of zeros.

    Args:
        value_model: a sequence classifier or a causal language model, or the name of one to load in float32.
        policy: the policy that is trained.
        tokenizer: the policy's.
        device: where to train.

    Raises:
        ValueError: it reads other token ids than the policy, sees what follows a token, or has no such head.
    """
    if isinstance(value_model, (str, os.PathLike)):
        name = str(value_model)
        loaded = load_reward_model(name) if has_trained_head(name) else load_policy(name, dtype=torch.float32)
        value_model, its_tokenizer = loaded
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"value_model {name} has another vocabulary than the policy; both must read the same ids")
    if is_peft_model(value_model):
        raise ValueError("value_model is a PeftModel: merge its adapter first (merge_and_unload)")
    if value_model is causal_lm(policy):
        raise ValueError("value_model is the policy: leave it out for a value head on the policy, or pass a copy")
    rows, needed = value_model.get_input_embeddings().num_embeddings, len(tokenizer)
    if rows < needed:
        raise ValueError(f"value_model has another vocabulary than the policy: {rows} embeddings for {needed} tokens")
    if not isinstance(getattr(value_model, "score", None), nn.Linear):
        value_model = _with_zero_head(value_model)
    if value_model.score.out_features != 1:
        raise ValueError(f"value_model has {value_model.score.out_features} outputs, expected one (num_labels=1)")
    value_model.score.float()
    value_model = value_model.to(device).requires_grad_(True)
    if not _is_causal(value_model):
        raise ValueError("value_model sees the tokens that follow: it must be causal, as the policy is")
    return value_model


def _with_zero_head(model: Any) -> Any:
    """The sequence classifier of the same architecture around the trunk of a language model."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):  # its weights come from the model
            classifier = AutoModelForSequenceClassification.from_config(config)
        score = classifier.score
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"value_model: {type(model).__name__} has no sequence classifier with a head named score"
        ) from error
    setattr(classifier, classifier.base_model_prefix, getattr(model, model.base_model_prefix, model))
    classifier.score = nn.Linear(score.in_features, 1, bias=score.bias is not None)
    for parameter in classifier.score.parameters():
        nn.init.zeros_(parameter)
    return classifier


@torch.no_grad()
def _is_causal(model: Any) -> bool:
    """Whether the first of two tokens looks the same whatever the second one is."""
    ids = torch.tensor([[1, 2], [1, 3]], device=model.device)
    training = model.training
    first, second = hidden_states(model.eval(), ids, torch.ones_like(ids))[:, 0]
    model.train(training)
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3)
