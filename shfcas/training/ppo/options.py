"""What can be said about PPO itself: one set of options for the trainer, the command line and a run's YAML.

It stands in a module of its own because `PPOConfig` loads transformers, and a command's help must not.
"""

from dataclasses import dataclass

from shfcas.utils.config import option


@dataclass
class PPOBaseConfig:
    """Options of PPO with the defaults of `PPOConfig`; sources are named where a default has one."""

    num_rollouts: int = option(100, "rollout phases", common=True)
    rollout_batch_size: int = option(64, "prompts a rollout, over all processes; each is answered once", common=True)
    generation_batch_size: int = option(32, "sequences at once when generating, and when scoring without gradient")
    num_ppo_epochs: int = option(4, "passes over each rollout (4: Stiennon et al. 2020, Huang et al. 2024)")
    learning_rate: float = option(1e-5, "peak learning rate (1.5e-5: Stiennon et al. 2020)", common=True)
    max_prompt_length: int = option(512, "a prompt with more tokens is an error, never truncated")
    max_completion_length: int = option(128, "an answer ends here if it has not ended by itself", common=True)
    temperature: float = option(1.0, "sampling temperature; log-probabilities are taken at the same one")
    stop_token_ids: list[int] | None = option(
        None, "ids that end an answer (none: EOS of the generation config and of the tokenizer)"
    )
    kl_coef: float = option(0.05, "weight of the KL penalty (0.05: Stiennon et al. 2020)", common=True)
    kl_target: float | None = option(
        None, "nats an answer that an adaptive kl_coef steers to (Ziegler et al. 2019; none: fixed)"
    )
    kl_horizon: int = option(10_000, "answers over which the adaptive kl_coef reacts (10000: Ziegler et al. 2019)")
    kl_estimator: str = option(
        "k1", "KL estimate of a token: k1 is the log-ratio, k3 is never negative (Schulman 2020)", ("k1", "k3")
    )
    max_kl: float | None = option(None, "training stops when a rollout's mean KL exceeds this many nats (none: never)")
    cliprange: float = option(0.2, "clip range of the probability ratio (0.2: Schulman et al. 2017)")
    cliprange_value: float = option(0.2, "clip range of the value around its old one (0.2: Huang et al. 2024)")
    vf_coef: float = option(0.1, "weight of the value loss (0.1: Stiennon et al. 2020, Huang et al. 2024)")
    entropy_coef: float = option(0.0, "weight of the entropy bonus (0.01 in Schulman et al. 2017; 0: RLHF's practice)")
    gamma: float = option(1.0, "discount a token (1: Stiennon et al. 2020)")
    lam: float = option(0.95, "lambda of generalised advantage estimation (0.95: Schulman et al. 2017)")
    whiten_advantages: bool = option(True, "scale a rollout's advantages to mean 0 and variance 1 (Huang et al. 2024)")
    normalize_rewards: bool = option(
        False, "scale rewards to mean 0 and variance 1 of all rewards so far (Zheng et al. 2023, arXiv 2307.04964)"
    )
    reward_clip: float | None = option(None, "clip rewards to [-x, x], after normalisation (none: do not)")
    missing_eos_penalty: float | None = option(
        None, "taken from the reward of an answer that did not end (after Huang et al. 2024; none: 0)"
    )
    length_penalty: float = option(0.0, "taken from the reward for every token of the answer, the stop token included")
    eval_rollouts: int = option(0, "evaluate on held-out prompts every so many rollouts, and at the end (0: never)")
    early_stopping_metric: str = option(
        "scores", "what the best policy is chosen by, higher is better: scores (the reward), or the name of a metric"
    )
    early_stopping_patience: int | None = option(
        None, "stop after so many evaluations without a new best one, and return to the best policy (none: do not)"
    )
    log_completions: bool = option(
        False, "write each rollout's answers, scores and KL to completions/ as JSON lines, and to trackers as a table"
    )
    save_rollouts: int = option(0, "keep a resumable checkpoint every so many rollouts, and at the end (0: none)")
