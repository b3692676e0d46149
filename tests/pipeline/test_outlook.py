"""What a run will take, counted before any stage is made."""

import json
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.models.loading import load_policy
from shfcas.pipeline import outlook
from tests.support import tiny


@pytest.fixture
def config(tiny_models: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """Two rounds with PPO and an ensemble of two reward models."""
    return {
        "policy": tiny_models["policy"],
        "reward_model": tiny_models["reward_model"],
        "gold": "tests.support.tiny:letter_reward",
        "prompts": tiny.write_lines(tmp_path / "prompts.jsonl", tiny.prompts(6)),
        "eval_prompts": tiny.write_lines(tmp_path / "held_out.jsonl", tiny.held_out_prompts(3)),
        "max_prompts": 5,
        "sampling": {"num_completions": 4, "max_new_tokens": 4},
        "selection": {"strategy": "random", "budget": 7},
        "reward": {"ensemble_size": 2, "held_out": 0.0},
        "rl": {"ppo": {"num_rollouts": 3, "rollout_batch_size": 8, "mini_batch_size": 4}},
        "evaluation": {"sampling": {"num_completions": 2, "max_new_tokens": 4}},
        "rounds": 2,
        "output": str(tmp_path / "run"),
    }


def planned(config: dict[str, Any], capsys: pytest.CaptureFixture, *flags: str) -> str:
    path = Path(config["output"]).with_name("config.json")
    path.write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["run", str(path), "--plan", *flags]) == 0
    return capsys.readouterr().out


def test_a_plan_counts_what_is_left(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    found = json.loads(planned(config, capsys, "--json"))["outlook"]
    assert (found["prompts"], found["eval_prompts"], found["comparisons"]) == (5, 3, 14)
    assert found["completions"] == 2 * 5 * 4 + 3 * 3 * 2
    assert found["rollouts"] == 2 * 3 * 8
    assert found["models"].keys() == {"policy", "reward_model"}  # gold is a function
    weights = sum(p.numel() for p in load_policy(config["policy"])[0].parameters()) * 4
    assert weights < found["models"]["policy"]["bytes"] < weights + 10_000
    policy, reward = (found["models"][role]["bytes"] for role in ("policy", "reward_model"))
    tables = outlook.ANSWER_BYTES * found["completions"]
    assert found["disk"]["needed"] == 2 * policy + 4 * reward + 6 * max(policy, 2 * reward) + tables


def test_best_of_n_samples_more_and_trains_no_policy(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    best = {**config, "rl": {"algorithm": "best_of_n", "best_of_n": {"n": 3}}}
    found = json.loads(planned(best, capsys, "--json"))["outlook"]
    assert found["completions"] == 2 * 5 * 4 + (1 + 3 + 3) * 3 * 2
    assert found["rollouts"] == 0


def test_a_small_disk_is_a_warning(
    config: dict[str, Any], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = planned(config, capsys).splitlines()
    assert "comparisons:  at most 14 to label" in lines
    assert "completions:  58 to sample, and 48 in training" in lines
    assert lines[-1].startswith("disk: ")
    monkeypatch.setattr(outlook, "free_bytes", lambda path: 1000)
    assert planned(config, capsys).splitlines()[-1].startswith("warning: the disk may be too small; free some space")
