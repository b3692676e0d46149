"""Checks before the first stage: each mistake is one line with the key, and nothing has been made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shfcas.cli import main
from shfcas.data.messages import prompt_key
from shfcas.pipeline.checks import check_reward
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.run import plan, run
from shfcas.utils.config import build
from shfcas.utils.errors import MissingExtra, UsageError, UserError
from tests.support import tiny

HELD_OUT = "how was the match?"
SHORT = {"num_completions": 2, "max_new_tokens": 6}


@pytest.fixture
def values(tiny_models: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """A configuration that passes all checks."""
    return {
        "policy": tiny_models["policy"],
        "reward_model": tiny_models["reward_model"],
        "gold": "tests.support.tiny:letter_reward",
        "prompts": tiny.write_lines(tmp_path / "prompts.jsonl", tiny.prompts(4, chat=False)),
        "eval_prompts": tiny.write_lines(tmp_path / "held_out.jsonl", [{"prompt": HELD_OUT}]),
        "preflight": None,
        "sampling": SHORT,
        "selection": {"strategy": "random", "budget": 2},
        "reward": {"num_train_epochs": 1, "held_out": 0.0},
        "rl": {"algorithm": "best_of_n", "best_of_n": {"n": 2}},
        "evaluation": {"sampling": SHORT},
        "output": str(tmp_path / "run"),
    }


def refused(values: dict[str, Any], message: str, error: type[UserError] = UserError) -> None:
    """Both the plan and the run stop with this message, before anything is made."""
    for start in (plan, run):
        with pytest.raises(error, match=message) as caught:
            start(build(RunConfig, values))
        assert "\n" not in str(caught.value)
    assert not list(Path(values["output"]).glob("round-*"))


def test_a_sound_configuration_passes(values: dict[str, Any]) -> None:
    assert {stage.state for stage in plan(build(RunConfig, values)).stages} == {"to do"}


@pytest.mark.parametrize("source", ["prompts", "eval_prompts", "bootstrap.prompts"])
def test_a_prompt_that_is_too_long_is_named(values: dict[str, Any], tmp_path: Path, source: str) -> None:
    rows = [{"prompt_id": "short", "prompt": "a good film?"}, {"prompt_id": "long", "prompt": "good " * 150}]
    path = tiny.write_lines(tmp_path / "long.jsonl", rows)
    key, _, inner = source.partition(".")
    scorer = values["gold"]
    section = {"prompts": path, "demonstrator": scorer, "sampling": SHORT} if inner else path
    changed = {**values, key: section, **({"sft": {}} if inner else {})}
    field = {"prompts": "sampling", "eval_prompts": "evaluation.sampling"}.get(source, "bootstrap.sampling")
    message = rf"{source}: prompt 'long' has \d+ tokens .* lower {field}\.max_new_tokens"
    refused(changed, message)


def test_prompts_that_training_would_refuse_are_counted(values: dict[str, Any]) -> None:
    ppo = {"max_completion_length": 6, "num_rollouts": 1, "rollout_batch_size": 4, "mini_batch_size": 2}
    values["rl"] = {"ppo": {**ppo, "max_prompt_length": 3}}
    refused(
        values,
        r"^rl\.ppo\.max_prompt_length: 4 of 4 prompts are longer than max_prompt_length 3, first prompt 'p0' with \d+ "
        r"tokens, the longest with \d+; shorten or drop them, or raise rl\.ppo\.max_prompt_length$",
    )
    values["rl"] = {"algorithm": "rloo", "rloo": {**ppo, "num_generations": 2, "max_completion_length": 127}}
    refused(values, r"^rl\.rloo\.max_prompt_length: 4 of 4 .* lower rl\.rloo\.max_completion_length$")
    plan(build(RunConfig, {**values, "rl": {"ppo": ppo}}))


def test_a_prompt_that_the_template_refuses_is_named(values: dict[str, Any], tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}")
    policy = tmp_path / "policy"
    tiny.save_policy(policy)
    (policy / "chat_template.jinja").unlink()
    rows = [{"prompt_id": "odd", "prompt": [{"role": "system", "content": "be kind"}]}]
    held_out = tiny.write_lines(tmp_path / "odd.jsonl", rows)
    changed = {**values, "policy": str(policy), "chat_template": str(template), "eval_prompts": held_out}
    refused(
        changed, r"eval_prompts: prompt 'odd': the chat template .* rejects a conversation of system.*no system turn"
    )


def crash(prompts: list, completions: list, **columns: object) -> list[float]:
    raise KeyError("topic")


def returns(value: Any) -> Callable[..., Any]:
    return lambda prompts, completions, **columns: value(len(completions))


nan, none, text, numerals, few = (
    returns(value)
    for value in (
        lambda n: [float("nan")] * n,
        lambda n: [None] * n,
        lambda n: ["good"] * n,
        lambda n: ["1.0"] * n,
        lambda n: [1.0] * (n - 1),
    )
)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "crash",
            r":crash \(.*test_checks.py:\d+\) failed: KeyError: 'topic'; fix the function",
        ),
        ("nan", "answer 0 of prompt 'p0' is not a number but nan"),
        ("none", "answer 0 of prompt 'p0' is not a number but None"),
        ("text", "expected a number for answer 0, got 'good'"),
        ("numerals", "expected a number for answer 0, got '1.0'"),
        ("few", "expected 2 rewards, one per answer, got 1"),
    ],
)
def test_a_gold_function_is_tried_out(values: dict[str, Any], function: str, message: str) -> None:
    name = f"{__name__}:{function}"
    refused({**values, "gold": name}, f"gold: .*{message}")


def test_a_gold_model_needs_a_trained_head(values: dict[str, Any]) -> None:
    refused({**values, "gold": values["policy"]}, "no trained reward head")
    check_reward("gold", values["reward_model"], {})


def test_one_answer_per_prompt_gives_no_pairs(values: dict[str, Any]) -> None:
    one = {**values, "sampling": {**SHORT, "num_completions": 1}}
    refused(one, r"sampling\.num_completions: expected at least 2 .*, got 1; raise it", UsageError)
    plan(build(RunConfig, {**one, "feedback": "none"}))


@pytest.mark.parametrize("source", ["prompts", "preferences", "demonstrations", "bootstrap.prompts"])
def test_held_out_prompts_are_in_no_training_data(values: dict[str, Any], tmp_path: Path, source: str) -> None:
    """Neither as text nor as a message, with or without keys that are null."""
    for number, prompt in enumerate(
        (
            f"{HELD_OUT} ",
            [{"role": "user", "content": HELD_OUT}],
            [{"role": "user", "content": HELD_OUT, "name": None, "tool_calls": []}],
        )
    ):
        row = {"prompt": prompt, "chosen": "good", "rejected": "bad", "completion": "good"}
        path = tiny.write_lines(tmp_path / f"shared{number}.jsonl", [row])
        key, _, inner = source.partition(".")
        changed = {**values, key: {"prompts": path, "demonstrator": values["gold"]} if inner else path}
        if source in ("demonstrations", "bootstrap.prompts"):
            changed["sft"] = {}
        refused(changed, rf"^{source} and eval_prompts share 1 prompts, first 'how was the match\?'.*remove them")


def test_prompts_differ_by_what_they_say() -> None:
    user = {"role": "user", "content": "hi"}
    assert prompt_key("hi") == prompt_key([user]) == prompt_key([{**user, "name": None}])
    different = ["hi", "ho", [user, user], [{**user, "role": "system"}], [{**user, "name": "ada"}]]
    assert len({prompt_key(prompt) for prompt in different}) == len(different)


def test_a_package_that_is_needed_is_looked_for(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shfcas.pipeline.checks.find_spec", lambda name: None)
    plan(build(RunConfig, values))
    for change, extra in (
        ({"engine": "ray"}, "ray"),
        ({"sampling": {**SHORT, "generator": "vllm"}}, "vllm"),
        ({"evaluation": {"sampling": {**SHORT, "generator": "openai"}}}, "rlhf"),
    ):
        refused({**values, **change}, rf"shfcas\[{extra}\]", MissingExtra)


def test_what_is_done_is_not_checked_again(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run(build(RunConfig, values))
    monkeypatch.setattr("shfcas.pipeline.checks.check_reward", lambda *given: pytest.fail("gold was called"))
    monkeypatch.setattr("shfcas.pipeline.checks.policy_tokenizer", lambda *given: pytest.fail("a tokenizer was read"))
    assert {stage.state for stage in plan(build(RunConfig, values)).stages} == {"done"}
    run(build(RunConfig, values))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**values, "gold": f"{__name__}:few"}))
    monkeypatch.undo()
    assert main(["run", str(config)]) == 1
    assert "expected 2 rewards, one per answer, got 1" in capsys.readouterr().err.splitlines()[-1]
