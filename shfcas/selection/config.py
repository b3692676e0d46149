"""What is asked for: the strategy, the label budget, thresholds, pairing and diversity."""

import difflib
from dataclasses import dataclass

from shfcas.selection.diversity import DIVERSITIES
from shfcas.selection.false_discovery import AUTO
from shfcas.selection.pairing import PAIRINGS
from shfcas.selection.strategies import STRATEGIES
from shfcas.selection.thresholds import parse_threshold
from shfcas.utils.config import option
from shfcas.utils.errors import UserError


@dataclass
class SelectionConfig:
    """Which comparisons to ask for."""

    strategy: str = option("shf_cas", f"acquisition strategy: {', '.join(STRATEGIES)}", common=True)
    budget: int = option(100, "label budget: the number of pairwise comparisons a human is asked for", common=True)
    pairing: str = option(
        "extreme",
        "shf_cas, kendall, pacs: answers meet by opposed PACS, next in PACS, at random, or all",
        tuple(PAIRINGS),
    )
    kendall_threshold: str | float = option(
        "q0.5",
        "shf_cas, kendall: prompts need at least this Kendall-tau distance; a number, a quantile such as q0.5, or "
        "auto: more than chance at the false-discovery rate",
    )
    false_discovery_rate: float = option(
        0.1, "kendall_threshold auto: the share of prompts that may be there by chance (Benjamini and Hochberg 1995)"
    )
    pacs_threshold: str | float = option(
        "q0.5", "shf_cas, pacs: answers of those prompts need at least this abs(PACS); a number, or a quantile"
    )
    mean_pacs_threshold: str | float = option(
        "1.0", "mean_pacs: prompts need a mean abs(PACS) above this; a number, or a quantile"
    )
    rso_samples: int = option(4, "rso: answers accepted of each prompt, or all where there are fewer")
    rso_beta: float = option(0.5, "rso: beta of the target pi exp(r / beta), in units of the reward (Liu et al. 2023)")
    diversity: str = option(
        "none", "spread the comparisons over embeddings, or over the words of the prompts", DIVERSITIES
    )
    diversity_pool: int = option(5, "diversity chooses among this many times the budget of most wanted comparisons")
    seed: int | None = option(None, "seed of what is random in a strategy, and of ties (none: the run's seed)")

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("strategy", self.strategy, tuple(STRATEGIES)),
            ("pairing", self.pairing, tuple(PAIRINGS)),
            ("diversity", self.diversity, DIVERSITIES),
        ):
            if value not in known:
                near = difflib.get_close_matches(value, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"unknown {kind} {value!r}, one of {', '.join(known)}{hint}")
        if self.budget < 1:
            raise UserError(f"budget: expected at least 1 comparison, got {self.budget}")
        if not 0 < self.false_discovery_rate < 1:
            raise UserError(f"false_discovery_rate: expected a share between 0 and 1, got {self.false_discovery_rate}")
        if self.rso_samples < 2:
            raise UserError(f"rso_samples: expected at least 2, since pairs are made of them; got {self.rso_samples}")
        if not self.rso_beta > 0:
            raise UserError(f"rso_beta: expected more than 0, got {self.rso_beta}")
        if self.diversity_pool < 1:
            raise UserError(f"diversity_pool: expected at least 1, got {self.diversity_pool}")
        for name in ("kendall_threshold", "pacs_threshold", "mean_pacs_threshold"):
            text = str(getattr(self, name)).strip()
            if text == AUTO and name != "kendall_threshold":
                raise UserError(f"{name}: auto is for kendall_threshold alone; give a number, or a quantile")
            if text != AUTO:
                parse_threshold(text)
