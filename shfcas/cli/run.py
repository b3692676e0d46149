"""Run all rounds of SHF-CAS; killed at any point, the same command continues and ends with the same results."""

from typing import Any

from shfcas.rounds import RunConfig as Config
from shfcas.rounds import run as run_rounds

POSITIONAL, POSITIONAL_HELP = "config_file", "the configuration, as with --config"


def run(config: Config) -> dict[str, Any]:
    """Runs what is left to run."""
    return {"report": str(run_rounds(config))}
