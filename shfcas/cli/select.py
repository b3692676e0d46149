"""Select the comparisons that are worth a label, most wanted first, within a label budget.

Reads tables of any size in constant memory: Parquet files, folders, globs or URLs. The selection does not depend on the
order of rows or on how they are split over files.
"""

import logging
from dataclasses import dataclass
from typing import Any

from shfcas.data.shards import SHARD_ROWS, TableRows
from shfcas.engines import ENGINES, RayConfig, open_engine
from shfcas.selection import SelectionConfig, columns_to_read, select_with_report
from shfcas.selection.sharded import select_table
from shfcas.utils.config import Options, option
from shfcas.utils.files import write_jsonl

logger = logging.getLogger(__name__)

INPUTS, INPUTS_HELP = "input", "candidate tables with conflict columns [conflicts.parquet]"


@dataclass
class _Files(Options):
    input: list[str] = option(lambda: ["conflicts.parquet"], "candidate tables with conflict columns", common=True)
    output: str = option("queue.jsonl", "queue of comparisons to write: prompt_id, first, second, audit", common=True)
    shard_rows: int = option(SHARD_ROWS, "engine ray: approximate prompts per task", ge=1)
    engine: str = option("local", "where to run: in this process, or on a Ray cluster", ENGINES)
    ray: RayConfig = option(RayConfig, "engine ray: the cluster")


@dataclass
class Config(SelectionConfig, _Files):
    """`shfcas select`."""


def run(config: Config) -> dict[str, Any]:
    """Selects and writes the queue."""
    if config.engine == "local":
        rows = TableRows(config.input)
        rows.columns = columns_to_read(config, rows.schema.names)
        selection = select_with_report(rows, config)
    else:
        with open_engine(config.engine, config.ray) as engine:
            selection = select_table(config.input, config, seed=0, engine=engine, shard_rows=config.shard_rows)
    write_jsonl(config.output, [c.to_row() for c in selection.comparisons])
    report = selection.report
    if report["shortfall"]:
        logger.warning("%s", report["shortfall"])
    beyond_chance = report.get("kendall", {})
    names = ("chosen", "false_discovery_rate", "expected_false_discovery_rate")
    return {
        "comparisons": len(selection.comparisons),
        "prompts": len({c.prompt_id for c in selection.comparisons}),
        **report["bounds"],
        **{name: beyond_chance[name] for name in names if beyond_chance},
        "report": report,
        "output": config.output,
    }
