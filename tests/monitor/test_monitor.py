"""The monitor: measures by hand, the false-alarm rate and detection by simulation, files and the callback."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from shfcas.cli import main
from shfcas.data.candidates import CandidateTable, write_candidates
from shfcas.monitor.callback import monitor_callback
from shfcas.monitor.growth import GrowthTest
from shfcas.monitor.measures import SERIES, Answer, measures
from shfcas.monitor.reading import read_rollouts
from shfcas.monitor.watch import ConflictMonitor, MonitorConfig
from tests.support import tiny

LEVEL = 0.05
RUNS, ROLLOUTS = 400, 60


def peaks(draw: "object", runs: int = RUNS) -> np.ndarray:
    """The greatest capital of each of many runs."""
    found = []
    for run in range(runs):
        test = GrowthTest(reference=10, seed=run)
        for value in draw(np.random.default_rng(run)):  # type: ignore[operator]
            test.add(float(value))
        found.append(test.peak)
    return np.array(found)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(size=ROLLOUTS),
        lambda rng: rng.standard_cauchy(size=ROLLOUTS),
        lambda rng: rng.integers(0, 3, size=ROLLOUTS),  # mostly ties
    ],
    ids=["normal", "cauchy", "ties"],
)
def test_false_alarms_are_as_rare_as_promised(draw: "object") -> None:
    alarms = int((peaks(draw) >= 1 / LEVEL).sum())
    # A rate of at most LEVEL gives more with a probability below one in 10,000.
    assert alarms <= scipy.stats.binom.ppf(1 - 1e-4, RUNS, LEVEL)
    assert abs(np.mean([GrowthTest(2).capital]) - 1) < 1e-12


def test_growth_is_found_and_decline_is_not() -> None:
    rise = np.maximum(0, np.arange(ROLLOUTS) - 20) * 0.25

    def growing(rng: np.random.Generator) -> np.ndarray:
        return rng.normal(size=ROLLOUTS) + rise

    assert (peaks(growing, 100) >= len(SERIES) / LEVEL).mean() > 0.95
    assert (peaks(lambda rng: rng.normal(size=ROLLOUTS) - rise, 100) >= 1 / LEVEL).mean() <= 0.05


def test_the_expected_capital_is_that_of_a_martingale() -> None:
    """Of uniform p-values, by integration: each bet has mean 1."""
    for power in (0.1, 0.5, 0.9):
        grid = (np.arange(1_000_000) + 0.5) / 1_000_000
        assert np.mean(power * grid ** (power - 1)) == pytest.approx(1, abs=0.3 if power < 0.5 else 0.01)
    test = GrowthTest(reference=2)
    assert [test.add(v) for v in (1.0, 2.0)] == [1.0, 1.0]  # the reference places no bets


def answers(*rows: tuple[str, float, float, float, float]) -> list[Answer]:
    return [Answer(prompt, reward, length, logprob, kl) for prompt, reward, length, logprob, kl in rows]


def test_measures_by_hand() -> None:
    found = measures(
        answers(("a", 1, 10, -3, 0), ("a", 2, 20, -4, 1), ("a", 3, 30, -2, 2), ("b", 5, 9, -1, 4), ("b", 4, 9, -2, 3))
    )
    assert found["answers"] == 5 and found["reward"] == 3 and found["reward_std"] == pytest.approx(math.sqrt(2))
    assert found["kendall_distance"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["reward_length"] == pytest.approx(1.0)  # the tied lengths of b have no tau
    assert found["reward_kl"] == pytest.approx(1.0) and found["kl"] == 2 and found["length"] == pytest.approx(15.6)
    one_each = measures(answers(("a", 1, 1, -1, 0), ("b", 2, 2, -2, 0), ("c", 3, 3, -3, 0)))
    assert one_each["kendall_distance"] == 1.0 and "reward_kl" not in one_each
    assert set(measures([Answer("a", 1.0, 3.0)])) == {"answers", "reward", "reward_std", "length"}


def rollout(rng: random.Random, conflict: float, count: int = 32) -> list[dict]:
    """Two answers for each prompt; with the probability `conflict` the less likely one has the higher reward."""
    rows = []
    for i in range(count):
        sign = -1 if rng.random() < conflict else 1
        for k in range(2):
            logprob = -10.0 - k + 0.01 * rng.random()
            rows.append(
                {"prompt": f"p{i}", "completion": "x" * rng.randint(1, 9), "reward": -sign * k, "logprob": logprob}
            )
    return rows


def write_run(folder: Path, growing: bool) -> None:
    folder.mkdir()
    rng = random.Random(0)
    for step in range(30):
        rows = rollout(rng, 0.2 + (0.03 * max(0, step - 10) if growing else 0))
        tiny.write_lines(folder / f"{step:05d}.jsonl", [{**row, "rollout": step} for row in rows])


@pytest.mark.parametrize("growing", [False, True])
def test_the_command_finds_growing_conflict(growing: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "completions", growing)
    assert main(["monitor", str(tmp_path / "completions"), "--json"]) == int(growing)
    result = json.loads(capsys.readouterr().out)
    assert len(result["rollouts"]) == 30
    assert set(result["alarms"]) == ({"kendall_distance", "mean_abs_pacs"} if growing else set())
    if growing:
        assert 10 < result["alarms"]["kendall_distance"] < 28
        assert result["rollouts"][-1]["kendall_distance_growth"] > 0.2
    assert main(["monitor", str(tmp_path / "completions")]) == int(growing)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 32 and ("ALARM kendall_distance" in "".join(lines)) == growing
    assert ("kendall_distance at rollout" in lines[-1]) == growing == (lines[-1] != "alarms: none")


def test_files_of_each_kind_are_the_same_rollouts(tmp_path: Path) -> None:
    table = [
        {
            "prompt_id": "p",
            "prompt": "how?",
            "completions": ["aa", "b"],
            "rewards": [1.0, 2.0],
            "logprobs": [-3.0, -1.0],
            "base_logprobs": [-3.5, -2.0],
            "num_tokens": [2, 1],
        }
    ]
    for name in ("one", "two"):
        write_candidates(tmp_path / f"{name}.parquet", CandidateTable.from_rows(table))
    both = list(read_rollouts([tmp_path / "one.parquet", tmp_path / "two.parquet"]))
    assert both == [[Answer("p", 1.0, 2.0, -3.0, 0.5), Answer("p", 2.0, 1.0, -1.0, 1.0)]] * 2
    lines = [{"input": "how?", "output": "aa", "score": 1.0, "step": s} for s in (1, 1, 2)]  # as verl writes them
    tiny.write_lines(tmp_path / "verl.jsonl", lines)
    assert [len(r) for r in read_rollouts([tmp_path / "verl.jsonl"])] == [2, 1]
    log = [{"prompt_id": "p", "prompt": "how?", "completion": "aa", "reward": i} for i in range(5)]
    tiny.write_lines(tmp_path / "log.jsonl", log)
    assert [len(r) for r in read_rollouts([tmp_path / "log.jsonl"], size=2)] == [2, 2, 1]
    rows = [{"step": 3, "prompt": "how?", "completion": "aa", "gold": 1.5, "advantage": 0.1}]
    (tmp_path / "trl").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "trl" / "completions_00003.parquet")
    ((answer,),) = read_rollouts([tmp_path / "trl"], reward="gold")
    assert (answer.reward, answer.length) == (1.5, 2.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n', "expected a reward (reward, score, scores)"),
        ("a.jsonl", '{"prompt": "a", "reward": 1}\n', "expected a completion (completion, output, response)"),
        ("a.txt", "", "expected .jsonl or .parquet"),
    ],
)
def test_what_is_no_rollout_is_an_error(
    name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["monitor", str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err
    assert main(["monitor"]) == 2


def test_rewards_that_do_not_apply_are_left_out() -> None:
    monitor = ConflictMonitor(MonitorConfig(reference=2))
    assert monitor.add([Answer("a", math.nan, 1.0)]) is None
    seen = monitor.add([Answer("a", math.nan, 1.0), Answer("a", 2.0, 1.0)])
    assert seen is not None and seen.measures["answers"] == 1 and not seen.alarms


def test_the_callback_reads_each_rollout_once_logs_and_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path / "run", growing=True)
    callback = monitor_callback(stop=True)
    args, control = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(should_training_stop=False)
    (tmp_path / "completions").mkdir()
    logged = []
    for file in sorted((tmp_path / "run").iterdir()):
        file.rename(tmp_path / "completions" / file.name)
        for _ in range(2):
            logs: dict[str, float] = {}
            callback.on_log(args, None, control, logs=logs)
            logged.append(logs)
        if control.should_training_stop:
            break
    (alarm,) = callback.monitor.alarms
    assert control.should_training_stop and alarm in ("kendall_distance", "mean_abs_pacs")
    assert len(callback.monitor.observations) == len(logged) / 2 < 30
    assert "monitor/kendall_distance_evidence" in logged[-2] and not logged[-1]
    assert f"monitor: {alarm} has grown by" in caplog.text
