"""Policy to train, and the frozen reference policy of the KL penalty."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shfcas.training.ppo.value_head import (
    LanguageModel,
    PolicyWithValue,
    has_plain_head,
    is_peft_model,
    response_statistics,
)


class Reference:
    """Reference policy, which computes log-probabilities.

    Args:
        model: the model in training; with its adapter disabled it is the reference if ref_model is None.
        ref_model: a separate frozen model, or None.
    """

    def __init__(self, model: PolicyWithValue, ref_model: LanguageModel | None) -> None:
        self.model = model
        self.ref_model = ref_model
        self.plain_head = model.plain_head if ref_model is None else has_plain_head(ref_model)

    @torch.no_grad()
    def logprobs(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
        """Returns the (B, K) log-probabilities of the response tokens; see `shfcas.training.ppo.value_head`."""
        tensors = (input_ids, attention_mask, completion_mask)
        statistics = partial(
            response_statistics, temperature=self.model.temperature, plain_head=self.plain_head, entropy=False
        )
        if self.ref_model is not None:
            return statistics(self.ref_model, *tensors)[0]
        with self.model.policy.disable_adapter():
            return statistics(self.model.policy, *tensors)[0]


def policy_and_reference(
    model: LanguageModel, ref_model: LanguageModel | None, peft_config: Any
) -> tuple[LanguageModel, LanguageModel | None]:
    """Returns the policy to train and the frozen reference; None means the policy without its adapter.

    Raises:
        ValueError: the reference would differ from the initial policy, or nothing is trainable.
    """
    if ref_model is model:
        raise ValueError("ref_model: expected a separate model, got the model in training; omit it, or pass a copy")
    if is_peft_model(model):
        if peft_config is not None:
            raise ValueError("peft_config: expected None, since model already has an adapter; pass a plain model")
        if ref_model is None:
            raise ValueError(
                "ref_model: expected a model, got None, and training changes the adapter of the PeftModel: merge it "
                "(merge_and_unload) and pass peft_config, or pass ref_model"
            )
    elif peft_config is not None:
        from peft import get_peft_model

        if getattr(peft_config, "is_prompt_learning", False):
            raise ValueError("peft_config: expected an adapter inside the layers (LoRA), got prompt learning")
        model = get_peft_model(model, peft_config)
        if ref_model is None:
            _check_adapter_is_neutral(model)
    elif ref_model is None:
        ref_model = copy.deepcopy(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: expected trainable parameters, got none; load adapters with is_trainable=True")
    return model, None if ref_model is None else ref_model.eval().requires_grad_(False)


@torch.no_grad()
def _check_adapter_is_neutral(policy: LanguageModel) -> None:
    """Checks that a new adapter does not change the policy, since the reference is the policy without adapter."""
    ids = torch.arange(4, device=policy.device)[None]
    policy.eval()
    with_adapter = policy(input_ids=ids).logits
    with policy.disable_adapter():
        without = policy(input_ids=ids).logits
    if not torch.allclose(with_adapter, without, rtol=1e-3, atol=1e-3):
        raise ValueError(
            "peft_config: expected an adapter that initially leaves the policy unchanged (init_lora_weights), got one "
            "that changes it; pass ref_model too"
        )
