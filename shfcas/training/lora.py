"""Configuration of low-rank adapters, shared by all training."""

from dataclasses import dataclass
from typing import Any

from shfcas.utils.config import Options, option


@dataclass
class AdapterConfig(Options):
    """Low-rank adapters (Hu et al. 2021); r, alpha and dropout as the authors of SHF-CAS set them."""

    r: int = option(8, "rank of the adapters (0: no adapters, all weights are trained)", ge=0)
    alpha: int = option(32, "scale of the adapters: their output is multiplied by alpha / r", ge=1)
    dropout: float = option(0.1, "dropout inside the adapters, in supervised training only", ge=0, lt=1)
    target_modules: str = option(
        "all-linear", "layers that get an adapter: all-linear, or a regular expression for their names"
    )

    def learning_rate(self, given: float | None, *, adapters: float, all_weights: float) -> float:
        """Returns the learning rate that was given, or else the default for what is trained.

        Adapters need 10 to 100 times the rate of all weights (Schulman et al. 2025, "LoRA Without Regret").
        """
        return given if given is not None else adapters if self.r else all_weights

    @property
    def base_dtype(self) -> Any:
        """Returns the dtype of the base model for training; None uses the device's inference dtype.

        Trainable weights in bfloat16 would round small updates to zero; frozen weights under adapters may be bfloat16.
        """
        import torch

        return None if self.r else torch.float32

    def peft_config(self, task: str = "CAUSAL_LM", dropout: bool = True) -> Any:
        """Returns the peft configuration, or None if all weights are trained."""
        from peft import LoraConfig

        if self.r == 0:
            return None
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout if dropout else 0.0,
            target_modules=self.target_modules,
            task_type=task,
            modules_to_save=["score"] if task == "SEQ_CLS" else None,
        )
