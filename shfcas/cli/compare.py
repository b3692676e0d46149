"""Compare strategies at the same numbers of comparisons, over seeds; killed, the same command continues.

What all cells share is made once: policy, proxy, a scored pool of answers, held-out answers. Each cell (strategy,
budget, seed) then selects from the pool, has gold judge, refines the reward model and measures it. Results, tables
with intervals and paired tests, and one page are written into the run directory. Strategies, budgets and seeds may be
added later.
"""

from typing import Any

from shfcas.compare.config import CompareConfig as Config
from shfcas.compare.run import compare

POSITIONAL, POSITIONAL_HELP = "config_file", "the configuration, as with --config"


def run(config: Config) -> dict[str, Any]:
    """Runs what is left to run."""
    return {"report": str(compare(config))}
