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


class Float32Linear(torch.nn.Linear):
    """A linear layer that computes in float32, whatever the dtype of its weights."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the float32 output."""
        bias = None if self.bias is None else self.bias.float()
        return torch.nn.functional.linear(input.float(), self.weight.float(), bias)


def use_float32_head(model: Any) -> None:
    """Makes the output layer compute in float32; its weights, which may be the embeddings', keep their dtype."""
    head: Any = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise UserError(f"float32_head: expected a linear output layer, got {type(head).__name__}; set it to false")
    head.__class__ = Float32Linear
