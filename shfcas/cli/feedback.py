"""Label the selected comparisons with a gold reward, a language model or people; writes preferences in TRL's format.

`feedback export RUN --out FILE` writes a run's queue and labels for another tool. `feedback import RUN FILE ...` reads
the labels back. `feedback backup RUN FILE` copies the database of labels, also while its page is open.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.cli._cards import push_preferences
from shfcas.cli._exchange import INPUTS, INPUTS_HELP, ExchangeConfig, exchange
from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import read_preferences, write_preferences
from shfcas.feedback import read_queue
from shfcas.feedback.annotation.config import settings_of_run
from shfcas.feedback.folder import FOLDER, SEED, add_queue_file
from shfcas.feedback.gold import GoldFeedback
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.hub.cards import Row, shown
from shfcas.hub.upload import HubOptions
from shfcas.rewards.scorers import load_scorer
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError
from shfcas.utils.files import work_folder, write_json

__all__ = ["INPUTS", "INPUTS_HELP", "Config", "run"]


@dataclass
class Config(HubOptions, ExchangeConfig):
    """`shfcas feedback`."""

    input: str = option("conflicts.parquet", "candidate table that the queue was selected from", common=True)
    queue: str = option("queue.jsonl", "queue of comparisons", common=True)
    source: str = option(
        "gold", "who labels: a gold reward, a language model, or people", ("gold", "judge", "human"), common=True
    )
    gold: str | None = option(None, "source gold: a model, or module:function (none: no gold reward)", common=True)
    judge: JudgeConfig = option(JudgeConfig, "source judge: the language model", common=True)
    folder: str = option(FOLDER, "source human: folder of the labels, as in shfcas annotate --output")
    output: str = option("preferences.jsonl", "file of preferences to write", common=True)
    report: str = option("judge.json", "source judge: file of counts and costs, beside the preferences")
    round: int = option(1, "round to record with each preference", ge=0)


def run(config: Config) -> dict[str, Any]:
    """Labels and writes the preferences, or exchanges a run's labels with another tool."""
    if config.action:
        return exchange(config)
    if config.out is not None:
        raise UsageError("out: expected export RUN before it; name the preferences to write with --output")
    config.check_hub()
    result = SOURCES[config.source](config)
    if config.push_to_hub:
        about = "Labels on pairs of answers to the same prompt."
        data: list[Row] = [
            ("labelled by", config.source),
            ("queue", shown(config.queue)),
            ("comparisons", len(read_queue(config.queue))),
        ]
        push_preferences(config, read_preferences(config.output), about=about, data=data, seed=None)
    return result


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
    """Labels with a language model; a hidden folder beside the output keeps the verdicts until all are there."""
    output = Path(config.output)
    with work_folder(output) as work_dir:
        judge = JudgeFeedback(config.judge, work_dir / "judge.jsonl")
        preferences = judge(read_queue(config.queue), read_candidates(config.input), config.round)
        write_preferences(output, preferences)
        write_json(output.parent / config.report, judge.report)
    return {**judge.report, "output": config.output}


def _human(config: Config) -> dict[str, Any]:
    """Waits until people have labelled, on a page of this process or of `shfcas annotate`."""
    folder = Path(config.folder)
    settings = settings_of_run(folder)  # of shfcas annotate, or the defaults
    HumanFeedback.check(settings)
    name = add_queue_file(folder, config.queue, config.input, config.round)
    comparisons = read_queue(config.queue)
    label = HumanFeedback(folder, name, settings=settings, seed=SEED)
    preferences = label(comparisons, read_candidates(config.input), config.round)
    write_preferences(config.output, preferences)
    return {"comparisons": len(comparisons), "preferences": len(preferences), "output": config.output}


SOURCES = {"gold": _gold, "judge": _judge, "human": _human}
