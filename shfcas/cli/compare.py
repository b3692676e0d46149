"""Compare strategies at equal numbers of labels, over seeds. The same command resumes.

The policy, the proxy and a scored pool of answers are made once. Each cell (strategy, budget, seed) selects from the
pool, labels with gold, refines the reward model and measures it. Seeds and budgets can be added later.
"""

from dataclasses import dataclass
from typing import Any

from shfcas.cli._approval import approval, without_flags, yes_option
from shfcas.compare.config import CompareConfig
from shfcas.compare.run import compare

POSITIONAL, POSITIONAL_HELP = "config_file", "the configuration, as with --config"


@dataclass
class Config(CompareConfig):
    """`shfcas compare`."""

    yes: bool = yes_option()


def run(config: Config) -> dict[str, Any]:
    """Runs the cells that are left; returns the path of the report."""
    report = compare(without_flags(config, CompareConfig), approve=approval("compare", config.yes))
    return {"report": str(report)}
