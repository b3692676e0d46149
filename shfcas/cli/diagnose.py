"""Test whether conflict finds the reward model's errors in your data, before you pay annotators.

Needs a scored table and a small judged sample: preferences on random pairs (`shfcas select --strategy random`), or a
gold reward on a sample of prompts. Prints in one sentence whether conflict finds errors better than chance; --json
prints all numbers.
"""

from dataclasses import dataclass
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.data.preferences import read_preferences
from shfcas.data.shards import TableRows
from shfcas.evaluation.diagnose import DiagnoseConfig, diagnose
from shfcas.evaluation.diagnose_text import format_diagnosis
from shfcas.evaluation.judged_pairs import NEEDED, from_gold, from_preferences
from shfcas.rewards.scorers import load_scorer
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError

INPUTS, INPUTS_HELP = "input", "candidate tables with conflict columns [conflicts.parquet]"


@dataclass
class _Sources:
    input: list[str] = option(lambda: ["conflicts.parquet"], "candidate tables with conflict columns")
    preferences: str | None = option(None, "judged pairs of answers from the table, in TRL's format")
    gold: str | None = option(
        None, "a gold reward for a sample of prompts: a model, or module:function (none: the column gold)"
    )
    plot: str | None = option(None, "a .png or .svg file for a plot of the error rate by conflict")


@dataclass
class Config(DiagnoseConfig, _Sources):
    """`shfcas diagnose`."""


def run(config: Config) -> dict[str, Any]:
    """Compares conflict with the judged pairs."""
    if config.preferences and config.gold:
        raise UsageError("give preferences or gold, not both")
    if config.prompts < 1:
        raise UsageError(f"prompts: expected at least 1, got {config.prompts}")
    rows = TableRows(config.input)
    CandidateTable(rows.schema.empty_table()).require(*NEEDED, *([config.group_by] if config.group_by else ()))
    if config.preferences:
        optional = [config.group_by] if config.group_by else []
        rows.columns = [*NEEDED, *(name for name in optional if name not in NEEDED)]
        pairs = from_preferences(rows, read_preferences(config.preferences), config.group_by)
    else:
        gold = load_scorer(config.gold) if config.gold else None
        pairs = from_gold(rows, gold, prompts=config.prompts, seed=config.seed, group_by=config.group_by)
    result = diagnose(pairs, config)
    if config.plot:
        from shfcas.report.diagnosis import save_deciles

        save_deciles(result, config.plot)
    return result


def text(result: dict[str, Any]) -> str:
    """Formats the verdict, then the numbers."""
    return format_diagnosis(result)
