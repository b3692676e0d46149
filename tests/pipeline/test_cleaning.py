"""A run that leaves out original pairs which its labels show to be wrong, and trains the reward model again."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import Preference, read_preferences
from shfcas.pipeline.arbitration import trusted
from shfcas.pipeline.cleaning import group_of_pairs
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.run import plan, run
from shfcas.rewards.prompt_groups import nearest_groups
from shfcas.training.reward.config import CLEAN, RefineConfig, SecondOpinionConfig
from shfcas.utils.config import build
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import read_json
from tests.support import tiny

WRONG_ABOUT = "y"


def annotators(prompts: list[Any], completions: list[Any], topic: list[str], **columns: Any) -> list[float]:
    """The gold reward: the opposite of the reward model's taste about one topic."""
    rewards = tiny_taste(prompts=prompts, completions=completions)
    return [-r if t == WRONG_ABOUT else r for r, t in zip(rewards, topic, strict=True)]


def tiny_taste(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    return [float(scorer()(prompts=[p], completions=[c])[0]) for p, c in zip(prompts, completions, strict=True)]


TASTE: dict[str, Any] = {}


def scorer() -> Any:
    return TASTE["reward_model"]


@pytest.fixture(scope="module")
def values(tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from shfcas.rewards.scorers import load_scorer

    TASTE["reward_model"] = load_scorer(tiny_models["reward_model"])
    folder = tmp_path_factory.mktemp("values")
    values = tiny.run_values(folder, tiny_models)
    rows = [{**row, "topic": "xy"[number % 2]} for number, row in enumerate(tiny.prompts(6, chat=False))]
    pairs = [{"prompt": row["prompt"], "chosen": "a good day", "rejected": "bad"} for row in rows]
    return {
        **values,
        "gold": f"{__name__}:annotators",
        "prompts": tiny.write_lines(folder / "prompts.jsonl", rows),
        "preferences": tiny.write_lines(folder / "pairs.jsonl", pairs),
        "selection": {"strategy": "random", "budget": 12},
        "reward": {
            **values["reward"],
            "refine": "clean",
            "start": "backbone",
            "held_out": 0,
            "second_opinion": {"group_by": "topic"},
        },
        "rl": {"algorithm": "best_of_n", "best_of_n": {"n": 2}},
    }


@pytest.fixture(scope="module")
def finished(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cleaned") / "run"
    run(build(RunConfig, {**values, "output": str(path)}))
    return path


def test_pairs_of_a_topic_that_labels_contradict_are_left_out(values: dict[str, Any], finished: Path) -> None:
    folder = finished / "round-1"
    report = read_json(folder / "second_opinion" / "arbiter.json")
    topics = {row["prompt"]: row["topic"] for row in read_candidates(folder / "conflicts.parquet").rows()}
    original = read_preferences(values["preferences"])
    left_out = read_preferences(folder / "second_opinion" / "left_out.jsonl")
    assert left_out == [p for p in original if topics[p.prompt] == WRONG_ABOUT] != []
    assert read_preferences(folder / "original.jsonl") == [p for p in original if topics[p.prompt] != WRONG_ABOUT]
    assert report["original"] == {"pairs": 6, "left_out": 3, "by_group": {WRONG_ABOUT: 3}}
    trust = {row["group"]: row["trust"] for row in report["trust"] if row["source"] == "reward model"}
    assert trust[WRONG_ABOUT] < 0 < trust["x"]
    training = read_json(folder / "reward_model" / "training.json")
    labels = read_preferences(folder / "preferences.jsonl")
    assert training["pairs_by_source"]["original"] == 3 and training["pairs_by_source"]["gold"] >= len(labels) > 0


def test_the_report_says_what_was_left_out(finished: Path) -> None:
    page = " ".join((finished / "report.html").read_text(encoding="utf-8").split())
    assert "3 of 6 original pairs are left out. Left out by group: y 3." in page


def test_a_second_round_starts_from_what_was_left(values: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    run(build(RunConfig, {**values, "output": str(copy), "rounds": 2}), approve=lambda planned: True)
    first, second = (read_preferences(copy / f"round-{k}" / "original.jsonl") for k in (1, 2))
    assert {p.prompt for p in second} <= {p.prompt for p in first}
    report = read_json(copy / "round-2" / "second_opinion" / "arbiter.json")
    assert report["original"]["pairs"] == len(first)


def test_what_is_lost_is_made_again_as_it_was(values: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    config = build(RunConfig, {**values, "output": str(finished)})
    assert all(stage.state == "done" for stage in plan(config).stages)
    for lost in ("second_opinion", "original.jsonl"):
        copy = shutil.copytree(finished, tmp_path / lost)
        target = copy / "round-1" / lost
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        run(build(RunConfig, {**values, "output": str(copy)}), approve=lambda planned: True)
        for name in ("second_opinion/left_out.jsonl", "original.jsonl", "reward_model/model.safetensors"):
            assert (copy / "round-1" / name).read_bytes() == (finished / "round-1" / name).read_bytes(), (lost, name)


def test_what_clean_needs(values: dict[str, Any]) -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(UsageError) as error:
            build(RunConfig, {**values, **changes}).check()
        return str(error.value)

    assert "preferences: expected a file with reward.refine clean" in refused(preferences=None)
    assert "reward.start: expected backbone" in refused(reward={**values["reward"], "start": "current"})


def test_labels_that_contradict_everything_leave_nothing_to_train_on(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.WRONG_ABOUT", "x")
    one_topic = [{**row, "topic": "x"} for row in tiny.prompts(6, chat=False)]
    prompts = tiny.write_lines(tmp_path / "prompts.jsonl", one_topic)
    reward = {**values["reward"], "second_opinion": {"group_by": "topic", "reward_trust": 0.0}}
    changed = {"prompts": prompts, "reward": reward, "output": str(tmp_path / "run")}
    with pytest.raises(UserError, match="the labels contradict the reward model about all 6 original pairs"):
        run(build(RunConfig, {**values, **changed}))


def test_a_pair_about_another_prompt_takes_the_group_of_the_most_similar_one(tiny_models: dict[str, str]) -> None:
    rows = [{"prompt": "a good day", "topic": "x"}, {"prompt": "bad night match", "topic": "y"}]
    model = tiny_models["reward_model"]
    assert nearest_groups(rows, ["x", "y"], ["bad night match", "a good day"], model) == ["y", "x"]
    settings = RefineConfig(refine=CLEAN, second_opinion=SecondOpinionConfig(group_by="topic"))
    scored = [
        {**row, "prompt_id": str(k), "completions": ["a", "b"], "rewards": [1.0, 0.0], "pacs": [0.0, 0.0]}
        for k, row in enumerate(rows)
    ]
    labels = [Preference("bad night match", "b", "a", prompt_id="1", chosen_index=1, rejected_index=0)]
    found = trusted(scored, scored, labels, reward_model=model, settings=settings, seed=0)
    pairs = [Preference(prompt, "a", "b") for prompt in ("a good day", "bad night match", "bad night")]
    assert group_of_pairs(scored, found, pairs, model) == ["x", "y", "y"]
