"""The configuration of a comparison: that of a run, with strategies, budgets and seeds."""

import difflib
from dataclasses import dataclass

from shfcas.pipeline.config import SOURCES, RunConfig
from shfcas.selection import STRATEGIES, SelectionConfig
from shfcas.training.algorithms import RLConfig
from shfcas.training.reward.config import RefineConfig
from shfcas.utils.callables import is_callable_name
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError

BASELINE = "random"


@dataclass
class CompareConfig(RunConfig):
    """Strategies compared at the same numbers of comparisons, over seeds; the rest is as in a run."""

    output: str = option("runs/compare", "the run directory; run the same command again to continue", common=True)
    strategies: list[str] = option(
        lambda: ["random", "shf_cas", "mean_pacs"],
        "acquisition strategies; random is what they are tested against",
        common=True,
    )
    budgets: list[int] = option(lambda: [25, 50, 100], "numbers of comparisons that are asked for", common=True)
    seeds: int = option(
        10, "seeds: each draws its own pool of prompts, its own random pairs, its own training order", common=True
    )
    pool_share: float = option(0.8, "share of the prompts that each seed draws for its pool, without replacement")
    label_noise: float = option(0.0, "share of the gold labels that are turned round, as people err")
    refine: str = option(
        "head",
        "what is refined with the labels: a linear head on frozen features (milliseconds), or the full model",
        ("head", "full"),
        common=True,
    )
    features: str = option(
        "both",
        "refine head: what the head reads, of the proxy alone, or of the backbone that it was trained from too",
        ("proxy", "both"),
    )
    l2: float = option(10.0, "refine head: how strongly its weights are held to where they start")
    # Keys of a run that a comparison does not leave open.
    gold: str = option("", "the gold reward: a model, or module:function", common=True)
    selection: SelectionConfig = option(
        SelectionConfig, "thresholds and pairing; strategies and budgets replace its strategy and budget"
    )
    feedback: str = option("gold", "gold alone: a comparison simulates the annotators", SOURCES)
    rounds: int = option(1, "1 alone: a comparison has one round")
    rl: RLConfig = option(RLConfig, "how the policies of ppo follow the reward")
    reward: RefineConfig = option(
        lambda: RefineConfig(held_out=0.0), "refinement of the reward model; of it, refine head takes new_pair_weight"
    )
    blind: list[str] | None = option(None, "values of evaluation.group_by about which the proxy is known to be wrong")
    ppo: list[str] | None = option(
        None, "strategies whose refined reward model the policy is trained on too, by the section rl; none: no policy"
    )
    ppo_seeds: int = option(1, "seeds for which policies are trained")
    ppo_budget: int | None = option(None, "the budget for which policies are trained (none: the largest)")
    jobs: int = option(0, "processes that run cells (0: as many as processors and memory allow)")

    def check(self) -> "CompareConfig":
        """Says what does not fit together before any work is done."""
        super().check()
        for name in (*self.strategies, *(self.ppo or ())):
            if name not in STRATEGIES:
                near = difflib.get_close_matches(name, STRATEGIES, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UsageError(f"strategies: unknown strategy {name!r}, one of {', '.join(STRATEGIES)}{hint}")
        if BASELINE not in self.strategies:
            raise UsageError(f"strategies: {BASELINE} has to be among them, since the others are tested against it")
        for name, values in (("strategies", self.strategies), ("budgets", self.budgets)):
            if not values or len(set(values)) < len(values):
                raise UsageError(f"{name}: expected one or more, each once, got {values}")
        least = {"seeds": 1, "ppo_seeds": 1, "jobs": 0, "budgets": 1}
        for key, bound in least.items():
            value = min(self.budgets) if key == "budgets" else getattr(self, key)
            if value < bound:
                raise UsageError(f"{key}: expected at least {bound}, got {value}")
        if not 0 < self.pool_share <= 1:
            raise UsageError(f"pool_share: expected a share above 0, at most 1, got {self.pool_share}")
        if not 0 <= self.label_noise <= 0.5:
            raise UsageError(f"label_noise: expected a share of 0 to 0.5, got {self.label_noise}")
        if self.selection.seed is not None:
            raise UsageError("selection.seed: leave it out, since each seed draws for itself")
        if self.l2 <= 0:
            raise UsageError(f"l2: expected a number above 0, got {self.l2}")
        if is_callable_name(self.reward_model):
            raise UsageError("reward_model: a function cannot be refined with labels; name a model")
        if self.rounds != 1 or self.feedback != "gold":
            raise UsageError("a comparison has one round and gold feedback; leave rounds and feedback as they are")
        if self.refine == "head" and (self.reward.held_out or self.reward.start != "current"):
            raise UsageError("refine head trains on all pairs, from the current head: leave reward.held_out and start")
        if self.blind and not self.evaluation.group_by:
            raise UsageError("blind names values of a column of the prompts: set evaluation.group_by to that column")
        if self.ppo and not {*self.ppo} <= {*self.strategies}:
            raise UsageError("ppo: name only strategies that are compared")
        if self.ppo and self.ppo_seeds > self.seeds:
            raise UsageError(f"ppo_seeds: expected at most seeds, {self.seeds}, got {self.ppo_seeds}")
        if self.ppo and self.rl.algorithm == "best_of_n":
            raise UsageError(
                "rl.algorithm best_of_n trains no policy, and best of n is measured in every cell: unset ppo"
            )
        return self

    def backbone(self) -> str | None:
        """The model whose features stand beside the proxy's; None where the proxy is that model itself."""
        return self.reward_model if self.features == "both" and self.proxy else None
