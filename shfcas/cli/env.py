"""Print versions and build facts; paste this into a bug report."""

import platform
from dataclasses import dataclass
from typing import Any

import torch

import shfcas
from shfcas.pipeline.run_directory import versions


@dataclass
class Config:
    """`shfcas env`."""


def run(config: Config) -> dict[str, Any]:
    """Collects versions and build facts."""
    return {
        **versions(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        **{f"build {key}": str(value) for key, value in shfcas.build_facts().items()},
    }
