"""Test whether conflict finds the reward model's errors in your data, before you pay annotators.

Needs a scored table and a small judged sample: preferences on random pairs (`shfcas select --strategy random`), or a
gold reward on a sample of prompts. Prints in one sentence whether conflict finds errors better than chance, and
recommends a policy score if one agrees with the judges better than chance; --json prints all numbers. With
--principles and --policy_score_model, wordings of a contrast are tried on the sample alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shfcas.conflicts.columns import SCORE_COLUMNS
from shfcas.conflicts.contrasts import ContrastColumns
from shfcas.data.candidates import CandidateTable, arrow_columns
from shfcas.data.preferences import read_preferences
from shfcas.data.shards import TableRows
from shfcas.evaluation.diagnose import DiagnoseConfig, diagnose
from shfcas.evaluation.diagnose_text import format_diagnosis
from shfcas.evaluation.judged_pairs import NEEDED, JudgedSample, from_gold, from_preferences, match
from shfcas.evaluation.policy_knowledge import measure_scores
from shfcas.evaluation.policy_knowledge_text import format_scores
from shfcas.rewards.scorers import load_scorer
from shfcas.sampling.contrast import PREFIX, Principle
from shfcas.utils.config import Options, option, unexpected
from shfcas.utils.errors import UsageError, UserError

INPUTS, INPUTS_HELP = "input", "candidate tables with conflict columns [conflicts.parquet]"


@dataclass
class _Sources(Options):
    input: list[str] = option(lambda: ["conflicts.parquet"], "candidate tables with conflict columns")
    preferences: str | None = option(None, "judged pairs of answers from the table, in TRL's format (none: see gold)")
    gold: str | None = option(
        None, "gold reward for a sample of prompts: a model, or module:function (none: the column gold)"
    )
    original: str | None = option(
        None,
        "the reward model's training pairs, in TRL's format: policy scores are measured on them too, marked as biased "
        "(none: not measured)",
    )
    principles: list[Principle] = option(
        list, "pairs of opposite instructions to try on the judged sample (none: the contrasts that the table has)"
    )
    policy_score_model: str | None = option(None, "principles: causal model to ask, such as the policy")
    chat_template: str | None = option(None, "principles: chat template for a model without one (none: its own)")
    plot: str | None = option(None, ".png or .svg file for a plot of the error rate by conflict (none: no plot)")


@dataclass
class Config(DiagnoseConfig, _Sources):
    """`shfcas diagnose`."""


def run(config: Config) -> dict[str, Any]:
    """Compares conflict with the judged pairs."""
    if config.preferences and config.gold:
        raise UsageError("give preferences or gold, not both")
    contrasts = None
    if config.principles:
        if config.policy_score_model is None:
            raise unexpected("policy_score_model", "a model to ask under the principles", None, "name the policy")
        contrasts = ContrastColumns(config.policy_score_model, config.principles, config.chat_template)
    rows = TableRows(config.input)
    CandidateTable(rows.schema.empty_table()).require(*NEEDED, *([config.group_by] if config.group_by else ()))
    columns = _columns(rows.schema.names, config.group_by)
    original = _original(config, TableRows(config.input, columns), contrasts) if config.original else None
    if config.preferences:
        rows.columns = columns
        pairs = from_preferences(rows, read_preferences(config.preferences), config.group_by)
    else:
        gold = load_scorer(config.gold) if config.gold else None
        pairs = from_gold(rows, gold, prompts=config.prompts, seed=config.seed, group_by=config.group_by)
    result = diagnose(pairs, config)
    result["policy_scores"] = measure_scores(
        _asked(pairs.sample, contrasts),
        principles=contrasts.about["principles"] if contrasts else rows.metadata.get("principles"),
        group_by=config.group_by,
        uncovered=config.uncovered or (),
        original=original,
        seed=config.seed,
    )
    if config.plot:
        from shfcas.report.diagnosis import save_deciles

        save_deciles(result, config.plot)
    return result


def _columns(present: Sequence[str], group_by: str | None) -> list[str]:
    """Returns the columns of a table that are read: those of the conflicts, of all policy scores, and of gold."""
    scores = {column for columns in SCORE_COLUMNS.values() for column in columns}
    wanted = {*NEEDED, *scores, "finished", "gold", group_by}
    return [name for name in present if name in wanted or name.startswith(PREFIX)]


def _asked(sample: JudgedSample, contrasts: ContrastColumns | None) -> JudgedSample:
    """Returns the sample with the contrasts of the given principles, in place of those of the table."""
    if contrasts is None or not sample.rows:
        return sample
    needed = ("prompt_id", "prompt", "completions", "finished")
    rows = [{name: row[name] for name in needed if name in row} for row in sample.rows]
    made = contrasts(CandidateTable(pa.table(arrow_columns(rows)))).rows()
    found = [{p.column: row[p.column] for p in contrasts.principles} for row in made]
    others = [{name: value for name, value in row.items() if not name.startswith(PREFIX)} for row in sample.rows]
    return JudgedSample([{**row, **columns} for row, columns in zip(others, found, strict=True)], sample.pairs)


def _original(config: Config, rows: TableRows, contrasts: ContrastColumns | None) -> JudgedSample:
    """Returns the reward model's training pairs: those in the table and, with principles, a draw of the others."""
    preferences = read_preferences(str(config.original))
    sample, missing = match(rows, preferences)
    others = JudgedSample.of_texts(missing if contrasts else [], prompts=config.prompts, seed=config.seed)
    if not (sample.pairs or others.pairs):
        raise UserError(
            f"original: expected preferences about answers in the table, got {len(preferences)} about others; "
            "name principles and policy_score_model to measure contrasts on them"
        )
    samples = [_asked(part, contrasts) for part in (sample, others)]
    return JudgedSample.of_answers((s.rows[row], better, worse) for s in samples for row, better, worse in s.pairs)


def text(result: dict[str, Any]) -> str:
    """Formats the verdict and the numbers, then what the policy scores know."""
    return f"{format_diagnosis(result)}\n\n{format_scores(result['policy_scores'])}"
