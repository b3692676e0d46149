"""Training of a policy against a reward model: one setting chooses the algorithm."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.data.preferences import Preference
from shfcas.rewards.best_of_n import BestOfNConfig
from shfcas.rewards.scorers import RewardScorer, load_cost, load_scorer
from shfcas.rewards.shaping import SHAPINGS, shaped_reward
from shfcas.training.dpo import LABELS, REWARD, DPOConfig, train_dpo
from shfcas.training.online.config import GRPOConfig, RLOOConfig
from shfcas.training.online.train import train_online
from shfcas.training.ppo.options import PPOStageConfig
from shfcas.training.ppo.train import train_ppo
from shfcas.training.rso import RSOConfig, train_rso
from shfcas.utils import distributed
from shfcas.utils.config import Options, option
from shfcas.utils.errors import UserError
from shfcas.utils.files import write_json

logger = logging.getLogger(__name__)

ALGORITHMS = ("ppo", "rloo", "grpo", "rso", "dpo", "best_of_n")
SFT, ROUND, BASE = "sft", "round", "base"
KL_REFERENCES = (SFT, ROUND, BASE)
ModelName = str | Path
STILL = 0.02  # nats per answer; a policy that moved less is as good as untrained


@dataclass
class RLConfig(Options):
    """Training of the policy on the reward; only the section of the chosen algorithm is used."""

    algorithm: str = option(
        "ppo", "training algorithm of the policy; best_of_n trains nothing", ALGORITHMS, common=True
    )
    kl_reference: str = option(
        "sft",
        "policy that the KL refers to: sft (before the first round, so that drift over rounds is bounded), round (the "
        "policy that the round starts from), base (before supervised fine-tuning)",
        KL_REFERENCES,
    )
    reward_shaping: str = option(
        "centre",
        "none: plain rewards; centre: less the mean of the prompt's candidates; "
        "par: mean probability of being preferred to them",
        ("none", *SHAPINGS),
    )
    ppo: PPOStageConfig = option(PPOStageConfig, "algorithm ppo")
    rloo: RLOOConfig = option(RLOOConfig, "algorithm rloo, through TRL")
    grpo: GRPOConfig = option(GRPOConfig, "algorithm grpo, through TRL")
    rso: RSOConfig = option(RSOConfig, "algorithm rso: rejection sampling of the candidates, then DPO through TRL")
    dpo: DPOConfig = option(DPOConfig, "algorithm dpo: DPO on the labelled pairs, through TRL")
    best_of_n: BestOfNConfig = option(BestOfNConfig, "algorithm best_of_n: the best of n answers")

    @property
    def shows_demonstrations(self) -> bool:
        """Returns whether the training also learns from demonstrations."""
        return self.algorithm == "ppo" and self.ppo.ptx_coef > 0

    def learned_pairs(self, labels: Sequence[Path], original: Sequence[Path]) -> tuple[Path, ...]:
        """Returns the preference files that the training reads: with DPO those of labels, or the original ones too."""
        if self.algorithm != "dpo" or self.dpo.pairs == REWARD:
            return ()
        return tuple(labels) if self.dpo.pairs == LABELS else (*original, *labels)

    def reference(self, *, start: ModelName, sft: ModelName, base: ModelName) -> ModelName | None:
        """Returns the model that `kl_reference` means; None is the policy that training starts from."""
        chosen = {ROUND: start, SFT: sft, BASE: base}[self.kl_reference]
        return None if chosen == start else chosen


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """Request to train a policy against a reward model.

    Attributes:
        policy: the policy to start from.
        reward_model: the reward: a model, the folder of an ensemble, or `module:function`.
        settings: the algorithm with its settings, and the shaping of rewards; `best_of_n` trains nothing.
        seed: seed of everything random.
        cost_model: the reward model is a cost model: lower is better.
        too_long: what happens to an answer beyond the reward model's limit, see `shfcas.rewards.scorers.TOO_LONG`.
        prompts: rows with `prompt`; further columns reach the reward as TRL passes them. `rso` and `dpo` need none.
        candidates: rows of a candidate table of these prompts. Rewards are shaped by them, and `rso` learns from them.
            Without candidates, rewards stay as they are.
        gold: a trusted reward, which is measured and not trained on.
        chat_template: for a policy without one, see `shfcas.models.loading.load_policy`.
        reference: the model that the new policy is held to; None is the policy to start from.
        demonstrations: rows with `prompt` and `completion`, for `ppo.ptx_coef`.
        preferences: pairs that `dpo` learns from.
    """

    policy: str
    reward_model: str
    settings: RLConfig
    seed: int
    cost_model: bool = False
    too_long: str = "cut"
    prompts: Sequence[dict[str, Any]] = ()
    candidates: Sequence[dict[str, Any]] = ()
    gold: RewardScorer | None = None
    chat_template: str | None = None
    reference: str | None = None
    demonstrations: Sequence[dict[str, Any]] = ()
    preferences: Sequence[Preference] = ()


def train_policy(training: PolicyTraining, output: Path, work_dir: Path) -> list[dict[str, Any]]:
    """Trains a policy with the chosen algorithm and saves it in `output`: an adapter, or all weights.

    Args:
        training: the policy, the reward model and the settings.
        output: the folder of the new policy, with the returned metrics in `history.json`.
        work_dir: checkpoints; training resumes from the newest complete one.

    Returns:
        Rows of metrics, one per rollout. Metrics that algorithms share have PPO's names.

    Raises:
        UserError: settings, prompts, rewards or candidates do not fit; the message names which.
    """
    settings = training.settings
    if settings.algorithm == "best_of_n":
        raise UserError("best_of_n trains nothing: the policy stays as it is, and evaluation chooses among its answers")
    reward = load_scorer(training.reward_model, training.cost_model, training.too_long)
    if training.candidates:
        reward = shaped_reward(reward, training.candidates, settings.reward_shaping)
    shared: dict[str, Any] = {
        "reward": reward,
        "output": output,
        "work_dir": work_dir,
        "seed": training.seed,
        "metrics": {"gold": training.gold} if training.gold else None,
        "chat_template": training.chat_template,
        "reference": training.reference,
    }
    if settings.algorithm == "rso":
        history = train_rso(training.policy, training.candidates, settings=settings.rso, **shared)
    elif settings.algorithm == "dpo":
        shared["candidates"] = training.candidates
        history = train_dpo(training.policy, training.preferences, settings=settings.dpo, **shared)
    elif settings.algorithm == "ppo":
        shared["demonstrations"] = training.demonstrations
        shared["cost"] = load_cost(settings.ppo.cost, training.too_long) if settings.ppo.cost else None
        history = train_ppo(training.policy, training.prompts, settings=settings.ppo, **shared)
    else:
        online = getattr(settings, settings.algorithm)
        history = train_online(training.policy, training.prompts, settings=online, **shared)
    if distributed.is_main():
        write_json(output / "history.json", history)
        warn_of_no_change(history, settings, anchored=training.reference is not None)
    return history


def warn_of_no_change(history: Sequence[dict[str, Any]], settings: RLConfig, anchored: bool) -> None:
    """Logs a warning if training hardly changed the policy: a KL of about 0 to its start, by the last measurement.

    Args:
        history: the rows that the training returned.
        settings: the algorithm.
        anchored: the KL refers to another model than the start, so it does not tell.
    """
    own, rows = getattr(settings, settings.algorithm), [row for row in history if "objective/kl" in row]
    if settings.algorithm in ("rso", "dpo"):
        margins = [row["rewards/margins"] for row in history if "rewards/margins" in row]
        moved = abs(margins[-1]) / (own.beta if settings.algorithm == "dpo" else own.dpo_beta) if margins else None
    else:
        moved = None if anchored or len(rows) < 2 else abs(rows[-1]["objective/kl"])
    if moved is not None and moved < STILL:
        logger.warning(
            "the policy hardly changed: %.2g nats per answer from its start; raise rl.%s.learning_rate (now %g) or the "
            "number of steps",
            moved,
            settings.algorithm,
            own.peak_learning_rate,
        )
