"""Held-out evaluation, early stop, and the return to the best policy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from shfcas.training.ppo.early_stopping import EarlyStopping
from shfcas.training.ppo.trainer import PPOTrainer, latest_checkpoint
from tests.support.ppo_tiny import (
    Crash,
    CrashAt,
    config,
    lora,
    prompts,
    share_of,
    tiny_classifier,
    tiny_model,
    tiny_tokenizer,
)

STEPS = 4


def held_out(times: int = 1) -> Dataset:
    return Dataset.from_dict({"prompt": ["w20 w21", "w22", "w23 w24 w25"] * times, "number": [100, 101, 102] * times})


class Falling:
    """A metric that is best at its third evaluation, whatever the answers are."""

    __name__ = "falling"
    values = (0.1, 0.2, 0.5, 0.3, 0.4, 0.45, 0.2, 0.1)

    def __init__(self, policy: Callable[[], PPOTrainer]) -> None:
        self.policy = policy

    def __call__(self, completions: list[str], number: list[int], **columns: object) -> list[float]:
        return [self.values[self.policy().rollout] if n >= 100 else 0.0 for n in number]


def trainer(folder: Path, kind: str = "lora", **changes: object) -> PPOTrainer:
    extra = {n: changes.pop(n) for n in ("callbacks", "eval_dataset", "metric_funcs") if n in changes}
    settings = {
        "num_rollouts": 8,
        "save_rollouts": 1,
        "eval_rollouts": 1,
        "early_stopping_metric": "falling",
        "early_stopping_patience": 3,
        "learning_rate": 1e-2,
    }
    ppo = PPOTrainer(
        tiny_model(tie_word_embeddings=kind == "tied"),
        config(folder, **settings | changes),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        reward_funcs=share_of("w7"),
        **{"eval_dataset": held_out(), "metric_funcs": {"falling": Falling(lambda: ppo)}} | extra,
        value_model=tiny_classifier(3) if kind == "critic" else None,
        peft_config=None if kind == "tied" else lora(),
    )
    return ppo


def rows(ppo: PPOTrainer) -> list[dict[str, float]]:
    return [row for row in ppo.state.log_history if "rollout" in row]


def weights(ppo: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in ppo.model.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def test_early_stopping_by_hand() -> None:
    stopping = EarlyStopping(patience=2)
    assert [stopping.update(v, k) for k, v in enumerate([1.0, 1.0, 2.0, None])] == [True, False, True, False]
    assert (stopping.best, stopping.rollout, stopping.waited, stopping.exhausted) == (2.0, 2, 1, False)
    assert not stopping.update(1.9, 4) and stopping.exhausted


@pytest.mark.parametrize("kind", ["lora", "tied", "critic"])
def test_stops_and_returns_to_the_best_policy(tmp_path: Path, kind: str) -> None:
    plain = trainer(
        tmp_path / "plain", kind, num_rollouts=2, early_stopping_patience=None, lr_scheduler_type="constant"
    )
    plain.train()
    ppo = trainer(tmp_path / "stopped", kind, lr_scheduler_type="constant")
    ppo.train()
    assert ppo.stopped_early and not ppo.stopped_by_kl
    assert [row["eval_falling"] for row in rows(ppo)] == pytest.approx([0.1, 0.2, 0.5, 0.3, 0.4, 0.45])
    assert rows(ppo)[-1]["early_stop"] == 1.0 and "loss" not in rows(ppo)[-1]
    assert ppo.state.global_step == 5 * STEPS
    assert_equal(weights(ppo), weights(plain))  # two rollouts' updates, then the best evaluation
    assert (tmp_path / "stopped" / "best-2" / "ppo_state.json").is_file()


@pytest.mark.parametrize(("kind", "crash"), [("lora", 3 * STEPS + 2), ("critic", 5 * STEPS)])
def test_killed_and_resumed_ends_with_the_same_policy(tmp_path: Path, kind: str, crash: int) -> None:
    """Killed after the best evaluation, with a checkpoint from before it, and from after it."""
    whole = trainer(tmp_path / "whole", kind, save_rollouts=2)
    whole.train()
    with pytest.raises(Crash):
        trainer(tmp_path / "broken", kind, save_rollouts=2, callbacks=[CrashAt(crash)]).train()
    resumed = trainer(tmp_path / "broken", kind, save_rollouts=2)
    resumed.train(resume_from_checkpoint=True)
    assert rows(resumed) == rows(whole) and resumed.stopped_early
    assert resumed.early_stopping == whole.early_stopping
    assert_equal(weights(resumed), weights(whole))


def test_best_policies_are_kept_as_long_as_a_checkpoint_needs_them(tmp_path: Path) -> None:
    """A run that goes on from an old one needs what was the best policy then."""
    trainer(tmp_path, num_rollouts=3).train()
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-0", "best-1", "best-2"]
    trainer(tmp_path / "limited", num_rollouts=3, save_total_limit=1).train()
    assert sorted(path.name for path in (tmp_path / "limited").glob("best-*")) == ["best-2"]
    trainer(tmp_path / "none", num_rollouts=3, save_rollouts=0).train()
    assert [path.name for path in (tmp_path / "none").glob("best-*")] == ["best-2"]
    assert latest_checkpoint(tmp_path / "none") is None


def test_the_last_policy_is_evaluated_too(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, num_rollouts=2, eval_rollouts=2)
    ppo.train()
    assert [(row["rollout"], "eval_falling" in row, "loss" in row) for row in rows(ppo)] == [
        (0, True, True),
        (1, False, True),
        (2, True, False),
    ]
    assert ppo.early_stopping.rollout == 2 and not ppo.stopped_early
    last = weights(ppo)
    resumed = trainer(tmp_path, num_rollouts=2, eval_rollouts=2)
    resumed.train(resume_from_checkpoint=True)  # there is nothing left to do
    assert_equal(weights(resumed), last)
    assert rows(resumed) == rows(ppo)


def test_stopped_by_a_callback_in_the_middle_of_a_rollout(tmp_path: Path) -> None:
    """What the policy has become since the evaluation is not what was evaluated."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == STEPS + 2

    ppo = trainer(tmp_path, callbacks=[Stop()], save_rollouts=0)
    ppo.train()
    assert ppo.early_stopping.rollout == ppo.rollout == 1
    plain = trainer(tmp_path / "plain", callbacks=[Stop()], early_stopping_patience=None)
    plain.train()
    best = load_file(tmp_path / "best-1" / "adapter_model.safetensors")
    assert torch.equal(best[next(iter(best))], ppo.model.policy.state_dict()[adapter(next(iter(best)))])
    assert not torch.equal(best[next(iter(best))], plain.model.policy.state_dict()[adapter(next(iter(best)))])


def adapter(name: str) -> str:
    """A saved weight's name in the model."""
    return name.replace(".weight", ".default.weight")


def test_evaluation_without_patience_changes_nothing(tmp_path: Path) -> None:
    measured = trainer(tmp_path / "measured", num_rollouts=3, early_stopping_patience=None)
    plain = trainer(tmp_path / "plain", num_rollouts=3, early_stopping_patience=None, eval_rollouts=0)
    for ppo in (measured, plain):
        ppo.train()
    assert_equal(weights(measured), weights(plain))
    assert not list((tmp_path / "measured").glob("best-*"))


def test_evaluate(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, missing_eos_penalty=9.0, normalize_rewards=True)
    first = ppo.evaluate()
    assert first == ppo.evaluate()
    assert set(first) == {"eval_scores", "eval_kl", "eval_mean_length", "eval_falling"}
    assert 0 <= first["eval_scores"] <= 1  # neither normalised nor penalised
    assert first["eval_kl"] == pytest.approx(0, abs=1e-5)
    ppo.train()
    assert ppo.evaluate()["eval_kl"] != pytest.approx(0, abs=1e-3)


def test_a_policy_beyond_max_kl_is_not_the_best(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, max_kl=0.1, kl_coef=0.0, learning_rate=3e-2, eval_dataset=held_out(40))
    ppo.train()
    assert ppo.stopped_by_kl and ppo.early_stopping.rollout == 0
    policy = ppo.model.policy
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(policy(ids).logits, tiny_model()(ids).logits)


def test_reward_as_the_metric(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, early_stopping_metric="scores", num_rollouts=3)
    ppo.train()
    assert ppo.early_stopping.best == max(row["eval_scores"] for row in rows(ppo))
    assert ppo.evaluate()["eval_scores"] == pytest.approx(ppo.early_stopping.best)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eval_rollouts needs held-out prompts: pass eval_dataset"):
        trainer(tmp_path, eval_dataset=None)
    with pytest.raises(ValueError, match="early_stopping_metric 'gold' is not one of scores, falling"):
        trainer(tmp_path, early_stopping_metric="gold")
    with pytest.raises(ValueError, match="eval_dataset row 0: the prompt is empty"):
        trainer(tmp_path, eval_dataset=Dataset.from_dict({"prompt": [""]}))
    with pytest.raises(ValueError, match="there is nothing to evaluate on"):
        trainer(tmp_path, eval_dataset=None, eval_rollouts=0, early_stopping_patience=None).evaluate()
