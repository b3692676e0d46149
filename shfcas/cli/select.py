"""Select the comparisons that are worth a label, most wanted first, within a label budget."""

from dataclasses import dataclass
from typing import Any

from shfcas.candidates import read_candidates
from shfcas.config import option
from shfcas.files import write_jsonl
from shfcas.selection import SelectionConfig, select


@dataclass
class Config:
    """`shfcas select`."""

    input: str = option("conflicts.parquet", "candidate table with conflict columns")
    output: str = option("queue.jsonl", "the queue of comparisons: prompt_id, first, second")
    selection: SelectionConfig = option(SelectionConfig, "selection")


def run(config: Config) -> dict[str, Any]:
    """Writes the queue."""
    table = read_candidates(config.input)
    table.require("pacs", "kendall_distance", "mean_abs_pacs", "degenerate")
    comparisons = select(table.rows(), config.selection)
    write_jsonl(config.output, [vars(c) for c in comparisons])
    prompts = len({c.prompt_id for c in comparisons})
    return {"comparisons": len(comparisons), "prompts": prompts, "output": config.output}
