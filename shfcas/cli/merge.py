"""Write a policy that is a base model with an adapter as a plain model, merged in float32."""

from dataclasses import dataclass
from typing import Any

from shfcas.models.loading import save_merged
from shfcas.training.output import trained_folder
from shfcas.utils.config import option

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class Config:
    """`shfcas merge`."""

    policy: str = option("", "policy to merge", common=True)
    chat_template: str | None = option(
        None, "chat template for a policy without one: plain, or a Jinja file (none: the policy's own)"
    )
    dtype: str = option(
        "float32",
        "dtype of the saved weights; below float32, small updates are rounded away, and by how much is measured",
        DTYPES,
    )
    output: str = option("merged", "folder of the plain model", common=True)


def run(config: Config) -> dict[str, Any]:
    """Merges and saves the policy."""
    import torch

    with trained_folder(config.output) as (partial, _):
        _, report = save_merged(config.policy, partial, getattr(torch, config.dtype), config.chat_template)
    return {**report, "output": config.output}
