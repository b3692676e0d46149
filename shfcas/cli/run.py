"""Run all rounds of SHF-CAS; killed at any point, the same command continues and ends with the same results."""

from typing import Any

from shfcas.pipeline.config import RunConfig as Config
from shfcas.pipeline.loop import run as run_rounds

POSITIONAL, POSITIONAL_HELP = "config_file", "the configuration, as with --config"


def run(config: Config) -> dict[str, Any]:
    """Runs what is left to run."""
    return {"report": str(run_rounds(config))}
