"""Judge the selected comparisons with a gold reward: preferences in TRL's format."""

from dataclasses import dataclass
from typing import Any

from shfcas.candidates import read_candidates
from shfcas.config import option
from shfcas.feedback import read_queue
from shfcas.feedback.gold import GoldFeedback
from shfcas.preferences import write_preferences
from shfcas.scoring import load_scorer


@dataclass
class Config:
    """`shfcas feedback`."""

    input: str = option("conflicts.parquet", "the candidate table that the queue was made from")
    queue: str = option("queue.jsonl", "the queue of comparisons")
    gold: str = option("", "the gold reward: a model, or module:function")
    output: str = option("preferences.jsonl", "the preferences to write")
    round: int = option(1, "recorded with each preference")


def run(config: Config) -> dict[str, Any]:
    """Judges and writes the preferences."""
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
