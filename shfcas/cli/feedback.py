"""Judge the selected comparisons with a gold reward: preferences in TRL's format.

`feedback export RUN --out FILE` writes a run's queue and answers for another tool, `feedback import RUN FILE ...` reads
the answers back.
"""

from dataclasses import dataclass
from typing import Any

from shfcas.candidates import read_candidates
from shfcas.cli._exchange import INPUTS, INPUTS_HELP, ExchangeConfig, exchange
from shfcas.config import option
from shfcas.errors import UsageError
from shfcas.feedback import read_queue
from shfcas.feedback.gold import GoldFeedback
from shfcas.preferences import write_preferences
from shfcas.scoring import load_scorer

__all__ = ["INPUTS", "INPUTS_HELP", "Config", "run"]


@dataclass
class Config(ExchangeConfig):
    """`shfcas feedback`."""

    input: str = option("conflicts.parquet", "the candidate table that the queue was made from")
    queue: str = option("queue.jsonl", "the queue of comparisons")
    gold: str | None = option(None, "the gold reward: a model, or module:function")
    output: str = option("preferences.jsonl", "the preferences to write")
    round: int = option(1, "recorded with each preference")


def run(config: Config) -> dict[str, Any]:
    """Judges and writes the preferences; or exports or imports answers."""
    if config.action:
        return exchange(config)
    if config.out is not None:
        raise UsageError("out is for export RUN; output names the preferences to write")
    if not config.gold:
        raise UsageError("missing: gold")
    comparisons = read_queue(config.queue)
    judge = GoldFeedback(load_scorer(config.gold), config.gold)
    preferences = judge(comparisons, read_candidates(config.input), config.round)
    write_preferences(config.output, preferences)
    return {
        "comparisons": len(comparisons),
        "preferences": len(preferences),
        "ties": len(comparisons) - len(preferences),
        "output": config.output,
    }
