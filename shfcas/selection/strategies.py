"""Strategies by name; docs/strategies.md describes them in a table."""

from shfcas.selection.bandits import delta_ucb, drts, maxmin_lcb
from shfcas.selection.committee import bald, disagreement, double_thompson, infomax
from shfcas.selection.conflict import (
    kendall,
    kendall_of,
    mean_pacs,
    mean_pacs_of,
    pacs,
    pacs_of,
    pacs_of_chosen,
    random_pairs,
    shf_cas,
)
from shfcas.selection.design import arbiter
from shfcas.selection.protocol import Strategy
from shfcas.selection.rewards import least_margin, reward_margin, reward_variance, rso

STRATEGIES: dict[str, Strategy] = {
    "shf_cas": Strategy(
        shf_cas,
        {"kendall_threshold": kendall_of, "pacs_threshold": pacs_of_chosen},
        needs=("kendall_distance", "mean_abs_pacs"),
        settings=("pairing",),
    ),
    "kendall": Strategy(
        kendall,
        {"kendall_threshold": kendall_of},
        needs=("kendall_distance", "mean_abs_pacs"),
        settings=("pairing",),
    ),
    "pacs": Strategy(pacs, {"pacs_threshold": pacs_of}, settings=("pairing",)),
    "mean_pacs": Strategy(mean_pacs, {"mean_pacs_threshold": mean_pacs_of}, needs=("mean_abs_pacs",)),
    "random": Strategy(random_pairs),
    "arbiter": Strategy(arbiter, needs=("rewards",), design=True),
    "auto": Strategy(arbiter, needs=("rewards",), design=True, sequential=True),
    "reward_margin": Strategy(reward_margin, needs=("rewards",)),
    "least_margin": Strategy(least_margin, needs=("rewards",)),
    "reward_variance": Strategy(reward_variance, needs=("reward_variances",)),
    "disagreement": Strategy(disagreement, needs=("member_rewards",)),
    "bald": Strategy(bald, needs=("member_rewards",)),
    "infomax": Strategy(infomax, needs=("member_rewards",)),
    "double_thompson": Strategy(double_thompson, needs=("member_rewards",)),
    "delta_ucb": Strategy(delta_ucb, needs=("rewards", "reward_variances"), settings=("confidence_beta",)),
    "drts": Strategy(drts, needs=("rewards", "reward_variances"), settings=("confidence_beta",)),
    "maxmin_lcb": Strategy(maxmin_lcb, needs=("rewards", "reward_variances"), settings=("confidence_beta",)),
    "rso": Strategy(rso, needs=("rewards",), settings=("rso_samples", "rso_beta")),
}

SELECTABLE = {name: strategy for name, strategy in STRATEGIES.items() if not strategy.sequential}  # from a table
