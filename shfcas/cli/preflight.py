"""Look for what is wrong with a reward model before anything is scored with it; a failed check is exit code 1."""

from dataclasses import dataclass
from typing import Any

from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import read_preferences
from shfcas.rewards.preflight import FAIL, PreflightConfig, preflight
from shfcas.utils.config import option


@dataclass
class _Models:
    reward_model: str = option("", "a model, an ensemble's folder, or module:function")
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    preferences: str | None = option(None, "known pairs in TRL's format (none: a few obvious ones)")
    candidates: str | None = option(None, "a candidate table whose answers have to fit into what the model can see")


@dataclass
class Config(PreflightConfig, _Models):
    """`shfcas preflight`."""


def run(config: Config) -> list[dict[str, Any]]:
    """Runs all checks."""
    findings = preflight(
        config.reward_model,
        config,
        cost_model=config.cost_model,
        preferences=read_preferences(config.preferences) if config.preferences else [],
        candidates=read_candidates(config.candidates).rows() if config.candidates else [],
    )
    return [vars(finding) for finding in findings]


def text(findings: list[dict[str, Any]]) -> str:
    """One line a check, and under it what to do."""
    width = max(len(f["check"]) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{f['status']}  {f['check']:<{width}}  {f['message']}")
        if f["remedy"]:
            lines.append(f"{'':<{width + 8}}-> {f['remedy']}")
    return "\n".join(lines)


def exit_code(findings: list[dict[str, Any]]) -> int:
    """1 where the model is not fit to score."""
    return int(any(f["status"] == FAIL for f in findings))
