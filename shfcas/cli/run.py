"""Run all rounds of SHF-CAS. The same command resumes an interrupted run, with the same results.

A finished run can be extended (--rounds) or changed: only what depends on a change is made again. Results are replaced
only with approval, on the terminal or by --yes. --plan checks the configuration, shows what would be made at what cost,
and stops. A last table has a row per round.
"""

from dataclasses import dataclass
from typing import Any

from shfcas.cli._approval import approval, without_flags, yes_option
from shfcas.cli._cards import push_run
from shfcas.hub.upload import HubOptions
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.manifest import DONE
from shfcas.pipeline.outlook import describe, outlook
from shfcas.pipeline.results import results, table
from shfcas.pipeline.run import plan
from shfcas.pipeline.run import run as run_all
from shfcas.utils.config import option
from shfcas.utils.progress import duration

POSITIONAL, POSITIONAL_HELP = "config_file", "the configuration, as with --config"


@dataclass
class Config(HubOptions, RunConfig):
    """`shfcas run`."""

    plan: bool = option(False, "print the stages and what is done, stale or to do, and stop", volatile=True)
    yes: bool = yes_option()


def run(config: Config) -> dict[str, Any]:
    """Runs the stages that are left, or plans them."""
    settings = without_flags(config, RunConfig)
    config.check_hub()
    if config.plan:
        planned = plan(settings)
        stages = [
            {
                "name": stage.name,
                "state": stage.state,
                "reasons": list(stage.reasons),
                "seconds": stage.seconds,
                "asks_people": stage.asks_people,
            }
            for stage in planned.stages
        ]
        return {"plan": stages, "outlook": outlook(settings, planned)}
    report = run_all(settings, approve=approval("run", config.yes))
    pushed = {"uploaded": push_run(config, settings)} if config.push_to_hub else {}
    return {"rounds": results(settings, report.parent), "report": str(report), **pushed}


def text(result: dict[str, Any]) -> str:
    """The result as text: a table of the rounds and the report's path, or a line per planned stage and an outlook."""
    if "plan" not in result:
        uploaded = [f"uploaded: {address}" for address in result.get("uploaded", [])]
        return "\n".join([table(result["rounds"]), f"report: {result['report']}", *uploaded])
    width = max(len(stage["name"]) for stage in result["plan"])
    times = [_time(stage) for stage in result["plan"]]
    column = max(map(len, times))
    rows = [
        f"{s['name']:<{width}}  {s['state']:<7}  {time:<{column}}  {'; '.join(s['reasons'])}"
        for s, time in zip(result["plan"], times, strict=True)
    ]
    return "\n".join([*(row.rstrip() for row in rows), "", *describe(result["outlook"])])


def _time(stage: dict[str, Any]) -> str:
    """The time that a planned stage will take, if this run has measured a stage of its kind."""
    if stage["state"] == DONE:
        return ""
    if stage["asks_people"]:
        return "waits for people"
    return "no measured rate yet" if stage["seconds"] is None else f"about {duration(stage['seconds'])}"
