"""Fine-tune a policy on its own answers: rejection sampling from a candidate table (RSO), then DPO through TRL."""

from dataclasses import dataclass
from typing import Any

from shfcas.cli._rl import PolicyCommand, settings_of, train_command
from shfcas.data.candidates import read_candidates
from shfcas.training.rso import RSOConfig
from shfcas.utils.config import option


@dataclass
class Config(RSOConfig, PolicyCommand):
    """`shfcas rso`."""

    candidates: str = option("", "the policy's candidate table; its answers are scored again", common=True)


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the policy."""
    candidates = read_candidates(config.candidates).rows()
    return train_command(config, "rso", settings_of(config, RSOConfig), candidates=candidates)
