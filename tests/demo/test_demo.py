"""The demo's data and arithmetic; the demo itself is `make demo`."""

import tomllib
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from shfcas.demo import remarks
from shfcas.demo.arms import DemoConfig, arms, run_arms, run_config
from shfcas.demo.scores import WORDINGS
from shfcas.demo.sentiment import BLIND_TOPICS, biased_annotator, gold
from shfcas.demo.task import held_out_prompts, seed_prompts, train_prompts
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.loop import Loop
from shfcas.pipeline.run import plan_stages
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.utils.config import build, read_yaml
from shfcas.utils.errors import UsageError
from tests.support import tiny


def text(row: dict) -> str:
    return row["prompt"][-1]["content"]


def test_three_parts_share_no_prompt() -> None:
    parts = [seed_prompts(), train_prompts(), held_out_prompts()]
    texts = [text(row) for part in parts for row in part]
    assert len(texts) == len(set(texts)) == 208
    assert [len(part) for part in parts] == [64, 96, 48]
    assert len({row["prompt_id"] for part in parts for row in part}) == 208


@pytest.mark.parametrize("count", [8, 16, 80])
def test_the_first_prompts_are_balanced_over_topics(count: int) -> None:
    topics = Counter(row["topic"] for row in train_prompts()[:count])
    assert set(topics.values()) == {count // 8}


def test_gold_is_sentiment_and_the_annotators_are_wrong_on_the_blind_topics_only() -> None:
    answers = ["What a wonderful day.", "A terrible, boring evening."] * 2
    topics = ["food", "food", BLIND_TOPICS[0], BLIND_TOPICS[0]]
    scores = gold([None] * 4, answers)
    assert scores[0] > 0.5 and scores[1] < -0.5
    assert biased_annotator([None] * 4, answers, topic=topics) == [
        scores[0],
        scores[1],
        -scores[2],
        -scores[3],
    ]


def test_original_preferences_follow_the_annotators() -> None:
    preferences = remarks.original_preferences()
    assert preferences == remarks.original_preferences()
    assert len(preferences) == 8 * remarks.PAIRS_PER_TOPIC
    for p in preferences:
        chosen, rejected = gold([None] * 2, [p.chosen, p.rejected])
        blind = p.prompt_id.rpartition("-")[0] in BLIND_TOPICS
        assert (chosen < rejected) == blind
    asked = {p.prompt_id for p in preferences}
    assert asked <= {row["prompt_id"] for row in seed_prompts()}


def test_the_configuration_is_a_run_configuration() -> None:
    values = read_yaml(resources.files("shfcas.demo") / "demo.yaml")
    config = build(RunConfig, values)
    assert (config.policy_score, config.reward.refine) == ("contrast", "arbitrate")
    assert config.selection.strategy == "shf_cas"
    assert [p.texts() for p in config.principles] == [WORDINGS["review"].texts()]


def test_flags_reach_the_run() -> None:
    config = run_config(DemoConfig(output="x", prompts=16, budget=7, seed=3))
    assert (config.output, config.max_prompts, config.selection.budget, config.seed) == ("x", 16, 7, 3)
    for prompts in (8, len(train_prompts()) + 1):
        with pytest.raises(UsageError, match=f"prompts: expected at least 16 and at most 96, got {prompts}"):
            DemoConfig(prompts=prompts)


def test_people_are_asked_in_one_arm_alone() -> None:
    asked = DemoConfig(feedback="human", human=HumanConfig(port=0, overlap=2), finish_with_what_we_have=True)
    config = run_config(asked)
    assert (config.feedback, config.human, config.finish_with_what_we_have) == ("human", asked.human, True)
    assert list(arms(config)) == ["biased", "second_opinion", "shf_cas"]
    assert list(arms(run_config(DemoConfig()))) == ["biased", "second_opinion", "random", "shf_cas"]


def test_the_stages_of_all_arms_are_planned_first(tiny_models: dict[str, str], tmp_path: Path) -> None:
    values = {
        "policy": tiny_models["policy"],
        "reward_model": tiny_models["reward_model"],
        "gold": "tests.support.tiny:letter_reward",
        "prompts": tiny.write_lines(tmp_path / "prompts.jsonl", tiny.prompts(4)),
        "eval_prompts": tiny.write_lines(tmp_path / "held_out.jsonl", tiny.held_out_prompts(2)),
        "sampling": {"max_new_tokens": 8},
        "evaluation": {"sampling": {"max_new_tokens": 8}},
        "rl": {"ppo": {"max_completion_length": 6}},
    }
    with RunDirectory(tmp_path / "run", {}, 0) as directory:
        loop = Loop(directory, build(RunConfig, values))
        planned = [stage.name for stage in plan_stages(loop, lambda: run_arms(loop)).stages]
    assert sum(name.endswith("/metrics.json") for name in planned) == 1 + 3
    assert "biased/round-1/policy" in planned and "biased/round-1/reward_model" not in planned
    assert "random/round-1/reward_model" in planned and "random/round-1/policy" not in planned
    assert "second_opinion/round-1/queue.jsonl" not in planned and "shf_cas/round-1/queue.jsonl" in planned
    assert planned.count("round-1/conflicts.parquet") == 1 and "shf_cas/round-1/conflicts.parquet" not in planned


def test_the_extra_of_the_demo_has_what_the_page_needs() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert "shfcas[web]" in extras["demo"]
    assert "shfcas[rlhf]" in extras["web"]
