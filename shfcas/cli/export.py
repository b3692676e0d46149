"""Write prompts, policy and reward model as verl or OpenRLHF read them: shfcas export verl, shfcas export openrlhf."""

from dataclasses import dataclass
from typing import Any

from shfcas.data.candidates import read_prompts
from shfcas.data.formats import PromptColumn
from shfcas.training.export import ENGINES, export
from shfcas.training.output import trained_folder
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError

INPUTS, INPUTS_HELP = "engine", f"library to export for: {' or '.join(ENGINES)}"
CHOICES = tuple(ENGINES)


@dataclass
class Config(PromptColumn):
    """`shfcas export`."""

    engine: list[str] = option(list, f"library to export for: {' or '.join(ENGINES)}")
    prompts: str = option("", "prompts to train on: a file, org/name on the Hub, or module:function")
    eval_prompts: str | None = option(None, "held-out prompts (none: no held-out prompts)")
    policy: str = option("", "policy to start from")
    chat_template: str | None = option(
        None, "chat template for a policy without one: plain, or a Jinja file (none: the policy's own)"
    )
    reward_model: str = option("", "reward model, a decoder-only one")
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    output: str = option("export", "folder to write")


def run(config: Config) -> dict[str, Any]:
    """Writes the folder."""
    if len(config.engine) != 1 or config.engine[0] not in ENGINES:
        raise UsageError(f"engine: expected {' or '.join(ENGINES)}, got {' '.join(config.engine) or 'none'}")
    prompts = read_prompts(config.prompts, config.columns())
    held_out = read_prompts(config.eval_prompts, config.columns()) if config.eval_prompts else []
    with trained_folder(config.output) as (partial, _):
        partial.mkdir()
        result = export(
            config.engine[0],
            partial,
            prompts=prompts,
            policy=config.policy,
            reward_model=config.reward_model,
            eval_prompts=held_out,
            cost_model=config.cost_model,
            chat_template=config.chat_template,
        )
    return {**result, "output": config.output}
