"""The label budget: the most wanted comparisons of a table, in constant memory."""

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
from shfcas.selection.thresholds import counted_rows, threshold
from shfcas.selection.usable import ALWAYS, UsableRows, check_columns
from shfcas.utils.errors import NothingSelected, UserError
from shfcas.utils.quantiles import Counted


@dataclass(frozen=True)
class Selection:
    """What was chosen, and how.

    Attributes:
        comparisons: most wanted first.
        report: `strategy`; `prompts` gone through, `degenerate` ones among them; `bounds`, the thresholds as numbers;
            with `kendall_threshold: auto` also `kendall`, as `false_discovery.kendall_report` has it; and
            `shortfall`, why there are fewer comparisons than the budget, or None.
    """

    comparisons: list[Comparison]
    report: dict[str, Any]


def select(rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> list[Comparison]:
    """The comparisons to ask for, most wanted first, at most `config.budget` of them.

    Answers with the same text are never compared.

    Args:
        rows: one dictionary a prompt, with `prompt_id`, the columns that the strategy needs and, if texts are to be
            compared, `completions`. They are gone through once, twice more for each threshold that is a quantile
            (up to four times if there are millions), and once more for one that is `auto`.
        config: strategy, budget, thresholds, pairing and diversity.
        seed: used where `config.seed` is None.

    Raises:
        UserError: a column is missing, or two rows of one prompt id are to be asked about.
        NothingSelected: nothing passes the thresholds.
    """
    return select_with_report(rows, config, seed).comparisons


def select_with_report(rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> Selection:
    """As `select`, and what the thresholds were."""
    return choose(RowPasses(rows, config, seed), config)


class Wanted(NamedTuple):
    """The most wanted comparisons of some rows.

    Attributes:
        ranked: priority, comparison, what its place is made of where there is diversity, and what tells its row from
            others; most wanted first.
        seen: rows gone through.
        skipped: of these, those that were not usable.
    """

    ranked: list[tuple[Any, Comparison, Any, Any]]
    seen: int
    skipped: int


def most_wanted(parts: Sequence[Wanted], config: SelectionConfig) -> Wanted:
    """The most wanted comparisons of all parts of a table together."""
    every = ((*found[:3], (number, found[3])) for number, part in enumerate(parts) for found in part.ranked)
    ranked = heapq.nsmallest(_pool(config), every, key=itemgetter(0))
    return Wanted(ranked, sum(part.seen for part in parts), sum(part.skipped for part in parts))


class Passes(Protocol):
    """The ways in which a selection goes through a table; what each gives adds up over parts of the table."""

    def values(self, name: str, bounds: Bounds) -> Counted:
        """Counts the values that the threshold of this name is a quantile of."""

    def cases(self) -> Cases:
        """See `false_discovery.kendall_cases`."""

    def wanted(self, bounds: Bounds) -> Wanted:
        """The most wanted comparisons under these thresholds."""


class RowPasses:
    """The passes over rows that this process has.

    Args:
        rows: gone through anew with each pass.
        config: what is asked for.
        seed: used where `config.seed` is None.
    """

    def __init__(self, rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed if config.seed is None else config.seed
        self.strategy = STRATEGIES[config.strategy]
        self.usable = UsableRows(rows, config.strategy, self.strategy)

    def values(self, name: str, bounds: Bounds) -> Counted:
        """See `Passes`."""
        return counted_rows(self.usable, self.strategy.bounds[name], bounds)

    def cases(self) -> Cases:
        """See `Passes`."""
        return kendall_cases(self.usable)

    def wanted(self, bounds: Bounds) -> Wanted:
        """See `Passes`."""
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
                        yield priority, c, diversity.source(row, c) if spread else None, number

        best = heapq.nsmallest(_pool(config), ranked(), key=itemgetter(0))
        return Wanted(best, self.usable.seen, self.usable.skipped)


def choose(passes: Passes, config: SelectionConfig) -> Selection:
    """Finds the thresholds, then the most wanted comparisons, in as many passes as that takes.

    Raises:
        UserError: see `select`.
    """
    bounds, report = _bounds(passes, config)
    best, seen, skipped = passes.wanted(bounds)
    if not best:
        raise NothingSelected(
            f"strategy {config.strategy} selected nothing from {seen} prompts ({skipped} of them degenerate): "
            f"{reason(seen, skipped, config)}"
        )
    rows: dict[str, Any] = {}
    for _, comparison, _, row in best:
        if rows.setdefault(comparison.prompt_id, row) != row:
            raise UserError(
                f"prompt id {comparison.prompt_id!r} stands for two rows, so nobody can tell which answers are meant; "
                "give the prompts of each file ids of their own"
            )
    if config.diversity != "none":
        places = diversity.places([where for _, _, where, _ in best])
        best = [best[position] for position in diversity.k_centre(places, config.budget)]
    about = {"strategy": config.strategy, "prompts": seen, "degenerate": skipped, "bounds": bounds}
    about["shortfall"] = shortfall(len(best), seen, skipped, config)
    return Selection([comparison for _, comparison, *_ in best], about | report)


def columns_to_read(config: SelectionConfig, present: Iterable[str]) -> list[str]:
    """The columns of a table that a selection reads.

    Raises:
        UserError: one is missing; the message says how to get it.
    """
    present = list(present)
    needed = (*ALWAYS, *STRATEGIES[config.strategy].needs)
    check_columns(config.strategy, needed, present)
    further = ["completions"]
    if config.diversity != "none":
        further += [name for name in diversity.COLUMNS if name in present][:1]
    return [*dict.fromkeys((*needed, *(name for name in further if name in present)))]


def _pool(config: SelectionConfig) -> int:
    """How many comparisons are kept, for diversity to choose from."""
    return config.budget * (config.diversity_pool if config.diversity != "none" else 1)


def _bounds(passes: Passes, config: SelectionConfig) -> tuple[Bounds, dict[str, Any]]:
    """The strategy's thresholds as numbers, each from those before it, and what is to be said about them."""
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
