"""Configuration of selection: strategy, label budget, thresholds, pairing and diversity."""

from dataclasses import dataclass

from shfcas.selection.diversity import DIVERSITIES
from shfcas.selection.false_discovery import AUTO
from shfcas.selection.pairing import PAIRINGS
from shfcas.selection.strategies import STRATEGIES
from shfcas.selection.thresholds import parse_threshold
from shfcas.utils.config import Options, option, unexpected


@dataclass
class SelectionConfig(Options):
    """Selection of the comparisons to label."""

    strategy: str = option("shf_cas", "acquisition strategy", STRATEGIES, common=True)
    budget: int = option(100, "label budget: maximum number of comparisons", ge=1, common=True)
    audit_share: float = option(
        0.0,
        "share of the budget that asks about random pairs, which measure without bias; the strategy chooses the rest",
        ge=0,
        le=1,
    )
    pairing: str = option(
        "extreme",
        "shf_cas, kendall, pacs: pair answers of opposed PACS, neighbours in PACS, at random, or all",
        tuple(PAIRINGS),
    )
    kendall_threshold: str | float = option(
        "q0.5",
        "shf_cas, kendall: minimum Kendall-tau distance of a prompt: a number, a quantile such as q0.5, or auto "
        "(more than chance at false_discovery_rate)",
    )
    false_discovery_rate: float = option(
        0.1,
        "kendall_threshold auto: share of the passing prompts that may be due to chance (Benjamini and Hochberg 1995)",
        gt=0,
        lt=1,
    )
    pacs_threshold: str | float = option(
        "q0.5", "shf_cas, pacs: minimum abs(PACS) of an answer of a passing prompt: a number, or a quantile"
    )
    mean_pacs_threshold: str | float = option(
        "1.0", "mean_pacs: mean abs(PACS) that a prompt must exceed: a number, or a quantile"
    )
    rso_samples: int = option(
        4, "rso: answers accepted per prompt, or all where there are fewer", ge=2, remedy="a pair needs two answers"
    )
    rso_beta: float = option(
        0.5, "rso: beta of the target pi exp(r / beta), in units of the reward (Liu et al. 2023)", gt=0
    )
    confidence_beta: float = option(
        1.0, "delta_ucb, drts, maxmin_lcb: half-width of a reward's interval, in its standard deviations", ge=0
    )
    group_by: str | None = option(
        None,
        "arbiter, auto: column of prompts whose values may each have a trust of their own (none: one trust for all)",
    )
    arbiter_pool: int = option(
        2000, "arbiter, auto: comparisons to choose from; twice the budget where that is more", ge=2
    )
    batch: int = option(8, "auto: comparisons that are labelled before it decides again", ge=1)
    worth: float = option(
        0.005, "auto: stop when another batch is expected to add less than this to the share of right verdicts", ge=0
    )
    diversity: str = option(
        "none", "spread comparisons over embeddings, or over the words of prompts where there are none", DIVERSITIES
    )
    diversity_pool: int = option(5, "diversity: highest-priority comparisons to choose from, per unit of budget", ge=1)
    seed: int | None = option(None, "seed of random strategies and of ties (none: the run's seed)")

    def group_columns(self) -> tuple[str, ...]:
        """Returns the column of groups, if the strategy reads one."""
        return (self.group_by,) if self.group_by and STRATEGIES[self.strategy].design else ()

    def check(self) -> None:
        """Checks that thresholds are numbers or quantiles."""
        for name in ("kendall_threshold", "pacs_threshold", "mean_pacs_threshold"):
            value = getattr(self, name)
            if str(value).strip() != AUTO:
                parse_threshold(value, name)
            elif name != "kendall_threshold":
                raise unexpected(name, "a number or a quantile", value, "auto is for kendall_threshold alone")
