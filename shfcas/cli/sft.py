"""Fine-tune a policy on good answers (TRL's SFTTrainer, loss on the answer only)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.cli._cards import sft_card
from shfcas.data.formats import AnswerColumn
from shfcas.hub.upload import HubOptions
from shfcas.training.output import trained_folder
from shfcas.training.sft import SFTStageConfig, read_demonstrations, train_sft
from shfcas.utils.config import option


@dataclass
class Config(HubOptions, AnswerColumn):
    """`shfcas sft`."""

    policy: str = option("", "policy to start from", common=True)
    demonstrations: str = option(
        "demonstrations.jsonl",
        "prompts with completions: a file, org/name on the Hub, or module:function",
        common=True,
    )
    chat_template: str | None = option(
        None, "chat template for a policy without one: plain, or a Jinja file (none: the policy's own)"
    )
    output: str = option("policy-sft", "folder of the new policy", common=True)
    seed: int = option(0, "seed of everything random", common=True)
    sft: SFTStageConfig = option(SFTStageConfig, "supervised fine-tuning", common=True)


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the policy."""
    config.check_hub()
    rows = read_demonstrations(config.demonstrations, config.columns())
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
    result = {"demonstrations": len(rows), "steps": len(history), "loss": history[-1]["loss"]}
    config.push(sft_card(config, result), Path(config.output))
    return {**result, "output": config.output}
