"""Configuration of low-rank adapters, shared by all training."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

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


class DefaultRates(NamedTuple):
    """Default learning rates of one kind of training.

    Adapters need 10 to 100 times the rate of all weights (Schulman et al. 2025, "LoRA Without Regret").
    """

    adapters: float
    all_weights: float

    def option(self, what: str) -> Any:
        """Returns the field `learning_rate`, whose help names these rates."""
        adapters, weights = (f"{rate:.0e}".replace("e-0", "e-") for rate in self)
        text = f"{what} (none: {adapters} with adapters, {weights} for all weights)"
        return option(None, text, ge=0, common=True)


class AdaptedRate:
    """Settings of a training whose learning rate, unless it is given, depends on what is trained."""

    RATES: ClassVar[DefaultRates]
    learning_rate: float | None
    lora: AdapterConfig

    @property
    def peak_learning_rate(self) -> float:
        """Returns the learning rate, or the default for what is trained."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.RATES.adapters if self.lora.r else self.RATES.all_weights
