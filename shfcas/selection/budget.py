"""Label budget: the top comparisons of a table by priority, in constant memory."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from shfcas.selection import diversity
from shfcas.selection.config import SelectionConfig
from shfcas.selection.false_discovery import AUTO, Cases, kendall_bound, kendall_cases
from shfcas.selection.protocol import Bounds, Comparison, Row
from shfcas.selection.shortfall import reason, shortfall
from shfcas.selection.strategies import STRATEGIES
from shfcas.selection.thresholds import count_row_values, threshold
from shfcas.selection.usable import ALWAYS, UsableRows, check_columns
from shfcas.utils.errors import NothingSelected, UserError
from shfcas.utils.quantiles import CountPass


@dataclass(frozen=True)
class Selection:
    """Selected comparisons and a report about the selection.

    Attributes:
        comparisons: in order of priority.
        report: `strategy`; the numbers of `prompts` and of `degenerate` prompts; `bounds`, the thresholds as numbers;
            and with `kendall_threshold: auto` also `kendall`, see `false_discovery.kendall_report`; and
            `shortfall`, why there are fewer comparisons than the budget, or None.
    """

    comparisons: list[Comparison]
    report: dict[str, Any]


def select(rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> list[Comparison]:
    """Selects comparisons to label, in order of priority, at most `config.budget`.

    Answers with the same text are never compared.

    Args:
        rows: one dictionary per prompt, with `prompt_id`, the columns that the strategy needs and, to detect equal
            texts, `completions`. They are read once, twice more for each quantile threshold (up to four times for
            millions of rows), and once more for the threshold `auto`.
        config: strategy, budget, thresholds, pairing and diversity.
        seed: used if `config.seed` is None.

    Raises:
        UserError: a column is missing, or selected comparisons belong to two rows with the same prompt id.
        NothingSelected: nothing passes the thresholds.
    """
    return select_with_report(rows, config, seed).comparisons


def select_with_report(rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> Selection:
    """Selects like `select`, and reports the thresholds."""
    return choose(RowPasses(rows, config, seed), config)


class TopComparisons(NamedTuple):
    """The top comparisons of some rows.

    Attributes:
        ranked: priority, comparison, source of its embedding (with diversity), and an identifier of its row; in order
            of priority.
        seen: number of rows read.
        skipped: number of these rows that were not usable.
    """

    ranked: list[tuple[Any, Comparison, Any, Any]]
    seen: int
    skipped: int


def merge_top(parts: Sequence[TopComparisons], config: SelectionConfig) -> TopComparisons:
    """Merges the top comparisons of all parts of a table."""
    every = ((*found[:3], (number, found[3])) for number, part in enumerate(parts) for found in part.ranked)
    ranked = heapq.nsmallest(_pool(config), every, key=itemgetter(0))
    return TopComparisons(ranked, sum(part.seen for part in parts), sum(part.skipped for part in parts))


class Passes(Protocol):
    """Protocol of the passes of a selection over a table; results of parts of a table can be merged."""

    def values(self, name: str, bounds: Bounds) -> CountPass:
        """Returns a pass that counts the values of a quantile threshold."""

    def cases(self) -> Cases:
        """Counts cases, see `false_discovery.kendall_cases`."""

    def top(self, bounds: Bounds) -> TopComparisons:
        """Returns the top comparisons under these thresholds."""


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
        self.usable = UsableRows(rows, config.strategy, self.strategy)

    def values(self, name: str, bounds: Bounds) -> CountPass:
        """Returns a counting pass, see `Passes`."""
        return count_row_values(self.usable, self.strategy.bounds[name], bounds)

    def cases(self) -> Cases:
        """Counts cases, see `Passes`."""
        return kendall_cases(self.usable)

    def top(self, bounds: Bounds) -> TopComparisons:
        """Returns the top comparisons, see `Passes`."""
        config, spread = self.config, self.config.diversity != "none"
        comparisons_of = self.strategy.comparisons
        if self.strategy.settings:
            settings = {name: getattr(config, name) for name in self.strategy.settings}
            comparisons_of = partial(comparisons_of, **settings)

        def ranked() -> Iterator[tuple[Any, Comparison, Any, Any]]:
            for number, row in enumerate(self.usable):
                texts = row.get("completions")
                for priority, c in comparisons_of(row, bounds, self.seed):
                    if texts is None or texts[c.first] != texts[c.second]:
                        yield priority, c, diversity.embedding_source(row, c) if spread else None, number

        best = heapq.nsmallest(_pool(config), ranked(), key=itemgetter(0))
        return TopComparisons(best, self.usable.seen, self.usable.skipped)


def choose(passes: Passes, config: SelectionConfig) -> Selection:
    """Computes the thresholds, then selects the top comparisons.

    Raises:
        UserError: see `select`.
    """
    bounds, report = _bounds(passes, config)
    best, seen, skipped = passes.top(bounds)
    if not best:
        raise NothingSelected(
            f"strategy {config.strategy} selected nothing from {seen} prompts ({skipped} of them degenerate): "
            f"{reason(seen, skipped, config)}"
        )
    rows: dict[str, Any] = {}
    for _, comparison, _, row in best:
        if rows.setdefault(comparison.prompt_id, row) != row:
            raise UserError(
                f"prompt id {comparison.prompt_id!r}: expected one row, got two, so its answers are ambiguous; "
                "use unique prompt ids across files"
            )
    if config.diversity != "none":
        vectors = diversity.embed([source for _, _, source, _ in best])
        best = [best[position] for position in diversity.k_centre(vectors, config.budget)]
    about = {"strategy": config.strategy, "prompts": seen, "degenerate": skipped, "bounds": bounds}
    about["shortfall"] = shortfall(len(best), seen, skipped, config)
    return Selection([comparison for _, comparison, *_ in best], about | report)


def columns_to_read(config: SelectionConfig, present: Iterable[str]) -> list[str]:
    """Returns the columns of a table that a selection reads.

    Raises:
        UserError: a column is missing; the message names the command that adds it.
    """
    present = list(present)
    needed = (*ALWAYS, *STRATEGIES[config.strategy].needs)
    check_columns(config.strategy, needed, present)
    further = ["completions"]
    if config.diversity != "none":
        further += [name for name in diversity.COLUMNS if name in present][:1]
    return [*dict.fromkeys((*needed, *(name for name in further if name in present)))]


def _pool(config: SelectionConfig) -> int:
    """Returns the number of top comparisons to keep, from which diversity selects."""
    return config.budget * (config.diversity_pool if config.diversity != "none" else 1)


def _bounds(passes: Passes, config: SelectionConfig) -> tuple[Bounds, dict[str, Any]]:
    """Returns the strategy's thresholds as numbers, each computed from the earlier ones, and a report about them."""
    bounds: Bounds = {}
    report: dict[str, Any] = {}
    for name in STRATEGIES[config.strategy].bounds:
        text = getattr(config, name)
        if str(text).strip() == AUTO:
            bound, report["kendall"] = kendall_bound(passes.cases(), config.false_discovery_rate)
            bounds |= bound
        else:
            bounds[name] = threshold(text, passes.values(name, bounds))
    return bounds, report
