"""Why a selection is smaller than its budget, and what helps."""

from shfcas.selection.config import SelectionConfig
from shfcas.selection.false_discovery import AUTO
from shfcas.selection.strategies import STRATEGIES
from shfcas.selection.thresholds import parse_threshold


def shortfall(count: int, prompts: int, degenerate: int, config: SelectionConfig) -> str | None:
    """Explains on one line why fewer comparisons than the budget were selected; None if there are enough.

    Args:
        count: selected comparisons.
        prompts: prompts in the table.
        degenerate: of these, those whose conflict means nothing.
        config: strategy, budget and thresholds.
    """
    if count >= config.budget:
        return None
    return f"{count:,} of {config.budget:,} comparisons: {reason(prompts, degenerate, config)}"


def reason(prompts: int, degenerate: int, config: SelectionConfig) -> str:
    """Names the cause of a shortfall with the remedy that fits it; see `shortfall`."""
    equal = "all rewards or all log-probabilities equal, a value not a number, or one answer"
    if degenerate and degenerate == prompts:
        return (
            f"every prompt is degenerate ({equal}), so lower thresholds do not help; check the reward model, or sample "
            "answers that differ more"
        )
    texts = {name: str(getattr(config, name)).strip() for name in STRATEGIES[config.strategy].bounds}
    tight = {name: text for name, text in texts.items() if text == AUTO or parse_threshold(text)[0] > 0}
    note = f"; {degenerate:,} of {prompts:,} prompts are degenerate ({equal})" if degenerate else ""
    if tight:
        named = " and ".join(f"{name} {text}" for name, text in tight.items())
        remedy = "lower the thresholds" if len(tight) > 1 else "lower the threshold"
        more = ", or raise false_discovery_rate" if AUTO in tight.values() else ""
        return f"{named} leave no more; {remedy}{more}{note}"
    return f"the table has no more pairs of different answers; sample more answers per prompt, or add prompts{note}"
