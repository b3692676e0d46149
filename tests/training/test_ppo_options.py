"""Options of PPO that are off by default: each changes what it says, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from shfcas.training.ppo.demonstrations import Demonstrations
from shfcas.training.ppo.losses import clipped_policy_loss
from shfcas.training.ppo.trainer import PPOTrainer
from shfcas.utils.errors import UsageError, UserError
from tests.support.ppo_tiny import EOS, config, lora, prompts, share_of, tiny_model, tiny_tokenizer


def trainer(
    folder: Path, demonstrations: Any = (), reward: Any = None, cost_func: Any = None, **changes: Any
) -> PPOTrainer:
    settings = {"num_rollouts": 1, "learning_rate": 1e-2, "save_rollouts": 0}
    return PPOTrainer(
        tiny_model(),
        config(folder, **settings | changes),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        reward_funcs=reward or share_of("w7"),
        peft_config=lora(),
        demonstrations=demonstrations,
        cost_func=cost_func,
    )


def nothing(completions: list[str], **columns: object) -> list[float]:
    return [0.0] * len(completions)


def test_demonstrations_become_likelier(tmp_path: Path) -> None:
    """The reward says nothing, so the whole change is theirs; without the term there is none."""
    shown = [{"prompt": "w1", "completion": " w2 w3"}, {"prompt": "w4 w5", "completion": " w6"}]
    settings = {"num_rollouts": 6, "kl_coef": 0.0, "whiten_advantages": False, "ptx_coef": 1.0}
    ppo = trainer(tmp_path, demonstrations=shown, reward=nothing, **settings)
    logged = [row["loss/ptx_avg"] for row in rows(ppo)]
    assert logged[-1] < 0.5 * logged[0]


def test_demonstrations_in_their_order() -> None:
    rows = [{"prompt": f"w{i}", "completion": " w9 w8"} for i in range(6)]
    shown = Demonstrations(rows, tiny_tokenizer(), end_ids={EOS}, context_length=64, seed=3)
    steps = [shown.of_step(k, 4) for k in range(3)]
    assert sorted(row for step in steps for row in step) == sorted([*range(6)] * 2)
    assert steps[0] == shown.of_step(0, 4)
    assert shown.num_tokens([0, 1]) == 6  # with an end token each
    batch = shown.batch([0, 1], torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[4, 13, 12, EOS], [5, 13, 12, EOS]]
    assert batch["completion_mask"].all() and batch["completion_mask"].shape == (2, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected at least one for ptx_coef"),
        ([{"prompt": "w1", "completion": " w2" * 70}], "demonstration 0 has 72 tokens, more than the model's context"),
        ([{"prompt": "w1", "completion": " w2 </s> w3"}], "demonstration 0: the completion has the end token"),
    ],
)
def test_demonstrations_that_cannot_be_learned(rows: list, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, demonstrations=rows, ptx_coef=1.0)


def test_the_multiplier_rises_while_answers_cost_too_much(tmp_path: Path) -> None:
    """And falls where they cost less than the limit; both are logged, and costs are no part of the scores."""
    settings = {"num_rollouts": 3, "cost_multiplier_rate": 1.0, "kl_coef": 0.0}
    cost = share_of("w8")
    high, low = (trainer(tmp_path / str(limit), cost_func=cost, cost_limit=limit, **settings) for limit in (-1.0, 1.0))
    (first, *_, last), (other, *_, least) = rows(high), rows(low)
    assert first["objective/cost_multiplier"] == other["objective/cost_multiplier"] == 1
    assert last["objective/cost_multiplier"] > 2 and least["objective/cost_multiplier"] < 0.5
    assert 0 <= first["objective/cost"] <= 1 and first["objective/cost"] == other["objective/cost"]
    expected = (first["objective/scores"] - first["objective/cost"]) / 2
    assert first["objective/rlhf_reward"] == pytest.approx(expected, abs=1e-6)


def test_a_cost_that_does_not_apply_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the cost function returned None for completion 0"):
        trainer(tmp_path, cost_func=lambda completions, **columns: [None] * len(completions)).train()
    with pytest.raises(UsageError, match=r"cost_multiplier: expected at most cost_multiplier_max \(5\), got 6"):
        trainer(tmp_path, cost_multiplier=6.0)


def moved(ppo: PPOTrainer) -> tuple[float, float]:
    """How far the adapter's second factors, which start at zero, and the values' head moved."""
    adapter = max(p.abs().max().item() for name, p in ppo.model.policy.named_parameters() if "lora_B" in name)
    return adapter, ppo.model.value_head.weight.abs().max().item()


def rows(ppo: PPOTrainer) -> list[dict[str, float]]:
    ppo.train()
    return [row for row in ppo.state.log_history if "rollout" in row]


def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely() -> None:
    ratio, advantages = tensor([[8.0, 8.0, 2.0, 0.1]]), tensor([[-1.0, 1.0, -1.0, -1.0]])

    def loss(bound: float | None) -> Tensor:
        return clipped_policy_loss(
            ratio.log(), torch.zeros(1, 4), advantages, torch.ones(1, 4), cliprange=0.2, dual_clip=bound
        )[0]

    assert loss(None).item() == pytest.approx((8.0 - 1.2 + 2.0 + 0.8) / 4)
    assert loss(3.0).item() == pytest.approx((3.0 - 1.2 + 2.0 + 0.8) / 4)


def test_values_are_warmed_up_alone(tmp_path: Path) -> None:
    adapter, head = moved_by(trainer(tmp_path, value_warmup_rollouts=1))
    assert adapter == 0 and head > 0
    adapter, head = moved_by(trainer(tmp_path, value_warmup_rollouts=1, num_rollouts=2))
    assert adapter > 0 and head > 0


def moved_by(ppo: PPOTrainer) -> tuple[float, float]:
    ppo.train()
    return moved(ppo)


def test_updates_stop_where_the_policy_has_moved_far_enough(tmp_path: Path) -> None:
    """Without a bound, 8 updates; with one that is exceeded at once only the first, which has a KL of 0."""
    free, stopped = (
        trainer(tmp_path, num_ppo_epochs=4, max_update_kl=bound, lr_scheduler_type="constant") for bound in (None, 1e-9)
    )
    (row,), (first,) = rows(free), rows(stopped)
    assert row["policy/approxkl_avg"] > 1e-4
    assert first["rollout"] == row["rollout"] and stopped.state.global_step == free.state.global_step == 8
    assert 0 < moved(stopped)[0] < moved(free)[0]
    assert moved(stopped)[0] == pytest.approx(1e-2, rel=0.01)  # one step of Adam


def test_the_kl_may_be_a_term_of_the_loss(tmp_path: Path) -> None:
    """The reward of a token has no KL then; a large weight still holds the policy to the reference."""
    plain = trainer(tmp_path, kl_coef=50.0)
    inside = trainer(tmp_path, kl_coef=50.0, kl_in_loss=True, num_rollouts=3)
    free = trainer(tmp_path, kl_coef=0.0, num_rollouts=3)
    assert "ref_logprobs" not in plain.collect_rollout(0).tokens
    assert "ref_logprobs" in inside.collect_rollout(0).tokens
    held, loose = rows(inside), rows(free)
    assert held[0]["objective/scores"] == loose[0]["objective/scores"]
    for row in held:
        expected = row["objective/scores"] - 50.0 * row["objective/kl"]
        assert row["objective/rlhf_reward"] == pytest.approx(expected, abs=1e-4)
    assert abs(held[-1]["objective/kl"]) < 0.5 * loose[-1]["objective/kl"]
