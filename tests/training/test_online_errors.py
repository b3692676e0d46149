"""RLOO and GRPO: what stops them, and settings, prompts and rewards that are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shfcas.training.online.train import train_online
from shfcas.utils.errors import UserError
from tests.support.online_runs import BOTH, liked, prompts, run, save_policy, short


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("models") / "policy")


@BOTH
def test_a_policy_that_goes_too_far_is_stopped_before_another_update(
    algorithm: type, policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    once = run(policy, tmp_path / "once", short(algorithm, lr_scheduler_type="constant", num_rollouts=1))
    settings = short(algorithm, lr_scheduler_type="constant", max_kl=1e-4, save_rollouts=1)
    history, weights = run(policy, tmp_path, settings)
    assert "exceeds max_kl=0.0001: training stops before another update" in caplog.text
    assert [row.get("kl_guard") for row in history] == [None, 1.0]
    assert weights == once[1]


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_generations": 3},
            r"^rollout_batch_size: .* multiple of num_generations \(3\), got 16; change one of them$",
        ),
        ({"mini_batch_size": 5}, r"^rollout_batch_size: expected a multiple of mini_batch_size \(5\), got 16"),
        (
            {"gradient_accumulation_steps": 3},
            r"^mini_batch_size: .* gradient_accumulation_steps \(3\), got 8",
        ),
        ({"rollout_batch_size": 0}, "rollout_batch_size: expected at least 1, got 0"),
        ({"num_generations": 1}, "num_generations: expected at least 2, got 1; answers to one prompt are compared"),
        ({"kl_coef": -1.0}, "kl_coef: expected at least 0, got -1.0"),
        ({"temperature": 0.0}, "temperature: expected above 0, got 0.0"),
        ({"num_rollouts": 0}, "num_rollouts: expected at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_model_is_loaded(
    algorithm: type, changes: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train_online(
            "./no-model",
            prompts(),
            reward=liked,
            settings=short(algorithm, **changes),
            output=tmp_path,
            work_dir=tmp_path,
            seed=0,
        )


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_prompt_length": 2}, r"row 2: the prompt has 3 tokens, more than max_prompt_length=2"),
        ({"max_completion_length": 62}, r"row 2: a prompt of 3 tokens and max_completion_length=62 do not fit"),
    ],
)
def test_a_prompt_that_is_too_long_is_an_error_and_never_cut(
    algorithm: type, change: dict, message: str, policy: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(policy, tmp_path, short(algorithm, **change))


@BOTH
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda completions, **_: [float("nan")] * len(completions), "returned nan for completion 0"),
        (lambda completions, **_: [0.0], "expected 16 rewards, one per answer, got 1"),
        (lambda completions, **_: [None, *[1.0] * 15], "returned None for completion 0"),
    ],
)
def test_a_reward_that_is_none_is_an_error(
    algorithm: type, reward: Callable, message: str, policy: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(policy, tmp_path, short(algorithm), reward)
