"""Monitor of a run: measures of each rollout, their growth against the start, and alarms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shfcas.monitor.growth import GrowthTest
from shfcas.monitor.measures import SERIES, Answer, measures
from shfcas.utils.config import Options, option


@dataclass
class MonitorConfig(Options):
    """Monitor of conflict during training."""

    level: float = option(0.05, "probability of any false alarm in a run", gt=0, lt=1, common=True)
    reference: int = option(10, "first rollouts, which later ones are compared with", ge=2, common=True)


@dataclass(frozen=True)
class Observation:
    """What the monitor found in a rollout.

    Attributes:
        rollout: number of the rollout, from 0.
        measures: see `shfcas.monitor.measures`.
        growth: by series, the difference to the mean of the reference rollouts; empty before they are complete.
        evidence: by series, the capital of its test; `level` and the number of series say where the alarm is.
        alarms: series whose alarm began in this rollout.
    """

    rollout: int
    measures: dict[str, float]
    growth: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """Returns a flat row for tables and trackers."""
        row: dict[str, Any] = {"rollout": self.rollout, **self.measures}
        row |= {f"{name}_growth": value for name, value in self.growth.items()}
        row |= {f"{name}_evidence": value for name, value in self.evidence.items()}
        return row | {"alarms": list(self.alarms)}


class ConflictMonitor:
    """Monitor that tests the measures of `SERIES` for growth.

    An alarm says that a measure grew beyond what the first rollouts explain: the reward parts from the policy, or goes
    more and more with length or with the distance from the reference. That is how reward hacking looks, and also how
    some good training looks. So read the answers before you act.

    The probability of any alarm in a run without growth is at most `level`, if the rollouts are exchangeable; see
    `GrowthTest`. It is divided among the series.

    Args:
        settings: see `MonitorConfig`.
    """

    def __init__(self, settings: MonitorConfig | None = None) -> None:
        self.settings = settings or MonitorConfig()
        self.observations: list[Observation] = []
        self._tests = {name: GrowthTest(self.settings.reference, seed) for seed, name in enumerate(SERIES)}
        self._values: dict[str, list[float]] = {name: [] for name in SERIES}
        self._alarmed: set[str] = set()

    def add(self, answers: Sequence[Answer]) -> Observation | None:
        """Adds a rollout; None if it has no answer with a finite reward."""
        answers = [answer for answer in answers if math.isfinite(answer.reward)]
        if not answers:
            return None
        found = measures(answers)
        growth, evidence, alarms = {}, {}, []
        for name in SERIES:
            if name not in found:
                continue
            evidence[name] = self._tests[name].add(found[name])
            values = self._values[name]
            values.append(found[name])
            start = values[: self.settings.reference]
            if len(values) > len(start):
                growth[name] = found[name] - math.fsum(start) / len(start)
            if evidence[name] >= len(SERIES) / self.settings.level and name not in self._alarmed:
                self._alarmed.add(name)
                alarms.append(name)
        self.observations.append(Observation(len(self.observations), found, growth, evidence, tuple(alarms)))
        return self.observations[-1]

    @property
    def alarms(self) -> dict[str, int]:
        """Rollout of each alarm, by series."""
        return {name: seen.rollout for seen in self.observations for name in seen.alarms}
