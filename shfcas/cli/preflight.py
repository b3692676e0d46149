"""Check a reward model before it scores anything. The exit code is 1 if a check fails."""

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
    candidates: str | None = option(None, "a candidate table, to check that its answers fit into the model's context")


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
    """Formats one line per check, and a remedy below it where there is one."""
    width = max(len(f["check"]) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{f['status']}  {f['check']:<{width}}  {f['message']}")
        if f["remedy"]:
            lines.append(f"{'':<{width + 8}}-> {f['remedy']}")
    return "\n".join(lines)


def exit_code(findings: list[dict[str, Any]]) -> int:
    """Returns 1 if a check failed."""
    return int(any(f["status"] == FAIL for f in findings))
