"""Common part of `ppo`, `rloo`, `grpo` and `rso`: each has its algorithm's settings as flags."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shfcas.cli._cards import policy_card
from shfcas.data.candidates import read_candidates, read_prompts
from shfcas.data.formats import PromptColumn
from shfcas.hub.upload import HubOptions
from shfcas.rewards.scorers import TOO_LONG, TOO_LONG_HELP, check_scorer, load_scorer
from shfcas.rewards.shaping import SHAPINGS
from shfcas.training.algorithms import PolicyTraining, RLConfig, train_policy
from shfcas.training.output import trained_folder
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError

Settings = TypeVar("Settings")


@dataclass
class PolicyCommand(HubOptions):
    """Flags of every command that trains a policy against a reward."""

    policy: str = option("", "policy to start from", common=True)
    kl_reference: str | None = option(None, "model that the KL refers to (none: the policy to start from)")
    chat_template: str | None = option(
        None, "chat template for a policy without one: plain, or a Jinja file (none: the policy's own)"
    )
    reward_model: str = option("", "reward: a model, or module:function", common=True)
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    too_long: str = option("cut", TOO_LONG_HELP, tuple(TOO_LONG))
    gold: str | None = option(None, "gold reward to log, not trained on (none: not logged)", common=True)
    reward_shaping: str = option(
        "centre",
        "none: plain rewards; centre: less the mean of the prompt's candidates; "
        "par: mean probability of being preferred to them",
        ("none", *SHAPINGS),
    )
    output: str = option("policy", "folder of the new policy", common=True)
    seed: int = option(0, "seed of everything random", common=True)


@dataclass
class OnlineCommand(PolicyCommand, PromptColumn):
    """Flags of the commands that sample while they train."""

    prompts: str = option("", "prompts: a file, org/name on the Hub, or module:function", common=True)
    references: str | None = option(None, "candidate table of these prompts, for reward_shaping (none: plain rewards)")


def settings_of(config: Any, settings: type[Settings]) -> Settings:
    """Returns the algorithm's settings among a command's flags."""
    names = [field.name for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    return settings(**{name: getattr(config, name) for name in names})


def train_online_command(
    config: Any, algorithm: str, settings: Any, demonstrations: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Trains on prompts and saves the policy; returns the results to print."""
    if config.reward_shaping == "par" and not config.references:
        raise UsageError("reward_shaping par compares rewards with those of other answers: give --references")
    references = read_candidates(config.references).rows() if config.references else []
    return train_command(
        config,
        algorithm,
        settings,
        prompts=read_prompts(config.prompts, config.columns()),
        candidates=references,
        demonstrations=demonstrations,
    )


def train_command(
    config: Any,
    algorithm: str,
    settings: Any,
    *,
    prompts: Sequence[dict[str, Any]] = (),
    candidates: Sequence[dict[str, Any]] = (),
    demonstrations: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Trains and saves the policy; returns the results to print."""
    rl = RLConfig(algorithm=algorithm, reward_shaping=config.reward_shaping, **{algorithm: settings})
    config.check_hub()
    for scorer in filter(None, (config.reward_model, config.gold, getattr(settings, "cost", None))):
        check_scorer(scorer)  # fail early, before the output folder is created
    with trained_folder(config.output) as (partial, work_dir):
        training = PolicyTraining(
            policy=config.policy,
            reward_model=config.reward_model,
            settings=rl,
            seed=config.seed,
            cost_model=config.cost_model,
            too_long=config.too_long,
            prompts=prompts,
            candidates=candidates,
            gold=load_scorer(config.gold) if config.gold else None,
            chat_template=config.chat_template,
            reference=config.kl_reference,
            demonstrations=demonstrations,
        )
        history = train_policy(training, partial, work_dir)
    rollouts = [row for row in history if "objective/scores" in row]  # an evaluation at the end is a row of its own
    last = {name: value for name, value in rollouts[-1].items() if name.startswith(("objective/", "rso/"))}
    last |= {name: value for name, value in history[-1].items() if name.startswith("eval_")}
    result = {"rollouts": len(rollouts), **last}
    config.push(policy_card(config, algorithm, result), Path(config.output))
    return {**result, "output": config.output}
