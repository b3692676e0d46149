"""Run all rounds of SHF-CAS. The same command resumes an interrupted run, with the same results.

A finished run can be extended (--rounds) or changed: only what depends on a change is made again. Results are replaced
only with approval, on the terminal or by --yes. --plan checks the configuration, shows what would be made at what cost,
and stops. A last table has a row per round.
"""

import sys
from dataclasses import dataclass, fields
from typing import Any

from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.loop import plan
from shfcas.pipeline.loop import run as run_all
from shfcas.pipeline.outlook import describe, outlook
from shfcas.pipeline.results import results, table
from shfcas.pipeline.run_directory import Plan
from shfcas.utils.config import option

POSITIONAL, POSITIONAL_HELP = "config_file", "the configuration, as with --config"


@dataclass
class Config(RunConfig):
    """`shfcas run`."""

    plan: bool = option(False, "print the stages and what is done, stale or to do, and stop", volatile=True)
    yes: bool = option(False, "make finished stages again that depend on a change, without asking", volatile=True)


def run(config: Config) -> dict[str, Any]:
    """Runs the stages that are left, or plans them."""
    settings = RunConfig(**{field.name: getattr(config, field.name) for field in fields(RunConfig)})
    if config.plan:
        planned = plan(settings)
        stages = [{"name": s.name, "state": s.state, "reasons": list(s.reasons)} for s in planned.stages]
        return {"plan": stages, "outlook": outlook(settings, planned)}
    report = run_all(settings, approve=lambda planned: config.yes or _ask(planned))
    return {"rounds": results(settings, report.parent), "report": str(report)}


def text(result: dict[str, Any]) -> str:
    """The result as text: a table of the rounds and the report's path, or a line per planned stage and an outlook."""
    if "plan" not in result:
        return f"{table(result['rounds'])}\nreport: {result['report']}"
    width = max(len(stage["name"]) for stage in result["plan"])
    rows = [f"{s['name']:<{width}}  {s['state']:<7}  {'; '.join(s['reasons'])}" for s in result["plan"]]
    return "\n".join([*(row.rstrip() for row in rows), "", *describe(result["outlook"])])


def _ask(planned: Plan) -> bool:
    """Asks on the terminal whether stale stages may be made again."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"shfcas run: {planned.stale_text()}", file=sys.stderr)
    print("make them again? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
