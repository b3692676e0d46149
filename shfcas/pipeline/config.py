"""What a run is configured with, and what does not fit together in it."""

from dataclasses import dataclass

from shfcas.conflicts.columns import POLICY_SCORES
from shfcas.engines import ENGINES, RayConfig
from shfcas.evaluation.config import EvaluationConfig
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.pipeline.demonstrations import BootstrapConfig
from shfcas.rewards.preflight import PreflightConfig
from shfcas.rewards.scorers import ensemble_members
from shfcas.sampling.config import SamplingConfig
from shfcas.selection import STRATEGIES, SelectionConfig
from shfcas.training.algorithms import RLConfig
from shfcas.training.reward.config import RefineConfig, RewardModelConfig
from shfcas.training.sft import SFTStageConfig
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError

SOURCES = ("gold", "human", "judge", "none")


@dataclass
class RunConfig:
    """A whole SHF-CAS run."""

    output: str = option("runs/shfcas", "the run directory; run the same command again to continue", common=True)
    policy: str = option("", "the policy: a folder, a hub id, or pypi:PACKAGE", common=True)
    chat_template: str | None = option(None, "a template for a policy that has none: plain, or a Jinja file")
    reference: str | None = option(
        None, "policy_score logprob_ratio compares the policy with this model (none: the policy before sft)"
    )
    reward_model: str = option("", "the proxy reward model, or the backbone it is trained from", common=True)
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    gold: str | None = option(
        None,
        "the gold reward: a model, or module:function; feedback gold needs it, otherwise it only measures",
        common=True,
    )
    prompts: str = option(
        "", "prompts to sample, to ask about and to train on: a file, or module:function", common=True
    )
    eval_prompts: str = option("", "held-out prompts for evaluation: a file, or module:function", common=True)
    preferences: str | None = option(
        None, "original preference data in TRL's format: a file, or module:function", common=True
    )
    demonstrations: str | None = option(None, "good answers (prompt, completion) for supervised fine-tuning")
    bootstrap: BootstrapConfig | None = option(None, "make demonstrations from the policy's own best samples")
    sft: SFTStageConfig | None = option(None, "fine-tune the policy on the demonstrations before the first round")
    proxy: RewardModelConfig | None = option(None, "train the proxy on the original preferences before the first round")
    policy_score: str = option("logprob", "what PACS and Kendall-tau compare rewards with", POLICY_SCORES)
    max_prompts: int | None = option(None, "use only the first so many prompts")
    sampling: SamplingConfig = option(SamplingConfig, "candidate answers", common=True)
    selection: SelectionConfig = option(SelectionConfig, "whom to ask about what", common=True)
    feedback: str = option("gold", "who answers: the gold reward, people, a language model", SOURCES, common=True)
    human: HumanConfig = option(HumanConfig, "feedback human: how people are asked")
    judge: JudgeConfig = option(JudgeConfig, "feedback judge: the language model that answers")
    finish_with_what_we_have: bool = option(
        False, "feedback human: go on with the answers there are, without waiting for the rest", volatile=True
    )
    reward: RefineConfig = option(RefineConfig, "refinement of the reward model")
    preflight: PreflightConfig | None = option(
        PreflightConfig, "look for what is wrong with the reward model before anything is scored (none: do not)"
    )
    rl: RLConfig = option(RLConfig, "how the policy follows the reward", common=True)
    evaluation: EvaluationConfig = option(EvaluationConfig, "evaluation")
    engine: str = option(
        "local", "where answers are sampled, scored and selected: in this process, or on a Ray cluster", ENGINES, True
    )
    ray: RayConfig = option(RayConfig, "engine ray: the cluster")
    rounds: int = option(1, "rounds", common=True)
    seed: int = option(0, "the seed of everything", common=True)

    def check(self) -> "RunConfig":
        """Says what is missing before any work is done."""
        for name in ("policy", "reward_model", "prompts", "eval_prompts"):
            if not getattr(self, name):
                raise UsageError(f"missing: {name}")
        if self.feedback == "gold" and not self.gold:
            raise UsageError("missing: gold; name the gold reward, or set feedback to human, judge or none")
        if self.sft and not (self.demonstrations or self.bootstrap):
            raise UsageError("sft needs demonstrations (a file), or a bootstrap section that makes them")
        if self.proxy and not self.preferences:
            raise UsageError("proxy needs preferences: a file in TRL's format, or module:function")
        if self.rounds < 1:
            raise UsageError(f"rounds: expected at least 1, got {self.rounds}")
        if self.feedback == "judge":
            self.judge.check()
        if self.feedback == "human":
            HumanFeedback.check(self.human)
        self.rl.check(self.sampling.num_completions)
        self._check_ensemble()
        return self

    def _check_ensemble(self) -> None:
        """Some strategies read what the members of an ensemble say; that is seen before anything is sampled."""
        needed = {"reward_variances", "member_rewards"} & {*STRATEGIES[self.selection.strategy].needs}
        if not needed or self.feedback == "none":
            return
        trained = {"proxy": self.proxy, "reward": self.reward if self.rounds > 1 else None}
        for name, training in trained.items():
            if training and (training.ensemble_size < 2 or training.average_weights):
                raise UsageError(
                    f"selection.strategy {self.selection.strategy} asks an ensemble of reward models: "
                    f"set {name}.ensemble_size to 2 or more, without average_weights"
                )
        if not self.proxy and not ensemble_members(self.reward_model):
            raise UsageError(
                f"selection.strategy {self.selection.strategy} asks an ensemble of reward models, and "
                f"{self.reward_model} is none: shfcas train-reward --ensemble_size 5 trains one"
            )
