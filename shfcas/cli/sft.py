"""Fine-tune a policy on good answers (TRL's SFTTrainer, loss on the answer only)."""

from dataclasses import dataclass
from typing import Any

from shfcas.training.output import trained_folder
from shfcas.training.sft import SFTStageConfig, read_demonstrations, train_sft
from shfcas.utils.config import option


@dataclass
class Config:
    """`shfcas sft`."""

    policy: str = option("", "the policy to start from")
    demonstrations: str = option("demonstrations.jsonl", "JSON lines with prompt and completion")
    chat_template: str | None = option(None, "a template for a policy that has none: plain, or a Jinja file")
    output: str = option("policy-sft", "the folder of the new policy")
    seed: int = option(0, "seed")
    sft: SFTStageConfig = option(SFTStageConfig, "how the policy is trained")


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the policy."""
    rows = read_demonstrations(config.demonstrations)
    with trained_folder(config.output) as (partial, work_dir):
        history = train_sft(
            config.policy,
            rows,
            settings=config.sft,
            output=partial,
            work_dir=work_dir,
            seed=config.seed,
            chat_template=config.chat_template,
        )
    return {
        "demonstrations": len(rows),
        "steps": len(history),
        "loss": history[-1]["loss"],
        "output": config.output,
    }
