"""Judge the selected comparisons with a gold reward or a language model: preferences in TRL's format.

`feedback export RUN --out FILE` writes a run's queue and answers for another tool, `feedback import RUN FILE ...` reads
the answers back.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.cli._exchange import INPUTS, INPUTS_HELP, ExchangeConfig, exchange
from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import write_preferences
from shfcas.feedback import read_queue
from shfcas.feedback.gold import GoldFeedback
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.rewards.scorers import load_scorer
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError
from shfcas.utils.files import remove, write_json

__all__ = ["INPUTS", "INPUTS_HELP", "Config", "run"]


@dataclass
class Config(ExchangeConfig):
    """`shfcas feedback`."""

    input: str = option("conflicts.parquet", "the candidate table that the queue was made from")
    queue: str = option("queue.jsonl", "the queue of comparisons")
    source: str = option("gold", "who answers", ("gold", "judge"))
    gold: str | None = option(None, "source gold: the gold reward, a model, or module:function")
    judge: JudgeConfig = option(JudgeConfig, "source judge: the language model")
    output: str = option("preferences.jsonl", "the preferences to write")
    report: str = option("judge.json", "source judge: counts and costs, beside the preferences")
    round: int = option(1, "recorded with each preference")


def run(config: Config) -> dict[str, Any]:
    """Judges and writes the preferences, or exchanges a run's answers with another tool."""
    if config.action:
        return exchange(config)
    if config.out is not None:
        raise UsageError("out is for export RUN; output names the preferences to write")
    return (_judge if config.source == "judge" else _gold)(config)


def _gold(config: Config) -> dict[str, Any]:
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


def _judge(config: Config) -> dict[str, Any]:
    """An interrupted call leaves its verdicts in a hidden folder beside the output; the next one continues there."""
    output = Path(config.output)
    work_dir = output.with_name(f".{output.name}.work")
    judge = JudgeFeedback(config.judge, work_dir / "judge.jsonl")
    preferences = judge(read_queue(config.queue), read_candidates(config.input), config.round)
    write_preferences(output, preferences)
    write_json(output.parent / config.report, judge.report)
    remove(work_dir)
    return {**judge.report, "output": config.output}
