"""Fine-tune a policy on its own answers: statistical rejection sampling of a candidate table, then DPO through TRL."""

from dataclasses import dataclass
from typing import Any

from shfcas.candidates import read_candidates
from shfcas.cli._rl import PolicyCommand, settings_of, train
from shfcas.config import option
from shfcas.training.rl import RLSettings
from shfcas.training.rso import RSOSettings


@dataclass
class Config(RSOSettings, PolicyCommand):
    """`shfcas rso`."""

    candidates: str = option("", "the candidate table of the policy; its answers are scored anew")


def run(config: Config) -> dict[str, Any]:
    """Trains and saves the policy."""
    settings = RLSettings(algorithm="rso", rso=settings_of(config, RSOSettings))
    return train(config, settings, read_candidates(config.candidates).rows(), None)
