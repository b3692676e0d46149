"""Passes of a selection over a table, each in constant memory; the results for parts of a table can be merged."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from shfcas.selection import design, diversity
from shfcas.selection.config import SelectionConfig
from shfcas.selection.conflict import random_pairs
from shfcas.selection.false_discovery import Cases, kendall_cases
from shfcas.selection.protocol import Bounds, Comparison, Priority, Row
from shfcas.selection.strategies import STRATEGIES
from shfcas.selection.thresholds import count_row_values
from shfcas.selection.usable import UsableRows
from shfcas.utils.quantiles import CountPass


class Ranked(NamedTuple):
    """A comparison with its priority.

    Attributes:
        priority: the smallest is first.
        comparison: the comparison.
        row: an identifier of its row.
        source: with diversity, the source of its embedding.
        scores: with the strategy `arbiter`, the scores of the prompt's answers by both sources.
    """

    priority: Priority
    comparison: Comparison
    row: Any
    source: Any = None
    scores: design.Scores | None = None


class TopComparisons(NamedTuple):
    """The top comparisons of some rows.

    Attributes:
        ranked: comparisons in order of priority.
        seen: number of rows read.
        skipped: number of these rows that were not usable.
    """

    ranked: list[Ranked]
    seen: int
    skipped: int


def merge_top(parts: Sequence[TopComparisons], count: int) -> TopComparisons:
    """Merges the top comparisons of all parts of a table, and keeps `count` of them."""
    every = (found._replace(row=(number, found.row)) for number, part in enumerate(parts) for found in part.ranked)
    ranked = heapq.nsmallest(count, every, key=itemgetter(0))
    return TopComparisons(ranked, sum(part.seen for part in parts), sum(part.skipped for part in parts))


class Passes(Protocol):
    """Protocol of the passes of a selection over a table."""

    def values(self, name: str, bounds: Bounds) -> CountPass:
        """Returns a pass that counts the values of a quantile threshold."""

    def cases(self) -> Cases:
        """Counts cases, see `false_discovery.kendall_cases`."""

    def moments(self) -> design.Moments:
        """Sums the moments of gaps, see `design.gap_moments`."""

    def top(self, bounds: Bounds, count: int) -> TopComparisons:
        """Returns the strategy's top comparisons under these thresholds."""

    def drawn(self, count: int) -> TopComparisons:
        """Returns random pairs of the prompts that the strategy can use."""


class RowPasses:
    """Passes over rows in this process.

    Args:
        rows: an iterable that each pass reads from the beginning.
        config: settings of the selection.
        seed: used if `config.seed` is None.
    """

    def __init__(self, rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed if config.seed is None else config.seed
        self.strategy = STRATEGIES[config.strategy]
        self.usable = UsableRows(rows, config.strategy, self.strategy, config.group_columns())

    def values(self, name: str, bounds: Bounds) -> CountPass:
        """Returns a counting pass, see `Passes`."""
        return count_row_values(self.usable, self.strategy.bounds[name], bounds)

    def cases(self) -> Cases:
        """Counts cases, see `Passes`."""
        return kendall_cases(self.usable)

    def moments(self) -> design.Moments:
        """Sums moments, see `Passes`."""
        return design.gap_moments(self.usable, self.config.group_by)

    def top(self, bounds: Bounds, count: int) -> TopComparisons:
        """Returns the top comparisons, see `Passes`."""
        settings = {name: getattr(self.config, name) for name in self.strategy.settings}
        return self._smallest(partial(self.strategy.comparisons, **settings), bounds, count)

    def drawn(self, count: int) -> TopComparisons:
        """Returns random pairs, see `Passes`."""
        return self._smallest(random_pairs, {}, count)

    def _smallest(self, comparisons_of: Callable[..., Any], bounds: Bounds, count: int) -> TopComparisons:
        """Returns the comparisons of smallest priority over all rows, without those of equal texts."""
        spread, group_by = self.config.diversity != "none", self.config.group_by

        def ranked() -> Iterator[Ranked]:
            for number, row in enumerate(self.usable):
                texts = row.get("completions")
                scores = design.Scores.of_row(row, group_by) if self.strategy.design else None
                for priority, c in comparisons_of(row, bounds, self.seed):
                    if texts is None or texts[c.first] != texts[c.second]:
                        source = diversity.embedding_source(row, c) if spread else None
                        yield Ranked(priority, c, number, source, scores)

        best = heapq.nsmallest(count, ranked(), key=itemgetter(0))
        return TopComparisons(best, self.usable.seen, self.usable.skipped)
