"""A callback that monitors conflict while a trainer runs."""

import logging
from pathlib import Path
from typing import Any

from shfcas.monitor.reading import SUFFIXES, read_rollouts
from shfcas.monitor.watch import ConflictMonitor, MonitorConfig

logger = logging.getLogger(__name__)
FOLDER = "completions"  # where PPO here, and TRL's trainers with log_completions, write each rollout


def monitor_callback(settings: MonitorConfig | None = None, reward: str | None = None, stop: bool = False) -> Any:
    """Returns a callback for `PPOTrainer` and for TRL's GRPO and RLOO trainers, which need `log_completions`.

    Each time the trainer logs, rollouts that it has written since are read. Their measures join the logged values as
    `monitor/...`, and an alarm is a warning. The monitor is the callback's attribute `monitor`.

    Args:
        settings: see `MonitorConfig`.
        reward: column of the reward: in TRL's files, the name of a reward function; None takes `score`.
        stop: end the training at an alarm.
    """
    from transformers import TrainerCallback

    class MonitorCallback(TrainerCallback):
        def __init__(self) -> None:
            self.monitor = ConflictMonitor(settings)
            self._read: set[Path] = set()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / FOLDER
            files = sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES) if folder.is_dir() else []
            for file in files:
                if file in self._read:
                    continue
                self._read.add(file)
                for answers in read_rollouts([file], reward, size=1 << 30):
                    seen = self.monitor.add(answers)
                    if seen is None:
                        continue
                    if logs is not None:
                        logs.update({f"monitor/{name}": value for name, value in seen.measures.items()})
                        logs.update({f"monitor/{name}_evidence": value for name, value in seen.evidence.items()})
                    for name in seen.alarms:
                        growth = seen.growth.get(name, 0.0)
                        logger.warning("monitor: %s has grown by %.3g; read the answers of %s", name, growth, file)
                    control.should_training_stop |= stop and bool(seen.alarms)

    return MonitorCallback()
