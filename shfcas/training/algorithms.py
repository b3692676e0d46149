"""How the policy follows the reward: one setting chooses among the algorithms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.rewards.best_of_n import BestOfNConfig
from shfcas.rewards.scorers import RewardScorer
from shfcas.rewards.shaping import SHAPINGS
from shfcas.training.online.config import GRPOConfig, RLOOConfig
from shfcas.training.online.train import train_online
from shfcas.training.ppo.train import PPOStageConfig, train_policy
from shfcas.training.rso import RSOConfig, train_rso
from shfcas.utils.config import option
from shfcas.utils.errors import UserError

ALGORITHMS = ("ppo", "rloo", "grpo", "rso", "best_of_n")


@dataclass
class RLConfig:
    """How the policy follows the reward; of the algorithms' own sections only the chosen one counts."""

    algorithm: str = option("ppo", "how the policy follows the reward", ALGORITHMS)
    reward_shaping: str = option(
        "centre",
        "rewards as they are, less the mean of a prompt's candidates, or the share of them they beat",
        ("none", *SHAPINGS),
    )
    ppo: PPOStageConfig = option(PPOStageConfig, "PPO")
    rloo: RLOOConfig = option(RLOOConfig, "RLOO, through TRL")
    grpo: GRPOConfig = option(GRPOConfig, "GRPO, through TRL")
    rso: RSOConfig = option(RSOConfig, "rejection sampling of the candidates, then DPO through TRL")
    best_of_n: BestOfNConfig = option(BestOfNConfig, "no training: the best of n answers")

    def check(self, num_candidates: int | None = None) -> None:
        """Says before any work is done what the chosen algorithm cannot do.

        Args:
            num_candidates: answers a prompt that the run samples.

        Raises:
            UserError: settings do not fit together; the message names them.
        """
        chosen = getattr(self, self.algorithm)
        try:
            if isinstance(chosen, PPOStageConfig):
                if chosen.mini_batch_size < 1 or chosen.rollout_batch_size % chosen.mini_batch_size:
                    raise UserError(
                        f"rollout_batch_size={chosen.rollout_batch_size} must be a multiple of "
                        f"mini_batch_size={chosen.mini_batch_size}"
                    )
            else:
                chosen.check()
            if isinstance(chosen, RSOConfig) and num_candidates is not None and chosen.num_samples > num_candidates:
                raise UserError(
                    f"num_samples={chosen.num_samples} of sampling.num_completions={num_candidates} candidates cannot "
                    "be accepted: sample more or accept fewer"
                )
        except UserError as error:
            raise UserError(f"rl.{self.algorithm}: {error}") from error


def train_rl(
    policy: str,
    prompts: Sequence[dict[str, Any]],
    reward: RewardScorer,
    settings: RLConfig,
    output: Path,
    work_dir: Path,
    seed: int,
    metrics: Mapping[str, RewardScorer] | None = None,
    candidates: Sequence[dict[str, Any]] = (),
    chat_template: str | None = None,
) -> list[dict[str, Any]]:
    """Trains a policy with the chosen algorithm and saves it as a plain model (adapters merged) in `output`.

    Args:
        policy: the policy to start from; it is also the reference that the new one is held to.
        prompts: rows with `prompt`; further columns reach the reward as TRL passes them.
        reward: rewards of answers, in TRL's shape.
        settings: see `RLConfig`; `best_of_n` trains nothing.
        output: the folder of the new policy.
        work_dir: checkpoints; training goes on from the newest complete one.
        seed: of everything random.
        metrics: further callables of that shape, measured and not trained on.
        candidates: rows of a candidate table, which `rso` learns from in place of the prompts.
        chat_template: for a policy without one, see `shfcas.models.loading.load_policy`.

    Returns:
        Rows of metrics, one a rollout; those that algorithms have in common bear PPO's names.

    Raises:
        UserError: settings, prompts, rewards or candidates do not fit; the message names which.
    """
    if settings.algorithm == "best_of_n":
        raise UserError("best_of_n trains nothing: the policy stays as it is, and evaluation chooses among its answers")
    shared: dict[str, Any] = {
        "reward": reward,
        "output": output,
        "work_dir": work_dir,
        "seed": seed,
        "metrics": metrics,
        "chat_template": chat_template,
    }
    if settings.algorithm == "rso":
        return train_rso(policy, candidates, settings=settings.rso, **shared)
    if settings.algorithm == "ppo":
        return train_policy(policy, prompts, settings=settings.ppo, **shared)
    return train_online(policy, prompts, settings=getattr(settings, settings.algorithm), **shared)
