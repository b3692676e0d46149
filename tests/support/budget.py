"""A pytest plugin that keeps the tests quick: `-p tests.support.budget --budget check`, or `--budget update`.

It measures the CPU time of each test, its children's included, in reference seconds: seconds of the machine on which
`tests/budget.json` was written, by a loop that is timed again and again. `check` fails the session if a test that is
marked neither `slow` nor `system` takes longer than the limit, or if all of them take more than was committed.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "budget.json"
LIMIT = 5.0  # reference seconds of one test, without its fixtures
GROWTH = 0.10  # of the sum
SLOWEST = 10  # tests that the file lists
EVERY = 100  # tests between two timings of the loop
KEY = "reference seconds"


def loop_seconds() -> float:
    """CPU time of a fixed piece of work, the least of three."""
    import torch

    matrix = torch.ones(96, 96)

    def once() -> float:
        start, total = time.process_time(), 0
        for k in range(600_000):
            total += k * k % 7
        for _ in range(600):
            matrix @ matrix
        return time.process_time() - start

    return min(once() for _ in range(3))


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def preload() -> None:
    """Import what many tests import first, or one of them would pay for all."""
    import datasets
    import peft
    import transformers
    import trl

    for name in ("RewardTrainer", "SFTTrainer", "GRPOTrainer", "RLOOTrainer", "DPOTrainer"):
        getattr(trl, name)
    for name in ("AutoModelForCausalLM", "LlamaForCausalLM", "BertForSequenceClassification", "Trainer"):
        getattr(transformers, name)
    del datasets, peft


def findings(costs: dict[str, tuple[float, float]], committed: dict[str, Any]) -> list[str]:
    """What is too slow.

    Args:
        costs: reference seconds of each test alone and with its fixtures.
        committed: the content of the file.
    """
    found = [
        f"{name}: {alone:.1f} s of CPU, more than {LIMIT:g}: make it smaller, or mark it slow or system"
        for name, (alone, _) in sorted(costs.items(), key=lambda item: -item[1][0])
        if alone > LIMIT
    ]
    total, allowed = sum(whole for _, whole in costs.values()), committed["total"]
    if total > allowed * (1 + GROWTH):
        found.append(
            f"all {len(costs)} tests: {total:.0f} s of CPU, {total / allowed - 1:.0%} more than the {allowed:.0f} of "
            f"{FILE.name} ({committed['tests']} tests): make them smaller, or accept it with make budget"
        )
    return found


def summary(costs: dict[str, tuple[float, float]], seconds: float) -> dict[str, Any]:
    """What the file holds."""
    slowest = sorted(costs, key=lambda name: -costs[name][0])[:SLOWEST]
    return {
        "loop": round(seconds, 5),
        "tests": len(costs),
        "total": round(sum(whole for _, whole in costs.values()), 1),
        "slowest": {name: round(costs[name][0], 2) for name in slowest},
    }


class Budget:
    """The plugin; with several workers, each measures, and the process that started them adds up.

    Args:
        action: check or update.
        worker: whether this process only measures.
    """

    def __init__(self, action: str, worker: bool) -> None:
        self.action, self.worker = action, worker
        self.costs: dict[str, tuple[float, float]] = {}
        self.found: list[str] = []
        self.run, self.loop, self.reference = 0, 0.0, 0.0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        preload()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        if self.run % EVERY == 0:
            self.loop = loop_seconds()
            known = self.action == "check" and FILE.exists()
            self.reference = self.reference or (read(FILE)["loop"] if known else self.loop)
        self.run += 1
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Any:
        return (yield from self._measured(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        return (yield from self._measured(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Any:
        return (yield from self._measured(item))

    def _measured(self, item: pytest.Item) -> Any:
        start = cpu_seconds()
        try:
            return (yield)
        finally:
            if not any(item.get_closest_marker(name) for name in ("slow", "system")):
                seconds = (cpu_seconds() - start) * self.reference / self.loop
                item.user_properties[:] = [p for p in item.user_properties if p[0] != KEY]
                item.user_properties.append((KEY, seconds))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds = dict(report.user_properties).get(KEY)
        if self.worker or seconds is None:
            return
        alone, whole = self.costs.get(report.nodeid, (0.0, 0.0))
        self.costs[report.nodeid] = (alone + seconds if report.when == "call" else alone, whole + seconds)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.worker or not self.costs:
            return
        if self.action == "update":
            text = json.dumps(summary(self.costs, self.loop or loop_seconds()), indent=2, ensure_ascii=False)
            FILE.write_text(text + "\n", encoding="utf-8")
            return
        if not FILE.exists():
            self.found = [f"there is no {FILE.name} to compare with; make budget writes it"]
            return
        self.found = findings(self.costs, read(FILE))
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.costs:
            total = sum(whole for _, whole in self.costs.values())
            terminalreporter.write_line(f"budget: {total:.0f} reference seconds of CPU in {len(self.costs)} tests")
        for line in self.found:
            terminalreporter.write_line(f"budget: {line}", red=True)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", choices=("check", "update"), help="check the CPU time of the tests, or write it down")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.budget:
        config.pluginmanager.register(Budget(config.option.budget, hasattr(config, "workerinput")))
