"""The benches run on tiny shapes, where their rivals agree with the ops; what they print is what the page reads."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benches import (
    bench,
    clock,
    itself,
    kendall,
    kendall_rivals,
    logprobs,
    matrix,
    pacs,
    page,
    table,
    targets,
    training,
    training_ways,
)
from benches.clock import Effort, Timing, timings
from benches.memory import Spent
from benches.stopwatch import Stopwatch

TINY = Effort(0, 1)
BENCHES = {"kendall": kendall, "pacs": pacs, "matrix": matrix, "logprobs": logprobs, "training": training}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, policy: str, reward_model: str) -> None:
    """Few rows, small models, no compiler and no processes; the clock reads once, and a moment is enough."""
    monkeypatch.setattr(clock, "SHORTEST", 1e-6)
    for module in (kendall_rivals, pacs, logprobs):
        monkeypatch.setattr(module, "compiled", lambda function: function)
    for module in (kendall, logprobs):
        monkeypatch.setattr(module, "peak_mb", lambda prepare, small, large, *_: float(prepare(*small)() is not None))
    for module in (kendall, pacs):
        monkeypatch.setattr(module, "ROWS", {8: 10, 16: 5, 64: 3, 1024: 2})
    monkeypatch.setattr(kendall, "LONG", 3000)
    monkeypatch.setattr(kendall, "LONGEST", 2000)
    monkeypatch.setattr(kendall_rivals, "SCIPY_ROWS", 2)
    monkeypatch.setattr(kendall_rivals, "METRICS_ROWS", 2)
    monkeypatch.setattr(matrix, "SHAPES", [(500, 30), (5, 16)])
    monkeypatch.setattr(matrix, "SCIPY_VECTORS", 4)
    monkeypatch.setattr(logprobs, "SHAPE", (2, 5, 70))
    monkeypatch.setattr(training, "FULL", training_ways.Size(2, 2, 3))
    for module in (table, training):
        monkeypatch.setattr(module, "spent", in_this_process)
    monkeypatch.setattr(training_ways, "POLICY", policy)
    monkeypatch.setattr(training_ways, "REWARD_MODEL", reward_model)


def in_this_process(prepare: Callable, small: tuple, large: tuple, threads: int) -> Spent:
    assert prepare(*small)() is not None
    begin = time.perf_counter()
    assert prepare(*large)() is not None
    return Spent(time.perf_counter() - begin, 1.0, 1.0)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def chosen(*dtypes: torch.dtype) -> bench.Settings:
    return bench.Settings(TINY, [1, 2], "cpu", list(dtypes))


def measured(name: str, capsys: pytest.CaptureFixture[str], *dtypes: torch.dtype) -> dict[str, Any]:
    """What the bench prints last."""
    settings = chosen(*dtypes)
    bench.report(name, BENCHES[name].tables(settings), settings)
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


@pytest.mark.system  # torch.compile starts the compiler of C++
@pytest.mark.usefixtures("tiny", "threads")
def test_benches_run_and_the_page_reads_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results = {
        "kendall": measured("kendall", capsys, torch.float32, torch.float64),
        "pacs": measured("pacs", capsys, torch.float32),
        "matrix": measured("matrix", capsys, torch.float64),
        "logprobs": measured("logprobs", capsys, torch.float32, torch.bfloat16),
        "training": measured("training", capsys, torch.float32),
    }
    bench.report("table", table.tables([8000], 1, tmp_path), chosen())
    results["table"] = json.loads(capsys.readouterr().out.splitlines()[-1])
    results["table"]["cases"][0]["answers"] = 10**7  # the least that counts
    for case in results["kendall"]["cases"]:
        if case.get("N") == 3000:
            case["N"] = 10**6  # as the targets ask
    for result in results.values():
        assert result["machine"]["torch"] == torch.__version__
        assert all(case["ms"] >= case["least ms"] > 0 for case in result["cases"])

    away = {name for name in ("hyper_corr", "torchmetrics", "trl") if not bench.installed(name)}
    for target in targets.TARGETS:
        if "hyper-corr" in target.what and "hyper_corr" in away:
            continue
        assert target.measured(results) is not None, target.what
    text = page.page(results)
    assert "not measured" not in text or away
    assert "x torch.compile" in text and "times as long" in text


def test_plots() -> None:
    from benches.plots import ratio_plot, rows_plot

    about = {"case": "kendall_counts", "dtype": "float32", "threads": 1, "ties": "no"}
    cases = [about | {"N": n, "rows/s": 1e6 / n, "x torch.compile": 4.0, "x numpy": 9.0} for n in (8, 64)]
    results = {"kendall": {"cases": cases}}
    for plot in (rows_plot, ratio_plot):
        assert plot(results).lstrip().startswith("<?xml")


def test_committed_page_is_that_of_the_committed_results() -> None:
    assert (page.DOCS / "performance.md").read_text(encoding="utf-8") == page.page(targets.read(page.RESULTS))


def test_stopwatch_gives_each_part_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    class Owner:
        def inner(self) -> None:
            nonlocal now
            now += 3

        def outer(self) -> None:
            nonlocal now
            self.inner()
            now += 10

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    owner, watch = Owner(), Stopwatch()
    watch.follow(owner, "inner", "inner")
    watch.follow(owner, "outer", "outer")
    with watch.measure("all"):
        owner.outer()
        now += 100
        owner.inner()
    assert watch.seconds == {"inner": 6, "outer": 10, "all": 100}


def test_functions_take_turns() -> None:
    calls: list[str] = []

    def function(name: str) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            torch.randn(1 << 16).sort()

        return call

    times = timings({"a": function("a"), "b": function("b")}, Effort(0, 3), "cpu")
    assert [time.readings for time in times.values()] == [3, 3]
    assert all(0 < time.least <= time.median for time in times.values())
    turns = [name for name, before in zip(calls, ["", *calls], strict=False) if name != before]
    assert turns[-6:] == ["a", "b"] * 3


def test_a_wrong_rival_stops_the_bench() -> None:
    with pytest.raises(AssertionError, match="liar"):
        bench.check_same("liar", torch.ones(2), torch.zeros(2))


def test_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work and bytes a second, by hand: 2 ms for 10 rows of 80 bytes against 4 ms for 5 rows and 1 ms for 80 bytes."""
    times = {"": Timing(2e-3, 1e-3, 3), "slow": Timing(4e-3, 4e-3, 3), "sub": Timing(1e-3, 1e-3, 3)}
    for module in (bench, itself):
        monkeypatch.setattr(module, "timed", lambda own, others, settings: dict(times))
    own, slow, sub = (bench.Job(lambda: None, *work) for work in ((10, 80), (5,), (10, 80)))
    case = bench.compare({}, own, {"slow": slow, "sub": sub}, chosen())
    assert case["rows/s"] == pytest.approx(5000)
    assert case["x slow"] == pytest.approx(4)
    assert case["of sub"] == pytest.approx(0.5)
    case = itself.relative_time({}, own, {"slow": slow, "sub": sub}, chosen())
    assert case["beside"] == "slow"
    assert case["times as long"] == pytest.approx(1 / 4)


@pytest.mark.parametrize(("value", "outcome"), [(4.0, "not reached"), (5.0, "reached")])
def test_targets_take_the_worst_case(value: float, outcome: str) -> None:
    about = {"case": "kendall_counts", "N": 8, "dtype": "float32", "threads": 1, "of torch.sub": 1.0}
    cases = [about | {"x torch.compile": 9.0}, about | {"x torch.compile": value}]
    first = next(targets.rows({"kendall": {"cases": cases}}))
    assert first[2:] == (f"{value:g}", outcome)


def test_memory_of_a_function() -> None:
    from benches.memory import peak_mb

    assert 90 < peak_mb(ones, (1,), (100_000_000,), 1, "cpu") < 110


def ones(size: int) -> Callable[[], object]:
    return lambda: torch.ones(size, dtype=torch.uint8)
