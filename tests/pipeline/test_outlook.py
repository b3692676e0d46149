"""What a run will take, counted before any stage is made."""

import json
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.models.loading import load_policy
from shfcas.pipeline import outlook
from shfcas.pipeline.inspection import status
from tests.support import judge_server, tiny
from tests.support.interruption import killed_at


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
        "rl": {"ppo": {"num_rollouts": 3, "rollout_batch_size": 8, "mini_batch_size": 4, "max_completion_length": 10}},
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


def small(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """One round of seconds, with best-of-n."""
    best = {"rl": {"algorithm": "best_of_n", "best_of_n": {"n": 2}}, "reward": {"held_out": 0.0, "num_train_epochs": 1}}
    return {**config, **best, "preflight": None, "rounds": 1, **changes}


def test_tokens_are_counted_with_those_of_training(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    found = json.loads(planned(config, capsys, "--json"))["outlook"]
    assert found["tokens"] == found["completions"] * 4 + found["rollouts"] * 10
    assert "tokens:       at most 712 to sample, also in training" in planned(config, capsys).splitlines()


def test_times_are_those_of_finished_stages_of_the_same_kind(
    config: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    config = small(config)
    path = Path(config["output"]).with_name("config.json")
    assert "time:         no measured rate yet for 11 stages" in planned(config, capsys).splitlines()
    assert main(["run", str(path)]) == 0
    stages = json.loads((Path(config["output"]) / "manifest.json").read_text())["stages"]
    plan = {stage["name"]: stage for stage in json.loads(planned(config, capsys, "--json", "--rounds", "2"))["plan"]}
    assert all(plan[name]["seconds"] is None for name in stages)  # done
    sampled = [stages[name] for name in stages if "candidates" in name]
    assert sorted(stage["work"]["amount"] for stage in sampled) == [3 * 2 * 4, 3 * 2 * 2 * 4, 5 * 4 * 4]
    rate = sum(stage["seconds"] for stage in sampled) / sum(stage["work"]["amount"] for stage in sampled)
    assert plan["round-2/candidates.parquet"]["seconds"] == pytest.approx(rate * 5 * 4 * 4)
    assert plan["round-2/reward_model"]["seconds"] == stages["round-1/reward_model"]["seconds"]
    text = planned(config, capsys, "--rounds", "2")
    assert "stages; " not in text and f"for {sum(s['state'] != 'done' for s in plan.values())} stages" in text
    assert "nothing is left to do" in planned(config, capsys)


def test_a_stage_that_was_resumed_has_no_rate(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    config = small(config)
    planned(config, capsys)
    command = ["run", str(Path(config["output"]).with_name("config.json"))]
    with killed_at(Path(config["output"]), "round-1/.candidates.parquet.work"):
        main(command)
    assert main(command) == 0
    work = {
        n: s["work"] for n, s in json.loads((Path(config["output"]) / "manifest.json").read_text())["stages"].items()
    }
    assert not work["round-1/candidates.parquet"] and work["round-1/conflicts.parquet"]


def test_a_language_model_has_tokens_and_a_price(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    with judge_server.JudgeServer(judge_server.longer) as server:
        judge = {"model": "j", "base_url": server.url, "max_tokens": 50}
        evaluation = {**config["evaluation"], "judge": "judge"}
        config = small(config, feedback="judge", judge=judge, evaluation=evaluation)
        found = json.loads(planned(config, capsys, "--json"))["outlook"]
        assert (found["comparisons"], found["compared"]) == (7, 6)
        assert found["judge"]["output_tokens"] == 13 * 2 * 50 and not found["judge"]["measured"]
        assert found["judge"]["price"] is None
        assert "set judge.price_per_million_input and" in planned(config, capsys)
        config["judge"] |= {"price_per_million_input": 1e6, "price_per_million_output": 0.0}
        most = json.loads(planned(config, capsys, "--json"))["outlook"]["judge"]
        assert most["price"] == most["input_tokens"] > 13 * 2 * 100
        path = Path(config["output"]).with_name("config.json")
        assert main(["run", str(path)]) == 0
        spent = sum(r["input_tokens"] for r in status(Path(config["output"]))["judges"].values())
        more = json.loads(planned(config, capsys, "--json", "--rounds", "2"))["outlook"]["judge"]
        assert more["measured"] and 0 < more["input_tokens"] < most["input_tokens"] and spent > 0
        assert "price " in planned(config, capsys, "--rounds", "2")
        assert json.loads(planned(config, capsys, "--json"))["outlook"]["judge"] is None


def test_people_have_no_rate(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    config = small(config, feedback="human", evaluation={**config["evaluation"], "judge": "human"}, human={"port": 0})
    lines = planned(config, capsys).splitlines()
    assert sum("waits for people" in line for line in lines) == 2
    assert "comparisons:  at most 7 to label, and 6 pairs to compare with the base" in lines
    assert any(line.startswith("time:") and line.endswith("2 stages wait for people") for line in lines)
