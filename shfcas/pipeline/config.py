"""Configuration of a run."""

from dataclasses import dataclass

from shfcas.conflicts.columns import CONTRASTS, POLICY_SCORES
from shfcas.data.formats import AllColumns
from shfcas.engines import ENGINES, RayConfig
from shfcas.evaluation.config import EvaluationConfig
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.pipeline.demonstrations import BootstrapConfig
from shfcas.rewards.preflight import PreflightConfig
from shfcas.rewards.scorers import TOO_LONG, TOO_LONG_HELP, ensemble_members
from shfcas.sampling.config import SamplingConfig
from shfcas.sampling.contrast import Principle
from shfcas.selection import STRATEGIES, SelectionConfig
from shfcas.training.algorithms import RLConfig
from shfcas.training.dpo import ALL, REWARD
from shfcas.training.dpo import LABELS as LABELLED
from shfcas.training.reward.config import ARBITRATE, CLEAN, LABELS, SECOND_OPINION, RefineConfig, RewardModelConfig
from shfcas.training.sft import SFTStageConfig
from shfcas.utils.config import option, require, unexpected
from shfcas.utils.errors import UsageError

SOURCES = ("gold", "human", "judge", "none")


@dataclass
class RunConfig(AllColumns):
    """A whole SHF-CAS run."""

    output: str = option("runs/shfcas", "run directory; run the same command again to resume", common=True)
    policy: str = option("", "policy: a folder, a hub id, or pypi:PACKAGE", common=True)
    chat_template: str | None = option(
        None, "chat template for a policy without one: plain, or a Jinja file (none: the policy's own)"
    )
    reference: str | None = option(
        None, "policy_score logprob_ratio: model to compare the policy with (none: the policy before sft)"
    )
    reward_model: str = option("", "proxy reward model: a model, or the backbone that it is trained from", common=True)
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    too_long: str = option("cut", TOO_LONG_HELP, tuple(TOO_LONG))
    gold: str | None = option(
        None,
        "gold reward: a model, or module:function; feedback gold needs it, otherwise it only measures",
        common=True,
    )
    prompts: str = option(
        "", "prompts to sample, select and train on: a file, org/name on the Hub, or module:function", common=True
    )
    eval_prompts: str = option("", "held-out prompts for evaluation: from any of these sources", common=True)
    preferences: str | None = option(
        None,
        "original preferences: from any of these sources (none: no original preferences)",
        common=True,
    )
    demonstrations: str | None = option(
        None, "prompts with completions for supervised fine-tuning: from any of these sources (none: see bootstrap)"
    )
    bootstrap: BootstrapConfig | None = option(
        None, "make demonstrations from the policy's own best samples (none: do not)"
    )
    sft: SFTStageConfig | None = option(
        None, "fine-tune the policy on the demonstrations before the first round (none: do not)"
    )
    proxy: RewardModelConfig | None = option(
        None, "train the proxy on the original preferences before the first round (none: do not)"
    )
    policy_score: str = option("logprob", "score of the policy that rewards are compared with", POLICY_SCORES)
    principles: list[Principle] = option(
        list,
        "policy_score contrast: pairs of opposite instructions, good and bad, over which the contrast is averaged; "
        "a text, or a .md or .txt file such as the annotation guidelines",
    )
    policy_score_model: str | None = option(
        None, "policy_score contrast: causal model to ask, which may be larger (none: the policy itself)"
    )
    unlabelled_prompts: str | None = option(
        None,
        "reward.refine second_opinion, arbitrate: further prompts whose answers get soft labels and are never asked "
        "about: from any of these sources (none: only the prompts)",
    )
    max_prompts: int | None = option(None, "use only this many prompts, the first ones (none: all)", ge=1)
    sampling: SamplingConfig = option(SamplingConfig, "candidate answers", common=True)
    selection: SelectionConfig = option(SelectionConfig, "which comparisons to label", common=True)
    feedback: str = option(
        "gold", "who labels: the gold reward, people, a language model, or no one", SOURCES, common=True
    )
    human: HumanConfig = option(HumanConfig, "feedback or evaluation.judge human: people, through a page")
    judge: JudgeConfig = option(JudgeConfig, "feedback or evaluation.judge judge: the language model")
    finish_with_what_we_have: bool = option(
        False, "people: continue with the answers so far, without waiting for the others", volatile=True
    )
    reward: RefineConfig = option(RefineConfig, "refinement of the reward model")
    preflight: PreflightConfig | None = option(
        PreflightConfig, "check the reward model before anything is scored (none: do not)"
    )
    rl: RLConfig = option(RLConfig, "training of the policy on the reward", common=True)
    evaluation: EvaluationConfig = option(EvaluationConfig, "evaluation")
    engine: str = option(
        "local", "where to sample, score and select: in this process, or on a Ray cluster", ENGINES, True
    )
    ray: RayConfig = option(RayConfig, "engine ray: the cluster")
    rounds: int = option(1, "number of rounds", ge=1, common=True)
    seed: int = option(0, "seed of everything random", common=True)

    def check(self) -> None:
        """Checks that sections have what they need from others."""
        if self.sft and not (self.demonstrations or self.bootstrap):
            remedy = "set demonstrations to a file, or add a section bootstrap"
            raise unexpected("demonstrations", "a file with sft", self.demonstrations, remedy)
        if self.rl.shows_demonstrations and not (self.demonstrations or self.bootstrap):
            remedy = "set demonstrations to a file, or add a section bootstrap"
            raise unexpected("demonstrations", "a file with rl.ppo.ptx_coef", self.demonstrations, remedy)
        if self.proxy and not self.preferences:
            raise unexpected("preferences", "a file or module:function with proxy", self.preferences)
        trained = {"proxy": self.proxy, "reward": self.reward if self.feedback != "none" else None}
        for name, training in trained.items():
            if self.cost_model and training and training.objective != "cost":
                raise unexpected(f"{name}.objective", "cost with cost_model", training.objective)
        if self.policy_score in CONTRASTS and not self.principles:
            remedy = "write principles: [{good: ..., bad: ...}]"
            raise unexpected("principles", f"at least one with policy_score {self.policy_score}", [], remedy)
        if self.reward.refine == CLEAN:
            if not self.preferences:
                raise unexpected("preferences", f"a file with reward.refine {CLEAN}", self.preferences)
            if self.reward.start != "backbone":
                remedy = "what a model learned from a wrong pair stays when the pair is left out"
                raise unexpected("reward.start", f"backbone with reward.refine {CLEAN}", self.reward.start, remedy)
        if self.unlabelled_prompts and self.reward.refine in (LABELS, CLEAN):
            remedy = f"set it to {SECOND_OPINION} or {ARBITRATE}"
            raise unexpected("reward.refine", "soft labels with unlabelled_prompts", self.reward.refine, remedy)
        if STRATEGIES[self.selection.strategy].sequential and self.reward.refine != ARBITRATE:
            expected = f"{ARBITRATE} with selection.strategy {self.selection.strategy}"
            raise unexpected("reward.refine", expected, self.reward.refine, "it stops by what labels add as arbiters")
        for principle in self.principles:
            principle.texts()  # fail early if a file is missing
        if self.rl.algorithm == "dpo":
            self._check_pairs_of_dpo()
        accepted, sampled = self.rl.rso.num_samples, self.sampling.num_completions
        if self.rl.algorithm == "rso" and accepted > sampled:
            remedy = "sample more or accept fewer"
            raise unexpected("rl.rso.num_samples", f"at most sampling.num_completions ({sampled})", accepted, remedy)

    def _check_pairs_of_dpo(self) -> None:
        """Checks that there will be pairs to learn from."""
        pairs, labelled = self.rl.dpo.pairs, self.feedback != "none"
        if pairs == REWARD and self.sampling.num_completions < 2:
            expected = f"at least 2 with rl.dpo.pairs {REWARD}"
            raise unexpected("sampling.num_completions", expected, self.sampling.num_completions)
        if pairs == LABELLED and not labelled:
            remedy = "name who labels, or set rl.dpo.pairs to all or reward"
            raise unexpected("feedback", f"labels with rl.dpo.pairs {LABELLED}", self.feedback, remedy)
        if pairs == ALL and not (labelled or self.preferences):
            raise unexpected("preferences", f"labels or original preferences with rl.dpo.pairs {ALL}", self.preferences)

    def check_inputs(self) -> None:
        """Checks, before any work, that no required value, package or file is missing.

        Raises:
            UsageError: a value is missing, or the strategy needs an ensemble and there is none.
            UserError: the page for annotators cannot be served.
        """
        require(self)
        if self.feedback == "gold" and not self.gold:
            raise UsageError("missing: gold; name the gold reward, or set feedback to human, judge or none")
        if self.bootstrap:
            require(self.bootstrap, "bootstrap.")
        asked = (self.feedback, self.evaluation.judge)
        if "judge" in asked:
            require(self.judge, "judge.")
        if "human" in asked:
            HumanFeedback.check(self.human)
        if self.feedback != "none":
            self._check_ensemble()

    def compares_blindly(self, number: int) -> bool:
        """Tells whether people or a language model compare the policy of a round with the base."""
        chosen = self.evaluation.judge_rounds == "each" or number == self.rounds
        return self.evaluation.judge != "gold" and chosen

    def _check_ensemble(self) -> None:
        """Checks that a strategy that reads rewards of an ensemble gets one."""
        strategy = self.selection.strategy
        if not {"reward_variances", "member_rewards"} & {*STRATEGIES[strategy].needs}:
            return
        trained = {"proxy": self.proxy, "reward": self.reward if self.rounds > 1 else None}
        for name, training in trained.items():
            if training and training.ensemble_size < 2:
                expected = f"at least 2 with selection.strategy {strategy}"
                raise unexpected(f"{name}.ensemble_size", expected, training.ensemble_size)
            if training and training.average_weights:
                expected = f"False with selection.strategy {strategy}"
                raise unexpected(f"{name}.average_weights", expected, True, "it makes one model of the ensemble")
        if not self.proxy and not ensemble_members(self.reward_model):
            remedy = "train one with shfcas train-reward --ensemble_size 5"
            expected = f"an ensemble with selection.strategy {strategy}"
            raise unexpected("reward_model", expected, self.reward_model, remedy)
