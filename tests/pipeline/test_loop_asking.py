"""A whole run that asks people or a language model, over HTTP as it will."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shfcas.data.preferences import Preference, read_preferences
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.web.annotators import Annotators, add_annotators
from shfcas.feedback.web.server import running
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.inspection import status
from shfcas.pipeline.run import run
from shfcas.utils.config import build
from shfcas.utils.errors import UserError
from shfcas.utils.files import content_hash, read_json, read_jsonl
from tests.support import judge_server, tiny
from tests.support.page_client import Client, answer_all

TINY_PPO = {
    "num_rollouts": 1,
    "rollout_batch_size": 4,
    "mini_batch_size": 2,
    "num_ppo_epochs": 1,
    "learning_rate": 1e-2,
    "max_completion_length": 6,
}


@pytest.fixture(scope="module")
def values(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything tiny, one round, and nothing after the reward model: best-of-n trains no policy."""
    folder = tmp_path_factory.mktemp("values")
    values = tiny.run_values(folder, tiny_models)
    return {
        **values,
        "eval_prompts": tiny.write_lines(folder / "held_out.jsonl", [{"prompt": "how was the match?"}]),
        "preflight": None,
        "selection": {**values["selection"], "budget": 5},
        "reward": {**values["reward"], "held_out": 0},
        "rl": {"algorithm": "best_of_n", "best_of_n": {"n": 2}},
        "human": {"port": 0, "overlap": 2, "repeat_share": 0},
    }


def shorter(task: dict[str, Any]) -> str:
    left, right = (len(task[side]["text"]) for side in ("left", "right"))
    return "tie" if left == right else "left" if left < right else "right"


def longer(task: dict[str, Any]) -> str:
    return {"left": "right", "right": "left", "tie": "tie"}[shorter(task)]


def answer_by(folder: Path, choose: Any, settings: dict[str, Any]) -> list[Preference]:
    """Runs until the end, with two people who answer through the page meanwhile."""
    folder.mkdir()
    add_annotators(folder, ["ada", "ben"])
    thread = threading.Thread(target=run, args=(build(RunConfig, {**settings, "output": str(folder)}),), daemon=True)
    thread.start()
    end = time.monotonic() + 300
    while not (address := running(folder)):
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.05)
    for name, token in Annotators(folder).tokens().items():
        person = Client(address)
        person.sign_in(token)
        assert answer_all(person, choose) == 5, name
    thread.join(timeout=300)
    assert not thread.is_alive()
    return read_preferences(folder / "round-1" / "preferences.jsonl")


def test_what_people_say_on_the_page_is_what_the_reward_model_learns(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shfcas.feedback.human.QUIET_POLLS", 1)
    settings = {**values, "feedback": "human"}
    short = answer_by(tmp_path / "short", shorter, settings)
    long = answer_by(tmp_path / "long", longer, settings)
    assert short and all(len(p.chosen) < len(p.rejected) for p in short)
    assert [(p.chosen, p.rejected) for p in long] == [(p.rejected, p.chosen) for p in short]
    assert {(p.source, p.annotator, p.round) for p in short} == {("human", "ada+ben", 1)}
    one, other = (
        content_hash(tmp_path / name / "round-1" / "reward_model" / "model.safetensors") for name in ("short", "long")
    )
    assert one != other
    assert (tmp_path / "short" / "report.html").exists()
    with Store(tmp_path / "short" / STORE) as store:
        assert store.queues() == ["round-1"]
        assert len(store.judgements()) == 10


def test_a_larger_budget_asks_only_the_new_comparisons(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shfcas.feedback.human.QUIET_POLLS", 1)
    human = {**values["human"], "overlap": 1}
    selection = values["selection"]
    settings = {**values, "feedback": "human", "human": human, "output": str(tmp_path), "selection": selection}
    asked: list[dict[str, Any]] = []

    def choose(task: dict[str, Any]) -> str:
        asked.append(task)
        return shorter(task)

    for budget in (4, 7):
        config = build(RunConfig, {**settings, "selection": {**selection, "budget": budget}})
        thread = threading.Thread(target=run, args=(config,), kwargs={"approve": lambda plan: True}, daemon=True)
        thread.start()
        end = time.monotonic() + 300
        while not (address := running(tmp_path)):
            assert thread.is_alive() and time.monotonic() < end
            time.sleep(0.05)
        person = Client(address)
        person.sign_in(Annotators(tmp_path).tokens()["annotator"])
        answer_all(person, choose)
        thread.join(timeout=300)
        assert not thread.is_alive()
        queue = read_jsonl(tmp_path / "round-1" / "queue.jsonl")
        assert len(asked) == len(queue) == budget  # each comparison was asked once
    texts = {frozenset((task["left"]["text"], task["right"]["text"])) for task in asked if shorter(task) != "tie"}
    labels = read_preferences(tmp_path / "round-1" / "preferences.jsonl")
    assert {frozenset((p.chosen, p.rejected)) for p in labels} == texts
    assert all(len(p.chosen) < len(p.rejected) for p in labels)


def test_a_language_model_answers_a_run(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = {**values, "feedback": "judge", "output": str(tmp_path / "run")}
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        run(build(RunConfig, {**settings, "judge": {"model": "judge"}, "output": str(tmp_path / "refused")}))
    assert not list((tmp_path / "refused").glob("round-*"))  # said before anything was sampled
    guidelines = tmp_path / "guidelines.md"
    guidelines.write_text("The longer answer is better.\n", encoding="utf-8")
    with judge_server.JudgeServer(judge_server.longer) as server:
        settings["judge"] = {"model": "judge", "base_url": server.url, "guidelines": str(guidelines)}
        run(build(RunConfig, settings))
        asked = len(server.requests)
        guidelines.write_text("The shorter answer is better.\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"guidelines: .*guidelines\.md changed; made again: round-1/pref"):
            run(build(RunConfig, settings))
        assert len(server.requests) == asked
    labels = read_preferences(tmp_path / "run" / "round-1" / "preferences.jsonl")
    assert labels and all(len(p.chosen) > len(p.rejected) for p in labels)
    assert {(p.source, p.annotator) for p in labels} == {("judge", "judge")}
    report = read_json(tmp_path / "run" / "round-1" / "judge.json")
    assert (report["comparisons"], report["preferences"], report["asked"]) == (5, len(labels), asked)
    assert read_json(tmp_path / "run" / "round-1" / "metrics.json")["judge"] == report
    assert status(tmp_path / "run")["judges"] == {"round-1/preferences.jsonl": report}


def test_a_judge_labels_a_run_without_gold(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A column of the prompts that is called gold is no gold reward."""
    held_out = [{"prompt": f"how was the {thing}?", "topic": thing, "gold": 1.0} for thing in ("match", "phone")]
    settings = {
        **{key: value for key, value in values.items() if key != "gold"},
        "eval_prompts": tiny.write_lines(tmp_path / "held_out.jsonl", held_out),
        "rl": {"algorithm": "ppo", "ppo": TINY_PPO},
        "evaluation": {"sampling": tiny.SHORT, "group_by": "topic"},
        "feedback": "judge",
        "output": str(tmp_path / "run"),
    }
    with judge_server.JudgeServer(judge_server.longer) as server, caplog.at_level("INFO", "shfcas"):
        report = run(build(RunConfig, {**settings, "judge": {"model": "judge", "base_url": server.url}}))
    assert caplog.text.count("no gold reward: the metrics leave out") == 1
    for number in (0, 1):
        metrics = read_json(tmp_path / "run" / f"round-{number}" / "metrics.json")
        assert not {"gold_reward", "win_rate", "pair_accuracy", "detection", "groups"} & metrics.keys()
        assert metrics["proxy_reward"]["low"] <= metrics["proxy_reward"]["high"]
    page = report.read_text()
    assert "Without a gold reward" in page and "gold None" not in page
    assert "win rate [95 %]" not in page and "Does conflict find errors?" not in page
    assert "gold reward (not trained on)" not in page  # the curve
