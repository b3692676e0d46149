"""Check a reward model before it scores anything. The exit code is 1 if a check fails.

A name alone is enough: `shfcas preflight org/name`. With --server, the scores are compared with those of the same model
at an inference server.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import read_preferences
from shfcas.rewards.preflight import FAIL, Finding, PreflightConfig, evenly_spaced, preflight
from shfcas.utils.config import Options, option
from shfcas.utils.errors import UsageError
from shfcas.utils.files import write_text

INPUTS, INPUTS_HELP = "reward_model", "reward model: a model, an ensemble's folder, or module:function"


@dataclass
class _Models(Options):
    reward_model: list[str] = option(list, "reward model: a model, an ensemble's folder, or module:function")
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    preferences: str | None = option(None, "known pairs in TRL's format (none: a few obvious pairs)")
    candidates: str | None = option(
        None, "candidate table whose answers must fit into the model's context (none: not checked)"
    )
    server: str | None = option(
        None, "address of a server with the same model, such as vLLM's http://localhost:8000 (none: not compared)"
    )
    served_model: str | None = option(None, "server: name of the model there (none: the model's name here)")
    markdown: str | None = option(None, "Markdown file for a table of the findings (none: no file)")


@dataclass
class Config(PreflightConfig, _Models):
    """`shfcas preflight`."""


def run(config: Config) -> list[dict[str, Any]]:
    """Runs all checks."""
    if len(config.reward_model) != 1:
        raise UsageError(f"reward_model: expected one, got {' '.join(config.reward_model) or 'none'}; name it")
    (name,) = config.reward_model
    known = read_preferences(config.preferences) if config.preferences else []
    findings = preflight(
        name,
        config,
        cost_model=config.cost_model,
        preferences=known,
        candidates=read_candidates(config.candidates).rows() if config.candidates else [],
    )
    if config.server:
        from shfcas.rewards.preflight.known import OBVIOUS
        from shfcas.rewards.preflight.parity import RewardEndpoint, check_parity

        endpoint = RewardEndpoint(config.server, config.served_model or name)
        findings += check_parity(name, evenly_spaced(known, config.pairs) or OBVIOUS, endpoint)
    if config.markdown:
        write_text(config.markdown, markdown(name, findings))
    return [vars(finding) for finding in findings]


def markdown(name: str, findings: list[Finding]) -> str:
    """Returns a table of the findings, as for a model card."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    rows = [f"| {f.status} | {cell(f.check)} | {cell(f.message)} | {cell(f.remedy)} |" for f in findings]
    shown = Path(name).name if Path(name).exists() else name
    head = [f"Preflight of `{shown}`", "", "| result | check | found | what to do |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


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
