"""Selection of comparisons to label: acquisition strategies, label budget, pairing of answers.

A strategy is a pure function of one row, which assigns a priority to each comparison of its answers. The budget takes
the first comparisons over all rows. So a table of any size needs constant memory, and neither the order of its rows nor
their distribution over files matters.
"""

from shfcas.selection.bandits import delta_ucb, drts, maxmin_lcb
from shfcas.selection.budget import Selection, columns_to_read, select, select_with_report
from shfcas.selection.committee import bald, disagreement, double_thompson, infomax
from shfcas.selection.config import SelectionConfig
from shfcas.selection.conflict import kendall, mean_pacs, pacs, random_pairs, shf_cas
from shfcas.selection.design import arbiter
from shfcas.selection.pairing import PAIRINGS, all_pairs, opposed_pairs, scored_pairs
from shfcas.selection.protocol import Bounds, Comparison, Priority, Row, Strategy
from shfcas.selection.rewards import least_margin, reward_margin, reward_variance, rso
from shfcas.selection.strategies import SELECTABLE, STRATEGIES
from shfcas.selection.thresholds import threshold
from shfcas.selection.usable import is_usable

__all__ = [
    "PAIRINGS",
    "SELECTABLE",
    "STRATEGIES",
    "Bounds",
    "Comparison",
    "Priority",
    "Row",
    "Selection",
    "SelectionConfig",
    "Strategy",
    "all_pairs",
    "arbiter",
    "bald",
    "columns_to_read",
    "delta_ucb",
    "disagreement",
    "double_thompson",
    "drts",
    "infomax",
    "is_usable",
    "kendall",
    "least_margin",
    "maxmin_lcb",
    "mean_pacs",
    "opposed_pairs",
    "pacs",
    "random_pairs",
    "reward_margin",
    "reward_variance",
    "rso",
    "scored_pairs",
    "select",
    "select_with_report",
    "shf_cas",
    "threshold",
]
