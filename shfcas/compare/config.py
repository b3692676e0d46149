"""Configuration of a comparison: that of a run, with strategies, budgets and seeds."""

from dataclasses import dataclass

from shfcas.compare.cells import Bench
from shfcas.pipeline.config import SOURCES, RunConfig
from shfcas.selection import SELECTABLE, SelectionConfig
from shfcas.training.algorithms import RLConfig
from shfcas.training.dpo import REWARD
from shfcas.training.reward.config import ARBITRATE, CLEAN, LABELS, SECOND_OPINION, RefineConfig
from shfcas.utils.callables import is_callable_name
from shfcas.utils.config import option, unexpected, with_default

BASELINE = "random"


@dataclass
class CompareConfig(RunConfig):
    """Comparison of strategies at the same label budgets, over seeds; the other keys are those of a run."""

    output: str = with_default(RunConfig, "output", "runs/compare")
    strategies: list[str] = option(
        lambda: ["random", "shf_cas", "mean_pacs"],
        "acquisition strategies; random is the baseline of the tests",
        SELECTABLE,
        common=True,
    )
    budgets: list[int] = option(lambda: [25, 50, 100], "label budgets, in comparisons", ge=1, common=True)
    seeds: int = option(
        10, "seeds; each has its own pool of prompts, random pairs and training order", ge=1, common=True
    )
    pool_share: float = with_default(Bench, "pool_share", 0.8)
    label_noise: float = with_default(Bench, "label_noise", 0.0)
    refine: str = option(
        "head",
        "what is refined with the labels: a linear head on frozen features (milliseconds), or the full model",
        ("head", "full"),
        common=True,
    )
    features: str = option(
        "both",
        "refine head: features of the proxy alone, or also those of the backbone that it was trained from",
        ("proxy", "both"),
    )
    l2: float = option(10.0, "refine head: weight of the penalty on changes of its weights", gt=0)
    # Keys of a run that a comparison restricts.
    gold: str = option("", "gold reward: a model, or module:function", common=True)
    selection: SelectionConfig = option(
        SelectionConfig, "thresholds and pairing; strategies and budgets replace its strategy and budget"
    )
    feedback: str = option("gold", "gold only: a comparison simulates the annotators", SOURCES)
    rounds: int = option(1, "1 only: a comparison has one round", ge=1)
    rl: RLConfig = option(RLConfig, "training of the policies of ppo")
    reward: RefineConfig = option(
        lambda: RefineConfig(held_out=0.0),
        "refinement of the reward model; refine head uses new_pair_weight, refine and "
        "second_opinion, whose group_by none is one trust for all prompts",
    )
    blind: list[str] | None = option(
        None, "values of evaluation.group_by where the proxy is known to be wrong (none: not reported)"
    )
    ppo: list[str] | None = option(
        None,
        "strategies for which the section rl also trains a policy on the refined reward model (none: no policy)",
        SELECTABLE,
    )
    ppo_seeds: int = option(1, "seeds for which policies are trained", ge=1)
    ppo_budget: int | None = option(None, "label budget for which policies are trained (none: the largest)", ge=1)
    jobs: int = option(0, "processes that run cells (0: as many as processors and memory allow)", ge=0)

    def check(self) -> None:
        """Checks what a comparison needs beyond a run's rules."""
        super().check()
        if BASELINE not in self.strategies:
            raise unexpected("strategies", f"{BASELINE} among them", self.strategies, "it is the baseline of the tests")
        for name, values in (("strategies", self.strategies), ("budgets", self.budgets)):
            if not values or len(set(values)) < len(values):
                raise unexpected(name, "one or more values, each once", values)
        self._check_run()
        self._check_head()
        self._check_policies()

    def _check_run(self) -> None:
        """Checks settings of a run that a comparison sets itself."""
        if self.selection.seed is not None:
            raise unexpected("selection.seed", "none", self.selection.seed, "each seed draws for itself")
        if is_callable_name(self.reward_model):
            raise unexpected("reward_model", "a model", self.reward_model, "labels cannot refine a function")
        if self.rounds != 1:
            raise unexpected("rounds", "1 in a comparison", self.rounds)
        if self.feedback != "gold":
            raise unexpected("feedback", "gold in a comparison", self.feedback)
        if self.evaluation.judge != "gold":
            raise unexpected("evaluation.judge", "gold in a comparison", self.evaluation.judge)
        if self.reward.refine == CLEAN:
            ways = f"{LABELS}, {SECOND_OPINION} or {ARBITRATE} in a comparison"
            raise unexpected("reward.refine", ways, CLEAN)
        if self.blind and not self.evaluation.group_by:
            raise unexpected("evaluation.group_by", "the column of the values in blind", self.evaluation.group_by)

    def _check_head(self) -> None:
        """Checks that a head is refined on all pairs, from the current head."""
        if self.refine == "head" and self.reward.held_out:
            raise unexpected("reward.held_out", "0 with refine head", self.reward.held_out)
        if self.refine == "head" and self.reward.start != "current":
            raise unexpected("reward.start", "current with refine head", self.reward.start)

    def _check_policies(self) -> None:
        """Checks the strategies and seeds of policies."""
        if self.ppo and not {*self.ppo} <= {*self.strategies}:
            raise unexpected("ppo", "some of strategies", self.ppo)
        if self.ppo and self.ppo_seeds > self.seeds:
            raise unexpected("ppo_seeds", f"at most seeds ({self.seeds})", self.ppo_seeds)
        if self.ppo and self.rl.algorithm == "dpo" and self.rl.dpo.pairs != REWARD:
            remedy = "an arm without labels has no pairs; strategies are compared through their reward models"
            raise unexpected("rl.dpo.pairs", REWARD, self.rl.dpo.pairs, remedy)
        if self.ppo and self.rl.algorithm == "best_of_n":
            remedy = "unset ppo: best_of_n trains no policy, and every cell measures best of n"
            raise unexpected("rl.algorithm", "an algorithm that trains a policy", self.rl.algorithm, remedy)

    def backbone(self) -> str | None:
        """Returns the model whose features are used beside the proxy's; None where the proxy is that model."""
        return self.reward_model if self.features == "both" and self.proxy else None
