"""Run all rounds of SHF-CAS. The same command resumes an interrupted run, with the same results."""

from typing import Any

from shfcas.pipeline.config import RunConfig as Config
from shfcas.pipeline.loop import run as run_rounds

POSITIONAL, POSITIONAL_HELP = "config_file", "the configuration, as with --config"


def run(config: Config) -> dict[str, Any]:
    """Runs the stages that are left; returns the path of the report."""
    return {"report": str(run_rounds(config))}
