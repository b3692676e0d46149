"""Score heads without a transformers class: with a bias, and read at the last token.

The reward and cost models of safe-rlhf (Dai et al. 2023, arXiv 2310.12773) are a decoder with
`score_head = Linear(hidden, 1)`. They read `BEGINNING OF CONVERSATION: USER: ... ASSISTANT:...` and an end token,
and the score is taken at the last token. With `do_normalize`, rewards are shifted by a running mean and divided by
a running standard deviation. Costs are only divided, so that their sign keeps its meaning. Both operations are
linear, so they are folded into the head when a model is loaded.
"""

from typing import Any

import torch

from shfcas.models.resolve import find_tensors
from shfcas.utils.errors import UserError

LAST_TOKEN = "shfcas_last_token_head"  # key in config.json: saved by shfcas, with a bias, read at the last token
SAFE_RLHF_TEMPLATE = (
    "{{ bos_token }}BEGINNING OF CONVERSATION: "
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT:{{ message['content'] }}{{ eos_token }}"
    "{% else %}USER: {{ message['content'] }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def is_safe_rlhf(config: dict[str, Any]) -> bool:
    """Returns whether config.json is from safe-rlhf (`LlamaForScore`, `LlamaModelForScore`, ...)."""
    return any(name.endswith("ForScore") for name in config.get("architectures") or [])


def reads_last_token(config: Any) -> bool:
    """Returns whether the score is read at the last token, independent of the pad token."""
    return bool(getattr(config, LAST_TOKEN, False))


def last_token_classifier(config: Any) -> Any:
    """Returns a sequence classifier class with a biased head, read at the last token of each row.

    The class has its parent's name, so its saved models also load in transformers, without the bias.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.modeling_outputs import SequenceClassifierOutputWithPast

    parent: Any = AutoModelForSequenceClassification._model_mapping[type(config)]

    def __init__(self: Any, config: Any) -> None:
        parent.__init__(self, config)
        self.score = torch.nn.Linear(self.score.in_features, 1, bias=True)
        torch.nn.init.zeros_(self.score.bias)

    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **arguments: Any) -> Any:
        hidden = self.base_model(input_ids, attention_mask=attention_mask, **arguments).last_hidden_state
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last = (mask.long() * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
        return SequenceClassifierOutputWithPast(logits=self.score(hidden[torch.arange(len(hidden)), last]))

    setattr(config, LAST_TOKEN, True)
    members = {"__init__": __init__, "forward": forward, "__module__": parent.__module__}
    return type(parent.__name__, (parent,), members)


@torch.no_grad()
def fold_safe_rlhf_head(model: Any, folder: str) -> None:
    """Copies the head of safe-rlhf's weights, with its normalizer folded in, to a last-token classifier.

    Raises:
        UserError: the weights have no head, or a head with more than one output.
    """
    names = {"score_head.weight", "score_head.bias", "normalizer.mean", "normalizer.var"}
    found = {name: tensor.float() for name, tensor in find_tensors(folder, names).items()}
    weight = found.get("score_head.weight")
    if weight is None or len(weight) != 1:
        problem = "no score_head.weight among its weights" if weight is None else f"its head has {len(weight)} outputs"
        raise UserError(f"no usable reward model {folder}: {problem}")
    bias = found.get("score_head.bias", torch.zeros(1))
    config = model.config
    if getattr(config, "do_normalize", False):
        kind = getattr(config, "score_type", "reward")
        mean = found.get("normalizer.mean", torch.tensor(getattr(config, "mean", None) or [0.0]))
        var = found.get("normalizer.var", torch.tensor(getattr(config, "var", None) or [1.0]))
        shift = mean if kind == "reward" else torch.zeros(1)
        scale = torch.ones(1) if kind == "critic" else var.sqrt() + 1e-8
        weight, bias = weight / scale, (bias - shift) / scale
        config.do_normalize = False
    model.score.weight.copy_(weight)
    model.score.bias.copy_(bias)
