"""Label budget: the top comparisons of a table by priority, in constant memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shfcas.selection import design, diversity
from shfcas.selection.audit import audit_count, interleave
from shfcas.selection.config import SelectionConfig
from shfcas.selection.false_discovery import AUTO, kendall_bound
from shfcas.selection.passes import Passes, Ranked, RowPasses
from shfcas.selection.protocol import Bounds, Comparison, Row
from shfcas.selection.shortfall import reason, shortfall
from shfcas.selection.strategies import STRATEGIES
from shfcas.selection.thresholds import threshold
from shfcas.selection.usable import ALWAYS, check_columns
from shfcas.utils.errors import NothingSelected, UserError


@dataclass(frozen=True)
class Selection:
    """Selected comparisons and a report about the selection.

    Attributes:
        comparisons: in order of priority.
        report: `strategy`; the numbers of `prompts` and of `degenerate` prompts; `bounds`, the thresholds as numbers;
            with an audit also `audits`, the number of its comparisons; with `kendall_threshold: auto` also `kendall`,
            see `false_discovery.kendall_report`; and `shortfall`, why there are fewer comparisons than the budget, or
            None.
    """

    comparisons: list[Comparison]
    report: dict[str, Any]


def select(rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> list[Comparison]:
    """Selects comparisons to label, in order of priority, at most `config.budget`.

    Answers with the same text are never compared.

    Args:
        rows: one dictionary per prompt, with `prompt_id`, the columns that the strategy needs and, to detect equal
            texts, `completions`. They are read once, twice more for each quantile threshold (up to four times for
            millions of rows), and once more for each of: the threshold `auto`, an audit; twice more for `arbiter`.
        config: strategy, budget, audit, thresholds, pairing and diversity.
        seed: used if `config.seed` is None.

    Raises:
        UserError: a column is missing, or selected comparisons belong to two rows with the same prompt id.
        NothingSelected: nothing passes the thresholds.
    """
    return select_with_report(rows, config, seed).comparisons


def select_with_report(rows: Iterable[Row], config: SelectionConfig, seed: int = 0) -> Selection:
    """Selects like `select`, and reports the thresholds."""
    return choose(RowPasses(rows, config, seed), config)


def choose(passes: Passes, config: SelectionConfig) -> Selection:
    """Computes the thresholds, then selects the random pairs of the audit and the top comparisons of the strategy.

    Raises:
        UserError: see `select`.
    """
    if STRATEGIES[config.strategy].sequential:
        raise UserError(
            f"strategy {config.strategy} decides by the labels so far, and a table has none: use it in shfcas run, or "
            "select with strategy arbiter"
        )
    bounds, report = _bounds(passes, config)
    audits = audit_count(config.budget, config.audit_share)
    count = config.budget - audits
    wanted = count * (config.diversity_pool if config.diversity != "none" else 1)
    designed = STRATEGIES[config.strategy].design
    half = max(config.arbiter_pool // 2, wanted) if designed else 0
    top = passes.top(bounds, max(half, wanted) + audits)  # the audit may take some of them away
    drawn = passes.drawn(audits + half).ranked if audits or designed else []
    audit = drawn[:audits]
    taken = {found.comparison.pair for found in audit}
    best = [found for found in top.ranked if found.comparison.pair not in taken][: max(half, wanted)]
    if best and designed:
        best = _designed([*drawn[audits:], *best], passes.moments(), wanted)
    if not best and not audit:
        raise NothingSelected(
            f"strategy {config.strategy} selected nothing from {top.seen} prompts ({top.skipped} of them degenerate): "
            f"{reason(top.seen, top.skipped, config)}"
        )
    _check_prompt_ids([*audit, *best])
    if best and config.diversity != "none":
        vectors = diversity.embed([found.source for found in best])
        best = [best[position] for position in diversity.k_centre(vectors, count)]
    comparisons = interleave([found.comparison for found in audit], [found.comparison for found in best])
    about = {"strategy": config.strategy, "prompts": top.seen, "degenerate": top.skipped, "bounds": bounds}
    if audits:
        about["audits"] = len(audit)
    about["shortfall"] = shortfall(len(comparisons), top.seen, top.skipped, config)
    return Selection(comparisons, about | report)


def _designed(pool: Iterable[Ranked], moments: design.Moments, count: int) -> list[Ranked]:
    """Chooses from the strategy's top comparisons and random pairs, which may have some in common."""
    candidates = [*{found.comparison.pair: found for found in pool}.values()]
    gaps = [(c.comparison.prompt_id, c.scores.gaps(c.comparison)) for c in candidates if c.scores]
    chosen = design.best_design(gaps, moments, count)
    return [candidates[position] for position in chosen]


def _check_prompt_ids(found: Iterable[Ranked]) -> None:
    """Checks that no two rows with the same prompt id were selected from."""
    rows: dict[str, Any] = {}
    for comparison, row in ((each.comparison, each.row) for each in found):
        if rows.setdefault(comparison.prompt_id, row) != row:
            raise UserError(
                f"prompt id {comparison.prompt_id!r}: expected one row, got two, so its answers are ambiguous; "
                "use unique prompt ids across files"
            )


def columns_to_read(config: SelectionConfig, present: Iterable[str]) -> list[str]:
    """Returns the columns of a table that a selection reads.

    Raises:
        UserError: a column is missing; the message names the command that adds it.
    """
    present = list(present)
    needed = (*ALWAYS, *STRATEGIES[config.strategy].needs, *config.group_columns())
    check_columns(config.strategy, needed, present)
    further = ["completions"]
    if config.diversity != "none":
        further += [name for name in diversity.COLUMNS if name in present][:1]
    return [*dict.fromkeys((*needed, *(name for name in further if name in present)))]


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
