"""Watch conflict during training, in the files of its rollouts. The exit code is 1 if there is an alarm.

Reads candidate tables, the folder `completions` of PPO here or of TRL, verl's rollout files, and the log of
serve-reward. An alarm says that conflict, or the reward's agreement with length or KL, grew against the first rollouts.
"""

from dataclasses import dataclass
from typing import Any

from shfcas.monitor.measures import SERIES
from shfcas.monitor.reading import read_rollouts
from shfcas.monitor.watch import ConflictMonitor, MonitorConfig
from shfcas.utils.config import Options, option
from shfcas.utils.errors import UsageError

INPUTS, INPUTS_HELP = "file", "files of rollouts, or folders of them, in the order of training"


@dataclass
class _Files(Options):
    file: list[str] = option(list, "files of rollouts, or folders of them, in the order of training")
    reward: str | None = option(None, "column of the reward (none: reward or score)", common=True)
    rollout_size: int = option(
        256, "answers of a rollout, in a single file whose rows name no rollout or step", ge=2, common=True
    )


@dataclass
class Config(MonitorConfig, _Files):
    """`shfcas monitor`."""


def run(config: Config) -> dict[str, Any]:
    """Reads all rollouts."""
    if not config.file:
        raise UsageError("file: expected files of rollouts, got none; name them behind the command")
    monitor = ConflictMonitor(config)
    for answers in read_rollouts(config.file, config.reward, config.rollout_size):
        monitor.add(answers)
    return {"rollouts": [seen.to_row() for seen in monitor.observations], "alarms": monitor.alarms}


def text(result: dict[str, Any]) -> str:
    """Formats a line per rollout, and the alarms."""
    names = [name for name in ("reward", "length", *SERIES) if any(name in row for row in result["rollouts"])]
    lines = ["rollout  " + "  ".join(f"{name:>16}" for name in names)]
    for row in result["rollouts"]:
        values = [f"{row[name]:>16.4g}" if name in row else f"{'':>16}" for name in names]
        lines.append(f"{row['rollout']:>7}  {'  '.join(values)}" + "".join(f"  ALARM {name}" for name in row["alarms"]))
    found = [f"{name} at rollout {rollout}" for name, rollout in result["alarms"].items()]
    return "\n".join([*lines, f"alarms: {', '.join(found) or 'none'}"])


def exit_code(result: dict[str, Any]) -> int:
    """Returns 1 if there is an alarm."""
    return int(bool(result["alarms"]))
