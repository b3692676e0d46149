"""The label budget: the most wanted comparisons of a table, in constant memory."""

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from shfcas.errors import UserError
from shfcas.selection import diversity
from shfcas.selection.false_discovery import AUTO, LARGEST, kendall_report
from shfcas.selection.protocol import ALWAYS, Bounds, Comparison, Row, Strategy, check_columns, is_usable
from shfcas.selection.settings import SelectionConfig
from shfcas.selection.strategies import STRATEGIES
from shfcas.selection.thresholds import in_chunks, threshold

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """What was chosen, and how.

    Attributes:
        comparisons: most wanted first.
        report: `strategy`; `prompts` gone through, `degenerate` ones among them; `bounds`, the thresholds as numbers;
            and with `kendall_threshold: auto` what `kendall_report` says, under `kendall`.
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
    bounds, report = _bounds(rows, config, strategy)
    comparisons_of = strategy.comparisons
    if strategy.settings:
        comparisons_of = partial(comparisons_of, **{name: getattr(config, name) for name in strategy.settings})
    spread = config.diversity != "none"
    seen = degenerate = 0

    def ranked() -> Iterator[tuple[Any, Comparison, Any]]:
        nonlocal seen, degenerate
        for row in _checked(rows, config.strategy, strategy):
            seen += 1
            if not is_usable(row, strategy.needs):
                degenerate += 1
                continue
            texts = row.get("completions")
            for priority, c in comparisons_of(row, bounds, seed):
                if texts is None or texts[c.first] != texts[c.second]:
                    yield priority, c, diversity.source(row, c) if spread else None

    pool = config.budget * (config.diversity_pool if spread else 1)
    best = heapq.nsmallest(pool, ranked(), key=lambda item: item[0])
    if not best:
        raise UserError(
            f"strategy {config.strategy} selected nothing from {seen} prompts ({degenerate} of them degenerate: "
            "all rewards or all log-probabilities equal, or not a number); lower the thresholds"
        )
    if spread:
        places = diversity.places([where for _, _, where in best])
        best = [best[position] for position in diversity.k_centre(places, config.budget)]
    report = {"strategy": config.strategy, "prompts": seen, "degenerate": degenerate, "bounds": bounds, **report}
    return Selection([comparison for _, comparison, _ in best], report)


def columns_to_read(config: SelectionConfig, present: Iterable[str]) -> list[str]:
    """The columns of a table that a selection reads.

    Raises:
        UserError: one is missing; the message says how to get it.
    """
    strategy, present = STRATEGIES[config.strategy], set(present)
    needed = (*ALWAYS, *strategy.needs)
    check_columns(needed, present, config.strategy)
    wanted = [*needed, "completions"]
    if config.diversity != "none":
        wanted += [name for name in diversity.COLUMNS if name in present][:1]
    return [name for name in dict.fromkeys(wanted) if name in present]


def _checked(rows: Iterable[Row], name: str, strategy: Strategy) -> Iterator[Row]:
    """The rows; a column that one of them lacks is named."""
    needed = (*ALWAYS, *strategy.needs)
    for row in rows:
        for column in needed:
            if row.get(column) is None:
                check_columns(needed, (key for key, value in row.items() if value is not None), name)
        yield row


def _values(
    rows: Callable[[], Iterable[Row]], values: Callable[[Row, Bounds], Iterable[float]], bounds: Bounds
) -> Iterator[float]:
    return (value for row in rows() for value in values(row, bounds))


def _bounds(rows: Iterable[Row], config: SelectionConfig, strategy: Strategy) -> tuple[Bounds, dict[str, Any]]:
    """The strategy's thresholds as numbers, each from those before it, and what is to be said about them."""
    bounds: Bounds = {}
    report: dict[str, Any] = {}

    def usable() -> Iterator[Row]:
        checked = _checked(rows, config.strategy, strategy)
        return (row for row in checked if is_usable(row, strategy.needs))

    for name, values in strategy.bounds.items():
        text = getattr(config, name)
        if str(text).strip() == AUTO:
            report["kendall"] = found = kendall_report(usable(), config.false_discovery_rate)
            if not found["chosen"]:
                raise UserError(
                    f"kendall_threshold auto: none of {found['prompts']} prompts disagrees more than chance at a "
                    f"false-discovery rate of {config.false_discovery_rate:g} (smallest p-value "
                    f"{found['smallest_pvalue']:.2g}); raise false_discovery_rate, sample more answers a prompt, or "
                    "give a number or a quantile"
                )
            bounds[LARGEST] = found["largest_pvalue"]
            logger.info(
                "kendall_threshold auto: %d of %d prompts disagree more than chance, expected false-discovery rate "
                "%.3g (at most %g); least Kendall distance by number of answers: %s",
                found["chosen"],
                found["prompts"],
                found["expected_false_discovery_rate"],
                config.false_discovery_rate,
                ", ".join(f"{n}: {distance:.3f}" for n, distance in found["distances"].items()),
            )
        else:
            bounds[name] = threshold(text, in_chunks(partial(_values, usable, values, bounds)))
    return bounds, report
