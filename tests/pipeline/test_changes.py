"""A finished run that is extended, changed, moved or damaged: what runs again, and what is kept."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from tests.support import tiny

GOLD = "def gold(prompts, completions, **columns):\n    return [float(len(c[0]['content'])) for c in completions]\n"


@pytest.fixture(scope="module")
def finished(
    tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """One finished round of a tiny run whose gold is a function in a file, and its configuration."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "a_gold_to_edit.py").write_text(GOLD)
    sys.path.append(str(folder))
    values = {
        "policy": tiny_models["policy"],
        "reward_model": tiny_models["reward_model"],
        "gold": "a_gold_to_edit:gold",
        "prompts": tiny.write_lines(folder / "prompts.jsonl", tiny.prompts(4)),
        "eval_prompts": tiny.write_lines(folder / "eval.jsonl", tiny.prompts(6)[4:]),
        "sampling": {"num_completions": 3, "max_new_tokens": 4},
        "selection": {"strategy": "random", "budget": 3},
        "reward": {"num_train_epochs": 1, "held_out": 0.0},
        "preflight": None,
        "rl": {"algorithm": "best_of_n", "best_of_n": {"n": 2}},
        "evaluation": {"sampling": {"num_completions": 1, "max_new_tokens": 4, "temperature": 1.0}},
        "output": str(folder / "run"),
    }
    config = folder / "config.json"
    config.write_text(json.dumps(values))
    assert main(["run", str(config)]) == 0
    yield folder, values
    sys.path.remove(str(folder))


@pytest.fixture
def case(finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Case":
    """A copy of the finished run that may be changed."""
    folder, values = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Case(tmp_path, folder, {**values, "output": str(tmp_path / "run")})
    edit_gold(folder, GOLD)


def edit_gold(folder: Path, text: str) -> None:
    """Edits the gold function, as between two processes."""
    (folder / "a_gold_to_edit.py").write_text(text)
    sys.modules.pop("a_gold_to_edit", None)


class Case:
    """A run and its configuration."""

    def __init__(self, path: Path, sources: Path, values: dict[str, Any]) -> None:
        self.path, self.sources, self.values = path, sources, values
        self.config = path / "config.json"
        self.config.write_text(json.dumps(values))

    def plan(self, capsys: pytest.CaptureFixture, *flags: str) -> dict[str, str]:
        """The planned state of each stage."""
        capsys.readouterr()
        assert main(["run", str(self.config), "--plan", "--json", *flags]) == 0
        return {stage["name"]: stage["state"] for stage in json.loads(capsys.readouterr().out)["plan"]}

    def finished_times(self) -> dict[str, str]:
        """When each stage was finished, by name."""
        folder = Path(self.values["output"])
        stages = json.loads((folder / "manifest.json").read_text())["stages"]
        return {name: stage["finished"] + str(stage["seconds"]) for name, stage in stages.items()}

    def made_by(self, *flags: str) -> set[str]:
        """Runs again and returns the stages that were made."""
        before = self.finished_times()
        assert main(["run", str(self.config), *flags]) == 0
        return {name for name, when in self.finished_times().items() if before.get(name) != when}


def test_nothing_runs_again_wherever_the_folder_is(case: Case, capsys: pytest.CaptureFixture) -> None:
    assert set(case.plan(capsys).values()) == {"done"}
    moved = (case.path / "run").rename(case.path / "moved")
    for output in (moved, Path(f"{case.path}/../{case.path.name}/moved")):
        assert set(case.plan(capsys, "--output", str(output)).values()) == {"done"}
    (case.path / "link").symlink_to(moved)
    assert set(case.plan(capsys, "--output", str(case.path / "link")).values()) == {"done"}


def test_another_round_runs_only_that_round(case: Case, capsys: pytest.CaptureFixture) -> None:
    plan = case.plan(capsys, "--rounds", "2")
    assert {name for name, state in plan.items() if state != "done"} == {n for n in plan if n.startswith("round-2/")}
    made = case.made_by("--rounds", "2")
    assert made and all(name.startswith("round-2/") for name in made)


def test_an_edited_gold_function_is_seen_and_only_what_used_it_runs_again(
    case: Case, capsys: pytest.CaptureFixture
) -> None:
    edit_gold(case.sources, GOLD.replace("[float", "[-float"))
    plan = case.plan(capsys)
    stale = {name for name, state in plan.items() if state == "stale"}
    assert {"round-0/evaluation.parquet", "round-1/evaluation.parquet", "round-1/preferences.jsonl"} <= stale
    assert not stale & {"round-1/candidates.parquet", "round-1/conflicts.parquet", "round-1/queue.jsonl"}
    assert main(["run", str(case.config)]) == 2
    assert "gold: a_gold_to_edit:gold changed" in capsys.readouterr().err.splitlines()[-1]
    assert case.made_by("--yes") == stale
    assert set(case.plan(capsys).values()) == {"done"}


def test_a_gold_that_says_the_same_leaves_what_follows_alone(case: Case) -> None:
    edit_gold(case.sources, GOLD + "\n# a comment\n")
    assert case.made_by("--yes") == {
        "round-0/evaluation.parquet",
        "round-1/evaluation.parquet",
        "round-1/preferences.jsonl",
    }


@pytest.mark.parametrize(
    ("flag", "value", "kept", "made"),
    [
        ("selection.budget", "2", "round-1/conflicts.parquet", "round-1/queue.jsonl"),
        ("reward.learning_rate", "0.001", "round-1/preferences.jsonl", "round-1/reward_model"),
        ("evaluation.sampling.num_completions", "2", "round-1/reward_model", "round-1/evaluation_candidates.parquet"),
        ("rl.best_of_n.n", "3", "round-1/reward_model", "round-1/evaluation_candidates.parquet"),
        ("sampling.temperature", "0.9", "round-0/metrics.json", "round-1/candidates.parquet"),
        ("policy_score", "mean_logprob", "round-1/candidates.parquet", "round-1/conflicts.parquet"),
        ("seed", "1", None, "round-1/candidates.parquet"),
    ],
)
def test_a_setting_makes_stale_what_uses_it(
    case: Case, capsys: pytest.CaptureFixture, flag: str, value: str, kept: str | None, made: str
) -> None:
    plan = case.plan(capsys, f"--{flag}", value)
    assert plan[made] == "stale"
    assert kept is None or plan[kept] == "done"


@pytest.mark.parametrize("flag", ["human.port", "ray.workers", "rl.ppo.learning_rate", "judge.concurrency"])
def test_a_setting_that_nothing_uses_makes_nothing_stale(case: Case, capsys: pytest.CaptureFixture, flag: str) -> None:
    assert set(case.plan(capsys, f"--{flag}", "1").values()) == {"done"}


def test_overwritten_weights_are_another_model(case: Case, capsys: pytest.CaptureFixture) -> None:
    weights = Path(case.values["reward_model"]) / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        plan = case.plan(capsys)
        assert plan["round-1/conflicts.parquet"] == "stale" and plan["round-1/candidates.parquet"] == "done"
    finally:
        weights.write_bytes(before)


def test_damage_is_found_by_verify_and_before_use(case: Case, capsys: pytest.CaptureFixture) -> None:
    assert main(["verify", str(case.path / "run")]) == 0
    assert "all outputs are as they were made" in capsys.readouterr().out
    outputs = [p for p in (case.path / "run").rglob("*") if p.is_file() and "round-" in str(p) and p.name[0] != "."]
    assert len(outputs) > 8
    for path in outputs:
        content = path.read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        for damaged in (flipped, content[: len(content) // 2], b""):
            path.write_bytes(damaged)
            assert main(["verify", str(case.path / "run")]) == 1
            assert path.name in capsys.readouterr().out
            assert main(["run", str(case.config)]) == 1
            assert path.name in capsys.readouterr().err
        path.write_bytes(content)
    assert main(["verify", str(case.path / "run")]) == 0
    manifest = case.path / "run" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    assert main(["verify", str(case.path / "run")]) == 1
    assert "not valid JSON" in capsys.readouterr().out


def test_status_shows_the_stages(case: Case, capsys: pytest.CaptureFixture) -> None:
    assert main(["status", str(case.path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("round-1/queue.jsonl") and " done " in line for line in lines)
    assert main(["status", str(case.path / "run"), "--json"]) == 0
    assert {stage["state"] for stage in json.loads(capsys.readouterr().out)["stages"]} == {"done"}
    assert main(["status", str(case.path)]) == 1
    assert "expected a run directory" in capsys.readouterr().err
