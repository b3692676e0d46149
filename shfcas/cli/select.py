"""Select the comparisons that are worth a label, most wanted first, within a label budget.

Tables of any size: Parquet files, folders, globs or URLs, gone through in constant memory. What is selected depends
neither on the order of their rows nor on how these are spread over files.
"""

from dataclasses import dataclass
from typing import Any

from shfcas.candidates import CandidateTable
from shfcas.config import option
from shfcas.files import write_jsonl
from shfcas.selection import SelectionConfig, select
from shfcas.shards import TableRows

INPUTS, INPUTS_HELP = "input", "candidate tables with conflict columns [conflicts.parquet]"
NEEDED = ("prompt_id", "pacs", "kendall_distance", "mean_abs_pacs", "degenerate")


@dataclass
class _Files:
    input: list[str] = option(lambda: ["conflicts.parquet"], "candidate tables with conflict columns")
    output: str = option("queue.jsonl", "the queue of comparisons: prompt_id, first, second")


@dataclass
class Config(SelectionConfig, _Files):
    """`shfcas select`."""


def run(config: Config) -> dict[str, Any]:
    """Writes the queue."""
    rows = TableRows(config.input)
    CandidateTable(rows.schema.empty_table()).require(*NEEDED)
    rows.columns = [name for name in (*NEEDED, "completions") if name in rows.schema.names]
    comparisons = select(rows, config)
    write_jsonl(config.output, [vars(c) for c in comparisons])
    prompts = len({c.prompt_id for c in comparisons})
    return {"comparisons": len(comparisons), "prompts": prompts, "output": config.output}
