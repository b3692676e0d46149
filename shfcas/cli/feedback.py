"""Judge the selected comparisons with a gold reward: preferences in TRL's format.

`feedback export RUN --out FILE` writes a run's queue and answers for another tool, `feedback import RUN FILE ...` reads
the answers back.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.candidates import read_candidates
from shfcas.config import build, option, read_yaml
from shfcas.errors import UsageError, UserError
from shfcas.feedback import read_queue
from shfcas.feedback.exchange import ExchangeOptions, export_answers, import_answers
from shfcas.feedback.gold import GoldFeedback
from shfcas.feedback.settings import HumanSettings
from shfcas.feedback.store import Store
from shfcas.preferences import write_preferences
from shfcas.scoring import load_scorer

INPUTS, INPUTS_HELP = "action", "export RUN, or import RUN FILE ...; without it, the comparisons are judged"


@dataclass
class Config(ExchangeOptions):
    """`shfcas feedback`."""

    action: list[str] = option(list, "export RUN, or import RUN FILE ...")
    out: str | None = option(None, "the file to export to")
    input: str = option("conflicts.parquet", "the candidate table that the queue was made from")
    queue: str = option("queue.jsonl", "the queue of comparisons")
    gold: str | None = option(None, "the gold reward: a model, or module:function")
    output: str = option("preferences.jsonl", "the preferences to write")
    round: int = option(1, "recorded with each preference")


def run(config: Config) -> dict[str, Any]:
    """Judges and writes the preferences, or exchanges a run's answers with another tool."""
    if config.action:
        return _exchange(config, *config.action)
    if config.gold is None:
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


def _exchange(config: Config, action: str, run: str = "", *files: str) -> dict[str, Any]:
    if action not in ("export", "import") or not run or (action == "import") != bool(files):
        raise UsageError("expected export RUN --out FILE, or import RUN FILE ...")
    if action == "export" and config.out is None:
        raise UsageError("missing: out, the file to export to")
    if not Path(run).is_dir():
        raise UserError(f"{run} is no run directory; name the one of the run")
    path = Path(run) / "feedback.sqlite"
    if not path.exists() and (action, config.format) != ("import", "jsonl"):
        raise UserError(f"{run} has no feedback.sqlite: nobody was asked anything in it yet")
    settings = _settings(Path(run))
    with Store(path) as store:
        if action == "export":
            return export_answers(store, str(config.out), config, settings)
        return import_answers(store, files, config, settings)


def _settings(run: Path) -> HumanSettings:
    """The run's own settings, for what answers come to."""
    values = read_yaml(run / "config.yaml") if (run / "config.yaml").exists() else {}
    return build(HumanSettings, values.get("human") or {}, "human.")
