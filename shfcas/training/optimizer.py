"""Settings of the optimizer, shared by all training; the names of fields are those of transformers."""

import importlib.util
from dataclasses import dataclass
from typing import Any

from shfcas.utils import distributed
from shfcas.utils.config import Options, check_multiple, option
from shfcas.utils.errors import MissingExtra

ADAM, ADAM_8BIT, ADAFACTOR = "adamw_torch_fused", "adamw_bnb_8bit", "adafactor"


@dataclass
class OptimizerConfig(Options):
    """Settings of the optimizer that change what is learned, or how much memory it takes."""

    optim: str = option(
        ADAM,
        "AdamW; AdamW with moments of 8 bits (needs bitsandbytes; Dettmers et al. 2022, arXiv 2110.02861), a quarter "
        "of their memory; or Adafactor (Shazeer and Stern 2018, arXiv 1804.04235)",
        (ADAM, ADAM_8BIT, ADAFACTOR),
    )
    weight_decay: float = option(0.0, "weight decay", ge=0)
    warmup_steps: float = option(0.0, "optimizer steps of warm-up (below 1: share of the training)", ge=0)
    max_grad_norm: float = option(1.0, "largest norm of a gradient; a longer one is shortened (0: no limit)", ge=0)

    def optimizer_options(self) -> dict[str, Any]:
        """Returns the arguments of a Trainer.

        Raises:
            MissingExtra: the optimizer needs a package that is not installed.
        """
        if self.optim == ADAM_8BIT and importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtra("bitsandbytes", "bitsandbytes")
        return {name: getattr(self, name) for name in OptimizerConfig.__dataclass_fields__}


@dataclass
class SupervisedConfig(OptimizerConfig):
    """Settings that all supervised training shares."""

    batch_size: int = option(16, "rows per optimizer step", ge=1)
    gradient_accumulation_steps: int = option(1, "parts of an optimizer step; more parts take less memory", ge=1)
    activation_checkpointing: bool = option(
        False, "recompute activations in the backward pass instead of keeping them, to save memory"
    )

    def check(self) -> None:
        """Checks that the parts of an optimizer step are equal."""
        check_multiple(self, "batch_size", "gradient_accumulation_steps")

    def step_options(self, name: str) -> dict[str, Any]:
        """Returns the arguments of a Trainer about an optimizer step.

        Args:
            name: name of the batch size, for errors.
        """
        parts = self.gradient_accumulation_steps
        return {
            **self.optimizer_options(),
            "per_device_train_batch_size": distributed.per_process(name, self.batch_size // parts),
            "gradient_accumulation_steps": parts,
            "gradient_checkpointing": self.activation_checkpointing,
        }
