"""The label budget: the most wanted comparisons of a table, in constant memory."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from shfcas.errors import UserError
from shfcas.selection import diversity
from shfcas.selection.false_discovery import AUTO, kendall_bound
from shfcas.selection.protocol import Bounds, Comparison, Row
from shfcas.selection.settings import SelectionConfig
from shfcas.selection.strategies import STRATEGIES
from shfcas.selection.thresholds import in_chunks, threshold
from shfcas.selection.usable import ALWAYS, UsableRows, check_columns


@dataclass(frozen=True)
class Selection:
    """What was chosen, and how.

    Attributes:
        comparisons: most wanted first.
        report: `strategy`; `prompts` gone through, `degenerate` ones among them; `bounds`, the thresholds as numbers;
            and with `kendall_threshold: auto` also `kendall`, as `false_discovery.kendall_report` has it.
    """

    comparisons: list[Comparison]
    report: dict[str, Any]


def select(rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> list[Comparison]:
    """The comparisons to ask for, most wanted first, at most `config.budget` of them.

    Answers with the same text are never compared.

    Args:
        rows: one dictionary a prompt, with `prompt_id`, the columns that the strategy needs and, if texts are to be
            compared, `completions`. They are gone through once, twice more for each threshold that is a quantile,
            and once more for one that is `auto`.
        config: strategy, budget, thresholds, pairing and diversity.
        seed: used where `config.seed` is None.

    Raises:
        UserError: a column is missing, or nothing passes the thresholds.
    """
    return select_with_report(rows, config, seed).comparisons


def select_with_report(rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> Selection:
    """As `select`, and what the thresholds were."""
    strategy, seed = STRATEGIES[config.strategy], seed if config.seed is None else config.seed
    usable = UsableRows(rows, config.strategy, strategy)
    bounds, report = _bounds(usable, config)
    comparisons_of = strategy.comparisons
    if strategy.settings:
        comparisons_of = partial(comparisons_of, **{name: getattr(config, name) for name in strategy.settings})
    spread = config.diversity != "none"

    def ranked() -> Iterator[tuple[Any, Comparison, Any]]:
        for row in usable:
            texts = row.get("completions")
            for priority, c in comparisons_of(row, bounds, seed):
                if texts is None or texts[c.first] != texts[c.second]:
                    yield priority, c, diversity.source(row, c) if spread else None

    pool = config.budget * (config.diversity_pool if spread else 1)
    best = heapq.nsmallest(pool, ranked(), key=itemgetter(0))
    if not best:
        raise UserError(
            f"strategy {config.strategy} selected nothing from {usable.seen} prompts ({usable.skipped} of them "
            "degenerate: all rewards or all log-probabilities equal, or not a number); lower the thresholds"
        )
    if spread:
        places = diversity.places([where for _, _, where in best])
        best = [best[position] for position in diversity.k_centre(places, config.budget)]
    about = {"strategy": config.strategy, "prompts": usable.seen, "degenerate": usable.skipped, "bounds": bounds}
    return Selection([comparison for _, comparison, _ in best], about | report)


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


def _bounds(usable: UsableRows, config: SelectionConfig) -> tuple[Bounds, dict[str, Any]]:
    """The strategy's thresholds as numbers, each from those before it, and what is to be said about them."""
    bounds: Bounds = {}
    report: dict[str, Any] = {}
    for name, values in STRATEGIES[config.strategy].bounds.items():
        text = getattr(config, name)
        if str(text).strip() == AUTO:
            bound, report["kendall"] = kendall_bound(usable, config.false_discovery_rate)
            bounds |= bound
        else:
            bounds[name] = threshold(text, in_chunks(usable, values, bounds))
    return bounds, report
