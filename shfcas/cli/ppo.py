"""Fine-tune a policy against a reward with PPO; an interrupted call continues from its last checkpoint."""

from dataclasses import dataclass
from typing import Any

from shfcas.candidates import read_candidates, read_prompts
from shfcas.config import option
from shfcas.scoring import CentredReward, load_scorer
from shfcas.training.policy import PPOSettings, train_policy
from shfcas.training.stage import trained_folder


@dataclass
class Config:
    """`shfcas ppo`."""

    policy: str = option("", "the policy to start from, also the reference of the KL penalty")
    chat_template: str | None = option(None, "a template for a policy that has none: plain, or a Jinja file")
    reward_model: str = option("", "the reward: a model, or module:function")
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    gold: str | None = option(None, "a gold reward that is logged beside, and not trained on")
    references: str | None = option(
        None, "a candidate table of these prompts: rewards are taken relative to its answers' mean, prompt by prompt"
    )
    prompts: str = option("", "prompts: .jsonl, .json, .parquet, or module:function")
    output: str = option("policy", "the folder of the new policy")
    seed: int = option(0, "seed")
    ppo: PPOSettings = option(PPOSettings, "training")


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the policy."""
    prompts = read_prompts(config.prompts)
    reward = load_scorer(config.reward_model, config.cost_model)
    if config.references:
        reward = CentredReward(reward, read_candidates(config.references).rows())
    metrics = {"gold": load_scorer(config.gold)} if config.gold else None
    with trained_folder(config.output) as (partial, work_dir):
        history = train_policy(
            config.policy, prompts, reward, config.ppo, partial, work_dir, config.seed, metrics, config.chat_template
        )
    last = {name: value for name, value in history[-1].items() if name.startswith("objective/")}
    return {"rollouts": len(history), **last, "output": config.output}
