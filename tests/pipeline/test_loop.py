"""Rounds: what each hands to the next, and what is refused before any work is done."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import merge, read_preferences
from shfcas.feedback import read_queue
from shfcas.models.loading import load_policy
from shfcas.models.resolve import is_cost_model
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.content import FileHashes
from shfcas.pipeline.loop import Loop, Start, State
from shfcas.pipeline.run import run
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.rewards.scorers import ensemble_members
from shfcas.selection import SelectionConfig
from shfcas.utils.config import build
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import read_json
from tests.support import tiny


@pytest.fixture(scope="module")
def values(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration of seconds: everything tiny, no supervised stages."""
    folder = tmp_path_factory.mktemp("values")
    ppo = {
        "num_rollouts": 1,
        "rollout_batch_size": 4,
        "mini_batch_size": 2,
        "num_ppo_epochs": 1,
        "learning_rate": 1e-2,
        "max_completion_length": 6,
    }
    return {**tiny.run_values(folder, tiny_models), "preferences": tiny.pairs_file(folder), "rl": {"ppo": ppo}}


def inputs(path: Path) -> dict[str, dict[str, str]]:
    """What each stage was made from, as the manifest says."""
    return {name: stage["inputs"] for name, stage in read_json(path / "manifest.json")["stages"].items()}


def scored(loop: Loop, state: State, folder: str = "round-1") -> Path:
    """The scored candidate table of a round."""
    return loop.score(state, loop.sample(state, folder), folder)


def labelled(loop: Loop, conflicts: Path, number: int, selection: SelectionConfig) -> Path:
    """The labels of a round."""
    folder = f"round-{number}"
    return loop.label(loop.select(conflicts, folder, selection), conflicts, folder, number)


def test_a_round_starts_from_the_models_of_the_one_before(values: dict[str, Any], tmp_path: Path) -> None:
    report = run(build(RunConfig, {**values, "output": str(tmp_path / "run"), "rounds": 2}))
    assert report == tmp_path / "run" / "report.html"
    path = report.parent
    made, found = inputs(path), read_json(path / "manifest.json")["stages"]

    hashes = FileHashes(tmp_path / "hashes.json")
    policies = [hashes.model(values["policy"]), *(found[f"round-{k}/policy"]["output"] for k in (1, 2))]
    rewards = [hashes.model(values["reward_model"]), *(found[f"round-{k}/reward_model"]["output"] for k in (1, 2))]
    assert len(set(policies)) == len(set(rewards)) == 3  # each stage has changed its model
    for k in (1, 2):
        assert made[f"round-{k}/candidates.parquet"]["policy"] == policies[k - 1]
        assert made[f"round-{k}/conflicts.parquet"]["reward_model"] == rewards[k - 1]
        assert made[f"round-{k}/reward_model"]["reward_model"] == rewards[k - 1]
        assert made[f"round-{k}/policy"]["policy"] == policies[k - 1]
        assert made[f"round-{k}/policy"]["reward_model"] == rewards[k]
        # All policies are judged by the first proxy, and compared with the first answers.
        assert made[f"round-{k}/evaluation.parquet"]["proxy"] == rewards[0]
        assert made[f"round-{k}/metrics.json"]["before"] == found["round-0/evaluation.parquet"]["output"]
        assert (
            read_candidates(path / f"round-{k}/evaluation.parquet").metadata["reward_model"] == values["reward_model"]
        )
        assert read_json(path / f"round-{k}" / "metrics.json")["kl"] != 0
        labels = read_preferences(path / f"round-{k}" / "preferences.jsonl")
        assert 0 < len(labels) <= 4
        assert {(p.round, p.source, p.annotator) for p in labels} == {(k, "gold", values["gold"])}

    def seed(name: str) -> int:
        return read_candidates(path / name).metadata["seed"]

    assert seed("round-1/candidates.parquet") != seed("round-2/candidates.parquet")  # new answers in a new round
    assert seed("round-1/evaluation.parquet") == seed("round-2/evaluation.parquet")  # policies are compared alike

    groups = [read_preferences(values["preferences"])]
    for k in (1, 2):  # the original pairs and every label so far
        groups.append(read_preferences(path / f"round-{k}" / "preferences.jsonl"))
        assert read_json(path / f"round-{k}" / "reward_model" / "training.json")["pairs"] == len(merge(*groups))
    first = read_json(path / "round-0" / "metrics.json")
    assert (first["kl"], first["win_rate"]["mean"]) == (0.0, 0.5)
    assert hashes.files(path / "round-2" / "policy") == policies[2]
    load_policy(str(path / "round-2" / "policy"))


def test_without_feedback_the_proxy_stays_and_nothing_is_asked(values: dict[str, Any], tmp_path: Path) -> None:
    path = run(build(RunConfig, {**values, "output": str(tmp_path / "run"), "feedback": "none"})).parent
    made = inputs(path)
    assert not {"round-1/queue.jsonl", "round-1/preferences.jsonl", "round-1/reward_model"} & made.keys()
    assert made["round-1/policy"]["reward_model"] == FileHashes(tmp_path / "hashes.json").model(values["reward_model"])


def test_new_labels_weigh_as_often_as_they_are_told_to(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple] = []

    def train(model: str, preferences: list, *, output: Path, **rest: object) -> dict:
        calls.append((model, list(preferences)))
        output.mkdir()
        return {}

    monkeypatch.setattr("shfcas.training.reward.refine.train_reward_model", train)
    reward = {**values["reward"], "new_pair_weight": 3, "start": "backbone"}
    config = build(RunConfig, {**values, "reward": reward})
    loop = Loop(RunDirectory(tmp_path / "run", {}, 0), config)
    state = loop.prepare()
    conflicts = scored(loop, state)
    labels = labelled(loop, conflicts, 1, config.selection)
    asked = read_preferences(labels)
    after = loop.refine(replace(state, reward_model="refined before"), conflicts, labels, "round-1")
    model, pairs = calls.pop()
    assert model == values["reward_model"]  # from the backbone again, not from what was refined before
    assert [pairs.count(p) for p in asked] == [3] * len(asked)
    assert len(pairs) == 4 + 3 * len(asked)
    assert after.preferences == (*state.preferences, labels)
    assert after.reward_model == tmp_path / "run" / "round-1" / "reward_model"


def test_what_is_held_out_is_never_trained_on_in_any_round(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[set, set]] = []

    def train(model: str, pairs: list, *, output: Path, held_out: list, **rest: object) -> dict:
        calls.append(tuple({str(p.prompt) for p in part} for part in (pairs, held_out)))
        output.mkdir()
        return {}

    monkeypatch.setattr("shfcas.training.reward.refine.train_reward_model", train)
    reward = {"held_out": 0.3}
    selection = {**values["selection"], "budget": 12, "strategy": "random"}
    config = build(RunConfig, {**values, "reward": reward, "proxy": reward, "selection": selection, "preflight": None})
    loop = Loop(RunDirectory(tmp_path / "run", {}, 0), config)
    conflicts = scored(loop, State(values["policy"], values["reward_model"]))
    state = loop.prepare()
    for number in (1, 2):
        labels = labelled(loop, conflicts, number, config.selection)
        state = loop.refine(state, conflicts, labels, f"round-{number}")
    assert len(calls) == 3 and all(held_out for _, held_out in calls)
    trained, held_out = (set.union(*parts) for parts in zip(*calls, strict=True))
    assert not trained & held_out


def test_holding_out_what_the_proxy_was_trained_on_is_said(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = "shfcas.training.reward.refine.train_reward_model"
    monkeypatch.setattr(train, lambda *models, output, **rest: output.mkdir() or {})
    for share, said in ((0.2, False), (0.1, True)):
        caplog.clear()
        sections = {"proxy": {"held_out": share}, "reward": {"held_out": 0.2}, "preflight": None}
        Loop(RunDirectory(tmp_path / str(share), {}, 0), build(RunConfig, {**values, **sections})).prepare()
        assert ("some of it is what the proxy was trained on" in caplog.text) == said


def test_an_ensemble_is_refined_from_round_to_round_and_leaves_its_variances(
    values: dict[str, Any], tmp_path: Path
) -> None:
    config = build(RunConfig, {**values, "reward": {**values["reward"], "ensemble_size": 2}})
    loop = Loop(RunDirectory(tmp_path / "run", {}, 0), config)
    state = loop.prepare()
    for number in (1, 2):
        conflicts = scored(loop, state, f"round-{number}")
        assert ("reward_variances" in read_candidates(conflicts)) == (number == 2)  # the first proxy is one model
        selection = replace(config.selection, strategy="shf_cas" if number == 1 else "bald")
        labels = labelled(loop, conflicts, number, selection)
        state = loop.refine(state, conflicts, labels, f"round-{number}")
    assert len(ensemble_members(str(state.reward_model))) == 2
    assert len(read_json(Path(state.reward_model) / "training.json")["members"]) == 2


def test_a_reward_model_that_is_not_fit_to_score_stops_the_run_at_once(values: dict[str, Any], tmp_path: Path) -> None:
    headless = {**values, "reward_model": values["policy"], "output": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"fails its preflight checks: head: the model has no trained.*preflight: null"):
        run(build(RunConfig, headless))
    assert not list((tmp_path / "run").rglob("*.parquet"))
    with pytest.raises(UserError, match="no trained reward head; train one with"):
        run(build(RunConfig, {**headless, "output": str(tmp_path / "other"), "preflight": None}))


def test_a_cost_model_is_refined_as_one(values: dict[str, Any], tmp_path: Path) -> None:
    costs = {**values, "cost_model": True, "preflight": None}
    with pytest.raises(UsageError, match=r"^reward\.objective: expected cost with cost_model, got 'reward'"):
        build(RunConfig, costs)
    config = build(RunConfig, {**costs, "reward": {**values["reward"], "objective": "cost"}})
    loop = Loop(RunDirectory(tmp_path / "run", {}, 0), config)
    state = loop.prepare()
    conflicts = scored(loop, state)
    state = loop.refine(state, conflicts, labelled(loop, conflicts, 1, config.selection), "round-1")
    assert is_cost_model(str(state.reward_model))


@pytest.mark.parametrize("shaping", ["centre", "none", "par"])
def test_the_policy_follows_rewards_that_are_shaped_prompt_by_prompt(
    shaping: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict] = []

    def train(policy: str, prompts: list, *, output: Path, **more: Any) -> list:
        calls.append({"policy": policy, "prompts": prompts, **more})
        output.mkdir()
        return []

    monkeypatch.setattr("shfcas.training.algorithms.train_ppo", train)
    config = build(RunConfig, {**values, "rl": {**values["rl"], "reward_shaping": shaping}})
    loop = Loop(RunDirectory(tmp_path / "run", {}, 0), config)
    state = loop.prepare()
    conflicts = scored(loop, state)
    loop.fine_tune(state, conflicts, "round-1", Start(state))
    (call,) = calls
    assert (call["policy"], call["prompts"], list(call["metrics"])) == (values["policy"], loop.prompts, ["gold"])
    for row in read_candidates(conflicts).rows():
        rewards, count = row["rewards"], len(row["completions"])
        expected = {
            "none": rewards,
            "centre": [r - sum(rewards) / count for r in rewards],
            "par": [sum(1 / (1 + math.exp(other - r)) for other in rewards) / count for r in rewards],
        }[shaping]
        shaped = call["reward"]([row["prompt"]] * count, row["completions"], prompt_id=[row["prompt_id"]] * count)
        assert shaped == pytest.approx(expected, abs=1e-5)


def test_the_queue_asks_about_answers_of_the_table(values: dict[str, Any], tmp_path: Path) -> None:
    config = build(RunConfig, values)
    loop = Loop(RunDirectory(tmp_path / "run", {}, 0), config)
    conflicts = scored(loop, loop.prepare())
    labels = labelled(loop, conflicts, 1, config.selection)
    rows = {row["prompt_id"]: row for row in read_candidates(conflicts).rows()}
    queue = read_queue(labels.parent / "queue.jsonl")
    assert 0 < len(queue) <= 4
    for p in read_preferences(labels):
        answers = rows[p.prompt_id]["completions"]
        assert (p.chosen, p.rejected) == (answers[p.chosen_index], answers[p.rejected_index])
        better, worse = tiny.letter_reward([], [p.chosen, p.rejected])
        assert better > worse


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sft": {}}, "demonstrations: expected a file with sft, got None; set demonstrations"),
        ({"proxy": {}, "preferences": None}, "preferences: expected a file or module:function with proxy, got None"),
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
        ({"gold": None}, "missing: gold; name the gold reward, or set feedback to"),
        ({"reward": {"held_out": 2}}, r"reward\.held_out: expected at least 0 and below 1, got 2"),
        (
            {"selection": {"strategy": "bald"}},
            "reward_model: expected an ensemble with .* bald, got",
        ),
        (
            {"selection": {"strategy": "infomax"}, "proxy": {}},
            "proxy.ensemble_size: .* infomax, got 1",
        ),
        (
            {"selection": {"strategy": "reward_variance"}, "proxy": {"ensemble_size": 2, "average_weights": True}},
            "proxy.average_weights: expected False with selection.strategy reward_variance, got True",
        ),
        (
            {"selection": {"strategy": "bald"}, "proxy": {"ensemble_size": 2}, "rounds": 2},
            "reward.ensemble_size: expected at least 2 with selection.strategy bald, got 1",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(RunConfig, {**values, **change}).check_inputs()


def test_strategies_that_fit_are_not_refused(values: dict[str, Any]) -> None:
    bald = {"selection": {"strategy": "bald"}}
    for change in (
        {**bald, "proxy": {"ensemble_size": 2}},
        {**bald, "proxy": {"ensemble_size": 2}, "reward": {"ensemble_size": 2}, "rounds": 2},
        {**bald, "feedback": "none"},
        {"selection": {"strategy": "reward_margin"}},
    ):
        build(RunConfig, {**values, **change}).check_inputs()


def test_held_out_prompts_are_told_from_the_others_by_what_they_say(values: dict[str, Any], tmp_path: Path) -> None:
    same_ids = tiny.write_lines(tmp_path / "same_ids.jsonl", [{"prompt_id": "p0", "prompt": "how was the phone?"}])
    Loop(RunDirectory(tmp_path / "a", {}, 0), build(RunConfig, {**values, "eval_prompts": same_ids}))
    again = {"prompt_id": "other", "prompt": tiny.prompts(1, chat=False)[0]["prompt"]}
    same_text = tiny.write_lines(tmp_path / "same_text.jsonl", [again])
    with pytest.raises(UserError, match=r"share 1 prompts, first 'how was the soup.*evaluation must be held out"):
        Loop(RunDirectory(tmp_path / "b", {}, 0), build(RunConfig, {**values, "eval_prompts": same_text}))


def test_a_prompt_that_changed_after_its_answers_were_sampled_is_refused(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = tiny.prompts(6, chat=False)
    prompts = tiny.write_lines(tmp_path / "prompts.jsonl", rows)
    settings = {**values, "prompts": prompts, "output": str(tmp_path / "run")}
    config = build(RunConfig, settings)
    directory = RunDirectory(config.output, {}, 0)
    loop = Loop(directory, config)
    scored(loop, loop.prepare())
    rows[3]["prompt"] = "how was the morning?"
    tiny.write_lines(tmp_path / "prompts.jsonl", rows)
    loop = Loop(directory, config)
    with pytest.raises(UserError, match=r"preflight\.json was made otherwise \(prompts changed\)"):
        scored(loop, loop.prepare())


def test_a_run_is_done_once(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "config.json"  # JSON is YAML
    config.write_text(json.dumps({**values, "output": str(tmp_path / "run")}))
    assert main(["run", str(config)]) == 0
    manifest = (tmp_path / "run" / "manifest.json").read_text()
    assert main(["run", "--config", str(config)]) == 0
    assert (tmp_path / "run" / "manifest.json").read_text() == manifest
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == lines[7] == f"report: {tmp_path / 'run' / 'report.html'}"  # after a head and two rounds
    assert lines[:4] == lines[4:]
    assert main(["run", str(config), "--selection.budget", "9"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "selection.budget: 4 -> 9; made again: round-1/queue.jsonl, round-1/preferences.jsonl, round-1/" in error
    assert error.endswith("undo the changes, or make them again with --yes")
    assert (tmp_path / "run" / "manifest.json").read_text() == manifest
