"""From what reward functions return to the score that a completion is trained on."""

from pathlib import Path

import pytest
import torch
from torch import tensor

from shfcas.rewards.scorers import load_scorer
from shfcas.training.ppo.losses import RewardMoments
from shfcas.training.ppo.rewards import adjusted_scores, total_scores
from shfcas.training.ppo.trainer import PPOTrainer
from tests.support import tiny
from tests.support.ppo_tiny import EOS, config, prompts, share_of, tiny_classifier, tiny_model, tiny_tokenizer


def trainer(folder: Path, reward_funcs: object, **changes: object) -> PPOTrainer:
    extra = {n: changes.pop(n) for n in ("metric_funcs", "reward_processing_classes") if n in changes}
    return PPOTrainer(
        tiny_model(),
        config(folder, **changes),
        train_dataset=prompts(),
        processing_class=tiny_tokenizer(),
        reward_funcs=reward_funcs,
        **extra,
    )


def length(completion_ids: list[list[int]], **columns: object) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def test_total_scores_by_hand() -> None:
    nan = float("nan")
    per_function = tensor([[1.0, 10.0], [nan, 4.0], [2.0, nan]])
    assert total_scores(per_function, tensor([2.0, -0.5])).tolist() == [-3.0, -2.0, 4.0]
    with pytest.raises(ValueError, match="returned None for completion 1"):
        total_scores(tensor([[1.0], [nan]]), tensor([1.0]))


def test_adjusted_scores_by_hand(tmp_path: Path) -> None:
    scores, lengths, finished = tensor([5.0, -7.0, 1.0]), tensor([2, 4, 6]), tensor([True, True, False])
    args = config(tmp_path, reward_clip=3.0, missing_eos_penalty=2.0, length_penalty=0.5)
    # clipped to 3, -3, 1; less 0, 0, 2; less 1, 2, 3
    assert adjusted_scores(scores, lengths, finished, args).tolist() == [2.0, -5.0, -4.0]
    assert adjusted_scores(scores, lengths, finished, config(tmp_path)).tolist() == scores.tolist()


def test_moments_of_parts_are_those_of_the_whole() -> None:
    parts = [torch.randn(5) * 3 + 10, torch.randn(1), torch.full((4,), 1e4)]
    moments = RewardMoments()
    for part in parts:
        moments = moments.updated(part)
    whole = torch.cat(parts).double()
    assert moments.count == 10
    assert moments.mean == pytest.approx(whole.mean().item(), rel=1e-12)
    assert moments.squares / 10 == pytest.approx(whole.var(correction=0).item(), rel=1e-12)
    normal = moments.normalize(whole)
    assert normal.mean().item() == pytest.approx(0, abs=1e-9) and normal.std(correction=0).item() == pytest.approx(1)


def test_equal_rewards_are_normalised_to_zero() -> None:
    scores = torch.full((4,), 2.5)
    assert RewardMoments().updated(scores).normalize(scores).tolist() == [0.0] * 4


def test_weights(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, [share_of("w7"), length], reward_weights=[3.0, -0.25])
    metrics = ppo.collect_rollout(0).metrics
    expected = 3.0 * metrics["rewards/share"] - 0.25 * metrics["rewards/length"]
    assert metrics["objective/scores"] == pytest.approx(expected)
    assert metrics["rewards/length"] == metrics["completions/mean_length"]
    with pytest.raises(ValueError, match="reward_weights: expected one per reward function, 2, got 1"):
        trainer(tmp_path, [share_of("w7"), length], reward_weights=[1.0])


def test_normalisation_goes_on_from_rollout_to_rollout(tmp_path: Path) -> None:
    ppo = trainer(tmp_path, length, normalize_rewards=True, num_rollouts=3)
    first = ppo.collect_rollout(0)
    again = ppo.collect_rollout(0)  # looking at a rollout counts for nothing
    assert first.metrics == again.metrics
    assert first.metrics["objective/scores"] == pytest.approx(0, abs=1e-5)
    assert first.metrics["rewards/length"] > 1
    ppo.train()
    rows = [row for row in ppo.state.log_history if "rollout" in row]
    assert ppo.reward_moments.count == 24
    assert ppo.reward_moments.mean == pytest.approx(sum(row["rewards/length"] for row in rows) / 3)


def test_a_reward_model_by_name(tmp_path: Path) -> None:
    """A name brings its own tokenizer, which is another one than the policy's."""
    name = tiny.save_reward_model(tmp_path / "judge")
    answers: dict[str, list] = {}

    def keep(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        answers.update(prompts=prompts, completions=completions)
        return [0.0] * len(prompts)

    ppo = trainer(tmp_path, [name, keep], generation_batch_size=3)
    rewards = load_scorer(name)(**answers) if ppo.collect_rollout(0) else []
    metrics = ppo.collect_rollout(0).metrics
    assert metrics["rewards/judge"] == pytest.approx(sum(rewards) / 8, abs=1e-5)
    assert ppo.collector.scorer.reward_funcs["judge"].batch_size == 3


def test_a_callable_by_name(tmp_path: Path) -> None:
    metrics = trainer(tmp_path, "tests.support.tiny:letter_reward").collect_rollout(0).metrics
    assert metrics["objective/scores"] == metrics["rewards/letter_reward"] > 0


def test_errors_of_names(policy: str, tmp_path: Path) -> None:
    name = tiny.save_reward_model(tmp_path / "judge")
    with pytest.raises(ValueError, match="expected None as its tokenizer"):
        trainer(tmp_path, name, reward_processing_classes=tiny_tokenizer())
    with pytest.raises(ValueError, match="got 'judge' twice"):
        trainer(tmp_path, [name, name])
    with pytest.raises(ValueError, match="the folder does not exist"):
        trainer(tmp_path, "./nowhere")
    with pytest.raises(ValueError, match="no trained reward head"):
        trainer(tmp_path, policy)
    with pytest.raises(ValueError, match="'kl' is the name of a metric of PPO"):
        trainer(tmp_path, length, metric_funcs={"kl": length})


def test_length_penalty_shortens_answers(tmp_path: Path) -> None:
    """With no other reward, what pays is to stop at once."""
    ppo = trainer(
        tmp_path,
        lambda completions, **columns: [0.0] * len(completions),
        length_penalty=1.0,
        kl_coef=0.0,
        num_rollouts=12,
        rollout_batch_size=32,
        generation_batch_size=32,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        stop_token_ids=[EOS, *range(40, 50)],
    )
    ppo.train()
    lengths = [row["completions/mean_length"] for row in ppo.state.log_history if "rollout" in row]
    assert lengths[0] > 2.5 and lengths[-1] < 1.6


def test_a_reward_model_object_is_not_trained(tmp_path: Path) -> None:
    scorer = tiny_classifier(5)
    start = {name: p.clone() for name, p in scorer.state_dict().items()}
    ppo = trainer(tmp_path, scorer, reward_processing_classes=tiny_tokenizer(template=False))
    ppo.train()
    assert all(torch.equal(p, start[name]) for name, p in scorer.state_dict().items())
