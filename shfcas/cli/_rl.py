"""What `ppo`, `rloo`, `grpo` and `rso` have in common: sister commands, each with its algorithm's settings as flags."""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from shfcas.data.candidates import read_candidates, read_prompts
from shfcas.rewards.scorers import load_scorer
from shfcas.rewards.shaping import SHAPINGS, shaped_reward
from shfcas.training.algorithms import RLConfig, train_rl
from shfcas.training.output import trained_folder
from shfcas.utils import distributed
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError
from shfcas.utils.files import write_json

Settings = TypeVar("Settings")


@dataclass
class PolicyCommand:
    """Flags of every command that trains a policy against a reward."""

    policy: str = option("", "the policy to start from, which the new one is held to", common=True)
    chat_template: str | None = option(None, "a template for a policy that has none: plain, or a Jinja file")
    reward_model: str = option("", "the reward: a model, or module:function", common=True)
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    gold: str | None = option(None, "a gold reward that is logged beside, and not trained on", common=True)
    reward_shaping: str = option(
        "centre",
        "rewards as they are, less the mean of a prompt's candidates, or the share of them they beat",
        ("none", *SHAPINGS),
    )
    output: str = option("policy", "the folder of the new policy", common=True)
    seed: int = option(0, "seed", common=True)


@dataclass
class OnlineCommand(PolicyCommand):
    """Flags of the commands that sample while they train."""

    prompts: str = option("", "prompts: .jsonl, .json, .parquet, or module:function", common=True)
    references: str | None = option(
        None, "a candidate table of these prompts, for the shaping of rewards (none: rewards stay as they are)"
    )


def settings_of(config: Any, settings: type[Settings]) -> Settings:
    """The algorithm's settings among a command's flags."""
    names = [field.name for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    return settings(**{name: getattr(config, name) for name in names})


def train_online_command(config: Any, algorithm: str, settings: Any) -> dict[str, Any]:
    """Trains on prompts and saves the policy; returns what is printed."""
    if config.reward_shaping == "par" and not config.references:
        raise UsageError("reward_shaping par compares rewards with those of other answers: give --references")
    references = read_candidates(config.references).rows() if config.references else []
    return train(config, RLConfig(algorithm=algorithm, **{algorithm: settings}), references, config.prompts)


def train(config: Any, settings: RLConfig, candidates: list[dict[str, Any]], prompts: str | None) -> dict[str, Any]:
    """Trains and saves the policy; returns what is printed."""
    settings.check()
    rows = read_prompts(prompts) if prompts else []
    reward = load_scorer(config.reward_model, config.cost_model)
    if candidates:
        reward = shaped_reward(reward, candidates, config.reward_shaping)
    metrics = {"gold": load_scorer(config.gold)} if config.gold else None
    with trained_folder(config.output) as (partial, work_dir):
        history = train_rl(
            config.policy,
            rows,
            reward,
            settings,
            partial,
            work_dir,
            config.seed,
            metrics,
            candidates,
            config.chat_template,
        )
        if distributed.is_main():
            write_json(partial / "history.json", history)
    rollouts = [row for row in history if "objective/scores" in row]  # an evaluation at the end is a row of its own
    last = {name: value for name, value in rollouts[-1].items() if name.startswith(("objective/", "rso/"))}
    last |= {name: value for name, value in history[-1].items() if name.startswith("eval_")}
    return {"rollouts": len(rollouts), **last, "output": config.output}
