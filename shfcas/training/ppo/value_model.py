"""Separate value model: a sequence classifier that reads the policy's tokens."""

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
    """Returns the value model to train; a given model is changed in place.

    A sequence classifier with one output starts from its `score` head, in float32. A reward model then initially rates
    every prefix as if it were an answer (Stiennon et al. 2020). Any other model gets a head of zeros.

    Args:
        value_model: a sequence classifier or a causal language model, or the name of one to load in float32.
        policy: the policy in training.
        tokenizer: the policy's.
        device: device of the training.

    Raises:
        ValueError: it does not read the policy's token ids, is not causal, or has no such head.
    """
    if isinstance(value_model, (str, os.PathLike)):
        name = str(value_model)
        load = load_reward_model if has_trained_head(name) else load_policy
        loaded = load(name, dtype=torch.float32)
        value_model, its_tokenizer = loaded
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"value_model {name}: expected the vocabulary of the policy, got another one")
    if is_peft_model(value_model):
        raise ValueError("value_model: expected a plain model, got a PeftModel; merge its adapter (merge_and_unload)")
    if value_model is causal_lm(policy):
        raise ValueError("value_model: expected a separate model, got the policy; omit it or pass a copy")
    rows, needed = value_model.get_input_embeddings().num_embeddings, len(tokenizer)
    if rows < needed:
        raise ValueError(f"value_model: expected an embedding for each of the policy's {needed} tokens, got {rows}")
    if not isinstance(getattr(value_model, "score", None), nn.Linear):
        value_model = _with_zero_head(value_model)
    if value_model.score.out_features != 1:
        raise ValueError(f"value_model: expected one output (num_labels=1), got {value_model.score.out_features}")
    value_model.score.float()
    value_model = value_model.to(device).requires_grad_(True)
    if not _is_causal(value_model):
        raise ValueError("value_model: expected a causal model, like the policy, got one that sees later tokens")
    return value_model


def _with_zero_head(model: Any) -> Any:
    """Returns a sequence classifier of the same architecture around the trunk of a language model."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):  # the weights come from the model
            classifier = AutoModelForSequenceClassification.from_config(config)
        score = classifier.score
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"value_model: expected an architecture with a classifier head named score, got {type(model).__name__}"
        ) from error
    setattr(classifier, classifier.base_model_prefix, getattr(model, model.base_model_prefix, model))
    classifier.score = nn.Linear(score.in_features, 1, bias=score.bias is not None)
    for parameter in classifier.score.parameters():
        nn.init.zeros_(parameter)
    return classifier


@torch.no_grad()
def _is_causal(model: Any) -> bool:
    """Returns whether the hidden state of a token does not depend on the next token."""
    ids = torch.tensor([[1, 2], [1, 3]], device=model.device)
    training = model.training
    first, second = hidden_states(model.eval(), ids, torch.ones_like(ids))[:, 0]
    model.train(training)
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3)
