"""A whole run: plan and check all stages first, then make those that are left, and write the report."""

import logging
from collections.abc import Callable
from pathlib import Path

from shfcas.engines import open_engine
from shfcas.pipeline.checks import check_run
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.loop import Loop
from shfcas.pipeline.run_directory import Plan, RunDirectory
from shfcas.utils.config import to_dict
from shfcas.utils.errors import UsageError

logger = logging.getLogger(__name__)


def run_rounds(loop: Loop) -> None:
    """Runs all rounds, or those that are left of them; in a planning run directory, plans them."""
    config = loop.config
    start = loop.start()
    state = start.state
    selection = config.selection if config.feedback != "none" else None
    for number in range(1, config.rounds + 1):
        state = loop.round(state, number, start=start, selection=selection)


def plan(config: RunConfig) -> Plan:
    """Returns the stages of a run in order, with what is done, stale or to do. Makes nothing but the run's folder.

    Raises:
        UserError: the run would fail, see `shfcas.pipeline.checks`.
    """
    directory = open_run(config)
    with directory:
        loop = Loop(directory, config)
        return plan_stages(loop, lambda: run_rounds(loop))


def plan_stages(loop: Loop, make: Callable[[], object]) -> Plan:
    """Plans stages of a run directory, and checks whatever those that are left depend on.

    Args:
        loop: its run directory and configuration.
        make: makes the stages; in the planning run directory it plans them.

    Raises:
        UserError: a check failed, see `shfcas.pipeline.checks`.
    """
    with loop.run.planning() as planned:
        make()
    check_run(loop.config, planned, loop.prompts, loop.eval_prompts)
    return planned


def begin(loop: Loop, make: Callable[[], object], approve: Callable[[Plan], bool]) -> None:
    """Plans and checks stages, asks before finished ones are made again, and opens the run directory for writing.

    Args:
        loop: its run directory and configuration.
        make: makes the stages.
        approve: asked whether finished stages may be made again because something that they depend on changed.

    Raises:
        UserError: a check failed, see `shfcas.pipeline.checks`.
        UsageError: stages are stale and making them again was not approved; the message lists them with the reasons.
    """
    planned = plan_stages(loop, make)
    if planned.stale():
        if not approve(planned):
            raise UsageError(f"{planned.stale_text()}; undo the changes, or make them again with --yes")
        loop.run.approved = True
    loop.run.begin()


def refuse(planned: Plan) -> bool:
    """Approves nothing."""
    return False


def run(config: RunConfig, *, approve: Callable[[Plan], bool] = refuse) -> Path:
    """Runs all rounds, or those that are left of them, and returns the path of the report.

    Args:
        config: the configuration.
        approve: asked whether finished stages may be made again because something that they depend on changed. By
            default they may not.

    Raises:
        UserError, UsageError: see `begin`.
    """
    from shfcas.report import write_report

    with open_run(config) as directory:
        loop = Loop(directory, config)
        begin(loop, lambda: run_rounds(loop), approve)
        if not config.gold:
            logger.info("no gold reward: the metrics leave out gold reward, win rate, pair accuracy and detection")
        with open_engine(config.engine, config.ray) as loop.engine:
            run_rounds(loop)
        return write_report(directory.path)


def open_run(config: RunConfig) -> RunDirectory:
    """Opens the run directory of a configuration."""
    config.check_inputs()
    return RunDirectory(config.output, to_dict(config), config.seed)
