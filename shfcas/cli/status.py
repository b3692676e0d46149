"""Show the stages of a run directory (state, time, and why one was made again) and its labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.evaluation.blind_pairs import describe
from shfcas.feedback.judge.report import summary
from shfcas.pipeline.inspection import status
from shfcas.utils.config import option
from shfcas.utils.errors import UsageError

INPUTS, INPUTS_HELP = "run", "the run directory"


@dataclass
class Config:
    """`shfcas status`."""

    run: list[str] = option(list, "the run directory")


def run(config: Config) -> dict[str, Any]:
    """Reads the manifest and the labels."""
    if len(config.run) != 1:
        raise UsageError(f"run: expected one run directory, got {' '.join(config.run) or 'none'}")
    return status(Path(config.run[0]))


def text(result: dict[str, Any]) -> str:
    """Formats a line per stage, per queue of annotators, per report of a language model, and per blind comparison."""
    width = max((len(stage["name"]) for stage in result["stages"]), default=0)
    rows = []
    for stage in result["stages"]:
        row = (
            f"{stage['name']:<{width}}  {stage['state']:<7}  {stage['seconds']:>8.1f} s  {'; '.join(stage['because'])}"
        )
        rows.append(row.rstrip())
    rows.append(f"all stages: {result['seconds'] / 60:.1f} minutes")
    rows += [_queue(queue) for queue in result["queues"]]
    rows += [f"{name}: {summary(report)}" for name, report in result["judges"].items()]
    rows += [f"{name}: {describe(found)}" for name, found in result["win_rates"].items()]
    return "\n".join(rows)


def _queue(row: dict[str, Any]) -> str:
    counts = (
        f"{row['queue']}: {row['asked']} asked, {row['answered']} answered ({row['ties']} ties, "
        f"{row['both_bad']} both bad), {row['flagged']} flagged, {row['skipped']} skipped, {row['pending']} pending"
    )
    return "; ".join([counts, *(f"{name} answered {count}" for name, count in row["annotators"].items())])
