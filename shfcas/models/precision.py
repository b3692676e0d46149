"""Precision of parts of a model: float32 heads on trunks of a lower precision."""

from typing import Any

import torch

from shfcas.utils.errors import UserError


def with_trunk(model: Any, dtype: torch.dtype) -> Any:
    """Converts a classifier's trunk to a dtype; what comes after it stays in float32 and gets float32 inputs."""
    trunk = model.base_model
    if dtype != torch.float32 and trunk is not model:
        trunk.to(dtype)
        for child in model.children():
            if child is not trunk:
                child.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(), *inputs[1:]))
    return model


def use_float32_head(model: Any) -> None:
    """Makes the output layer compute in float32; its weights, which may be the embeddings', keep their dtype."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise UserError(f"float32_head: expected a linear output layer, got {type(head).__name__}; set it to false")

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        bias = None if head.bias is None else head.bias.float()
        return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)

    head.forward = forward
