"""Options of PPO: those of the trainer, and those of the policy stage on the command line and in a run's YAML.

The trainer's `PPOConfig` has the same options and lies in a module of its own, because it loads transformers.
"""

from dataclasses import dataclass
from typing import ClassVar

from shfcas.training.lora import AdaptedRate, AdapterConfig, DefaultRates
from shfcas.training.optimizer import OptimizerConfig
from shfcas.utils.config import Options, check_multiple, option, unexpected, with_default


@dataclass
class PPOBaseConfig(Options):
    """Options of PPO with the defaults of `PPOConfig`; a default that has a source names it."""

    num_rollouts: int = option(100, "number of rollouts", ge=1, common=True)
    rollout_batch_size: int = option(
        64, "prompts per rollout, over all processes; each gets one answer", ge=1, common=True
    )
    generation_batch_size: int = option(
        32, "sequences at the same time when generating, and when scoring without gradient", ge=1
    )
    num_ppo_epochs: int = option(4, "passes over each rollout (4: Stiennon et al. 2020, Huang et al. 2024)", ge=1)
    learning_rate: float = option(1e-5, "peak learning rate (1.5e-5: Stiennon et al. 2020)", ge=0, common=True)
    value_learning_rate: float | None = option(
        None, "peak learning rate of the values, their head or model (none: that of the policy)", ge=0
    )
    max_prompt_length: int = option(512, "maximum tokens per prompt; a longer prompt is an error", ge=1)
    max_completion_length: int = option(128, "maximum new tokens per answer", ge=1, common=True)
    temperature: float = option(1.0, "sampling temperature; log-probabilities are at the same one", gt=0)
    stop_token_ids: list[int] | None = option(
        None, "token ids that end an answer (none: EOS of the generation config and of the tokenizer)", ge=0
    )
    kl_coef: float = option(0.05, "weight of the KL penalty (0.05: Stiennon et al. 2020)", ge=0, common=True)
    kl_target: float | None = option(
        None,
        "KL, in nats per answer, to which kl_coef is adapted (6: Ziegler et al. 2019; none: kl_coef stays fixed)",
        gt=0,
    )
    kl_horizon: float = option(
        0.05,
        "share of the run's answers over which an adaptive kl_coef reacts (0.01 in Ziegler et al. 2019: 10,000 of a "
        "million answers)",
        gt=0,
    )
    kl_estimator: str = option(
        "k1", "KL estimate per token: k1 is the log-ratio, k3 is never negative (Schulman 2020)", ("k1", "k3")
    )
    max_kl: float | None = option(
        None, "maximum mean KL of a rollout, in nats per answer; above it, training stops (none: no limit)", gt=0
    )
    cliprange: float = option(0.2, "clip range of the probability ratio (0.2: Schulman et al. 2017)", gt=0)
    dual_clip: float | None = option(
        None, "bound of the probability ratio where the advantage is negative (3: Ye et al. 2020; none: no bound)", gt=1
    )
    max_update_kl: float | None = option(
        None,
        "skip the other updates of a rollout once approxkl of one exceeds this, in nats per token (0.015: OpenAI's "
        "Spinning Up; none: make all)",
        gt=0,
    )
    kl_in_loss: bool = option(
        False, "KL penalty as a term of the loss (k3, as in Shao et al. 2024) instead of a part of the reward"
    )
    value_warmup_rollouts: int = option(
        0, "first rollouts that train the values alone (after Zheng et al. 2023, arXiv 2307.04964)", ge=0
    )
    cliprange_value: float = option(0.2, "clip range of a value around its old value (0.2: Huang et al. 2024)", gt=0)
    vf_coef: float = option(0.1, "weight of the value loss (0.1: Stiennon et al. 2020, Huang et al. 2024)", ge=0)
    ptx_coef: float = option(
        0.0,
        "weight of the negative log-likelihood of demonstrations, in nats per token, in the loss (PPO-ptx: Ouyang et "
        "al. 2022, arXiv 2203.02155; 8 in the scripts of Dai et al. 2023; 0: no such term)",
        ge=0,
    )
    entropy_coef: float = option(
        0.0, "weight of the entropy bonus (0.01: Schulman et al. 2017; 0 is usual in RLHF)", ge=0
    )
    gamma: float = option(1.0, "discount per token (1: Stiennon et al. 2020)", ge=0, le=1)
    lam: float = option(0.95, "lambda of generalised advantage estimation (0.95: Schulman et al. 2017)", ge=0, le=1)
    whiten_advantages: bool = option(
        True, "scale the advantages of a rollout to mean 0 and variance 1 (Huang et al. 2024)"
    )
    whiten_rewards: bool = option(
        False,
        "scale the rewards of a rollout's tokens, KL included, to variance 1 around their mean (Ziegler et al. 2019; "
        "Huang et al. 2024)",
    )
    normalize_rewards: bool = option(
        False, "scale rewards by the mean and variance of all rewards so far (Zheng et al. 2023, arXiv 2307.04964)"
    )
    reward_clip: float | None = option(None, "clip rewards to [-x, x], after normalisation (none: no clipping)", gt=0)
    missing_eos_penalty: float | None = option(
        None,
        "subtracted from the reward of an answer without an end token (after Huang et al. 2024; none: nothing)",
        ge=0,
    )
    length_penalty: float = option(
        0.0, "subtracted from the reward for every token of the answer, end token included", ge=0
    )
    cost_limit: float = option(
        0.0, "limit of the mean cost of answers, with a cost (0: Dai et al. 2023, arXiv 2310.12773, Safe RLHF)"
    )
    cost_multiplier: float = option(
        1.0, "multiplier of the cost in the first rollout (1: the scripts of Dai et al. 2023)", gt=0
    )
    cost_multiplier_rate: float = option(
        0.1,
        "rate of the multiplier: after a rollout its logarithm grows by rate x multiplier x (mean cost - limit) (0.1: "
        "the scripts of Dai et al. 2023; 0: the multiplier stays fixed)",
        ge=0,
    )
    cost_multiplier_max: float = option(5.0, "highest multiplier (5: the scripts of Dai et al. 2023)", gt=0)
    eval_rollouts: int = option(
        0, "rollouts between evaluations on held-out prompts; the last one is at the end (0: no evaluation)", ge=0
    )
    early_stopping_metric: str = option(
        "scores", "metric that chooses the best policy, higher is better: scores (the reward), or a metric's name"
    )
    early_stopping_patience: int | None = option(
        None, "stop after this many evaluations without a new best, and keep the best policy (none: do not stop)", ge=1
    )
    log_completions: bool = option(
        False, "write each rollout's answers, scores and KL to completions/ as JSON lines, and to trackers as a table"
    )
    save_rollouts: int = option(0, "rollouts between resumable checkpoints; the last one is at the end (0: none)", ge=0)

    def check(self) -> None:
        """Checks that early stopping has evaluations, and that the first multiplier is allowed."""
        if self.cost_multiplier > self.cost_multiplier_max:
            expected = f"at most cost_multiplier_max ({self.cost_multiplier_max:g})"
            raise unexpected("cost_multiplier", expected, self.cost_multiplier)
        if self.early_stopping_patience is not None and not self.eval_rollouts:
            raise unexpected("eval_rollouts", "at least 1 with early_stopping_patience", self.eval_rollouts)


@dataclass
class PPOStageConfig(AdaptedRate, PPOBaseConfig, OptimizerConfig):
    """PPO of the policy against the reward model."""

    RATES: ClassVar = DefaultRates(3e-5, 3e-6)  # 3e-6: Huang et al. 2024

    # Nobody watches the KL of a run and starts it again, so these defaults differ from the trainer's.
    num_rollouts: int = with_default(PPOBaseConfig, "num_rollouts", 50)
    learning_rate: float | None = RATES.option("peak learning rate")  # type: ignore[assignment]
    generation_batch_size: int = with_default(PPOBaseConfig, "generation_batch_size", 64)
    max_kl: float | None = with_default(PPOBaseConfig, "max_kl", 100.0)
    save_rollouts: int = with_default(PPOBaseConfig, "save_rollouts", 10)

    mini_batch_size: int = option(16, "answers per optimizer step", ge=1)
    gradient_accumulation_steps: int = option(1, "parts of an optimizer step; more parts take less memory", ge=1)
    activation_checkpointing: bool = option(
        False, "recompute activations in the backward pass instead of keeping them, to save memory"
    )
    lr_scheduler_type: str = option("linear", "learning-rate schedule", ("linear", "constant", "cosine"))
    value_model: str | None = option(
        None, "model for the values, all of whose weights are trained (none: a head on the policy)"
    )
    cost: str | None = option(
        None,
        "what is to stay at cost_limit on average while the reward rises, higher is worse: a model, or module:function "
        "(none: nothing)",
    )
    bf16_reference: bool = option(
        False,
        "without adapters: hold the reference of the KL in bfloat16, half its memory; where products are float32 (on a "
        "CPU), its log-probabilities are less precise than the policy's",
    )
    held_out: float = option(
        0.0, "share of the prompts that are evaluated on, not trained on (see eval_rollouts)", ge=0, lt=1
    )
    report_to: list[str] | None = option(
        None, "trackers such as tensorboard, trackio or wandb, comma-separated (none: no tracker)", volatile=True
    )
    lora: AdapterConfig = option(AdapterConfig, "adapters")

    def check(self) -> None:
        """Checks that batches divide rollouts, their parts batches, and that held-out prompts have evaluations."""
        super().check()
        check_multiple(self, "rollout_batch_size", "mini_batch_size")
        check_multiple(self, "mini_batch_size", "gradient_accumulation_steps")
        if bool(self.held_out) != bool(self.eval_rollouts):
            got = self.held_out, self.eval_rollouts
            raise unexpected("held_out", "both held_out and eval_rollouts above 0, or neither", got)
