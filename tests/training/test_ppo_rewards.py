"""From what reward functions return to the score that a completion is trained on."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import tensor

from shfcas.rewards.scorers import ModelScorer, load_scorer
from shfcas.training.ppo.losses import RewardMoments
from shfcas.training.ppo.rewards import (
    RolloutScorer,
    adjusted_scores,
    evaluate_callable,
    reward_callables,
    total_scores,
)
from shfcas.training.ppo.trainer import PPOTrainer
from shfcas.utils.errors import UserError
from tests.support import tiny
from tests.support.ppo_tiny import EOS, config, prompts, rollout, share_of, tiny_classifier, tiny_model, tiny_tokenizer


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


# Names and models

CPU, META = torch.device("cpu"), torch.device("meta")


def ones(completions: list, **columns: object) -> list[float]:
    return [1.0] * len(completions)


def test_one_function_or_several_by_their_names() -> None:
    assert reward_callables(length, None, 4, CPU) == {"length": length}
    for several in ([length, ones], (length, ones)):
        found = reward_callables(several, None, 4, CPU)
        assert [*found.items()] == [("length", length), ("ones", ones)]

    class Judge:
        def __call__(self, completions: list, **columns: object) -> list[float]:
            return ones(completions)

    judge = Judge()
    assert reward_callables([judge, ones], [None, None], 4, CPU) == {"Judge": judge, "ones": ones}


def test_a_model_is_wrapped_with_its_tokenizer_batch_and_device() -> None:
    model, tokenizer = tiny_classifier().train(), tiny_tokenizer()
    found = reward_callables([model, ones], [tokenizer, None], 3, META)
    assert [*found] == ["LlamaForSequenceClassification", "ones"]
    scorer = found["LlamaForSequenceClassification"]
    assert isinstance(scorer, ModelScorer) and scorer.model is model
    assert scorer.tokenizer is tokenizer and scorer.batch_size == 3
    assert not model.training and model.device == META
    # One tokenizer serves all models; functions do not need it.
    alone = reward_callables(tiny_classifier(), tokenizer, 3, CPU)
    assert [scorer.tokenizer for scorer in alone.values()] == [tokenizer]
    mixed = reward_callables([ones, tiny_classifier()], tokenizer, 5, CPU)
    assert mixed["LlamaForSequenceClassification"].tokenizer is tokenizer
    with pytest.raises(
        UserError, match="LlamaForSequenceClassification needs its tokenizer in reward_processing_classes"
    ):
        reward_callables([ones, tiny_classifier()], [tokenizer, None], 5, CPU)


def test_a_named_model_comes_to_the_device_with_the_batch_size(tmp_path: Path) -> None:
    name = tiny.save_reward_model(tmp_path / "judge")
    found = reward_callables([name, "tests.support.tiny:letter_reward"], None, 5, META)
    assert [*found] == ["judge", "letter_reward"] and found["letter_reward"] is tiny.letter_reward
    assert found["judge"].model.device == META and found["judge"].batch_size == 5


def test_lists_of_unequal_length_are_refused() -> None:
    for functions, tokenizers, said in (
        ([], None, "got 0 reward_funcs and 0 reward_processing_classes"),
        ([], [], "got 0 reward_funcs and 0 reward_processing_classes"),
        ([ones], [None, None], "got 1 reward_funcs and 2 reward_processing_classes"),
        ([ones, length], [None], "got 2 reward_funcs and 1 reward_processing_classes"),
    ):
        with pytest.raises(ValueError, match=f"^{said}$"):
            reward_callables(functions, tokenizers, 4, CPU)
    with pytest.raises(
        ValueError, match=r"^reward_funcs: expected unique names \(__name__ or folder\), got 'ones' twice$"
    ):
        reward_callables([ones, length, ones], None, 4, CPU)


# Results


def test_results_are_single_precision_and_what_does_not_apply_is_no_number() -> None:
    columns = {"completions": ["a", "b", "c"], "bonus": [0.5, None, -2.0]}

    def bonus_of(bonus: list, **columns: object) -> list:
        return bonus

    found = evaluate_callable("bonus", bonus_of, 3, columns)
    assert found.dtype == torch.float32 and found.shape == (3,)
    assert found[[0, 2]].tolist() == [0.5, -2.0] and found.isnan().tolist() == [False, True, False]
    whole = evaluate_callable("whole", lambda completions: [1, 2, 3], 3, columns)
    assert whole.dtype == torch.float32 and whole.tolist() == [1.0, 2.0, 3.0]
    assert evaluate_callable("none", lambda completions: [None] * 3, 3, columns).dtype == torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert evaluate_callable("whole", lambda completions: [1, 2, 3], 3, columns).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_no_number_names_function_and_completion(value: float) -> None:
    def broken(completions: list) -> list:
        return [0.0, None, value, 1.0]

    expected = (
        rf"^reward function 'judge' returned {value} for completion 2; fix .*broken \(.*test_ppo_rewards.py:\d+\)$"
    )
    with pytest.raises(UserError, match=expected):
        evaluate_callable("judge", broken, 4, {"completions": ["a"] * 4})
    with pytest.raises(UserError, match="expected 3 rewards, one per answer, got 4"):
        evaluate_callable("judge", broken, 3, {"completions": ["a"] * 3})


def test_the_first_completion_without_a_reward_is_named() -> None:
    nan = math.nan
    scores = tensor([[1.0, 2.0], [nan, 3.0], [nan, nan], [nan, nan]])
    with pytest.raises(UserError, match=r"^every reward function returned None for completion 2$"):
        total_scores(scores, tensor([1.0, 1.0]))
    assert total_scores(scores[:2], tensor([0.5, 4.0])).tolist() == [8.5, 12.0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [5.0, -7.0, 1.0]),
        ({"reward_clip": 2.0}, [2.0, -2.0, 1.0]),
        ({"missing_eos_penalty": 0.25}, [5.0, -7.25, 0.75]),
        ({"length_penalty": 0.5}, [4.0, -9.0, -2.0]),
        ({"reward_clip": 2.0, "length_penalty": 1.0, "missing_eos_penalty": 4.0}, [0.0, -10.0, -9.0]),
    ],
)
def test_each_adjustment_alone(settings: dict, expected: list, tmp_path: Path) -> None:
    scores, lengths, finished = tensor([5.0, -7.0, 1.0]), tensor([2, 4, 6]), tensor([True, False, False])
    assert adjusted_scores(scores, lengths, finished, config(tmp_path, **settings)).tolist() == expected


# Rollouts


def scorer(folder: Path, rewards: dict, metrics: dict | None = None, **settings: object) -> RolloutScorer:
    return RolloutScorer(rewards, metrics or {}, tiny_tokenizer(), config(folder, **settings))


def test_a_rollout_is_scored_by_all_functions(tmp_path: Path) -> None:
    given: dict[str, object] = {}
    dataset = Dataset.from_dict(
        {
            "prompt": ["w0", "w1", "w2", "w3"],
            "gold": [10.0, 20.0, 30.0, 40.0],
            "completion": ["no"] * 4,
            "completion_ids": [[9]] * 4,
        }
    )

    def gold_of(gold: list, **columns: object) -> list:
        given.update(columns, gold=gold)
        return gold

    def words(completions: list, **columns: object) -> list:
        return [None if not text else float(len(text.split())) for text in completions]

    score = scorer(tmp_path, {"gold": gold_of, "words": words}, {"tokens": length}, reward_weights=[0.1, -1.0])
    found = score(dataset, [3, 0, 2], rollout())
    # Completions of 3, 5 and 1 tokens; the end tokens of the first and the last are no words.
    texts = ["w8 w9", "w10 w11 w12 w13 w14", ""]
    assert found.prompts == ["w3", "w0", "w2"] and found.completions == texts
    assert given == {
        "prompts": found.prompts,
        "completions": texts,
        "completion_ids": [[12, 13, EOS], [14, 15, 16, 17, 18], [EOS]],
        "gold": [40.0, 10.0, 30.0],
    }
    assert found.scores.tolist() == pytest.approx([4.0 - 2, 1.0 - 5, 3.0])
    assert [*found.columns] == ["objective/tokens", "rewards/gold", "rewards/words"]
    assert found.columns["objective/tokens"].tolist() == [3.0, 5.0, 1.0]
    assert found.columns["rewards/gold"].tolist() == [40.0, 10.0, 30.0]
    assert found.columns["rewards/words"].nan_to_num(-1.0).tolist() == [2.0, 5.0, -1.0]


def test_messages_are_answered_with_a_message(tmp_path: Path) -> None:
    prompts = [[{"role": "user", "content": f"w{i}"}] for i in range(3)]
    found = scorer(tmp_path, {"ones": ones})(Dataset.from_dict({"prompt": prompts}), [0, 1, 2], rollout())
    assert found.prompts == prompts
    assert [c[0]["content"] for c in found.completions] == ["w8 w9", "w10 w11 w12 w13 w14", ""]
    assert {c[0]["role"] for c in found.completions} == {"assistant"}
    assert found.scores.tolist() == [1.0] * 3


def test_weights_are_one_each_where_none_are_given(tmp_path: Path) -> None:
    assert scorer(tmp_path, {"ones": ones, "length": length}).weights.tolist() == [1.0, 1.0]
    assert scorer(tmp_path, {"ones": ones}, reward_weights=[-0.5]).weights.tolist() == [-0.5]
    with pytest.raises(ValueError, match=r"^reward_weights: expected one per reward function, 1, got 2$"):
        scorer(tmp_path, {"ones": ones}, reward_weights=[1.0, 2.0])


def test_names_of_ppo_s_own_metrics_are_taken(tmp_path: Path) -> None:
    expected = r"^metric_funcs: 'entropy' is the name of a metric of PPO; rename it$"
    with pytest.raises(ValueError, match=expected):
        scorer(tmp_path, {"ones": ones}, {"kl": ones, "mine": ones, "entropy": ones})
    assert scorer(tmp_path, {"scores": ones}, {"mine": ones}).metric_funcs == {"mine": ones}


def test_scores_and_columns_come_to_the_device_of_the_trainer() -> None:
    args = SimpleNamespace(device=META, reward_weights=None)
    score = RolloutScorer({"ones": ones}, {"tokens": length}, tiny_tokenizer(), args)
    found = score(Dataset.from_dict({"prompt": ["w0", "w1", "w2"]}), [0, 1, 2], rollout())
    devices = {name: values.device for name, values in found.columns.items()}
    assert found.scores.device == META and devices == {"objective/tokens": META, "rewards/ones": META}


def test_a_function_that_fails_is_named_as_it_is_logged(tmp_path: Path) -> None:
    score = scorer(tmp_path, {"judge": lambda completions: [math.nan] * len(completions)})
    with pytest.raises(UserError, match=r"^reward function 'judge' returned nan for completion 0;"):
        score(Dataset.from_dict({"prompt": ["w0", "w1", "w2"]}), [0, 1, 2], rollout())
