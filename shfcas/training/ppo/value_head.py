"""Causal language model with a value function, evaluated on the tokens of its responses.

Layout of every batch: `input_ids` (B, P + K) has left-padded prompts followed by right-padded completions of K columns,
`attention_mask` (B, P + K) is 1 on real tokens, `completion_mask` (B, K) is true on real response tokens. The hidden
state before a response token gives both that token's log-probability and its value.
"""

import inspect
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shfcas.ops.logprobs import TokenLogprobs, linear_token_logprobs, token_logprobs

logger = logging.getLogger(__name__)

# A causal language model: a `PreTrainedModel`, or a `PeftModel` around one. They have no common base type.
LanguageModel = Any


class ResponseOutput(NamedTuple):
    """Results of one forward pass per response token; 0 on padding. All (B, K), float32.

    `entropy` is 0 everywhere unless requested, and has a gradient only if the model was told so. `demonstrated` has the
    log-probabilities of the demonstrations, if there are any.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor
    demonstrated: Tensor | None = None


def causal_lm(policy: LanguageModel) -> LanguageModel:
    """Returns the language model without a PEFT wrapper; adapter layers inside it stay."""
    return policy.get_base_model() if hasattr(policy, "get_base_model") else policy


def is_peft_model(model: Any) -> bool:
    """Returns whether the model is a `peft.PeftModel`; works without PEFT installed."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def warn_of_half_precision(*models: Any) -> None:
    """Logs a warning if trainable weights are in half precision."""
    for model in models:
        for parameter in model.parameters() if model is not None else ():
            if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                logger.warning(
                    "weights of %s are trained in %s, which rounds small updates to zero: load it in float32 and set "
                    "bf16=True, or train an adapter",
                    type(model).__name__,
                    parameter.dtype,
                )
                break


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout rate of the model to 0, in place.

    PPO compares log-probabilities of two passes over the same tokens, and dropout would change them for an unchanged
    policy. Zero rates are used rather than eval mode, since activation checkpointing needs training mode.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention layers store the rate as a plain number (for example `attention_dropout`).
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _forward_arguments(module: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """Returns the arguments of a forward pass over left-padded rows; positions count only real tokens."""
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if "position_ids" in inspect.signature(module.forward).parameters:
        arguments["position_ids"] = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return arguments


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Computes the last hidden states of a model's trunk, (B, T, H), without logits."""
    trunk = getattr(model, model.base_model_prefix)
    return trunk(**_forward_arguments(trunk, input_ids, attention_mask)).last_hidden_state


@torch.no_grad()
def has_plain_head(policy: LanguageModel) -> bool:
    """Returns whether the model's logits are just a linear layer of the last hidden state, tested with four tokens.

    Some models scale or cap their logits after the head, and a head may have an adapter or be quantised. They need the
    model's own forward pass.
    """
    lm = causal_lm(policy)
    head = lm.get_output_embeddings()
    if type(head) is not nn.Linear or not isinstance(getattr(lm, lm.base_model_prefix, None), nn.Module):
        return False
    ids = torch.arange(4, device=lm.device)[None]
    mask = torch.ones_like(ids)
    expected = lm(**_forward_arguments(lm, ids, mask)).logits
    return torch.allclose(head(hidden_states(lm, ids, mask)), expected, rtol=1e-4, atol=1e-4)


def _head_operands(head: nn.Linear, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns hidden states, weight and bias in the dtype in which the head would compute, which autocast changes."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    bias = None if head.bias is None else head.bias.to(dtype)
    return hidden.to(dtype), head.weight.to(dtype), bias


def response_statistics(
    policy: LanguageModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    *,
    temperature: float,
    plain_head: bool,
    entropy: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes log-probabilities and entropies of the response tokens, and the hidden states before them.

    With a plain head, logits exist only chunk by chunk, see `shfcas.linear_token_logprobs`. Otherwise those of the
    response span exist once, in the model's precision.

    Args:
        policy: a causal language model, PEFT-wrapped or not.
        input_ids: (B, P + K), see the module's docstring.
        attention_mask: (B, P + K).
        completion_mask: (B, K).
        temperature: divides the logits; the temperature at which the tokens were sampled.
        plain_head: the result of `has_plain_head(policy)`.
        entropy: whether to compute entropies, which cost a little.

    Returns:
        logprobs (B, K) and entropy (B, K), float32 and 0 on padding (all 0 if not computed); hidden states (B, K, H).
    """
    lm = causal_lm(policy)
    mask = completion_mask.bool()
    length = mask.shape[1]
    targets = input_ids[:, -length:]
    before = slice(-length - 1, -1)  # position t - 1 predicts token t
    if plain_head:
        hidden = hidden_states(lm, input_ids, attention_mask)[:, before]
        states, weight, bias = _head_operands(lm.get_output_embeddings(), hidden[mask])
        flat = linear_token_logprobs(states, weight, targets[mask], bias, temperature=temperature, entropy=entropy)
        parts = [part.new_zeros(mask.shape).masked_scatter(mask, part) for part in _pair(flat)]
    else:
        arguments = _forward_arguments(lm, input_ids, attention_mask)
        if "logits_to_keep" in inspect.signature(lm.forward).parameters:
            arguments["logits_to_keep"] = length + 1
        outputs = lm(**arguments, output_hidden_states=True)
        hidden = outputs.hidden_states[-1][:, before]
        logits = outputs.logits[:, before]
        parts = _pair(token_logprobs(logits, targets, mask, temperature=temperature, entropy=entropy))
    return parts[0], parts[1] if entropy else torch.zeros_like(parts[0]), hidden


def _pair(result: Tensor | TokenLogprobs) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


class PolicyWithValue(nn.Module):
    """Policy and its value function, trained together.

    The value function is a separate model, or a head on the policy's trunk. The head is a float32 linear layer that
    starts at zero, so all values are initially 0.

    Args:
        policy: a causal language model, PEFT-wrapped or not. Its dropout is disabled in place.
        temperature: sampling temperature of the rollouts.
        value_model: a sequence classifier with a head named `score` (see `shfcas.training.ppo.value_model`), or
            None for the head on the policy's trunk. Its dropout is disabled in place.
        entropy_gradient: whether entropies have a gradient.
    """

    def __init__(
        self,
        policy: LanguageModel,
        temperature: float = 1.0,
        value_model: Any = None,
        entropy_gradient: bool = False,
    ) -> None:
        super().__init__()
        disable_dropout(policy)
        self.policy: LanguageModel = policy
        self.temperature, self.entropy_gradient = temperature, entropy_gradient
        lm = causal_lm(policy)
        self.plain_head = has_plain_head(policy)
        self.frozen_trunk = False  # values change their head alone
        self.value_model = value_model
        if value_model is not None:
            disable_dropout(value_model)
        else:
            width = lm.config.get_text_config().hidden_size
            if self.plain_head:  # some trunks end with a projection to another width
                width = getattr(lm.get_output_embeddings(), "in_features", width)
            self.value_head = nn.Linear(width, 1, dtype=torch.float32, device=lm.device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        *,
        entropy: bool = True,
        demonstrations: dict[str, Tensor] | None = None,
    ) -> ResponseOutput:
        """Computes log-probabilities, entropies and values of the response tokens (see the module's docstring).

        Args:
            input_ids: (B, P + K).
            attention_mask: (B, P + K).
            completion_mask: (B, K).
            entropy: whether to compute entropies.
            demonstrations: such tensors of other rows, whose log-probabilities at temperature 1 are wanted too.
        """
        logprobs, entropies, hidden = response_statistics(
            self.policy,
            input_ids,
            attention_mask,
            completion_mask,
            temperature=self.temperature,
            plain_head=self.plain_head,
            entropy=entropy,
        )
        head = self.value_head if self.value_model is None else self.value_model.score
        if self.value_model is not None:
            before = slice(-completion_mask.shape[1] - 1, -1)
            hidden = hidden_states(self.value_model, input_ids, attention_mask)[:, before]
        elif self.frozen_trunk:
            hidden = hidden.detach()
        with torch.autocast(hidden.device.type, enabled=False):
            values = head(hidden.float()).squeeze(-1)
        entropies = entropies if self.entropy_gradient else entropies.detach()
        demonstrated = None
        if demonstrations is not None:
            demonstrated = response_statistics(
                self.policy, **demonstrations, temperature=1.0, plain_head=self.plain_head, entropy=False
            )[0]
        return ResponseOutput(logprobs, entropies, values.masked_fill(~completion_mask.bool(), 0.0), demonstrated)

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """Enables activation checkpointing in the policy and the value model, for the trainer."""
        causal_lm(self.policy).activation_checkpointing_enable(**arguments)
        if self.value_model is not None:
            self.value_model.activation_checkpointing_enable(**arguments)
