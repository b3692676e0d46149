"""A run that is killed in one stage after another ends as a run that nothing has interrupted."""

import json
from pathlib import Path

import pytest

from shfcas.cli import main
from tests.support.interruption import killed_at
from tests.support.processes import Command

# A kill comes as soon as this path is there; the ones inside .work show that a stage has made progress.
KILL_AT = [
    "round-0/.policy.work/checkpoint-*",
    "round-0/.reward_model.work/checkpoint-*",
    "round-0/.evaluation_candidates.parquet.work/shard-*",
    "round-1/.candidates.parquet.work/shard-*",
    "round-1/conflicts.parquet",
    "round-1/queue.jsonl",
    "round-1/.reward_model.work/checkpoint-*",
    "round-1/.policy.work/checkpoint-2/ppo_state.json",
    "round-1/.policy.work/checkpoint-6/ppo_state.json",
    "round-1/.policy.partial",
    "round-1/.evaluation_candidates.parquet.work/shard-*",
    "round-1/metrics.json",
]
RESULTS = ["round-0/metrics.json", "round-1/queue.jsonl", "round-1/preferences.jsonl", "round-1/metrics.json"]


def check_same(broken: Path, unbroken: Path) -> None:
    """All results are the same, every stage is done, and nothing unfinished is left."""
    for name in RESULTS:
        assert (broken / name).read_text() == (unbroken / name).read_text(), name
    history = [(run / "round-1/policy/history.json").read_text() for run in (broken, unbroken)]
    assert len(json.loads(history[0])) == 4
    assert history[0] == history[1]
    stages = json.loads((broken / "manifest.json").read_text())["stages"]
    assert all(stage["state"] == "done" for stage in stages.values())
    assert not list(broken.rglob(".*.partial")) and not list(broken.rglob(".*.work"))


def test_interrupted_and_resumed_equals_unbroken(run_config: Path, finished_run: Path, tmp_path: Path) -> None:
    command = ["run", str(run_config), "--output", str(tmp_path / "run")]
    for pattern in KILL_AT[6::3]:  # amid both trainings; the processes below are killed at all points
        with killed_at(tmp_path / "run", pattern):
            main(command)
    assert main(command) == 0
    check_same(tmp_path / "run", finished_run)


@pytest.mark.system
def test_killed_and_resumed_equals_unbroken(run_config: Path, finished_run: Path, tmp_path: Path) -> None:
    command = ["run", str(run_config), "--output", str(tmp_path / "run")]
    for number, pattern in enumerate(KILL_AT):
        Command(command, tmp_path / f"printed-{number}").kill_at(tmp_path / "run", pattern)
    Command(command, tmp_path / "printed").finish()
    check_same(tmp_path / "run", finished_run)


def test_a_changed_setting_of_a_finished_stage_needs_approval(
    run_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    with killed_at(output, "round-1/reward_model"):
        main(["run", str(run_config), "--output", str(output)])
    changed = tmp_path / "changed.yaml"
    changed.write_text(run_config.read_text().replace("budget: 8", "budget: 9"))
    assert main(["run", str(changed), "--output", str(output)]) == 2
    errors = capsys.readouterr().err
    assert "selection.budget: 8 -> 9; made again: round-1/queue.jsonl" in errors and "--yes" in errors
    assert "Traceback" not in errors
