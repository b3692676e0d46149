"""Policies that people or a language model compare with the base, in runs without a gold reward."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.feedback.web.annotators import Annotators
from shfcas.feedback.web.server import running
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.inspection import status
from shfcas.pipeline.results import results, table
from shfcas.pipeline.run import plan, run
from shfcas.utils.config import build
from shfcas.utils.errors import UsageError
from shfcas.utils.files import read_json
from tests.support import judge_server, tiny
from tests.support.page_client import Client
from tests.support.processes import Command

SHORT = {"num_completions": 3, "temperature": 1.0, "max_new_tokens": 6}


@pytest.fixture
def values(tiny_models: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """No gold reward, no annotators of the reward model, and best-of-n, so that only the comparison takes time."""
    return {
        "policy": tiny_models["policy"],
        "reward_model": tiny_models["reward_model"],
        "prompts": tiny.write_lines(tmp_path / "prompts.jsonl", tiny.prompts(4)),
        "eval_prompts": tiny.write_lines(tmp_path / "held_out.jsonl", tiny.held_out_prompts(4)),
        "preflight": None,
        "feedback": "none",
        "sampling": SHORT,
        "selection": {"strategy": "random", "budget": 4},
        "reward": {"num_train_epochs": 1, "held_out": 0.0},
        "rl": {"algorithm": "best_of_n", "best_of_n": {"n": 3}},
        "evaluation": {"sampling": SHORT, "judge": "judge", "num_comparisons": 6},
        "human": {"port": 0, "repeat_share": 0},
        "output": str(tmp_path / "run"),
    }


def stale(values: dict[str, Any], **changes: Any) -> set[str]:
    return {stage.name for stage in plan(build(RunConfig, {**values, **changes})).stages if stage.state != "done"}


def test_a_language_model_compares_the_last_policy(values: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    with judge_server.JudgeServer(judge_server.longer) as server:
        prices = {"price_per_million_input": 1.0, "price_per_million_output": 2.0}
        values["judge"] = {"model": "judge", "base_url": server.url, **prices}
        report = run(build(RunConfig, values))
        asked = len(server.requests)
        found = read_json(report.parent / "round-1" / "win_rate.json")
        assert asked == 2 * found["asked"] > 0 and found["answered"] == found["asked"]
        assert found["pairs"] == 6 and found["win_rate"]["count"] == 4
        run(build(RunConfig, values))
        assert len(server.requests) == asked and not stale(values)

        config = build(RunConfig, values)
        first, last = results(config, report.parent)
        assert "judged" not in first and last["judged"] == found and last["cost"] == found["report"]["cost"] > 0
        text = table([first, last])
        assert "win rate by judge [95 %]" in text and f"{found['asked']} of {found['asked']}" in text.splitlines()[-1]
        assert f"{found['win_rate']['mean']:.3f} [" in text
        state = status(report.parent)
        assert state["win_rates"] == {"round-1/win_rate.json": found}
        assert state["judges"] == {"round-1/win_rate.json": found["report"]}
        assert main(["status", str(report.parent)]) == 0
        assert "round-1/win_rate.json: win rate 0." in capsys.readouterr().out
        page = report.read_text()
        assert "judged by" in page and "Blind pairs" in page

        evaluation = values["evaluation"]
        pairs, rate = "round-1/blind_pairs.parquet", "round-1/win_rate.json"
        assert stale(values, evaluation={**evaluation, "num_comparisons": 5}) == {pairs, rate}
        assert stale(values, evaluation={**evaluation, "judge": "human"}) == {rate}
        assert stale(values, judge={**values["judge"], "criterion": "it is shorter"}) == {rate}
        assert stale(values, evaluation={**evaluation, "judge": "gold"}) == set()
        each = build(RunConfig, {**values, "rounds": 2, "evaluation": {**evaluation, "judge_rounds": "each"}})
        run(each)
        assert [("judged" in row) for row in results(each, report.parent)] == [False, True, True]


def test_an_edited_gold_does_not_ask_again(values: dict[str, Any]) -> None:
    """The answers are the same, whatever gold says about them; with best-of-n they are in the table with gold."""
    ppo = {"num_rollouts": 1, "rollout_batch_size": 4, "mini_batch_size": 2, "num_ppo_epochs": 1}
    values["rl"] = {"ppo": {**ppo, "max_completion_length": 6}}
    with judge_server.JudgeServer(judge_server.longer) as server:
        values["judge"] = {"model": "judge", "base_url": server.url}
        run(build(RunConfig, values))
        again = stale(values, gold="tests.support.tiny:letter_reward")
        assert "round-1/evaluation.parquet" in again
        assert not again & {"round-1/blind_pairs.parquet", "round-1/win_rate.json"}


def test_what_the_judge_needs_is_checked_first(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"missing: judge\.model"):
        plan(build(RunConfig, values))
    evaluation = {**values["evaluation"], "judge": "someone"}
    with pytest.raises(UsageError, match=r"evaluation\.judge: expected one of gold, human, judge, got 'someone'"):
        build(RunConfig, {**values, "evaluation": evaluation})


def answer(run: Path, command: Command, choose: Callable[[dict[str, Any]], str], most: int = 10**6) -> int:
    """Signs in at the page of a run and answers; returns the number of answers."""
    end = time.monotonic() + 300
    while not (address := running(run)):
        assert command.process.exitcode is None and time.monotonic() < end, command.printed()
        time.sleep(0.05)
    person = Client(address)
    person.sign_in(Annotators(run).tokens()["annotator"])
    count = 0
    while count < most and (task := person.next()):
        assert person.judge(task, choose(task)).status == 200
        count += 1
    return count


def longest(task: dict[str, Any]) -> str:
    left, right = (len(task[side]["text"]) for side in ("left", "right"))
    return "tie" if left == right else "left" if left > right else "right"


@pytest.mark.system
def test_people_label_and_compare_on_the_page_without_gold(values: dict[str, Any], tmp_path: Path) -> None:
    """Two tiny models and one person: from the first prompt to the table at the end, killed while it waits."""
    values |= {"feedback": "human", "evaluation": {**values["evaluation"], "judge": "human"}}
    config, path = tmp_path / "config.json", Path(values["output"])
    config.write_text(json.dumps(values))
    command = Command(["run", str(config), "--json"], tmp_path / "printed-0")
    labels = answer(path, command, longest)
    waiting = Command.kill_at
    waiting(command, path, "round-1/.win_rate.json.work")
    before = read_json(path / "manifest.json")["stages"]
    assert before["round-1/preferences.jsonl"]["state"] == "done"
    command = Command(["run", str(config), "--json"], tmp_path / "printed-1")
    assert answer(path, command, longest, most=2) == 2
    command.process.kill()
    command.process.join()
    command = Command(["run", str(config), "--json"], tmp_path / "printed-2")
    rest = answer(path, command, longest)
    command.finish()
    found = read_json(path / "round-1" / "win_rate.json")
    assert labels == 4 and found["asked"] == found["answered"] == 2 + rest  # each comparison was asked once
    printed = command.printed()
    rounds = json.loads(printed[printed.index('{\n  "rounds"') :])["rounds"]
    assert rounds[1]["judged"] == found and rounds[1]["labels"]["asked"] == 4
    assert "gold_reward" not in rounds[1]
    made = status(path)
    assert {row["queue"]: row["answered"] for row in made["queues"]} == {
        "round-1": 4,
        "round-1-evaluation": found["asked"],
    }
    assert table(rounds).splitlines()[0].split()[:4] == ["round", "win", "rate", "by"]
