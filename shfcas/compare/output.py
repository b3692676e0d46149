"""Output of a comparison: tidy results, tables, and the facts for its page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shfcas.compare.config import CompareConfig
from shfcas.compare.statistics import Row
from shfcas.compare.tables import FACTS, RESULTS, mean_seconds, write_csv, write_parquet, write_tables
from shfcas.utils.config import to_dict
from shfcas.utils.files import write_json


def write_results(path: Path, config: CompareConfig, rows: Sequence[Row], done: Sequence[dict[str, Any]]) -> Path:
    """Writes `results.parquet`, `tables/` and `report.html` into the run directory; returns the page's path.

    Args:
        path: the run directory.
        config: the comparison's configuration.
        rows: tidy results.
        done: the cells, with their times in seconds.
    """
    from shfcas.compare.page import write_page

    write_parquet(path / RESULTS, rows)
    write_tables(path / "tables", rows)
    write_csv(path / "tables" / "seconds.csv", mean_seconds(done))
    write_json(
        path / FACTS, {"config": to_dict(config), "cells": len(done), "seconds": sum(c["seconds"] for c in done)}
    )
    return write_page(path)
